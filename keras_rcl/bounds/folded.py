"""A folded network as a function of images: what it computes at inference, in fewer passes over memory."""

from collections.abc import Callable

import keras
from keras import ops

from keras_rcl.bounds.fold import Add, Conv, Dense, Image, Max, Mean, Pad, ReLU, Reshape, Scale, Step, Weigh, fold


def folded(network: keras.Model, output: str = "logits") -> Callable:
    """images [N, H, W, C] -> an output of the network, its BatchNorms folded; weights as they are now.

    It differs from the network by float32 rounding. Arguments and refusals are those of `fold`.
    """
    steps = fold(network, output)

    def run(images):
        found: list = []
        for step in steps:
            inputs = [found[number] for number in step.inputs] or [images]
            found.append(RULES[type(step.operation)](step, *inputs))
        return found[-1]

    return run


def _conv(step: Step, x):
    operation = step.operation
    return ops.conv(x, operation.kernel, operation.strides, "valid") + operation.bias


def _max(step: Step, x):
    valid = step.operation.valid[..., None]
    rows, columns, channels = step.shape
    windows = ops.reshape(x, (-1, rows, columns, valid.shape[-2], channels))
    return ops.max(ops.where(valid, windows, -float("inf")), axis=-2)


RULES: dict[type, Callable] = {
    Image: lambda step, x: x,
    Conv: _conv,
    Dense: lambda step, x: ops.matmul(x, step.operation.kernel) + step.operation.bias,
    Scale: lambda step, x: x * step.operation.factor + step.operation.offset,
    Weigh: lambda step, x: x * ops.cast(step.operation.weight, x.dtype),
    Pad: lambda step, x: ops.pad(x, [(0, 0), *step.operation.amounts, (0, 0)]),
    Reshape: lambda step, x: ops.reshape(x, (-1, *step.shape)),
    Mean: lambda step, x: ops.mean(x, axis=(1, 2)),
    Add: lambda step, *inputs: sum(inputs[1:], inputs[0]),
    ReLU: lambda step, x: ops.relu(x),
    Max: _max,
}
"""Kind of step -> its rule `(step, *inputs) -> values`."""
