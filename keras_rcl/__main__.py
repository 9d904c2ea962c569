"""`python -m keras_rcl`."""

from keras_rcl.commands import cli

cli(prog_name="python -m keras_rcl")
