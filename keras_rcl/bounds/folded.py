"""A folded network as a function of images: what it computes at inference, in fewer passes over memory."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_rcl.bounds.few_multiplications import TAPS, convolution
from keras_rcl.bounds.fold import Add, Conv, Dense, Max, Mean, Pad, ReLU, Reshape, Scale, Step, Weigh, fold
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
    calls = [_Call(tf.identity, ())]
    for step in steps[1:]:
        calls.append(_call(step, steps, calls))

    def run(images):
        found: dict[tuple[int, bool], tf.Tensor] = {(0, False): images}

        def value(number: int, pixels_first: bool):
            if (number, pixels_first) not in found:
                call = calls[number]
                if pixels_first == call.pixels_first:
                    computed = call.compute(*(value(read, pixels_first) for read in call.reads))
                else:
                    order = [1, 2, 0, 3] if pixels_first else [2, 0, 1, 3]
                    computed = tf.transpose(value(number, not pixels_first), order)
                found[number, pixels_first] = computed
            return found[number, pixels_first]

        return value(len(calls) - 1, False)

    return run


class _Call(NamedTuple):
    """How a step is computed.

    compute: of the values of the steps that are read. pixels_first: whether these and the result are [H, W, N, C] in
    place of [N, H, W, C].
    """

    compute: Callable
    reads: tuple[int, ...]
    pixels_first: bool = False


def _call(step: Step, steps: list[Step], before: list[_Call]) -> _Call:
    """The fastest way to compute a step."""
    operation = step.operation
    if (padding := _own_padding(step, steps)) is not None:
        unpadded = steps[step.inputs[0]].inputs
        if padding == "SAME" and _has_few_multiplications(step):
            filtered = convolution(operation.kernel)
            return _Call(lambda x: filtered(x) + operation.bias, unpadded, pixels_first=True)
        return _Call(functools.partial(_conv, step, padding=padding), unpadded)
    either = isinstance(operation, (ReLU, Add, Scale)) and any(before[read].pixels_first for read in step.inputs)
    return _Call(functools.partial(RULES[type(operation)], step), step.inputs, either)


FEW_PIXELS, MANY_CHANNELS = 16, 128
"""From so many channels on, of images of at most so many rows and columns, minimal filtering takes 0.45 to 0.65 times
as long as oneDNN's convolution; with 64 channels of 32 x 32 pixels 1.5 times."""


def _has_few_multiplications(step: Step) -> bool:
    """Whether a convolution that pads as `same` does is computed by minimal filtering."""
    height, width, *channels = step.operation.kernel.shape
    suits = (height, width) == (TAPS, TAPS) and min(channels) >= MANY_CHANNELS and max(step.shape[:2]) <= FEW_PIXELS
    return suits and not tf.config.list_logical_devices("GPU")


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
