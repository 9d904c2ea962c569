"""A Keras network as a list of simple steps, its BatchNorms folded: the form that bounds and exports use.

The steps compute what the network does at inference, to within float rounding, with fewer layers:

- BatchNorm, normalisation and rescaling join the convolution or dense layer before them, or the dense layer after;
- a dense layer joins a dense layer before it, so that the last step is the whole linear tail of the network (the
  elision of the last layer, Gowal et al. 2018, takes it in one piece);
- an average pooling is a convolution; a maximum pooling is a convolution that lays a window's pixels side by side as
  channels, and the maximum over them.

Kernels stay functions of the network's variables, so that a gradient tape sees through all of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_rcl.errors import InvalidInputError
from keras_rcl.folding.graph_walk import ENDS_IN_LOGITS, PROBABILITIES, propagate

Zeros = tuple[tuple[int, int], tuple[int, int]]
"""Zeros around an image: ((top, bottom), (left, right))."""

NO_ZEROS: Zeros = ((0, 0), (0, 0))

S_SHAPED = ("sigmoid", "tanh")
"""The kinds of `SShaped`."""


@dataclass(frozen=True, eq=False)
class Image:
    """The network's input."""


@dataclass(frozen=True, eq=False)
class Conv:
    """Convolution without padding: kernel [kh, kw, C, F], bias [F], strides (down, right)."""

    kernel: Any
    bias: Any
    strides: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Dense:
    """x @ kernel + bias: kernel [F, G], bias [G]."""

    kernel: Any
    bias: Any


@dataclass(frozen=True, eq=False)
class Scale:
    """factor x + offset, one value of each per channel, [C]."""

    factor: Any
    offset: Any


@dataclass(frozen=True, eq=False)
class PixelScale:
    """weight x, one constant per pixel, [H, W, 1]."""

    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class Pad:
    """Zeros around the image: ((top, bottom), (left, right))."""

    amounts: Zeros


@dataclass(frozen=True, eq=False)
class Reshape:
    """The same values in the step's shape."""


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean over all pixels: [H, W, C] -> [C]."""


@dataclass(frozen=True, eq=False)
class Add:
    """The sum of all inputs."""


@dataclass(frozen=True, eq=False)
class ReLU:
    """max(x, 0)."""


@dataclass(frozen=True, eq=False)
class SShaped:
    """A smooth monotone curve, convex below 0 and concave above.

    Attributes:
        kind: `sigmoid` or `tanh`.
    """

    kind: str


@dataclass(frozen=True, eq=False)
class Max:
    """The maximum over k: [H, W, k C] -> [H, W, C].

    Attributes:
        valid: bool [H, W, k], which of the k are compared; at least one everywhere.
    """

    valid: np.ndarray


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of a folded network.

    Attributes:
        operation: one of the kinds above.
        inputs: the numbers of the steps that it reads.
        shape: of its result, without the batch.
        path: of the layer that it comes from.
    """

    operation: Any
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    path: str


def fold(
    network: keras.Model, output: str = "logits", dtype: str = "float32", statistics: Mapping | None = None
) -> list[Step]:
    """Fold a network into steps.

    Args:
        network: functional or Sequential, image [N, H, W, C] or [N, F] -> the output.
        output: the name of the output in a dict.
        dtype: of the kernels, whatever the layers' own policies are.
        statistics: path of a BatchNorm -> the mean and variance to use in training in place of its moving ones.

    Returns:
        The steps from the image, the first, to the output, the last; each after those that it reads.

    Raises:
        InvalidInputError: if a layer on the way, named by its path, is not one of `LAYERS` or has a setting without
            bounds.

    References:
        Gowal et al. 2018, "On the effectiveness of interval bound propagation" (the elision of the last layer).

    Example:
        BatchNorm joins the dense layer before it:

        >>> import keras
        >>> image = keras.Input((4, 4, 1))
        >>> x = keras.layers.Dense(3)(keras.layers.Flatten()(image))
        >>> network = keras.Model(image, keras.layers.ReLU()(keras.layers.BatchNormalization()(x)))
        >>> [type(step.operation).__name__ for step in fold(network)]
        ['Image', 'Reshape', 'Dense', 'ReLU']
    """
    builder = _Builder(dtype, statistics or {})
    last = propagate(network, dict.fromkeys(LAYERS, builder.translate), builder.image, output)
    return needed(builder.steps, last)


