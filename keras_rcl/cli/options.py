"""Options that several commands share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from keras_rcl.cli.completion import complete_variant
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.network import AttackDtype
from keras_rcl.vocabulary.threat import Norm

if TYPE_CHECKING:
    from keras_rcl.config import Experiment

Decorator = Callable[[Callable], Callable]

ATTACK_SYNTAX = "NAME[-STEPS][:KEY=VALUE,...]"
FOLDER = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
SEED = click.IntRange(0, 2**32 - 1)


@dataclasses.dataclass(frozen=True)
class ExperimentChoice:
    """The experiment that the options of `experiment_options` choose.

    Attributes:
        path: the YAML file; None chooses `configs/digits.yaml`.
        scale: one of the scales that the file names; None chooses the first.
        variant: a name of `VARIANTS`; None chooses the file's.
        settings: `a.b=value` texts.
    """

    path: Path | None
    scale: str | None
    variant: str | None
    settings: tuple[str, ...]

    def load(self, changes: Sequence[str] = ()) -> "Experiment":
        """The experiment with further settings, which come last."""
        from keras_rcl import config  # most commands need no recipe

        return config.load(self.path, self.variant, [*self.settings, *changes], self.scale)


def experiment_options(command: Callable) -> Callable:
    """Add the options that choose an experiment. The command receives them as `choice`, an `ExperimentChoice`."""
    names = ("path", "scale", "variant", "settings")

    @functools.wraps(command)
    def with_choice(**options):
        return command(choice=ExperimentChoice(**{name: options.pop(name) for name in names}), **options)

    return _all(
        click.option("--config", "path", type=FOLDER, help="The YAML file to read; configs/digits.yaml by default."),
        click.option("--scale", help="A scale that the file names, such as full or cpu; the first by default."),
        click.option(
            "--variant",
            shell_complete=complete_variant,
            help="The variant to train, such as clafs; the command `variants` lists them.",
        ),
        click.option(
            "--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change one setting; may be repeated."
        ),
    )(with_choice)


def training_data_options(command: Callable) -> Callable:
    """The options that choose the data set of a training, which `parsing.pop_data_settings` takes."""
    return _all(
        click.option("--dataset", help="The data set: digits, folder, arrays, or one of TFDS; short for dataset.name."),
        click.option("--folder", type=click.Path(), help="A folder of images with one sub-folder per class."),
        data_file_option,
        data_dir_option,
        image_size_option,
        click.option("--limit", type=COUNT, help="Use at most N images per split, with the class balance kept."),
    )(command)


def data_options(split: str = "test") -> Decorator:
    """The options that choose the images that a model is attacked or verified on.

    The command receives the fields of `Dataset` as `dataset`, and `part`, `batch_size` and `seed`.
    """
    fields = ("folder", "data", "data_dir", "image_size", "limit")

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def with_dataset(**options):
            named = options.pop("dataset")
            given = {
                "name": "arrays" if named is None and options["data"] is not None else named,
                **{field: options.pop(field) for field in fields},
            }
            return command(dataset={key: value for key, value in given.items() if value is not None}, **options)

        return _all(
            click.option("--dataset", help="The data set; by default the one that the model was trained on."),
            click.option(
                "--folder", type=click.Path(), help="With --dataset folder: a folder with one sub-folder per class."
            ),
            data_file_option,
            data_dir_option,
            image_size_option,
            click.option(
                "--split",
                "part",
                type=click.Choice(["test", "validation", "train"]),
                default=split,
                show_default=True,
                help="The split that the images are from.",
            ),
            click.option("--limit", type=COUNT, help="Use at most N images, with the class balance kept."),
            click.option("--batch-size", type=COUNT, default=250, show_default=True, help="Images per batch."),
            click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the attacks."),
        )(with_dataset)

    return decorate


input_range_option = click.option(
    "--input-range",
    type=click.Choice(["0..1", "0..255", "-1..1"]),
    help="The range of the images that the model reads; by default that of its first layers, or the one in which it "
    "is most accurate.",
)
"""How a model that was not made here is fed."""


def foreign_model_options(command: Callable) -> Callable:
    """The options that say how a model that was not made here is fed and read."""
    return _all(
        input_range_option,
        click.option(
            "--output",
            type=click.Choice(["logits", "probabilities"]),
            help="The output of the model; detected by default.",
        ),
        click.option("--endpoint", help="The signature of the SavedModel to call."),
        skip_safety_check_option,
    )(command)


def attack_dtype_option(**settings) -> Decorator:
    """`--attack-dtype`; `settings` are further arguments of `click.option`."""
    return click.option(
        "--attack-dtype",
        type=click.Choice(AttackDtype.__args__),
        help="The dtype that attacks on the network's own logits are computed in; bfloat16 is faster on processors "
        "with AMX.",
        **settings,
    )


def output_dir_option(default: str) -> Decorator:
    """`--output-dir`; `default` says which folder is the default."""
    return click.option("--output-dir", type=FOLDER, help=f"The folder to write; {default} by default.")


def overwrite_option(text: str) -> Decorator:
    """`--overwrite`; `text` says what is replaced."""
    return click.option("--overwrite", is_flag=True, help=text)


def epsilons_option(help: str, default: str | None = None) -> Decorator:
    """`--epsilon`, a list with commas that may be repeated; the parameter `epsilons` has all of it with commas."""
    return click.option(
        "--epsilon",
        "epsilons",
        multiple=True,
        default=[default] if default else [],
        show_default=default is not None,
        callback=lambda context, parameter, lists: ",".join(lists) if lists else None,
        help=help,
    )


def norm_option(help: str, default: Norm | None = None) -> Decorator:
    """`--norm`."""
    return click.option("--norm", type=click.Choice(get_args(Norm)), default=default, show_default=True, help=help)


def json_option(what: str) -> Decorator:
    """`--json`, which the command receives as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


