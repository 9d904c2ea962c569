"""Encoders: normalized image [N, H, W, C] -> embedding [N, E]. Plain CNNs and residual networks.

Convolutions with a stride have a symmetric, explicit padding, and BatchNorm has PyTorch's momentum and epsilon, as in
the code of the papers; `same` padding at stride 2 and Keras' defaults would give other networks.

The first convolution is float32 under every policy: it reads pixels without rounding, and the gradient of an attack
with respect to the pixels is summed in float32. In half precision some of these sums cancel to exactly 0 (decision 6).
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import keras

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.network import Encoder, Initialization

SMALLEST_IMAGE = 8
"""The smallest side of an image, in pixels: three halvings of a smaller one leave nothing to convolve."""

LARGEST_CIFAR_IMAGE = 64
"""The largest side of an image, in pixels, for which a residual network has the CIFAR stem, not ImageNet's."""


def layer_seed(seed: int, name: str) -> int:
    """The seed of the initializers of one layer: depends on the seed of the run and the name of the layer only."""
    return zlib.crc32(f"{seed}/{name}".encode())


def bias_name(name: str) -> str:
    """The name by which the bias of a layer gets its seed, so that it is drawn apart from the kernel."""
    return f"{name}/bias"


@dataclass(frozen=True)
class Layers:
    """The layers of all networks here, under one dtype policy and one seed.

    Each method takes a symbolic tensor and the name of the layer, and returns the output of the layer.

    Attributes:
        policy: The dtype policy of every layer, given explicitly; the global policy is neither read nor set.
        seed: Of the run; each layer has `layer_seed(seed, name)`.
        initialization: As of `Network`.
    """

    policy: str = "float32"
    seed: int = 0
    initialization: Initialization = "he_normal"

    def in_float32(self) -> "Layers":
        """The same layers under the float32 policy."""
        return replace(self, policy="float32")

    def conv(self, x, filters: int, kernel: int, stride: int, name: str, *, use_bias: bool = False):
        """A convolution with a symmetric padding of `(kernel - 1) // 2`."""
        padding = "same" if stride == 1 else "valid"
        if stride > 1 and kernel > 1:
            x = keras.layers.ZeroPadding2D((kernel - 1) // 2, dtype=self._policy(), name=f"{name}_pad")(x)
        return keras.layers.Conv2D(
            filters,
            kernel,
            strides=stride,
            padding=padding,
            use_bias=use_bias,
            **self.initializers(x.shape[-1] * kernel**2, name),
            dtype=self._policy(),
            name=name,
        )(x)

    def norm(self, x, name: str):
        """BatchNorm with PyTorch's epsilon and momentum (0.1 of the new value, so 0.9 of the old one)."""
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=self._policy(), name=name)(x)

    def relu(self, x, name: str):
        return keras.layers.ReLU(dtype=self._policy(), name=name)(x)

    def dense(self, x, units: int, name: str):
        """A fully connected layer."""
        return keras.layers.Dense(
            units,
            **self.initializers(x.shape[-1], name),
            dtype=self._policy(),
            name=name,
        )(x)

    def add(self, inputs, name: str):
        return keras.layers.Add(dtype=self._policy(), name=name)(inputs)

    def max_pool(self, x, name: str):
        """A 3x3 maximum at stride 2 with symmetric padding by zeros; its input is the output of a ReLU."""
        x = keras.layers.ZeroPadding2D(1, dtype=self._policy(), name=f"{name}_pad")(x)
        return keras.layers.MaxPooling2D(3, strides=2, dtype=self._policy(), name=name)(x)

    def average(self, x, name: str):
        return keras.layers.GlobalAveragePooling2D(dtype=self._policy(), name=name)(x)

    def flatten(self, x, name: str):
        return keras.layers.Flatten(dtype=self._policy(), name=name)(x)

    def initializers(self, read: int, name: str) -> dict[str, keras.Initializer]:
        """The initializers of a layer whose units read that many numbers each."""
        seed, bound = layer_seed(self.seed, name), 1 / math.sqrt(read)
        if self.initialization == "he_normal":
            return {"kernel_initializer": keras.initializers.HeNormal(seed=seed)}
        kernel = keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform", seed=seed)
        bias = keras.initializers.RandomUniform(-bound, bound, seed=layer_seed(self.seed, bias_name(name)))
        return {"kernel_initializer": kernel, "bias_initializer": bias}

    def _policy(self) -> keras.DTypePolicy:
        return keras.DTypePolicy(self.policy)


