"""The command `verify`."""

import click

from keras_rcl.cli import options as shared
from keras_rcl.cli.parsing import parse_radii
from keras_rcl.cli.start import print_model_notes
from keras_rcl.errors import InvalidInputError
from keras_rcl.report.tables import verification_table
from keras_rcl.runtime.progress import StderrProgress
from keras_rcl.runtime.tensorflow import start_tensorflow
from keras_rcl.storage.atomic import json_text

METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown", "branch-and-bound")
"""The bounds of `verify`, from cheap to expensive."""


@click.command(short_help="Prove the robustness of images.")
@click.argument("model", type=shared.FOLDER, required=False)
@click.option("--onnx", type=shared.FOLDER, metavar="FILE", help="Instead of MODEL: an ONNX network, with --vnnlib.")
@click.option("--vnnlib", type=shared.FOLDER, metavar="FILE", help="The property to decide, with --onnx.")
@click.option(
    "--instances",
    type=shared.FOLDER,
    metavar="FILE",
    help="Instead of MODEL: a file of lines network,property,seconds, as of VNN-COMP.",
)
@shared.epsilons_option("A list of radii, such as 1/255,2/255.", default="2/255")
@shared.norm_option("The norm of the balls; with l2 or l1, give --epsilon.", default="linf")
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
    help="Seconds of branch and bound per image, or of all work per property; with --instances, the most per line.",
)
@click.option("--no-attack", is_flag=True, help="Run no attack first; counterexamples come from the bounds alone.")
@click.option(
    "--max-images",
    "count",
    type=shared.COUNT,
    help="Bound at most N images per radius: the first that survive the attack.",
)
@click.option(
    "--survivors-of",
    type=shared.FOLDER,
    metavar="RECORD",
    help="Verify only images that survived all attacks of this record.json of `attack`.",
)
@click.option("--float64", is_flag=True, help="Compute bounds in float64: slower, with far smaller rounding errors.")
@click.option(
    "--sound",
    is_flag=True,
    help="Widen every bound by a proven bound of its rounding error; for linf.",
)
@shared.input_range_option
@shared.skip_safety_check_option
@shared.data_options()
@shared.output_dir_option("verifications/<model>")
@shared.overwrite_option("Replace the folder, or an interrupted verification.")
@shared.json_option("the record")
def verify(model, onnx, vnnlib, instances, **options):
    """Prove for which images no perturbation of size epsilon changes the class.

    Each image is attacked, then bounded, then branched on. MODEL is a SavedModel that was made here or a .keras
    file. If the command is interrupted or killed, the same command resumes it.

    With --onnx and --vnnlib, the answer to a property of another network is printed as in VNN-COMP: sat and a
    witness, unsat or timeout. With --instances, many properties are decided. The exit status is 0 for every answer.
    """
    given = [model is not None, onnx is not None or vnnlib is not None, instances is not None]
    if sum(given) != 1 or (onnx is None) != (vnnlib is None):
        raise click.UsageError("give one of: MODEL; --onnx and --vnnlib; --instances")
    if model is not None:
        _verify_model(model, **options)
        return
    unused = {name: value for name, value in options.items() if name not in ("timeout", "float64", "seed", "as_json")}
    if instances is not None:
        unused = {name: value for name, value in unused.items() if name not in ("output_dir", "overwrite")}
    names = [name for name in unused if name != "dataset"] + ["dataset", "folder", "data_dir", "image_size", "limit"]
    shared.refuse_unused("it is for a MODEL and its images; leave it out", *names)
    _verify_properties(onnx, vnnlib, instances, **options)


def _verify_properties(onnx, vnnlib, instances, timeout, float64, seed, output_dir, overwrite, as_json, **_):
    """Decide one property, or those of an instances file."""
    start_tensorflow()
    from keras_rcl.workflows.verify_properties import verify_instances, verify_property

    chosen = {"float64": float64, "seed": seed}
    if instances is None:
        answer = verify_property(onnx, vnnlib, timeout=timeout, **chosen)
        click.echo(json_text(answer.to_json()) if as_json else answer.text(), nl=as_json)
        return
    source = click.get_current_context().get_parameter_source("timeout")
    chosen["timeout"] = timeout if source is click.core.ParameterSource.COMMANDLINE else None
    with StderrProgress() as progress:
        record, written = verify_instances(
            instances, output_dir=output_dir, overwrite=overwrite, progress=progress, **chosen
        )
    if as_json:
        click.echo(json_text(record))
        return
    for row in record["instances"]:
        click.echo(f"{row['network']},{row['property']},{row['answer']},{row['seconds']}")
    counts = ", ".join(f"{count} {answer}" for answer, count in record["counts"].items())
    click.echo(f"\n{counts}\nwritten to {written}")


def _verify_model(model, epsilons, norm, as_json, **options):
    """Verify the images of a model."""
    source = click.get_current_context().get_parameter_source("epsilons")
    if norm != "linf" and source is not click.core.ParameterSource.COMMANDLINE:
        usual = {"l2": "0.5", "l1": "12"}[norm]
        raise InvalidInputError(
            f"--norm {norm}: {epsilons} is a radius in linf; hint: give --epsilon {usual} or another"
        )
    radii = parse_radii(epsilons, norm)
    if options["sound"] and norm != "linf":
        raise InvalidInputError(f"--sound is not for --norm {norm}; hint: leave one of them out")
    if options["method"] != METHODS[-1]:
        shared.refuse_unused(f"it is for {METHODS[-1]}, and --method is {options['method']}; leave it out", "timeout")
    if options["no_attack"]:
        shared.refuse_unused("it is for attacks, and --no-attack runs none; leave it out", "seed", "batch_size")
    start_tensorflow()
    from keras_rcl.workflows.verify import verify_model

    with StderrProgress() as progress:
        record, written = verify_model(model, radii, norm=norm, progress=progress, **options)
    print_model_notes(record["model"])
    if as_json:
        click.echo(json_text(record))
        return
    chosen = f"only images that survived {', '.join(survived)}\n" if (survived := record.get("survivors_of")) else ""
    click.echo(
        f"{verification_table(record)}\n\n"
        f"{norm}, in % of {record['images']} images of {record['data']['name']} ({record['data']['part']}); the true "
        f"robust accuracy lies between verified and attacked\n{chosen}{_proof(record)}\n"
        f"written to {written}"
    )


def _proof(record) -> str:
    """What the bounds of a record hold for."""
    if record.get("sound"):
        return f"bounds are in {record['dtype']} and hold for the folded network in real arithmetic"
    return f"bounds hold up to {record['dtype']} rounding"
