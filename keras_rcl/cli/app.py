"""The command line: parse, resolve, one call into `experiment`, print. TensorFlow is imported inside the call."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import sys
from pathlib import Path

import click
from pydantic import ValidationError

from keras_rcl import config
from keras_rcl.errors import InvalidInputError, format_error
from keras_rcl.methods import VARIANTS
from keras_rcl.papers import PAPERS
from keras_rcl.report.paper_tables import markdown_report
from keras_rcl.report.tables import (
    attack_table,
    audit_text,
    collected_table,
    comparison_table,
    protocol_table,
    text_table,
    trials_table,
    verification_table,
)
from keras_rcl.runtime import launcher
from keras_rcl.runtime.distributed import Workers, start_workers, task_of
from keras_rcl.runtime.progress import Silent, StderrProgress
from keras_rcl.runtime.signals import Terminated, WorkerLost, raised_sigterm
from keras_rcl.runtime.tensorflow import advice, start_tensorflow
from keras_rcl.vocabulary.attack import ALIASES, ATTACKS, Transfer, describe, parse_attack
from keras_rcl.vocabulary.claim import AuditBudget, Claim
from keras_rcl.vocabulary.network import AttackDtype, Precision
from keras_rcl.vocabulary.phase import Phase, View
from keras_rcl.vocabulary.search import OBJECTIVES, default_search, parse_search
from keras_rcl.vocabulary.threat import PROTOCOLS, ThreatModel, format_pixels, parse_pixels

INTERRUPTED, TERMINATED = 130, 143
EVALUATING = [name for name, attack in ATTACKS.items() if not attack.of_training]
METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown", "branch-and-bound")
"""Of `verify`, from cheap to dear."""


class OneLineErrors(click.Group):
    """A group that says what was wrong in one line and exits with status 2, without usage texts or tracebacks."""

    def main(self, *args, **kwargs):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are not text
        try:
            with raised_sigterm():
                status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(2)
        except (click.ClickException, InvalidInputError) as error:
            _say_error(error.format_message() if isinstance(error, click.ClickException) else str(error))
            sys.exit(2)
        except OSError as error:
            if not error.strerror:
                raise
            _say_error(f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror)
            sys.exit(2)
        except (click.Abort, KeyboardInterrupt) as stop:
            raised = stop.__cause__ or stop  # click hides it behind its own Abort
            lost = isinstance(raised, WorkerLost)
            click.echo("; ".join(filter(None, ["a worker is lost" if lost else "interrupted", str(raised)])), err=True)
            terminated = TERMINATED if isinstance(raised, Terminated) else INTERRUPTED
            sys.exit(launcher.TRY_AGAIN if lost else terminated)
        sys.exit(status if isinstance(status, int) else 0)


def _say_error(message: str) -> None:
    """One line on stderr: its middle left out where it is too long to read, and nothing that would move the cursor."""
    line = " ".join(message.split())
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    click.echo(f"error: {line if len(line) <= 1000 else f'{line[:600]} ... {line[-400:]}'}", err=True)


def experiment_options(command):
    """The options by which an experiment is chosen."""
    options = (
        click.option(
            "--config", "path", type=click.Path(path_type=Path), help="A YAML file; configs/digits.yaml by default."
        ),
        click.option("--scale", help="One of those that the file names, such as full or cpu; the first by default."),
        click.option("--variant", help="What to train, such as clafs; see `variants`."),
        click.option(
            "--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change one setting; may be repeated."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def data_options(command, part="test"):
    """The options that say which images a model is attacked or verified on, and how."""
    options = (
        click.option("--dataset", help="A data set; the one that the model was trained with by default."),
        click.option("--folder", type=click.Path(), help="With --dataset folder: one sub-folder a class."),
        click.option("--data-dir", help="Where TFDS finds or puts data sets; TFDS_DATA_DIR by default."),
        click.option("--image-size", type=click.IntRange(1, 4096), help="Resize the images of the data set."),
        click.option("--part", type=click.Choice(["test", "validation", "train"]), default=part, show_default=True),
        click.option("--limit", type=click.IntRange(min=1), help="At most so many images, class balance kept."),
        click.option("--batch-size", type=click.IntRange(min=1), default=250, show_default=True),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True),
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
        click.option("--trust", is_flag=True, help="Load models without looking for what could do harm."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def save_every_option(command):
    """The option that says how often a training saves its state."""
    return click.option(
        "--save-every",
        type=click.FloatRange(min=0),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="How much training a kill may cost.",
    )(command)


def workers_option(command):
    """The option that says how many processes share the work."""
    return click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Processes of this machine that share the work; TF_CONFIG names those of several. See docs/scaling.md.",
    )(command)


attack_dtype_option = functools.partial(
    click.option,
    "--attack-dtype",
    type=click.Choice(AttackDtype.__args__),
    help="What attacks on the network's own logits are computed in; bfloat16 is faster on processors with AMX.",
)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="keras_rcl")
def cli():
    """Robust contrastive learning in Keras: train classifiers that survive attack, and measure whether they do."""


@cli.command()
@experiment_options
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of weights, batches and attacks.")
@click.option("--precision", type=click.Choice(Precision.__args__), help="The dtype policy of training.")
@attack_dtype_option()
@click.option("--jit", is_flag=True, help="Compile with XLA (for GPUs; slower on most CPUs).")
@click.option("--micro-batch", type=click.IntRange(min=1), help="Images that pass at once, where memory is short.")
@click.option("--replicas", type=click.IntRange(min=1), help="GPUs, or logical CPUs, that share each batch.")
@workers_option
@click.option("--limit", type=click.IntRange(min=1), help="At most so many images a part, class balance kept.")
@click.option("--data-dir", help="Where TFDS finds or puts data sets; TFDS_DATA_DIR by default.")
@click.option("--compare", multiple=True, help="Also train this variant, for the table; may be repeated.")
@click.option("--no-compare", is_flag=True, help="Train nothing beside the variant.")
@click.option("--name", help="Of the run; <data set>-<variant> by default.")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", show_default=True)
@click.option("--saved-models", type=click.Path(path_type=Path), default="saved_models", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace a run and export of that name, or an unfinished run.")
@click.option("--deterministic", is_flag=True, help="Give the same bits each time, also where it was broken off.")
@click.option(
    "--reuse",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A run, or a folder of runs, whose first phases are not trained again where they are the same.",
)
@save_every_option
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def fit(
    path,
    scale,
    variant,
    settings,
    compare,
    no_compare,
    as_json,
    seed,
    precision,
    attack_dtype,
    jit,
    micro_batch,
    limit,
    data_dir,
    replicas,
    workers,
    **options,
):
    """Train a variant, attack it on test images, export it as a SavedModel.

    Killed or interrupted, the same command goes on where it was.
    """
    shortcuts = dict(
        seed=seed,
        precision=precision,
        attack_dtype=attack_dtype,
        jit=jit,
        micro_batch=micro_batch,
        limit=limit,
        data_dir=data_dir,
    )
    experiment = config.load(path, variant, [*settings, *_as_settings(**shortcuts)], scale)
    beside = () if no_compare else (compare or experiment.compare)
    others = [
        config.with_variant(experiment, path, other, scale) for other in beside if other != experiment.method.name
    ]
    workers = _workers(workers, replicas)
    from keras_rcl.workflows.fit import fit_all

    if workers.chief:
        _advise(experiment.precision, experiment.jit, experiment.attack_dtype)
    with _progress(workers) as progress:
        fitted = fit_all([experiment, *others], progress=progress, workers=workers, **options)
    if not workers.chief:
        return
    if as_json:
        click.echo(json.dumps([one.record for one in fitted], indent=1))
        return
    click.echo(text_table(*comparison_table({one.experiment.method.name: one.record for one in fitted})))
    first = fitted[0]
    click.echo(
        f"\naccuracy in % on {first.record['images']} test images of {first.record['data']['name']}, "
        f"{first.record['protocol']} protocol\n"
        f"run          {first.run}\nSavedModel   {first.saved_model}\n"
        f"TensorBoard  tensorboard --logdir {options['runs']}\n"
        f"attack it    python cli.py attack {first.saved_model}"
    )


@cli.command()
@experiment_options
@click.option(
    "--search",
    "ranges",
    multiple=True,
    metavar="A.B=RANGE",
    help="Vary a setting: log(1e-4,1e-2), uniform(0,1), int(2,20) or choice(64,128); may be repeated. Where none is "
    "given: the file's `search`, or else learning rates, batch size, temperature, margins and weights.",
)
@click.option("--objective", type=click.Choice(OBJECTIVES), default=OBJECTIVES[0], show_default=True)
@click.option(
    "--attack",
    "text",
    metavar="NAME[-STEPS][:KEY=VALUE,...]",
    help="Of the robust accuracy; the file's validation_attack by default.",
)
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="In all.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Trials at once.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of the trainings and of the search.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many images a part, class balance kept.")
@click.option("--data-dir", help="Where TFDS finds or puts data sets; TFDS_DATA_DIR by default.")
@click.option("--output-dir", type=click.Path(path_type=Path), help="tuned/<data set>-<variant> by default.")
@click.option("--overwrite", is_flag=True, help="Replace a study of something else.")
@save_every_option
@click.option("--json", "as_json", is_flag=True, help="Print the study as JSON.")
def tune(path, scale, variant, settings, ranges, text, processes, seed, limit, data_dir, as_json, **options):
    """Search for the settings of a variant that are best on validation images, never on test images.

    Killed or interrupted, the same command goes on where it was; with more --trials it goes on from the end.
    """
    given = _as_settings(seed=seed, limit=limit, data_dir=data_dir)

    def vary(changes):
        return config.load(path, variant, [*settings, *given, *changes], scale)

    experiment = vary([])
    space = dict(parse_search(one) for one in ranges) or config.load_search(path, experiment.method.name, scale)
    space = space or default_search(config.to_dict(experiment)["method"])
    attack = parse_attack(text) if text else None
    start_tensorflow()
    from keras_rcl.workflows.trial_table import BEST
    from keras_rcl.workflows.tune import tune as search

    with StderrProgress() as progress:
        found, written = search(experiment, vary, space, attack=attack, workers=processes, progress=progress, **options)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo(
            f"{trials_table(found)}\n\nin % of validation images of {experiment.dataset.name}, robust accuracy under "
            f"{found['attack']}\nwritten to {written}"
        )
    if found["best"] is None:
        raise InvalidInputError(f"none of {len(found['trials'])} trials could be measured; {written} has the reasons")
    if not as_json:
        click.echo(f"train the best  python cli.py fit --config {written / BEST}")


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME[-STEPS][:KEY=VALUE,...]",
    help=f"{', '.join([*EVALUATING, *ALIASES])}; may be repeated.",
)
@click.option(
    "--transfer-from",
    "transfers",
    multiple=True,
    metavar="MODEL",
    help="Also craft the attacks on this SavedModel or .keras file; may be repeated.",
)
@click.option(
    "--protocol",
    type=click.Choice([*PROTOCOLS, "all"]),
    help="The coordinates that epsilon is measured in, pixel by default; all of them, side by side.",
)
@click.option("--epsilon", "epsilons", help="A list, such as 1/255,2/255,4/255,8/255,16/255; runs each attack at each.")
@click.option("--restarts", type=click.IntRange(min=1), help="Random restarts of the attacks that have them.")
@data_options
@foreign_model_options
@attack_dtype_option(default="float32", show_default=True)
@workers_option
@click.option("--output-dir", type=click.Path(path_type=Path), help="Folder to write; attacks/<model> by default.")
@click.option("--save-images", is_flag=True, help="Also write the adversarial images, adversarial.npz.")
@click.option("--overwrite", is_flag=True, help="Replace the folder, or an interrupted attack.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def attack(model, attacks, transfers, protocol, epsilons, restarts, as_json, workers, **options):
    """Attack a SavedModel or .keras file: of this tool, or any from images to logits or probabilities.

    Killed or interrupted, the same command goes on where it was.
    """
    words = _attacks(attacks or ("fgsm", "pgd-40"), transfers, epsilons, restarts, protocol)
    chosen = _dataset_fields(options)
    options["workers"] = workers = _workers(workers)
    from keras_rcl.workflows.attack import attack

    if workers.chief:
        _advise(attack_dtype=options["attack_dtype"])
    with _progress(workers) as progress:
        record, written = attack(model, words, dataset=chosen, progress=progress, **options)
    if not workers.chief:
        return
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    if record["model"]["note"]:
        click.echo(f"note: {record['model']['note']}", err=True)
    pixels = record["protocol"] == "pixel"
    click.echo(
        f"{attack_table(record) if pixels else protocol_table(record)}\n\n"
        f"in % of {record['images']} images of {record['data']['name']} ({record['data']['part']}), "
        f"{record['protocol']} protocol; an image that is wrong before the attack counts as wrong"
        f"{'' if pixels else '; epsilon in the units of the protocol, distances in pixels'}\nwritten to {written}"
    )


@cli.command("craft-dataset")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--attack", "text", metavar="NAME[-STEPS][:KEY=VALUE,...]", default="pgd-10", show_default=True)
@functools.partial(data_options, part="train")
@foreign_model_options
@workers_option
@click.option("--output-dir", type=click.Path(path_type=Path), help="Folder to write; adversarial/<model> by default.")
@click.option("--shard-size", type=click.IntRange(min=1), default=5000, show_default=True, help="Examples a file.")
@click.option("--overwrite", is_flag=True, help="Replace the folder, or an interrupted crafting.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def craft_dataset(model, text, as_json, workers, **options):
    """Attack every training image once, and store what comes of it as TFRecords to train on.

    Killed or interrupted, the same command goes on where it was.
    """
    attack, chosen = parse_attack(text), _dataset_fields(options)
    options["workers"] = workers = _workers(workers)
    from keras_rcl.workflows.craft_dataset import craft_dataset

    with _progress(workers) as progress:
        record, written = craft_dataset(model, attack, dataset=chosen, progress=progress, **options)
    if not workers.chief:
        return
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    click.echo(
        f"{record['examples']} examples of the {record['data']['part']} part of {record['data']['name']} by "
        f"{describe(attack)}\naccuracy of {record['model']['name']} on the images {record['clean_accuracy']:.1%}, on "
        f"the examples {record['accuracy']:.1%}\nwritten to {written}\n"
        f"train on them  python cli.py fit --variant at --set 'method.attack={_stored(written, attack)}'"
    )


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--claim", "share", metavar="SHARE", help="The claimed robust accuracy, such as 60.4% or 0.604.")
@click.option("--record", type=click.Path(path_type=Path), help="Or a record.json of `attack`, which claims its own.")
@click.option("--norm", type=click.Choice(["linf", "l2"]), help="Of the claim; linf by default, or the record's.")
@click.option("--epsilon", help="Of the claim, such as 8/255; 8/255 by default, or the record's.")
@click.option("--transfer-from", multiple=True, type=click.Path(path_type=Path), help="A model to craft images on.")
@data_options
@click.option("--check-images", type=click.IntRange(min=1), default=100, show_default=True, help="Of the checks.")
@click.option("--verifier", help="The attack that the number is held against; autoattack by default.")
@foreign_model_options
@click.option("--output-dir", type=click.Path(path_type=Path), help="Folder to write; audits/<model> by default.")
@click.option("--overwrite", is_flag=True, help="Replace the folder, or an interrupted audit.")
@click.option("--json", "as_json", is_flag=True, help="Print the audit as JSON.")
def audit(model, share, record, norm, epsilon, check_images, verifier, as_json, **options):
    """Hold a claim of robust accuracy, or a record, against checks and AutoAttack; exits with 1 where it falls.

    Killed or interrupted, the same command goes on where it was.
    """
    if (share is None) == (record is None):
        raise InvalidInputError("give either --claim SHARE or --record FILE")
    radius = None if epsilon is None else _read_epsilon(epsilon)
    ball = dict(norm=norm or "linf", epsilon=8 / 255 if radius is None else radius)
    try:
        claim = None if share is None else Claim(robust_accuracy=_share(share), **ball)
    except ValidationError as error:
        raise InvalidInputError(f"--epsilon {epsilon}: {format_error(error)}") from None
    verifier = None if verifier is None else parse_attack(verifier)
    chosen = _dataset_fields(options)
    start_tensorflow()
    from keras_rcl.workflows.audit import audit_model

    with StderrProgress() as progress:
        found, written = audit_model(
            model,
            claim=claim,
            record=record,
            norm=norm,
            epsilon=radius,
            dataset=chosen,
            budget=AuditBudget(num_images=check_images, verifier=verifier),
            progress=progress,
            **options,
        )
    click.echo(json.dumps(found, indent=1) if as_json else audit_text(found, written))
    return int(found["verdict"] == "falls")


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--epsilon", "epsilons", default="2/255", show_default=True, help="L-inf radii, such as 1/255,2/255.")
@click.option("--method", type=click.Choice(METHODS), default=METHODS[-1], show_default=True, help="The last to try.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=180,
    show_default=True,
    help="Seconds of branch and bound, an image.",
)
@click.option("--no-attack", is_flag=True, help="Leave it to the bounds to find what is unsafe.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="Bound only so many images a radius: the first that withstand the attack.",
)
@click.option("--float64", is_flag=True, help="Bound in float64: slower, and rounding is far smaller.")
@click.option("--trust", is_flag=True, help="Load the model without looking for what could do harm.")
@data_options
@click.option("--output-dir", type=click.Path(path_type=Path), help="verifications/<model> by default.")
@click.option("--overwrite", is_flag=True, help="Replace the folder, or an interrupted verification.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def verify(model, epsilons, as_json, **options):
    """Prove which images no L-inf perturbation of size epsilon changes the class of: attack, bounds, branching.

    MODEL is a SavedModel of this tool or a .keras file. Killed or interrupted, the same command goes on where it was.
    """
    radii = _read_radii(epsilons)
    chosen = _dataset_fields(options)
    start_tensorflow()
    from keras_rcl.workflows.verify import verify_model

    with StderrProgress() as progress:
        record, written = verify_model(model, radii, dataset=chosen, progress=progress, **options)
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    click.echo(
        f"{verification_table(record)}\n\n"
        f"linf, in % of {record['images']} images of {record['data']['name']} ({record['data']['part']}); the true "
        f"robust accuracy lies between verified and attacked\nbounds hold up to {record['dtype']} rounding\n"
        f"written to {written}"
    )


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--resize", is_flag=True, help="Resize images that are not of the model's size.")
@foreign_model_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def predict(model, images, as_json, **options):
    """Classify PNG or JPEG files, folders of them, or .npy/.npz arrays."""
    start_tensorflow()
    from keras_rcl.workflows.predict import predict

    entries = predict(model, images, **options)
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
    start_tensorflow()
    from keras_rcl.workflows.fit import export_run

    click.echo(export_run(run, **options))


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--epsilon", "epsilons", default="1/255,2/255", show_default=True, help="A list of L-inf radii.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Of images a radius: the first that the model gets right.",
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME[-STEPS][:KEY=VALUE,...]",
    help="Also leave out images that fall under this attack, as in `attack`; may be repeated.",
)
@click.option("--timeout", type=click.IntRange(min=1), default=180, show_default=True, help="Seconds an image.")
@click.option("--trust", is_flag=True, help="Load the model without looking for what could do harm.")
@data_options
@click.option("--output-dir", type=click.Path(path_type=Path), help="Folder to write; interchange/<model> by default.")
@click.option("--overwrite", is_flag=True, help="Replace the folder.")
def interchange(model, epsilons, attacks, **options):
    """Write a model as ONNX and its robustness as VNN-LIB, for alpha-beta-CROWN and verifiers like it."""
    radii, words = _read_radii(epsilons), [parse_attack(text) for text in attacks]
    chosen = _dataset_fields(options)
    start_tensorflow()
    from keras_rcl.workflows.export_vnnlib import interchange

    with StderrProgress() as progress:
        told, written = interchange(model, radii, attacks=words, dataset=chosen, progress=progress, **options)
    click.echo(
        f"{len(told['instances'])} properties of {told['model']['name']} on {told['data']['name']} "
        f"({told['data']['part']}) written to {written}\n"
        f"verify them     cd {written} && python PATH/TO/alpha-beta-CROWN/complete_verifier/abcrown.py "
        f"--config abcrown.yaml\n"
        f"read them back  python cli.py collect {written}"
    )


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print every image's result as JSON.")
def collect(folders, as_json):
    """Read what alpha-beta-CROWN found in folders that `interchange` wrote into one table."""
    start_tensorflow()
    from keras_rcl.workflows.export_vnnlib import collect

    found = [collect(folder) for folder in folders]
    click.echo(json.dumps(found, indent=1) if as_json else collected_table(found))


@cli.command()
@click.option("--paper", type=click.Choice(list(PAPERS)), help="The paper whose tables and figures are made.")
@click.option("--scale", default="full", show_default=True, help="full is the paper's; cpu is for 2 cores.")
@click.option("--train", is_flag=True, help="First train, attack and verify what has no record.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Rows to train at once.")
@click.option("--seeds", type=click.IntRange(min=1), help="Of so many seeds; of all that have a record by default.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many images a part: a quick look, not the paper.")
@click.option("--data-dir", help="Where TFDS finds or puts data sets; TFDS_DATA_DIR by default.")
@click.option(
    "--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change one setting of every row; may be repeated."
)
@click.option("--results", type=click.Path(path_type=Path), default="results", show_default=True)
@click.option("--runs", type=click.Path(path_type=Path), default="runs", show_default=True)
@click.option("--saved-models", type=click.Path(path_type=Path), default="saved_models", show_default=True)
@click.option("--output-dir", type=click.Path(path_type=Path), help="reports/<paper>-<scale> by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON.")
def report(paper, settings, data_dir, results, runs, saved_models, as_json, **options):
    """Print a paper's tables, published beside measured, and write them with its figures as Markdown and one page.

    Numbers are those of records in results/, runs/, attacks/ and verifications/, found by the experiment that made
    them. Killed or interrupted, the same command goes on where it was.
    """
    if paper is None:
        raise InvalidInputError(f"no paper is given; give --paper, one of {', '.join(PAPERS)}")
    start_tensorflow()
    from keras_rcl.workflows.report import Folders
    from keras_rcl.workflows.report import report as make

    settings, folders = (
        [*settings, *_as_settings(data_dir=data_dir)],
        Folders(_record_folder(results), runs, saved_models),
    )
    with StderrProgress() as progress:
        made, written = make(paper, settings=settings, folders=folders, progress=progress, **options)
    if not any(table["images"] for table in made["tables"]):
        click.echo(f"note: nothing is measured at scale {options['scale']}; see --scale and --train", err=True)
    if as_json:
        click.echo(json.dumps(made, indent=1))
        return
    click.echo(f"{markdown_report(made)}\n\nwritten to {written}: report.html, report.md, report.json and figures")


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
def show(path, scale, variant, settings, as_json):
    """Print the resolved experiment as YAML that `--config` reads back, and its phases."""
    experiment = config.load(path, variant, settings, scale)
    if as_json:
        click.echo(json.dumps(config.to_dict(experiment), indent=1))
        return
    click.echo(config.to_yaml(experiment) + "\n" + _phase_table(experiment.method.phases(), "# "))


def _stored(folder: Path, attack) -> str:
    """The setting by which a training reads what an attack has stored."""
    return f"{{name: stored, folder: {folder}, norm: {attack.norm}, epsilon: {format_pixels(attack.epsilon)}}}"


def _record_folder(path: Path) -> Path:
    if not path.is_dir():
        raise InvalidInputError(f"{path} is no folder of records; run in the repository's root, or give --results")
    return path


def _workers(count: int | None, replicas: int | None = None) -> Workers:
    """This process among the workers, with TensorFlow started; does not return where it launches them instead."""
    task = task_of(os.environ.get("TF_CONFIG"))
    if task is None and (count or 1) > 1:
        if replicas:
            raise InvalidInputError(
                f"--replicas {replicas} is for one process, and --workers {count} starts several; give one"
            )
        sys.exit(launcher.run(count))
    if task and count and count != len(task.addresses):
        raise InvalidInputError(f"--workers {count}, and TF_CONFIG names {len(task.addresses)}; leave out --workers")
    launcher.end_with_parent()
    start_tensorflow()
    return start_workers(replicas, say=lambda line: click.echo(line, err=True))


def _progress(workers: Workers):
    """Where progress is shown: on the chief's standard error."""
    return StderrProgress() if workers.chief else contextlib.nullcontext(Silent())