@dataclass(frozen=True)
class Strided:
    """A plain CNN: convolutions of stride 2 in place of pooling, then fully connected layers.

    Attributes:
        convs: The filters of each convolution; each is followed by BatchNorm and ReLU.
        denses: The widths of the fully connected layers; ReLU between them, BatchNorm after the last.
        kernel: The side of the kernels of the convolutions, in pixels.
        normalized: False leaves BatchNorm out and puts a ReLU after the last layer.
    """

    convs: tuple[int, ...]
    denses: tuple[int, ...]
    kernel: int = 3
    normalized: bool = True

    def __call__(self, layers: Layers, x):
        for index, filters in enumerate(self.convs, 1):
            reading = layers.in_float32() if index == 1 else layers
            x = reading.conv(x, filters, self.kernel, 2, f"conv{index}", use_bias=True)
            x = layers.norm(x, f"conv{index}_norm") if self.normalized else x
            x = layers.relu(x, f"conv{index}_relu")
        x = layers.flatten(x, "flatten")
        *hidden, last = self.denses
        for index, units in enumerate(hidden, 1):
            x = layers.relu(layers.dense(x, units, f"dense{index}"), f"dense{index}_relu")
        x = layers.dense(x, last, f"dense{len(self.denses)}")
        return layers.norm(x, "embedding_norm") if self.normalized else layers.relu(x, "embedding_relu")


@dataclass(frozen=True)
class Residual:
    """A residual network: a stem, stages of residual blocks (the first block of a later stage halves), an average.

    Attributes:
        widths: The filters of each stage.
        depths: The number of blocks of each stage.
        stem: The filters of the stem.
        bottleneck: Blocks are 1x1, 3x3, 1x1 convolutions, four times as wide at their end, in place of two 3x3.
        preactivation: BatchNorm and ReLU before each convolution (He et al. 2016b, "Identity mappings"), not after.
        closing: Pre-activation networks end in a BatchNorm and a ReLU before the average.
        activated_shortcut: The 1x1 convolution of a pre-activation shortcut reads the activated input of the block,
            as in He et al.; False: the input itself.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stem: int = 64
    bottleneck: bool = False
    preactivation: bool = False
    closing: bool = True
    activated_shortcut: bool = True

    def __call__(self, layers: Layers, x):
        imagenet = max(x.shape[1:3]) > LARGEST_CIFAR_IMAGE
        kernel, stride = (7, 2) if imagenet else (3, 1)
        x = layers.in_float32().conv(x, self.stem, kernel, stride, "stem_conv")
        if not self.preactivation:
            x = layers.relu(layers.norm(x, "stem_norm"), "stem_relu")
        if imagenet:
            x = layers.max_pool(x, "stem_pool")
        for stage, (filters, depth) in enumerate(zip(self.widths, self.depths, strict=True), 1):
            for block in range(1, depth + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                x = self.block(layers, x, filters, stride, f"stage{stage}_block{block}")
        if self.preactivation and self.closing:
            x = layers.relu(layers.norm(x, "final_norm"), "final_relu")
        return layers.average(x, "average")

    def block(self, layers: Layers, x, filters: int, stride: int, name: str):
        """shortcut(x) + branch(x); the shortcut is a 1x1 convolution if the shape changes."""
        convs: tuple[tuple[int, int, int], ...] = ((filters, 3, stride), (filters, 3, 1))
        if self.bottleneck:
            convs = ((filters, 1, 1), (filters, 3, stride), (4 * filters, 1, 1))
        width = convs[-1][0]
        reshapes = stride != 1 or x.shape[-1] != width

        def norm_relu(x, index: int):
            return layers.relu(layers.norm(x, f"{name}_norm{index}"), f"{name}_relu{index}")

        shortcut = x
        if self.preactivation:
            x = norm_relu(x, 0)
        if reshapes:
            read = x if self.activated_shortcut else shortcut
            shortcut = layers.conv(read, width, 1, stride, f"{name}_shortcut")
        if reshapes and not self.preactivation:
            shortcut = layers.norm(shortcut, f"{name}_shortcut_norm")
        for index, (filters, kernel, stride) in enumerate(convs):
            x = norm_relu(x, index) if index else x
            x = layers.conv(x, filters, kernel, stride, f"{name}_conv{index + 1}")
        if self.preactivation:
            return layers.add([shortcut, x], f"{name}_add")
        x = layers.norm(x, f"{name}_norm{len(convs)}")
        return layers.relu(layers.add([shortcut, x], f"{name}_add"), f"{name}_relu{len(convs)}")


ENCODERS: dict[str, Strided | Residual] = {
    "small_cnn": Strided(convs=(32, 64), denses=(64,)),
    "strided_cnn": Strided(convs=(32, 64, 128), denses=(256, 128)),
    "convex_small": Strided(convs=(16, 32), denses=(100,), kernel=4, normalized=False),
    "resnet18": Residual(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2)),
    "preact_resnet18": Residual(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), preactivation=True),
    "preact_resnet18_open": Residual(
        widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), preactivation=True, closing=False
    ),
    "preact_resnet18_fast": Residual(
        widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), preactivation=True, closing=False, activated_shortcut=False
    ),
    "wide_resnet_28_10": Residual(stem=16, widths=(160, 320, 640), depths=(4, 4, 4), preactivation=True),
    "resnet50": Residual(widths=(64, 128, 256, 512), depths=(3, 4, 6, 3), bottleneck=True),
}
"""`small_cnn`: for 8x8 digits, 64-d. `strided_cnn`: Cusin's, 128-d. `convex_small`: the small network of Wong and
Kolter 2018, on which much of the certification literature is measured, 100-d. `resnet18`, `resnet50`: He et al. 2016,
512-d and 2048-d. `preact_resnet18`: He et al. 2016b with its closing BatchNorm and ReLU, 512-d;
`preact_resnet18_open`: without these two, as in much public CIFAR code; `preact_resnet18_fast`: in addition its
shortcuts read the input of the block before BatchNorm and ReLU, as in the code of Wong et al. 2020, "Fast is better
than free". `wide_resnet_28_10`: Zagoruyko and Komodakis 2016, without dropout, 640-d."""


