"""Numbers that change during a phase, as functions of how many of its epochs are done."""

from keras import ops

from keras_rcl.vocabulary.phase import Ramp

MIDDLE, POWER = 0.25, 4
"""The share of a smooth ramp after which it is linear, and its power before."""


def value_at(number: float | Ramp, epochs):
    """The value of a ramp, or a constant number.

    Args:
        number: A ramp or a constant.
        epochs: How many epochs of the phase are done: a scalar tensor, fractions included.

    Returns:
        A float32 scalar tensor, or the constant.
    """
    if not isinstance(number, Ramp):
        return number
    done = ops.cast(epochs, "float32") - number.after
    done = ops.clip(done / number.epochs, 0.0, 1.0) if number.epochs else ops.cast(done >= 0, "float32")
    return number.start + (number.stop - number.start) * (_smooth(done) if number.shape == "smooth" else done)


def _smooth(done):
    """a u^4 up to the middle m, then the tangent from there to 1: a = 1 / (4 (1 - m) m^3 + m^4)."""
    scale = 1 / (POWER * (1 - MIDDLE) * MIDDLE ** (POWER - 1) + MIDDLE**POWER)
    slope = scale * POWER * MIDDLE ** (POWER - 1)
    return ops.where(done < MIDDLE, scale * done**POWER, 1 - slope * (1 - done))
