"""Interval bounds (IBP): every step's values lie between two tensors, found from those of the steps that it reads."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from keras import backend, ops

from keras_rcl.bounds.input_sets import Ball, Interval, conv_radius, dense_radius
from keras_rcl.bounds.rounding import Rounded, widened
from keras_rcl.folding import fast_forward
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
)


def past_scaling(steps: Sequence[Step], box: Interval) -> tuple[list[Step], Interval]:
    """The same network without the leading steps that act on single pixels, and the box of its first remaining step.

    A `Ball` becomes one of the first remaining step.
    """
    first = 0
    while (
        first + 2 < len(steps)
        and isinstance(steps[first + 1].operation, Scale | PixelScale | Pad | Reshape)
        and not any(first in step.inputs for step in steps[first + 2 :])
    ):
        first += 1
        box = _moved_ball(steps[first], box) if isinstance(box, Ball) else step_interval(steps[first], [box])
    rest = [replace(step, inputs=tuple(i - first for i in step.inputs)) for step in steps[first + 1 :]]
    return [replace(steps[first], operation=Image(), inputs=()), *rest], box


def _moved_ball(step: Step, x: Ball) -> Ball:
    """The image of a ball under a step that acts on single pixels."""
    box, rule = step_interval(step, [x]), FORWARD[type(step.operation)]
    middle, linear = rule(step, x.middle), step
    if isinstance(step.operation, Scale):
        factor = step.operation.factor
        linear = replace(step, operation=Scale(factor, ops.zeros_like(factor)))
    return Ball(box.lower, box.upper, middle, ops.abs(rule(linear, x.reach[None])[0]), x.norm)


def interval_bounds(steps: Sequence[Step], box: Interval) -> list[Interval]:
    """The bounds of every step, [N, *shape], from those of the image.

    Source: Gowal et al. 2018, "On the effectiveness of interval bound propagation".
    """
    found = [box]
    for step in steps[1:]:
        found.append(step_interval(step, [found[number] for number in step.inputs]))
    return found


def step_interval(step: Step, inputs: Sequence[Interval]) -> Interval:
    """One step's bounds from those of its inputs; they hold in real arithmetic if those of the inputs are `Rounded`."""
    found = RULES[type(step.operation)](step, *inputs)
    if not isinstance(inputs[0], Rounded):
        return found
    return widened(step, found, inputs, backend.standardize_dtype(found.lower.dtype))


def forward(steps: Sequence[Step], images):
    """The last step's values [N, *shape] of images [N, ...]."""
    found = [images]
    for step in steps[1:]:
        found.append(FORWARD[type(step.operation)](step, *(found[number] for number in step.inputs)))
    return found[-1]


def affine(x: Interval, linear: Callable, kernel, bias) -> Interval:
    """W x + b over a box: W center + b -+ |W| radius, where `linear(x, W)` is W x."""
    return _around(linear(x.center, kernel) + bias, linear(x.radius, ops.abs(kernel)))


def _conv(step: Step, x: Interval) -> Interval:
    operation = step.operation

    def linear(values, kernel):
        return ops.conv(values, kernel, strides=operation.strides, padding="valid")

    found = affine(x, linear, operation.kernel, operation.bias)
    if not isinstance(x, Ball):
        return found
    center = linear(x.middle, operation.kernel) + operation.bias
    return found.intersect(_around(center, conv_radius(x, operation.kernel, operation.strides)))


def _dense(step: Step, x: Interval) -> Interval:
    kernel, bias = step.operation.kernel, step.operation.bias
    found = affine(x, ops.matmul, kernel, bias)
    if not isinstance(x, Ball):
        return found
    return found.intersect(_around(ops.matmul(x.middle, kernel) + bias, dense_radius(x, kernel)))


def _around(center, radius) -> Interval:
    return Interval(center - radius, center + radius)


def _scale(step: Step, x: Interval) -> Interval:
    return affine(x, ops.multiply, step.operation.factor, step.operation.offset)


def _pixel_scale(step: Step, x: Interval) -> Interval:
    return x.each(lambda values: values * ops.cast(step.operation.weight, values.dtype))


def _pad(step: Step, x: Interval) -> Interval:
    return x.each(lambda values: ops.pad(values, [(0, 0), *step.operation.amounts, (0, 0)]))


def _reshape(step: Step, x: Interval) -> Interval:
    return x.each(lambda values: ops.reshape(values, (-1, *step.shape)))


def _mean(step: Step, x: Interval) -> Interval:
    return x.each(lambda values: ops.mean(values, axis=(1, 2)))


def _add(step: Step, *inputs: Interval) -> Interval:
    return Interval(sum(x.lower for x in inputs), sum(x.upper for x in inputs))


def _relu(step: Step, x: Interval) -> Interval:
    return x.each(ops.relu)


def _s_shaped(step: Step, x: Interval) -> Interval:
    return x.each(fast_forward.CURVES[step.operation.kind])


def _max(step: Step, x: Interval) -> Interval:
    return x.each(lambda values: ops.max(competitors(step, values), axis=-2))


def competitors(step: Step, values):
    """What a `Max` step chooses from, [N, H, W, k C] -> [N, H, W, k, C]; those that are not valid are `LOWEST`."""
    height, width, channels = step.shape
    apart = ops.reshape(values, (-1, height, width, step.operation.valid.shape[-1], channels))
    return ops.where(step.operation.valid[..., None], apart, ops.cast(LOWEST, values.dtype))


LOWEST = -1e30
"""Below any value that counts; finite, so that 0 times it is 0."""

RULES: dict[type, Callable[..., Interval]] = {
    Conv: _conv,
    Dense: _dense,
    Scale: _scale,
    PixelScale: _pixel_scale,
    Pad: _pad,
    Reshape: _reshape,
    Mean: _mean,
    Add: _add,
    ReLU: _relu,
    SShaped: _s_shaped,
    Max: _max,
}
"""Kind of step -> its rule `(step, *inputs) -> Interval`."""

FORWARD: dict[type, Callable] = fast_forward.RULES | {
    Max: lambda step, x: ops.max(competitors(step, x), axis=-2),
}
"""Kind of step -> its rule `(step, *inputs) -> values`."""
