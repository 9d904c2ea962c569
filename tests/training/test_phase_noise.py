"""Phases with noise: which noise the views of a batch get, and that a smoothed attack saw the same."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from tiny import image_data, tiny_network

from keras_rcl.attacks import craft
from keras_rcl.errors import InvalidInputError
from keras_rcl.training.views import stack_views
from keras_rcl.vocabulary.attacks import PGD, SmoothedAttack
from keras_rcl.vocabulary.dataset import CropFlip
from keras_rcl.vocabulary.phase import Adversarial, Augmented, Clean, CrossEntropy, Phase, WorstCase

SIGMA = 0.25
ATTACK = SmoothedAttack(attack=PGD(norm="l2", epsilon=0.5, num_steps=2), sigma=SIGMA, num_draws=2)
ATTACKED = Adversarial(attack=ATTACK)
SEED = tf.constant([3, 4])


def phase_of(*views, noise=SIGMA, **fields):
    trains = ("encoder", "classifier")
    return Phase(name="p", epochs=1, trains=trains, views=views, terms=(CrossEntropy(),), noise=noise, **fields)


def batch(count: int, views: int):
    train = image_data(count).train
    return tf.repeat((train.images / np.float32(255))[None], views, axis=0), tf.constant(train.labels, tf.int32)


@pytest.mark.slow
def test_noise_is_gaussian_unclipped_and_of_each_image_and_view():
    phase = phase_of(Clean(), Clean(), Augmented(policy=CropFlip(padding=1)))
    images, labels = batch(32, 3)
    stacked = stack_views(None, phase, images, labels, SEED)[0].numpy().reshape(3, 32, 64)
    noise = (stacked - images.numpy().reshape(3, 32, 64)) / SIGMA
    assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert np.abs(np.corrcoef(noise[:2].reshape(2 * 32, 64)) - np.eye(64)).max() < 0.6
    assert stacked.min() < 0 and stacked.max() > 1
    order = np.random.default_rng(0).permutation(32)
    again = stack_views(None, phase, tf.gather(images, order, axis=1), tf.gather(labels, order), SEED)[0]
    np.testing.assert_array_equal(again.numpy().reshape(3, 32, 64), stacked[:, order])


def test_equal_views_share_their_attack_and_have_the_noise_that_it_saw():
    network, (images, labels) = tiny_network(), batch(6, 3)
    stacked = stack_views(network, phase_of(Clean(), ATTACKED, ATTACKED), images, labels, SEED)[0].numpy()
    seen = []

    def logits(copies):
        seen.append(copies.numpy())
        return network(copies, training=False)["logits"]

    seed = tf.random.experimental.stateless_fold_in(SEED, 1)
    still = SmoothedAttack(attack=PGD(norm="l2", epsilon=0.5, num_steps=1, random_start=False), sigma=SIGMA)
    craft(still, logits, images[1], labels, seed=seed)
    noise = seen[0].reshape(2, 6, 8, 8, 1) - images[1].numpy()
    expected = craft(ATTACK, lambda x: network(x, training=False)["logits"], images[1], labels, seed=seed).numpy()
    assert np.linalg.norm((expected - images[1]).numpy().reshape(6, 64), axis=1).max() > 0.2
    np.testing.assert_allclose(stacked.reshape(3, 6, 8, 8, 1)[1:], expected + noise, atol=2e-5)
    assert stacked[:6].tolist() != images[0].numpy().tolist()


def test_a_phase_with_noise_costs_each_attack_once_and_reads_no_fixed_features():
    assert phase_of(ATTACKED, ATTACKED).cost == 2 * 3 + 8
    head = dict(name="p", epochs=1, trains=("classifier",), views=(Clean(),), terms=(CrossEntropy(),))
    assert Phase(**head).reads_fixed_features and not Phase(**head, noise=0.1).reads_fixed_features


@pytest.mark.parametrize(
    ("views", "noise", "said"),
    [
        ((ATTACKED,), 0.5, "noise 0.5, and PGD-2 through 2 draws of noise 0.25 has sigma 0.25; use one"),
        ((ATTACKED,), 0.0, "noise 0, and PGD-2"),
        ((Clean(), WorstCase(epsilon=0.1)), 0.25, "bounds are of images without noise; leave noise out"),
    ],
)
def test_noise_that_does_not_fit_is_refused(views, noise, said):
    with pytest.raises(InvalidInputError, match=said):
        phase_of(*views, noise=noise)
