"""Lines below and above sigmoid and tanh over an interval.

Both curves f rise, are convex below 0 and concave above it, and f(-x) = 2 f(0) - f(x): a line above f over [l, u] is
the mirror image of one below f over [-u, -l]. Below f lies

- the chord, if it starts no steeper than the curve: f'(l) >= (f(u) - f(l)) / (u - l), or l >= 0;
- otherwise the tangent at any point p <= 0 of [l, u] that is not above f(u) at u. With p* < 0 where the tangent passes
  through (u, f(u)), these are the points l <= p <= p*; if u <= 0, all of [l, u].

Every other line below the curve is below one of these. The area between is least at min((l + u) / 2, p*), which is the
first choice. p* depends on u alone and falls with it, so that a table gives a point that is at most p*.

A line is moved outward by a few roundings of its own values.

Sources: Zhang et al. 2018, "Efficient neural network robustness certification with general activation functions"; Xu et
al. 2021, "Fast and complete" (the points are optimised as slopes are).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from keras import backend, ops
from scipy.special import expit

from keras_rcl.bounds.input_sets import Interval
from keras_rcl.bounds.rounding import UNIT
from keras_rcl.folding.fast_forward import CURVES
from keras_rcl.folding.fold import SShaped

STEEPNESS = {"sigmoid": 1.0, "tanh": 2.0}
"""By kind, c of f(x) = a / (1 + exp(-c x)) + b; a is c as well."""

STEPS_PER_E, LARGEST = 256, 1e9
"""Of the table of p* by u: number of entries per factor e of 1 + u, and the largest u."""

OUTWARD = 16
"""Number of roundings by which a line is moved."""


@dataclass(frozen=True, eq=False)
class Below:
    """Lines below a curve over intervals, [N, *shape] each: tangents at the points from `first` to `last`, or chords.

    Attributes:
        first: the smallest of the points, l.
        last: the largest; where a chord is chosen, `first`.
        chosen: the point of the least area.
        chord: the slope of the chord where it is chosen, otherwise -1.
        reach: max |x| in the interval.
    """

    first: Any
    last: Any
    chosen: Any
    chord: Any
    reach: Any

    def at(self, share):
        """The point at a share of the way from the first to the last."""
        return ops.minimum(self.first + share * (self.last - self.first), self.last)


@dataclass(frozen=True, eq=False)
class Line:
    """slope x + intercept."""

    slope: Any
    intercept: Any


def lines(operation: SShaped, x: Interval) -> tuple[Line, Line]:
    """The lines of the least area below and above the curve over an interval, [N, *shape]."""
    below, mirrored = lines_below(operation, x)
    return line(operation, below, below.chosen), line(operation, mirrored, mirrored.chosen, mirror=True)


def lines_below(operation: SShaped, x: Interval) -> tuple[Below, Below]:
    """Those over the interval, and over its mirror image, which stand for those above the curve."""
    found = _traced(operation.kind, tuple(x.lower.shape))
    return Below(*found(x.lower, x.upper)), Below(*found(-x.upper, -x.lower))


def shares(operation: SShaped, x: Interval) -> list:
    """Where the chosen points are between the first, 0, and the last, 1: below and above, [N, *shape] each."""
    found = []
    for side in lines_below(operation, x):
        room = side.last - side.first
        found.append(ops.where(room > 0, (side.chosen - side.first) / ops.where(room > 0, room, 1.0), 1.0))
    return [ops.cast(share, x.lower.dtype) for share in found]


def line(operation: SShaped, side: Below, point, *, mirror: bool = False) -> Line:
    """The tangent at a point, or the chord; if `mirror`, the line above the curve of which `side` is the mirror image.

    Args:
        operation: the kind of curve.
        side: of `lines_below`, gathered to the shape of the points.
        point: between `side.first` and `side.last`.
        mirror: see above.
    """
    slope = ops.where(side.chord >= 0, side.chord, derivative(operation.kind, point))
    outward = OUTWARD * UNIT[backend.standardize_dtype(point.dtype)] * (1 + slope * side.reach)
    intercept = CURVES[operation.kind](point) - slope * point - outward
    return Line(slope, _twice_the_middle(operation.kind) - intercept if mirror else intercept)


def derivative(kind: str, x):
    """f'(x), to a small relative error."""
    tail = ops.exp(-STEEPNESS[kind] * ops.abs(x))
    return STEEPNESS[kind] ** 2 * tail / ops.square(1 + tail)


def is_curved(operation: SShaped, x: Interval):
    """Bool [N, *shape]: whether the curve is further from a line over the interval than its rounding matters."""
    low, high, steepest = _derivatives(operation.kind, x.lower, x.upper)
    return (steepest - ops.minimum(low, high)) * (x.upper - x.lower) > 1e-6


def _twice_the_middle(kind: str) -> float:
    """2 f(0)."""
    return {"sigmoid": 1.0, "tanh": 0.0}[kind]


def _derivatives(kind: str, lower, upper):
    """f' at both ends, and its largest value between."""
    nearest = ops.maximum(ops.minimum(upper, 0.0), lower)
    return (derivative(kind, x) for x in (lower, upper, nearest))


@functools.cache
def _traced(kind: str, shape: tuple) -> Callable:
    """One function for all bounds that read it: graphs of branch and bound do so hundreds of times."""
    return tf.function(functools.partial(_lines_below, kind), autograph=False)


def _lines_below(kind: str, lower, upper) -> tuple:
    low, high, steepest = _derivatives(kind, lower, upper)
    width = upper - lower
    rise = CURVES[kind](upper) - CURVES[kind](lower)
    chord = rise / ops.where(width > 0, width, ops.ones_like(width))
    chord = ops.minimum(ops.maximum(chord, ops.minimum(low, high)), steepest)
    is_chord = (lower >= 0) | ((upper > 0) & (low >= chord))
    last = ops.where(upper <= 0, upper, ops.maximum(lower, _last_point(kind, upper)))
    last = ops.where(is_chord | (upper > LARGEST / STEEPNESS[kind]), lower, last)
    chosen = ops.minimum(last, (lower + upper) / 2)
    reach = ops.maximum(ops.abs(lower), ops.abs(upper))
    return lower, last, chosen, ops.where(is_chord, chord, -ops.ones_like(chord)), reach


def _last_point(kind: str, upper):
    """A point that is at most p* for each u of the table; for any other, that of its first or last u."""
    scaled = ops.where(upper > 0, ops.minimum(STEEPNESS[kind] * ops.stop_gradient(upper), LARGEST), 0.0)
    # One entry further than the ceiling, for the rounding of the logarithm.
    index = ops.cast(ops.ceil(STEPS_PER_E * ops.log1p(scaled)), "int32") + 1
    return ops.take(ops.cast(_table() / STEEPNESS[kind], upper.dtype), index)


@functools.cache
def _table() -> np.ndarray:
    """p* of the sigmoid for u = exp(i / STEPS_PER_E) - 1, by bisection from below in float64."""
    count = int(STEPS_PER_E * np.log1p(LARGEST)) + 4
    u = np.expm1(np.arange(count) / STEPS_PER_E)
    low, high = -u, np.zeros(count)
    for _ in range(80):
        middle = (low + high) / 2
        passes = expit(middle) + expit(middle) * expit(-middle) * (u - middle) <= expit(u)
        low, high = np.where(passes, middle, low), np.where(passes, high, middle)
    return low
