"""The command `verify`."""

import click

from keras_rcl.cli import options as shared
from keras_rcl.cli.parsing import parse_radii
from keras_rcl.cli.start import print_model_notes
from keras_rcl.report.tables import verification_table
from keras_rcl.runtime.progress import StderrProgress
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.storage.atomic import json_text

METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown", "branch-and-bound")
"""The bounds of `verify`, from cheap to expensive."""


@click.command(short_help="Prove the robustness of images.")
@click.argument("model", type=shared.FOLDER)
@click.option(
    "--epsilon", "epsilons", default="2/255", show_default=True, help="A list of L-inf radii, such as 1/255,2/255."
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default=METHODS[-1],
    show_default=True,
    help="The most expensive bound to try.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=180,
    show_default=True,
    help="Seconds of branch and bound per image.",
)
@click.option("--no-attack", is_flag=True, help="Run no attack first; counterexamples come from the bounds alone.")
@click.option(
    "--max-images",
    "count",
    type=shared.COUNT,
    help="Bound at most N images per radius: the first that survive the attack.",
)
@click.option("--float64", is_flag=True, help="Compute bounds in float64: slower, with far smaller rounding errors.")
@shared.input_range_option
@shared.skip_safety_check_option
@shared.data_options()
@shared.output_dir_option("verifications/<model>")
@shared.overwrite_option("Replace the folder, or an interrupted verification.")
@shared.json_option("the record")
def verify(model, epsilons, as_json, **options):
    """Prove for which images no L-inf perturbation of size epsilon changes the class.

    Each image is attacked, then bounded, then branched on. MODEL is a SavedModel that was made here or a .keras
    file. If the command is interrupted or killed, the same command resumes it.
    """
    radii = parse_radii(epsilons)
    if options["method"] != METHODS[-1]:
        shared.refuse_unused(f"it is for {METHODS[-1]}, and --method is {options['method']}; leave it out", "timeout")
    if options["no_attack"]:
        shared.refuse_unused("it is for attacks, and --no-attack runs none; leave it out", "seed", "batch_size")
    start_tensorflow()
    from keras_rcl.workflows.verify import verify_model

    with StderrProgress() as progress:
        record, written = verify_model(model, radii, progress=progress, **options)
    print_model_notes(record["model"])
    if as_json:
        click.echo(json_text(record))
        return
    click.echo(
        f"{verification_table(record)}\n\n"
        f"linf, in % of {record['images']} images of {record['data']['name']} ({record['data']['part']}); the true "
        f"robust accuracy lies between verified and attacked\nbounds hold up to {record['dtype']} rounding\n"
        f"written to {written}"
    )
