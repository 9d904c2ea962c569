"""HopSkipJump: walks along the decision border toward the image, from the predicted class alone."""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted, Minimal, Round
from keras_rcl.attacks.norms import Radius, choose, length, normal, per_example, steepest_step, uniform
from keras_rcl.attacks.surrogates import fools
from keras_rcl.vocabulary.attacks import HopSkipJump

FIRST_DIRECTIONS, GROUP = 100, 25
"""The number of random directions of the first step, and how many are tried at once."""
FIRST_DISTANCE = 0.1
"""The distance of the random directions' points in the first step."""
MOST_STARTS, MOST_HALVINGS = 100, 15
"""The largest number of random images that are tried as a start, and how often the size of a step is halved."""


class _State(NamedTuple):
    """The state of the walk.

    Attributes:
        step: number of steps taken.
        queries: number of queries made per example, int32 [N].
        images: adversarial images at the border, [N, H, W, C]; x where none was found yet.
        distance: of `images` from x, [N]; infinity where none was found.
        closest: the closest adversarial images so far, with their distances in `least`.
        least: see `closest`.
    """

    step: tf.Tensor | int
    queries: tf.Tensor
    images: tf.Tensor
    distance: tf.Tensor
    closest: tf.Tensor
    least: tf.Tensor


def hop_skip_jump(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: HopSkipJump, round: Round) -> Crafted:
    """The images that `minimal_perturbation` finds within `attack.epsilon`; x itself where it finds none.

    An example makes no more queries once it is broken; the loop ends once all examples are.

    Args:
        logits_fn: images [N, H, W, C] -> logits [N, K]; only the predicted class is used.
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes.
        attack: the hyper-parameters.
        round: seeds of the random images and directions.

    Returns:
        The images, and 0 for the share of zero gradients, as none was taken.

    References:
        Those of `minimal_perturbation`.
    """
    found = minimal_perturbation(logits_fn, x, labels, attack, round, enough=round.enough(attack))
    return found.within(round.epsilon(attack), x)


def minimal_perturbation(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: HopSkipJump, round: Round, *, enough: Radius = 0.0
) -> Minimal:
    """The closest adversarial images that the whole budget finds, at any distance.

    The walk starts at a random image that fools the classifier. In step t, from 1, with d_t the distance from x to the
    point x_t at the border, D the number of pixels and random directions u_b of length 1:

        v_t = sum_b (phi_b - mean phi) u_b,   phi_b = 1 if x_t + d_t / D u_b fools the classifier, else -1
        x'  = x_t + xi_t v_t / ||v_t||_2 (l2) or xi_t sign(v_t) (linf),  xi_t = d_t / sqrt(t), halved until x' fools
        x_{t+1} = the border between x' and x, by binary search

    The search is along the segment (l2), or over the L-inf balls around x to which x' is projected (linf). There are
    100 sqrt(t) directions.

    Args:
        logits_fn: images [N, H, W, C] -> logits [N, K]; only the predicted class is used.
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes. An image is adversarial if the classifier assigns it any other class.
        attack: the hyper-parameters; `epsilon` has no effect.
        round: its seeds choose the random images and directions.
        enough: an example makes no more queries once its distance is at most this.

    Returns:
        The images and their distances from x; x and infinity where no random image fooled. The share of zero gradients
        is 0, as none was taken.

    References:
        Chen, Jordan and Wainwright 2020, "HopSkipJumpAttack: a query-efficient decision-based attack"
        (arXiv:1904.02144), Algorithm 2.
    """
    size = x.shape[1:].num_elements()
    # Until the interval is 1 / sqrt(D) of the distance of the random directions' points.
    halvings = math.ceil(math.log2(size) * (1.5 if attack.norm == "l2" else 2.0))

    def fooled(images, copies=1):
        """Which images fool the classifier, [N], or [copies N] for several of each."""
        return fools(logits_fn(images), tf.repeat(labels, copies))

    def searched(images):
        """The border between x and adversarial images, on its far side."""
        delta = images - x
        far = per_example(length(delta, "linf"), x)

        def at(share):
            share = per_example(share, x)
            return x + (share * delta if attack.norm == "l2" else tf.clip_by_value(delta, -share * far, share * far))

        def halve(number, low, high):
            middle = (low + high) / 2.0
            adversarial = fooled(at(middle))
            return number + 1, tf.where(adversarial, low, middle), tf.where(adversarial, middle, high)

        ends = tf.zeros_like(far[:, 0, 0, 0]), tf.ones_like(far[:, 0, 0, 0])
        _, _, high = tf.while_loop(lambda number, *_: number < halvings, halve, (0, *ends), maximum_iterations=halvings)
        return choose(high < 1.0, at(high), images)

    def walk(state: _State) -> tuple[_State]:
        active, directions = _active(state, attack, halvings, enough)
        step = state.step + 1
        radius = tf.where(step == 1, FIRST_DISTANCE, state.distance / size)
        seeds = round.seeds + tf.stack([0, tf.cast(step, tf.int64) * 2**20])
        slope = _slope(fooled, state.images, tf.where(active, radius, 1.0), directions, attack.norm, seeds)
        jumped, tried = _jump(fooled, state, active, steepest_step(slope, attack.norm), tf.cast(step, tf.float32))
        images = choose(active, searched(choose(active, jumped, x)), state.images)
        distance = tf.where(active, length(images - x, attack.norm), state.distance)
        queries = state.queries + tf.where(active, directions + halvings + tried, 0)
        closer = distance < state.least
        least = tf.where(closer, distance, state.least)
        return (_State(step, queries, images, distance, choose(closer, images, state.closest), least),)

    most_starts = min(MOST_STARTS, attack.num_queries - halvings - 1)
    starts, found, tried = _start(fooled, x, round.seeds, most_starts)
    images = searched(starts)
    distance = tf.where(found, length(images - x, attack.norm), float("inf"))
    (state,) = tf.while_loop(
        lambda state: tf.reduce_any(_active(state, attack, halvings, enough)[0]),
        walk,
        (_State(0, tried + halvings, images, distance, images, distance),),
    )
    return Minimal(tf.stop_gradient(state.closest), tf.stop_gradient(state.least), tf.zeros_like(distance))