ROUNDING = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""By compute dtype: how far logits may be from those in float64; in half precision relative to the largest, or to 1."""


def least_precise_dtype(network: keras.Model) -> str:
    """Return the dtype in which a network computes: `bfloat16` or `float16` if any of its layers does, else `float32`.

    Example:
        >>> import keras
        >>> image = keras.Input((4,))
        >>> least_precise_dtype(keras.Model(image, keras.layers.Dense(3, dtype="mixed_float16")(image)))
        'float16'
    """
    dtypes = {layer.compute_dtype for layer in network._flatten_layers()}
    return next((dtype for dtype in ("bfloat16", "float16") if dtype in dtypes), "float32")


LAYERS = {
    keras.layers.Conv2D: "conv",
    keras.layers.Dense: "dense",
    keras.layers.BatchNormalization: "batch_norm",
    keras.layers.Normalization: "normalization",
    keras.layers.Rescaling: "rescaling",
    keras.layers.ReLU: "relu_layer",
    keras.layers.Activation: "activation",
    keras.layers.Add: "sum",
    keras.layers.Flatten: "reshape",
    keras.layers.Reshape: "reshape",
    keras.layers.ZeroPadding2D: "zero_padding",
    keras.layers.AveragePooling2D: "average_pooling",
    keras.layers.MaxPooling2D: "max_pooling",
    keras.layers.GlobalAveragePooling2D: "global_average",
    keras.layers.Dropout: "identity",
    keras.layers.SpatialDropout2D: "identity",
    keras.layers.GaussianNoise: "identity",
    keras.layers.Identity: "identity",
    keras.layers.InputLayer: "identity",
}
"""Layer type -> the method of `_Builder` that turns it into steps."""


def needed(steps: Sequence[Step], last: int) -> list[Step]:
    """The steps that a step depends on, itself included, with new numbers."""
    used = {last}
    for number in range(last, -1, -1):
        if number in used:
            used.update(steps[number].inputs)
    renumbered = {old: new for new, old in enumerate(sorted(used))}
    return [replace(steps[old], inputs=tuple(renumbered[i] for i in steps[old].inputs)) for old in renumbered]


_WEIGHTS = ("kernel", "bias", "factor", "offset")


def weights_of(step: Step) -> dict[str, Any]:
    """The weights of a step's operation by name."""
    return {name: value for name, value in vars(step.operation).items() if name in _WEIGHTS}


def with_weights(steps: Sequence[Step], convert: Callable) -> list[Step]:
    """The same steps with each weight converted, such as to another dtype."""

    def converted(step: Step) -> Step:
        weights = {name: convert(value) for name, value in weights_of(step).items()}
        return replace(step, operation=replace(step.operation, **weights))

    return [converted(step) for step in steps]


