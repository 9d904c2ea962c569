"""A folded network as a function of images: what it computes at inference, in fewer passes over memory."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_rcl.errors import InvalidInputError
from keras_rcl.folding import input_gradient, winograd
from keras_rcl.folding.fold import (
    NO_ZEROS,
    Add,
    Conv,
    Dense,
    Max,
    Mean,
    Pad,
    PixelScale,
    ReLU,
    Reshape,
    Scale,
    SShaped,
    Step,
    fold,
)


def at_inference(network: keras.Model, output: str = "logits", dtype: str = "float32") -> Callable:
    """A network's output at inference as a function of images: folded if its layers allow, otherwise called.

    Args:
        network: as of `folded`, or any other Keras model with a dict of outputs.
        output: the name of the output.
        dtype: as of `folded`.

    Returns:
        images [N, H, W, C] -> float32 [N, D].
    """
    try:
        return folded(network, output, dtype)
    except InvalidInputError:
        return lambda images: network(images, training=False)[output]


def inference_graph(network: keras.Model) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return a network's outputs at inference as a function of images, traced once for any number of images.

    It is not for attacks: its gradient passes through every output, also through those that a loss does not read.

    Args:
        network: with a dict of outputs.

    Returns:
        float32 images [N, H, W, C] in [0, 1] -> a dict of all outputs.
    """

    @tf.function(input_signature=[tf.TensorSpec(network.input_shape)], autograph=False)
    def outputs(images):
        return network(images, training=False)

    return outputs


def folded(network: keras.Model, output: str = "logits", dtype: str = "float32") -> Callable:
    """A network's output at inference as a function of images, with its BatchNorms folded and its present weights.

    The function differs from the network by rounding: that of float32, or of bfloat16 (8 bits). With `bfloat16`, the
    layers up to the first ReLU stay in float32, so that sums of pixel gradients do not cancel to exactly 0; the last
    layer is float32 as well.

    Args:
        network: functional or Sequential, with layers of `folding.fold.LAYERS`.
        output: the name of the output in a dict.
        dtype: `float32` or `bfloat16`.

    Returns:
        images [N, H, W, C] -> float32 [N, D].

    Raises:
        InvalidInputError: as of `fold`, or if there is a maximum pooling, which as a convolution costs more than
            folding saves.

    Example:
        >>> import keras, numpy as np
        >>> image = keras.Input((2, 2, 1))
        >>> x = keras.layers.Flatten()(keras.layers.Rescaling(2.0)(image))
        >>> network = keras.Model(image, keras.layers.Dense(1, kernel_initializer="ones")(x))
        >>> forward = folded(network)
        >>> float(forward(np.full((1, 2, 2, 1), 0.5, "float32"))[0, 0])
        4.0
    """
    steps = fold(network, output)
    for step in steps:
        if isinstance(step.operation, Max):
            raise InvalidInputError(
                f"layer {step.path} is a maximum pooling, which is slow when folded; call the network"
            )
    calls = [_Call(tf.identity, ())]
    for step in steps[1:]:
        calls.append(_in_half(step, steps, calls) if dtype == "bfloat16" else _call(step, steps, calls))

    def run(images):
        found: dict[tuple[int, _Form], tf.Tensor] = {(0, PLAIN): images}

        def value(number: int, form: _Form):
            if (number, form) not in found:
                call = calls[number]
                if form is call.form:
                    computed = call.compute(*(value(read, form) for read in call.reads))
                elif form is PLAIN:
                    computed = call.form.plain(value(number, call.form))
                else:
                    computed = form.of_plain(value(number, PLAIN))
                found[number, form] = computed
            return found[number, form]

        return value(len(calls) - 1, PLAIN)

    return run


class _Form(NamedTuple):
    """A layout of values [N, ...]: the functions from the plain layout to it, and back."""

    of_plain: Callable
    plain: Callable


PLAIN = _Form(tf.identity, tf.identity)
PIXELS_FIRST = _Form(lambda x: tf.transpose(x, [1, 2, 0, 3]), lambda x: tf.transpose(x, [2, 0, 1, 3]))
HALF = _Form(lambda x: tf.cast(x, tf.bfloat16), lambda x: tf.cast(x, tf.float32))


class _Call(NamedTuple):
    """How a step is computed from the values of the steps that it reads; these and the result are in one form."""

    compute: Callable
    reads: tuple[int, ...]
    form: _Form = PLAIN


def _call(step: Step, steps: list[Step], before: list[_Call]) -> _Call:
    """The fastest way to compute a step."""
    operation = step.operation
    amounts, unpadded = _zeros_before(step, steps)
    if amounts != NO_ZEROS and (padding := _own_padding(operation, amounts)) is not None:
        if padding == "SAME" and _suits_winograd(step):
            filtered = winograd.convolution(operation.kernel)
            return _Call(lambda x: filtered(x) + operation.bias, unpadded, PIXELS_FIRST)
        if padding == "SAME" and operation.kernel.shape[2] >= SOME_CHANNELS and _on_cpu():
            return _Call(input_gradient.convolution(operation.kernel, operation.bias, 1, amounts), unpadded)
        return _Call(functools.partial(_conv, step, padding=padding), unpadded)
    either = isinstance(operation, (ReLU, SShaped, Add, Scale)) and any(
        before[read].form is PIXELS_FIRST for read in step.inputs
    )
    return _Call(functools.partial(RULES[type(operation)], step), step.inputs, PIXELS_FIRST if either else PLAIN)


