"""A folded network in NumPy and float64: counter-examples are checked independently of the code that found them."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit

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


def evaluate(steps: Sequence[Step], images: np.ndarray) -> np.ndarray:
    """The last step's values [N, *shape] of images [N, H, W, C]; steps as of `fold(network, dtype="float64")`."""
    found: list[np.ndarray] = []
    for step in steps:
        inputs = [found[number] for number in step.inputs] or [np.asarray(images, np.float64)]
        found.append(RULES[type(step.operation)](step, *inputs))
    return found[-1]


def _conv(step: Step, x: np.ndarray) -> np.ndarray:
    kernel, (down, right) = np.asarray(step.operation.kernel), step.operation.strides
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))[:, ::down, ::right]
    return np.tensordot(windows, kernel, axes=([4, 5, 3], [0, 1, 2])) + np.asarray(step.operation.bias)


def _max(step: Step, x: np.ndarray) -> np.ndarray:
    valid = step.operation.valid[..., None]
    return np.where(valid, x.reshape(*x.shape[:3], valid.shape[-2], -1), -np.inf).max(axis=-2)


CURVES: dict[str, Callable] = {"sigmoid": expit, "tanh": np.tanh}
"""By kind of `SShaped`."""

RULES: dict[type, Callable[..., np.ndarray]] = {
    Image: lambda step, x: x,
    Conv: _conv,
    Dense: lambda step, x: x @ np.asarray(step.operation.kernel) + np.asarray(step.operation.bias),
    Scale: lambda step, x: x * np.asarray(step.operation.factor) + np.asarray(step.operation.offset),
    PixelScale: lambda step, x: x * step.operation.weight,
    Pad: lambda step, x: np.pad(x, [(0, 0), *step.operation.amounts, (0, 0)]),
    Reshape: lambda step, x: x.reshape(-1, *step.shape),
    Mean: lambda step, x: x.mean(axis=(1, 2)),
    Add: lambda step, *inputs: sum(inputs),
    ReLU: lambda step, x: np.maximum(x, 0),
    SShaped: lambda step, x: CURVES[step.operation.kind](x),
    Max: _max,
}
"""Kind of step -> its rule `(step, *inputs) -> values`."""
