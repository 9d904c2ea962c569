"""CROWN: bounds that are linear in the image, found by substituting backward from the rows of a linear map.

A row is a linear function <a, z> of one step's values z for one example. Going backward, z is replaced by the
computation that gives it: a linear step by itself, a ReLU by a line below it where a >= 0 and by a line above it where
a < 0. The function that remains at the image is below <a, z> over the whole box, and its minimum is at a corner. Upper
bounds are the negated lower bounds of -a.

    relu(x) >= slope x,  slope 1 where u > -l, else 0     relu(x) <= u (x - l) / (u - l)      for l < 0 < u

The lines of a sigmoid or tanh are in `keras_rcl.bounds.s_shaped`.

A row that starts at one pixel depends on a window of the step before. Its coefficients are kept for that window alone,
which saves most of the work of convolutional layers. A bound before a ReLU is computed only where the interval contains
0: elsewhere the ReLU is linear, and a tighter bound of its input changes nothing.

Sources: Zhang et al. 2018, "Efficient neural network robustness certification with general activation functions"
(CROWN); Zhang et al. 2020, "Towards stable and efficient training of verifiably robust neural networks" (CROWN-IBP);
Xu et al. 2020, "Automatic perturbation analysis" (general graphs; windows are its patches).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import numpy as np
from keras import backend, ops

from keras_rcl.bounds.input_sets import Ball, Interval, largest_fall, largest_moves
from keras_rcl.bounds.interval import LOWEST, competitors, step_interval
from keras_rcl.bounds.rounding import RAISED, UNDERFLOW, Rounded, lowered
from keras_rcl.bounds.s_shaped import is_curved, line, lines, lines_below, shares
from keras_rcl.folding.fold import (
    Add,
    Conv,
    Dense,
    Image,
    Max,
    Mean,
    Pad,
    PixelScale,
    ReLU,
    Reshape,
    Scale,
    SShaped,
    Step,
    weights_of,
)

CURVED = (ReLU, SShaped)
"""Operations of single values that are bounded by lines."""

NOT_LINEAR = (*CURVED, Max)
"""Operations whose bounds depend on the intervals of what they read."""

LARGEST_CHUNK = 2**22
"""Number of coefficients that are held at a time while bounds of inner steps are computed."""


@dataclass(frozen=True, eq=False)
class Window:
    """Where windows are: row r's top left pixel is stride * start[r] + offset, maybe outside the image."""

    start: Any
    stride: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)

    def origin(self):
        """[R, 2]."""
        return self.start * np.array(self.stride, "int32") + np.array(self.offset, "int32")


