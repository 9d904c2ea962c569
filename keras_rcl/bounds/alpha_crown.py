"""alpha-CROWN: the slopes of the lines below each ReLU, and the tangents of curves, chosen to maximise the bound."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_rcl.bounds.crown import LinearForms, first_slopes, lower_bounds
from keras_rcl.bounds.input_sets import Interval
from keras_rcl.bounds.rounding import Rounded
from keras_rcl.folding.fold import Step

_DECAYS, _SMALL = (0.9, 0.999), 1e-8


def optimized_lower_bounds(
    steps: Sequence[Step],
    rows: LinearForms,
    intervals: Sequence[Interval],
    *,
    iterations: int = 20,
    learning_rate: float = 0.5,
    decay: float = 0.98,
    in_time: Callable = lambda: True,
):
    """`lower_bounds` with separate slopes per row, found by projected gradient ascent.

        max over slopes in [0, 1] of lower_bounds(slopes)

    Any slopes in [0, 1] give a sound bound; those of a sigmoid or tanh are the places of tangents. So the best of all
    iterations is taken for each row; the first iteration has CROWN's slopes.

    Args:
        steps: a folded network, as for `lower_bounds`.
        rows: functions of the last step's values, as for `lower_bounds`.
        intervals: as for `lower_bounds`.
        iterations: number of slopes that are tried; each costs about three times as much as `lower_bounds`.
        learning_rate: of Adam.
        decay: factor of the learning rate after each iteration.
        in_time: a function that returns whether there is time for another iteration.

    Returns:
        [R], none below that of `lower_bounds`.

    References:
        Xu et al. 2021, "Fast and complete: enabling complete verification with rapid and massively parallel incomplete
        verifiers"; the hyper-parameters are those of their published code.
    """
    arriving = {}
    first = best = lower_bounds(steps, rows, intervals, arriving=arriving)
    numbers = [number for number in arriving if number]
    if not numbers:
        return best
    start = [first_slopes(steps[n].operation, intervals[steps[n].inputs[0]], arriving[n].gather) for n in numbers]

    def bound(slopes, intervals=tuple(x.plain for x in intervals)):
        return lower_bounds(steps, rows, intervals, slopes=dict(zip(numbers, slopes, strict=True)))

    best, slopes = ascend(
        bound,
        best,
        start,
        [1.0] * len(start),
        iterations=iterations,
        learning_rate=learning_rate,
        decay=decay,
        in_time=in_time,
    )
    if isinstance(intervals[0], Rounded):  # the ascent is that of rounded bounds
        return tf.maximum(first, bound(slopes, intervals))
    return best


# Each of the keyword arguments is a number of the ascent.
def ascend(
    bound: Callable,
    best,
    variables: Sequence,
    limits: Sequence[float],
    *,
    iterations: int,
    learning_rate: float,
    decay: float,
    in_time: Callable = lambda: True,
):
    """Maximise a bound by Adam, each row separately.

    Args:
        bound: variables -> [R].
        best: [R], the best known value of each row.
        variables: tensors; they are clipped to [0, limit].
        limits: one limit per tensor.
        iterations: number of steps.
        learning_rate: of the first step.
        decay: factor of the learning rate after each step.
        in_time: a function that returns whether there is time for another step.

    Returns:
        The largest value of each row that was found, [R], and the variables at the end.
    """

    def climb(iteration, best, variables, mean, square):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            values = bound(variables)
        gradients = tape.gradient(values, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        mean, square = (
            [rate * old + (1 - rate) * g**power for old, g in zip(moment, gradients, strict=True)]
            for power, rate, moment in ((1, _DECAYS[0], mean), (2, _DECAYS[1], square))
        )
        time = tf.cast(iteration + 1, best.dtype)
        first, second = (1 - tf.cast(rate, best.dtype) ** time for rate in _DECAYS)
        rate = learning_rate * decay ** (time - 1)
        variables = [
            tf.clip_by_value(old + rate * (m / first) / (tf.sqrt(s / second) + _SMALL), 0.0, limit)
            for old, m, s, limit in zip(variables, mean, square, limits, strict=True)
        ]
        return iteration + 1, tf.maximum(best, values), variables, mean, square

    zeros = [tf.zeros_like(values) for values in variables]
    _, best, variables, *_ = tf.while_loop(
        lambda iteration, *_: tf.logical_and(iteration < iterations, in_time()),
        climb,
        (0, best, list(variables), zeros, zeros),
        maximum_iterations=iterations,
    )
    return best, variables
