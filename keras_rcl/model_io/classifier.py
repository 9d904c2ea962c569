"""Any classifier on disk as one thing: images in [0, 1] -> logits. Ours, another's SavedModel, or a `.keras` file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.folding import folded
from keras_rcl.model_io.loading import (
    brief,
    choose,
    hash_of,
    in_batches,
    probe,
    read_contract,
    read_inner,
    read_layers,
    read_model,
)

INPUT_RANGES = {"0..1": (1.0, 0.0), "0..255": (255.0, 0.0), "-1..1": (2.0, -1.0)}
"""Scale and offset from pixels in [0, 1] to what the model reads."""

OUTPUTS = ("logits", "probabilities")


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier read from disk.

    Fields:
        logits: float32 images [N, H, W, C] in [0, 1] -> float32 logits [N, K], in inference mode, eagerly or within a
            graph; differentiable with respect to the images where the model is. Log-probabilities are logits too.
        outputs: `logits`, `embedding` or `projection` -> the function of images that gives it [N, D], likewise; None
            where the model does not tell it.
        image_shape: (H, W, C), with None where the model takes any.
        num_classes: K.
        class_names: K names; the numbers 0 to K - 1 where the model has none.
        contract: `model.json` of a model exported here, else empty.
        path: where it was read.
        model_hash: SHA-256 of the weights of a model exported here, else of the files.
        gives_probabilities: whether `logits` are the logarithm of what the model gives.
        note: what was assumed and not told, in one line; else empty.
    """

    logits: Callable
    outputs: Callable[[str], Callable | None]
    image_shape: tuple[int | None, ...]
    num_classes: int
    class_names: tuple[str, ...]
    contract: dict
    path: Path
    model_hash: str
    gives_probabilities: bool = False
    note: str = ""


def load_classifier(
    path: str | Path,
    *,
    input_range: str = "0..1",
    output: str | None = None,
    endpoint: str | None = None,
    trust: bool = False,
) -> Classifier:
    """Read a classifier.

    Args:
        path: a folder made by `keras_rcl.export`, any other SavedModel folder, or a `.keras` file (read in safe mode).
        input_range: the pixels that the model reads: `0..1`, `0..255` or `-1..1`.
        output: whether the model gives `logits` or `probabilities`; found out on random images when not given.
        endpoint: the SavedModel's signature; `serve`, `serving_default` or the only one when not given.
        trust: load it without looking for what could do harm.

    Raises:
        InvalidInputError: if there is no such model, it is damaged or not known to be harmless, or does not map one
            batch of float images [N, H, W, C] to one row of K >= 2 numbers an image.
    """
    path = Path(path)
    if input_range not in INPUT_RANGES:
        raise InvalidInputError(f"unknown input range {input_range!r}; choose from {', '.join(INPUT_RANGES)}")
    if output not in (None, *OUTPUTS):
        raise InvalidInputError(f"unknown output {output!r}; choose from {', '.join(OUTPUTS)}")
    contract = read_contract(path)
    if contract and input_range != "0..1":
        raise InvalidInputError(
            f"{path} was exported here and reads pixels in 0..1; leave out --input-range {input_range}"
        )
    call, spec = read_model(path, endpoint, trust=trust)
    scale, offset = INPUT_RANGES[input_range]

    def outputs_of(images):
        return call(tf.cast(scale * images + offset, spec.dtype))

    image_shape = tuple(spec.shape[1:])
    sample = probe(image_shape, spec.shape[0])
    try:
        outputs = outputs_of(sample)
    except Exception as error:
        raise InvalidInputError(
            f"{path} fails on images {list(sample.shape)}: {brief(error)}; choose another endpoint"
        ) from None

    def choice(outputs):
        return choose(path, outputs, OUTPUTS if output is None else (output,), "choose another --endpoint")

    name, values = choice(outputs)
    if values.shape.rank != 2 or values.shape[1] < 2 or not values.dtype.is_floating:
        raise InvalidInputError(
            f"{path} maps images {list(sample.shape)} to {values.dtype.name} {list(values.shape)}; "
            "a classifier gives a row of 2 or more logits or probabilities an image"
        )
    num_classes = values.shape[1]
    class_names = tuple(contract.get("class_names", map(str, range(num_classes))))
    if len(class_names) != num_classes:
        raise InvalidInputError(
            f"{path} gives {num_classes} classes, and its model.json names {len(class_names)}; export it again"
        )
    told = output == "probabilities" or (output is None and name == "probabilities")
    detected = output is None and not told and _are_probabilities(values)

    def logits_of(images):
        _, values = choice(outputs_of(images))
        values = tf.cast(values, tf.float32)
        if told or detected:
            values = tf.math.log(tf.maximum(values, np.finfo(np.float32).tiny))
        return tf.ensure_shape(values, [None, num_classes])

    def of_any(rows_of, width):
        batched = in_batches(rows_of, spec.shape[0], width)
        return lambda images: batched(tf.convert_to_tensor(images, tf.float32))

    def inner(name):
        if name == "logits":
            return logits
        call = read_inner(path, name, trust=trust)
        if call is None:
            return None

        def rows_of(images):
            return tf.cast(call(tf.cast(scale * images + offset, spec.dtype)), tf.float32)

        return of_any(rows_of, rows_of(sample).shape[1])

    logits = of_any(logits_of, num_classes)
    return Classifier(
        logits=logits,
        outputs=inner,
        image_shape=image_shape,
        num_classes=num_classes,
        class_names=class_names,
        contract=contract,
        path=path,
        model_hash=hash_of(path, contract),
        gives_probabilities=told or detected,
        note="its rows are non-negative and sum to 1, so its output is taken for probabilities" if detected else "",
    )


def folded_logits(
    classifier: Classifier, images: np.ndarray, dtype: str = "float32", *, trust: bool = False
) -> Callable:
    """The same logits for attacks to be crafted on, BatchNorm folded into convolutions, which is faster.

    Outcomes are still to be read off `classifier.logits`: rounding differs. Where the layers are not known or cannot be
    folded, or give other logits on `images`, a sample [N, H, W, C] in [0, 1], it is `classifier.logits` itself.

    Raises:
        InvalidInputError: if it is `classifier.logits` itself, and the dtype is to be another than float32.
    """
    try:
        network = read_layers(classifier.path, trust=trust)
        run, served = folded(network), classifier.logits(images)
        apart = np.abs(run(tf.constant(images)) - served).max()
        same = apart <= SAME_LOGITS * max(1.0, np.abs(served).max())
    except (InvalidInputError, ValueError, tf.errors.InvalidArgumentError):
        same = False
    if same:
        return run if dtype == "float32" else folded(network, dtype=dtype)
    if dtype != "float32":
        raise InvalidInputError(
            f"{classifier.path} has no layers that can be computed in {dtype}; leave out --attack-dtype {dtype}"
        )
    return classifier.logits


SAME_LOGITS = 1e-4
"""Relative to the largest: what folding may change by rounding."""


def _are_probabilities(values: tf.Tensor) -> bool:
    """Whether rows [N, K] are non-negative and sum to 1, to the precision of float16."""
    values = tf.cast(values, tf.float32).numpy()
    return bool(np.all(values >= 0) and np.allclose(values.sum(axis=1), 1.0, rtol=0, atol=2e-3))
