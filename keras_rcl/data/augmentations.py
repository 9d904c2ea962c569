"""Augmentation policies: stateless functions of a batch and a seed, with a draw of its own for each image.

The same seed gives the same images, however many run in parallel and on whatever machine.
"""

import functools
import importlib
import inspect
import math
from typing import NamedTuple
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.dataset import CropFlip, LayerAugmentation, NoAugmentation, Policy, SimCLR

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601, the Y of YIQ
_RGB_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_TURN_IQ = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]])
QUARTER_TURN = (np.linalg.inv(_RGB_TO_YIQ) @ _TURN_IQ @ _RGB_TO_YIQ).astype(np.float32)  # of colour, seen from RGB
TO_LUMA = np.tile(LUMA, (3, 1))  # RGB -> (luma, luma, luma)

split = tf.random.experimental.stateless_split


class Rows(NamedTuple):
    """Some consecutive images of a batch: `count` of its `total`, from `first` on."""

    first: int
    count: int
    total: int

    def of(self, draws: tf.Tensor) -> tf.Tensor:
        """Theirs of what was drawn for the whole batch, [total, ...] -> [count, ...]."""
        return draws[self.first : self.first + self.count]


def augment(policy: Policy, images: tf.Tensor, seed: tf.Tensor, rows: Rows | None = None) -> tf.Tensor:
    """Vary each image of a batch.

    Args:
        policy: what is drawn.
        images: float32 [N, H, W, C] in [0, 1], of static shape.
        seed: int32 [2].
        rows: of which batch these images are a part; they are varied as they would be within it.

    Returns:
        float32 [N, H, W, C] in [0, 1].

    Raises:
        InvalidInputError: a `layer` policy whose layer is unknown, takes other arguments, or changes the shape of
            images.
    """
    rows = rows or Rows(0, images.shape[0], images.shape[0])
    match policy:
        case NoAugmentation():
            return images
        case CropFlip():
            return _crop_flip(policy, images, seed, rows)
        case SimCLR():
            return _simclr(policy, images, seed, rows)
        case LayerAugmentation():
            return _layer(policy, images, seed, rows)


def _uniform(rows: Rows, seed: tf.Tensor, *shape: int, low=0.0, high=1.0, dtype=tf.float32) -> tf.Tensor:
    """Uniform draws in [low, high), [count, *shape], the same on every device."""
    return rows.of(tf.random.stateless_uniform([rows.total, *shape], seed, low, high, dtype, alg="philox"))


def _crop_flip(policy: CropFlip, images: tf.Tensor, seed: tf.Tensor, of: Rows) -> tf.Tensor:
    """Crop the padded images at random places; a flip reads the columns backwards."""
    _, height, width, _ = images.shape
    pad, (crop_seed, flip_seed) = policy.padding, tf.unstack(split(seed))
    offsets = _uniform(of, crop_seed, 2, low=0, high=2 * pad + 1, dtype=tf.int32)
    rows, columns = offsets[:, :1] + tf.range(height), offsets[:, 1:] + tf.range(width)
    if policy.flip:
        columns = tf.where(_uniform(of, flip_seed, 1) < 0.5, columns[:, ::-1], columns)
    padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    return tf.gather(tf.gather(padded, rows, batch_dims=1), columns, axis=2, batch_dims=1)


def _simclr(policy: SimCLR, images: tf.Tensor, seed: tf.Tensor, of: Rows) -> tf.Tensor:
    """Random resized crop, flip, colour jitter, greyscale (Chen et al. 2020, appendix A); one channel has no hue."""
    crop_seed, colour_seed = tf.unstack(split(seed))
    return _colour_jitter(policy, _random_resized_crop(policy, images, crop_seed, of), colour_seed, of)