@dataclass(frozen=True, eq=False)
class LinearForms:
    """Linear functions of one step's values, one per row.

    Attributes:
        coefficients: [R, *shape] of the step, or [R, h, w, C] of a window of it.
        example: int [R], the example of each row; if None, every example has the same number of rows, in their order.
        window: where the windows are; None for whole shapes.
    """

    coefficients: Any
    example: Any = None
    window: Window | None = None

    def gather(self, values):
        """The values at the places of the coefficients: [N, *shape] -> [R, ...]; 0 outside the image."""
        if self.window is not None:
            return windows(values, self.example, self.window.origin(), self.coefficients.shape[1:3])
        if self.example is not None:
            return ops.take(values, self.example, axis=0)
        return ops.repeat(values, ops.shape(self.coefficients)[0] // ops.shape(values)[0], axis=0)

    def times(self, a, values):
        """a * gather(values), for a [R, ...] of the shape of the coefficients."""
        if self.window is not None or self.example is not None:
            return a * self.gather(values)
        apart = ops.reshape(a, (ops.shape(values)[0], -1, *a.shape[1:]))
        return ops.reshape(apart * values[:, None], ops.shape(a))

    def dot(self, a, values):
        """<a, gather(values)>, [R], for a [R, ...] of the shape of the coefficients."""
        if self.window is not None or self.example is not None:
            return _sum(a * self.gather(values))
        size = math.prod(a.shape[1:])
        apart = ops.reshape(a, (ops.shape(values)[0], -1, size))
        return ops.reshape(ops.matmul(apart, ops.reshape(values, (-1, size, 1))), (-1,))

    def constant(self, values):
        """`gather` for values of the step [*shape] that are the same for all examples."""
        if self.window is None:
            return values
        return windows(values[None], ops.zeros_like(self.example), self.window.origin(), self.coefficients.shape[1:3])

    def densify(self, shape: Sequence[int]) -> "LinearForms":
        """The same functions without windows."""
        if self.window is None:
            return self
        number = ops.arange(ops.shape(self.coefficients)[0])
        return replace(self, coefficients=windows(self.coefficients, number, -self.window.origin(), shape), window=None)

    def add(self, other: "LinearForms", shape: Sequence[int]) -> "LinearForms":
        """The sum of two sets of functions of the same step, row by row."""
        if self.window is None or other.window is None:
            coefficients = self.densify(shape).coefficients + other.densify(shape).coefficients
            return LinearForms(coefficients, self.example)
        both = (self, other)
        corners = [
            [(rows.window.offset[i], rows.window.offset[i] + rows.coefficients.shape[i + 1]) for rows in both]
            for i in (0, 1)
        ]
        low, high = ([limit(end[side] for end in ends) for ends in corners] for side, limit in ((0, min), (1, max)))

        def grown(number: int):
            amounts = [(ends[number][0] - low[i], high[i] - ends[number][1]) for i, ends in enumerate(corners)]
            return ops.pad(both[number].coefficients, [(0, 0), *amounts, (0, 0)])

        return LinearForms(grown(0) + grown(1), self.example, replace(self.window, offset=tuple(low)))


def windows(values, example, origin, size: Sequence[int]):
    """A window of each row's image: values [N, H, W, C], example [R], origin [R, 2] -> [R, h, w, C], 0 outside."""
    height, width, channels = (int(n) for n in values.shape[1:])
    down, right = (origin[:, i : i + 1] + ops.arange(size[i], dtype="int32") for i in (0, 1))
    inside = ((down >= 0) & (down < height))[:, :, None] & ((right >= 0) & (right < width))[:, None, :]
    index = (ops.cast(example, "int32")[:, None, None] * height + down[:, :, None]) * width + right[:, None, :]
    pixels = ops.pad(ops.reshape(values, (-1, channels)), [(1, 0), (0, 0)])
    return ops.take(pixels, ops.where(inside, index + 1, 0), axis=0)


@dataclass(frozen=True, eq=False)
class Relaxation:
    """lower x <= relu(x) <= (lower + rise) x + intercept over an interval; [N, *shape] each, no intercept negative."""

    lower: Any
    rise: Any
    intercept: Any


def relax(x: Interval) -> Relaxation:
    """CROWN's lines: exact where the interval does not contain 0 inside, else the triangle's edge above."""
    crosses, lower = (x.lower < 0) & (x.upper > 0), ops.cast(x.upper > -x.lower, x.lower.dtype)
    # Where it does not cross, 1 stands in for the length, so that no gradient is 0 times infinity.
    upper = x.upper / ops.where(crosses, x.upper - x.lower, ops.ones_like(x.upper))
    zero = ops.zeros_like(upper)
    return Relaxation(lower, ops.where(crosses, upper - lower, zero), ops.where(crosses, -upper * x.lower, zero))


def lower_bounds(
    steps: Sequence[Step],
    rows: LinearForms,
    intervals: Sequence[Interval],
    slopes: dict | None = None,
    multipliers: dict | None = None,
    arriving: dict | None = None,
):
    """Lower bounds over the box of linear functions of the last step's values, by CROWN.

        min over x in the box of <a, z(x)>  >=  min over x in the box of <a', x> + c

    where a' and c follow from a by substituting backward.

    Args:
        steps: a folded network, up to the step that the rows are functions of.
        rows: functions of the last step's values.
        intervals: of the image, the first, and of the inputs of every step that is not linear; the others are not
            used. If they are `Rounded`, those of all steps, and the bounds hold in real arithmetic.
        slopes: number of a ReLU step -> its lower lines' slopes in [0, 1] where its interval contains 0, shaped as the
            coefficients that arrive there; CROWN's for those that are missing. Of a sigmoid or tanh, the places of the
            tangents below and above [..., 2], from 0 for the first to 1 for the last.
        multipliers: number of a ReLU step -> coefficients [R, *shape] of what it reads, added to those that leave it.
            Where m z <= 0 for all z in question, a bound of <a, relu(z)> + m z is one of <a, relu(z)>.
        arriving: filled with the rows that arrive at each ReLU, sigmoid or tanh and, by number 0, at the image.

    Returns:
        [R].

    References:
        Zhang et al. 2018 and 2020; Xu et al. 2020 (see the module).
    """
    waiting, total, error = {len(steps) - 1: rows}, 0.0, 0.0
    rounded = isinstance(intervals[0], Rounded)
    for number in range(len(steps) - 1, 0, -1):
        if number not in waiting:
            continue
        step, rows = steps[number], waiting.pop(number)
        inputs = [steps[i] for i in step.inputs]
        if rounded:
            error = error + _error(rows, intervals[number])
        if isinstance(step.operation, CURVED):
            rule = _relu if isinstance(step.operation, ReLU) else partial(_s_shaped, step.operation)
            leaving, constant = rule(rows, intervals[step.inputs[0]], (slopes or {}).get(number))
            if multipliers is not None and number in multipliers:
                leaving = replace(leaving, coefficients=leaving.coefficients + multipliers[number])
            if arriving is not None:
                arriving[number] = rows
        else:
            leaving, constant = RULES[type(step.operation)](step, inputs, rows, intervals)
        total = total + (_precise_constant(step, rows, constant) if rounded else constant)
        for i, read in zip(step.inputs, inputs, strict=True):
            added = i in waiting
            waiting[i] = waiting[i].add(leaving, read.shape) if added else leaving
            if rounded and added:
                error = error + _error(waiting[i], intervals[i])
    if arriving is not None:
        arriving[0] = waiting[0]
    if not rounded:
        return total + least(waiting[0], intervals[0])
    return lowered(total + _precise_least(waiting[0], intervals[0]) - error, _dtype(rows))


def _dtype(rows: LinearForms) -> str:
    return backend.standardize_dtype(rows.coefficients.dtype)


def _error(rows: LinearForms, x: Rounded):
    """The largest rounding error of replacing functions of a step's values by functions of its inputs: [R], float64."""
    return RAISED * ops.cast(rows.dot(ops.abs(rows.coefficients), x.error), "float64") + UNDERFLOW


def _precise_constant(step: Step, rows: LinearForms, constant):
    """The constant of a linear step, summed in float64 and not as its rule sums it; that of another step."""
    offset = weights_of(step).get("bias", weights_of(step).get("offset"))
    if offset is None:
        return ops.cast(constant, "float64")
    return _sum(ops.cast(rows.coefficients, "float64") * ops.cast(offset, "float64"))


def _precise_least(rows: LinearForms, box: Rounded):
    """`least` in float64, [R], minus the largest rounding error."""
    wide = Interval(ops.cast(box.lower, "float64"), ops.cast(box.upper, "float64"))
    a = replace(rows, coefficients=ops.cast(rows.coefficients, "float64"))
    return a.dot(a.coefficients, wide.center) - a.dot(ops.abs(a.coefficients), wide.radius) - _error(rows, box)


def least(rows: LinearForms, box: Interval):
    """min <a, x> over a box, [R]: <a, center> - <|a|, radius>. Over a `Ball`, a lower bound: see `largest_fall`."""
    if isinstance(box, Rounded):
        return lowered(_precise_least(rows, box), _dtype(rows))
    a = rows.coefficients
    if isinstance(box, Ball):
        return rows.dot(a, box.middle) - largest_fall(*_falls(rows, box), box.norm)
    return rows.dot(a, box.center) - rows.dot(ops.abs(a), box.radius)


def worst_inputs(rows: LinearForms, box: Interval):
    """The points at which <a, x> is least over a box or a `Ball`, for rows without windows: [R, *shape]."""
    a = rows.coefficients
    if not isinstance(box, Ball):
        return ops.where(a > 0, rows.gather(box.lower), rows.gather(box.upper))
    moves = ops.reshape(largest_moves(*_falls(rows, box), box.norm), ops.shape(a))
    return rows.gather(box.middle) - ops.sign(a) * moves * box.reach


def _falls(rows: LinearForms, x: Ball) -> tuple:
    """How fast <a, x> falls in each coordinate, and how far, in units of the reach: [R, D] each."""
    a = rows.coefficients
    values = ops.abs(a) * rows.constant(x.reach)
    rooms = ops.where(a > 0, rows.gather(x.room(False)), rows.gather(x.room(True)))
    return tuple(ops.reshape(of, (-1, math.prod(a.shape[1:]))) for of in (values, rooms))


def _sum(values):
    """[R, ...] -> [R]."""
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))


