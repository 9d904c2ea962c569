"""`python cli.py --help`."""

from keras_rcl.commands import cli

cli()
