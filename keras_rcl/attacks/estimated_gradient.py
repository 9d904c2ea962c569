"""A classifier with a gradient that is estimated from its outputs, for models whose own gradient misleads."""

from collections.abc import Callable

import tensorflow as tf

from keras_rcl.attacks.craft import example_seeds
from keras_rcl.attacks.norms import per_example, uniform
from keras_rcl.runtime.gradients import custom_gradient


def with_estimated_gradient(logits_fn: Callable, radius: float, draws: int, seed: int = 0) -> Callable:
    """The same function, whose gradient is measured by finite differences along random directions.

        g = 1 / m sum_i  <v, f(x + r u_i) - f(x - r u_i)> / (2 r)  u_i,   u_i uniform in {-1, 1}^d

    for the gradient v with respect to the logits. The gradient of f itself is not used, so that layers without one,
    or with one that points elsewhere, are seen through; r averages over steps and noise that are smaller than r. A
    gradient attack through it is SPSA.

    Args:
        logits_fn: images [N, H, W, C] in [0, 1] -> float32 logits [N, K]; it need not be differentiable.
        radius: r, in pixels. The images at which the function is read are clipped to [0, 1].
        draws: m, the number of directions; each takes two forward passes.
        seed: the directions depend on it and on the image alone.

    Returns:
        images -> logits.

    References:
        Uesato et al. 2018, "Adversarial risk and the dangers of evaluating against weak attacks"; Spall 1992 (SPSA).
    """

    @custom_gradient
    def measured(x, outputs):
        def backward(upstream):
            seeds = example_seeds(x, seed)

            def add(number, total):
                signs = tf.sign(uniform(x.shape[1:], seeds + tf.cast(number, tf.int64)) - 0.5)
                ahead, behind = (logits_fn(tf.clip_by_value(x + way * signs, 0.0, 1.0)) for way in (radius, -radius))
                slope = tf.reduce_sum(upstream * (ahead - behind), axis=1) / (2.0 * radius)
                return number + 1, total + per_example(slope, x) * signs

            _, total = tf.while_loop(
                lambda number, _: number < draws, add, (0, tf.zeros_like(x)), maximum_iterations=draws
            )
            return total / draws, None

        return tf.identity(outputs), backward

    return lambda x: measured(x, tf.stop_gradient(logits_fn(x)))
