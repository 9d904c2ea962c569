"""CLAF's Algorithm 1 (Rahamim and Naeh 2022), second stage, compiled and without tricks: what ours is timed against.

It reads the same batches as ours and starts its attacks at the images, so that both have the same to compute.
"""

from collections.abc import Iterable

import keras
import tensorflow as tf

from keras_rcl.methods import CLAFS
from keras_rcl.training.optimizers import make_optimizer


class PlainCLAF:
    """One network's inner classifier epochs and epochs of f and g.

    Args:
        network: two-headed; its encoder is f, its projector g, its classifier c.
        recipe: the hyper-parameters.
    """

    def __init__(self, network: keras.Model, recipe: CLAFS):
        self.recipe = recipe
        self.normalize = network.get_layer("normalize")
        self.f, self.g, self.c = (network.get_layer(name) for name in ("encoder", "projector", "classifier"))
        self.features, self.head = make_optimizer(recipe.optimizer, 1), make_optimizer(recipe.inner_optimizer, 1)
        self.cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def logits(self, x):
        return self.c(self.f(self.normalize(x), training=False))

    def attack(self, x, y):
        """PGD through c(f(x))."""
        attack, x_adv = self.recipe.attack, x
        for _ in tf.range(attack.num_steps):
            with tf.GradientTape() as tape:
                tape.watch(x_adv)
                loss = self.cross_entropy(y, self.logits(x_adv))
            x_adv = x_adv + attack.step_size * tf.sign(tape.gradient(loss, x_adv))
            x_adv = tf.clip_by_value(x_adv, x - attack.epsilon, x + attack.epsilon)
            x_adv = tf.clip_by_value(x_adv, 0.0, 1.0)
        return x_adv

    @tf.function
    def head_step(self, x, y):
        """c learns from adversarial images of the frozen f."""
        x_adv = self.attack(x, y)
        with tf.GradientTape() as tape:
            loss = self.cross_entropy(y, self.logits(x_adv))
        variables = self.c.trainable_variables
        self.head.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    @tf.function
    def feature_step(self, first, second, x, y):
        """f and g learn from two crops and an adversarial image, all of them positives of their class (eq. 2)."""
        stacked, labels = tf.concat([first, second, self.attack(x, y)], 0), tf.concat([y, y, y], 0)
        variables = self.f.trainable_variables + self.g.trainable_variables
        with tf.GradientTape() as tape:
            z = tf.math.l2_normalize(self.g(self.f(self.normalize(stacked), training=True)), axis=1)
            similarities = z @ tf.transpose(z) / self.recipe.temperature
            others = 1.0 - tf.eye(len(labels))
            positives = others * tf.cast(labels[:, None] == labels[None, :], tf.float32)
            similarities -= tf.stop_gradient(tf.reduce_max(similarities, axis=1, keepdims=True))
            log_sums = tf.math.log(tf.reduce_sum(others * tf.exp(similarities), axis=1, keepdims=True))
            mean = tf.reduce_sum(positives * (similarities - log_sums), axis=1) / tf.reduce_sum(positives, axis=1)
            loss = -tf.reduce_mean(mean)
        self.features.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    def epoch(self, head_epochs: Iterable[Iterable], batches: Iterable) -> float:
        """Inner epochs of batches (x, y), then an epoch of (first, second, x, y); returns the last loss."""
        self.f.trainable = self.g.trainable = self.c.trainable = True
        for head_batches in head_epochs:
            for x, y in head_batches:
                self.head_step(x, y)
        for batch in batches:
            loss = self.feature_step(*batch)
        return float(loss)