def build_encoder(
    name: Encoder,
    input_shape: Sequence[int],
    *,
    seed: int = 0,
    precision: str = "float32",
    initialization: Initialization = "he_normal",
) -> keras.Model:
    """Build an encoder by name.

    Args:
        name: One of `ENCODERS`.
        input_shape: (H, W, C).
        seed: Of every initializer; the same seed gives the same weights.
        precision: The dtype policy of its layers: `float32`, `mixed_float16` or `mixed_bfloat16`.
        initialization: `he_normal` or `pytorch`; see `Network`.

    Returns:
        The functional model `encoder`: normalized image [N, H, W, C] -> embedding [N, E] in the compute dtype of the
        policy.

    Raises:
        InvalidInputError: If the encoder is unknown, or the image does not have three dimensions or is too small.

    Example:
        >>> build_encoder("small_cnn", (8, 8, 1)).output_shape
        (None, 64)
    """
    if name not in get_args(Encoder):
        raise InvalidInputError(f"unknown encoder {name!r}; choose from {', '.join(get_args(Encoder))}")
    if len(input_shape) != 3 or None in input_shape:
        raise InvalidInputError(f"image shape {tuple(input_shape)} is not (height, width, channels); give all three")
    if min(input_shape[:2]) < SMALLEST_IMAGE:
        height, width = input_shape[:2]
        raise InvalidInputError(
            f"a {height}x{width} image is too small for {name}; resize it to {SMALLEST_IMAGE}x{SMALLEST_IMAGE} or more"
        )
    image = keras.Input(tuple(input_shape), dtype="float32", name="normalized_image")
    embedding = ENCODERS[name](Layers(policy=precision, seed=seed, initialization=initialization), image)
    return keras.Model(image, embedding, name="encoder")
