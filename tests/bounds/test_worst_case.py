"""Worst-case margins and logits: at epsilon 0, in a graph, inside a tape, in the box."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_networks import random_images, random_network

from keras_rcl.bounds import (
    Method,
    output_bounds,
    worst_case_margins,
)
from keras_rcl.bounds import (
    crown as linear_relaxation,
)
from keras_rcl.errors import InvalidInputError
from keras_rcl.networks import build_network
from keras_rcl.vocabulary.network import Network

METHODS = Method.__args__
FEW = dict(iterations=2)
BLOCKS = ["conv", "add", "max_pooling"]
methods = pytest.mark.parametrize("method", METHODS)


def problem(seed=0, count=5):
    network = random_network(BLOCKS, seed=seed)
    images, labels = random_images(count, seed), np.arange(count) % 3
    return network, images, labels


@methods
def test_epsilon_0_gives_the_logits(method):
    network, images, labels = problem()
    logits = np.asarray(network(images, training=False))
    slack = 1e-5 * (1 + np.abs(logits).max())
    bounds = output_bounds(network, images, 0.0, method, **FEW)
    np.testing.assert_allclose(bounds.lower, logits, atol=slack)
    np.testing.assert_allclose(bounds.upper, logits, atol=slack)
    margins = worst_case_margins(network, images, labels, 0.0, method, **FEW)
    np.testing.assert_allclose(margins, logits[np.arange(5), labels][:, None] - logits, atol=slack)


@methods
def test_a_graph_gives_what_eager_does_for_any_batch_and_epsilon(method):
    network, images, labels = problem()

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, *images.shape[1:]]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([]),
        ],
    )
    def in_graph(images, labels, epsilon):
        return worst_case_margins(network, images, labels, epsilon, method, **FEW)

    for count, epsilon in ((5, 0.05), (2, 0.2)):
        some = (images[:count], labels[:count].astype("int32"))
        eager = worst_case_margins(network, *some, epsilon, method, **FEW)
        np.testing.assert_allclose(in_graph(*some, epsilon), eager, atol=1e-4)


@methods
def test_examples_do_not_bear_on_each_other(method):
    network, images, labels = problem()
    together = np.asarray(worst_case_margins(network, images, labels, 0.1, method, **FEW))
    alone = [worst_case_margins(network, images[i : i + 1], labels[i : i + 1], 0.1, method, **FEW)[0] for i in (0, 3)]
    np.testing.assert_allclose(together[[0, 3]], alone, atol=1e-4)


def test_chunks_of_rows_change_nothing(monkeypatch):
    network, images, labels = problem()
    expected = worst_case_margins(network, images, labels, 0.1, "crown")
    monkeypatch.setattr(linear_relaxation, "LARGEST_CHUNK", 1000)
    np.testing.assert_allclose(worst_case_margins(network, images, labels, 0.1, "crown"), expected, atol=1e-5)


@methods
def test_float64_images_are_bounded_in_float64(method):
    network, images, labels = problem()
    in_float32 = worst_case_margins(network, images, labels, 0.05, method, **FEW)
    in_float64 = worst_case_margins(network, images.astype("float64"), labels, 0.05, method, **FEW)
    assert in_float64.dtype == "float64"
    np.testing.assert_allclose(in_float32, in_float64, rtol=1e-3, atol=1e-3)


def test_pixels_stay_in_the_box():
    """A linear network: the bound is exact, and its pixels stop at 0 and 1."""
    image = keras.Input((1, 2, 1))
    network = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(image)))
    network.layers[-1].set_weights([np.array([[1.0, 0.0], [-3.0, 0.0]]), np.zeros(2)])
    for method in METHODS:
        found = worst_case_margins(network, np.array([0.1, 0.8], "float32").reshape(1, 1, 2, 1), [0], 0.5, method)
        np.testing.assert_allclose(found, [[0, 0.0 - 3 * 1.0]], atol=1e-6)


def test_the_last_layer_is_elided():
    """Margins of intervals are tighter than the difference of the logits' intervals."""
    network, images, labels = problem()
    margins = np.asarray(worst_case_margins(network, images, labels, 0.05, "ibp"))
    bounds = output_bounds(network, images, 0.05, "ibp")
    apart = np.take_along_axis(np.asarray(bounds.lower), labels[:, None], axis=1) - np.asarray(bounds.upper)
    wrong = np.arange(3) != labels[:, None]
    assert np.all(margins >= apart - 1e-5) and np.mean((margins - apart)[wrong]) > 0.01


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_gradients_reach_every_weight(method):
    network = build_network(Network(encoder="strided_cnn", normalization="minus1to1"), (8, 8, 1), 3, seed=1)
    images, labels = random_images(4, shape=(8, 8, 1)), np.arange(4) % 3
    trained = [v for name in ("encoder", "classifier") for v in network.get_layer(name).trainable_variables]

    def loss(images, labels, epsilon):
        worst = -worst_case_margins(network, images, labels, epsilon, method)
        return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, worst, from_logits=True))

    @tf.function(autograph=False)
    def step(images, labels, epsilon):
        with tf.GradientTape() as tape:
            value = loss(images, labels, epsilon)
        return value, tape.gradient(value, [v.value for v in trained])

    for epsilon in (0.0, 0.02):
        value, gradients = step(images, labels, tf.constant(epsilon))
        assert np.isfinite(value)
        for variable, gradient in zip(trained, gradients, strict=True):
            assert gradient is not None and np.all(np.isfinite(gradient)) and np.any(gradient != 0), variable.path

    kernel, gradient = trained[0], np.asarray(gradients[0])
    direction = np.sign(gradient)
    before, ends = kernel.numpy(), []
    for side in (1, -1):
        kernel.assign(before + side * 1e-4 * direction)
        ends.append(float(loss(images, labels, 0.02)))
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(np.abs(gradient).sum(), rel=0.05)


def test_an_unknown_method_is_refused():
    network, images, labels = problem()
    with pytest.raises(
        InvalidInputError, match="unknown method 'deeppoly'; choose from ibp, crown-ibp, crown, alpha-crown"
    ):
        worst_case_margins(network, images, labels, 0.1, "deeppoly")
