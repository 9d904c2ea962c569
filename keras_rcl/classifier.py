"""Any classifier on disk as one thing: images in [0, 1] -> logits. Ours, another's SavedModel, or a `.keras` file."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_rcl.networks.two_headed  # noqa: F401  our layers, for `.keras` files made here
from keras_rcl.vocabulary.word import Refused, did_you_mean

INPUT_RANGES = {"0..1": (1.0, 0.0), "0..255": (255.0, 0.0), "-1..1": (2.0, -1.0)}
"""Scale and offset from pixels in [0, 1] to what the model reads."""

OUTPUTS = ("logits", "probabilities")

_FORMAT = 1
_UNKNOWN_SIZE = 224


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier read from disk.

    Fields:
        logits: float32 images [N, H, W, C] in [0, 1] -> float32 logits [N, K], in inference mode, eagerly or within a
            graph; differentiable with respect to the images where the model is. Log-probabilities are logits too.
        image_shape: (H, W, C), with None where the model takes any.
        num_classes: K.
        class_names: K names; the numbers 0 to K - 1 where the model has none.
        contract: `model.json` of a model exported here, else empty.
        path: where it was read.
        model_hash: SHA-256 of the weights of a model exported here, else of the files.
        note: what was assumed and not told, in one line; else empty.
    """

    logits: Callable
    image_shape: tuple[int | None, ...]
    num_classes: int
    class_names: tuple[str, ...]
    contract: dict
    path: Path
    model_hash: str
    note: str = ""


def load_classifier(
    path: str | Path, *, input_range: str = "0..1", output: str | None = None, endpoint: str | None = None
) -> Classifier:
    """Read a classifier.

    Args:
        path: a folder made by `keras_rcl.export`, any other SavedModel folder, or a `.keras` file (read in safe mode).
        input_range: the pixels that the model reads: `0..1`, `0..255` or `-1..1`.
        output: whether the model gives `logits` or `probabilities`; found out on random images when not given.
        endpoint: the SavedModel's signature; `serve`, `serving_default` or the only one when not given.

    Raises:
        Refused: if there is no such model, it is damaged or carries code, or does not map one batch of float images
            [N, H, W, C] to one row of K >= 2 numbers an image.
    """
    path = Path(path)
    if input_range not in INPUT_RANGES:
        raise Refused(f"unknown input range {input_range!r}; choose from {', '.join(INPUT_RANGES)}")
    if output not in (None, *OUTPUTS):
        raise Refused(f"unknown output {output!r}; choose from {', '.join(OUTPUTS)}")
    contract = _read_contract(path)
    if contract and input_range != "0..1":
        raise Refused(f"{path} was exported here and reads pixels in 0..1; leave out --input-range {input_range}")
    call, spec = _read_keras(path, endpoint) if path.is_file() else _read_saved_model(path, endpoint)
    _check_input(path, spec)
    scale, offset = INPUT_RANGES[input_range]

    def outputs_of(images):
        return call(tf.cast(scale * images + offset, spec.dtype))

    image_shape = tuple(spec.shape[1:])
    probe = _probe(image_shape, spec.shape[0] or 4)
    try:
        outputs = outputs_of(probe)
    except Exception as error:
        raise Refused(f"{path} fails on images {list(probe.shape)}: {_brief(error)}; choose another endpoint") from None
    name, values = _choose(path, outputs, output)
    if values.shape.rank != 2 or values.shape[1] < 2 or not values.dtype.is_floating:
        raise Refused(
            f"{path} maps images {list(probe.shape)} to {values.dtype.name} {list(values.shape)}; "
            "a classifier gives a row of 2 or more logits or probabilities an image"
        )
    num_classes = values.shape[1]
    told = output == "probabilities" or (output is None and name == "probabilities")
    detected = output is None and not told and _are_probabilities(values)

    def logits_of(images):
        _, values = _choose(path, outputs_of(images), output)
        values = tf.cast(values, tf.float32)
        if told or detected:
            values = tf.math.log(tf.maximum(values, np.finfo(np.float32).tiny))
        return tf.ensure_shape(values, [None, num_classes])

    in_batches = _in_batches(logits_of, spec.shape[0], num_classes) if spec.shape[0] else logits_of
    return Classifier(
        logits=lambda images: in_batches(tf.convert_to_tensor(images, tf.float32)),
        image_shape=image_shape,
        num_classes=num_classes,
        class_names=tuple(contract.get("class_names", map(str, range(num_classes)))),
        contract=contract,
        path=path,
        model_hash=contract.get("model_hash") or _files_hash(path),
        note="its rows are non-negative and sum to 1, so its output is taken for probabilities" if detected else "",
    )


def _read_contract(path: Path) -> dict:
    """`model.json` of a model exported here; empty for any other model."""
    file = path / "model.json"
    if not file.is_file():
        return {}
    try:
        contract = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{file} cannot be read: {_brief(error)}; export the model again") from None
    if not isinstance(contract, dict) or "model_hash" not in contract:
        return {}
    if contract.get("format") != _FORMAT:
        raise Refused(
            f"{file} has format {contract.get('format')!r}, and this version reads {_FORMAT}; export it again"
        )
    return contract


