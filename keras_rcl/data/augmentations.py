"""Augmentation policies: stateless functions of a batch and a seed, with separate draws for each image.

The same seed gives the same images, on every machine and however many batches are made in parallel.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_rcl.data.stateless_layers import stateless_layer
from keras_rcl.runtime import philox
from keras_rcl.vocabulary.dataset import (
    Chain,
    ColourJitter,
    CropFlip,
    GaussianNoise,
    LayerAugmentation,
    NoAugmentation,
    Policy,
    Rotation,
    SimCLR,
)

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601, the Y of YIQ
_RGB_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_TURN_IQ = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]])
QUARTER_TURN = (np.linalg.inv(_RGB_TO_YIQ) @ _TURN_IQ @ _RGB_TO_YIQ).astype(np.float32)  # of colour, seen from RGB
TO_LUMA = np.tile(LUMA, (3, 1))  # RGB -> (luma, luma, luma)

split = tf.random.experimental.stateless_split


class Rows(NamedTuple):
    """Consecutive images of a batch: `count` of its `total` images, starting at image `first`.

    In a graph whose batches vary in size, `count` and `total` are scalar tensors.
    """

    first: int
    count: int
    total: int

    def select(self, draws: tf.Tensor) -> tf.Tensor:
        """The rows of a tensor that was made for the whole batch, [total, ...] -> [count, ...]."""
        return draws[self.first : self.first + self.count]


def augment(policy: Policy, images: tf.Tensor, seed: tf.Tensor, rows: Rows | None = None) -> tf.Tensor:
    """Augment each image of a batch.

    Args:
        policy: which augmentation, with its strengths.
        images: float32 [N, H, W, C] in [0, 1]; H, W and C are static.
        seed: int32 [2].
        rows: where in a larger batch these images are. They are augmented as they would be within that batch. The
            images are the whole batch if `rows` is not given.

    Returns:
        float32 [N, H, W, C] in [0, 1].

    Raises:
        InvalidInputError: if the layer of a `layer` policy is unknown, takes other arguments, changes the shape of
            images, or draws random numbers that no seed makes reproducible.

    References:
        Chen et al. 2020, "A simple framework for contrastive learning of visual representations" (`simclr`).
    """
    count = tf.shape(images)[0] if images.shape[0] is None else images.shape[0]
    rows = rows or Rows(0, count, count)
    match policy:
        case NoAugmentation():
            return images
        case CropFlip():
            return _crop_flip(policy, images, seed, rows)
        case SimCLR():
            return _simclr(policy, images, seed, rows)
        case Rotation():
            return _rotation(policy, images, seed, rows)
        case ColourJitter():
            return _colour_jitter(policy, images, seed, rows)
        case GaussianNoise():
            return _gaussian_noise(policy, images, seed, rows)
        case LayerAugmentation():
            return _layer(policy, images, seed, rows)
        case Chain():
            for one, own_seed in zip(policy.policies, tf.unstack(split(seed, num=len(policy.policies))), strict=True):
                images = augment(one, images, own_seed, rows)
            return images


def _uniform(rows: Rows, seed: tf.Tensor, *shape: int, low=0.0, high=1.0, dtype=tf.float32) -> tf.Tensor:
    """Uniform draws in [low, high), [count, *shape], the same on every device."""
    return rows.select(philox.uniform([rows.total, *shape], seed, low, high, dtype))


def _crop_flip(policy: CropFlip, images: tf.Tensor, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Crop the padded images at random places; a flip reads the columns backwards."""
    _, height, width, _ = images.shape
    pad, (crop_seed, flip_seed) = policy.padding, tf.unstack(split(seed))
    offsets = _uniform(rows, crop_seed, 2, low=0, high=2 * pad + 1, dtype=tf.int32)
    down, across = offsets[:, :1] + tf.range(height), offsets[:, 1:] + tf.range(width)
    if policy.flip:
        across = tf.where(_uniform(rows, flip_seed, 1) < 0.5, across[:, ::-1], across)
    padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    return tf.gather(tf.gather(padded, down, batch_dims=1), across, axis=2, batch_dims=1)


