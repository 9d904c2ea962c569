"""Lower bounds of a network's margins and bounds of its outputs within a ball in the pixel box."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import keras
from keras import ops

from keras_rcl.bounds.alpha_crown import optimized_lower_bounds
from keras_rcl.bounds.crown import LinearForms, crown_intervals, least, lower_bounds
from keras_rcl.bounds.input_sets import Interval, pixel_ball
from keras_rcl.bounds.interval import interval_bounds, past_scaling
from keras_rcl.bounds.rounding import rounded_box, rounded_steps
from keras_rcl.errors import InvalidInputError
from keras_rcl.folding.fold import Dense, Image, ReLU, Step, fold
from keras_rcl.vocabulary.threat import Norm

Method = Literal["ibp", "crown-ibp", "crown", "alpha-crown"]
"""From loose and cheap to tight and expensive.

- `ibp`: intervals; the last dense layer is combined with the difference of its rows.
- `crown-ibp`: bounds that are linear in the image, intervals before each ReLU.
- `crown`: linear bounds before each ReLU as well.
- `alpha-crown`: `crown` with the slopes of the last rows' lower lines optimised.
"""


# Each of the keyword arguments is an independent choice with a default.
def worst_case_margins(
    network: keras.Model,
    images,
    labels,
    epsilon,
    method: Method = "crown",
    *,
    norm: Norm = "linf",
    iterations: int = 20,
    inner_iterations: int = 0,
    sound: bool = False,
):
    """Lower bounds of logit_y - logit_j over all images within epsilon, in a norm and in the pixel box.

        margins_j  <=  min over x' with ||x' - x|| <= epsilon, 0 <= x' <= 1 of logit_y(x') - logit_j(x')

    In L1 and L2, linear functions of the image are minimised over the intersection of ball and box, and the intervals
    after the first layer take the tighter of the dual norm and the box.

    The network is bounded in inference mode, with BatchNorm's moving statistics. The function works in a `tf.function`,
    which is several times faster. `ibp` and `crown-ibp` can be differentiated with respect to the network's variables.

    Args:
        network: functional, images -> logits [N, K] or a dict with `logits`; layers of `folding.fold.LAYERS`.
        images: [N, H, W, C] in [0, 1]; float64 images are bounded in float64.
        labels: int [N], each y.
        epsilon: radius in pixels, a number or a scalar tensor.
        method: none is looser than `ibp`, and `alpha-crown` is not looser than `crown`.
        norm: `linf`, `l2` or `l1`.
        iterations: of `alpha-crown`, for the margins.
        inner_iterations: of `alpha-crown`, for each bound before a ReLU; with 0 they are those of `crown`.
        sound: widen every bound by a proven bound of its rounding error, see `keras_rcl.bounds.rounding`; for `linf`.

    Returns:
        [N, K], 0 at j = y. Where all others are positive, every image of the ball is classified as y: up to the
        rounding of the floats, which is not bounded; if `sound`, by the folded network in real arithmetic.

    Raises:
        InvalidInputError: if the method or the norm is unknown, a layer has no bounds, or `sound` is for another norm
            than `linf`.

    References:
        Gowal et al. 2018 (`ibp`); Zhang et al. 2020 (`crown-ibp`); Zhang et al. 2018 (`crown`; dual norms); Xu et al.
        2021 (`alpha-crown`).

    Example:
        One pixel x = 0.5 within 0.25, and logits (0, x): the margin of class 1 over class 0 is x, at least 0.25.

        >>> import keras, numpy as np
        >>> image = keras.Input((1, 1, 1))
        >>> logits = keras.layers.Dense(2)(keras.layers.Flatten()(image))
        >>> network = keras.Model(image, logits)
        >>> network.set_weights([np.array([[0.0, 1.0]]), np.zeros(2)])
        >>> margins = worst_case_margins(network, np.full((1, 1, 1, 1), 0.5, "float32"), [1], 0.25)
        >>> keras.ops.convert_to_numpy(margins).tolist()
        [[0.25, 0.0]]
    """
    if sound and norm != "linf":
        raise InvalidInputError(f"sound bounds are not for {norm}; hint: use linf")
    if sound:
        images = ops.convert_to_tensor(images)
        dtype = keras.backend.standardize_dtype(images.dtype)
        steps, box = rounded_steps(network, dtype), rounded_box(images, epsilon, dtype)
    else:
        images, steps = _images_and_steps(network, images, "logits")
        box = pixel_ball(images, epsilon, norm)
    differences = _differences(labels, steps, images.dtype)
    steps, box = past_scaling(steps, box)
    return _with_label(_least(steps, box, differences, method, iterations, inner_iterations), labels)


def worst_case_outputs(
    network: keras.Model, images, labels, epsilon, bound: Method = "ibp", statistics: Mapping | None = None
) -> dict:
    """The terms of certified training, differentiable with respect to the network's variables.

        logits_j  >=  max over the ball of logit_j(x') - logit_y(x')

    so that the cross-entropy of these logits is at least that of any image in the ball (Wong and Kolter 2018).

    Args:
        network: functional, images -> logits [N, K] or a dict with `logits`; layers of `folding.fold.LAYERS`.
        images: [N, H, W, C] in [0, 1].
        labels: int [N], each y.
        epsilon: radius in pixels, a number or a scalar tensor.
        bound: `ibp`, `crown-ibp` or `crown-ibp-fused` (loss fusion).
        statistics: as of `fold`.

    Returns:
        A dict of `logits` [N, K], 0 at the label, and of the scalars `interval_tightness` and `relu_balance`.

    Raises:
        InvalidInputError: if a layer has no bounds.

    References:
        Wong and Kolter 2018, "Provable defenses via the convex outer adversarial polytope"; Zhang et al. 2020; Xu et
        al. 2020 (loss fusion); Shi et al. 2021 (the two scalars).
    """
    images, steps = _images_and_steps(network, images, "logits", statistics)
    steps, box = past_scaling(steps, pixel_ball(images, epsilon))
    (classes,), intervals = steps[-1].shape, interval_bounds(steps, box)
    differences = _differences(labels, steps, images.dtype)
    if bound == "crown-ibp-fused":
        logits = _with_label(_fused(steps, differences, intervals), labels)
    else:
        rows = LinearForms(ops.reshape(differences, (-1, classes)))
        margins = _least_of_intervals(steps, rows, intervals)
        if bound == "crown-ibp":
            margins = ops.maximum(margins, lower_bounds(steps, rows, intervals))
        logits = -_with_label(ops.reshape(margins, (-1, classes - 1)), labels)
    read = [intervals[step.inputs[0]] for step in steps if isinstance(step.operation, ReLU)]
    # A mean over the pixels that vary: those of a padding do not.
    width = ops.sum(box.radius) / ops.cast(ops.size(images), images.dtype)
    return {
        "logits": logits,
        "interval_tightness": interval_tightness(width, read),
        "relu_balance": relu_balance(read),
    }


def _fused(steps: Sequence[Step], differences, intervals: Sequence[Interval]):
    """Logits [N, K - 1] of the other classes whose cross-entropy bounds that of the whole ball, by one row per image.

    With d_j = logit_j - logit_y within l_j <= d_j <= u_j by intervals, exp lies below its chord there, and so

        sum_j exp(d_j) <= sum_j (s_j d_j + exp(l_j) - s_j l_j),    s_j = (exp(u_j) - exp(l_j)) / (u_j - l_j)

    which is linear in the logits: CROWN bounds it at the cost of one row, where the margins are K - 1. The logarithm
    is put at the class of the largest u_j, and a very small logit at the others: if it is below 0, all d_j are.

    References:
        Xu et al. 2020, "Automatic perturbation analysis", section 3.3 (loss fusion).
    """
    others, classes = differences.shape[1:]

    def by_intervals(functions):
        found = _least_of_intervals(steps, LinearForms(ops.reshape(functions, (-1, classes))), intervals)
        return ops.reshape(found, (-1, others))

    lower, upper = by_intervals(-differences), -by_intervals(differences)
    shift = ops.stop_gradient(ops.max(upper, axis=1, keepdims=True))
    width, floor, ceiling = upper - lower, ops.exp(lower - shift), ops.exp(upper - shift)
    narrow = width < _NARROW  # by its series, for the quotient would be of roundings
    series = floor * (1 + width / 2 + width**2 / 6 + width**3 / 24)
    slope = ops.where(narrow, series, (ceiling - floor) / ops.where(narrow, ops.ones_like(width), width))
    row = LinearForms(ops.matmul(slope[:, None], differences)[:, 0])
    total = ops.sum(floor - slope * lower, axis=1) - lower_bounds(steps, row, intervals)
    total = ops.maximum(ops.minimum(total, ops.sum(ceiling, axis=1)), ops.sum(floor, axis=1))
    largest = ops.one_hot(ops.argmax(upper, axis=1), others, dtype="bool")
    return ops.where(largest, ops.log(total)[:, None] + shift, ops.cast(_NEXT_TO_NOTHING, upper.dtype))


TOLERANCE = 0.5
"""tau of Shi et al. 2021: ratios above it are not penalised."""

_SMALL = 1e-12

_NARROW = 1e-2

_NEXT_TO_NOTHING = -1e4


def interval_tightness(width, read: Sequence[Interval]):
    """mean over ReLUs i of max(0, tau - width / mean(radius_i)) / tau.

    Args:
        width: the mean radius of the box of images.
        read: bounds of the input of each ReLU.

    Returns:
        A scalar.

    References:
        Shi et al. 2021, "Fast certified robust training with short warmup", section 3.3.
    """
    ratios = [width / ops.maximum(ops.mean(x.radius), _SMALL) for x in read]
    return sum(ops.relu(TOLERANCE - ratio) for ratio in ratios) / (TOLERANCE * max(1, len(read)))


def relu_balance(read: Sequence[Interval]):
    """mean over ReLUs of (max(0, tau - min(m, 1/m)) + max(0, tau - min(v, 1/v))) / tau.

    m is the absolute ratio of the sum of the centers of active neurons (lower > 0) to that of inactive ones
    (upper < 0); v is the same ratio of the squared distances of the centers from their mean. A ReLU where one of the
    two sets is empty counts as 0.

    Args:
        read: bounds of the input of each ReLU.

    Returns:
        A scalar.

    References:
        As of `interval_tightness`.
    """
    total = 0.0
    for x in read:
        center, active, inactive = x.center, x.lower > 0, x.upper < 0
        both = ops.logical_and(ops.any(active), ops.any(inactive))
        # Products with 0 and 1: a selection and its gradient take several times as long on a CPU.
        shares = [ops.cast(where, center.dtype) for where in (active, inactive)]
        for values in (center, ops.square(center - ops.mean(center))):
            one, other = (ops.abs(ops.sum(values * share)) for share in shares)
            # Where nothing is compared, 1 stands in for either side, so that no gradient is 0 times infinity.
            one, other = (ops.where(both, side, ops.ones_like(side)) for side in (one, other))
            total = total + ops.relu(TOLERANCE - ops.minimum(one, other) / ops.maximum(one, other))
    return total / (TOLERANCE * max(1, len(read)))


# Each of the keyword arguments is an independent choice with a default.
def output_bounds(
    network: keras.Model,
    images,
    epsilon,
    method: Method = "ibp",
    output: str = "logits",
    *,
    norm: Norm = "linf",
    iterations: int = 20,
    inner_iterations: int = 0,
    statistics: Mapping | None = None,
) -> Interval:
    """Bounds of each value of an output over a ball in the pixel box.

        lower_k  <=  output_k(x')  <=  upper_k   for all x' with ||x' - x|| <= epsilon, 0 <= x' <= 1

    Bounds of margins by `worst_case_margins` are tighter than differences of these.

    Args:
        network: functional, images -> the output or a dict with it; layers of `folding.fold.LAYERS`.
        images: [N, H, W, C] in [0, 1]; float64 images are bounded in float64.
        epsilon: radius in pixels, a number or a scalar tensor.
        method: as of `worst_case_margins`.
        output: the name of the output in a dict.
        norm: as of `worst_case_margins`.
        iterations: as of `worst_case_margins`.
        inner_iterations: as of `worst_case_margins`.
        statistics: as of `fold`.

    Returns:
        An interval of two tensors [N, *shape], [N, K] for logits.

    Raises:
        InvalidInputError: if the method or the norm is unknown, the network does not have the output, or a layer has
            no bounds.

    References:
        As of `worst_case_margins`.

    Example:
        >>> import keras, numpy as np
        >>> image = keras.Input((1, 1, 1))
        >>> network = keras.Model(image, keras.layers.Dense(1)(keras.layers.Flatten()(image)))
        >>> network.set_weights([np.array([[2.0]]), np.zeros(1)])
        >>> bounds = output_bounds(network, np.full((1, 1, 1, 1), 0.5, "float32"), 0.25)
        >>> float(bounds.lower[0, 0]), float(bounds.upper[0, 0])
        (0.5, 1.5)
    """
    images, steps = _images_and_steps(network, images, output, statistics)
    shape = steps[-1].shape
    steps, box = past_scaling(steps, pixel_ball(images, epsilon, norm))
    if method == "ibp":
        return interval_bounds(steps, box)[-1]
    unit = ops.reshape(ops.eye(ops.prod(shape), dtype=images.dtype), (-1, *shape))
    both = ops.broadcast_to(ops.concatenate([unit, -unit]), (ops.shape(images)[0], 2 * unit.shape[0], *shape))
    lower, upper = ops.split(_least(steps, box, both, method, iterations, inner_iterations), 2, axis=1)
    return Interval(*(ops.reshape(values, (-1, *shape)) for values in (lower, -upper)))


def output_lower_bounds(
    network: keras.Model,
    images,
    epsilon,
    method: Literal["ibp", "crown-ibp"] = "ibp",
    output: str = "logits",
    *,
    statistics: Mapping | None = None,
):
    """The lower side of `output_bounds`, at half the cost for `crown-ibp`.

    Args:
        network: as of `output_bounds`, like the other arguments.
        images: see `network`.
        epsilon: see `network`.
        method: `ibp` or `crown-ibp`.
        output: see `network`.
        statistics: see `network`.

    Returns:
        [N, *shape].

    Raises:
        InvalidInputError: as of `output_bounds`.
    """
    images, steps = _images_and_steps(network, images, output, statistics)
    shape = steps[-1].shape
    steps, box = past_scaling(steps, pixel_ball(images, epsilon))
    if method == "ibp":
        return interval_bounds(steps, box)[-1].lower
    unit = ops.reshape(ops.eye(ops.prod(shape), dtype=images.dtype), (-1, *shape))
    rows = ops.broadcast_to(unit, (ops.shape(images)[0], *unit.shape))
    return ops.reshape(_least(steps, box, rows, method, 0, 0), (-1, *shape))


def _images_and_steps(network: keras.Model, images, output: str, statistics: Mapping | None = None) -> tuple:
    images = ops.convert_to_tensor(images)
    return images, fold(network, output, keras.backend.standardize_dtype(images.dtype), statistics)


def _differences(labels, steps: Sequence[Step], dtype: str):
    """logit_y - logit_j for j other than y, as functions of the logits: [N, K - 1, K]."""
    (classes,), own = steps[-1].shape, ops.cast(labels, "int32")[:, None]
    unit, others = ops.eye(classes, dtype=dtype), ops.arange(classes - 1, dtype="int32")
    return ops.take(unit, own, axis=0) - ops.take(unit, others + ops.cast(others >= own, "int32"), axis=0)


def _with_label(margins, labels):
    """The margins [N, K - 1] of the others with a 0 put in at the label: [N, K]."""
    own, column = ops.cast(labels, "int32")[:, None], ops.arange(margins.shape[1] + 1, dtype="int32")
    before, after = (ops.pad(margins, [(0, 0), side]) for side in ((0, 1), (1, 0)))
    return ops.where(column < own, before, ops.where(column > own, after, ops.zeros_like(after)))


def _least(steps: Sequence[Step], box: Interval, functions, method: Method, iterations: int, inner_iterations: int):
    """Lower bounds [N, M] of linear functions [N, M, *shape] of the last step's values."""
    if method not in get_args(Method):
        raise InvalidInputError(f"unknown method {method!r}; choose from {', '.join(get_args(Method))}")
    count = functions.shape[1]
    rows = LinearForms(ops.reshape(functions, (-1, *steps[-1].shape)))
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


def _least_of_intervals(steps: Sequence[Step], rows: LinearForms, intervals: Sequence[Interval]):
    """[R], from the interval that the last dense layer reads: its rows are combined before they are bounded."""
    last = steps[-1]
    if not isinstance(last.operation, Dense):
        return least(rows, intervals[-1])
    read = last.inputs[0]
    alone = [Step(Image(), (), steps[read].shape, last.path), replace(last, inputs=(0,))]
    return lower_bounds(alone, rows, [intervals[read], intervals[-1]])
