"""The command `report`."""

from pathlib import Path

import click

from keras_rcl.cli import options as shared
from keras_rcl.cli.parsing import pop_settings
from keras_rcl.errors import InvalidInputError
from keras_rcl.papers import PAPERS
from keras_rcl.report.paper_tables import markdown_report
from keras_rcl.runtime.progress import StderrProgress
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.storage.atomic import json_text

RESULTS = Path("results")


@click.command(short_help="Print a paper's tables, published and measured.")
@click.option("--paper", type=click.Choice(list(PAPERS)), help="The paper whose tables and figures are made.")
@click.option(
    "--scale",
    default="full",
    show_default=True,
    help="The scale of the experiments: full is the paper's, cpu is for 2 cores.",
)
@click.option("--train", is_flag=True, help="First train, attack and verify every row that has no record.")
@click.option(
    "--processes", type=shared.COUNT, default=1, show_default=True, help="The number of rows that are trained at once."
)
@click.option("--seeds", type=shared.COUNT, help="Report N seeds, from 0; by default all that have a record.")
@click.option(
    "--limit", type=shared.COUNT, help="Use at most N images per split: a quick look, not the paper's numbers."
)
@shared.data_dir_option
@click.option(
    "--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change one setting of every row; may be repeated."
)
@click.option(
    "--results", type=shared.FOLDER, default=RESULTS, show_default=True, help="The folder of committed records."
)
@shared.runs_option
@shared.saved_models_option
@shared.output_dir_option("reports/<paper>-<scale>")
@shared.json_option("the tables")
def report(paper, settings, results, runs, saved_models, as_json, **options):
    """Print a paper's tables, published beside measured, and write them and its figures to a folder.

    The folder holds the report as HTML, as Markdown and as JSON. Measured numbers are those of the records in
    results/, runs/, attacks/ and verifications/ that have the experiment of the row. If the command is interrupted
    or killed, the same command resumes it.
    """
    if paper is None:
        raise InvalidInputError(f"no paper is given; give --paper, one of {', '.join(PAPERS)}")
    if not options["train"]:
        shared.refuse_unused("it is for --train; leave it out", "processes")
    _check_results(results)
    settings = [*settings, *pop_settings(options, "data_dir")]
    start_tensorflow()
    from keras_rcl.workflows.report import Folders
    from keras_rcl.workflows.report import report as make

    folders = Folders(results, runs, saved_models)
    with StderrProgress() as progress:
        made, written = make(paper, settings=settings, folders=folders, progress=progress, **options)
    if not any(table["images"] for table in made["tables"]):
        click.echo(f"note: nothing is measured at scale {options['scale']}; see --scale and --train", err=True)
    if as_json:
        click.echo(json_text(made))
        return
    click.echo(f"{markdown_report(made)}\n\nwritten to {written}: report.html, report.md, report.json and figures")


def _check_results(folder: Path) -> None:
    """A missing folder is noted if it is the default, as outside a checkout; any other is an error."""
    if folder.is_dir():
        return
    if folder != RESULTS:
        raise InvalidInputError(f"--results {folder} is not a folder; give a folder of records")
    click.echo(f"note: there is no folder {folder}/, so no committed records were found; see --results", err=True)