def _conv(step: Step, inputs: Sequence[Step], rows: LinearForms, intervals):
    rows = _narrow(rows, step.shape)
    kernel, strides, a = step.operation.kernel, step.operation.strides, rows.coefficients
    constant = ops.sum(ops.tensordot(a, step.operation.bias, axes=1), axis=(1, 2))
    a = ops.conv_transpose(a, kernel, strides=strides, padding="valid")
    if rows.window is None:
        # Pixels past the last window are not read; a stride larger than the kernel adds pixels that do not exist.
        height, width = inputs[0].shape[:2]
        rest = [(0, max(n - m, 0)) for n, m in zip((height, width), a.shape[1:3], strict=True)]
        return replace(rows, coefficients=_cut(ops.pad(a, [(0, 0), *rest, (0, 0)]), 0, 0, height, width)), constant
    window = rows.window
    stride, offset = (tuple(m * s for m, s in zip(of, strides, strict=True)) for of in (window.stride, window.offset))
    return replace(rows, coefficients=a, window=replace(window, stride=stride, offset=offset)), constant


def _cut(a, top: int, left: int, height: int, width: int):
    """a[:, top : top + height, left : left + width], whose gradient is several times as slow."""
    if tuple(a.shape[1:3]) == (height, width):
        return a
    return ops.slice(a, (0, top, left, 0), (ops.shape(a)[0], height, width, a.shape[3]))