def _read_saved_model(path: Path, endpoint: str | None) -> tuple[Callable, tf.TensorSpec]:
    """images -> the endpoint's outputs by name, and the TensorSpec of the images."""
    if not path.exists():
        raise Refused(f"there is no model at {path}; give a SavedModel folder or a .keras file")
    if not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise Refused(f"{path} holds no SavedModel; give a folder with saved_model.pb, or a .keras file")
    try:
        model = tf.saved_model.load(str(path))
        signatures = dict(model.signatures)
    except Exception as error:
        raise Refused(f"SavedModel {path} is damaged: {_brief(error)}; export it again") from None
    known = ", ".join(signatures) or "none"
    if endpoint is None:
        only = list(signatures) if len(signatures) == 1 else []
        candidates = [name for name in ("serve", "serving_default", *only) if name in signatures]
        if not candidates:
            raise Refused(f"SavedModel {path} has the endpoints {known}; say which with --endpoint")
        endpoint = candidates[0]
    if endpoint not in signatures:
        raise Refused(
            f"SavedModel {path} has no endpoint {endpoint!r}; it has {known}{did_you_mean(endpoint, signatures)}"
        )
    inputs = signatures[endpoint].structured_input_signature[1]
    if len(inputs) != 1:
        raise Refused(
            f"endpoint {endpoint!r} of {path} reads {', '.join(inputs) or 'nothing'}; it must read images only"
        )
    ((name, spec),) = inputs.items()
    # Through `model`, as the signature by itself does not keep its variables alive.
    return lambda images: model.signatures[endpoint](**{name: images}), spec


def _read_keras(path: Path, endpoint: str | None) -> tuple[Callable, tf.TensorSpec]:
    """images -> the model's outputs, and the TensorSpec of the images."""
    if path.suffix != ".keras":
        raise Refused(f"{path} is neither a SavedModel folder nor a .keras file; give one of the two")
    if endpoint is not None:
        raise Refused(
            f"--endpoint {endpoint} names a signature, and {path} is a .keras file, which has none; leave it out"
        )
    if not zipfile.is_zipfile(path):
        raise Refused(f"{path} is no .keras archive, or is cut short; save the model again")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        if "deserialization of a `Lambda`" in str(error):
            raise Refused(
                f"{path} carries Python code in a Lambda layer, which is not run; give a SavedModel"
            ) from None
        if "Could not locate class" in str(error):
            raise Refused(f"{path} has a layer of its own that is not known here; give a SavedModel") from None
        raise Refused(f"{path} is damaged: {_brief(error)}; save the model again") from None
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1:
        raise Refused(f"{path} has {len(inputs)} declared inputs; it must have one, the images")
    return lambda images: model(images, training=False), tf.TensorSpec(inputs[0].shape, inputs[0].dtype)


def _check_input(path: Path, spec: tf.TensorSpec) -> None:
    """Refuse what is no batch of float images [N, H, W, C]."""
    if not spec.dtype.is_floating:
        raise Refused(
            f"{path} reads {spec.dtype.name}, which no gradient reaches; choose a float --endpoint, or export one"
        )
    if spec.shape.rank != 4:
        raise Refused(f"{path} reads the shape {spec.shape}; it must read images [N, H, W, C]")
    if spec.shape[1] in (1, 3) and spec.shape[3] not in (None, 1, 2, 3, 4):
        raise Refused(f"{path} reads the shape {spec.shape}, channels first; export it for images [N, H, W, C]")


def _probe(image_shape: tuple[int | None, ...], count: int) -> tf.Tensor:
    """Random images [count, H, W, C] in [0, 1], always the same."""
    shape = [size or default for size, default in zip(image_shape, (_UNKNOWN_SIZE, _UNKNOWN_SIZE, 3), strict=True)]
    return tf.constant(np.random.default_rng(0).random((count, *shape), np.float32))


def _choose(path: Path, outputs, output: str | None) -> tuple[str | None, tf.Tensor]:
    """The output that is asked for by name, or the only one; with its name where it has one."""
    if isinstance(outputs, (list, tuple)) and len(outputs) == 1:
        outputs = outputs[0]
    if tf.is_tensor(outputs):
        return None, outputs
    if not isinstance(outputs, dict):
        raise Refused(f"{path} gives {len(outputs)} outputs without names; it must give one, or name one logits")
    for name in OUTPUTS if output is None else (output,):
        if name in outputs:
            return name, outputs[name]
    if len(outputs) == 1:
        return next(iter(outputs.items()))
    wanted = " or ".join(OUTPUTS) if output is None else output
    raise Refused(f"{path} gives {', '.join(sorted(outputs))}, none of them {wanted}; choose another --endpoint")


def _are_probabilities(values: tf.Tensor) -> bool:
    """Whether rows [N, K] are non-negative and sum to 1, to the precision of float16."""
    values = tf.cast(values, tf.float32).numpy()
    return bool(np.all(values >= 0) and np.allclose(values.sum(axis=1), 1.0, rtol=0, atol=2e-3))


def _in_batches(fn: Callable, size: int, num_classes: int) -> Callable:
    """`fn`, which takes exactly `size` images [size, H, W, C] -> [size, K], for any number of images."""

    def run(images):
        count = tf.shape(images)[0]
        filled = tf.pad(images, [[0, -count % size], [0, 0], [0, 0], [0, 0]])
        batches = tf.reshape(filled, [-1, size, *images.shape[1:]])
        rows = tf.map_fn(fn, batches, fn_output_signature=tf.TensorSpec([size, num_classes], tf.float32))
        return tf.reshape(rows, [-1, num_classes])[:count]

    return run


def _files_hash(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files and their names."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _brief(error: Exception) -> str:
    """The first line of an error, or of what Keras says was behind it, not longer than a line."""
    said = str(error).rpartition("Exception encountered: ")[2].strip() or type(error).__name__
    text = said.splitlines()[0].rstrip(".")
    return text if len(text) <= 160 else f"{text[:160]}..."
