"""The command `export-vnnlib`."""

import click

from keras_rcl.cli import options as shared
from keras_rcl.cli.completion import complete_attack
from keras_rcl.cli.parsing import check_not_in, parse_attacks, parse_radii
from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.program import program_name
from keras_rcl.runtime.progress import StderrProgress
from keras_rcl.runtime.tensorflow import start_tensorflow


@click.command("export-vnnlib", short_help="Write a model as ONNX and VNN-LIB properties.")
@click.argument("model", type=shared.FOLDER)
@shared.epsilons_option("A list of L-inf radii, such as 1/255,2/255.", default="1/255,2/255")
@shared.norm_option("The norm of the radii; VNN-LIB states boxes, so only linf can be written.", default="linf")
@click.option(
    "--max-images",
    "count",
    type=shared.COUNT,
    default=20,
    show_default=True,
    help="Write at most N images per radius: the first that the model classifies correctly.",
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar=shared.ATTACK_SYNTAX,
    shell_complete=complete_attack,
    help="Also leave out images that this attack breaks, as in `attack`; may be repeated.",
)
@click.option("--timeout", type=shared.COUNT, default=180, show_default=True, help="Seconds per image.")
@shared.skip_safety_check_option
@shared.data_options()
@shared.output_dir_option("interchange/<model>")
@shared.overwrite_option("Replace the folder.")
def export_vnnlib(model, epsilons, norm, attacks, **options):
    """Write a model as ONNX and its robustness as VNN-LIB, for alpha-beta-CROWN and other verifiers."""
    if norm != "linf":
        raise InvalidInputError(
            f"--norm {norm}: a VNN-LIB property is over a box of inputs, which an {norm} ball is not; hint: use "
            f"`verify --norm {norm}`"
        )
    check_not_in(attacks, "epsilon", f"--epsilon {epsilons}")
    radii, attacks = parse_radii(epsilons), parse_attacks(attacks)
    start_tensorflow()
    from keras_rcl.workflows.export_vnnlib import export_vnnlib

    with StderrProgress() as progress:
        exported, written = export_vnnlib(model, radii, attacks=attacks, progress=progress, **options)
    click.echo(
        f"{len(exported['instances'])} properties of {exported['model']['name']} on {exported['data']['name']} "
        f"({exported['data']['part']}) written to {written}\n"
        f"verify them     cd {written} && python PATH/TO/alpha-beta-CROWN/complete_verifier/abcrown.py "
        f"--config abcrown.yaml\n"
        f"read them back  {program_name()} read-verifier-results {written}"
    )
