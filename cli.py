"""`python cli.py --help`."""

from keras_rcl.commands import cli

# Processes that a command starts read this file too.
if __name__ == "__main__":
    cli()
