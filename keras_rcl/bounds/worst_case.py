"""The worst that can happen to a network's logits within an L-inf ball in the pixel box."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import keras
from keras import ops

from keras_rcl.bounds.fold import Dense, Image, Step, fold
from keras_rcl.bounds.interval import Interval, interval_bounds, past_scaling, pixel_ball
from keras_rcl.bounds.linear_relaxation import Rows, crown_intervals, least, lower_bounds
from keras_rcl.bounds.slopes import optimized_lower_bounds
from keras_rcl.vocabulary.word import Refused

Method = Literal["ibp", "crown-ibp", "crown", "alpha-crown"]
"""From loose and cheap to tight and dear.

- `ibp`: intervals, the last dense layer taken together with the difference of its rows.
- `crown-ibp`: bounds that are linear in the image, intervals before each ReLU.
- `crown`: linear bounds before each ReLU too.
- `alpha-crown`: `crown` with the slopes of the last rows' lower lines optimised.
"""


def worst_case_margins(
    network: keras.Model,
    images,
    labels,
    epsilon,
    method: Method = "crown",
    *,
    iterations: int = 20,
    inner_iterations: int = 0,
):
    """Lower bounds of logit_y - logit_j over all images within epsilon, in L-inf and in the pixel box.

    The network is taken at inference, with BatchNorm's moving statistics. Works in a `tf.function`, which is several
    times faster; `ibp` and `crown-ibp` are meant to be differentiated with respect to the network's variables.

    Args:
        network: functional, images -> logits [N, K] or a dict with `logits`; layers of `bounds.fold.LAYERS`.
        images: [N, H, W, C] in [0, 1]; float64 images are bounded in float64.
        labels: int [N], each y.
        epsilon: radius in pixels, a number or a scalar tensor.
        method: none is looser than `ibp`, and `alpha-crown` is not looser than `crown`.
        iterations: of `alpha-crown`, for the margins.
        inner_iterations: of `alpha-crown`, for each bound before a ReLU; with 0 they are those of `crown`.

    Returns:
        [N, K], 0 at j = y. Where all others are positive, every image of the ball is classified as y: up to the
        rounding of the floats, which is not bounded.

    Raises:
        Refused: if the method is unknown, or a layer has no bounds.
    """
    images, steps = _images_and_steps(network, images, "logits")
    (classes,), own = steps[-1].shape, ops.cast(labels, "int32")[:, None]
    unit, others = ops.eye(classes, dtype=images.dtype), ops.arange(classes - 1, dtype="int32")
    others = others + ops.cast(others >= own, "int32")
    differences = ops.take(unit, own, axis=0) - ops.take(unit, others, axis=0)
    steps, box = past_scaling(steps, pixel_ball(images, epsilon))
    margins = _least(steps, box, differences, method, iterations, inner_iterations)
    # A 0 is put in at the label.
    before, after = (ops.pad(margins, [(0, 0), side]) for side in ((0, 1), (1, 0)))
    column = ops.arange(classes, dtype="int32")
    return ops.where(column < own, before, ops.where(column > own, after, ops.zeros_like(after)))


def worst_case_logits(network: keras.Model, images, labels, epsilon, method: Method = "crown-ibp"):
    """Logits whose cross-entropy is not below that of any image in the ball: [N, K], 0 at the label.

    They are the upper bounds of logit_j - logit_y (Wong and Kolter 2018). Arguments as of `worst_case_margins`.
    """
    return -worst_case_margins(network, images, labels, epsilon, method)


def verified(margins, labels):
    """Bool [N]: True where the margins [N, K] of `worst_case_margins` leave no other class than the label."""
    own = ops.one_hot(labels, margins.shape[1], dtype="bool")
    return ops.all(ops.logical_or(own, margins > 0), axis=1)


def output_bounds(
    network: keras.Model,
    images,
    epsilon,
    method: Method = "ibp",
    output: str = "logits",
    *,
    iterations: int = 20,
    inner_iterations: int = 0,
) -> Interval:
    """Bounds of each value of an output, [N, K] for logits; arguments as of `worst_case_margins`.

    Each is for itself: bounds of margins are tighter than the difference of these.
    """
    images, steps = _images_and_steps(network, images, output)
    shape = steps[-1].shape
    steps, box = past_scaling(steps, pixel_ball(images, epsilon))
    if method == "ibp":
        return interval_bounds(steps, box)[-1]
    unit = ops.reshape(ops.eye(ops.prod(shape), dtype=images.dtype), (-1, *shape))
    both = ops.broadcast_to(ops.concatenate([unit, -unit]), (ops.shape(images)[0], 2 * unit.shape[0], *shape))
    lower, upper = ops.split(_least(steps, box, both, method, iterations, inner_iterations), 2, axis=1)
    return Interval(*(ops.reshape(values, (-1, *shape)) for values in (lower, -upper)))


def _images_and_steps(network: keras.Model, images, output: str) -> tuple:
    images = ops.convert_to_tensor(images)
    return images, fold(network, output, dtype=keras.backend.standardize_dtype(images.dtype))


def _least(steps: Sequence[Step], box: Interval, functions, method: Method, iterations: int, inner_iterations: int):
    """Lower bounds [N, M] of linear functions [N, M, *shape] of the last step's values."""
    if method not in get_args(Method):
        raise Refused(f"unknown method {method!r}; choose from {', '.join(get_args(Method))}")
    count = functions.shape[1]
    rows = Rows(ops.reshape(functions, (-1, *steps[-1].shape)))
    outer = inner = lower_bounds
    if method == "alpha-crown":
        outer = partial(optimized_lower_bounds, iterations=iterations)
        inner = partial(optimized_lower_bounds, iterations=inner_iterations) if inner_iterations else lower_bounds
    within = method in ("ibp", "crown-ibp")
    intervals = interval_bounds(steps, box) if within else crown_intervals(steps, box, inner)
    bound = _least_of_intervals(steps, rows, intervals)
    if method != "ibp":
        bound = ops.maximum(bound, outer(steps, rows, intervals))
    return ops.reshape(bound, (-1, count))


def _least_of_intervals(steps: Sequence[Step], rows: Rows, intervals: Sequence[Interval]):
    """[R], from the interval that the last dense layer reads: its rows are combined before they are bounded."""
    last = steps[-1]
    if not isinstance(last.operation, Dense):
        return least(rows, intervals[-1])
    read = last.inputs[0]
    alone = [Step(Image(), (), steps[read].shape, last.path), replace(last, inputs=(0,))]
    return lower_bounds(alone, rows, [intervals[read]])
