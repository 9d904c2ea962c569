"""Small networks of the cost of Cusin's CNN, to see whether a result about that one holds for another.

    python -m benchmarks.small_networks
    python cli.py tune --config configs/contrast_search.yaml --variant at \
        --search 'network.encoder=choice(strided_cnn,benchmarks.small_networks:silu,benchmarks.small_networks:residual)'

The first command prints parameters and multiplications of each. The functions are for `network.encoder`.
"""

import math

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import keras  # noqa: E402

from keras_rcl.networks.backbones import build_encoder  # noqa: E402
from keras_rcl.report.tables import markdown_table  # noqa: E402

CIFAR_SHAPE = (32, 32, 3)
MEAN, VARIANCE = (0.491, 0.482, 0.447), (0.061, 0.059, 0.068)
"""Of the pixels of CIFAR-10's training images, per channel."""


def silu(image_shape):
    """Cusin's CNN with SiLU, and without BatchNorm."""
    image = keras.Input(image_shape)
    x = keras.layers.Normalization(mean=MEAN, variance=VARIANCE)(image)
    for filters in (32, 64, 128):
        x = _convolution(x, filters, 3, strides=2)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(256, activation="silu", kernel_initializer="he_normal")(x)
    return keras.Model(image, keras.layers.Dense(128)(x))


def residual(image_shape):
    """Strided convolutions, each followed by a residual bottleneck, with SiLU and without BatchNorm."""
    image = keras.Input(image_shape)
    x = keras.layers.Normalization(mean=MEAN, variance=VARIANCE)(image)
    x = _convolution(x, 32, 3, strides=2)
    for filters in (64, 128):
        x = _bottleneck(_convolution(x, filters, 3, strides=2))
    x = keras.layers.Flatten()(x)
    return keras.Model(image, keras.layers.Dense(128)(x))


def _convolution(x, filters: int, kernel: int, strides: int = 1):
    return keras.layers.Conv2D(
        filters, kernel, strides, padding="same", activation="silu", kernel_initializer="he_normal"
    )(x)


def _bottleneck(x):
    """x plus three convolutions of x, of which the last one starts at zero."""
    inner = _convolution(_convolution(x, x.shape[-1] // 4, 1), x.shape[-1] // 4, 3)
    return keras.layers.Add()([x, keras.layers.Conv2D(x.shape[-1], 1, kernel_initializer="zeros")(inner)])


def multiplications(model: keras.Model) -> int:
    """Of one forward pass of an image, in convolutions and dense layers."""
    return sum(
        math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
        for layer in model.layers
        if hasattr(layer, "kernel")
    )


def main() -> None:
    models = {"strided_cnn": build_encoder("strided_cnn", CIFAR_SHAPE)}
    models |= {function.__name__: function(CIFAR_SHAPE) for function in (silu, residual)}
    rows = [[name, f"{model.count_params():,}", f"{multiplications(model):,}"] for name, model in models.items()]
    print(markdown_table(["encoder", "parameters", "multiplications"], rows))


if __name__ == "__main__":
    main()
