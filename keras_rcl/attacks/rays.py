"""RayS: search among rays of sign vectors for the one that leaves the class soonest, from the predicted class alone."""

from collections.abc import Callable

import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted
from keras_rcl.attacks.norms import choose, length, per_example
from keras_rcl.vocabulary.attacks import RayS


def rays(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: RayS, seeds: tf.Tensor, round: tf.Tensor
) -> Crafted:
    """The first images that `minimal_perturbation` meets within `attack.epsilon`; x itself where it meets none.

    An example asks no more once it has fallen, as the radius only shrinks from there; once all have, the loop ends.
    """
    images, distance = _search(logits_fn, x, labels, attack, attack.epsilon)
    within = per_example(distance <= attack.epsilon, x)
    return Crafted(tf.stop_gradient(tf.where(within, images, x)), tf.zeros_like(distance))


def minimal_perturbation(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: RayS, seeds: tf.Tensor, round: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The images on the best ray that the whole budget finds, however far they are.

    The radius of a ray s in {-1, 1}^D is the smallest r at which clip(x + r s, 0, 1) fools the classifier. From
    s = (1, ..., 1) and r = infinity on, block after block of s is turned round, first all of it, then each half, each
    quarter and so on down to single pixels, which go round until the budget is spent:

        s' = s with the signs of one block turned round
        fast check      s' is dropped, unless clip(x + r s', 0, 1) fools
        binary search   of (0, r] for the radius r' of s', until an interval of tolerance / sqrt(D) is left
        s, r = s', r'   if r' < r

    Blocks are of consecutive pixels, channel after channel, as of the published code. Each query is one image an
    example; the budget may end amid a binary search, and then what it has reached counts. As long as no ray fools, s
    stays (1, ..., 1), and none is tried but those with one block turned round.

    Args:
        logits_fn: [N, H, W, C] -> [N, K]; nothing but the largest one's place is looked at.
        x: float32 images in [0, 1], [N, H, W, C].
        labels: [N], the true classes. Adversarial is what the classifier takes for any other class.
        attack: the hyper-parameters; `epsilon` is unused.
        seeds: unused; nothing is random.
        round: unused; there is but one.

    Returns:
        Images [N, H, W, C], and their L-inf distances from x [N], at most the radius; x and infinity where no ray
        fooled.

    Source: Chen and Gu 2020, "RayS: A Ray Searching Method for Hard-label Adversarial Attack" (arXiv:2006.12792),
    Algorithms 1 and 3, whose radii are L2 lengths: sqrt(D) times those here.
    """
    return _search(logits_fn, x, labels, attack, 0.0)


def _search(logits_fn, x, labels, attack, enough):
    """(images [N, H, W, C], distance [N]); an example asks no more once its distance is at most `enough`."""
    _, height, width, channels = x.shape
    size = height * width * channels
    tolerance = attack.tolerance / size**0.5
    places = tf.transpose(tf.reshape(tf.range(size), [channels, height, width]), [1, 2, 0])

    def at(radius, ray):
        return tf.clip_by_value(x + per_example(radius, x) * ray, 0.0, 1.0)

    def turned(ray, start, block):
        start, end = per_example(start, x), per_example(start + block, x)
        return tf.where((places >= start) & (places < end), -ray, ray)

    def ask(query, best, radius, distance, ray, low, searching, start, block):
        # No ray is in the box beyond a radius of 1.
        asked = tf.where(searching, (low + radius) / 2.0, tf.minimum(radius, 1.0))
        images = at(asked, ray)
        fooled = tf.argmax(logits_fn(images), axis=1, output_type=tf.int32) != labels
        closer = fooled & (asked < radius) & (distance > enough)
        best = choose(closer, ray, best)
        radius = tf.where(closer, asked, radius)
        distance = tf.where(closer, length(images - x, "linf"), distance)

        low = tf.where(searching & ~fooled, asked, low)
        searching = (searching | fooled) & (radius - low > tolerance)
        low = tf.where(searching, low, 0.0)
        end = start + block
        block = tf.where(searching | (end < size), block, (block + 1) // 2)
        start = tf.where(searching, start, tf.where(end < size, end, 0))
        ray = choose(searching, ray, turned(best, start, block))
        return query + 1, best, radius, distance, ray, low, searching, start, block

    ones, zeros, first = tf.ones_like(x), tf.zeros_like(x[:, 0, 0, 0]), tf.zeros_like(labels)
    nowhere = zeros + float("inf")
    _, best, radius, distance, *_ = tf.while_loop(
        lambda query, best, radius, distance, *_: (query < attack.num_queries) & tf.reduce_any(distance > enough),
        ask,
        (0, ones, nowhere, nowhere, -ones, zeros, zeros > 0, first, first + size),
        maximum_iterations=attack.num_queries,
    )
    images = choose(distance < float("inf"), at(radius, best), x)
    return tf.stop_gradient(images), tf.stop_gradient(distance)