def _active(state: _State, attack: HopSkipJump, halvings: int, enough) -> tuple[tf.Tensor, tf.Tensor]:
    """Which examples [N] have found an adversarial image and queries for another step, and its number of directions."""
    root = tf.sqrt(tf.cast(state.step + 1, tf.float32))
    directions = GROUP * tf.cast(tf.math.ceil(FIRST_DIRECTIONS * root / GROUP), tf.int32)
    affordable = state.queries + directions + halvings + MOST_HALVINGS <= attack.num_queries
    return affordable & (state.least > enough) & (state.least < float("inf")), directions


def _start(fooled: Callable, x: tf.Tensor, seeds: tf.Tensor, most: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Random images [N, H, W, C] that fool, x where x itself or none does; whether they do [N]; queries [N]."""

    def draw(number, images, found, tried):
        drawn = uniform(x.shape[1:], seeds + tf.stack([tf.cast(number, tf.int64), 0]))
        new = ~found & fooled(drawn)
        return number + 1, choose(new, drawn, images), found | new, tried + tf.cast(~found, tf.int32)

    _, images, found, tried = tf.while_loop(
        lambda number, images, found, tried: (number < most) & ~tf.reduce_all(found),
        draw,
        (0, x, fooled(x), tf.ones_like(x[:, 0, 0, 0], tf.int32)),
        maximum_iterations=most,
    )
    return images, found, tried


def _slope(fooled: Callable, images: tf.Tensor, radius: tf.Tensor, count, norm: str, seeds: tf.Tensor) -> tf.Tensor:
    """The estimated direction toward other classes [N, H, W, C], from `count` random directions."""
    shape = images.shape[1:]

    def unlike_labels(points):
        """1 where points [N, G, H, W, C] fool the classifier, else -1."""
        flat = tf.reshape(points, [-1, *shape])
        return tf.reshape(2.0 * tf.cast(fooled(flat, GROUP), tf.float32) - 1.0, [-1, GROUP, *([1] * len(shape))])

    def add(number, signed, plain, total):
        own = seeds + tf.stack([0, tf.cast(number, tf.int64)])
        drawn = normal([GROUP, *shape], own) if norm == "l2" else 2.0 * uniform([GROUP, *shape], own) - 1.0
        long = tf.norm(tf.reshape(drawn, [-1, GROUP, shape.num_elements()]), axis=2)
        drawn /= tf.reshape(long, [-1, GROUP, *([1] * len(shape))])
        points = tf.clip_by_value(images[:, None] + radius[:, None] * drawn, 0.0, 1.0)
        drawn, signs = (points - images[:, None]) / radius[:, None], unlike_labels(points)
        signed, plain = signed + tf.reduce_sum(signs * drawn, axis=1), plain + tf.reduce_sum(drawn, axis=1)
        return number + 1, signed, plain, total + tf.reduce_sum(signs, axis=[1, 2, 3, 4])

    radius, zeros = per_example(radius, images), tf.zeros_like(images)
    _, signed, plain, total = tf.while_loop(
        lambda number, *_: number * GROUP < count, add, (0, zeros, zeros, tf.zeros_like(images[:, 0, 0, 0]))
    )
    mean = total / tf.cast(count, tf.float32)
    return signed - per_example(tf.where(tf.abs(mean) == 1.0, 0.0, mean), plain) * plain


def _jump(fooled: Callable, state: _State, active: tf.Tensor, direction: tf.Tensor, step: tf.Tensor):
    """Images [N, H, W, C] that fool after a step of a size that is halved until they do, and the queries made [N]."""

    def halve(number, size, images, found, tried):
        jumped = tf.clip_by_value(state.images + per_example(size, direction) * direction, 0.0, 1.0)
        new = ~found & fooled(jumped)
        return number + 1, size / 2.0, choose(new, jumped, images), found | new, tried + tf.cast(~found, tf.int32)

    size = tf.where(active, state.distance, 0.0) / tf.sqrt(step)
    _, _, images, _, tried = tf.while_loop(
        lambda number, size, images, found, tried: (number < MOST_HALVINGS) & ~tf.reduce_all(found),
        halve,
        (0, size, state.images, ~active, tf.zeros_like(state.queries)),
        maximum_iterations=MOST_HALVINGS,
    )
    return images, tried
