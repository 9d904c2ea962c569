"""Expectation over a classifier's own randomness: the gradient is the mean over passes, in closed form."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.attacks import craft, craft_and_count
from keras_rcl.vocabulary.attacks import PGD, AutoAttack, AutoPGD

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
PASSES = 5
# Weights that agree on the whole and not in each pixel; the first two are large, so that a scale per pass would show.
WEIGHTS = ((RNG.normal(size=(PASSES, 16)) + 0.7) * np.array([6, 3, 0.5, 1, 1])[:, None]).astype("float32")
IMAGES = RNG.uniform(0.4, 0.6, (6, 4, 4, 1)).astype("float32")
LABELS = np.zeros(6, int)


def logits_of(x, weights):
    first = 4 - tf.linalg.matvec(tf.reshape(x - 0.5, [-1, 16]), weights)
    return tf.stack([first, tf.zeros_like(first)], axis=1)


class Randomised:
    """Logits (4 - <w, x - 0.5>, 0), with the next row of the weights at every pass."""

    def __init__(self):
        self.passes = tf.Variable(0, dtype=tf.int32)

    def __call__(self, x):
        weights = tf.gather(WEIGHTS, (self.passes.assign_add(1) - 1) % PASSES)
        return logits_of(x, weights)


def mean_gradient(images, loss):
    """By NumPy: the margin's gradient is w, that of cross-entropy w / (1 + exp(z_0))."""
    flat = (images.reshape(-1, 16) - 0.5).astype("float64")
    shares = np.ones((len(flat), PASSES)) if loss == "logit_margin" else 1 / (1 + np.exp(4 - flat @ WEIGHTS.T))
    return (shares @ WEIGHTS / PASSES).reshape(images.shape)


def stepped(images, gradient, epsilon, norm):
    length = np.sqrt((gradient**2).sum(axis=(1, 2, 3), keepdims=True))
    return images + epsilon * (np.sign(gradient) if norm == "linf" else gradient / length)


def run(attack, eagerly):
    classifier = Randomised()
    graph = tf.function(lambda x, labels: craft(attack, classifier, x, labels), autograph=False)
    found = craft(attack, classifier, IMAGES, LABELS) if eagerly else graph(IMAGES, LABELS)
    return found.numpy(), int(classifier.passes)


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.01), ("l2", 0.05)])
@pytest.mark.parametrize("loss", ["logit_margin", "cross_entropy"])
@pytest.mark.parametrize("eagerly", [True, False])
def test_pgd_steps_along_the_mean(norm, epsilon, loss, eagerly):
    fields = dict(norm=norm, epsilon=epsilon, step_size=epsilon, random_start=False, loss=loss)
    attack = PGD(num_steps=1, eot_iter=PASSES, **fields)
    found, passes = run(attack, eagerly)
    np.testing.assert_allclose(found, stepped(IMAGES, mean_gradient(IMAGES, loss), epsilon, norm), atol=1e-6)
    once, _ = run(PGD(num_steps=1, **fields), eagerly)
    assert not np.allclose(once, found, atol=epsilon / 10), "one pass is not the mean"
    assert passes == attack.num_passes[0] == attack.num_passes[1] == PASSES


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.01), ("l2", 0.05)])
@pytest.mark.parametrize("eagerly", [True, False])
def test_apgd_steps_along_the_mean(norm, epsilon, eagerly, monkeypatch):
    monkeypatch.setattr("keras_rcl.attacks.auto_pgd.boundary_start", lambda x, *arguments: x)
    attack = AutoPGD(norm=norm, epsilon=epsilon, num_steps=1, eot_iter=PASSES)
    found, passes = run(attack, eagerly)
    expected = stepped(IMAGES, mean_gradient(IMAGES, "cross_entropy"), epsilon, norm)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert passes == attack.num_passes[0] == attack.num_passes[1] == 2 * PASSES


def test_a_classifier_that_is_not_random_is_attacked_alike():
    def steady(x):
        return logits_of(x, WEIGHTS[0])

    for kind in (PGD, AutoPGD):
        found = [craft(kind(num_steps=4, eot_iter=passes), steady, IMAGES, LABELS).numpy() for passes in (1, 3)]
        np.testing.assert_allclose(*found, atol=1e-6)


def test_zero_gradients_are_those_of_the_mean():
    """Each pass has a gradient in one pixel, its own; two passes leave 14 of 16 without."""
    passes = tf.Variable(0, dtype=tf.int32)

    def one_pixel(x):
        pixel = tf.gather(tf.reshape(x, [-1, 16]), (passes.assign_add(1) - 1) % 2, axis=1)
        return tf.stack([4 - pixel, 0 * pixel], axis=1)

    for attack in (PGD(num_steps=3, eot_iter=2), AutoPGD(num_steps=3, eot_iter=2)):
        zeros = craft_and_count(attack, one_pixel, IMAGES, LABELS).zero_gradients
        np.testing.assert_allclose(zeros, 14 / 16)


def test_rand_counts_its_passes():
    assert [member.num_passes for member in AutoAttack(version="rand").members] == [(101 * 20, 101 * 20)] * 2
