"""Ball geometry for L-inf and L2, per example, and the pixel box [0, 1]."""

import math

import tensorflow as tf

from keras_rcl.vocabulary.threat import Norm


def length(delta: tf.Tensor, norm: Norm) -> tf.Tensor:
    """The size of each example's change: [N, ...] -> [N], max |delta_i| (linf) or sqrt(sum delta_i^2) (l2)."""
    flat = tf.reshape(delta, [tf.shape(delta)[0], -1])
    if norm == "linf":
        return tf.reduce_max(tf.abs(flat), axis=1)
    return tf.norm(flat, axis=1)


def steepest_step(gradient: tf.Tensor, norm: Norm) -> tf.Tensor:
    """The direction of unit length that climbs fastest: sign(g) for linf, g / ||g||_2 for l2 (0 where g is 0)."""
    if norm == "linf":
        return tf.sign(gradient)
    # Scaled by its largest entry first, so that a tiny gradient's squares do not underflow.
    gradient = tf.math.divide_no_nan(gradient, per_example(length(gradient, "linf"), gradient))
    return tf.math.divide_no_nan(gradient, per_example(length(gradient, "l2"), gradient))


PIXEL_BOX = (0.0, 1.0)


def project(x_adv: tf.Tensor, x: tf.Tensor, epsilon: float, norm: Norm, box: tuple = PIXEL_BOX) -> tf.Tensor:
    """The nearest point of the ball around x, then of the box, low and high; where x is in it, the ball is not left."""
    if norm == "linf":
        x_adv = tf.clip_by_value(x_adv, x - epsilon, x + epsilon)
    else:
        delta = x_adv - x
        size = per_example(length(delta, norm), delta)
        x_adv = tf.where(size > epsilon, x + delta * tf.math.divide_no_nan(epsilon, size), x_adv)
    return tf.clip_by_value(x_adv, *box)


def random_start(x: tf.Tensor, epsilon: float, norm: Norm, seeds: tf.Tensor, box: tuple = PIXEL_BOX) -> tf.Tensor:
    """A point drawn uniformly from each example's ball, cut to the box.

    Args:
        x: [N, H, W, C].
        epsilon: radius in pixels.
        norm: `linf` or `l2`.
        seeds: [N, 2], one stateless seed an example.
        box: low and high.
    """
    shape = x.shape[1:]

    def draw(seed):
        if norm == "linf":
            return 2.0 * uniform(shape, seed) - 1.0
        direction = normal(shape, seed)
        radius = uniform([], seed + 1) ** (1 / shape.num_elements())
        return direction * radius / tf.norm(direction)

    return _displaced(x, draw, epsilon, norm, seeds, box)


def boundary_start(x: tf.Tensor, epsilon: float, norm: Norm, seeds: tf.Tensor) -> tf.Tensor:
    """A random point at distance epsilon, cut to the pixel box: where APGD starts. Arguments as of `random_start`."""
    shape = x.shape[1:]

    def draw(seed):
        if norm == "linf":
            direction = 2.0 * uniform(shape, seed) - 1.0
            return direction / tf.reduce_max(tf.abs(direction))
        direction = normal(shape, seed)
        return direction / tf.norm(direction)

    return _displaced(x, draw, epsilon, norm, seeds, PIXEL_BOX)


def _displaced(x: tf.Tensor, draw, epsilon: float, norm: Norm, seeds: tf.Tensor, box: tuple) -> tf.Tensor:
    noise = tf.map_fn(draw, seeds, fn_output_signature=tf.float32)
    return project(x + epsilon * noise, x, epsilon, norm, box)


def normal(shape, seed: tf.Tensor) -> tf.Tensor:
    """Standard normal (Box and Muller 1958)."""
    u, v = tf.unstack(uniform([2, *shape], seed))
    return tf.sqrt(-2.0 * tf.math.log1p(-u)) * tf.cos(2.0 * math.pi * v)


def uniform(shape, seed: tf.Tensor) -> tf.Tensor:
    """Uniform on [0, 1). From Philox' bits, which XLA draws alike; the floats that it makes of them are others."""
    bits = tf.random.stateless_uniform(shape, seed, None, None, tf.uint32, alg="philox")
    return tf.cast(tf.bitwise.right_shift(bits, 8), tf.float32) * 2.0**-24


def choose(condition: tf.Tensor, chosen: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Each example of the one batch where its condition [N] holds, of the other elsewhere: [N, ...].

    By TensorFlow's first `where`, which copies whole examples. The second broadcasts the condition, and takes 7 times
    as long on a CPU.
    """
    return tf.compat.v1.where(condition, chosen, other)


def per_example(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[N] -> [N, 1, 1, 1], to broadcast against `like`."""
    return tf.reshape(values, [-1] + [1] * (like.shape.rank - 1))
