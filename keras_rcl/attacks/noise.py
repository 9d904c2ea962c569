"""Random noise within the ball: the baseline of every attack."""

from collections.abc import Callable

import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted, Round
from keras_rcl.attacks.norms import boundary_start, normal, per_example, project, random_start, uniform
from keras_rcl.vocabulary.attacks import Noise
from keras_rcl.vocabulary.threat import Norm


def noise(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: Noise, round: Round) -> Crafted:
    """One draw of noise, which maximises nothing and ignores the classifier.

    Args:
        logits_fn: unused.
        x: float32 images in [0, 1], [N, H, W, C].
        labels: unused.
        attack: the hyper-parameters; `kind` is the kind of noise.
        round: seeds of the draw.

    Returns:
        The noisy images, and 0 for the share of zero gradients, as none was taken.
    """
    images = KINDS[attack.kind](x, attack.epsilon, attack.norm, round.seeds)
    return Crafted(tf.stop_gradient(images), tf.zeros_like(x[:, 0, 0, 0]))


def _gaussian(x: tf.Tensor, epsilon: float, norm: Norm, seeds: tf.Tensor) -> tf.Tensor:
    """Normal noise; arguments as of `random_start`.

    For linf its standard deviation is epsilon / sqrt(3), that of uniform noise (sigma as in Foolbox 2,
    AdditiveGaussianNoiseAttack); it is clipped to the ball, which 8 % of it exceeds. For l2 and l1 it is scaled to
    length epsilon (as in Foolbox 3, L2AdditiveGaussianNoiseAttack). All are clipped to the box.
    """
    if norm != "linf":
        return boundary_start(x, epsilon, norm, seeds)
    return project(x + epsilon / 3**0.5 * normal(x.shape[1:], seeds), x, epsilon, norm)


def _salt_and_pepper(x: tf.Tensor, epsilon: float, norm: Norm, seeds: tf.Tensor) -> tf.Tensor:
    """A share of the pixels, uniform on [0, 1), turns white or black with equal probability, all channels alike.

    The change is projected to the ball: to epsilon up or down (linf), or to a length of at most epsilon (l2,
    l1).
    Arguments as of `random_start`.
    """
    number, half = uniform([*x.shape[1:3], 1], seeds), per_example(uniform([], seeds + 1), x) / 2.0
    drawn = tf.cast(number >= 1.0 - half, tf.float32) - tf.cast(number < half, tf.float32)
    return project(tf.clip_by_value(x + drawn, 0.0, 1.0), x, epsilon, norm)


KINDS = {"uniform": random_start, "gaussian": _gaussian, "salt_and_pepper": _salt_and_pepper}
"""Kind of noise -> function of (x, epsilon, norm, seeds), images within the ball and the box."""
