"""The command line: parse, resolve, one call into `experiment`, print. TensorFlow is imported inside the call."""

import dataclasses
import json
import sys
from pathlib import Path

import click

from keras_rcl import config, runtime
from keras_rcl.methods import VARIANTS
from keras_rcl.progress import StderrProgress
from keras_rcl.report.tables import attack_table, comparison_table, text_table
from keras_rcl.vocabulary.attack import parse_attack
from keras_rcl.vocabulary.network import Precision
from keras_rcl.vocabulary.phase import Phase
from keras_rcl.vocabulary.threat import parse_pixels
from keras_rcl.vocabulary.word import Refused, first_line

INTERRUPTED = 130


class OneLineErrors(click.Group):
    """A group that says what was wrong in one line and exits with status 2, without usage texts or tracebacks."""

    def main(self, *args, **kwargs):
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(2)
        except (click.ClickException, Refused) as error:
            message = error.format_message() if isinstance(error, click.ClickException) else str(error)
            click.echo(f"error: {' '.join(message.split())}", err=True)
            sys.exit(2)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(status if isinstance(status, int) else 0)


def experiment_options(command):
    """The options by which an experiment is chosen."""
    options = (
        click.option(
            "--config", "path", type=click.Path(path_type=Path), help="A YAML file; configs/digits.yaml by default."
        ),
        click.option("--variant", help="What to train, such as clafs; see `variants`."),
        click.option(
            "--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change one setting; may be repeated."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def foreign_model_options(command):
    """The options that say how a model of other makers is to be fed and read."""
    options = (
        click.option(
            "--input-range",
            type=click.Choice(["0..1", "0..255", "-1..1"]),
            default="0..1",
            show_default=True,
            help="Of the images that the model takes.",
        ),
        click.option(
            "--output",
            type=click.Choice(["logits", "probabilities"]),
            help="What the model gives; found out if not said.",
        ),
        click.option("--endpoint", help="Which signature of the SavedModel to call."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="keras_rcl")
def cli():
    """Robust contrastive learning in Keras: train classifiers that survive attack, and measure whether they do."""


@cli.command()
@experiment_options
@click.option("--seed", type=click.IntRange(min=0), help="Of weights, batches and attacks.")
@click.option("--precision", type=click.Choice(Precision.__args__), help="The dtype policy of training.")
@click.option("--jit", is_flag=True, help="Compile with XLA (for GPUs; slower on most CPUs).")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many images a part, class balance kept.")
@click.option("--data-dir", help="Where TFDS finds or puts data sets; TFDS_DATA_DIR by default.")
@click.option("--compare", multiple=True, help="Also train this variant, for the table; may be repeated.")
@click.option("--no-compare", is_flag=True, help="Train nothing beside the variant.")
@click.option("--name", help="Of the run; <data set>-<variant> by default.")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", show_default=True)
@click.option("--saved-models", type=click.Path(path_type=Path), default="saved_models", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a run and export of that name.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def fit(path, variant, settings, compare, no_compare, name, runs, saved_models, overwrite, as_json, **shortcuts):
    """Train a variant, attack it on test images, export it as a SavedModel."""
    experiment = config.load(path, variant, [*settings, *_as_settings(**shortcuts)])
    beside = () if no_compare else (compare or experiment.compare)
    others = [config.with_variant(experiment, path, other) for other in beside if other != experiment.method.name]
    module = _experiment_module()
    for line in runtime.advice(experiment.precision, experiment.jit):
        click.echo(f"note: {line}", err=True)
    with StderrProgress() as progress:
        folders = dict(runs=runs, saved_models=saved_models, overwrite=overwrite, progress=progress)
        fitted = [module.fit(experiment, name=name, **folders), *(module.fit(other, **folders) for other in others)]
    if as_json:
        click.echo(json.dumps([one.record for one in fitted], indent=1))
        return
    click.echo(text_table(*comparison_table({one.experiment.method.name: one.record for one in fitted})))
    first = fitted[0]
    click.echo(
        f"\naccuracy in % on {first.record['images']} test images of {first.record['data']['name']}, pixel protocol\n"
        f"run          {first.run}\nSavedModel   {first.saved_model}\n"
        f"TensorBoard  tensorboard --logdir {runs}\n"
        f"attack it    python cli.py attack {first.saved_model}"
    )


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME[-STEPS][:KEY=VALUE,...]",
    help="fgsm, bim, pgd, apgd, fab, square, autoattack; may be repeated.",
)
@click.option("--epsilon", "epsilons", help="A list, such as 1/255,2/255,4/255,8/255,16/255; runs each attack at each.")
@click.option("--restarts", type=click.IntRange(min=1), help="Random restarts of the attacks that have them.")
@click.option("--dataset", help="A data set; the one that the model was trained with by default.")
@click.option("--folder", type=click.Path(), help="With --dataset folder: one sub-folder a class.")
@click.option("--data-dir", help="Where TFDS finds or puts data sets; TFDS_DATA_DIR by default.")
@click.option("--image-size", type=click.IntRange(min=1), help="Resize the images of the data set.")
@click.option("--part", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many images, class balance kept.")
@click.option("--batch-size", type=click.IntRange(min=1), default=250, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@foreign_model_options
@click.option("--output-dir", type=click.Path(path_type=Path), help="Folder to write; attacks/<model> by default.")
@click.option("--save-images", is_flag=True, help="Also write the adversarial images, adversarial.npz.")
@click.option("--overwrite", is_flag=True, help="Replace the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def attack(model, attacks, epsilons, restarts, dataset, folder, data_dir, image_size, limit, as_json, **options):
    """Attack a SavedModel or .keras file: of this tool, or any from images to logits or probabilities."""
    words = _attacks(attacks or ("fgsm", "pgd-40"), epsilons, restarts)
    chosen = dict(name=dataset, folder=folder, data_dir=data_dir, image_size=image_size, limit=limit)
    with StderrProgress() as progress:
        record, written = _experiment_module().attack(
            model, words, dataset=_given(chosen), progress=progress, **options
        )
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    if record["model"]["note"]:
        click.echo(f"note: {record['model']['note']}", err=True)
    click.echo(
        f"{attack_table(record)}\n\n"
        f"in % of {record['images']} images of {record['data']['name']} ({record['data']['part']}), pixel protocol; "
        f"an image that is wrong before the attack counts as wrong\nwritten to {written}"
    )


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--resize", is_flag=True, help="Resize images that are not of the model's size.")
@foreign_model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def predict(model, images, as_json, **options):
    """Classify PNG or JPEG files, folders of them, or .npy/.npz arrays."""
    entries = _experiment_module().predict(model, images, **options)
    if as_json:
        click.echo(json.dumps(entries, indent=1))
        return
    rows = [[entry["image"], entry["class_name"], f"{entry['probability']:.4f}"] for entry in entries]
    click.echo(text_table(["image", "class", "probability"], rows))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--checkpoint", default="best", show_default=True, help="best, last, or a phase's.")
@click.option("--name", help="Of the export; <run>-<checkpoint> by default.")
@click.option("--saved-models", type=click.Path(path_type=Path), default="saved_models", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an export of that name.")
def export(run, **options):
    """Export a checkpoint of a run as a SavedModel."""
    click.echo(_experiment_module().export_run(run, **options))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def variants(as_json):
    """List the variants: what each one is, and its phases."""
    if as_json:
        listed = {name: [dataclasses.asdict(phase) for phase in cls().phases()] for name, cls in VARIANTS.items()}
        click.echo(json.dumps(listed, indent=1))
        return
    for name, cls in VARIANTS.items():
        click.echo(f"{name}: {cls.__doc__.splitlines()[0]}\n{_phase_table(cls().phases(), '  ')}\n")


@cli.command()
@experiment_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(path, variant, settings, as_json):
    """Print the resolved experiment as YAML that `--config` reads back, and its phases."""
    experiment = config.load(path, variant, settings)
    if as_json:
        click.echo(json.dumps(config.to_dict(experiment), indent=1))
        return
    click.echo(config.to_yaml(experiment) + "\n" + _phase_table(experiment.method.phases(), "# "))


def _experiment_module():
    """`keras_rcl.experiment`, with TensorFlow started quietly before it."""
    runtime.start_tensorflow()
    from keras_rcl import experiment

    return experiment


def _given(options: dict) -> dict:
    return {key: value for key, value in options.items() if value is not None}


def _as_settings(seed, precision, jit, limit, data_dir) -> list[str]:
    """The short options of `fit` as settings."""
    given = {
        "seed": seed,
        "precision": precision,
        "jit": jit or None,
        "dataset.limit": limit,
        "dataset.data_dir": data_dir,
    }
    return [f"{key}={json.dumps(value)}" for key, value in _given(given).items()]


def _attacks(texts, epsilons, restarts) -> list:
    """Each attack at each epsilon, with restarts where it has any."""
    words = [parse_attack(text) for text in texts]
    if restarts:
        words = [_with_restarts(word, restarts) for word in words]
    if not epsilons:
        return words
    try:
        return [word.at(parse_pixels(epsilon)) for word in words for epsilon in epsilons.split(",")]
    except ValueError as error:
        raise Refused(f"--epsilon {epsilons}: {first_line(error)}") from None


def _with_restarts(word, restarts: int):
    """The attack with so many restarts, where it has random ones."""
    fields = {field.name for field in dataclasses.fields(word)}
    return dataclasses.replace(word, num_restarts=restarts) if "num_restarts" in fields else word


def _phase_table(phases: tuple[Phase, ...], indent: str) -> str:
    """One line a phase: epochs, parts that train, views, terms; refreshes below their host."""
    lines = []

    def add(phase: Phase, depth: int):
        name = "  " * depth + phase.name + (" (before each epoch)" if depth else "")
        views = ", ".join(view.kind if view.kind != "augmented" else view.policy.name for view in phase.views)
        terms = " + ".join(f"{term.weight:g} {term.term}" for term in phase.terms)
        lines.append([name, str(phase.epochs), " ".join(phase.trains), views, terms])
        for inner in phase.refresh:
            add(inner, depth + 1)

    for phase in phases:
        add(phase, 0)
    header = ["phase", "epochs", "trains", "views", "terms"]
    return "\n".join(indent + line for line in text_table(header, lines, right=(1,)).splitlines())
