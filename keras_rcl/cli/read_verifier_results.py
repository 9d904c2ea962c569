"""The command `read-verifier-results`."""

import click

from keras_rcl.cli import options as shared
from keras_rcl.report.tables import verifier_results_table
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.storage.atomic import json_text


@click.command("read-verifier-results", short_help="Print what alpha-beta-CROWN proved.")
@click.argument("folders", nargs=-1, required=True, type=shared.FOLDER)
@shared.json_option("the result of every image")
def read_verifier_results(folders, as_json):
    """Print one table of what alpha-beta-CROWN proved in folders that `export-vnnlib` wrote."""
    start_tensorflow()
    from keras_rcl.workflows.export_vnnlib import read_verifier_results

    results = [read_verifier_results(folder) for folder in folders]
    click.echo(json_text(results) if as_json else verifier_results_table(results))
