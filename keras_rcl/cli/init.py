"""The command `init`."""

import click

from keras_rcl.cli import options as shared
from keras_rcl.runtime.tensorflow import start_tensorflow


@click.command(short_help="Print a configuration that fits a folder of images.")
@click.argument("images", type=shared.FOLDER)
def init(images):
    """Look at a folder with one sub-folder per class, or an .npz file, and print a configuration for `fit`.

    A comment on each line says why its value was chosen: keras-rcl init photos > mine.yaml
    """
    start_tensorflow()
    from keras_rcl.workflows.suggest_config import suggest_config

    click.echo(suggest_config(images), nl=False)
