"""The command `certify`."""

import click

from keras_rcl.cli import options as shared
from keras_rcl.cli.start import join_workers, print_model_notes, progress_of
from keras_rcl.report.tables import smoothing_table
from keras_rcl.storage.atomic import json_text


@click.command(short_help="Certify L2 balls by randomised smoothing.")
@click.argument("model", type=shared.FOLDER)
@click.option(
    "--smoothing",
    "sigma",
    type=float,
    required=True,
    metavar="SIGMA",
    help="The standard deviation of the Gaussian noise in units of [0, 1], such as 0.25.",
)
@click.option("--n", type=int, default=100_000, show_default=True, help="Noisy copies that bound the probability.")
@click.option("--n0", type=int, default=100, show_default=True, help="Noisy copies that choose the class.")
@click.option(
    "--alpha",
    type=float,
    default=0.001,
    show_default=True,
    help="The certificate of an image is wrong with at most this probability.",
)
@shared.data_options()
@shared.foreign_model_options
@shared.workers_option
@shared.output_dir_option("certificates/<model>")
@shared.overwrite_option("Replace the folder, or an interrupted certification.")
@shared.json_option("the record")
def certify(model, as_json, workers, **options):
    """Certify the smoothed version of a SavedModel or .keras file: the class it gives most often under Gaussian noise.

    An image counts at a radius if its smoothed class is right and certified in the L2 ball of that radius. If the
    command is interrupted or killed, the same command resumes it.
    """
    workers = join_workers(workers)
    from keras_rcl.workflows.certify import certify_model

    with progress_of(workers) as progress:
        record, written = certify_model(model, workers=workers, progress=progress, **options)
    if not workers.chief:
        return
    print_model_notes(record["model"])
    if as_json:
        click.echo(json_text(record))
        return
    warnings = "".join(f"\nwarning: {line}" for line in record["warnings"])
    click.echo(f"{smoothing_table(record)}{warnings}\nwritten to {written}")