def _narrow(rows: LinearForms, shape: Sequence[int]) -> LinearForms:
    """The same functions, without windows if these hold as many pixels as the image."""
    height, width = rows.coefficients.shape[1:3]
    return rows.densify(shape) if height * width >= shape[0] * shape[1] else rows


def _dense(step: Step, inputs: Sequence[Step], rows: LinearForms, intervals):
    a = rows.coefficients
    a, constant = ops.matmul(a, ops.transpose(step.operation.kernel)), ops.sum(a * step.operation.bias, axis=1)
    return replace(rows, coefficients=a), constant


def _scale(step: Step, inputs: Sequence[Step], rows: LinearForms, intervals):
    a = rows.coefficients
    return replace(rows, coefficients=a * step.operation.factor), _sum(a * step.operation.offset)


def _pixel_scale(step: Step, inputs: Sequence[Step], rows: LinearForms, intervals):
    weight = rows.constant(ops.cast(step.operation.weight, rows.coefficients.dtype))
    return replace(rows, coefficients=rows.coefficients * weight), 0.0


def _pad(step: Step, inputs: Sequence[Step], rows: LinearForms, intervals):
    """The coefficients of the zeros are dropped."""
    (top, _), (left, _) = step.operation.amounts
    (height, width, _), a = inputs[0].shape, rows.coefficients
    if rows.window is None:
        return replace(rows, coefficients=_cut(a, top, left, height, width)), 0.0
    offset = (rows.window.offset[0] - top, rows.window.offset[1] - left)
    moved = replace(rows, window=replace(rows.window, offset=offset))
    if isinstance(inputs[0].operation, Image | ReLU | Max):  # whose rules multiply by 0 there
        return moved, 0.0
    return replace(moved, coefficients=a * moved.constant(ops.ones((height, width, 1), a.dtype))), 0.0


def _reshape(step: Step, inputs: Sequence[Step], rows: LinearForms, intervals):
    a = rows.densify(step.shape).coefficients
    return replace(rows, coefficients=ops.reshape(a, (-1, *inputs[0].shape)), window=None), 0.0


def _mean(step: Step, inputs: Sequence[Step], rows: LinearForms, intervals):
    height, width, channels = inputs[0].shape
    a = rows.coefficients[:, None, None, :] / (height * width)
    return replace(rows, coefficients=ops.broadcast_to(a, (ops.shape(a)[0], height, width, channels))), 0.0


