"""The passes of a folded network, in NumPy and in TensorFlow, against Keras itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tiny_networks import IMAGE_BLOCKS, TAILS, random_images, random_network, randomize

from keras_rcl.errors import InvalidInputError
from keras_rcl.folding import at_inference, fold, folded, input_gradient, winograd
from keras_rcl.folding.numpy_forward import evaluate
from keras_rcl.networks.two_headed import build_network
from keras_rcl.vocabulary.network import Network

L = keras.layers


@pytest.mark.parametrize("block", IMAGE_BLOCKS)
def test_numpy_gives_what_keras_does(block):
    for seed, tail in enumerate(TAILS):
        network, images = random_network(["conv", block], tail, seed=seed), random_images(3, seed)
        found = evaluate(fold(network, dtype="float64"), images)
        assert found.dtype == np.float64
        expected = network(images, training=False)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        if block == "max_pooling":
            with pytest.raises(InvalidInputError, match="is a maximum pooling"):
                folded(network)
        else:
            np.testing.assert_allclose(folded(network)(images), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_folded_is_called():
    for pooling, called in ((L.AveragePooling2D, False), (L.MaxPooling2D, True)):
        image = keras.Input((6, 5, 2))
        network = keras.Model(image, {"logits": L.Flatten()(pooling(2)(L.Conv2D(3, 3)(image)))})
        calls, call = [], network.call
        network.call = lambda *args, call=call, calls=calls, **kwargs: calls.append(1) or call(*args, **kwargs)
        images = random_images(3, 0)
        expected = network(images)["logits"]
        del calls[:]
        np.testing.assert_allclose(at_inference(network)(images), expected, rtol=1e-4, atol=1e-5)
        assert bool(calls) == called


@pytest.mark.parametrize("shape", [(8, 8), (7, 5), (1, 2), (16, 13)])
def test_winograd_is_the_convolution(shape):
    """And its pixel gradient that of TensorFlow's, of any number of images."""
    rng = np.random.default_rng(0)
    images, kernel = (rng.normal(size=size).astype("float32") for size in ((3, *shape, 5), (3, 3, 5, 4)))
    upstream = rng.normal(size=(3, *shape, 4)).astype("float32")

    @tf.function(input_signature=[tf.TensorSpec((None, *shape, 5)), tf.TensorSpec((None, *shape, 4))], autograph=False)
    def filtered(images, upstream):
        with tf.GradientTape() as tape:
            tape.watch(images)
            made = winograd.convolution(tf.constant(kernel))(tf.transpose(images, [1, 2, 0, 3]))
            made = tf.transpose(made, [2, 0, 1, 3])
        return made, tape.gradient(made, images, upstream)

    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)]).astype("float64")
    expected, gradient = np.zeros(upstream.shape), np.zeros(padded.shape)
    for row, column in np.ndindex(shape):  # the definition, an output pixel at a time
        window = padded[:, row : row + 3, column : column + 3]
        expected[:, row, column] = np.einsum("nijc,ijcf->nf", window, kernel)
        gradient[:, row : row + 3, column : column + 3] += np.einsum("nf,ijcf->nijc", upstream[:, row, column], kernel)
    found, found_gradient = filtered(images, upstream)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found_gradient, gradient[:, 1:-1, 1:-1], atol=1e-4)


