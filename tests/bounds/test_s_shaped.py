"""Sigmoid and tanh: lines on dense grids in float64, points of tangency by root finding, networks of known answers."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import brentq
from scipy.special import expit
from tiny_networks import random_images, randomize

from keras_rcl.bounds import output_bounds
from keras_rcl.bounds.beta_crown import BranchAndBound
from keras_rcl.bounds.input_sets import Interval
from keras_rcl.bounds.s_shaped import line, lines, lines_below
from keras_rcl.bounds.worst_case import worst_case_margins, worst_case_outputs
from keras_rcl.errors import InvalidInputError
from keras_rcl.folding.fold import SShaped

pytestmark = pytest.mark.usefixtures("unoptimized")

L = keras.layers
CURVES = {"sigmoid": expit, "tanh": np.tanh}
SLOPES = {"sigmoid": lambda x: expit(x) * expit(-x), "tanh": lambda x: 1 / np.cosh(x) ** 2}


def intervals(rng, dtype, count=300):
    """Of ends up to 100 and widths from 0, on either side of 0 and around it; and a few of huge ends."""
    center = np.concatenate([rng.normal(size=count) * scale for scale in (1e-6, 1e-3, 0.1, 1, 3, 10, 100)])
    width = 10 ** rng.uniform(-8, 2.5, center.size)
    width[::10] = 0
    share = rng.random(center.size)
    crossing = -width * share, width * (1 - share)
    lower, upper = (np.concatenate(ends).astype(dtype) for ends in zip((center, center + width), crossing, strict=True))
    huge = [(-1e3, 1e10), (-1e12, 1e12), (-1e10, 0.5), (1e5, 1e20), (-1e20, -1e19)]
    ends = np.clip(lower, -100, 100), np.clip(upper, -100, 100)
    return (np.append(these, np.array(more, dtype)) for these, more in zip(ends, zip(*huge, strict=True), strict=True))


@pytest.mark.parametrize("kind", CURVES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lines_are_on_their_side_of_the_curve(kind, dtype):
    operation, (lower, upper) = SShaped(kind), intervals(np.random.default_rng(0), dtype)
    x = Interval(tf.constant(lower), tf.constant(upper))
    inside = np.linspace(0, 1, 201)[:, None]
    points = lower + inside * (upper.astype("float64") - lower)
    near = np.clip(np.sinh(np.linspace(-9, 9, 301))[:, None] * 3e-3, lower, upper)  # closer around 0
    points = np.concatenate([points, near])
    values, sides = CURVES[kind](points), lines_below(operation, x)
    tried = [lines(operation, x)]
    for share in (0.0, 0.4, 1.0):
        share = tf.constant(share, dtype)
        tried.append([line(operation, side, side.at(share), mirror=mirror) for mirror, side in enumerate(sides)])
    for below, above in tried:
        low, high = (np.float64(of.slope) * points + np.float64(of.intercept) for of in (below, above))
        assert np.all(low <= values) and np.all(values <= high)


@pytest.mark.parametrize("kind", CURVES)
def test_the_last_tangent_passes_through_the_other_end(kind):
    curve, slope = CURVES[kind], SLOPES[kind]
    ends = np.array([0.05, 0.3, 1.0, 2.0, 5.0, 30.0])
    exact = [brentq(lambda p, u=u: curve(p) + slope(p) * (u - p) - curve(u), -u, -1e-9) for u in ends]
    below, _ = lines_below(SShaped(kind), Interval(tf.constant(-60 + 0 * ends), tf.constant(ends)))
    assert np.all(below.last <= exact) and np.all(below.last >= np.array(exact) - 0.02)


def test_chords_and_tangents_by_hand():
    below, above = lines(SShaped("tanh"), Interval(tf.constant([0.0, -2.0]), tf.constant([2.0, 0.0])))
    chord, tangent = np.tanh(2) / 2, 1 / np.cosh(1) ** 2
    np.testing.assert_allclose(below.slope, [chord, tangent], rtol=1e-5)
    np.testing.assert_allclose(above.slope, [tangent, chord], rtol=1e-5)
    np.testing.assert_allclose(below.intercept, [0, -np.tanh(1) + tangent], atol=1e-5)
    np.testing.assert_allclose(above.intercept, [np.tanh(1) - tangent, 0], atol=1e-5)


def curved_network(seed=0, depth=3):
    image = keras.Input((2, 2, 1))
    x = L.Flatten()(image)
    for number in range(depth):
        x = L.Dense(6, activation=("sigmoid", "tanh")[number % 2])(x)
    network = keras.Model(image, L.Dense(3)(x))
    randomize(network, np.random.default_rng(seed))
    for variable in network.trainable_variables:
        variable.assign(2 * variable)
    return network


def test_bounds_hold_and_tighten_in_order():
    images, rng = random_images(4, 1, (2, 2, 1)), np.random.default_rng(0)
    widths = []
    for seed in range(2):
        network = curved_network(seed)
        moved = np.clip(images + rng.uniform(-0.2, 0.2, (2000, *images.shape)), 0, 1).astype("float32")
        values = network.predict(moved.reshape(-1, 2, 2, 1), verbose=0, batch_size=8000).reshape(2000, 4, 3)
        for method in ("ibp", "crown-ibp", "crown", "alpha-crown"):
            found = output_bounds(network, images, 0.2, method)
            assert np.all(found.lower <= values.min(axis=0) + 1e-5) and np.all(values.max(axis=0) <= found.upper + 1e-5)
            widths.append(np.mean(found.upper - found.lower))
    ibp, crown_ibp, crown, alpha = np.reshape(widths, (2, 4)).T
    assert np.all(ibp > crown_ibp) and np.all(crown_ibp > crown) and np.all(crown > alpha)


def rising_network():
    """Logits tanh(2 x - 1) + 1/2 and 0, equal at x = (1 - artanh(1/2)) / 2 = 0.22535."""
    image = keras.Input((1, 1, 1))
    hidden, last = L.Dense(1, activation="tanh"), L.Dense(2)
    network = keras.Model(image, last(hidden(L.Flatten()(image))))
    hidden.set_weights([np.array([[2.0]]), np.array([-1.0])])
    last.set_weights([np.array([[1.0, 0.0]]), np.array([0.5, 0.0])])
    return network


def decide(network, epsilon, seconds=60.0):
    def check(image):
        logits = network(image[None].astype("float32"), training=False).numpy()[0]
        return image if logits[1] >= logits[0] else None

    verifier = BranchAndBound(network)
    return verifier(np.full((1, 1, 1), 0.5), 0, epsilon, wrong=[1], seconds=seconds, check=check)


def test_branch_and_bound_without_a_relu_has_the_known_answer():
    network, radius = rising_network(), 0.5 - (1 - np.arctanh(0.5)) / 2
    assert decide(network, radius - 0.001).safe is True
    broken = decide(network, radius + 0.001)
    assert broken.safe is False and broken.counterexample.item() <= 0.5 - radius


def test_what_the_bounds_of_curves_cannot_decide_stays_open():
    """tanh(4 x - 2) - tanh(4 x - 2) + 0.01: positive everywhere, which lines of each curve do not show."""
    network = keras.Sequential([keras.Input((1, 1, 1)), L.Flatten(), L.Dense(2, activation="tanh"), L.Dense(2)])
    weights = [[4.0, 4.0]], [-2.0, -2.0], [[1.0, 0.0], [-1.0, 0.0]], [0.01, 0.0]
    network.set_weights([*map(np.array, weights)])
    started = time.monotonic()
    found = decide(network, 0.4, 600)
    assert found.safe is None and found.lower < 0 and time.monotonic() - started < 300


def test_relus_beside_curves_are_split():
    """relu(z) + relu(-z) + 0.01 of z = tanh(4 x - 2): positive, although a bound of lines is not."""
    image = keras.Input((1, 1, 1))
    z = L.Dense(1, activation="tanh")(L.Flatten()(image))
    network = keras.Model(image, L.Dense(2)(L.Dense(2, activation="relu")(z)))
    weights = [[4.0]], [-2.0], [[1.0, -1.0]], [0.0, 0.0], [[1.0, 0.0], [1.0, 0.0]], [0.01, 0.0]
    network.set_weights([*map(np.array, weights)])
    assert decide(network, 0.4).safe is True


def test_gradients_of_training_are_finite():
    network, images = curved_network(), random_images(4, 1, (2, 2, 1))
    with tf.GradientTape() as tape:
        terms = worst_case_outputs(network, images, [0, 1, 2, 0], 0.1, "crown-ibp")
        loss = tf.reduce_sum(terms["logits"]) + terms["interval_tightness"] + terms["relu_balance"]
    gradients = tape.gradient(loss, network.trainable_variables)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_sound_bounds_are_refused_by_the_layer():
    network = rising_network()
    name = network.layers[2].name
    with pytest.raises(InvalidInputError, match=f"layer {name} has activation tanh, which has no sound bounds"):
        worst_case_margins(network, np.full((1, 1, 1, 1), 0.5, "float32"), [0], 0.1, "crown", sound=True)
