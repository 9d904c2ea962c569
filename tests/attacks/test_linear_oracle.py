"""On a linear model the best adversarial image has a closed form (after adversarial-library); the attacks reach it."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.attacks import craft
from keras_rcl.vocabulary.attacks import BIM, FGSM, PGD

EPSILON = {"linf": 0.1, "l2": 0.4}
norms = pytest.mark.parametrize("norm", EPSILON)
losses = pytest.mark.parametrize("loss", ["cross_entropy", "logit_margin"])
# Further from 0 and 1 than any ball's radius, so that the box does not bind.
IMAGES = np.random.default_rng(1).uniform(0.45, 0.55, (12, 4, 4, 1)).astype("float32")
LABELS = np.random.default_rng(2).integers(0, 2, 12)


def linear(classes, seed=0):
    """Random weights [16, K] and bias [K] that puts the middle grey on the border, and their logits function."""
    kernel = np.random.default_rng(seed).normal(size=(16, classes)).astype("float32")
    bias = -0.5 * kernel.sum(axis=0)
    return kernel, bias, lambda x: tf.reshape(x, [-1, 16]) @ kernel + bias


def optimum(kernel, images, labels, targets, epsilon, norm):
    """argmax of z_target - z_label over the ball: along the weights' difference, to the ball's edge."""
    found = []
    for image, label, target in zip(images, labels, targets, strict=True):
        difference = (kernel[:, target] - kernel[:, label]).astype("float64")
        step = np.sign(difference) if norm == "linf" else difference / np.sqrt((difference**2).sum())
        found.append(image + epsilon * step.reshape(image.shape))
    return np.array(found)


ATTACKS = {
    "fgsm": FGSM(),
    "bim": BIM(num_steps=5),
    "pgd": PGD(num_steps=60),
    "pgd restarts": PGD(num_steps=60, num_restarts=2),
}


def run(attack, logits, images, labels):
    return tf.function(lambda x, y: craft(attack, logits, x, y, seed=1), autograph=False)(images, labels).numpy()


@norms
@losses
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_two_classes(attack, norm, loss, targeted):
    kernel, _, logits = linear(2)
    attack = dataclasses.replace(attack, norm=norm, epsilon=EPSILON[norm], loss=loss, targeted=targeted)
    found = run(attack, logits, IMAGES, 1 - LABELS if targeted else LABELS)
    np.testing.assert_allclose(found, optimum(kernel, IMAGES, LABELS, 1 - LABELS, EPSILON[norm], norm), atol=1e-5)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_where_the_box_binds(attack):
    """L-inf is separable: the optimum within ball and box is the ball's, clipped."""
    kernel, _, logits = linear(2)
    images = np.random.default_rng(3).choice([0.0, 0.03, 0.5, 0.98, 1.0], IMAGES.shape).astype("float32")
    found = run(dataclasses.replace(attack, epsilon=0.1), logits, images, LABELS)
    free = optimum(kernel, images, LABELS, 1 - LABELS, 0.1, "linf")
    assert np.mean((free < 0) | (free > 1)) > 0.3
    np.testing.assert_allclose(found, np.clip(free, 0, 1), atol=1e-6)


@norms
def test_many_classes(norm):
    """The margin's optimum is the best over all classes to aim at, of which the ascent follows the nearest."""
    kernel, bias, logits = linear(5)
    epsilon = EPSILON[norm] / 5
    images = np.random.default_rng(4).uniform(0.2, 0.8, (30, 4, 4, 1)).astype("float32")
    values = images.reshape(-1, 16) @ kernel + bias
    labels = values.argmax(axis=1)
    dual = 1 if norm == "linf" else 2
    tested = 0
    found = run(PGD(norm=norm, epsilon=epsilon, num_steps=60, loss="logit_margin"), logits, images, labels)
    for index, (row, label) in enumerate(zip(values, labels, strict=True)):
        others = [k for k in range(5) if k != label]
        reach = {k: epsilon * np.linalg.norm(kernel[:, k] - kernel[:, label], dual) for k in others}
        best = max(row[k] - row[label] + reach[k] for k in others)
        now = found[index].reshape(16) @ kernel + bias
        assert max(now[k] for k in others) - now[label] <= best + 1e-4
        # Where one class is ahead of the other candidates all over the ball, it is what the ascent must follow.
        runner_up = max(others, key=lambda k: row[k])
        if all(
            row[runner_up] - row[k] > epsilon * np.linalg.norm(kernel[:, k] - kernel[:, runner_up], dual)
            for k in others
            if k != runner_up
        ):
            tested += 1
            expected = optimum(kernel, images[[index]], [label], [runner_up], epsilon, norm)
            np.testing.assert_allclose(found[[index]], expected, atol=1e-5)
            assert now[runner_up] - now[label] == pytest.approx(best, abs=1e-4)
    assert tested >= 3


@norms
def test_accuracy_falls_exactly_beyond_the_margin(norm):
    """An image falls where its distance to the border, margin / ||w_0 - w_1|| in the dual norm, is below epsilon."""
    kernel, bias, logits = linear(2)
    values = IMAGES.reshape(-1, 16) @ kernel + bias
    labels = values.argmax(axis=1)
    dual = np.linalg.norm(kernel[:, 0].astype("float64") - kernel[:, 1], 1 if norm == "linf" else 2)
    distances = np.abs(values[:, 0] - values[:, 1]) / dual
    for rank in (0, 3, 6, 9, 11):
        nearest = np.sort(distances)[rank]
        for epsilon in (nearest * 0.99, nearest * 1.01):
            x_adv = craft(BIM(norm=norm, epsilon=float(epsilon), num_steps=5), logits, IMAGES, labels)
            found = np.asarray(logits(x_adv)).argmax(axis=1)
            np.testing.assert_array_equal(found == labels, distances > epsilon)
