"""Rotation and translation: the worst of a grid, or of random ones."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted, Round
from keras_rcl.attacks.norms import choose, uniform
from keras_rcl.attacks.surrogates import fools, surrogate_of
from keras_rcl.vocabulary.attacks import Spatial


def spatial(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: Spatial, round: Round) -> Crafted:
    """The first transformation that fools; where none does, the one of the smallest margin.

    The unchanged image comes first. The search ends when all images of the batch are fooled.

    Args:
        logits_fn: images [N, H, W, C] -> float32 logits [N, K].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes.
        attack: the hyper-parameters.
        round: seeds of the random transformations.

    Returns:
        The transformed images, and 0 for the share of zero gradients, as none was taken.

    References:
        Engstrom et al. 2019, "Exploring the landscape of spatial robustness".
    """
    tried = _random(attack, round.seeds) if attack.num_random else _grid(attack)[:, None]
    margin = surrogate_of("logit_margin", labels, False)

    def look(images):
        logits = logits_fn(images)
        return fools(logits, labels), margin(logits)

    def attempt(number, best, fooled, value):
        angle, down, right = tf.unstack(tried[number], axis=1)
        images = transform(x, angle, down, right, attack.padding)
        now_fooled, now_value = look(images)
        better = ~fooled & (now_fooled | (now_value > value))
        return number + 1, choose(better, images, best), fooled | now_fooled, tf.where(better, now_value, value)

    _, images, _, _ = tf.while_loop(
        lambda number, best, fooled, value: (number < attack.num_transformations) & ~tf.reduce_all(fooled),
        attempt,
        (0, x, *look(x)),
    )
    return Crafted(tf.stop_gradient(images), tf.zeros_like(x[:, 0, 0, 0]))


def _limits(attack: Spatial) -> list[float]:
    """The largest angle in radians, and the largest shifts as shares of the sides."""
    return [math.radians(attack.max_rotation), attack.max_translation, attack.max_translation]


def _grid(attack: Spatial) -> tf.Tensor:
    """[T, 3]: angle and shifts of each transformation of the grid."""
    counts = attack.num_rotations, attack.num_translations, attack.num_translations
    axes = [
        np.linspace(-limit, limit, count) if count > 1 else np.zeros(1)
        for limit, count in zip(_limits(attack), counts, strict=True)
    ]
    return tf.constant(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3), tf.float32)


def _random(attack: Spatial, seeds: tf.Tensor) -> tf.Tensor:
    """[T, N, 3]: angle and shifts of each image's own transformations, uniform between the limits."""
    drawn = 2.0 * uniform([attack.num_random, 3], seeds) - 1.0
    return tf.transpose(drawn, [1, 0, 2]) * tf.constant(_limits(attack), tf.float32)


def transform(x: tf.Tensor, angle: tf.Tensor, down: tf.Tensor, right: tf.Tensor, padding: str) -> tf.Tensor:
    """Rotate images about their center and move them, with bilinear interpolation.

    The pixel at p = (row, column) of the result is the image's value at R(-angle) (p - center - shift) + center. By
    angle and shift 0 the image itself is returned, to the bit.

    Args:
        x: [N, H, W, C].
        angle: in radians, counterclockwise as the image is seen, [N] or [1].
        down: the shift downward as a share of the height, [N] or [1].
        right: the shift to the right as a share of the width, [N] or [1].
        padding: `zeros` or `reflect`, which mirrors the image at its outermost pixels.

    Returns:
        [N, H, W, C], in the range of x.
    """
    _, height, width, _ = x.shape
    count = tf.shape(x)[0]
    angle, down, right = (tf.broadcast_to(value, [count])[:, None, None] for value in (angle, down, right))
    center_row, center_column = (height - 1) / 2, (width - 1) / 2
    rows = tf.range(height, dtype=tf.float32)[None, :, None] - center_row - down * height
    columns = tf.range(width, dtype=tf.float32)[None, None, :] - center_column - right * width
    from_row = tf.cos(angle) * rows + tf.sin(angle) * columns + center_row
    from_column = -tf.sin(angle) * rows + tf.cos(angle) * columns + center_column
    above, left = tf.floor(from_row), tf.floor(from_column)
    share_below, share_right = from_row - above, from_column - left
    total = tf.zeros_like(x)
    for row, row_share in ((above, 1.0 - share_below), (above + 1.0, share_below)):
        for column, column_share in ((left, 1.0 - share_right), (left + 1.0, share_right)):
            total += (row_share * column_share)[..., None] * _pixels(x, row, column, padding)
    return tf.clip_by_value(total, 0.0, 1.0)


def _pixels(x: tf.Tensor, row: tf.Tensor, column: tf.Tensor, padding: str) -> tf.Tensor:
    """The pixels of x [N, H, W, C] at whole rows and columns [N, H', W'], some of which lie outside."""
    _, height, width, channels = x.shape
    row, column = tf.cast(row, tf.int32), tf.cast(column, tf.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    if padding == "reflect":
        row, column = _reflected(row, height), _reflected(column, width)
    else:
        row, column = tf.clip_by_value(row, 0, height - 1), tf.clip_by_value(column, 0, width - 1)
    flat = tf.reshape(x, [tf.shape(x)[0], height * width, channels])
    found = tf.gather(flat, row * width + column, batch_dims=1)
    return found if padding == "reflect" else tf.where(inside[..., None], found, 0.0)


def _reflected(place: tf.Tensor, size: int) -> tf.Tensor:
    """The place within [0, size) that shows at any place, where the image is mirrored at its outermost pixels."""
    if size == 1:
        return tf.zeros_like(place)
    place = tf.math.floormod(place, 2 * (size - 1))
    return tf.minimum(place, 2 * (size - 1) - place)
