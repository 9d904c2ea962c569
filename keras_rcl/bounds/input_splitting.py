"""Branch and bound that splits boxes of inputs: faster than splitting ReLUs where a network has few inputs.

Each box is bounded by CROWN, with bounds of its own before every ReLU. A box in which a condition is still open is
halved along the input whose width changes the open bounds most.

Sources: Wang et al. 2018, "Formal security analysis of neural networks using symbolic intervals"; Xu et al. 2021,
"Fast and complete: enabling complete verification with rapid and massively parallel incomplete verifiers".
"""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_rcl.bounds.beta_crown import Outcome
from keras_rcl.bounds.crown import LARGEST_CHUNK, LinearForms, crown_intervals, lower_bounds
from keras_rcl.bounds.input_sets import Interval, outward
from keras_rcl.bounds.interval import forward
from keras_rcl.bounds.properties import Condition
from keras_rcl.folding.fold import Step

LEAST_WEIGHT = 0.1
"""The least share of the largest coefficient that an input counts with.

A coefficient is 0 where a ReLU's lower line is, although the ReLU depends on the input.
"""


class InputSplitting:
    """Decides conditions of one box by splitting it.

    Args:
        steps: a folded network with weights of the dtype, whose last step is a vector.
        dtype: of the bounds.
        batch_size: the largest number of boxes that are bounded at once.

    References:
        Wang et al. 2018; Xu et al. 2021 (see the module).
    """

    def __init__(self, steps: Sequence[Step], *, dtype: str = "float64", batch_size: int = 512):
        self._steps, self._dtype, self._batch_size = list(steps), dtype, batch_size
        box = tf.TensorSpec([None, *steps[0].shape], dtype)
        functions = tf.TensorSpec([None, steps[-1].shape[0] + 1], dtype)
        self._bounds = tf.function(self._bounded, autograph=False, input_signature=[box, box, functions])

    def decide(
        self, conditions: Sequence[Condition], *, deadline: float, check: Callable[[np.ndarray], np.ndarray | None]
    ) -> Outcome:
        """Decide whether one of some conditions of the same box can be satisfied.

        Args:
            conditions: each with at least one constraint.
            deadline: when to stop, on the clock `time.monotonic`.
            check: an input at which a condition seems to be satisfied -> a confirmed one, or None.

        Returns:
            The outcome; `safe` is True if no condition can be satisfied, None if the deadline was reached or a box is
            too narrow to be halved.
        """
        started, boxes = time.monotonic(), 0
        functions = np.concatenate([np.column_stack([c.rows, c.offsets]) for c in conditions]).astype(self._dtype)
        owner = np.repeat(np.arange(len(conditions)), [len(c.offsets) for c in conditions])
        of = owner == np.arange(len(conditions))[:, None]  # bool [J, R]
        low, high = (v[None] for v in outward(conditions[0].lower, conditions[0].upper, self._dtype))
        rows = len(functions) * max(math.prod(step.shape) for step in self._steps)
        batch_size = min(self._batch_size, max(1, LARGEST_CHUNK // rows))
        still_open, lowest = np.full((1, len(conditions)), True), np.full(1, -np.inf)
        proved_min = np.inf
        while len(low):
            if time.monotonic() > deadline:
                return Outcome(None, float(lowest.min()), None, boxes, time.monotonic() - started)
            order = np.argsort(lowest, kind="stable")
            now, later = order[:batch_size], order[batch_size:]
            bounds, coefficients, points, values = (np.asarray(v) for v in self._bounds(low[now], high[now], functions))
            boxes += len(now)
            found = _satisfied(points, values, of, check)
            if found is not None:
                return Outcome(False, float(bounds.min()), found, boxes, time.monotonic() - started)
            best = np.where(of, bounds[:, None, :], -np.inf).max(axis=2)  # [B, J], of each condition's constraints
            open_now = still_open[now] & ~(best > 0)  # what is not a number proves nothing
            proved_min = min(proved_min, best[still_open[now] & (best > 0)].min(initial=np.inf))
            left = open_now.any(axis=1)
            weight = np.abs(coefficients) * (open_now @ of)[:, :, *(None,) * (low.ndim - 1)]
            parts = _halves(low[now][left], high[now][left], weight[left].sum(axis=1))
            if parts is None:
                return Outcome(None, float(best.min()), None, boxes, time.monotonic() - started)
            below = np.where(open_now, best, np.inf).min(axis=1)[left]
            low, high = (np.concatenate([v[later], part]) for v, part in zip((low, high), parts, strict=True))
            still_open = np.concatenate([still_open[later], np.tile(open_now[left], (2, 1))])
            lowest = np.concatenate([lowest[later], np.tile(below, 2)])
        return Outcome(True, float(proved_min), None, boxes, time.monotonic() - started)

    def _bounded(self, low, high, functions):
        """Of boxes [B, *shape]: bounds [B, R], their coefficients [B, R, *shape], points [B, R + 1, *shape] and values.

        The points are the center and the corner that each bound is attained at; the values are [B, R + 1, R].
        """
        count, rows, shape = tf.shape(low)[0], tf.shape(functions)[0], self._steps[0].shape
        intervals, arriving = crown_intervals(self._steps, Interval(low, high)), {}
        tiled = LinearForms(tf.tile(functions[:, :-1], [count, 1]))
        bounds = lower_bounds(self._steps, tiled, intervals, arriving=arriving)
        bounds = tf.reshape(bounds, (count, rows)) + functions[:, -1]
        coefficients = tf.reshape(arriving[0].coefficients, (count, rows, *shape))
        corners = tf.where(coefficients > 0, low[:, None], high[:, None])
        points = tf.concat([((low + high) / 2)[:, None], corners], axis=1)
        outputs = forward(self._steps, tf.reshape(points, (-1, *shape)))
        values = tf.matmul(outputs, functions[:, :-1], transpose_b=True) + functions[:, -1]
        return bounds, coefficients, points, tf.reshape(values, (count, rows + 1, rows))


def _satisfied(points, values, of: np.ndarray, check: Callable) -> np.ndarray | None:
    """A confirmed point among [B, P, *shape] with values [B, P, R] of the constraints `of` conditions, or None."""
    largest = np.where(of, values[:, :, None, :], -np.inf).max(axis=3).min(axis=2)  # [B, P]
    for box, point in np.argwhere(largest <= 0)[:8]:
        if (found := check(points[box, point])) is not None:
            return found
    return None


def _halves(low, high, weight):
    """Both halves of boxes [B, *shape], first all left ones, along the input with the largest weight times width."""
    shape, count = low.shape, len(low)
    low, high, weight = (values.reshape(count, math.prod(shape[1:])) for values in (low, high, weight))
    width = high - low
    largest = weight.max(axis=1, keepdims=True, initial=0)
    change = np.maximum(weight, LEAST_WEIGHT * np.where(largest > 0, largest, 1)) * width
    axis, at = np.argmax(change, axis=1), np.arange(count)
    middle = (low[at, axis] + high[at, axis]) / 2
    if np.any((middle <= low[at, axis]) | (middle >= high[at, axis])):
        return None  # too narrow to be halved
    left, right = high.copy(), low.copy()
    left[at, axis] = right[at, axis] = middle
    return np.concatenate([low, right]).reshape(-1, *shape[1:]), np.concatenate([left, high]).reshape(-1, *shape[1:])