@given(data=st.data())
def test_an_input_gradient_by_a_convolution_is_the_gradient(data):
    """Against the definition, an output pixel at a time."""
    size, shape = (data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5))) for _ in range(2))
    stride = data.draw(st.integers(1, 3))
    padding = [data.draw(st.tuples(*[st.integers(0, taps - 1)] * 2)) for taps in size]
    shape = [max(pixels, taps - sum(zeros)) for pixels, taps, zeros in zip(shape, size, padding, strict=True)]
    outputs = [
        (pixels + sum(zeros) - taps) // stride + 1 for pixels, taps, zeros in zip(shape, size, padding, strict=True)
    ]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sizes = (2, *shape, 3), (*size, 3, 4), (4,), (2, *outputs, 4)
    images, kernel, bias, upstream = (rng.normal(size=each).astype("float32") for each in sizes)

    padded = np.pad(images, [(0, 0), *padding, (0, 0)]).astype("float64")
    expected, gradient = np.zeros(upstream.shape), np.zeros(padded.shape)
    for row, column in np.ndindex(*outputs):
        top, left = stride * row, stride * column
        window = np.s_[:, top : top + size[0], left : left + size[1]]
        expected[:, row, column] = np.einsum("nijc,ijcf->nf", padded[window], kernel) + bias
        gradient[window] += np.einsum("nf,ijcf->nijc", upstream[:, row, column], kernel)
    gradient = gradient[:, padding[0][0] :, padding[1][0] :][:, : shape[0], : shape[1]]

    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        found = input_gradient.convolution(tf.constant(kernel), tf.constant(bias), stride, padding)(images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(tape.gradient(found, images, upstream), gradient, atol=1e-4)


@pytest.mark.parametrize("channels", [3, 16])
def test_the_gradient_of_a_folded_network_is_the_network_s(channels):
    """With few channels and with many, whose gradient is a convolution; also of kernels with an even number of taps."""
    image = keras.Input((7, 6, channels))
    x = L.Conv2D(16, (3, 2), padding="same", activation="relu")(L.Rescaling(2.0)(image))
    network = keras.Model(image, {"logits": L.Flatten()(L.Conv2D(4, 3, padding="same")(L.BatchNormalization()(x)))})
    randomize(network, np.random.default_rng(0))
    images, gradients = tf.constant(random_images(3, 0, shape=(7, 6, channels)), tf.float32), []
    for call in (folded(network), lambda x: network(x, training=False)["logits"]):
        with tf.GradientTape() as tape:
            tape.watch(images)
            loss = tf.reduce_sum(tf.nn.log_softmax(call(images))[:, 0])
        gradients.append(tape.gradient(loss, images))
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("block", [block for block in IMAGE_BLOCKS if block != "max_pooling"])
def test_in_bfloat16_it_is_the_network_to_8_bits(block):
    for seed, tail in enumerate(TAILS):
        network, images = random_network(["conv", "relu", block, "conv"], tail, seed=seed), random_images(3, seed)
        found, expected = folded(network, dtype="bfloat16")(images), network(images, training=False)
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["strided_cnn", "preact_resnet18"])
def test_in_bfloat16_only_what_is_between_pixels_and_logits_is_rounded(encoder):
    """The first and the last product are of float32 numbers; logits and gradients are those of float32, nearly."""
    network = build_network(Network(encoder=encoder), (32, 32, 3), 10, mean=[0.5] * 3, std=[0.2] * 3)
    randomize(network, np.random.default_rng(0))
    images = tf.constant(random_images(2, 0, shape=(32, 32, 3)), tf.float32)
    found = []
    for call in (folded(network, dtype="bfloat16"), lambda x: network(x, training=False)["logits"]):
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = call(images)
        found.append((np.ravel(logits), np.ravel(tape.gradient(logits, images))))
    for one, other in zip(*found, strict=True):
        assert one @ other > 0.98 * np.linalg.norm(one) * np.linalg.norm(other)
    graph = tf.function(folded(network, dtype="bfloat16"), autograph=False).get_concrete_function(images).graph
    products = [op for op in graph.get_operations() if op.type in ("Conv2D", "MatMul", "BatchMatMulV2")]
    for op in products:
        unrounded = op.inputs[0].shape[-1] == 3 or op is products[-1]
        assert op.inputs[0].dtype == (tf.float32 if unrounded else tf.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "convolutions"), [("resnet18", 20), ("preact_resnet18", 21)])
def test_a_folded_resnet_filters_its_later_stages_so(encoder, convolutions):
    """One with preactivation has its stem twice, with the BatchNorm after it and without."""
    network = build_network(Network(encoder=encoder), (32, 32, 3), 10, mean=[0.5] * 3, std=[0.2] * 3)
    randomize(network, np.random.default_rng(0))
    images = tf.constant(random_images(2, 0, shape=(32, 32, 3)), tf.float32)
    found, expected = [], []
    for outputs, call in (
        (found, folded(network)),
        (expected, lambda x: network(x, training=False)["logits"]),
    ):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs.append(call(images))
        outputs.append(tape.gradient(outputs[0], images))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())
    graph = tf.function(folded(network), autograph=False).get_concrete_function(images).graph
    filtered = [op for op in graph.get_operations() if op.type == "BatchMatMulV2" and op.inputs[1].shape.rank == 5]
    assert len(filtered) == 3 + 3 + 3
    assert [op.type for op in graph.get_operations()].count("Conv2D") == convolutions - 9