def _add(step: Step, inputs: Sequence[Step], rows: LinearForms, intervals):
    return rows, 0.0


def _relu(rows: LinearForms, x: Interval, slopes=None):
    a, lines = rows.coefficients, relax(x)
    negative = ops.minimum(a, 0.0)
    if isinstance(x, Rounded):
        constant = rows.dot(ops.cast(negative, "float64"), ops.cast(lines.intercept, "float64"))
    else:
        constant = rows.dot(negative, lines.intercept)
    if slopes is None:
        a = rows.times(a, lines.lower) + rows.times(negative, lines.rise)
    else:
        lower = ops.where(rows.gather(lines.intercept) > 0, slopes, rows.gather(lines.lower))
        a = (a - negative) * lower + rows.times(negative, lines.lower + lines.rise)
    return replace(rows, coefficients=a), constant


def _s_shaped(operation: SShaped, rows: LinearForms, x: Interval, places=None):
    if places is None:
        below, above = _gathered(rows, lines(operation, x))
    else:
        below, mirrored = _gathered(rows, lines_below(operation, x))
        below = line(operation, below, below.at(places[..., 0]))
        above = line(operation, mirrored, mirrored.at(places[..., 1]), mirror=True)
    a = rows.coefficients
    positive, negative = ops.maximum(a, 0.0), ops.minimum(a, 0.0)
    constant = _sum(positive * below.intercept + negative * above.intercept)
    return replace(rows, coefficients=positive * below.slope + negative * above.slope), constant


def _gathered(rows: LinearForms, pair: tuple) -> list:
    """Two data classes of values [N, *shape], each gathered; all together, for a gather is several operations."""
    values = [value for each in pair for value in vars(each).values()]
    found = iter(ops.split(rows.gather(ops.concatenate(values, axis=-1)), len(values), axis=-1))
    return [type(each)(*itertools.islice(found, len(vars(each)))) for each in pair]


def first_slopes(operation: ReLU | SShaped, x: Interval, gather: Callable = lambda values: values):
    """The `slopes` of `lower_bounds` that are CROWN's, for an operation that reads an interval.

    Args:
        operation: of the step.
        x: what it reads.
        gather: of the rows that arrive at the step; if not given, the slopes are those of all rows, one per example.
    """
    if isinstance(operation, ReLU):
        return gather(relax(x).lower)
    return ops.stack([gather(share) for share in shares(operation, x)], axis=-1)


def _max(step: Step, inputs: Sequence[Step], rows: LinearForms, intervals):
    """max x >= x_i of the largest lower bound; <= the largest upper bound, or x_i where no other exceeds that bound."""
    x = intervals[step.inputs[0]].each(lambda values: competitors(step, values))
    line, decided = choice(x)
    height, width, channels = step.shape
    line = ops.reshape(line, (-1, height, width, line.shape[-2] * channels))
    ceiling = ops.where(decided, ops.zeros_like(x.upper[..., 0, :]), ops.max(x.upper, axis=-2))
    line, decided, ceiling = (rows.gather(ops.cast(v, x.lower.dtype)) for v in (line, decided, ceiling))
    positive, negative = ops.maximum(rows.coefficients, 0.0), ops.minimum(rows.coefficients, 0.0)
    a = (positive + negative * decided)[..., None, :] * ops.reshape(line, (*ops.shape(line)[:3], -1, channels))
    return replace(rows, coefficients=ops.reshape(a, ops.shape(line))), _sum(negative * ceiling)


def choice(x: Interval):
    """Bool [N, H, W, k, C], which of k has the largest lower bound; bool [N, H, W, C], whether no other exceeds it."""
    largest = ops.argmax(x.lower, axis=-2)
    chosen = ops.moveaxis(ops.one_hot(largest, x.lower.shape[-2], dtype="bool"), -1, -2)
    others = ops.max(ops.where(chosen, ops.cast(LOWEST, x.upper.dtype), x.upper), axis=-2)
    return chosen, ops.max(x.lower, axis=-2) >= others


