"""Adversarial weight perturbation: the gradient of a step is taken where the weights are a little worse."""

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from keras_rcl.vocabulary.phase import WeightPerturbation


class WeightAscent:
    """v_l = gamma * ||w_l|| * g_l / ||g_l||, g = grad_w loss(w), for each kernel w_l that trains; Euclidean norms.

    The step of the optimizer is w <- w - update(grad loss(w + v)). No variable ever holds w + v: a forward pass reads
    it in their place, so that nothing is to be restored. As in the authors' code biases and BatchNorm are not
    perturbed, and the pass that finds v does not move BatchNorm's statistics, while the pass at w + v does. There the
    weight decay is of w + v; here of w.

    Args:
        network: the kernels of which are perturbed, those that train when a step is traced.
        word: gamma, and the epochs before which v is 0.
        steps_per_epoch: of the training, by which these are counted.

    Source: Wu, Xia and Wang 2020, eqs. 8 to 10, with one step of ascent.
    """

    def __init__(self, network: keras.Model, word: WeightPerturbation, steps_per_epoch: int):
        self._network, self._gamma = network, word.gamma
        self._first_step = word.warmup_epochs * steps_per_epoch
        self._weights = []  # (kernel, its value): within a layer Keras may give the value in half precision

    def __call__(self, loss_fn: Callable[[], tf.Tensor], step: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """v, one a kernel, after so many steps of the optimizer.

        Args:
            loss_fn: () -> the scalar loss at the weights as they are, in training mode; its scale does not matter.
            step: the optimizer's own count, on which alone it depends whether v is 0.
        """
        kernels = [variable for variable in self._network.trainable_variables if len(variable.shape) > 1]
        weights = [kernel.value for kernel in kernels]
        self._weights = list(zip(kernels, weights, strict=True))

        def ascend():
            with tf.GradientTape() as tape, keras.StatelessScope():  # what BatchNorm would keep is thrown away
                loss = loss_fn()
            gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
            return tuple(self._along(*pair) for pair in zip(weights, gradients, strict=True))

        if not self._first_step:
            return ascend()
        return tf.cond(step >= self._first_step, ascend, lambda: tuple(map(tf.zeros_like, weights)))

    @contextlib.contextmanager
    def perturbed(self, perturbation: tuple[tf.Tensor, ...]) -> Iterator[None]:
        """Within it the network is that of w + v, differentiable in w; the statistics that it moves are kept."""
        moved = [(kernel, weight + v) for (kernel, weight), v in zip(self._weights, perturbation, strict=True)]
        with keras.StatelessScope(state_mapping=moved) as scope:
            yield
        for variable in self._network.non_trainable_variables:
            if (value := scope.get_current_value(variable)) is not None:
                variable.assign(value)

    def _along(self, weight: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """v of one kernel; 0 where there is no direction: a gradient that is 0, or overflowed under loss scaling."""
        length = tf.norm(gradient)
        usable = tf.math.is_finite(length) & (length > 0)
        return tf.where(usable, self._gamma * tf.norm(weight) * gradient / length, 0.0)
