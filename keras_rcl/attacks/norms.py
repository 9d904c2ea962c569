"""Ball geometry for L-inf and L2, per example, and the pixel box [0, 1]."""

import math
from collections.abc import Callable
from typing import Literal

import tensorflow as tf

from keras_rcl.vocabulary.threat import Norm


def length(delta: tf.Tensor, norm: Norm | Literal["l1"]) -> tf.Tensor:
    """The size of each example's change: [N, ...] -> [N].

    It is max |delta_i| (linf), sqrt(sum delta_i^2) (l2) or sum |delta_i| (l1, the dual of linf).
    """
    flat = tf.reshape(delta, [tf.shape(delta)[0], -1])
    if norm == "linf":
        return tf.reduce_max(tf.abs(flat), axis=1)
    if norm == "l1":
        return tf.reduce_sum(tf.abs(flat), axis=1)
    return tf.norm(flat, axis=1)


def steepest_step(gradient: tf.Tensor, norm: Norm) -> tf.Tensor:
    """The direction of unit length in which a loss rises fastest.

    Args:
        gradient: g, [N, ...].
        norm: `linf` or `l2`.

    Returns:
        [N, ...]: sign(g) for linf, g / ||g||_2 for l2; 0 where g is 0.
    """
    if norm == "linf":
        return tf.sign(gradient)
    # Scaled by its largest entry first, so that a tiny gradient's squares do not underflow.
    gradient = tf.math.divide_no_nan(gradient, per_example(length(gradient, "linf"), gradient))
    return tf.math.divide_no_nan(gradient, per_example(length(gradient, "l2"), gradient))


PIXEL_BOX = (0.0, 1.0)


def projection(x: tf.Tensor, epsilon: float, norm: Norm, box: tuple = PIXEL_BOX) -> Callable:
    """The function that projects images to the ball around x, then to the box.

    Its result is in the ball and in the box if x is in the box. The work that all calls share is done once.

    Args:
        x: centers, [N, ...].
        epsilon: radius in pixels.
        norm: `linf` or `l2`.
        box: low and high.

    Returns:
        images [N, ...] -> images [N, ...].
    """
    if norm == "linf":
        lowest, highest = (tf.clip_by_value(x + way, *box) for way in (-epsilon, epsilon))
        return lambda x_adv: tf.clip_by_value(x_adv, lowest, highest)

    def nearest(x_adv):
        delta = x_adv - x
        size = per_example(length(delta, norm), delta)
        x_adv = tf.where(size > epsilon, x + delta * tf.math.divide_no_nan(epsilon, size), x_adv)
        return tf.clip_by_value(x_adv, *box)

    return nearest


def project(x_adv: tf.Tensor, x: tf.Tensor, epsilon: float, norm: Norm, box: tuple = PIXEL_BOX) -> tf.Tensor:
    """`projection` of one batch of images."""
    return projection(x, epsilon, norm, box)(x_adv)


def random_start(x: tf.Tensor, epsilon: float, norm: Norm, seeds: tf.Tensor, box: tuple = PIXEL_BOX) -> tf.Tensor:
    """A point drawn uniformly from each example's ball, clipped to the box.

    Args:
        x: [N, H, W, C].
        epsilon: radius in pixels.
        norm: `linf` or `l2`.
        seeds: [N, 2], one stateless seed per example.
        box: low and high.

    Returns:
        [N, H, W, C].
    """
    shape = x.shape[1:]
    if norm == "linf":
        noise = 2.0 * uniform(shape, seeds) - 1.0
    else:
        radius = uniform([], seeds + 1) ** (1 / shape.num_elements())
        noise = _of_length_one(normal(shape, seeds), norm) * per_example(radius, x)
    return project(x + epsilon * noise, x, epsilon, norm, box)


def boundary_start(x: tf.Tensor, epsilon: float, norm: Norm, seeds: tf.Tensor) -> tf.Tensor:
    """A random point at distance epsilon, clipped to the pixel box, where APGD starts; see `random_start`."""
    direction = 2.0 * uniform(x.shape[1:], seeds) - 1.0 if norm == "linf" else normal(x.shape[1:], seeds)
    return project(x + epsilon * _of_length_one(direction, norm), x, epsilon, norm)


def _of_length_one(direction: tf.Tensor, norm: Norm) -> tf.Tensor:
    return direction / per_example(length(direction, norm), direction)


def normal(shape, seeds: tf.Tensor) -> tf.Tensor:
    """Standard normal (Box and Muller 1958), [N, *shape] from seeds [N, 2]."""
    u, v = tf.unstack(uniform([2, *shape], seeds), axis=1)
    return tf.sqrt(-2.0 * tf.math.log1p(-u)) * tf.cos(2.0 * math.pi * v)


def uniform(shape, seeds: tf.Tensor) -> tf.Tensor:
    """Uniform on [0, 1), [N, *shape] from seeds [N, 2]; each example's numbers depend on its own seed alone.

    They are made from Philox' bits, which are the same under XLA; XLA's own floats are not.
    """

    def bits(seed):
        return tf.random.stateless_uniform(shape, seed, None, None, tf.uint32, alg="philox")

    drawn = tf.map_fn(bits, seeds, fn_output_signature=tf.uint32)
    return tf.cast(tf.bitwise.right_shift(drawn, 8), tf.float32) * 2.0**-24


def choose(condition: tf.Tensor, chosen: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Select whole examples, [N, ...]: from `chosen` where the condition [N] holds, otherwise from `other`.

    TensorFlow's first `where` copies whole examples; the second one broadcasts the condition and takes 7 times as long
    on a CPU.
    """
    return tf.compat.v1.where(condition, chosen, other)


def per_example(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[N] -> [N, 1, 1, 1], to broadcast against `like`."""
    return tf.reshape(values, [-1] + [1] * (like.shape.rank - 1))
