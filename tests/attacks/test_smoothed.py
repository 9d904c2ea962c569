"""Attacks on a smoothed classifier beside NumPy: the noise, the gradient of the mean softmax, and the limit of PGD."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_rcl.attacks import craft
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import BIM, PGD, SmoothedAttack

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(48, 3)).astype("float32")
IMAGES = RNG.uniform(0.3, 0.7, (6, 4, 4, 3)).astype("float32")
IMAGES[0] = 1.0
LABELS = np.array([0, 1, 2, 0, 1, 2])
SIGMA, DRAWS = 0.3, 4


class Linear:
    """A linear classifier that remembers the images that it was given, in eager mode."""

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        if tf.executing_eagerly():
            self.seen.append(np.asarray(images))
        return tf.linalg.matmul(tf.reshape(images - 0.5, [-1, 48]), WEIGHTS)


@functools.cache
def crafted(attack, seed=3):
    """The adversarial images, and the noisy copies [steps, draws, N, H, W, C] that the classifier was given."""
    classifier = Linear()
    images = craft(attack, classifier, IMAGES, LABELS, seed=seed).numpy()
    return images, np.stack(classifier.seen).reshape(-1, attack.num_draws, *IMAGES.shape)


def smoothed(**changes):
    inner = PGD(norm="l2", epsilon=0.5, step_size=0.2, num_steps=3, random_start=False)
    return SmoothedAttack(attack=dataclasses.replace(inner, **changes), sigma=SIGMA, num_draws=DRAWS)


@pytest.mark.slow
def test_the_noise_is_gaussian_unclipped_and_the_same_in_all_steps():
    _, copies = crafted(smoothed())
    assert len(copies) == 3
    noise = copies[0] - IMAGES
    assert stats.kstest(noise.ravel() / SIGMA, "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(noise.reshape(DRAWS * 6, 48)) - np.eye(DRAWS * 6)).max() < 0.6
    assert (copies[0, :, 0] > 1).mean() == pytest.approx(0.5, abs=0.2)  # of a white image, half of the pixels
    for step in copies[1:]:
        moved = step - copies[0]
        np.testing.assert_allclose(moved, np.broadcast_to(moved[:1], moved.shape), atol=1e-6)
        assert np.linalg.norm(moved[0].reshape(6, 48), axis=1)[1:].min() > 0.1


@pytest.mark.slow
def test_the_noise_of_an_image_depends_on_the_seed_and_on_its_pixels_alone():
    attack, (_, copies) = smoothed(), crafted(smoothed())
    classifier = Linear()
    craft(attack, classifier, IMAGES[[4, 2]], LABELS[[4, 2]], seed=3)
    np.testing.assert_allclose(classifier.seen[0].reshape(DRAWS, 2, 4, 4, 3), copies[0][:, [4, 2]], atol=1e-6)
    _, others = crafted(attack, seed=4)
    assert not np.isclose(others[0], copies[0]).any(axis=(1, 2, 3, 4)).all()


def test_a_step_is_along_the_gradient_of_the_mean_softmax():
    """By NumPy in float64, image by image and copy by copy: d/dx of -log mean_j p_j[y], p = softmax(W x)."""
    found, copies = crafted(smoothed(num_steps=1))
    weights, expected = WEIGHTS.astype("float64"), []
    for number, (image, label) in enumerate(zip(IMAGES.astype("float64"), LABELS, strict=True)):
        total, slope = 0.0, np.zeros(48)
        for copy in copies[0][:, number].astype("float64"):
            logits = (copy.ravel() - 0.5) @ weights
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            total += shares[label]
            slope += shares[label] * (weights[:, label] - weights @ shares)
        direction = -slope / total
        expected.append(np.clip(image.ravel() + 0.2 * direction / np.linalg.norm(direction), 0, 1))
    np.testing.assert_allclose(found.reshape(6, 48), expected, atol=1e-5)


@pytest.mark.parametrize("random_start", [True, False])
def test_one_draw_of_vanishing_noise_is_pgd(random_start):
    inner = PGD(norm="l2", epsilon=0.5, num_steps=5, random_start=random_start)
    found = craft(SmoothedAttack(attack=inner, sigma=1e-9, num_draws=1), Linear(), IMAGES, LABELS, seed=3)
    np.testing.assert_allclose(found, craft(inner, Linear(), IMAGES, LABELS, seed=3), atol=1e-5)


@pytest.mark.parametrize(
    "fields", [dict(targeted=True), dict(num_restarts=2), dict(protocol="cusin-repo", norm="linf", epsilon=0.03)]
)
def test_what_a_smoothed_attack_cannot_run_is_refused(fields):
    with pytest.raises(InvalidInputError, match="of a smoothed classifier runs once, in pixels and without a target"):
        SmoothedAttack(attack=PGD(**fields))


def test_its_label_and_its_cost():
    attack = SmoothedAttack(attack="bim-4:norm=l2,epsilon=0.5", sigma=0.5, num_draws=3)
    assert attack.attack == BIM(norm="l2", epsilon=0.5, num_steps=4)
    assert attack.label == "BIM-4 through 3 draws of noise 0.5" and attack.cost == 3 * 8
    assert (attack.norm, attack.epsilon) == ("l2", 0.5)
