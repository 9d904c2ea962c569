"""A Keras model or a callable in memory, with the interface of a model on disk."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.errors import InvalidInputError


class ModelInMemory:
    """A Keras model, a layer or any other callable from images to logits or probabilities, in inference mode.

    Args:
        model: It is called with `training=False` if it is a Keras layer.
        image_shape: (H, W, C) of the images that it will be given.

    Raises:
        InvalidInputError: If it cannot be called, has several inputs, or reads images of another shape.
    """

    def __init__(self, model: Callable, image_shape: Sequence[int]):
        if not callable(model):
            raise InvalidInputError(
                f"the model is a {type(model).__name__}; hint: give a Keras model, a callable, or the path of a model"
            )
        self.model, self._image_shape = model, tuple(image_shape)
        name = getattr(model, "name", None) or getattr(model, "__name__", None)
        self.path = Path(name if isinstance(name, str) and name.isprintable() else type(model).__name__)
        inputs = getattr(model, "inputs", None) or []
        if len(inputs) > 1:
            raise InvalidInputError(f"model {self.path} has {len(inputs)} inputs; it must have one, the images")
        self._input = inputs[0] if len(inputs) == 1 else None
        self._check_shape()

    def _check_shape(self) -> None:
        """Raise InvalidInputError if the model declares another shape of images."""
        declared = None if self._input is None else tuple(self._input.shape[1:])
        if declared is None:
            return
        given = self._image_shape[:2] if self._flat else self._image_shape
        fits = len(declared) == len(given) and all(
            want in (None, have) for want, have in zip(declared, given, strict=True)
        )
        if not fits:
            raise InvalidInputError(
                f"model {self.path} takes images of shape {declared}, but these have {self._image_shape}; hint: resize "
                "the images, or give those that the model was trained on"
            )

    @property
    def _flat(self) -> bool:
        """Whether the model reads grey images without a channel, [N, H, W]."""
        return self._input is not None and len(self._input.shape) == 3 and self._image_shape[2] == 1

    @property
    def layers(self) -> keras.Model:
        """The Keras model.

        Raises:
            InvalidInputError: If it is none.
        """
        if not isinstance(self.model, keras.Model):
            raise InvalidInputError(f"{self.path} is not a Keras model, and has no layers; hint: give a Keras model")
        return self.model

    def function(self, endpoint: str | None = None) -> tuple[Callable, tf.TensorSpec]:
        """Return the model's function of images [N, H, W, C], and the TensorSpec of the images that it reads.

        Raises:
            InvalidInputError: If it does not read float images, or an endpoint is given.
        """
        if endpoint is not None:
            raise InvalidInputError(f"endpoint {endpoint!r} names a signature, and a model in memory has none")
        call, flat = self.model, self._flat
        if isinstance(call, keras.layers.Layer):
            layer = call

            def call(images):
                return layer(images[..., 0] if flat else images, training=False)

        count, dtype = None, "float32"
        if self._input is not None:
            count, dtype = self._input.shape[0], keras.backend.standardize_dtype(self._input.dtype)
        spec = tf.TensorSpec([count, *self._image_shape], dtype)
        if not spec.dtype.is_floating:
            raise InvalidInputError(f"model {self.path} reads {dtype}, which no gradient reaches; build it for float32")
        return call, spec

    def inner_output(self, output: str) -> Callable | None:
        """Return images -> `embedding`, the input of the last layer with weights; None if the model exposes none."""
        model = self.model
        last = next((layer for layer in reversed(getattr(model, "layers", [])) if layer.weights), None)
        entered = None if isinstance(last, keras.Model) else getattr(last, "input", None)
        if output != "embedding" or self._input is None or self._flat or not isinstance(entered, keras.KerasTensor):
            return None
        if len(entered.shape) != 2:
            return None
        inner = keras.Model(model.inputs, entered)
        return lambda images: inner([images], training=False)

    def hash(self) -> str:
        """Return the SHA-256 of the weights; an empty text if the model has no weights that are known."""
        weights = getattr(self.model, "weights", None)
        if not weights:
            return ""
        digest = hashlib.sha256()
        for weight in weights:
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
        return digest.hexdigest()