def _in_half(step: Step, steps: list[Step], before: list[_Call]) -> _Call:
    """As `_call`; bfloat16 for what follows a ReLU, except means, curves, the last step, and what has no such rule."""
    operation = step.operation
    amounts, reads = _zeros_before(step, steps)
    follows = any(isinstance(steps[read].operation, ReLU) or before[read].form is HALF for read in reads)
    if not follows or step is steps[-1] or isinstance(operation, (Mean, PixelScale, SShaped)):
        return _call(step, steps, before)
    if isinstance(operation, Conv):
        (stride, other), size = operation.strides, operation.kernel.shape[:2]
        if stride != other or any(max(zeros) >= taps for zeros, taps in zip(amounts, size, strict=True)):
            return _call(step, steps, before)
        kernel, bias = HALF.of_plain(operation.kernel), HALF.of_plain(operation.bias)
        return _Call(input_gradient.convolution(kernel, bias, stride, amounts), reads, HALF)
    weights = {name: HALF.of_plain(getattr(operation, name)) for name in WEIGHTS.get(type(operation), ())}
    halved = replace(step, operation=replace(operation, **weights))
    return _Call(functools.partial(RULES[type(operation)], halved), reads, HALF)


WEIGHTS = {Dense: ("kernel", "bias"), Scale: ("factor", "offset")}
"""Kind of operation -> its fields that are numbers of the network."""

SOME_CHANNELS = 16
"""With at least this number of channels, a convolution takes the gradient of one of stride 1 in 0.5 to 0.9 of the time
of oneDNN's own gradient; with 3 channels in twice its time."""

FEW_PIXELS, MANY_CHANNELS = 16, 128
"""With at least this number of channels, and at most this number of rows and columns, minimal filtering takes 0.45 to
0.65 times as long as oneDNN's convolution; with 64 channels of 32 x 32 pixels it takes 1.5 times as long."""


def _suits_winograd(step: Step) -> bool:
    """Whether a convolution that pads as `same` does is computed by minimal filtering."""
    height, width, *channels = step.operation.kernel.shape
    suits = (
        (height, width) == (winograd.TAPS,) * 2 and min(channels) >= MANY_CHANNELS and max(step.shape[:2]) <= FEW_PIXELS
    )
    return suits and _on_cpu()


def _on_cpu() -> bool:
    return not tf.config.list_logical_devices("GPU")


def _zeros_before(step: Step, steps: list[Step]) -> tuple[tuple, tuple[int, ...]]:
    """The zeros around the image that a convolution reads, and the steps read when it adds them itself."""
    read = steps[step.inputs[0]]
    if isinstance(step.operation, Conv) and isinstance(read.operation, Pad):
        return read.operation.amounts, read.inputs
    return NO_ZEROS, step.inputs


FEW_FILTERS = 64
"""Up to this number of filters, oneDNN's gradient of a strided convolution is faster with the padding inside it (twice
on images, 1.2 times from 32 to 64 channels); with more filters another kernel takes 2 to 4 times as long."""


def _own_padding(operation: Conv, amounts: tuple) -> str | list | None:
    """The padding argument of a convolution that adds the zeros itself, or None if another step adds them faster."""
    height, width, _, filters = operation.kernel.shape
    if operation.strides == (1, 1):
        same = tuple(((size - 1) // 2, size // 2) for size in (height, width))
        return "SAME" if amounts == same else None
    return [[0, 0], *map(list, amounts), [0, 0]] if filters <= FEW_FILTERS else None


def _conv(step: Step, x, padding="VALID"):
    operation = step.operation
    # By `bias_add`, which TensorFlow fuses with the convolution and the ReLU after it; a sum is not fused.
    return tf.nn.bias_add(tf.nn.conv2d(x, operation.kernel, operation.strides, padding), operation.bias)


FEW_CHANNELS = 4
"""Up to this number of channels, a value per channel is expanded to every pixel: short rows broadcast slowly."""


def _scale(step: Step, x):
    factor, offset = step.operation.factor, step.operation.offset
    if step.shape[-1] <= FEW_CHANNELS:
        factor, offset = (ops.broadcast_to(each, step.shape) for each in (factor, offset))
    return x * factor + offset


CURVES: dict[str, Callable] = {"sigmoid": ops.sigmoid, "tanh": ops.tanh}
"""By kind of `SShaped`."""

RULES: dict[type, Callable] = {
    Conv: _conv,
    Dense: lambda step, x: ops.matmul(x, step.operation.kernel) + step.operation.bias,
    Scale: _scale,
    PixelScale: lambda step, x: x * ops.cast(step.operation.weight, x.dtype),
    Pad: lambda step, x: ops.pad(x, [(0, 0), *step.operation.amounts, (0, 0)]),
    Reshape: lambda step, x: ops.reshape(x, (-1, *step.shape)),
    Mean: lambda step, x: ops.mean(x, axis=(1, 2)),
    Add: lambda step, *inputs: sum(inputs[1:], inputs[0]),
    ReLU: lambda step, x: ops.relu(x),
    SShaped: lambda step, x: CURVES[step.operation.kind](x),
}
"""Kind of step -> its rule `(step, *inputs) -> values`."""
