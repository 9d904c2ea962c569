"""The command `export`."""

import click

from keras_rcl.cli import options as shared
from keras_rcl.runtime.tensorflow import start_tensorflow


@click.command()
@click.argument("run", type=shared.FOLDER)
@click.option(
    "--checkpoint", default="best", show_default=True, help="The checkpoint to export: best, last, or a phase's."
)
@click.option("--name", help="The name of the export; <run>-<checkpoint> by default.")
@shared.saved_models_option
@shared.skip_safety_check_option
@shared.overwrite_option("Replace an export of that name.")
def export(run, **options):
    """Export a checkpoint of a run as a SavedModel."""
    start_tensorflow()
    from keras_rcl.workflows.fit import export_run

    click.echo(export_run(run, **options))
