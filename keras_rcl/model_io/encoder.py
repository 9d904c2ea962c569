"""Any encoder on disk as one thing: images in [0, 1] -> embedding. What embedding attacks look through."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.loading import (
    LoadedModel,
    any_batch_size,
    error_line,
    hash_model,
    read_contract,
    resize_function,
    sample_images,
    select_output,
)
from keras_rcl.vocabulary.network import KERASHUB

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's pixels in [0, 1], which most presets were trained with."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder read from disk.

    Attributes:
        embedding: float32 images [N, H, W, C] in [0, 1] -> float32 [N, D], in inference mode, eagerly or in a graph.
        model_hash: SHA-256 of the weights of a model exported here and of a preset, else of the files.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> path = Path(tempfile.mkdtemp()) / "model.keras"
        >>> model.save(path)
        >>> len(keras_rcl.load_encoder(path, (4, 4, 1)).model_hash)
        64
    """

    embedding: Callable
    model_hash: str


def load_encoder(source: str | Path, image_shape: Sequence[int], *, trust: bool = False) -> Encoder:
    """Read an encoder, for images of one shape.

    Args:
        source: a folder made by `keras_rcl.export`, of which it is the `embedding`; any other SavedModel or `.keras`
            file that maps float images in [0, 1] to an output `embedding` or to one float tensor, which is flattened;
            or `kerashub:PRESET`, such as `kerashub:dinov2_small`, the backbone of a preset of KerasHub (or of the
            folder of one) behind the scale and offset of its own image converter. `kerashub:PRESET@224` feeds it
            images of that size, which is much cheaper where its own is larger.
        image_shape: (H, W, C) of the images to come. They are resized to what the encoder reads, differentiably; a grey
            image becomes three equal channels.
        trust: load it without looking for what could do harm.

    Raises:
        InvalidInputError: if there is no such encoder, or it does not map these images to one row of numbers per image.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> path = Path(tempfile.mkdtemp()) / "model.keras"
        >>> model.save(path)
        >>> encoder = keras_rcl.load_encoder(path, (4, 4, 1))
        >>> encoder.embedding(np.zeros((2, 4, 4, 1), np.float32)).shape.as_list()
        [2, 3]
    """
    if str(source).startswith(KERASHUB):
        call, spec, model_hash = _read_kerashub(str(source))
    else:
        path = Path(source)
        call, spec = LoadedModel(path, trust=trust).function(defaults=("embed", "serve", "serving_default"))
        model_hash = hash_model(path, read_contract(path))
    resize, shape = resize_function(source, spec.shape[1:], image_shape)

    def rows_of(images):
        _, values = select_output(
            source, call(tf.cast(images, spec.dtype)), ("embedding",), "name the one that is an embedding so"
        )
        return tf.reshape(tf.cast(values, tf.float32), [tf.shape(values)[0], np.prod(values.shape[1:], dtype=int)])

    sample = sample_images(shape, spec.shape[0])
    try:
        width = rows_of(sample).shape[1]
    except InvalidInputError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"{source} fails on images {list(sample.shape)}: {error_line(error)}; give another source"
        ) from None
    batched = any_batch_size(rows_of, spec.shape[0], width)
    return Encoder(lambda images: batched(resize(tf.convert_to_tensor(images, tf.float32))), model_hash)


def _read_kerashub(source: str) -> tuple[Callable, tf.TensorSpec, str]:
    """images in [0, 1] -> what a preset's backbone gives of them, the TensorSpec of the images, and its hash."""
    prefix = next(prefix for prefix in KERASHUB if source.startswith(prefix))
    return _from_backbone(source, *read_preset(source, source.removeprefix(prefix)))


def read_preset(source: str, preset: str) -> tuple[keras.Model, Any]:
    """Return the backbone of a preset of KerasHub, in float32, and its image converter.

    Args:
        source: What the user wrote, for messages.
        preset: `PRESET` or `PRESET@SIZE`.

    Raises:
        InvalidInputError: If KerasHub is not installed, or the preset cannot be downloaded.
    """
    name, _, size = preset.partition("@")
    prefix = source.removesuffix(preset)
    if size and not size.isdecimal():
        raise InvalidInputError(f"{source}: size {size!r} is not a number of pixels; write {prefix}{name}@224")
    try:
        import keras_hub
    except ImportError:
        raise InvalidInputError(
            f"{source} needs KerasHub, which is not installed: pip install keras-hub (the extra hub)"
        ) from None
    shape = {"image_shape": (int(size), int(size), 3)} if size else {}
    try:
        backbone = keras_hub.models.Backbone.from_preset(name, dtype="float32", **shape)
        converter = keras_hub.layers.ImageConverter.from_preset(name)
    except Exception as error:
        raise InvalidInputError(
            f"{source} could not be downloaded: {error_line(error)}; a preset needs the network and Kaggle, "
            f"or give {prefix}FOLDER of one that was fetched before"
        ) from None
    return backbone, converter


def pixel_scaling(source: str, backbone: keras.Model, converter: Any) -> tuple[Any, Any, list[int | None]]:
    """Return what pixels 0..255 are multiplied by before a backbone, what is added, and the shape that it reads.

    They are those of its image converter; where it has neither, or there is none, (pixels in [0, 1] - ImageNet's mean)
    / its standard deviation.

    Raises:
        InvalidInputError: If it reads more than images.
    """
    if len(backbone.inputs) != 1:
        raise InvalidInputError(f"{source} reads {len(backbone.inputs)} inputs; choose a preset that reads images only")
    image_size = getattr(converter, "image_size", None) or (None, None)
    wanted = [own or size for own, size in zip(backbone.inputs[0].shape[1:], (*image_size, 3), strict=True)]
    mean, std = _IMAGENET
    scale, offset = getattr(converter, "scale", None), getattr(converter, "offset", None)
    if scale is None and offset is None:
        scale, offset = 1 / 255 / np.array(std), -np.array(mean) / np.array(std)
    return 1.0 if scale is None else scale, 0.0 if offset is None else offset, wanted


def _from_backbone(source: str, backbone: keras.Model, converter: Any) -> tuple[Callable, tf.TensorSpec, str]:
    """As `_read_kerashub`, of a backbone of KerasHub and its image converter."""
    scale, offset, wanted = pixel_scaling(source, backbone, converter)
    scale, offset = tf.constant(scale, tf.float32), tf.constant(offset, tf.float32)
    named = isinstance(backbone.input, dict)

    def call(images):
        pixels = 255.0 * images * scale + offset
        return backbone({name: pixels for name in backbone.input} if named else pixels, training=False)

    digest = hashlib.sha256(f"{scale.numpy().tolist()} {offset.numpy().tolist()} {wanted}".encode())
    for weight in backbone.weights:
        digest.update(weight.value.numpy().tobytes())
    return call, tf.TensorSpec([None, *wanted], tf.float32), digest.hexdigest()