def _given(options: dict) -> dict:
    return {key: value for key, value in options.items() if value is not None}


def _dataset_fields(options: dict) -> dict:
    """The fields of `Dataset` that are given, taken out of the options."""
    fields = {key: options.pop(key) for key in ("folder", "data_dir", "image_size", "limit")}
    return _given({"name": options.pop("dataset"), **fields})


def _advise(*args, **kwargs) -> None:
    """Notes of `advice`."""
    for line in advice(*args, **kwargs):
        click.echo(f"note: {line}", err=True)


def _as_settings(
    seed=None, precision=None, attack_dtype=None, jit=None, micro_batch=None, limit=None, data_dir=None
) -> list[str]:
    """The short options of `fit`, `tune` and `report` as settings."""
    given = {
        "seed": seed,
        "precision": precision,
        "attack_dtype": attack_dtype,
        "jit": jit or None,
        "micro_batch": micro_batch,
        "dataset.limit": limit,
        "dataset.data_dir": data_dir,
    }
    return [f"{key}={json.dumps(value)}" for key, value in _given(given).items()]


def _attacks(texts, transfers, epsilons, restarts, protocol) -> list:
    """Each attack, and each crafted on each other model, at each epsilon and under each protocol; with restarts."""
    words = [parse_attack(text) for text in texts]
    words += [_through(source, word) for source in transfers for word in words]
    if restarts:
        words = [_with_restarts(word, restarts) for word in words]
    try:
        if epsilons:
            words = [word.at(parse_pixels(epsilon)) for word in words for epsilon in epsilons.split(",")]
    except ValueError as error:
        raise InvalidInputError(f"--epsilon {epsilons}: {format_error(error)}") from None
    if protocol == "all":
        return [word.under(name) for word in words for name in (PROTOCOLS if word.takes_protocol else ["pixel"])]
    return [word.under(protocol) for word in words] if protocol else words


