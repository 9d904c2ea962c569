"""`python cli.py --help`."""

from keras_rcl.cli.app import cli

# Processes that a command starts read this file too.
if __name__ == "__main__":
    cli()
