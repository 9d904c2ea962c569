"""A trained network as files that anybody can serve: a SavedModel, its contract, and the `.keras` file."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.gradients import registering
from keras_rcl.storage.atomic import atomic_folder, write_json

FORMAT = 1
"""The version of `model.json`."""

ENDPOINTS = {
    "serve": "float32 [N, H, W, C] in [0, 1] -> logits [N, K], probabilities [N, K], class int64 [N]",
    "serve_uint8": "uint8 [N, H, W, C] in 0..255 -> the same; no gradient reaches its input",
    "embed": "float32 [N, H, W, C] in [0, 1] -> embedding [N, E], projection [N, D] of unit length",
}
"""What the SavedModel answers to, as signatures and as attributes; `serving_default` is `serve`."""

_TOLERANCE = 1e-5


def export(network: keras.Model, folder: str | Path, contract: dict, *, overwrite: bool = False) -> Path:
    """Write a network as a folder holding a SavedModel, `model.keras` and `model.json`: all of it or nothing.

    Args:
        network: float32 and two-headed, as `build_network` makes it: images [N, H, W, C] in [0, 1] -> a dict with
            `embedding`, `projection` and `logits`. Any batch size.
        folder: where to; it must not exist unless `overwrite`.
        contract: what `model.json` says beside what is read off the network: `data_set`, `class_names`,
            `threat_model`, `config`, `metrics`, `versions`.
        overwrite: replace the folder, once the new one is complete.

    Returns:
        The folder.

    Raises:
        InvalidInputError: if the folder exists or cannot be written, the class names do not fit the network, or a
            weight is not finite.
        RuntimeError: if the SavedModel, read back, does not give the network's logits.

    Example:
        >>> from pathlib import Path
        >>> import keras_rcl
        >>> network = keras_rcl.build_network(keras_rcl.Network(), (8, 8, 1), num_classes=2)  # doctest: +SKIP
        >>> folder = Path("saved_models/pets")  # doctest: +SKIP
        >>> keras_rcl.export(network, folder, {"class_names": ["cat", "dog"]})  # doctest: +SKIP
    """
    folder = Path(folder)
    image_shape, num_classes = network.input_shape[1:], network.output["logits"].shape[-1]
    if len(contract["class_names"]) != num_classes:
        raise InvalidInputError(
            f"{len(contract['class_names'])} class names for a network of {num_classes} classes; give one for each"
        )
    if not all(np.isfinite(weight).all() for weight in network.get_weights()):
        raise InvalidInputError("the network has weights that are not finite; export a checkpoint from before")
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        _write_saved_model(network, temporary)
        _check_round_trip(network, temporary)
        network.save(temporary / "model.keras")
        computed = {
            "format": FORMAT,
            "image_shape": list(image_shape),
            "num_classes": num_classes,
            "input": "float32 [N, H, W, C] in [0, 1]",
            "parameters": network.count_params(),
            "model_hash": model_hash(network),
            "endpoints": ENDPOINTS,
        }
        write_json(temporary / "model.json", {**contract, **computed})
    return folder


def _write_saved_model(network: keras.Model, folder: Path) -> None:
    """What `keras.export.ExportArchive` writes, which traces each endpoint twice and graphs that nothing serves."""

    def endpoint(dtype: tf.DType) -> Callable:
        image = tf.TensorSpec(network.input_shape, dtype, name="image")
        return tf.function(input_signature=[image], autograph=False)

    @endpoint(tf.float32)
    def serve(image):
        logits = network(image, training=False)["logits"]
        return {"logits": logits, "probabilities": tf.nn.softmax(logits), "class": tf.argmax(logits, axis=1)}

    @endpoint(tf.uint8)
    def serve_uint8(image):
        return serve(tf.cast(image, tf.float32) / 255.0)

    @endpoint(tf.float32)
    def embed(image):
        outputs = network(image, training=False)
        return {name: outputs[name] for name in ("embedding", "projection")}

    endpoints = {"serve": serve, "serve_uint8": serve_uint8, "embed": embed}
    served = tf.__internal__.tracking.AutoTrackable()
    served.variables = network.variables
    served.trainable_variables = network.trainable_variables
    served.non_trainable_variables = network.non_trainable_variables
    served.resources = _untracked_resources(network)
    for name, function in endpoints.items():
        setattr(served, name, function)
    tf.saved_model.save(served, str(folder), signatures={**endpoints, "serving_default": serve})


def _untracked_resources(network: keras.Model) -> list:
    """The tables and plain TensorFlow variables of a user's layers, which are not among the network's variables."""
    known = {id(variable.value) for variable in network.variables}
    kinds = (tf.saved_model.experimental.TrackableResource, tf.Variable)
    found = tf.train.TrackableView(network).descendants()
    return [one for one in found if isinstance(one, kinds) and id(one) not in known]


def _check_round_trip(network: keras.Model, folder: Path) -> None:
    """The SavedModel's logits against the network's, on the CPU, where float32 is float32 and not TF32."""
    images = np.random.default_rng(0).random((3, *network.input_shape[1:]), np.float32)
    with tf.device("CPU:0"):
        expected = network(images, training=False)["logits"].numpy()
        reloaded = registering(tf.saved_model.load, str(folder))
        found = reloaded.serve(images)["logits"].numpy()
    if not np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
        raise RuntimeError(f"the exported model's logits differ by {np.max(np.abs(found - expected)):g}: not exported")


def model_hash(network: keras.Model) -> str:
    """SHA-256 of the architecture, normalisation included, and of the weights' bytes, in the network's order."""
    digest = hashlib.sha256(network.to_json().encode())
    for weight in network.weights:
        digest.update(weight.value.numpy().tobytes())
    return digest.hexdigest()
