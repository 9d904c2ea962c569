"""A folded network as a function of images: what it computes at inference, in fewer passes over memory."""

from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops

from keras_rcl.bounds.fold import Add, Conv, Dense, Image, Max, Mean, Pad, ReLU, Reshape, Scale, Step, Weigh, fold
from keras_rcl.vocabulary.word import Refused


def at_inference(network: keras.Model, output: str = "logits") -> Callable:
    """images [N, H, W, C] -> an output of the network at inference: folded where it can be, else called."""
    try:
        return folded(network, output)
    except Refused:
        return lambda images: network(images, training=False)[output]


def folded(network: keras.Model, output: str = "logits") -> Callable:
    """images [N, H, W, C] -> an output of the network, its BatchNorms folded; weights as they are now.

    It differs from the network by float32 rounding. Arguments and refusals are those of `fold`; besides, maximum
    pooling is refused, which as a convolution costs more than folding saves.
    """
    steps = fold(network, output)
    for step in steps:
        if isinstance(step.operation, Max):
            raise Refused(f"layer {step.path} is a maximum pooling, which is slow when folded; call the network")
    paddings = {number: padding for number, step in enumerate(steps) if (padding := _own_padding(step, steps))}

    def run(images):
        found: list = []
        for number, step in enumerate(steps):
            if number in paddings:
                unpadded = steps[step.inputs[0]].inputs[0]
                found.append(_conv(step, found[unpadded], paddings[number]))
                continue
            inputs = [found[number] for number in step.inputs] or [images]
            found.append(RULES[type(step.operation)](step, *inputs))
        return found[-1]

    return run


FEW_FILTERS = 64
"""Up to so many, oneDNN's gradient of a strided convolution is faster with the padding inside it (twice on images, 1.2
times from 32 to 64 channels); with more it takes another kernel, and 2 to 4 times as long."""


def _own_padding(step: Step, steps: list[Step]) -> str | list | None:
    """How a convolution of zero-padded images does the padding itself, or None where it does not, or had better not."""
    if not isinstance(step.operation, Conv) or not isinstance(steps[step.inputs[0]].operation, Pad):
        return None
    amounts = steps[step.inputs[0]].operation.amounts
    height, width, _, filters = step.operation.kernel.shape
    if step.operation.strides == (1, 1):
        same = tuple(((size - 1) // 2, size // 2) for size in (height, width))
        return "SAME" if amounts == same else None
    return [[0, 0], *map(list, amounts), [0, 0]] if filters <= FEW_FILTERS else None


def _conv(step: Step, x, padding="VALID"):
    operation = step.operation
    # By `bias_add`, which TensorFlow fuses into the convolution, with the ReLU after it; a sum it does not.
    return tf.nn.bias_add(tf.nn.conv2d(x, operation.kernel, operation.strides, padding), operation.bias)


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
}
"""Kind of step -> its rule `(step, *inputs) -> values`."""