class StepBuilder:
    """Appends steps, folding each into the one before it where it can.

    Args:
        dtype: of the kernels.
    """

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.steps: list[Step] = []

    def add(self, operation, inputs: Sequence[int], shape: Sequence[int], path: str) -> int:
        """The number of a step that computes this operation; the step before it stays for other steps that read it."""
        before = self.steps[inputs[0]] if len(inputs) == 1 else None
        kinds = (type(before.operation), type(operation)) if before else None
        if kinds in FOLDED:
            return self.add(FOLDED[kinds](before.operation, operation), before.inputs, shape, path)
        self.steps.append(Step(operation, tuple(inputs), tuple(shape), path))
        return len(self.steps) - 1

    def scale(self, x: int, factor, offset, path: str) -> int:
        return self.add(Scale(factor, offset), [x], self.steps[x].shape, path)

    def relu(self, x: int, path: str) -> int:
        return self.add(ReLU(), [x], self.steps[x].shape, path)

    def s_shaped(self, x: int, kind: str, path: str) -> int:
        return self.add(SShaped(kind), [x], self.steps[x].shape, path)

    def convolve(self, x: int, kernel, bias, strides: tuple[int, int], zeros: Zeros, path: str) -> int:
        """A convolution with zeros around the image: kernel [kh, kw, C, F], bias [F]."""
        height, width, _, filters = kernel.shape
        x = self.pad(x, zeros, path)
        rows, columns = self.steps[x].shape[:2]
        shape = ((rows - height) // strides[0] + 1, (columns - width) // strides[1] + 1, filters)
        return self.add(Conv(kernel, bias, tuple(strides)), [x], shape, path)

    def pad(self, x: int, zeros: Zeros, path: str) -> int:
        (top, bottom), (left, right) = zeros
        rows, columns, channels = self.steps[x].shape
        if not any((top, bottom, left, right)):
            return x
        shape = (rows + top + bottom, columns + left + right, channels)
        return self.add(Pad(((top, bottom), (left, right))), [x], shape, path)

    # One argument per property of a pooling, as of the layers.
    def average(self, x: int, size, strides, zeros: Zeros, path: str, count_zeros: bool = False) -> int:
        """Average pooling: a convolution that takes channels apart, of the pixels inside the image or of all."""
        channels, (height, width) = self.steps[x].shape[-1], size
        kernel = np.tile(np.eye(channels) / (height * width), (height, width, 1, 1))
        share = inside(self.steps[x].shape, size, strides, zeros).mean(axis=-1, keepdims=True)
        done = self.convolve(x, self.values(kernel), self.values(np.zeros(channels)), strides, zeros, path)
        if count_zeros or share.min() == 1:
            return done
        return self.add(PixelScale(1 / share), [done], self.steps[done].shape, path)

    def maximum(self, x: int, size, strides, zeros: Zeros, path: str) -> int:
        """Maximum pooling: a convolution that lays the pixels of a window side by side, and their maximum."""
        channels, (height, width) = self.steps[x].shape[-1], size
        count = height * width * channels
        valid = inside(self.steps[x].shape, size, strides, zeros) > 0
        kernel = self.values(np.eye(count).reshape(height, width, channels, count))
        done = self.convolve(x, kernel, self.values(np.zeros(count)), strides, zeros, path)
        return self.add(Max(valid), [done], (*self.steps[done].shape[:2], channels), path)

    def values(self, variable):
        return ops.cast(ops.convert_to_tensor(variable), self.dtype)


class _Builder(StepBuilder):
    """Translates Keras layers; the methods of `LAYERS` have one signature."""

    def __init__(self, dtype: str, statistics: Mapping):
        super().__init__(dtype)
        self.statistics = statistics

    def image(self, tensor) -> int:
        """The first step, from the network's symbolic input."""
        if None in tensor.shape[1:]:
            raise InvalidInputError(
                f"the network reads images {tuple(tensor.shape[1:])} of any size, which have no bounds; hint: build it "
                "with keras.Input((H, W, C))"
            )
        return self.add(Image(), (), tensor.shape[1:], "image")

    def translate(self, layer, path: str, *inputs: int) -> int:
        """The last of the steps that a layer's call becomes."""
        order = getattr(layer, "data_format", "channels_last")
        _refuse(order != "channels_last", path, f"is {order}", "use channels_last")
        return getattr(self, LAYERS[type(layer)])(layer, path, *inputs)

    # Linear layers

    def conv(self, layer, path: str, x: int) -> int:
        _refuse(layer.groups != 1, path, f"has {layer.groups} groups", "use one")
        kernel = _dilated(self.values(layer.kernel), layer.dilation_rate)
        zeros = self.zeros(layer, path, x, kernel.shape[:2])
        return self.activate(layer, path, self.convolve(x, kernel, self.bias(layer), layer.strides, zeros, path))

    def dense(self, layer, path: str, x: int) -> int:
        kernel, shape = self.values(layer.kernel), self.steps[x].shape
        _refuse(len(shape) not in (1, 3), path, f"reads shape {shape}", "flatten before it")
        if len(shape) == 3:
            done = self.convolve(x, kernel[None, None], self.bias(layer), (1, 1), NO_ZEROS, path)
        else:
            done = self.add(Dense(kernel, self.bias(layer)), [x], kernel.shape[1:], path)
        return self.activate(layer, path, done)

    def batch_norm(self, layer, path: str, x: int) -> int:
        """gamma (x - mean) / sqrt(variance + epsilon) + beta."""
        axis, shape = layer.axis, self.steps[x].shape
        _refuse(axis not in (-1, len(shape)), path, f"normalises axis {axis}", "normalise the last one")
        moments = self.statistics.get(path, (layer.moving_mean, layer.moving_variance))
        mean, variance = (self.values(moment) for moment in moments)
        factor = ops.rsqrt(variance + layer.epsilon)
        factor = factor * self.values(layer.gamma) if layer.scale else factor
        offset = -mean * factor
        return self.scale(x, factor, offset + self.values(layer.beta) if layer.center else offset, path)

    def normalization(self, layer, path: str, x: int) -> int:
        shape = self.steps[x].shape
        _refuse(any(size != 1 for size in layer.mean.shape[:-1]), path, "normalises pixels apart", "use axis=-1")
        mean, variance = (ops.reshape(self.values(v), (-1,)) for v in (layer.mean, layer.variance))
        std = ops.broadcast_to(ops.maximum(ops.sqrt(variance), keras.config.epsilon()), shape[-1:])
        if layer.invert:
            return self.scale(x, std, ops.broadcast_to(mean, shape[-1:]), path)
        return self.scale(x, 1 / std, -mean / std, path)

    def rescaling(self, layer, path: str, x: int) -> int:
        shape = self.steps[x].shape[-1:]
        return self.scale(x, *(ops.broadcast_to(self.values(v), shape) for v in (layer.scale, layer.offset)), path)

    def sum(self, layer, path: str, *inputs: int) -> int:
        shapes = {self.steps[x].shape for x in inputs}
        _refuse(len(shapes) > 1, path, f"adds shapes {sorted(shapes)}", "give inputs of one shape")
        return self.add(Add(), inputs, *shapes, path)

    def reshape(self, layer, path: str, x: int) -> int:
        shape = layer.compute_output_shape((None, *self.steps[x].shape))[1:]
        return x if shape == self.steps[x].shape else self.add(Reshape(), [x], shape, path)

    def zero_padding(self, layer, path: str, x: int) -> int:
        return self.pad(x, layer.padding, path)

    def average_pooling(self, layer, path: str, x: int) -> int:
        """With `same` padding, the mean of the pixels inside the image."""
        return self.average(x, layer.pool_size, layer.strides, self.zeros(layer, path, x, layer.pool_size), path)

    def global_average(self, layer, path: str, x: int) -> int:
        done = self.add(Mean(), [x], self.steps[x].shape[-1:], path)
        return self.add(Reshape(), [done], (1, 1, *self.steps[x].shape[-1:]), path) if layer.keepdims else done

    # Layers that are not linear

    def relu_layer(self, layer, path: str, x: int) -> int:
        plain = layer.max_value is None and not layer.negative_slope and not layer.threshold
        _refuse(not plain, path, "is not a plain ReLU", "leave max_value, negative_slope and threshold out")
        return self.relu(x, path)

    def activation(self, layer, path: str, x: int) -> int:
        return self.activate(layer, path, x)

    def activate(self, layer, path: str, x: int) -> int:
        """The step of a layer's `activation`: none for the identity."""
        name = getattr(layer.activation, "__name__", str(layer.activation))
        if name in S_SHAPED:
            return self.s_shaped(x, name, path)
        hint = ENDS_IN_LOGITS if name in PROBABILITIES else "use relu, sigmoid or tanh"
        _refuse(name not in ("linear", "relu"), path, f"has activation {name}", hint)
        return self.relu(x, path) if name == "relu" else x

    def max_pooling(self, layer, path: str, x: int) -> int:
        return self.maximum(x, layer.pool_size, layer.strides, self.zeros(layer, path, x, layer.pool_size), path)

    def identity(self, layer, path: str, x: int) -> int:
        return x

    # Shared by the methods above

    def bias(self, layer):
        return self.values(layer.bias) if layer.use_bias else ops.zeros(layer.kernel.shape[-1:], self.dtype)

    def zeros(self, layer, path: str, x: int, size: Sequence[int]) -> Zeros:
        """The zeros that a layer's padding lays around its image."""
        _refuse(layer.padding not in ("same", "valid"), path, f"has padding {layer.padding}", "use same or valid")
        return same_zeros(self.steps[x].shape, size, layer.strides) if layer.padding == "same" else NO_ZEROS


def inside(shape: Sequence[int], size: Sequence[int], strides: Sequence[int], zeros: Zeros) -> np.ndarray:
    """[H, W, k] of a pooling's windows: 1 where a pixel lies in the image, 0 where in the padding."""
    image = np.pad(np.ones(shape[:2]), zeros)
    windows = np.lib.stride_tricks.sliding_window_view(image, size)[:: strides[0], :: strides[1]]
    return windows.reshape(*windows.shape[:2], -1)


def _refuse(condition: bool, path: str, what: str, hint: str) -> None:
    if condition:
        raise InvalidInputError(f"layer {path} {what}, which has no bounds; {hint}")


def _scaled(first, scale: Scale):
    return replace(first, kernel=first.kernel * scale.factor, bias=first.bias * scale.factor + scale.offset)


def _chained(first: Dense, dense: Dense) -> Dense:
    return Dense(ops.matmul(first.kernel, dense.kernel), ops.matmul(first.bias, dense.kernel) + dense.bias)


def _reads_scaled(first: Scale, dense: Dense) -> Dense:
    return Dense(first.factor[:, None] * dense.kernel, ops.matmul(first.offset, dense.kernel) + dense.bias)


def _scaled_twice(first: Scale, scale: Scale) -> Scale:
    return Scale(first.factor * scale.factor, first.offset * scale.factor + scale.offset)


def _padded_twice(first: Pad, pad: Pad) -> Pad:
    return Pad(tuple((a + c, b + d) for (a, b), (c, d) in zip(first.amounts, pad.amounts, strict=True)))


FOLDED = {
    (Conv, Scale): _scaled,
    (Dense, Scale): _scaled,
    (Dense, Dense): _chained,
    (Scale, Dense): _reads_scaled,
    (Scale, Scale): _scaled_twice,
    (Pad, Pad): _padded_twice,
    (Reshape, Reshape): lambda first, reshape: reshape,
}
"""Kinds of two operations, one after the other -> the one that does both."""


def same_zeros(shape: Sequence[int], size: Sequence[int], strides: Sequence[int]) -> Zeros:
    """TensorFlow's `same` padding: as much as the last window overhangs, the odd pixel at the bottom and right."""
    overhangs = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(shape[:2], size, strides, strict=True)]
    rows, columns = ((overhang // 2, overhang - overhang // 2) for overhang in overhangs)
    return rows, columns


def _dilated(kernel, rates: tuple[int, int]):
    """The kernel with `rate - 1` zeros between its entries."""
    for axis, rate in enumerate(rates):
        if rate > 1:
            size = kernel.shape[axis]
            spread = ops.pad(ops.expand_dims(kernel, axis + 1), [(0, (rate - 1) * (i == axis + 1)) for i in range(5)])
            shape = [n * rate if i == axis else n for i, n in enumerate(kernel.shape)]
            kernel = ops.take(ops.reshape(spread, shape), range(size * rate - rate + 1), axis=axis)
    return kernel
