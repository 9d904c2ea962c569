"""`python -m keras_rcl`."""

from keras_rcl.cli.app import cli

# Processes that a command starts import this file too.
if __name__ == "__main__":
    cli()
