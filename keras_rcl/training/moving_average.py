"""A moving average of a network's weights and BatchNorm statistics over the steps of a phase."""

import keras
import tensorflow as tf


class MovingAverage:
    """average <- d_t * average + (1 - d_t) * network, d_t = min(decay, (1 + t) / (10 + t)) at step t.

    The smaller decay of the first steps, as of `tf.train.ExponentialMovingAverage`, forgets where the network began.

    Args:
        network: whose variables are averaged.
        decay: below 1.

    Attributes:
        variables: the averages, or the network's own weights while those are put aside.
        shown: whether they are.
    """

    def __init__(self, network: keras.Model, decay: float):
        self._decay = decay
        self._variables = tuple(network.weights)
        self.variables = tuple(tf.Variable(variable.value, trainable=False) for variable in self._variables)
        self.shown = False

    def begin(self) -> None:
        """Start from the network as it is now."""
        self.shown = False
        for variable, average in zip(self._variables, self.variables, strict=True):
            average.assign(variable.value)

    def update(self, step) -> None:
        """Take in the network after so many steps; part of the traced step."""
        step = tf.cast(step, tf.float32)
        rest = 1.0 - tf.minimum(self._decay, (1.0 + step) / (10.0 + step))
        for variable, average in zip(self._variables, self.variables, strict=True):
            average.assign_add(rest * (tf.convert_to_tensor(variable) - average))

    def show(self, shown: bool) -> None:
        """Put the average into the network and the weights aside, or the weights back."""
        if shown == self.shown:
            return
        self.shown = shown
        for variable, average in zip(self._variables, self.variables, strict=True):
            held = tf.identity(variable.value)
            variable.assign(average)
            average.assign(held)
