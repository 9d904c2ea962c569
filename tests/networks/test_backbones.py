"""The encoders: their sizes by arithmetic, their shapes, what they refuse."""

import keras
import numpy as np
import pytest

from keras_rcl.errors import InvalidInputError
from keras_rcl.networks import ENCODERS, build_encoder


def conv(kernel, inputs, outputs):
    return kernel * kernel * inputs * outputs


def dense(inputs, outputs):
    return inputs * outputs + outputs


def norm(width):
    return 2 * width


def trainable(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def by_hand(name):
    """Trainable parameters of the encoder on 32x32 RGB images, counted from the papers' tables."""
    if name == "small_cnn":
        return conv(3, 3, 32) + 32 + norm(32) + conv(3, 32, 64) + 64 + norm(64) + dense(8 * 8 * 64, 64) + norm(64)
    if name == "strided_cnn":
        convs = sum(conv(3, i, o) + o + norm(o) for i, o in ((3, 32), (32, 64), (64, 128)))
        return convs + dense(4 * 4 * 128, 256) + dense(256, 128) + norm(128)
    if name == "convex_small":
        return conv(4, 3, 16) + 16 + conv(4, 16, 32) + 32 + dense(8 * 8 * 32, 100)
    if name == "resnet50":
        total, inputs = conv(3, 3, 64) + norm(64), 64
        for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
            total += conv(1, inputs, 4 * width) + norm(4 * width)
            for _ in range(depth):
                total += conv(1, inputs, width) + conv(3, width, width) + conv(1, width, 4 * width)
                total += norm(width) + norm(width) + norm(4 * width)
                inputs = 4 * width
        return total
    preactivation = name != "resnet18"
    stem, widths, depth = (16, (160, 320, 640), 4) if name == "wide_resnet_28_10" else (64, (64, 128, 256, 512), 2)
    total, inputs = conv(3, 3, stem), stem
    for width in widths:
        if width != inputs:
            total += conv(1, inputs, width) + (0 if preactivation else norm(width))
        for _ in range(depth):
            total += conv(3, inputs, width) + conv(3, width, width)
            total += norm(inputs if preactivation else width) + norm(width)
            inputs = width
    if name in ("preact_resnet18_open", "preact_resnet18_fast"):
        return total
    return total + (norm(inputs) if preactivation else norm(stem))


SIZES = {  # name: (embedding, trainable parameters with a linear classifier of 10 classes)
    "small_cnn": (64, 282_570),
    "strided_cnn": (128, 652_682),  # Cusin
    "convex_small": (100, 214_918),  # Wong and Kolter
    "resnet18": (512, 11_173_962),
    "preact_resnet18": (512, 11_172_170),  # with the closing BatchNorm; code without it has 1,024 fewer
    "preact_resnet18_open": (512, 11_171_146),
    "preact_resnet18_fast": (512, 11_171_146),
    "wide_resnet_28_10": (640, 36_479_194),
    "resnet50": (2048, 23_520_842),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_parameters_are_the_literatures(name):
    encoder = build_encoder(name, (32, 32, 3))
    width, total = SIZES[name]
    assert encoder.output_shape == (None, width)
    assert trainable(encoder) + dense(width, 10) == by_hand(name) + dense(width, 10) == total


@pytest.mark.parametrize("name", ["small_cnn", "strided_cnn", "preact_resnet18"])
def test_smallest_image_and_any_number_of_channels(name):
    encoder = build_encoder(name, (8, 8, 1))
    embedding = encoder(np.random.default_rng(0).random((2, 8, 8, 1)), training=False)
    assert embedding.shape == (2, SIZES[name][0]) and np.isfinite(embedding).all()
    assert build_encoder(name, (9, 12, 4)).output_shape == (None, SIZES[name][0])


def test_large_images_have_the_imagenet_stem():
    """224 -> 112 -> 56 in the stem, 7 before the average; ResNet-50 of 1000 classes has 25,557,032 parameters."""
    encoder = build_encoder("resnet50", (224, 224, 3))
    assert encoder.get_layer("stem_pool").output.shape[1:] == (56, 56, 64)
    assert encoder.get_layer("average").input.shape[1:] == (7, 7, 2048)
    assert trainable(encoder) + dense(2048, 1000) == 25_557_032


def test_strides_are_padded_symmetrically():
    """A flipped image through flipped kernels gives the flipped map: not so under `same` padding at stride 2."""
    full = build_encoder("small_cnn", (9, 9, 1))
    model = keras.Model(full.input, full.get_layer("conv1").output)
    x = np.random.default_rng(0).random((1, 9, 9, 1)).astype("float32")
    straight = np.array(model(x))
    kernel, bias = full.get_layer("conv1").get_weights()
    full.get_layer("conv1").set_weights([kernel[::-1, ::-1], bias])
    np.testing.assert_allclose(np.array(model(x[:, ::-1, ::-1])), straight[:, ::-1, ::-1], atol=1e-6)


def test_seeds_reproduce_and_differ_from_layer_to_layer():
    first, again, other = (build_encoder("strided_cnn", (8, 8, 1), seed=seed).get_weights() for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    kernels = [index for index, weight in enumerate(first) if weight.ndim > 1]
    assert all((first[index] != other[index]).all() for index in kernels)
    block = build_encoder("resnet18", (8, 8, 1)).get_layer
    assert (block("stage1_block1_conv1").get_weights()[0] != block("stage1_block1_conv2").get_weights()[0]).all()


def test_building_leaves_global_random_state_alone():
    keras.utils.set_random_seed(0)
    expected = np.random.rand(), np.array(keras.random.normal((3,)))
    keras.utils.set_random_seed(0)
    build_encoder("small_cnn", (8, 8, 1))
    assert np.random.rand() == expected[0] and np.array_equal(keras.random.normal((3,)), expected[1])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet19", (32, 32, 3), "unknown encoder 'resnet19'; choose from small_cnn"),
        ("resnet18", (4, 32, 3), "a 4x32 image is too small for resnet18; resize it to 8x8"),
        ("resnet18", (32, 32), r"\(32, 32\) is not \(height, width, channels\)"),
        ("resnet18", (None, None, 3), "give all three"),
    ],
)
def test_refusals(name, shape, message):
    with pytest.raises(InvalidInputError, match=message):
        build_encoder(name, shape)
