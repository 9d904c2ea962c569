"""Adversarial weight perturbation: the gradient of a step is taken at slightly worse weights."""

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from keras_rcl.vocabulary.phase import WeightPerturbation


class WeightAscent:
    """Computes a perturbation of each kernel that increases the loss.

    Formula:

        v_l = gamma * ||w_l|| * g_l / ||g_l||,  g = grad_w loss(w),  Euclidean norms

    The step of the optimizer is then w <- w - update(grad loss(w + v)). No variable ever holds w + v: a forward pass
    reads it in their place, so that nothing has to be restored. As in the authors' code, biases and BatchNorm are not
    perturbed; the pass that computes v does not move BatchNorm's statistics, and the pass at w + v does. Their weight
    decay is of w + v, ours of w.

    Args:
        network: Its kernels are perturbed: those that are trainable when a step is traced.
        spec: gamma, and the number of epochs during which v is 0.

    References:
        Wu, Xia and Wang 2020, "Adversarial weight perturbation helps robust generalization", eqs. 8 to 10, with one
        step of ascent.
    """

    def __init__(self, network: keras.Model, spec: WeightPerturbation):
        self._network, self._spec = network, spec
        # Pairs of a kernel and its value; within a layer Keras may give the value in half precision.
        self._weights: list[tuple[keras.Variable, tf.Tensor]] = []

    def __call__(self, loss_fn: Callable[[], tf.Tensor], epochs: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Compute v, one array per kernel.

        Args:
            loss_fn: Returns the scalar loss at the current weights, in training mode; its scale does not matter.
            epochs: How many epochs of the phase are done, which alone decides whether v is 0.
        """
        kernels = [variable for variable in self._network.trainable_variables if len(variable.shape) > 1]
        weights = [kernel.value for kernel in kernels]
        self._weights = list(zip(kernels, weights, strict=True))

        def ascend():
            with tf.GradientTape() as tape, keras.StatelessScope():  # discards the statistics that BatchNorm would keep
                loss = loss_fn()
            gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
            return tuple(self._along(*pair) for pair in zip(weights, gradients, strict=True))

        if not self._spec.warmup_epochs:
            return ascend()
        return tf.cond(epochs >= self._spec.warmup_epochs, ascend, lambda: tuple(map(tf.zeros_like, weights)))

    @contextlib.contextmanager
    def perturbed(self, perturbation: tuple[tf.Tensor, ...]) -> Iterator[None]:
        """Within this context the network computes with w + v, differentiable in w; moved statistics are kept."""
        moved = [(kernel, weight + v) for (kernel, weight), v in zip(self._weights, perturbation, strict=True)]
        with keras.StatelessScope(state_mapping=moved) as scope:
            yield
        for variable in self._network.non_trainable_variables:
            if (value := scope.get_current_value(variable)) is not None:
                variable.assign(value)

    def _along(self, weight: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """v of one kernel; 0 if the gradient is 0, or overflowed under loss scaling."""
        length = tf.norm(gradient)
        usable = tf.math.is_finite(length) & (length > 0)
        return tf.where(usable, self._spec.gamma * tf.norm(weight) * gradient / length, 0.0)
