"""`evaluate`: the robust accuracy of a user's own model on the user's own data."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from keras_rcl.errors import InvalidInputError, format_error
from keras_rcl.evaluation.input_range import InputRange
from keras_rcl.evaluation.record import make_record
from keras_rcl.evaluation.robustness import Evaluator, Survival
from keras_rcl.evaluation.warnings import attack_warnings, model_warnings
from keras_rcl.measures.wilson import wilson_interval
from keras_rcl.report.figures import accuracy_epsilon_figure
from keras_rcl.report.tables import corruption_table, has_attacks, interval_text, percent, text_table
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.atomic import atomic_folder, write_json
from keras_rcl.storage.fingerprint import hash_arrays
from keras_rcl.vocabulary.attacks import Attack, as_attacks
from keras_rcl.vocabulary.record import Record
from keras_rcl.vocabulary.threat import Norm
from keras_rcl.workflows.attack import curves_by_norm, draw
from keras_rcl.workflows.inputs import model_values
from keras_rcl.workflows.own_model import Model, read_epsilon, read_model_and_data


@dataclasses.dataclass(frozen=True, eq=False)
class RobustnessReport:
    """What `evaluate` returns: `print` shows the table.

    Attributes:
        survival: The survival table of all attacks, with predictions and costs.
        images: float32 [N, H, W, C] in [0, 1], as they were attacked.
        class_names: K names.
        input_range: The range of the images that the model reads, and why.
        notes: What was assumed, one line each.
        warnings: What makes the result untrustworthy, one line each; empty if nothing does.
        record: The JSON values of the evaluation, as `keras_rcl.attack` writes them.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.layers[-1].set_weights([np.zeros((16, 2)), np.array([1.0, 0.0])])  # always class 0
        >>> images, labels = np.full((2, 4, 4, 1), 0.5, np.float32), np.array([0, 1])
        >>> report = keras_rcl.evaluate(model, images, labels, attack="fgsm")
        >>> report.clean_accuracy, report.robust_accuracy, report.survived.tolist()
        (0.5, 0.5, [[True, False]])
    """

    survival: Survival
    images: np.ndarray
    class_names: tuple[str, ...]
    input_range: InputRange
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    record: Record
    _evaluator: Evaluator = dataclasses.field(repr=False)

    @property
    def clean_accuracy(self) -> float:
        """The share of images that are classified correctly before any attack."""
        return self.survival.clean_accuracy

    @property
    def survived(self) -> np.ndarray:
        """[A, N] bool: classified correctly before and after each attack."""
        return self.survival.survived

    @property
    def robust_accuracy(self) -> float:
        """The share of images that survive every attack; corruptions count as attacks."""
        return float(self.survived.all(axis=0).mean()) if self.survived.size else float("nan")

    @property
    def corruption_accuracy(self) -> float | None:
        """The mean accuracy on corrupted images, over kinds and severities; None if there was no corruption."""
        return self.record["corruptions"]["mean_accuracy"] if "corruptions" in self.record else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of `robust_accuracy`."""
        return wilson_interval(self.robust_accuracy, self.survived.shape[1])

    def __str__(self) -> str:
        count = self.survived.shape[1]
        rows = [
            [
                row["attack"] if row["attack"] != "worst case" else f"worst case {row['norm']}",
                percent(row["clean_accuracy"]),
                percent(row["robust_accuracy"]),
                interval_text(row["robust_accuracy"], count),
            ]
            for row in self.record["rows"]
            if "kind" not in row
        ]
        tables = [text_table(["attack", "clean", "robust", "95% interval"], rows)] if has_attacks(self.record) else []
        tables += [corruption_table(self.record)] if "corruptions" in self.record else []
        lines = [f"note: {note}" for note in self.notes] + [f"warning: {line}" for line in self.warnings]
        return "\n".join([*(f"{table}\n" for table in tables), f"in % of {count} images", *lines])

    def __repr__(self) -> str:
        return (
            f"RobustnessReport(clean_accuracy={self.clean_accuracy:.4g}, robust_accuracy={self.robust_accuracy:.4g}, "
            f"attacks={len(self.survival.attacks)}, images={self.survived.shape[1]})"
        )

    def plot(self, norm: Norm | None = None) -> Any:
        """Return the figure of robust accuracy against epsilon, one line per attack.

        Args:
            norm: Of the attacks that are shown; that of the first attack with an epsilon if not given.

        Raises:
            InvalidInputError: If no attack has an epsilon of this norm.
        """
        curves = curves_by_norm(self.survival)
        if not curves or norm not in (None, *curves):
            raise InvalidInputError(f"no attack has an epsilon in {norm or 'a norm'}; hint: evaluate pgd as well")
        shown = next(iter(curves)) if norm is None else norm
        return accuracy_epsilon_figure(curves[shown], norm=shown, title=self.record["model"]["name"])

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `record.json`, `report.txt`, `outcomes.npz`, accuracy-epsilon plots and pictures.

        Args:
            folder: The folder to write.
            overwrite: Replace it if it exists.

        Returns:
            The folder.

        Raises:
            InvalidInputError: If the folder exists or cannot be written.
        """
        survival = self.survival
        with atomic_folder(folder, overwrite=overwrite) as written:
            write_json(written / "record.json", self.record)
            (written / "report.txt").write_text(f"{self}\n", encoding="utf-8")
            np.savez_compressed(
                written / "outcomes.npz",
                labels=survival.labels,
                clean_predictions=survival.clean_predictions,
                predictions=survival.predictions,
                survived=survival.survived,
            )
            draw(self._evaluator, survival, self.images, self.class_names, self.record["model"]["name"], written)
        return Path(folder)


# Each of the keyword arguments is an independent choice with a default.
def evaluate(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    attack: str | Attack | Sequence[str | Attack] = "autoattack",
    epsilon: Any = None,
    norm: Norm | None = None,
    input_range: str | None = None,
    output: str | None = None,
    class_names: Sequence[str] = (),
    batch_size: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> RobustnessReport:
    """Measure the robust accuracy of one's own model.

    Args:
        model: A Keras model (functional, sequential or subclassed), the path of a SavedModel or `.keras` file, or any
            differentiable callable; from images to logits or probabilities. One output is that of class 1 of two.
        x: Images [N, H, W, C], an array or a tensor: uint8, or floats in 0..1, 0..255 or -1..1; or images and labels: a
            `tf.data.Dataset`, batched or not, or the path of a folder with one sub-folder per class.
        y: Labels, if x does not hold them: integers [N] or [N, 1], one-hot rows [N, K], or names of classes.
        attack: One or several, such as "pgd-40" or `keras_rcl.PGD(num_steps=40)`. Of AutoAttack, which needs four
            classes, the members that are defined for fewer classes are run.
        epsilon: The radius in units of [0, 1], such as "8/255", whatever range the images have; a list runs each attack
            at each radius. If it is not given, that of each attack.
        norm: `linf`, `l2` or `l1`; if it is not given, that of each attack.
        input_range: The range of the images that the model reads: `0..1`, `0..255` or `-1..1`. If it is not given, it
            is read from the first layers of the model, or the one in which clean accuracy is highest.
        output: Whether the model gives `logits` or `probabilities`; detected if not given.
        class_names: The names of the K classes, for labels that are names.
        batch_size: Images attacked at once.
        seed: The seed of the attacks.
        progress: Where progress is shown.

    Returns:
        The report.

    Raises:
        InvalidInputError: If model, images, labels or attack cannot be used or do not fit each other, or it is not
            clear in which range the model reads images.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.layers[-1].set_weights([np.zeros((16, 2)), np.array([1.0, 0.0])])  # always class 0
        >>> images, labels = np.full((2, 4, 4, 1), 128, np.uint8), np.array([[0], [1]])
        >>> report = keras_rcl.evaluate(model, images, labels, attack=["fgsm", "pgd-5"], epsilon="8/255")
        >>> report.robust_accuracy, [round(limit, 2) for limit in report.interval]
        (0.5, [0.09, 0.91])
    """
    read = read_model_and_data(model, x, y, input_range=input_range, output=output, class_names=class_names)
    if not len(read.images):
        raise InvalidInputError("there are no images; hint: give at least one")
    attacks, note = _attacks(attack, epsilon, norm, read.classifier.num_classes)
    for one in attacks:
        if one.target_output != "logits" or one.proxy is not None:
            raise InvalidInputError(f"{one.label} reads another output or model; hint: use keras_rcl.Evaluator for it")
    logits = read.classifier.logits
    evaluator = Evaluator(
        logits,
        attacks,
        batch_size=min(batch_size, len(read.images)),
        seed=seed,
        gradient_fn=read.classifier.gradient_fn(read.images[:32]),
    )
    survival = evaluator(read.images, read.labels, progress=progress or Silent())
    data = {"name": "arrays", "part": "test", "indices": np.arange(len(read.labels)), "hash": hash_arrays(read.images)}
    warnings = (*read.input_range.doubts, *model_warnings(logits, read.images), *attack_warnings(survival))
    record = make_record(survival, model=model_values(read.classifier, read.input_range), data=data, seed=seed)
    record["warnings"] = list(warnings)
    return RobustnessReport(
        survival=survival,
        images=read.images,
        class_names=read.class_names,
        input_range=read.input_range,
        notes=(*read.notes, *filter(None, [note])),
        warnings=warnings,
        record=record,
        _evaluator=evaluator,
    )


def _attacks(chosen: Any, epsilon: Any, norm: Norm | None, num_classes: int) -> tuple[list[Attack], str]:
    """The attacks with the given radii and norm, and what was left out of them."""
    attacks: list[Any] = as_attacks(chosen)  # those without a norm are refused below
    without = [attack.label for attack in attacks if attack.norm is None]
    if without and (norm, epsilon) != (None, None):
        raise InvalidInputError(
            f"{without[0]} has neither norm nor epsilon to set; hint: leave them out, or run this attack by itself"
        )
    if norm is not None and epsilon is None and any(attack.norm != norm for attack in attacks):
        raise InvalidInputError(f"norm {norm} without an epsilon; hint: give one, such as epsilon=0.5 for l2")
    try:
        if norm is not None:
            attacks = [dataclasses.replace(attack, norm=norm) for attack in attacks]
        if epsilon is not None:
            radii = epsilon if isinstance(epsilon, (list, tuple, np.ndarray)) else [epsilon]
            attacks = [
                attack.with_epsilon(read_epsilon(radius, attack.norm or "linf"))
                for attack in attacks
                for radius in radii
            ]
    except (ValidationError, TypeError) as error:
        text = format_error(error) if isinstance(error, ValidationError) else str(error)
        raise InvalidInputError(f"attack {chosen!r}: {text}") from None
    defined = [
        member
        for attack in attacks
        for member in (attack.members if attack.min_classes > num_classes else [attack])
        if member.min_classes <= num_classes or len(attack.members) == 1
    ]
    left_out = f"of AutoAttack, the members that are defined for {num_classes} classes were run"
    return defined, "" if defined == attacks else left_out