def _random_resized_crop(policy: SimCLR, images: tf.Tensor, seed: tf.Tensor, of: Rows) -> tf.Tensor:
    """Resize a random box of each image to the image's own size, bilinearly; a box from right to left flips it.

    The box has an area in [min_area, 1] and an aspect ratio in [3/4, 4/3], both relative to the image. Where a side
    would exceed the image it is shortened and the other lengthened, which keeps the area and moves the ratio toward 1.
    """
    count, height, width, _ = images.shape
    area_seed, ratio_seed, place_seed, flip_seed = tf.unstack(split(seed, num=4))
    area = _uniform(of, area_seed, low=policy.min_area, high=1.0)
    ratio = tf.exp(_uniform(of, ratio_seed, low=-math.log(4 / 3), high=math.log(4 / 3)))
    box_width = tf.clip_by_value(tf.sqrt(area * ratio), area, 1.0)
    size = tf.stack([area / box_width, box_width], axis=1)
    start = _uniform(of, place_seed, 2) * (1 - size)
    boxes = tf.concat([start, start + size], axis=1)
    if policy.flip:
        boxes = tf.where(_uniform(of, flip_seed, 1) < 0.5, tf.gather(boxes, [0, 3, 2, 1], axis=1), boxes)
    return tf.clip_by_value(tf.image.crop_and_resize(images, boxes, tf.range(count), [height, width]), 0.0, 1.0)


def _colour_jitter(policy: SimCLR, images: tf.Tensor, seed: tf.Tensor, of: Rows) -> tf.Tensor:
    """Brightness, contrast, then saturation with hue, each with its own draw for each image; greyscale at last.

    Saturation scales what is not luma, hue turns it, and greyscale leaves none of it, so that the three are one 3x3
    matrix an image: L + s (cos(a) (I - L) + sin(a) T), where L takes the luma and T is a quarter turn of the IQ plane.
    """
    count, height, width, channels = images.shape
    apply_seed, grey_seed, *seeds = tf.unstack(split(seed, num=6))
    jittered = _uniform(of, apply_seed, 1, 1) < policy.jitter_probability
    strengths = (policy.brightness, policy.contrast, policy.saturation, policy.hue)
    brightness, contrast, saturation, hue = (
        tf.where(jittered, _uniform(of, draw_seed, 1, 1, low=1 - strength, high=1 + strength), 1.0)
        for draw_seed, strength in zip(seeds, strengths, strict=True)
    )
    pixels = tf.reshape(images, [count, height * width, channels])
    pixels = tf.clip_by_value(brightness * pixels, 0.0, 1.0)
    luma = LUMA if channels == 3 else np.full([channels], 1 / channels, np.float32)
    mean = tf.reduce_sum(tf.reduce_mean(pixels, axis=1, keepdims=True) * luma, axis=2, keepdims=True)
    pixels = tf.clip_by_value(contrast * pixels + (1 - contrast) * mean, 0.0, 1.0)
    if channels == 3:
        grey = _uniform(of, grey_seed, 1, 1) < policy.greyscale_probability
        saturation, angle = tf.where(grey, 0.0, saturation), 2 * math.pi * (hue - 1)
        turn = tf.cos(angle) * (np.eye(3, dtype=np.float32) - TO_LUMA) + tf.sin(angle) * QUARTER_TURN
        pixels = tf.clip_by_value(tf.matmul(pixels, TO_LUMA + saturation * turn, transpose_b=True), 0.0, 1.0)
    return tf.reshape(pixels, images.shape)


