"""The range of the images that a model reads: given, found in its layers, or decided by its clean accuracy.

A model that is fed images of another range than it was trained on is often wrong on nearly all of them, and what is
wrong before an attack cannot be broken by one: its measured robustness says nothing. `find_input_range` chooses the
range, says why, and says what speaks against it.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.intervals import probability_of_at_most
from keras_rcl.folding.graph_walk import has_graph

INPUT_RANGES = {"0..1": (1.0, 0.0), "0..255": (255.0, 0.0), "-1..1": (2.0, -1.0)}
"""Scale and offset from pixels in [0, 1] to the images that the model reads."""

Source = Literal["given", "export", "layers", "accuracy", "assumed"]

SAMPLE = 128
"""The number of images on which ranges are compared."""

SIGNIFICANT = 0.01
"""The largest probability of a difference by chance at which one range is said to fit better than another."""

FEW = 10
"""With fewer images nothing is said of chance or of a dominating class."""


class Declared(NamedTuple):
    """A range that the model itself declares.

    Attributes:
        name: The range.
        source: `given`, `export` or `layers`.
        reason: Where it is declared.
    """

    name: str
    source: Source
    reason: str


@dataclass(frozen=True)
class InputRange:
    """The range of the images that a model reads.

    Attributes:
        name: `0..1`, `0..255` or `-1..1`.
        source: `given`, `export` (the model was exported by this package), `layers`, `accuracy`, or `assumed`.
        reason: Why this range, in a few words.
        accuracies: The clean accuracy on a sample of the images for each range that was compared.
        num_images: The size of the sample.
        doubts: What says that the model is not read as it was trained, one sentence each; empty if nothing does.
    """

    name: str
    source: Source
    reason: str
    accuracies: dict[str, float] = field(default_factory=dict)
    num_images: int = 0
    doubts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "doubts": list(self.doubts)}

    @property
    def text(self) -> str:
        """The range and the reason in one line."""
        return f"the model reads images in {self.name} ({self.reason})"


def check_input_range(name: str) -> None:
    """Raise InvalidInputError if there is no such range."""
    if name not in INPUT_RANGES:
        raise InvalidInputError(f"unknown input range {name!r}; choose from {', '.join(INPUT_RANGES)}")


def span_outside(images: np.ndarray, name: str) -> tuple[float, float] | None:
    """The smallest and the largest pixel of images, if one is outside a range by more than rounding; else None."""
    scale, offset = INPUT_RANGES[name]
    low, high, slack = float(images.min()), float(images.max()), 1e-3 * scale
    return None if offset - slack <= low and high <= offset + scale + slack else (low, high)


def find_input_range(
    logits_of: Callable[[str], Callable],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    declared: Declared | None = None,
    default: tuple[str, str] = ("0..1", "the default"),
    name: str = "the model",
) -> InputRange:
    """Choose the range of the images that a model reads, and test it by clean accuracy.

    Args:
        logits_of: Range -> the function of float32 images [N, H, W, C] in [0, 1] that gives the logits [N, K] of the
            model if it is read in this range.
        images: float32 [N, H, W, C] in [0, 1]; a sample of them is classified.
        labels: int32 [N], the true classes.
        declared: The range that the user or the model declares.
        default: The range to take if nothing is declared and none fits better, and why.
        name: The model, for messages.

    Returns:
        The range. A range that the user gave is never changed; what speaks against it is in `doubts`.

    Raises:
        InvalidInputError: If the accuracy does not tell which range is right, or contradicts the model's layers.

    Example:
        A classifier that tells bright from dark images, at 128 of 255:

        >>> import numpy as np
        >>> import tensorflow as tf
        >>> def logits_of(range_name):
        ...     scale, offset = INPUT_RANGES[range_name]
        ...     def logits(images):
        ...         brightness = tf.reduce_mean(scale * images + offset, axis=(1, 2, 3))
        ...         return tf.stack([128 - brightness, brightness - 128], axis=1)
        ...     return logits
        >>> images = np.repeat(np.float32([0.1, 0.9]), 10)[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32)
        >>> labels = np.repeat([0, 1], 10)
        >>> find_input_range(logits_of, images, labels).name
        '0..255'
    """
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), SAMPLE)).round().astype(int))
    images, labels = np.asarray(images)[chosen], np.asarray(labels)[chosen]
    sure = declared is not None and declared.source == "export"
    names = [declared.name] if declared is not None and sure else list(INPUT_RANGES)
    predictions = {range_name: _predict(logits_of(range_name), images) for range_name in names}
    right = {range_name: found == labels for range_name, found in predictions.items()}
    found = Readings(right, max(2, _num_classes(logits_of(names[0]), images)), labels)
    range_name, source, reason = declared or _decide(found, default, name)
    if source == "layers":
        _check_layers(found, range_name, reason, name)
    doubts = list(_doubts(found, range_name, predictions[range_name]))
    if len(labels) >= FEW and images.shape[-1] == 3:
        flipped = _predict(logits_of(range_name), images[..., ::-1]) == labels
        if _p_value(flipped, right[range_name]) < SIGNIFICANT and found.above_chance(flipped):
            doubts.append(
                f"with the channels in reverse order, BGR, clean accuracy is {flipped.mean():.1%}, and "
                f"{found.accuracy(range_name):.1%} as given"
            )
    accuracies = {other: found.accuracy(other) for other in right} if len(labels) else {}
    return InputRange(range_name, source, reason, accuracies, len(labels), tuple(doubts))


class Readings(NamedTuple):
    """Which images of the sample are classified correctly in each range.

    Attributes:
        right: Range -> bool [n].
        num_classes: K.
        labels: [n].
    """

    right: dict[str, np.ndarray]
    num_classes: int
    labels: np.ndarray

    def accuracy(self, name: str) -> float:
        return float(self.right[name].mean()) if len(self.labels) else math.nan

    def better(self, name: str, other: str) -> bool:
        """Whether one range is better than another by more than chance (exact McNemar test)."""
        return _p_value(self.right[name], self.right[other]) < SIGNIFICANT

    @property
    def chance(self) -> float:
        """The accuracy of the best constant answer, or of drawing lots; images of one class tell only the latter."""
        counts = np.bincount(self.labels)
        constant = counts.max() / len(self.labels) if np.count_nonzero(counts) > 1 else 0.0
        return max(1 / self.num_classes, constant)

    def above_chance(self, right: np.ndarray) -> bool:
        return _tail(int(right.sum()), len(right), self.chance) < SIGNIFICANT

    def compared(self, names: Sequence[str]) -> str:
        return ", ".join(f"{self.accuracy(name):.1%} read as {name}" for name in names)


def _decide(found: Readings, default: tuple[str, str], name: str) -> Declared:
    """The range that fits best; the default if none fits better."""
    usual, why = default
    if len(found.labels) < FEW:
        return Declared(usual, "assumed", why)
    ranked = sorted(found.right, key=lambda other: (-found.accuracy(other), other != usual))
    best, second = ranked[:2]
    reason = f"clean accuracy of {len(found.labels)} images is {found.compared(ranked)}"
    if best == usual or not found.above_chance(found.right[best]):
        source: Source = "accuracy" if found.better(usual, ranked[-1]) and best == usual else "assumed"
        return Declared(usual, source, f"{why}; {reason}")
    clear = found.better(best, usual)
    if not clear and found.accuracy(best) - found.accuracy(usual) <= 0.05:
        return Declared(usual, "assumed", f"{why}; {reason}")
    if not clear or not (found.better(best, second) or second == usual):
        raise InvalidInputError(
            f"{name}: {reason}, so that {best} and {second} fit alike; hint: say which the model reads, by "
            f"--input-range {best} (input_range={best!r} in Python)"
        )
    return Declared(best, "accuracy", reason)


def _check_layers(found: Readings, range_name: str, reason: str, name: str) -> None:
    """Raise InvalidInputError if another range than that of the first layers fits better."""
    for other in found.right:
        if (
            found.better(other, range_name)
            and found.above_chance(found.right[other])
            and found.accuracy(other) - found.accuracy(range_name) >= 0.1
        ):
            raise InvalidInputError(
                f"{name} seems to read {range_name} ({reason}), but clean accuracy is "
                f"{found.compared([range_name, other])}; hint: say which the model reads, by --input-range {other} "
                f"(input_range={other!r} in Python)"
            )


def _doubts(found: Readings, name: str, predictions: np.ndarray):
    """What says that the model is not read as it was trained."""
    count = len(found.labels)
    if count < FEW:
        return
    accuracy = found.accuracy(name)
    for other in found.right:
        if found.better(other, name) and found.above_chance(found.right[other]):
            yield f"clean accuracy is {found.compared([name, other])}; hint: --input-range {other}"
    if not found.above_chance(found.right[name]):
        yield (
            f"clean accuracy of {count} images is {accuracy:.1%}, at chance: the model may be untrained, or trained on "
            "another data set, class order, channel order or range of images"
        )
    if permuted := _matched(predictions, found.labels, accuracy):
        yield f"clean accuracy is {accuracy:.1%}, and {permuted:.1%} with the classes in another order"
    classes, counts = np.unique(predictions, return_counts=True)
    most = int(classes[counts.argmax()])
    share, expected = counts.max() / count, float(np.mean(found.labels == most))
    if share >= 0.5 and share - expected >= 0.35:
        what = "not finite" if most < 0 else f"class {most}"
        yield f"the answer is {what} for {share:.0%} of the images, and {expected:.0%} are of that class"


def _matched(predictions: np.ndarray, labels: np.ndarray, accuracy: float) -> float:
    """The accuracy after a renaming of the classes; 0 unless it is far higher, and each class has its own new name."""
    answers = [int(answer) for answer in np.unique(predictions) if answer >= 0]
    names, agreed = [], 0
    for answer in answers:
        counts = np.bincount(labels[predictions == answer])
        names.append(int(counts.argmax()))
        agreed += int(counts.max())
    matched = agreed / len(labels)
    one_to_one = len(set(names)) == len(names) > 1
    return matched if one_to_one and matched >= 0.5 and matched - accuracy >= 0.3 else 0.0


def _predict(logits_fn: Callable, images: np.ndarray) -> np.ndarray:
    """The classes [N]; -1 for logits that are not finite."""
    found = [np.asarray(logits_fn(images[start : start + 32])) for start in range(0, len(images), 32)]
    logits = np.concatenate(found) if found else np.zeros((0, 1))
    finite = np.isfinite(logits).all(axis=1)
    return np.where(finite, np.where(np.isfinite(logits), logits, 0).argmax(axis=1), -1)


def _num_classes(logits_fn: Callable, images: np.ndarray) -> int:
    return int(logits_fn(images[:1]).shape[-1]) if len(images) else 2


def _p_value(right: np.ndarray, other: np.ndarray) -> float:
    """The one-sided exact McNemar test of whether `right` is not better than `other`."""
    gained, lost = int(np.sum(right & ~other)), int(np.sum(~right & other))
    return _tail(gained, gained + lost, 0.5)


def _tail(successes: int, trials: int, share: float) -> float:
    """P(X >= successes) of a binomial distribution."""
    return probability_of_at_most(trials - successes, trials, 1 - share)


# --- what the first layers tell ---------------------------------------------------------------------------------------

_PROBES = np.array([0.0, 0.5, 1.0, 127.5, 255.0], np.float32)


def range_of_layers(model: keras.Model) -> Declared | None:
    """The range that a model's first layers read, such as a `Rescaling`, a `Normalization` or `preprocess_input`.

    The layers in front of the first one with trained weights are run on images of one value, which gives the scale and
    the offset that they apply. The range is the one that these map to [0, 1], to [-1, 1], or to about zero mean and
    unit variance.

    Args:
        model: functional, sequential or subclassed; of a subclassed model the first layer is read.

    Returns:
        The range; None if the first layers do not tell.
    """
    try:
        values, names = _preprocessed(model)
    except (ValueError, TypeError, tf.errors.OpError):  # layers that do not run on such images
        return None
    if values is None or not names:
        return None
    scale, offset = (values[4] - values[0]) / 255, values[0]
    if not np.allclose(values, scale * _PROBES + offset, rtol=1e-3, atol=1e-3 * max(1e-6, abs(255 * scale))):
        return None
    if np.isclose(scale, 1) and np.isclose(offset, 0):
        return None
    ends = {
        name: (scale * low + offset, scale * (factor + low) + offset) for name, (factor, low) in INPUT_RANGES.items()
    }
    exact = [
        name
        for name, end in ends.items()
        if any(np.allclose(end, wanted, atol=0.02 * (wanted[1] - wanted[0])) for wanted in ((0, 1), (-1, 1), (0, 255)))
    ]
    plausible = exact or [name for name, (low, high) in ends.items() if _standardised(low, high)]
    if len(plausible) != 1:
        return None
    return Declared(plausible[0], "layers", f"its first layers, {', '.join(names)}, take {plausible[0]}")


def _standardised(low: float, high: float) -> bool:
    """Whether [low, high] is what images of zero mean span: at unit variance, or with the mean alone taken off."""
    return low < 0 < high and (1 <= high - low <= 20 or 200 <= high - low <= 300)


def _preprocessed(model) -> tuple[np.ndarray | None, list[str]]:
    """What the layers before the first trained weights make of the probes [5], and the names of these layers."""
    graph = getattr(model, "_functional", None) or model
    if not has_graph(graph):
        first = next(iter(getattr(model, "layers", [])), None)
        if not isinstance(first, (keras.layers.Rescaling, keras.layers.Normalization)):
            return None, []
        channels = int(np.size(first.mean)) if isinstance(first, keras.layers.Normalization) else 1
        shape = (8, 8, channels)
        return _probe(first, shape), [type(first).__name__]
    source = graph.inputs[0]
    if len(graph.inputs) != 1 or len(source.shape) != 4:
        return None, []
    steps, names = _first_layers(graph)
    shape = tuple(size or default for size, default in zip(source.shape[1:], (32, 32, 3), strict=True))

    def all_of_them(images, training=False):
        return functools.reduce(lambda values, step: step(values, training=training), steps, images)

    return (_probe(all_of_them, shape), names) if steps else (None, [])


def _first_layers(graph) -> tuple[list[keras.Model], list[str]]:
    """The layers before the first trained weights, as models, and their names; models within the model are entered."""
    end, inner, names = _prefix(graph)
    steps = [keras.Model(graph.inputs[0], end)] if end is not graph.inputs[0] else []
    if inner is None:
        return steps, names
    inside, inner_names = _first_layers(inner)
    return steps + inside, names + inner_names


def _prefix(graph) -> tuple[keras.KerasTensor, keras.Model | None, list[str]]:
    """The last image before trained weights, the model within the model that reads it, and the layers before it."""
    tensor, names = graph.inputs[0], []
    while True:
        nodes = itertools.chain.from_iterable(graph._nodes_by_depth.values())
        readers = [node for node in nodes if any(operand is tensor for operand in node.input_tensors)]
        if len(readers) != 1 or len(readers[0].input_tensors) != 1 or len(readers[0].output_tensors) != 1:
            return tensor, None, names
        operation, output = readers[0].operation, readers[0].output_tensors[0]
        inner = getattr(operation, "_functional", None) or operation
        if has_graph(inner):
            if not inner.weights:
                names += _prefix(inner)[2]
                tensor = output
                continue
            return tensor, inner, names
        weightless = not getattr(operation, "weights", [])
        if len(output.shape) != 4 or not (weightless or isinstance(operation, keras.layers.Normalization)):
            return tensor, None, names
        if not type(operation).__name__.startswith("Random"):
            names.append(type(operation).__name__)
        tensor = output


def _probe(layers: Callable, shape: tuple[int, ...]) -> np.ndarray:
    """The values [5] in the middle of what layers make of images of one value each, averaged over the channels."""
    images = np.broadcast_to(_PROBES[:, None, None, None], (len(_PROBES), *shape)).astype(np.float32)
    outputs = np.asarray(tf.cast(layers(images, training=False), tf.float32))
    return outputs[:, outputs.shape[1] // 2, outputs.shape[2] // 2].mean(axis=-1)
