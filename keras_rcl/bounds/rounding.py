"""Bounds that hold in real arithmetic: every bound is widened by a proven bound of its own rounding error.

With the unit roundoff u, a sum of n products that is computed in any order, with or without fused operations, is off by
at most

    gamma_n sum |a_i b_i|,    gamma_n = n u / (1 - n u)

(Higham 2002, section 3.1). CROWN replaces <a, z> for a step z = W x + b by <a', x> + c, where a' is what was computed
of W^T a. By how much this changes the function anywhere in the box is at most

    |<W^T a - a', x>| + |<a, b> - c|  <=  <|a|, error>,     error = gamma (|W| m + |b|),

if |x| <= m in the box. So one tensor `error` per step, found together with the intervals, bounds the rounding of any
linear function of the step's values that is replaced by one of its inputs' values. The same tensor covers

- intervals: W center + b -+ |W| radius is off by at most gamma (|W| m + |b|), for |center| + radius = m;
- a ReLU z: the products with slopes, and lines of rounded slope and intercept that are below the ReLU by a few u m;
- rounded weights: those of the steps are the nearest to weights of float64, which adds 1 to n;
- sums of two functions of the same step, and the sum of all constants.

The error itself is computed in floats, and is raised by a tenth. Underflow adds less than 1e-20 per step.

References:
    Higham 2002, "Accuracy and stability of numerical algorithms". Singh et al. 2018, "Fast and effective robustness
    certification" (bounds that are sound with respect to floats, by intervals).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_rcl.bounds.input_sets import Interval
from keras_rcl.errors import InvalidInputError
from keras_rcl.folding.fold import (
    Add,
    Conv,
    Dense,
    Max,
    Mean,
    Pad,
    PixelScale,
    ReLU,
    Reshape,
    Scale,
    SShaped,
    Step,
    fold,
    with_weights,
)

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
"""By dtype: the largest relative error of one operation that is rounded to nearest."""

FURTHER = 16
"""Roundings besides those of the sums: of center, radius, slopes, intercepts and weights."""

STEPS = 1000
"""The largest number of steps, whose constants are added up in float64."""

RAISED = 1.1
"""Covers the rounding of sums of errors, which have fewer than a million terms in float32."""

UNDERFLOW = 1e-20
"""Above what underflow can change of one step."""

EXACT = (ReLU, Max, Pad, Reshape)
"""Steps whose values are computed without rounding."""


@dataclass(frozen=True, eq=False)
class Rounded(Interval):
    """An interval that holds in real arithmetic, and the rounding error of linear functions.

    Attributes:
        error: [N, *shape]. Replacing <a, z> by what is computed of it one step back changes it by at most <|a|, error>.
    """

    error: Any

    @property
    def plain(self) -> Interval:
        """The same interval for bounds that hold up to rounding."""
        return Interval(self.lower, self.upper)

    def intersect(self, other: Interval) -> "Rounded":
        """The tighter of the two bounds on either side."""
        tighter = Interval.intersect(self, other)
        return Rounded(tighter.lower, tighter.upper, self.error)


def rounded_steps(network: keras.Model, dtype: str) -> list[Step]:
    """The steps of a network that is folded in float64, each weight rounded to a dtype.

    Raises:
        InvalidInputError: if a layer has no bounds, or a sigmoid or tanh, whose rounding error is not known.
    """
    steps = fold(network, dtype="float64")
    for step in steps:
        if isinstance(step.operation, SShaped):
            raise InvalidInputError(
                f"layer {step.path} has activation {step.operation.kind}, which has no sound bounds; hint: leave sound "
                "out"
            )
    return with_weights(steps, lambda weight: ops.cast(weight, dtype))


def rounded_box(images, epsilon, dtype: str) -> Rounded:
    """A box of floats that holds the ball around images [N, ...] cut to the pixel box, in real arithmetic.

    Args:
        images: pixels in [0, 1], of the dtype.
        epsilon: the radius, at most 1, or the float of the dtype that is nearest to it.
        dtype: of the bounds.
    """
    wider = epsilon + 4 * UNIT[dtype]
    lower, upper = ops.maximum(images - wider, 0.0), ops.minimum(images + wider, 1.0)
    return Rounded(lower, upper, error_of_input(Interval(lower, upper), dtype, math.prod(images.shape[1:])))


def error_of_input(box: Interval, dtype: str, size: int):
    """The `error` of a box of inputs of a size."""
    return _error(_magnitude(box), 0, size, dtype)


def widened(step: Step, found: Interval, inputs: Sequence[Interval], dtype: str) -> Rounded:
    """One step's bounds as they were computed, widened so that they hold in real arithmetic.

    Args:
        step: of a folded network.
        found: the bounds of the step.
        inputs: the bounds of what it reads.
        dtype: of the bounds.
    """
    largest, count = MAGNITUDES[type(step.operation)](step, found, *map(_magnitude, inputs))
    error = _error(largest, count, math.prod(step.shape), dtype)
    if isinstance(step.operation, EXACT):
        return Rounded(found.lower, found.upper, error)
    return Rounded(found.lower - 2 * error, found.upper + 2 * error, error)


def gamma(count: int, dtype: str) -> float:
    """n u / (1 - n u)."""
    return count * UNIT[dtype] / (1 - count * UNIT[dtype])


def lowered(values, dtype: str):
    """Values of float64 as those of a dtype that are not larger."""
    values = ops.cast(values, dtype)
    return values - 4 * UNIT[dtype] * ops.abs(values) - UNDERFLOW


def _error(largest, count: int, size: int, dtype: str):
    """The error of sums of `count` products; of float64, whose constants are summed in float64 as well, of all sums."""
    count += FURTHER + (size + STEPS if dtype == "float64" else 0)
    return RAISED * gamma(count, dtype) * largest + UNDERFLOW


def _magnitude(x: Interval):
    """max |x|."""
    return ops.maximum(ops.abs(x.lower), ops.abs(x.upper))


def _conv(step: Step, found: Interval, m):
    kernel = step.operation.kernel
    height, width, channels, filters = kernel.shape
    largest = ops.conv(m, ops.abs(kernel), strides=step.operation.strides, padding="valid")
    return largest + ops.abs(step.operation.bias), height * width * max(channels, filters)


def _dense(step: Step, found: Interval, m):
    kernel = step.operation.kernel
    return ops.matmul(m, ops.abs(kernel)) + ops.abs(step.operation.bias), max(kernel.shape)


def _scale(step: Step, found: Interval, m):
    return m * ops.abs(step.operation.factor) + ops.abs(step.operation.offset), 1


def _pixel_scale(step: Step, found: Interval, m):
    return m * np.abs(step.operation.weight).astype(m.dtype.name), 1


def _mean(step: Step, found: Interval, m):
    return ops.mean(m, axis=(1, 2)), math.prod(m.shape[1:3])


def _add(step: Step, found: Interval, *inputs):
    return sum(inputs), len(inputs)


def _own(step: Step, found: Interval, *inputs):
    return _magnitude(found), 0


def _max(step: Step, found: Interval, m):
    return _magnitude(found), math.prod(step.shape)


MAGNITUDES: dict[type, Callable[..., tuple]] = {
    Conv: _conv,
    Dense: _dense,
    Scale: _scale,
    PixelScale: _pixel_scale,
    Mean: _mean,
    Add: _add,
    ReLU: lambda step, found, m: (m, 0),
    Max: _max,
    Pad: _own,
    Reshape: _own,
}
"""Kind of step -> its rule `(step, bounds, *largest inputs) -> (largest sum of absolute values, number of terms)`."""
