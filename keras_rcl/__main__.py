"""`python -m keras_rcl`."""

from keras_rcl.cli.app import cli

cli(prog_name="python -m keras_rcl")
