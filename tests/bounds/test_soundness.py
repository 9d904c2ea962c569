"""Bounds hold: no sampled or attacked point of the ball leaves them, on random networks of every layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_networks import IMAGE_BLOCKS, TAILS, random_images, random_network

from keras_rcl.bounds import Method, output_bounds, worst_case_margins
from keras_rcl.folding.fold import LAYERS
from keras_rcl.networks import build_network
from keras_rcl.vocabulary.network import Network

METHODS = Method.__args__
IMAGES, SAMPLES, STEPS = 4, 256, 5


def points(network, images, labels, epsilon, rng, samples, norm="linf"):
    """Of every ball: uniform points, corners, and the ends of gradient descents on each margin from corners."""
    if norm != "linf":
        return points_of_ball(network, images, labels, epsilon, rng, samples, norm)
    shape = (samples, *images.shape)
    low, high = np.maximum(images - epsilon, 0), np.minimum(images + epsilon, 1)
    uniform = low + rng.uniform(size=shape) * (high - low)
    corners = np.where(rng.integers(2, size=shape), high, low)
    attacked = [descend(network, corner, labels, low, high, epsilon) for corner in corners[:2]]
    return np.concatenate([uniform, corners, *attacked]).astype("float32")


def points_of_ball(network, images, labels, epsilon, rng, samples, norm):
    """Of every L1 or L2 ball in the box: random points of many and of few changes, and descents on each margin."""
    shape, order = (samples, *images.shape), {"l1": 1, "l2": 2}[norm]
    corners = rng.integers(2, size=shape) * rng.choice([0, 1], size=shape, p=[0.9, 0.1])
    random = np.concatenate([rng.uniform(size=shape), np.where(corners, corners, images)])
    length = np.linalg.norm((random - images).reshape(*random.shape[:2], -1), order, axis=2)
    share = np.minimum(1, epsilon / np.maximum(length, 1e-9))[..., None, None, None]
    found, classes = [images + share * (random - images)], network.output_shape[-1]
    for other in range(classes):
        direction, x = tf.one_hot(labels, classes) - tf.one_hot([other] * len(labels), classes), images
        for step in range(STEPS):
            x = tf.constant(x, tf.float32)
            with tf.GradientTape() as tape:
                tape.watch(x)
                margin = tf.reduce_sum(direction * network(x, training=False))
            x = x + 2 / (step + 2) * (steepest_points(tape.gradient(margin, x).numpy(), images, epsilon, norm) - x)
            found.append(x[None])
    return np.concatenate(found).astype("float32")


def steepest_points(gradients, images, epsilon, norm):
    """Of each ball in the box, the point where a linear function is least; by hand, in float64."""
    worst = []
    for gradient, image in zip(gradients.astype("float64"), images.astype("float64"), strict=True):
        speed, room = np.abs(gradient).ravel(), np.where(gradient > 0, image, 1 - image).ravel()
        if norm == "l1":
            moves, left = np.zeros_like(room), epsilon
            for pixel in np.argsort(-speed):
                moves[pixel] = min(left, room[pixel])
                left -= moves[pixel]
        else:
            few, many = 0.0, 1e9
            for _ in range(100):
                middle = (few + many) / 2
                moves = np.minimum(speed * middle, room)
                few, many = (middle, many) if np.linalg.norm(moves) <= epsilon else (few, middle)
            moves = np.minimum(speed * few, room)
        worst.append(image - np.sign(gradient) * moves.reshape(image.shape))
    return np.stack(worst)


def descend(network, start, labels, low, high, epsilon):
    """[K, N, ...]: for each class, where signed steps lead that lower logit_y - logit_j."""
    classes, found = network.output_shape[-1], []
    for other in range(classes):
        direction = tf.one_hot(labels, classes) - tf.one_hot([other] * len(labels), classes)
        x = tf.constant(start, tf.float32)
        for _ in range(STEPS):
            with tf.GradientTape() as tape:
                tape.watch(x)
                margin = tf.reduce_sum(direction * network(x, training=False))
            x = tf.clip_by_value(x - 0.5 * epsilon * tf.sign(tape.gradient(margin, x)), low, high)
        found.append(x.numpy())
    return np.stack(found)


def check(network, seed, epsilon, methods=METHODS, samples=SAMPLES, norm="linf"):
    """How many points were seen to lie within the bounds of the methods, of logits and of margins."""
    rng = np.random.default_rng(seed)
    images = random_images(IMAGES, seed, network.input_shape[1:])
    labels = rng.integers(0, network.output_shape[-1], IMAGES)
    seen = points(network, images, labels, epsilon, rng, samples, norm)
    flat = seen.reshape(-1, *images.shape[1:])
    logits = np.asarray(network(flat, training=False)).reshape(*seen.shape[:2], -1)
    margins = np.take_along_axis(logits, labels[None, :, None], axis=2) - logits
    slack = 1e-5 * (1 + np.abs(logits).max())  # float32
    for method in methods:
        options = {"norm": norm}
        if method == "alpha-crown":
            options.update(iterations=3, inner_iterations=2 * (seed % 2))
        bounds = output_bounds(network, images, epsilon, method, **options)
        assert np.all(logits >= bounds.lower - slack) and np.all(logits <= bounds.upper + slack), method
        assert np.all(margins >= worst_case_margins(network, images, labels, epsilon, method, **options) - slack), (
            method
        )
    return len(flat)


CHECKED = []


@settings(max_examples=1)
@example(["conv", "add", "max_pooling"], "flatten", 3, 0.1)
@given(
    st.lists(st.sampled_from(sorted(IMAGE_BLOCKS)), min_size=1, max_size=4),
    st.sampled_from(sorted(TAILS)),
    st.integers(0, 1000),
    st.sampled_from([0.01, 0.1, 0.6]),
)
def check_random_network(blocks, tail, seed, epsilon):
    CHECKED.append(check(random_network(blocks, tail, seed), seed, epsilon))


@pytest.mark.slow
def test_random_networks():
    check_random_network()
    assert len(CHECKED) == 2 and min(CHECKED) > 1000, CHECKED


@pytest.mark.parametrize(
    "norm, epsilon, methods",
    [
        ("l2", 0.3, ("ibp", "crown")),
        pytest.param("l2", 1.0, METHODS, marks=pytest.mark.slow),
        pytest.param("l1", 2.0, METHODS, marks=pytest.mark.slow),
    ],
)
def test_balls_of_other_norms(norm, epsilon, methods):
    check(random_network(["padding", "conv", "relu"], seed=2), 2, epsilon, methods, 64, norm)


@pytest.mark.parametrize("block", IMAGE_BLOCKS)
def test_each_layer_between_convolutions(block):
    """So that bounds pass through it for windows and whole images alike."""
    network = random_network(["conv", "relu", block, "conv", "relu"], seed=len(block))
    check(network, 1, 0.1, methods=("crown",))


def test_every_layer_with_bounds_was_in_some_network():
    networks = [random_network(IMAGE_BLOCKS), *(random_network(["conv"], tail) for tail in TAILS)]
    assert {type(layer) for network in networks for layer in network._flatten_layers()} - {keras.Model} >= set(LAYERS)


@pytest.mark.parametrize(
    "encoder",
    [
        "small_cnn",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("strided_cnn", "preact_resnet18")),
    ],
)
def test_our_encoders(encoder):
    two_headed = build_network(Network(encoder=encoder, normalization="minus1to1"), (8, 8, 1), 3, seed=1)
    network = keras.Model(two_headed.input, two_headed.output["logits"])
    methods = ("ibp", "crown-ibp", "crown") if encoder in ("small_cnn", "strided_cnn") else ("ibp", "crown-ibp")
    check(network, 1, 0.02, methods, samples=32)