def _layer(policy: LayerAugmentation, images: tf.Tensor, seed: tf.Tensor, of: Rows) -> tf.Tensor:
    """Run a Keras or KerasCV layer on one image after another: some draw only once for a whole batch.

    Each image has its own seed. What the layer draws while it is traced comes from that seed, so that it is as
    reproducible as our own policies although neither library's layers are.
    """
    with tf.init_scope():
        layer, draws = _build(policy)

    @tf.autograph.experimental.do_not_convert
    def one(element: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        image, image_seed = element
        try:
            with draws.seeded(image_seed):
                changed = layer(image[None], training=True)[0]
        except Exception as error:  # whatever a third party's layer raises
            raise InvalidInputError(
                f"augmentation layer {policy.layer}: {_line(error)}; change its arguments"
            ) from None
        if changed.shape != image.shape:
            shapes = f"{list(image.shape)} to {list(changed.shape)}"
            raise InvalidInputError(
                f"augmentation layer {policy.layer} changes images from {shapes}: views keep their shape"
            )
        return tf.clip_by_value(changed, 0.0, 1.0)

    seeds = of.of(split(seed, num=of.total))
    return tf.map_fn(one, (images, seeds), fn_output_signature=tf.TensorSpec(images.shape[1:], tf.float32))


class _Draws:
    """Stateless stand-in for Keras' SeedGenerator, for tf.random.Generator and for what KerasCV asks of tf.random."""

    @staticmethod
    def into(layer: keras.layers.Layer) -> "_Draws":
        """Give a layer and those inside it one stand-in for all their generators."""
        draws = _Draws()
        for inner in layer._flatten_layers():
            if hasattr(inner, "_random_generator"):
                inner._random_generator = draws
            for value in vars(inner).values():
                if isinstance(value, keras.random.SeedGenerator):
                    value.next = draws.next
        return draws

    def seeded(self, seed: tf.Tensor):
        """Context: the n-th draw is that of fold_in(seed, n), also of the ops that KerasCV calls in tf.random."""
        self._seed, self._count = seed, 0
        names = ("uniform", "normal", "gamma", "shuffle")
        return mock.patch.multiple(tf.random, **{name: getattr(self, name) for name in names})

    def next(self, ordered: bool = True) -> tf.Tensor:
        """The seed of the next draw."""
        self._count += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._count)

    def uniform(self, shape, minval=0, maxval=None, dtype=tf.float32, seed=None, name=None):
        """As tf.random.uniform."""
        return tf.random.stateless_uniform(shape, self.next(), minval, maxval, dtype, name, alg="philox")

    def normal(self, shape, mean=0.0, stddev=1.0, dtype=tf.float32, seed=None, name=None):
        """As tf.random.normal."""
        return tf.random.stateless_normal(shape, self.next(), mean, stddev, dtype, name, alg="philox")

    def gamma(self, shape, alpha, beta=None, dtype=tf.float32, seed=None, name=None):
        """As tf.random.gamma."""
        alpha = tf.convert_to_tensor(alpha, dtype)
        shape = tf.concat([tf.convert_to_tensor(shape, tf.int32), tf.shape(alpha)], axis=0)
        return tf.random.stateless_gamma(shape, self.next(), alpha, beta, dtype, name)

    def shuffle(self, value, seed=None, name=None):
        """As tf.random.shuffle."""
        return tf.random.experimental.stateless_shuffle(value, self.next(), "philox", name)


@functools.lru_cache
def _build(policy: LayerAugmentation) -> tuple[keras.layers.Layer, _Draws]:
    """The layer that a policy names, once, and the stand-in it draws from."""
    kind = _layer_class(policy.layer)
    arguments = {"dtype": "float32", **policy.arguments}
    if "value_range" in inspect.signature(kind).parameters:
        arguments.setdefault("value_range", (0, 1))
    try:
        layer = kind(**arguments)
    except Exception as error:  # whatever a third party's layer raises
        raise InvalidInputError(f"augmentation layer {policy.layer}({policy.arguments}): {_line(error)}") from None
    return layer, _Draws.into(layer)


def _layer_class(name: str) -> type:
    """The layer class of this name in keras.layers, else in keras_cv.layers."""
    kind = getattr(keras.layers, name, None) or getattr(importlib.import_module("keras_cv.layers"), name, None)
    if not (inspect.isclass(kind) and issubclass(kind, keras.layers.Layer)):
        raise InvalidInputError(
            f"augmentation layer {name!r} is in neither keras.layers nor keras_cv.layers: name one of theirs"
        )
    return kind


def _line(error: Exception) -> str:
    """What an error says first, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
