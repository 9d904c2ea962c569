"""Where the attacks on each training image start: at what the last one made of it."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from keras_rcl.vocabulary.phase import Adversarial

LEVELS = 127


class WarmStarts:
    """The last perturbation of each training image, a byte a value: a 127th of epsilon is a level.

    Attributes:
        variables: what a saved state needs; as large as the training images.
    """

    def __init__(self, count: int, image_shape: tuple[int, ...], epsilon: float):
        self.epsilon = epsilon
        self.levels = tf.Variable(tf.zeros((count, *image_shape), tf.int8), trainable=False)
        self.warm = tf.Variable(False, trainable=False)
        self.variables = [self.levels, self.warm]

    def __call__(self, attacked: Callable, view: Adversarial, images, labels, indices):
        """The images [N, H, W, C] under attack, kept for the next time, and the share of zero gradients of each [N].

        Args:
            attacked: (attack, images, labels, and where not its own its start) -> both.
            view: whose attack, and `warm_steps`.
            images: [N, H, W, C].
            labels: [N].
            indices: [N], of the training images that they are.
        """
        last = tf.cast(tf.gather(self.levels, indices), tf.float32) * (self.epsilon / LEVELS)
        warm = dataclasses.replace(view.attack, num_steps=view.warm_steps)
        x_adv, zeros = tf.cond(
            self.warm,
            lambda: attacked(warm, images, labels, tf.clip_by_value(images + last, 0.0, 1.0)),
            lambda: attacked(view.attack, images, labels),
        )
        levels = tf.cast(tf.round((x_adv - images) * (LEVELS / self.epsilon)), tf.int8)
        self.levels.scatter_update(tf.IndexedSlices(levels, indices))
        return x_adv, zeros