RULES: dict[type, Callable] = {
    Conv: _conv,
    Dense: _dense,
    Scale: _scale,
    PixelScale: _pixel_scale,
    Pad: _pad,
    Reshape: _reshape,
    Mean: _mean,
    Add: _add,
    Max: _max,
}
"""Kind of step -> its rule `(step, inputs, rows, intervals) -> (rows of each of its inputs, constants [R])`."""


def crown_intervals(
    steps: Sequence[Step],
    box: Interval,
    bound: Callable = lower_bounds,
    in_time: Callable = lambda: True,
    narrowed: Callable = lambda number, interval: interval,
    since: Any = -1,
) -> list[Interval]:
    """The bounds of every step; by CROWN for inputs of a step that is not linear over its interval.

    Args:
        steps: a folded network.
        box: bounds of the image, or a `Ball`.
        bound: `lower_bounds`, or a tighter function of its first three arguments.
        in_time: a function that returns whether there is time left; elements that are then missing keep their
            intervals.
        narrowed: a function of a step's number and interval that returns what is left of the interval, where more is
            known of the step's values than that the image is in the box.
        since: the number of a step; only the bounds of steps after it are computed by `bound`.

    Returns:
        One interval [N, *shape] per step.
    """
    found = [box]
    for number, step in enumerate(steps[1:], 1):
        interval = narrowed(number, step_interval(step, [found[i] for i in step.inputs]))
        undecided = [_undecided(s, interval) for s in steps if number in s.inputs and type(s.operation) in NOT_LINEAR]
        # One step from a box, whose pixels vary independently, intervals are exact.
        if undecided and (step.inputs != (0,) or isinstance(box, Ball)):
            where = ops.logical_and(reduce(ops.logical_or, undecided), number > since)
            interval = _tighten(steps[: number + 1], interval, found, where, bound, in_time)
        found.append(interval)
    return found


def _undecided(step: Step, x: Interval):
    """Bool [N, *shape]: where a step that is not linear is not linear over what it reads."""
    if isinstance(step.operation, SShaped):
        return is_curved(step.operation, x)
    if isinstance(step.operation, ReLU):
        return (x.lower < 0) & (x.upper > 0)
    _, decided = choice(x.each(lambda values: competitors(step, values)))
    return ops.tile(ops.logical_not(decided), (1, 1, 1, step.operation.valid.shape[-1]))


def _tighten(
    steps: Sequence[Step], interval: Interval, found: Sequence[Interval], where, bound: Callable, in_time: Callable
) -> Interval:
    """The bounds of the last of some steps, by rows for the elements in question, never wider than they were."""
    index = ops.stack(ops.nonzero(where), axis=1)
    count, chunk = ops.shape(index)[0], max(1, LARGEST_CHUNK // (2 * max(math.prod(step.shape) for step in steps)))

    def bounds_of(start, lower, upper):
        some = index[start : start + chunk]
        number = ops.shape(some)[0]
        both, sign = ops.concatenate([some, some]), ops.repeat(ops.array([1.0, -1.0], interval.lower.dtype), number)
        bounds = bound(steps, unit_rows(both, steps[-1].shape, sign[:, None]), [*found, interval])
        return (
            start + chunk,
            ops.slice_update(lower, [start], bounds[:number]),
            ops.slice_update(upper, [start], -bounds[number:]),
        )

    lower, upper = (ops.full((count,), end, interval.lower.dtype) for end in (LOWEST, -LOWEST))
    _, lower, upper = ops.while_loop(
        lambda start, *_: ops.logical_and(start < count, in_time()), bounds_of, (0, lower, upper)
    )
    lower, upper = (
        ops.scatter_update(values, index, new) for values, new in ((interval.lower, lower), (interval.upper, upper))
    )
    return interval.intersect(Interval(lower, upper))


def unit_rows(index, shape: Sequence[int], sign) -> LinearForms:
    """sign z_i for single values of a step: index int [R, 1 + rank], an example and where in `shape`; sign [R, 1]."""
    index = ops.cast(index, "int32")
    unit = sign * ops.one_hot(index[:, -1], shape[-1], dtype=backend.standardize_dtype(sign.dtype))
    if len(shape) == 1:
        return LinearForms(unit, index[:, 0])
    return LinearForms(unit[:, None, None], index[:, 0], Window(index[:, 1:3]))