data_file_option = click.option(
    "--data", type=click.Path(), help="An .npz file of arrays such as x_train, y_train, x_test and y_test."
)
"""Arrays in a file."""

image_size_option = click.option("--image-size", type=click.IntRange(1, 4096), help="Resize the images.")

data_dir_option = click.option(
    "--data-dir", type=click.Path(), help="The folder of TFDS data sets; TFDS_DATA_DIR by default."
)
"""Where TFDS finds data sets, and downloads them to."""

skip_safety_check_option = click.option(
    "--skip-safety-check",
    "trust",
    is_flag=True,
    help="Load models without checking them for operations that could do harm.",
)
"""Every command that loads a model of a stranger has it."""

save_every_option = click.option(
    "--save-every",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Save a snapshot of the training every N seconds; a kill loses at most that much.",
)
"""How often a training saves its state."""

workers_option = click.option(
    "--workers",
    type=COUNT,
    help="The number of processes of this machine that share the work; for several machines set TF_CONFIG, see "
    "docs/scaling.md.",
)
"""How many processes share the work."""

runs_option = click.option("--runs", type=FOLDER, default="runs", show_default=True, help="The folder of run folders.")
saved_models_option = click.option(
    "--saved-models", type=FOLDER, default="saved_models", show_default=True, help="The folder of SavedModels."
)


def refuse_unused(why: str, *names: str) -> None:
    """Refuse options of the running command that were given and have no effect.

    Args:
        why: Why they have none, and what to do.
        *names: The names of the options, as the command receives them.

    Raises:
        InvalidInputError: If one of them was given.
    """
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            (option,) = (parameter.opts[0] for parameter in context.command.params if parameter.name == name)
            raise InvalidInputError(f"{option} has no effect: {why}")


def _all(*options: Decorator) -> Decorator:
    """One decorator that applies all, so that help texts list the options in this order."""
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)
