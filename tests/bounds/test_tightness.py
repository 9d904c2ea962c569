"""The order of tightness: intervals, CROWN, alpha-CROWN, the exact minimum; and what they are by hand."""

import keras
import numpy as np
import pytest
from milp_oracle import affine_maps, exact_minimum
from tiny_networks import random_images, randomize

from keras_rcl.bounds import Interval, Method, output_bounds, worst_case_margins
from keras_rcl.bounds.interval import interval_bounds
from keras_rcl.folding import fold

pytestmark = pytest.mark.usefixtures("unoptimized")

L = keras.layers
METHODS = Method.__args__
SLACK = 1e-5
"""Of float32, at bounds of about unit size. The oracle is float64, except for the layers that it probes."""


def network_of(layers, shape, seed):
    """A chain, or with one shortcut where `layers` says "add": from the first hidden layer past the second."""
    image = x = keras.Input(shape)
    hidden = []
    for layer in layers:
        x = L.Add()([x, hidden[0]]) if layer == "add" else layer(x)
        if isinstance(layer, L.ReLU):
            hidden.append(x)
    network = keras.Model(image, x)
    randomize(network, np.random.default_rng(seed))
    return network


def dense(*widths):
    for width in widths[:-1]:
        yield from (L.Dense(width), L.ReLU())
    yield L.Dense(widths[-1])


NETWORKS = {
    "dense": lambda: network_of([L.Flatten(), *dense(7, 7, 3)], (2, 2, 1), 1),
    "deep": lambda: network_of([L.Flatten(), *dense(5, 5, 5, 3)], (2, 2, 1), 2),
    "residual": lambda: network_of(
        [L.Flatten(), L.Dense(6), L.ReLU(), L.Dense(6), L.BatchNormalization(), L.ReLU(), "add", L.Dense(3)],
        (2, 2, 1),
        3,
    ),
    "conv": lambda: network_of(
        [
            L.Conv2D(2, 3, strides=2, padding="same"),
            L.BatchNormalization(),
            L.ReLU(),
            L.Conv2D(3, 2, padding="same"),
            L.ReLU(),
            L.AveragePooling2D(2),
            L.Flatten(),
            L.Dense(3),
        ],
        (4, 4, 1),
        4,
    ),
}


