"""Sound bounds against the values of networks in float64, whose own rounding is a billion times as small."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_tightness import NETWORKS
from tiny_networks import random_images, random_network

from keras_rcl.bounds import worst_case_margins
from keras_rcl.bounds.beta_crown import BranchAndBound
from keras_rcl.bounds.input_sets import Interval
from keras_rcl.bounds.interval import interval_bounds
from keras_rcl.bounds.rounding import UNIT, gamma, lowered, rounded_box, rounded_steps
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.certification import Certifier
from keras_rcl.folding import fold
from keras_rcl.folding.numpy_forward import evaluate

pytestmark = pytest.mark.usefixtures("unoptimized")

KINDS = {
    "residual": lambda: random_network(["add", "average_pooling"], seed=1),
    "conv": lambda: random_network(["conv", "relu", "conv"], seed=3),
    "max pooling": lambda: random_network(["conv", "max_pooling", "padding"], tail="average", seed=2),
}
METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown")


def margins_of(network, images, labels):
    """[N, K] in float64, of the network that is folded in float64."""
    logits = evaluate(fold(network, dtype="float64"), images)
    return np.take_along_axis(logits, labels[:, None], axis=1) - logits


def many_weights(network):
    """Large weights of alternating sign: rounding errors are seen, and the logits stay of the same size."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.Dense):
            kernel = layer.kernel.numpy()
            layer.kernel.assign(kernel + 300 * np.resize([1, -1], kernel.shape[1]))
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_sound_bounds_are_below_the_values_at_a_point(kind):
    """Without a perturbation a bound is the value itself: rounding lifts some of the others above it."""
    network = many_weights(KINDS[kind]())
    images = random_images(20, 5, network.input_shape[1:])
    labels = np.arange(20) % 3
    exact = margins_of(network, images, labels)
    for method in ("ibp", "crown"):
        plain, sound = (
            worst_case_margins(network, images, labels, 0.0, method, sound=of).numpy() for of in (False, True)
        )
        assert np.all(sound <= exact), method
        assert np.any(plain > exact), method
    assert np.all(exact - sound <= 1e-2 * (1 + np.abs(exact).max()))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), [("conv", "float32"), ("conv", "float64")])
def test_sound_bounds_are_below_all_values_of_a_ball(kind, dtype):
    network, rng = KINDS[kind](), np.random.default_rng(0)
    images = random_images(2, 6, network.input_shape[1:])
    labels, epsilon = np.arange(2) % 3, 0.05
    inside = np.clip(images + rng.uniform(-epsilon, epsilon, (200, *images.shape)), 0, 1)
    exact = np.min([margins_of(network, sample, labels) for sample in inside], axis=0)
    slack, sound = 5e-3 if dtype == "float32" else 1e-9, {}
    for method in METHODS:
        bound = functools.partial(worst_case_margins, network, images.astype(dtype), labels, epsilon, method)
        sound[method] = bound(sound=True, iterations=2).numpy()
        assert np.all(sound[method] <= exact)
        if method != "alpha-crown":  # whose best slopes are others
            plain = bound().numpy()
            assert np.all(sound[method] <= plain + slack / 5), method
            assert np.all(plain - sound[method] <= slack * (1 + np.abs(plain))), method
    assert np.all(sound["alpha-crown"] >= sound["crown"])


def test_intervals_hold_in_real_arithmetic():
    """A sum of ones and 2^24 is exact in float64, and loses all ones in float32 if they are added one by one."""
    image = keras.Input((1, 8, 1))
    network = keras.Model(image, keras.layers.Dense(1)(keras.layers.Flatten()(image)))
    network.set_weights([np.ones((8, 1)), np.array([2.0**25])])
    steps = rounded_steps(network, "float32")
    box = rounded_box(np.ones((1, 1, 8, 1), "float32"), 0.0, "float32")
    last = interval_bounds(steps, box)[-1]
    assert float(last.lower[0, 0]) <= 2.0**25 + 8 <= float(last.upper[0, 0])
    assert float(last.upper[0, 0] - last.lower[0, 0]) < 2.0**25 * 1e-4


