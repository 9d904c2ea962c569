"""alpha-CROWN: the slopes of the lines below each ReLU, chosen so that the bound is as high as it gets."""

from collections.abc import Sequence

import tensorflow as tf

from keras_rcl.bounds.fold import Step
from keras_rcl.bounds.interval import Interval
from keras_rcl.bounds.linear_relaxation import Rows, lower_bounds

_DECAYS, _SMALL = (0.9, 0.999), 1e-8


def optimized_lower_bounds(
    steps: Sequence[Step],
    rows: Rows,
    intervals: Sequence[Interval],
    *,
    iterations: int = 20,
    learning_rate: float = 0.5,
    decay: float = 0.98,
):
    """`lower_bounds` with slopes of its own for each row, found by projected gradient ascent.

    Any slopes in [0, 1] give a sound bound, so the best of all iterations is taken for each row; the first one has
    CROWN's slopes.

    Args:
        steps: as of `lower_bounds`.
        rows: likewise.
        intervals: likewise.
        iterations: how many slopes are tried; each costs about three times what `lower_bounds` does.
        learning_rate: of Adam.
        decay: what it is multiplied by after each iteration.

    Source: Xu et al. 2021, "Fast and complete: enabling complete verification with rapid and massively parallel
    incomplete verifiers"; numbers of their published code.
    """
    found = {}
    best = lower_bounds(steps, rows, intervals, used=found)
    numbers, slopes = list(found), list(found.values())
    if not slopes:
        return best

    def climb(iteration, best, slopes, mean, square):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(slopes)
            bound = lower_bounds(steps, rows, intervals, slopes=dict(zip(numbers, slopes, strict=True)))
        gradients = tape.gradient(bound, slopes)
        mean, square = (
            [decay * old + (1 - decay) * g**power for old, g in zip(moment, gradients, strict=True)]
            for power, decay, moment in ((1, _DECAYS[0], mean), (2, _DECAYS[1], square))
        )
        time = tf.cast(iteration + 1, best.dtype)
        first, second = (1 - tf.cast(rate, best.dtype) ** time for rate in _DECAYS)
        rate = learning_rate * decay ** (time - 1)
        slopes = [
            tf.clip_by_value(old + rate * (m / first) / (tf.sqrt(s / second) + _SMALL), 0.0, 1.0)
            for old, m, s in zip(slopes, mean, square, strict=True)
        ]
        return iteration + 1, tf.maximum(best, bound), slopes, mean, square

    zeros = [tf.zeros_like(values) for values in slopes]
    _, best, *_ = tf.while_loop(
        lambda iteration, *_: iteration < iterations,
        climb,
        (0, best, slopes, zeros, zeros),
        maximum_iterations=iterations,
    )
    return best