def _simclr(policy: SimCLR, images: tf.Tensor, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Random resized crop, flip, colour jitter, greyscale (Chen et al. 2020, appendix A); one channel has no hue."""
    crop_seed, colour_seed = tf.unstack(split(seed))
    return _colour_jitter(policy, _random_resized_crop(policy, images, crop_seed, rows), colour_seed, rows)


def _random_resized_crop(policy: SimCLR, images: tf.Tensor, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Resize a random box of each image to the image's own size, bilinearly; a box from right to left flips it.

    The box has an area in [min_area, 1] and an aspect ratio in [3/4, 4/3], both relative to the image. Where a side
    would exceed the image it is shortened and the other lengthened, which keeps the area and moves the ratio toward 1.
    """
    _, height, width, _ = images.shape
    area_seed, ratio_seed, place_seed, flip_seed = tf.unstack(split(seed, num=4))
    area = _uniform(rows, area_seed, low=policy.min_area, high=1.0)
    ratio = tf.exp(_uniform(rows, ratio_seed, low=-math.log(4 / 3), high=math.log(4 / 3)))
    box_width = tf.clip_by_value(tf.sqrt(area * ratio), area, 1.0)
    size = tf.stack([area / box_width, box_width], axis=1)
    start = _uniform(rows, place_seed, 2) * (1 - size)
    boxes = tf.concat([start, start + size], axis=1)
    if policy.flip:
        boxes = tf.where(_uniform(rows, flip_seed, 1) < 0.5, tf.gather(boxes, [0, 3, 2, 1], axis=1), boxes)
    return tf.clip_by_value(tf.image.crop_and_resize(images, boxes, tf.range(rows.count), [height, width]), 0.0, 1.0)


def _rotation(policy: Rotation, images: tf.Tensor, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Each pixel of the result reads the pixel that its centre comes from; a border of zeros is read from outside."""
    _, height, width, _ = images.shape
    radians = math.pi * policy.degrees / 180
    angle = _uniform(rows, seed, 1, 1, low=-radians, high=radians)
    down, across = tf.range(height, dtype=tf.float32)[:, None], tf.range(width, dtype=tf.float32)
    down, across = down + 0.5 - height / 2, across + 0.5 - width / 2  # of a pixel's centre, from that of the image
    row = tf.floor(tf.cos(angle) * down + tf.sin(angle) * across + height / 2)
    column = tf.floor(tf.cos(angle) * across - tf.sin(angle) * down + width / 2)
    row = tf.cast(tf.clip_by_value(row, -1.0, height), tf.int32) + 1
    column = tf.cast(tf.clip_by_value(column, -1.0, width), tf.int32) + 1
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.gather_nd(padded, tf.stack([row, column], axis=-1), batch_dims=1)


def _gaussian_noise(policy: GaussianNoise, images: tf.Tensor, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Independent noise for each value of the images that are drawn."""
    drawn_seed, noise_seed = tf.unstack(split(seed))
    shape = [rows.total, *images.shape[1:]]
    noise = rows.select(tf.random.stateless_normal(shape, noise_seed, 0.0, policy.std, alg="philox"))
    noisy = tf.clip_by_value(images + noise, 0.0, 1.0)
    return tf.where(_uniform(rows, drawn_seed, 1, 1, 1) < policy.probability, noisy, images)


def _colour_jitter(policy: SimCLR | ColourJitter, images: tf.Tensor, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Brightness, contrast, then saturation with hue, each with its own draw per image; then greyscale.

    With `ColourJitter` all images are jittered, and none is made grey.

    Saturation scales the chroma, hue rotates it, and greyscale removes it. The three are one 3x3 matrix per image:
    L + s (cos(a) (I - L) + sin(a) T), where L gives the luma and T is a quarter turn of the IQ plane.
    """
    _, height, width, channels = images.shape
    apply_seed, grey_seed, *seeds = tf.unstack(split(seed, num=6))
    varied, greyed = (
        (policy.jitter_probability, policy.greyscale_probability) if isinstance(policy, SimCLR) else (1.0, 0.0)
    )
    jittered = _uniform(rows, apply_seed, 1, 1) < varied
    brightness_seed, contrast_seed, saturation_seed, hue_seed = seeds

    def factor(draw_seed: tf.Tensor, strength: float) -> tf.Tensor:
        return tf.where(jittered, _uniform(rows, draw_seed, 1, 1, low=1 - strength, high=1 + strength), 1.0)

    pixels = tf.reshape(images, [-1, height * width, channels])
    pixels = tf.clip_by_value(factor(brightness_seed, policy.brightness) * pixels, 0.0, 1.0)
    luma = LUMA if channels == 3 else np.full([channels], 1 / channels, np.float32)
    mean = tf.reduce_sum(tf.reduce_mean(pixels, axis=1, keepdims=True) * luma, axis=2, keepdims=True)
    contrast = factor(contrast_seed, policy.contrast)
    pixels = tf.clip_by_value(contrast * pixels + (1 - contrast) * mean, 0.0, 1.0)
    if channels == 3:
        grey = _uniform(rows, grey_seed, 1, 1) < greyed
        saturation = tf.where(grey, 0.0, factor(saturation_seed, policy.saturation))
        angle = 2 * math.pi * (factor(hue_seed, policy.hue) - 1)
        turn = tf.cos(angle) * (np.eye(3, dtype=np.float32) - TO_LUMA) + tf.sin(angle) * QUARTER_TURN
        pixels = tf.clip_by_value(tf.matmul(pixels, TO_LUMA + saturation * turn, transpose_b=True), 0.0, 1.0)
    return tf.reshape(pixels, [images.shape[0] or -1, height, width, channels])


def _layer(policy: LayerAugmentation, images: tf.Tensor, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Run a Keras or KerasCV layer on one image after another, as some layers draw only once for a whole batch."""
    with tf.init_scope():
        augmented = stateless_layer(policy, tuple(images.shape[1:]))
    seeds = rows.select(split(seed, num=rows.total))
    output = tf.TensorSpec(images.shape[1:], tf.float32)
    return tf.map_fn(lambda element: augmented(*element), (images, seeds), fn_output_signature=output)