def test_the_box_holds_the_ball():
    """8/255 and the sides of its ball are not floats."""
    images, epsilon = random_images(50, 1), 8 / 255
    for dtype in UNIT:
        box = rounded_box(images.astype(dtype), np.asarray(epsilon, dtype), dtype)
        low, high = np.maximum(images - np.float64(epsilon), 0), np.minimum(images + np.float64(epsilon), 1)
        assert np.all(np.asarray(box.lower, "float64") <= low) and np.all(np.asarray(box.upper, "float64") >= high)
        assert np.max(low - np.asarray(box.lower, "float64")) <= 8 * UNIT[dtype]


def test_rounding_of_numbers():
    """gamma_n is n u and a little more; a number that is lowered is not larger than it was."""
    assert gamma(3, "float32") == pytest.approx(3 * 2.0**-24, rel=1e-6) and gamma(3, "float32") > 3 * 2.0**-24
    values = np.array([1 / 3, -1 / 3, 1e8 + 1, 0.0, -1e-30])
    lower = np.asarray(lowered(tf.constant(values), "float32"), "float64")
    assert np.all(lower <= values) and np.all(values - lower <= 1e-6 * np.abs(values) + 1e-19)


def rounded_away():
    """The margin of class 0 is 0.5 - x; at x = 1 float32 says 0.5, as 2^26 - 1 is rounded to 2^26."""
    image = keras.Input((1, 1, 1))
    hidden = keras.layers.Dense(2, activation="relu")(keras.layers.Flatten()(image))
    network = keras.Model(image, keras.layers.Dense(2)(hidden))
    weights = ([[-1.0, 0.0]], [2.0**26, 2.0**26], [[1.0, 0.0], [-1.0, 0.0]], [0.5, 0.0])
    network.set_weights([np.array(values) for values in weights])
    return network, np.ones((1, 1, 1, 1), "float32"), np.zeros(1, int)


def test_a_network_on_which_float32_is_wrong():
    network, images, labels = rounded_away()
    assert margins_of(network, images, labels)[0, 1] == -0.5
    plain, sound = (float(worst_case_margins(network, images, labels, 1e-3, "ibp", sound=of)[0, 1]) for of in (0, 1))
    assert plain == 0.5 and sound < -0.5
    statuses = [
        str(Certifier(network, [1e-3], method="ibp", attacks=(), sound=of)(images, labels).statuses[0, 0])
        for of in (False, True)
    ]
    assert statuses == ["safe-incomplete", "unsafe"]
    with pytest.raises(InvalidInputError, match="sound bounds are not for l2"):
        Certifier(network, [1e-3], norm="l2", attacks=(), sound=True)


@pytest.mark.slow
def test_bounds_of_a_sound_search_are_below_the_values():
    network, rng = NETWORKS["deep"](), np.random.default_rng(0)
    search, answers = BranchAndBound(network, sound=True, root_iterations=1, iterations=5), []
    for seed in range(6):
        image, epsilon = random_images(1, seed, network.input_shape[1:])[0], 0.1
        label = int(np.argmin(margins_of(network, image[None], np.zeros(1, int))[0]))
        wrong = [j for j in range(3) if j != label]
        samples = np.clip(image + rng.uniform(-epsilon, epsilon, (2000, *image.shape)), 0, 1)
        worst = margins_of(network, samples, np.full(2000, label))[:, wrong].min()
        found = search(image, label, epsilon, wrong=wrong, seconds=1e5, check=lambda image: image)
        assert found.lower <= worst and (found.safe is False or worst > 0)
        answers.append(found.safe)
    assert True in answers


def test_an_interval_that_is_intersected_keeps_its_error():
    box = rounded_box(np.full((1, 2), 0.5, "float32"), 0.1, "float32")
    tighter = box.intersect(Interval(np.full((1, 2), 0.45, "float32"), np.ones((1, 2), "float32")))
    np.testing.assert_array_equal(tighter.error, box.error)
    assert float(tighter.lower[0, 0]) == np.float32(0.45) and not hasattr(tighter.plain, "error")
