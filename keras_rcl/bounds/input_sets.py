"""The sets of inputs that bounds are over: boxes, and L1 and L2 balls cut to the pixel box.

The minimum of a linear function <a, x> over the points of a box within an Lp ball of center c is

    <a, c> - max { <v, t> : 0 <= t <= r, ||t||_p <= 1 },     v_i = |a_i| reach_i,  r_i = room_i / reach_i

where `reach` is the radius of the ball in each coordinate, and `room` the distance from the center to the side of the
box on which <a, x> falls. For any split v = u + w into parts that are not negative,

    <v, t>  <=  ||u||_q + <w, r>,     1/p + 1/q = 1,

which is the dual norm for w = 0 and the box for u = 0. The best split has u_i = min(v_i, m r_i) for L2 and
u_i = min(v_i, m) for L1, with one multiplier m >= 0 per function. Every m gives a sound bound.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.threat import Norm

_ROUNDS = 6
"""Number of steps toward the multiplier of L2, which are exact once no further coordinate reaches its side."""

_SMALL = 1e-30
"""Added under roots, so that no gradient is 0 times infinity."""


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

    @property
    def plain(self) -> "Interval":
        """The same set for bounds that hold up to rounding."""
        return self

    def each(self, function: Callable) -> "Interval":
        """The bounds of a function that does not decrease in any of its arguments."""
        return Interval(function(self.lower), function(self.upper))

    def intersect(self, other: "Interval") -> "Interval":
        """The tighter of the two bounds on either side."""
        return Interval(ops.maximum(self.lower, other.lower), ops.minimum(self.upper, other.upper))


@dataclass(frozen=True, eq=False)
class Ball(Interval):
    """The points x of an interval with ||(x - middle) / reach||_p <= 1; where the reach is 0, x is the middle.

    Attributes:
        middle: [N, *shape], in the interval.
        reach: [*shape], the radius of the ball in each coordinate; the interval is within the reach of the middle.
        norm: `l2` or `l1`.
    """

    middle: Any
    reach: Any
    norm: Norm

    def room(self, rising):
        """How far each coordinate can move per reach, [N, *shape]: to the upper side where `rising`, or to the lower.

        Args:
            rising: True or False.
        """
        moves = self.upper - self.middle if rising else self.middle - self.lower
        moved = self.reach > 0
        return ops.where(moved, moves / ops.where(moved, self.reach, ops.ones_like(self.reach)), ops.zeros_like(moves))


def pixel_ball(images, epsilon, norm: Norm = "linf") -> Interval:
    """The ball of a radius around images [N, ...], cut to the pixel box [0, 1]."""
    box = Interval(ops.maximum(images - epsilon, 0.0), ops.minimum(images + epsilon, 1.0))
    if norm == "linf":
        return box
    if norm not in ("l2", "l1"):
        raise InvalidInputError(f"unknown norm {norm!r}; choose from linf, l2, l1")
    reach = ops.ones(images.shape[1:], images.dtype) * epsilon
    return Ball(box.lower, box.upper, images, reach, norm)


def outward(lower: np.ndarray, upper: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The smallest box of a dtype that holds a box."""
    low, high = lower.astype(dtype), upper.astype(dtype)
    low = np.where(low > lower, np.nextafter(low, -np.inf, dtype=dtype), low)
    return low, np.where(high < upper, np.nextafter(high, np.inf, dtype=dtype), high)


def largest_fall(values, rooms, norm: Norm):
    """An upper bound of max { <v, t> : 0 <= t <= r, ||t||_p <= 1 }, [R]; exact for L1, and for L2 almost always.

    Args:
        values: v, [R, D], not negative.
        rooms: r, [R, D], in [0, 1].
        norm: `l2` or `l1`.
    """
    multiplier = _multiplier(values, rooms, norm)
    if norm == "l2":
        multiplier = ops.stop_gradient(multiplier)  # at the best one, the derivative with respect to it is 0
        inside = _root(ops.sum(ops.square(ops.minimum(values, multiplier * rooms)), axis=1))
        return inside + ops.sum(ops.relu(values - multiplier * rooms) * rooms, axis=1)
    return multiplier[:, 0] + ops.sum(ops.relu(values - multiplier) * rooms, axis=1)


def largest_moves(values, rooms, norm: Norm):
    """Moves t [R, D] with 0 <= t <= r and ||t||_p <= 1 that attain `largest_fall`."""
    multiplier = _multiplier(values, rooms, norm)
    if norm == "l2":
        return ops.minimum(values / ops.maximum(multiplier, _SMALL), rooms)
    zero = ops.zeros_like(rooms)
    full, tied = (ops.where(where, rooms, zero) for where in (values > multiplier, values == multiplier))
    left, wanted = (ops.sum(amounts, axis=1, keepdims=True) for amounts in (full, tied))
    return full + tied * ops.minimum(ops.relu(1 - left) / ops.maximum(wanted, _SMALL), 1.0)


def _multiplier(values, rooms, norm: Norm):
    """The multiplier m of each row, [R, 1].

    L1: the value of the coordinate at which the moves add up to 1 if they are made in descending order of value; 0 if
    all of them are within 1. L2: with the set C of coordinates that move to their sides, m = ||v_i : i not in C||_2 /
    sqrt(1 - sum over C of r_i^2), and C is where v_i > m r_i. From m = ||v||_2 on, C grows until nothing changes.
    """
    if norm == "l1":
        ordered, order = ops.top_k(values, k=values.shape[1])
        total = ops.cumsum(ops.take_along_axis(rooms, order, axis=1), axis=1)
        count = ops.sum(ops.cast(total < 1, "int32"), axis=1, keepdims=True)
        return ops.take_along_axis(ops.pad(ordered, [(0, 0), (0, 1)]), count, axis=1)
    squares, zero = ops.square(values), ops.zeros_like(values)
    multiplier = _root(ops.sum(squares, axis=1, keepdims=True))
    for _ in range(_ROUNDS):
        free = values <= multiplier * rooms
        others = ops.sum(ops.where(free, squares, zero), axis=1, keepdims=True)
        used = ops.sum(ops.where(free, zero, ops.square(rooms)), axis=1, keepdims=True)
        multiplier = ops.minimum(multiplier, ops.sqrt(others / ops.maximum(1 - used, _SMALL)))
    return multiplier


def _root(values):
    return ops.sqrt(ops.maximum(values, _SMALL))


def dense_radius(x: Ball, kernel):
    """The largest of |<w, y - middle>| over the ball alone for the columns w of a kernel [F, G], [G]: a dual norm."""
    if x.norm == "l2":
        return _root(ops.matmul(ops.square(x.reach), ops.square(kernel)))
    return ops.max(x.reach[:, None] * ops.abs(kernel), axis=0)


def conv_radius(x: Ball, kernel, strides: tuple[int, int]):
    """The same for a convolution without padding: kernel [kh, kw, C, F] -> [H, W, F]."""
    if x.norm == "l2":
        squares = ops.conv(ops.square(x.reach)[None], ops.square(kernel), strides=strides, padding="valid")
        return _root(squares[0])
    size = (int(kernel.shape[0]), int(kernel.shape[1]))
    reach = ops.image.extract_patches(x.reach[None], size, strides=strides, padding="valid")[0]
    weights = ops.reshape(ops.abs(kernel), (math.prod(kernel.shape[:3]), kernel.shape[3]))
    largest = reach[..., :1] * weights[0]
    for number in range(1, weights.shape[0]):
        largest = ops.maximum(largest, reach[..., number : number + 1] * weights[number])
    return largest
