"""DeepFool, DDN and FMN: the closed form of a linear classifier, and what every search returns."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl import craft
from keras_rcl.attacks.nearest import ddn, deepfool, fmn
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import DDN, FMN, DeepFool, parse_attack

RNG = np.random.default_rng(0)
SHAPE, CLASSES = (4, 4, 1), 3
# Each class reads five pixels of its own, so that the border of the likeliest wrong class is nearest. Logits are
# far apart, so that cross-entropy leads there, too.
WEIGHTS = 250 * np.kron(np.eye(CLASSES), RNG.choice([-1, 1], (5, 1)))
WEIGHTS = np.pad(WEIGHTS, ((0, 1), (0, 0))).astype("float32")
IMAGES = RNG.uniform(0.4, 0.6, (20, *SHAPE)).astype("float32")  # far from the box: no pixel stops there
BIAS = (-WEIGHTS.sum(axis=0) / 2).astype("float32")
SEARCHES = {
    "deepfool l2": (deepfool, DeepFool(overshoot=1e-3)),
    "deepfool linf": (deepfool, DeepFool(norm="linf", overshoot=1e-3)),
    "ddn": (ddn, DDN(num_steps=200, initial_epsilon=0.1)),
    "fmn l2": (fmn, FMN(norm="l2", num_steps=200)),
    "fmn linf": (fmn, FMN(norm="linf", num_steps=200)),
}
IN_L1 = pytest.param(fmn, FMN(norm="l1", num_steps=200), id="fmn l1", marks=pytest.mark.slow)
every_search = pytest.mark.parametrize(
    ("search", "attack"), [*(pytest.param(*pair, id=name) for name, pair in SEARCHES.items()), IN_L1]
)


def linear(x):
    return tf.reshape(x, [-1, 16]) @ WEIGHTS + BIAS


def lengths(delta, norm):
    flat = np.abs(np.asarray(delta, "float64")).reshape(len(delta), -1)
    return np.linalg.norm(flat, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)


@functools.cache
def true_distances(norm):
    """min over the wrong classes k of (z_y - z_k) / ||w_k - w_y||, in the dual norm; and the labels."""
    logits = IMAGES.reshape(-1, 16).astype("float64") @ WEIGHTS + BIAS
    labels = logits.argmax(axis=1)
    gaps = logits.max(axis=1, keepdims=True) - logits
    apart = WEIGHTS.T[None] - WEIGHTS.T[labels][:, None]
    sizes = np.linalg.norm(apart, {"linf": 1, "l2": 2, "l1": np.inf}[norm], axis=2)
    return np.where(gaps > 0, gaps / np.maximum(sizes, 1e-12), np.inf).min(axis=1), labels


def searched(search, attack, logits, labels):
    """What a search finds for all images, in one graph."""
    run = tf.function(lambda images, labels: search(logits, images, labels, attack), autograph=False)
    return run(tf.constant(IMAGES), tf.constant(labels, tf.int32))


@every_search
def test_distances_of_a_linear_classifier_are_the_closed_form(search, attack):
    expected, labels = true_distances(attack.norm)
    found = searched(search, attack, linear, labels)
    assert (found.distance.numpy() >= expected * (1 - 1e-4)).all()
    np.testing.assert_allclose(found.distance, expected, rtol=0.01)
    np.testing.assert_allclose(lengths(found.images - IMAGES, attack.norm), found.distance, rtol=1e-4)
    assert (np.argmax(linear(found.images), axis=1) != labels).all()


@every_search
def test_misclassified_images_are_their_own_nearest_and_far_ones_are_returned_unchanged(search, attack):
    _, labels = true_distances(attack.norm)
    wrong = (labels + 1) % CLASSES
    found = searched(search, attack, linear, wrong)
    np.testing.assert_array_equal(found.distance, 0)
    np.testing.assert_array_equal(found.images, IMAGES)
    constant = searched(search, attack, lambda x: 0 * linear(x) + [1.0, 0, 0], np.zeros(20))
    assert np.isinf(constant.distance).all()
    np.testing.assert_array_equal(constant.images, IMAGES)
    np.testing.assert_array_equal(constant.zero_gradients, 1)


@every_search
def test_only_images_within_epsilon_count(search, attack):
    distances, labels = true_distances(attack.norm)
    epsilon = float(np.median(distances))
    adversarial = craft(attack.with_epsilon(epsilon), linear, IMAGES, labels)
    moved = lengths(adversarial - IMAGES, attack.norm)
    assert moved.max() <= epsilon
    near, far = distances < 0.98 * epsilon, distances > epsilon
    assert near.sum() > 5 and far.sum() > 5
    assert (np.argmax(linear(adversarial), axis=1) != labels)[near].all()
    np.testing.assert_array_equal(moved[far], 0)


def test_a_model_without_gradients_is_an_error():
    for search, attack in SEARCHES.values():
        with pytest.raises(InvalidInputError, match="no gradient reaches the pixels"):
            search(lambda x: tf.stop_gradient(linear(x)), tf.constant(IMAGES), tf.zeros(20, tf.int32), attack)


def test_on_the_command_line():
    assert parse_attack("ddn-300:epsilon=0.5") == DDN(num_steps=300, epsilon=0.5)
    assert parse_attack("deepfool:norm=linf,epsilon=8/255") == DeepFool(norm="linf", epsilon="8/255")
    assert parse_attack("fmn-40:norm=l2,epsilon=1.0").label == "FMN-40"
    with pytest.raises(InvalidInputError, match="norm"):
        parse_attack("ddn:norm=linf")