def _through(source: str, word) -> Transfer:
    """The attack crafted on another model."""
    try:
        return Transfer(source=source, attack=word)
    except ValidationError as error:
        raise InvalidInputError(f"--transfer-from {source}: {format_error(error)}") from None


def _share(text: str) -> float:
    """A share of images: `60.4%`, `0.604`, or `60.4`, which can only be percent."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise InvalidInputError(f"--claim {text} is no share; write it as 60.4% or 0.604") from None
    number = number / 100 if text.endswith("%") or number > 1 else number
    if not 0 <= number <= 1:
        raise InvalidInputError(f"--claim {text} is no share between 0% and 100%")
    return number


def _read_epsilon(text: str) -> float:
    try:
        return parse_pixels(text)
    except ValueError as error:
        raise InvalidInputError(f"--epsilon {text}: {error}") from None


def _read_radii(text: str) -> list[float]:
    """A list of L-inf radii: `1/255,2/255`."""
    radii = []
    for radius in text.split(","):
        try:
            radii.append(ThreatModel(norm="linf", epsilon=radius).epsilon)
        except ValidationError as error:
            raise InvalidInputError(f"--epsilon {radius}: {format_error(error)}") from None
    return radii


def _with_restarts(word, restarts: int):
    """The attack with so many restarts, where it has random ones."""
    if isinstance(word, Transfer):
        return dataclasses.replace(word, attack=_with_restarts(word.attack, restarts))
    fields = {field.name for field in dataclasses.fields(word)}
    return dataclasses.replace(word, num_restarts=restarts) if "num_restarts" in fields else word


def _told(view: View) -> str:
    """The kind of a view; its policy, its protocol where that is not `pixel`, or its bound and what that is of."""
    if view.kind == "worst_case":
        outputs = " lower bounds" * (view.outputs == "lower_bounds")
        return f"worst case ({view.bound}{outputs}, epsilon {view.epsilon:g})"
    if view.kind == "adversarial" and view.attack.protocol != "pixel":
        return f"{view.kind} ({view.attack.protocol})"
    return view.policy.name if view.kind == "augmented" else view.kind


def _phase_table(phases: tuple[Phase, ...], indent: str) -> str:
    """One line a phase: epochs, parts that train, views, terms; refreshes below their host."""
    lines = []

    def add(phase: Phase, depth: int):
        name = "  " * depth + phase.name + (" (before each epoch)" if depth else "")
        views = ", ".join(map(_told, phase.views))
        terms = " + ".join(f"{term.weight:g} {term.term}" for term in phase.terms)
        lines.append([name, str(phase.epochs), " ".join(phase.trains), views, terms])
        for inner in phase.refresh:
            add(inner, depth + 1)

    for phase in phases:
        add(phase, 0)
    header = ["phase", "epochs", "trains", "views", "terms"]
    return "\n".join(indent + line for line in text_table(header, lines, right=(1,)).splitlines())
