"""A smoothed classifier that can be differentiated: the mean softmax over fixed draws of Gaussian noise."""

import math
from collections.abc import Callable

import tensorflow as tf

from keras_rcl.attacks.norms import normal

_SPACING = 2**48
"""Between the seeds of two draws, so that they are neither those of a random start nor those of a restart."""


def noise_draw(x: tf.Tensor, seeds: tf.Tensor, number: int) -> tf.Tensor:
    """Standard normal numbers for a batch of images.

    Args:
        x: images; only their shape [N, H, W, C] is read.
        seeds: int64 [N, 2], one stateless seed per image.
        number: which draw of these seeds, from 0.

    Returns:
        [N, H, W, C].
    """
    return normal(x.shape[1:], seeds + tf.constant([0, (number + 1) * _SPACING], tf.int64))


def smoothed(logits_fn: Callable, noise: tf.Tensor) -> Callable:
    """The logarithm of the mean softmax over M noisy copies of each image.

        z(x) = log( 1/M sum_j softmax(f(x + noise_j)) )

    Its cross-entropy is the loss that the attack of Salman et al. 2019 maximises.

    Args:
        logits_fn: f, images [N, H, W, C] -> logits [N, K].
        noise: [M, N, H, W, C]; the copies are not clipped to [0, 1].

    Returns:
        images [N, H, W, C] -> [N, K].
    """
    draws = noise.shape[0]

    def mean_softmax(images):
        logits = logits_fn(tf.reshape(images + noise, [-1, *images.shape[1:]]))
        shares = tf.reshape(tf.nn.log_softmax(logits), [draws, -1, logits.shape[-1]])
        return tf.reduce_logsumexp(shares, axis=0) - math.log(draws)

    return mean_softmax
