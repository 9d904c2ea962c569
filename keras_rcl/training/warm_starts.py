"""Attacks that start where the last attack on the same training image ended."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_rcl.vocabulary.phase import Adversarial

LEVELS = 127


class WarmStarts:
    """The last perturbation of each training image, one byte per value: one level is a 127th of epsilon.

    Args:
        count: How many training images there are.
        image_shape: (H, W, C).
        epsilon: The radius of the attacks.

    Attributes:
        variables: What a snapshot stores; as large as the training images.
    """

    def __init__(self, count: int, image_shape: tuple[int, ...], epsilon: float):
        self.epsilon = epsilon
        self.levels = tf.Variable(tf.zeros((count, *image_shape), tf.int8), trainable=False)
        self.warm = tf.Variable(False, trainable=False)
        self.variables = [self.levels, self.warm]

    def __call__(
        self, attacked: Callable, view: Adversarial, images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Attack images from their last perturbation, and keep the new one.

        Args:
            attacked: Maps (attack, images, labels) or (attack, images, labels, start) to what this returns.
            view: Its attack and its `warm_steps`.
            images: [N, H, W, C].
            labels: [N].
            indices: Indices [N] of the images in the training split.

        Returns:
            The images under attack [N, H, W, C], and the share of zero gradients that each met [N].
        """
        last = tf.cast(tf.gather(self.levels, indices), tf.float32) * (self.epsilon / LEVELS)
        attack: Any = view.attack  # bim or pgd, as the vocabulary checks
        warm = dataclasses.replace(attack, num_steps=view.warm_steps)
        x_adv, zeros = tf.cond(
            self.warm,
            lambda: attacked(warm, images, labels, tf.clip_by_value(images + last, 0.0, 1.0)),
            lambda: attacked(view.attack, images, labels),
        )
        levels = tf.cast(tf.round((x_adv - images) * (LEVELS / self.epsilon)), tf.int8)
        self.levels.scatter_update(tf.IndexedSlices(levels, indices))
        return x_adv, zeros
