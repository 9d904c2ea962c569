"""Keras optimizers from their descriptions."""

import keras

from keras_rcl.vocabulary.phase import Optimizer


def make_optimizer(spec: Optimizer, decay_steps: int) -> keras.optimizers.Optimizer:
    """Make the Keras optimizer that a spec describes.

    Args:
        spec: Adam or SGD.
        decay_steps: How many steps its schedule spans.
    """
    rate = spec.learning_rate
    if spec.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, max(1, decay_steps))
    if spec.schedule == "steps":
        ends = [decay_steps * sevenths // 7 for sevenths in (5, 6)]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(ends, [rate, rate / 5, rate / 25])
    decay = spec.weight_decay or None
    if spec.name == "adam":
        return keras.optimizers.Adam(rate, epsilon=spec.epsilon, weight_decay=decay, global_clipnorm=spec.clip_norm)
    # Papers add weight_decay * w to the gradient, so that momentum multiplies it by 1 / (1 - momentum) in the long run;
    # Keras subtracts it from the weight directly.
    return keras.optimizers.SGD(rate, momentum=spec.momentum, weight_decay=decay and decay / (1 - spec.momentum))
