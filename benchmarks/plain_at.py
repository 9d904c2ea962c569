"""Adversarial training (Madry et al. 2018) as a plain loop, without tricks: what `RobustModel` is compared with.

PGD from a random start, through the model in inference mode; cross-entropy on the examples; Adam.
"""

import keras
import tensorflow as tf


class PlainAT:
    """Trains a Keras model that gives logits of images in [0, 1].

    Args:
        model: Trained in place.
        epsilon: The L-inf radius.
        step_size: Of PGD.
        num_steps: Of PGD.
        learning_rate: Of Adam.
    """

    def __init__(self, model: keras.Model, epsilon: float, step_size: float, num_steps: int, learning_rate: float):
        self.model, self.epsilon, self.step_size, self.num_steps = model, epsilon, step_size, num_steps
        self.optimizer = keras.optimizers.Adam(learning_rate)
        self.cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def attack(self, x, y):
        """PGD."""
        x_adv = x + tf.random.uniform(tf.shape(x), -self.epsilon, self.epsilon)
        x_adv = tf.clip_by_value(x_adv, 0.0, 1.0)
        for _ in tf.range(self.num_steps):
            with tf.GradientTape() as tape:
                tape.watch(x_adv)
                loss = self.cross_entropy(y, self.model(x_adv, training=False))
            x_adv = x_adv + self.step_size * tf.sign(tape.gradient(loss, x_adv))
            x_adv = tf.clip_by_value(x_adv, x - self.epsilon, x + self.epsilon)
            x_adv = tf.clip_by_value(x_adv, 0.0, 1.0)
        return x_adv

    @tf.function(reduce_retracing=True)
    def step(self, x, y):
        """One step on a batch; returns the loss."""
        x_adv = self.attack(x, y)
        with tf.GradientTape() as tape:
            loss = self.cross_entropy(y, self.model(x_adv, training=True))
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    def epoch(self, dataset: tf.data.Dataset) -> float:
        """One pass over batches (x, y); returns the mean loss."""
        return float(tf.reduce_mean([self.step(x, y) for x, y in dataset]))
