"""Ball geometry for L-inf, L2 and L1, per example, and the pixel box [0, 1]."""

import math
from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf

from keras_rcl.runtime import philox
from keras_rcl.vocabulary.threat import Norm

Radius: TypeAlias = tf.Tensor | float
"""The radius of a ball; a tensor where several attacks share a graph."""

DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""The norm of a gradient that gives the distance to a hyperplane in a norm."""


def length(delta: tf.Tensor, norm: Norm) -> tf.Tensor:
    """The size of each example's change: [N, ...] -> [N].

    It is max |delta_i| (linf), sqrt(sum delta_i^2) (l2) or sum |delta_i| (l1).
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
        norm: `linf` or `l2`. Of `l1` it is one pixel, which the box stops; see `ascent`.

    Returns:
        [N, ...]: sign(g) for linf, g / ||g||_2 for l2; 0 where g is 0.
    """
    if norm == "linf":
        return tf.sign(gradient)
    # Scaled by its largest entry first, so that a tiny gradient's squares do not underflow.
    gradient = tf.math.divide_no_nan(gradient, per_example(length(gradient, "linf"), gradient))
    return tf.math.divide_no_nan(gradient, per_example(length(gradient, "l2"), gradient))


PIXEL_BOX = (0.0, 1.0)


def projection(x: tf.Tensor, epsilon: Radius, norm: Norm, box: tuple = PIXEL_BOX) -> Callable:
    """The function that projects images to the ball around x, then to the box.

    Its result is in the ball and in the box if x is in the box. The work that all calls share is done once.

    Args:
        x: centers, [N, ...].
        epsilon: radius in pixels.
        norm: `linf`, `l2` or `l1`. For linf and l1 the result is the nearest point of the intersection of ball and box.
        box: low and high.

    Returns:
        images [N, ...] -> images [N, ...].
    """
    if norm == "linf":
        lowest, highest = (tf.clip_by_value(x + way, *box) for way in (-epsilon, epsilon))
        return lambda x_adv: tf.clip_by_value(x_adv, lowest, highest)
    if norm == "l1":
        return lambda x_adv: _nearest_in_l1(x_adv, x, epsilon, box)

    def nearest(x_adv):
        delta = x_adv - x
        size = per_example(length(delta, norm), delta)
        outside = tf.reshape(size > epsilon, [-1])
        x_adv = choose(outside, x + delta * tf.math.divide_no_nan(epsilon, size), x_adv)
        return tf.clip_by_value(x_adv, *box)

    return nearest


def _nearest_in_l1(x_adv: tf.Tensor, x: tf.Tensor, epsilon: Radius, box: tuple) -> tf.Tensor:
    """The nearest point of the intersection of an L1 ball and the box.

    With a_i = |x_adv_i - x_i| and room_i the distance from x_i to the box on the side of x_adv_i, pixel i moves by
    min(max(a_i - r, 0), room_i), where r >= 0 is 0 or the number for which the moves add up to epsilon.

    Arguments as of `projection`.

    References:
        Croce and Hein 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", Proposition
        2.1.
    """
    # In float64, as sums of large terms may differ by little.
    delta = tf.cast(x_adv, tf.float64) - tf.cast(x, tf.float64)
    room = tf.cast(tf.nn.relu(tf.where(x_adv > x, box[1] - x, x - box[0])), tf.float64)
    moves, rooms = (tf.reshape(values, [tf.shape(x)[0], -1]) for values in (tf.abs(delta), room))
    shrink = _shortening(moves, rooms, tf.reshape(tf.cast(epsilon, tf.float64), [-1, 1]))
    change = tf.sign(delta) * tf.reshape(tf.minimum(tf.nn.relu(moves - shrink), rooms), tf.shape(x))
    return tf.clip_by_value(x + tf.cast(change, x.dtype), *box)


def _shortening(moves: tf.Tensor, rooms: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
    """The r [N, 1] for which sum_i min(max(moves_i - r, 0), rooms_i) is the radius; 0 where the sum at 0 is smaller.

    The sum falls linearly between kinks. Newton's method takes a step to where the line through the current point is
    the radius, and halves the interval of r where a step leaves it or nothing slopes. It ends on the right line, after
    about ten steps.

    Args:
        moves: float64 [N, D], not negative.
        rooms: float64 [N, D], not negative.
        radius: float64 [N, 1], or [1, 1] for all.
    """

    def excess(r):
        """How much the sum exceeds the radius at r, and the number of terms on a slope."""
        left = moves - r
        kept = tf.minimum(tf.nn.relu(left), rooms)
        sloping = tf.reduce_sum(tf.cast(kept == left, tf.float64), axis=1, keepdims=True)
        return tf.reduce_sum(kept, axis=1, keepdims=True) - radius, sloping

    def step(r, low, high, done):
        above, sloping = excess(r)
        low, high = tf.where(above > 0, r, low), tf.where(above > 0, high, r)
        following = r + tf.math.divide_no_nan(above, sloping)
        done |= (above == 0) | ((sloping > 0) & (tf.abs(following - r) <= 1e-12))
        leaves = (sloping == 0) | (following <= low) | (following >= high)
        following = tf.where(leaves, (low + high) / 2.0, following)
        done |= tf.abs(following - r) <= 1e-12
        return tf.where(done, r, following), low, high, done

    highest = tf.reduce_max(moves, axis=1, keepdims=True)
    zeros = tf.zeros_like(highest)
    above, _ = excess(zeros)
    r, _, _, _ = tf.while_loop(
        lambda r, low, high, done: ~tf.reduce_all(done),
        step,
        (zeros, zeros, highest, (above <= 0) | (radius <= 0)),
        maximum_iterations=100,
    )
    return tf.where(radius <= 0, highest, r)


def fill(value: tf.Tensor, room: tf.Tensor, cost: tf.Tensor, budget: tf.Tensor) -> tf.Tensor:
    """Fill pixels in descending order of value, each up to its room, until a budget is spent (a fractional knapsack).

        amount_i = min(max((budget - sum_{j before i} cost_j room_j) / cost_i, 0), room_i)

    Args:
        value: [N, D]; among equals the first pixel comes first.
        room: the largest amount of each pixel, [N, D].
        cost: of one unit of each pixel, [N, D]; a pixel of cost 0 stays empty.
        budget: [N], or a number.

    Returns:
        The amounts, [N, D].
    """
    order = tf.argsort(value, axis=1, direction="DESCENDING", stable=True)
    rooms, costs = (tf.gather(values, order, batch_dims=1) for values in (room, cost))
    left = tf.reshape(tf.cast(budget, room.dtype), [-1, 1]) - tf.cumsum(costs * rooms, axis=1, exclusive=True)
    amounts = tf.clip_by_value(tf.math.divide_no_nan(left, costs), 0.0, rooms)
    return tf.gather(amounts, tf.argsort(order, axis=1), batch_dims=1)


def ascent(x: tf.Tensor, epsilon: Radius, norm: Norm, box: tuple = PIXEL_BOX) -> Callable:
    """The function that makes one step up a loss, within the ball around x and the box.

    For linf and l2 it is projection(u + size * steepest_step(direction)). For l1 a steepest step changes one pixel,
    which the box stops after a distance of 1. So the step is toward the point v of ball and box where the linearised
    loss is highest, as in the method of Frank and Wolfe; v differs from x in the fewest pixels:

        u + min(1, size / ||v - u||_1) (v - u),   v = argmax <direction, v>

    Args:
        x: centers, [N, ...], within the box.
        epsilon: radius in pixels.
        norm: `linf`, `l2` or `l1`.
        box: low and high.

    Returns:
        A function of points u [N, ...] within ball and box, directions [N, ...] and the size of the step in pixels,
        that returns points [N, ...] within ball and box. Where the direction is 0 it returns u.
    """
    nearest = projection(x, epsilon, norm, box)
    if norm != "l1":
        return lambda u, direction, size: nearest(u + size * steepest_step(direction, norm))

    def step(u, direction, size):
        slope = tf.reshape(tf.abs(direction), [tf.shape(x)[0], -1])
        room = tf.reshape(tf.nn.relu(tf.where(direction > 0, box[1] - x, x - box[0])), tf.shape(slope))
        amounts = fill(slope, room, tf.sign(slope), epsilon)
        away = x + tf.sign(direction) * tf.reshape(amounts, tf.shape(x)) - u
        share = tf.minimum(tf.math.divide_no_nan(size, length(away, "l1")), 1.0)
        share *= tf.cast(tf.reduce_any(slope > 0, axis=1), share.dtype)
        return tf.clip_by_value(u + per_example(share, x) * away, *box)

    return step


def project(x_adv: tf.Tensor, x: tf.Tensor, epsilon: float, norm: Norm, box: tuple = PIXEL_BOX) -> tf.Tensor:
    """`projection` of one batch of images."""
    return projection(x, epsilon, norm, box)(x_adv)


def random_start(x: tf.Tensor, epsilon: Radius, norm: Norm, seeds: tf.Tensor, box: tuple = PIXEL_BOX) -> tf.Tensor:
    """A point drawn uniformly from each example's ball, clipped to the box.

    Args:
        x: [N, H, W, C].
        epsilon: radius in pixels.
        norm: `linf`, `l2` or `l1`.
        seeds: [N, 2], one stateless seed per example.
        box: low and high.

    Returns:
        [N, H, W, C].
    """
    shape = x.shape[1:]
    if norm == "linf":
        noise = 2.0 * uniform(shape, seeds) - 1.0
    elif norm == "l1":
        noise = _uniform_in_l1(x, seeds)
    else:
        radius = uniform([], seeds + 1) ** (1 / shape.num_elements())
        noise = _of_length_one(normal(shape, seeds), norm) * per_example(radius, x)
    return project(x + epsilon * noise, x, epsilon, norm, box)


def _uniform_in_l1(x: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Uniform in the L1 ball of radius 1: signed exponential numbers, divided by their sum and one more's."""
    drawn = 2.0 * uniform(x.shape[1:], seeds) - 1.0
    last = -tf.math.log1p(-uniform([], seeds + 1))
    sizes = -tf.math.log1p(-tf.minimum(tf.abs(drawn), 1.0 - 2.0**-24))
    total = tf.reduce_sum(tf.reshape(sizes, [tf.shape(sizes)[0], -1]), axis=1) + last
    return tf.sign(drawn) * tf.math.divide_no_nan(sizes, per_example(total, x))


def boundary_start(x: tf.Tensor, epsilon: Radius, norm: Norm, seeds: tf.Tensor) -> tf.Tensor:
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
    drawn = tf.map_fn(lambda seed: philox.bits(shape, seed), seeds, fn_output_signature=tf.uint32)
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
