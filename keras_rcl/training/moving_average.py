"""A moving average of a network's weights and BatchNorm statistics over the steps of a phase."""

import keras
import tensorflow as tf


class MovingAverage:
    """An exponential moving average with a smaller decay in the first steps.

    Formula:

        average <- d_t * average + (1 - d_t) * network,  d_t = min(decay, (1 + t) / (10 + t)) at step t

    As with `tf.train.ExponentialMovingAverage`, the smaller decay of the first steps forgets where the network began.

    Args:
        network: Its variables are averaged.
        decay: Below 1.

    Attributes:
        variables: The averages; while the average is shown, the weights of the network instead.
        shown: Whether the network has the averaged weights.
    """

    def __init__(self, network: keras.Model, decay: float):
        self._decay = decay
        self._variables = tuple(network.weights)
        self.variables = tuple(
            keras.Variable(tf.identity(variable.value), dtype=variable.dtype, trainable=False, aggregation="mean")
            for variable in self._variables
        )
        self.shown = False

    def begin(self) -> None:
        """Start with the current weights of the network."""
        self.shown = False
        for variable, average in zip(self._variables, self.variables, strict=True):
            average.assign(variable.value)

    def update(self, step) -> None:
        """Update the average after a step; part of the traced step.

        Args:
            step: How many steps are done.
        """
        step = tf.cast(step, tf.float32)
        rest = 1.0 - tf.minimum(self._decay, (1.0 + step) / (10.0 + step))
        for variable, average in zip(self._variables, self.variables, strict=True):
            average.assign_add(rest * (tf.convert_to_tensor(variable) - average.value))

    def show(self, shown: bool) -> None:
        """Exchange the weights of the network and the average, unless the network has the requested ones."""
        if shown == self.shown:
            return
        self.shown = shown
        for variable, average in zip(self._variables, self.variables, strict=True):
            held = tf.identity(variable.value)
            variable.assign(average.value)
            average.assign(held)
