"""RayS: a search among sign vectors for the ray that leaves the class soonest, from the predicted class alone."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted, Minimal, Round
from keras_rcl.attacks.norms import Radius, choose, length, per_example
from keras_rcl.vocabulary.attacks import RayS


class _State(NamedTuple):
    """The state of the search.

    Attributes:
        query: number of queries made.
        best: the signs of the best ray, [N, H, W, C].
        radius: of the best ray, [N]; infinity before a ray fools the classifier.
        distance: L-inf distance of the image on it, [N].
        ray: the ray that is tried, [N, H, W, C].
        low: the largest radius at which that ray is known not to fool, [N].
        searching: bool [N], whether its radius is being searched; otherwise it takes the fast check.
        start: the first pixel of the block that is turned, [N].
        block: number of pixels per block, [N].
    """

    query: tf.Tensor | int
    best: tf.Tensor
    radius: tf.Tensor
    distance: tf.Tensor
    ray: tf.Tensor
    low: tf.Tensor
    searching: tf.Tensor
    start: tf.Tensor
    block: tf.Tensor


def rays(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: RayS, round: Round) -> Crafted:
    """The first images that `minimal_perturbation` finds within `attack.epsilon`; x itself where it finds none.

    An example makes no more queries once it is broken, as the radius only shrinks from there; the loop ends once all
    examples are broken.

    Args:
        logits_fn: images [N, H, W, C] -> logits [N, K]; only the predicted class is used.
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes.
        attack: the hyper-parameters.
        round: only its radius is used, as nothing is random.

    Returns:
        The images, and 0 for the share of zero gradients, as none was taken.

    References:
        Those of `minimal_perturbation`.
    """
    found = minimal_perturbation(logits_fn, x, labels, attack, enough=round.enough(attack))
    return found.within(round.epsilon(attack), x)


def minimal_perturbation(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: RayS, *, enough: Radius = 0.0
) -> Minimal:
    """The images on the best ray that the whole budget finds, at any distance.

    The radius of a ray s in {-1, 1}^D is the smallest r at which clip(x + r s, 0, 1) fools the classifier. The search
    starts from s = (1, ..., 1) and r = infinity. It inverts the signs of one block of s after another: first of all of
    it, then of each half, each quarter and so on down to single pixels, which repeat until the budget is spent:

        s' = s with the signs of one block inverted
        fast check      s' is dropped, unless clip(x + r s', 0, 1) fools
        binary search   of (0, r] for the radius r' of s', until an interval of tolerance / sqrt(D) is left
        s, r = s', r'   if r' < r

    Blocks are of consecutive pixels, channel after channel, as in the published code. Each query is one image per
    example; if the budget ends during a binary search, what it has reached counts. As long as no ray fools, s stays
    (1, ..., 1), and only rays with one inverted block are tried.

    Args:
        logits_fn: images [N, H, W, C] -> logits [N, K]; only the predicted class is used.
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes. An image is adversarial if the classifier assigns it any other class.
        attack: the hyper-parameters; `epsilon` has no effect.
        enough: an example makes no more queries once its distance is at most this.

    Returns:
        The images, and their L-inf distances from x, which are at most the radius; x and infinity where no ray fooled.
        The share of zero gradients is 0, as none was taken.

    References:
        Chen and Gu 2020, "RayS: a ray searching method for hard-label adversarial attack" (arXiv:2006.12792),
        Algorithms 1 and 3, whose radii are L2 lengths: sqrt(D) times those here.
    """
    _, height, width, channels = x.shape
    size = height * width * channels
    tolerance = attack.tolerance / size**0.5
    places = tf.transpose(tf.reshape(tf.range(size), [channels, height, width]), [1, 2, 0])

    def at(radius, ray):
        return tf.clip_by_value(x + per_example(radius, x) * ray, 0.0, 1.0)

    def inverted(ray, start, block):
        start, end = per_example(start, x), per_example(start + block, x)
        return tf.where((places >= start) & (places < end), -ray, ray)

    def ask(state: _State) -> tuple[_State]:
        radius, searching, low = state.radius, state.searching, state.low
        # No ray is in the box beyond a radius of 1.
        asked = tf.where(searching, (low + radius) / 2.0, tf.minimum(radius, 1.0))
        images = at(asked, state.ray)
        fooled = tf.argmax(logits_fn(images), axis=1, output_type=tf.int32) != labels
        closer = fooled & (asked < radius) & (state.distance > enough)
        best = choose(closer, state.ray, state.best)
        radius = tf.where(closer, asked, radius)
        distance = tf.where(closer, length(images - x, "linf"), state.distance)

        low = tf.where(searching & ~fooled, asked, low)
        searching = (searching | fooled) & (radius - low > tolerance)
        low = tf.where(searching, low, 0.0)
        end = state.start + state.block
        block = tf.where(searching | (end < size), state.block, (state.block + 1) // 2)
        start = tf.where(searching, state.start, tf.where(end < size, end, 0))
        ray = choose(searching, state.ray, inverted(best, start, block))
        return (_State(state.query + 1, best, radius, distance, ray, low, searching, start, block),)

    ones, zeros, first = tf.ones_like(x), tf.zeros_like(x[:, 0, 0, 0]), tf.zeros_like(labels)
    nowhere = zeros + float("inf")
    (state,) = tf.while_loop(
        lambda state: (state.query < attack.num_queries) & tf.reduce_any(state.distance > enough),
        ask,
        (_State(0, ones, nowhere, nowhere, -ones, zeros, zeros > 0, first, first + size),),
        maximum_iterations=attack.num_queries,
    )
    images = choose(state.distance < float("inf"), at(state.radius, state.best), x)
    return Minimal(tf.stop_gradient(images), tf.stop_gradient(state.distance), zeros)
