"""HopSkipJump on a linear classifier, whose nearest adversarial image is known, and the queries that it makes."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl import craft
from keras_rcl.attacks.gradient_ascent import Round
from keras_rcl.attacks.hop_skip_jump import GROUP, minimal_perturbation
from keras_rcl.vocabulary.attacks import HopSkipJump, parse_attack

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(16, 2)).astype("float32")
IMAGES = RNG.uniform(0.3, 0.7, (8, 4, 4, 1)).astype("float32")
SEEDS = RNG.integers(0, 2**60, (8, 2))
BIAS = (-WEIGHTS.sum(axis=0) / 2).astype("float32")
norms = pytest.mark.parametrize("norm", ["l2", "linf"])


def classes(x):
    """One-hot rows: no gradient, and nothing but the predicted class."""
    return tf.one_hot(tf.argmax(tf.reshape(x, [-1, 16]) @ WEIGHTS + BIAS, axis=1), 2)


LABELS = np.argmax(classes(IMAGES), axis=1).astype("int32")


def true_distances(norm):
    logits = IMAGES.reshape(-1, 16).astype("float64") @ WEIGHTS + BIAS
    difference = (WEIGHTS[:, 0] - WEIGHTS[:, 1]).astype("float64")
    return np.abs(logits[:, 0] - logits[:, 1]) / np.linalg.norm(difference, 1 if norm == "linf" else 2)


@functools.cache
def found(norm, num_queries):
    attack = HopSkipJump(norm=norm, num_queries=num_queries)
    run = tf.function(lambda x: minimal_perturbation(classes, x, LABELS, attack, Round(SEEDS)), autograph=False)
    return run(tf.constant(IMAGES))


@pytest.mark.slow
@norms
def test_distances_of_a_linear_classifier_approach_the_closed_form(norm):
    expected, result = true_distances(norm), found(norm, 5000)
    moved = np.abs(result.images - IMAGES).reshape(8, -1)
    lengths = moved.max(axis=1) if norm == "linf" else np.sqrt((moved**2).sum(axis=1))
    np.testing.assert_allclose(lengths, result.distance, rtol=1e-4)
    assert (np.argmax(classes(result.images), axis=1) != LABELS).all()
    assert (result.distance.numpy() >= expected * (1 - 1e-3)).all()
    assert np.median(result.distance / expected) < 1.05
    assert (result.distance.numpy() <= found(norm, 800).distance.numpy()).all()


@pytest.mark.slow
def test_no_example_makes_more_queries_than_it_may():
    """The images that the classifier receives, of one example; the last group of directions may be incomplete."""
    attack, asked = HopSkipJump(num_queries=700), tf.Variable(0)

    def counting(x):
        asked.assign_add(tf.shape(x)[0])
        return classes(x)

    run = tf.function(
        lambda x: minimal_perturbation(counting, x, LABELS[:1], attack, Round(SEEDS[:1])), autograph=False
    )
    result = run(tf.constant(IMAGES[:1]))
    assert np.isfinite(result.distance).all()
    assert 500 < int(asked) <= 700 + GROUP


@pytest.mark.slow
def test_only_images_within_epsilon_count_and_wrong_ones_stay():
    distances = true_distances("l2")
    epsilon = float(np.median(distances))
    attack = HopSkipJump(epsilon=epsilon, num_queries=3000)
    adversarial = tf.function(lambda x: craft(attack, classes, x, LABELS), autograph=False)(IMAGES).numpy()
    moved = np.sqrt(((adversarial - IMAGES) ** 2).sum(axis=(1, 2, 3)))
    assert moved.max() <= epsilon
    broken = np.argmax(classes(adversarial), axis=1) != LABELS
    assert broken[distances < 0.8 * epsilon].all() and not broken[distances > epsilon].any()
    np.testing.assert_array_equal(moved[~broken], 0)
    wrong = craft(attack, classes, IMAGES[:2], 1 - LABELS[:2]).numpy()
    np.testing.assert_array_equal(wrong, IMAGES[:2])


def test_on_the_command_line():
    assert parse_attack("hopskipjump-5000:norm=linf,epsilon=8/255") == HopSkipJump(
        num_queries=5000, norm="linf", epsilon="8/255"
    )
