"""Keras optimizers from their descriptions."""

import keras

from keras_rcl.vocabulary.phase import Optimizer

WARMUP_START = 1 / 25
"""The share of the learning rate at which a warm-up begins."""


class Later(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of which some steps are over.

    Args:
        schedule: The whole schedule.
        steps: How many of its steps are over.
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, steps: int):
        self._schedule, self._steps = schedule, steps

    def __call__(self, step):
        return self._schedule(step + self._steps)

    def get_config(self):
        raise NotImplementedError("a schedule of a training is not stored; its phase is")


def _cosine(spec: Optimizer, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """A cosine from the learning rate to its `final_share`, after a linear warm-up if the spec has one."""
    warmup = round(spec.warmup_share * steps)
    rising = {"warmup_target": spec.learning_rate, "warmup_steps": warmup} if warmup else {}
    start = spec.learning_rate * (WARMUP_START if warmup else 1)
    return keras.optimizers.schedules.CosineDecay(start, max(1, steps - warmup), alpha=spec.final_share, **rising)


def make_optimizer(spec: Optimizer, decay_steps: int, steps_before: int = 0) -> keras.optimizers.Optimizer:
    """Make the Keras optimizer that a spec describes.

    Args:
        spec: Adam or SGD.
        decay_steps: How many steps its schedule spans.
        steps_before: How many of these are over.
    """
    rate = spec.learning_rate
    if spec.schedule == "cosine":
        rate = _cosine(spec, decay_steps)
    if spec.schedule == "steps":
        ends = [decay_steps * sevenths // 7 for sevenths in (5, 6)]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(ends, [rate, rate / 5, rate / 25])
    if steps_before and not isinstance(rate, float):
        rate = Later(rate, steps_before)
    decay = spec.weight_decay or None
    if spec.name == "adam":
        return keras.optimizers.Adam(rate, epsilon=spec.epsilon, weight_decay=decay, global_clipnorm=spec.clip_norm)
    # Papers add weight_decay * w to the gradient, so that momentum multiplies it by 1 / (1 - momentum) in the long run;
    # Keras subtracts it from the weight directly.
    return keras.optimizers.SGD(rate, momentum=spec.momentum, weight_decay=decay and decay / (1 - spec.momentum))