def functions(network):
    """What lies before, between and after the ReLUs: flat float arrays to flat float arrays."""
    made, layers = [], []

    def function(layers, shape):
        def apply(x):
            x = x.reshape(-1, *shape)
            for layer in layers:
                x = np.asarray(layer(x.astype("float32"), training=False))
            return x.reshape(len(x), -1).astype("float64")

        return apply

    shape = network.input_shape[1:]
    for layer in network.layers[1:]:
        if isinstance(layer, L.ReLU):
            made.append(function(layers, shape))
            layers, shape = [], layer.output.shape[1:]
        elif not isinstance(layer, L.Add):
            layers.append(layer)
    return [*made, function(layers, shape)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_no_method_is_looser_than_the_one_before(kind):
    network = NETWORKS[kind]()
    shape, count, epsilon = network.input_shape[1:], 4, 0.3
    images, labels = random_images(count, 5, shape), np.arange(count) % 3
    maps = affine_maps(functions(network), int(np.prod(shape)))
    found = [np.asarray(worst_case_margins(network, images, labels, epsilon, method)) for method in METHODS]
    ibp, _, crown, alpha = found
    inner = np.asarray(worst_case_margins(network, images, labels, epsilon, "alpha-crown", inner_iterations=20))
    exact = np.zeros_like(ibp, dtype="float64")
    for index, (image, label) in enumerate(zip(images.reshape(count, -1).astype("float64"), labels, strict=True)):
        low, high = np.maximum(image - epsilon, 0), np.minimum(image + epsilon, 1)
        for other in {0, 1, 2} - {label}:
            wanted = np.eye(3)[label] - np.eye(3)[other]
            shortcut = (0, 2) if kind == "residual" else None
            exact[index, other] = exact_minimum(maps, wanted, low, high, shortcut)
    for looser, tighter in ((ibp, found[1]), (ibp, crown), (crown, alpha), (alpha, exact), (inner, exact)):
        assert np.all(looser <= tighter + SLACK)
    gains = [np.mean(tighter - looser) for looser, tighter in ((ibp, crown), (crown, alpha), (alpha, exact))]
    assert np.min(gains) > 0 and inner.mean() > alpha.mean(), "the order is seen at work"


def by_hand():
    """relu(s - 1/2) - relu(s - 1), s = x_1 + x_2: from 0 to 1/2 over the box [0, 1]."""
    x = keras.Input((2,))
    first, last = L.Dense(2), L.Dense(1)
    network = keras.Model(x, last(L.ReLU()(first(x))))
    first.set_weights([np.array([[1, 1], [1, 1]]), np.array([-0.5, -1])])
    last.set_weights([np.array([[1], [-1]]), np.array([0])])
    return network


@pytest.mark.parametrize(
    "method, expected",
    [
        # z_1 in [-1/2, 3/2], z_2 in [-1, 1]
        ("ibp", (-1, 1.5)),
        # h_1 >= z_1, h_2 <= z_2 / 2 + 1/2: s / 2 - 1/2 from below. h_1 <= 3/4 z_1 + 3/8, h_2 >= 0: 3/4 s from above.
        ("crown", (-0.5, 1.5)),
        # h_1 >= z_1 / 2: -1/4 wherever s is. h_2 >= 3/4 z_2: 3/4 in the same way.
        ("alpha-crown", (-0.25, 0.75)),
    ],
)
def test_two_relus_by_hand(method, expected):
    bounds = output_bounds(by_hand(), np.array([[0.5, 0.5]], "float32"), 0.5, method, iterations=100)
    np.testing.assert_allclose(
        (bounds.lower[0, 0], bounds.upper[0, 0]), expected, atol=0.01 if "alpha" in method else 1e-6
    )


def test_the_lines_of_a_relu_by_hand():
    """Where 0 is not inside, the ReLU itself; else the chord above, and below the axis or the diagonal."""
    from keras_rcl.bounds.crown import relax

    lines = relax(Interval(np.float32([-2, 1, -1, -3, 0, -1]), np.float32([-1, 2, 3, 1, 1, 0])))
    np.testing.assert_allclose(lines.lower, [0, 1, 1, 0, 1, 0])
    np.testing.assert_allclose(lines.lower + lines.rise, [0, 1, 0.75, 0.25, 1, 0])
    np.testing.assert_allclose(lines.intercept, [0, 0, 0.75, 0.75, 0, 0])


def intervals_of(layer, lower, upper):
    network = keras.Sequential([keras.Input(np.shape(lower)), layer])
    return network, lambda: interval_bounds(fold(network), Interval(np.float32([lower]), np.float32([upper])))[-1]


def test_intervals_of_a_dense_layer_by_hand():
    layer = L.Dense(1)
    _, bounds = intervals_of(layer, [1, -1, 0], [2, 1, 4])
    layer.set_weights([np.array([[2], [3], [-1]]), np.array([10])])
    assert (bounds().lower, bounds().upper) == ([[10 + 2 - 3 - 4]], [[10 + 4 + 3 - 0]])


def test_intervals_of_a_convolution_by_hand():
    layer = L.Conv2D(1, 2)
    _, bounds = intervals_of(layer, [[[0], [1]], [[2], [3]]], [[[1], [2]], [[3], [4]]])
    layer.set_weights([np.array([[1, -1], [2, -2]]).reshape(2, 2, 1, 1), np.array([5])])
    assert (bounds().lower.numpy().item(), bounds().upper.numpy().item()) == (5 + 0 - 2 + 4 - 8, 5 + 1 - 1 + 6 - 6)


@pytest.mark.parametrize("layer", [L.MaxPooling2D(2), L.ReLU(), L.AveragePooling2D((1, 2)), L.ZeroPadding2D(1)])
def test_monotone_layers_move_the_ends(layer):
    lower, upper = np.sort(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), axis=0)
    network, bounds = intervals_of(layer, lower, upper)
    for end, found in ((lower, bounds().lower), (upper, bounds().upper)):
        np.testing.assert_allclose(found, network(np.float32([end])), atol=1e-6)
