"""Interval bounds (IBP): every step's values lie between two tensors, found from those of the steps that it reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from keras import ops

from keras_rcl.folding import fast_forward
from keras_rcl.folding.fold import Add, Conv, Dense, Image, Max, Mean, Pad, PixelScale, ReLU, Reshape, Scale, Step


@dataclass(frozen=True, eq=False)
class Interval:
    """lower <= x <= upper, elementwise: two tensors of one shape [N, ...]."""

    lower: Any
    upper: Any

    @property
    def center(self):
        return (self.lower + self.upper) / 2

    @property
    def radius(self):
        return (self.upper - self.lower) / 2

    def each(self, function: Callable) -> "Interval":
        """The bounds of a function that does not decrease in any of its arguments."""
        return Interval(function(self.lower), function(self.upper))

    def intersect(self, other: "Interval") -> "Interval":
        """The tighter of the two bounds on either side."""
        return Interval(ops.maximum(self.lower, other.lower), ops.minimum(self.upper, other.upper))


def pixel_ball(images, epsilon) -> Interval:
    """The L-inf ball of a radius around images [N, ...], cut to the pixel box [0, 1]."""
    return Interval(ops.maximum(images - epsilon, 0.0), ops.minimum(images + epsilon, 1.0))


def outward(lower: np.ndarray, upper: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The smallest box of a dtype that holds a box."""
    low, high = lower.astype(dtype), upper.astype(dtype)
    low = np.where(low > lower, np.nextafter(low, -np.inf, dtype=dtype), low)
    return low, np.where(high < upper, np.nextafter(high, np.inf, dtype=dtype), high)


def past_scaling(steps: Sequence[Step], box: Interval) -> tuple[list[Step], Interval]:
    """The same network without the leading steps that act on single pixels, and the box of its first remaining step."""
    first = 0
    while (
        first + 2 < len(steps)
        and isinstance(steps[first + 1].operation, Scale | PixelScale | Pad | Reshape)
        and not any(first in step.inputs for step in steps[first + 2 :])
    ):
        first += 1
        box = step_interval(steps[first], [box])
    rest = [replace(step, inputs=tuple(i - first for i in step.inputs)) for step in steps[first + 1 :]]
    return [replace(steps[first], operation=Image(), inputs=()), *rest], box


def interval_bounds(steps: Sequence[Step], box: Interval) -> list[Interval]:
    """The bounds of every step, [N, *shape], from those of the image.

    Source: Gowal et al. 2018, "On the effectiveness of interval bound propagation".
    """
    found = [box]
    for step in steps[1:]:
        found.append(step_interval(step, [found[number] for number in step.inputs]))
    return found


def step_interval(step: Step, inputs: Sequence[Interval]) -> Interval:
    """One step's bounds from those of its inputs."""
    return RULES[type(step.operation)](step, *inputs)


def forward(steps: Sequence[Step], images):
    """The last step's values [N, *shape] of images [N, ...]."""
    found = [images]
    for step in steps[1:]:
        found.append(FORWARD[type(step.operation)](step, *(found[number] for number in step.inputs)))
    return found[-1]


def affine(x: Interval, linear: Callable, kernel, bias) -> Interval:
    """W x + b over a box: W center + b -+ |W| radius, where `linear(x, W)` is W x."""
    center, radius = linear(x.center, kernel) + bias, linear(x.radius, ops.abs(kernel))
    return Interval(center - radius, center + radius)


def _conv(step: Step, x: Interval) -> Interval:
    operation = step.operation

    def linear(values, kernel):
        return ops.conv(values, kernel, strides=operation.strides, padding="valid")

    return affine(x, linear, operation.kernel, operation.bias)


def _dense(step: Step, x: Interval) -> Interval:
    return affine(x, ops.matmul, step.operation.kernel, step.operation.bias)


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
    Max: _max,
}
"""Kind of step -> its rule `(step, *inputs) -> Interval`."""

FORWARD: dict[type, Callable] = fast_forward.RULES | {
    Max: lambda step, x: ops.max(competitors(step, x), axis=-2),
}
"""Kind of step -> its rule `(step, *inputs) -> values`."""
