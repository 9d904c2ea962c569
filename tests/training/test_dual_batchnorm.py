"""A second set of BatchNorm variables for views that are not adversarial: what each set reads and learns."""

import dataclasses

import keras
import numpy as np
import pytest
from tiny import BATCH, eager_epoch, image_data, runner, tiny_network

from keras_rcl.attacks import craft
from keras_rcl.methods.adversarial import AdversarialBatch
from keras_rcl.vocabulary.attacks import FGSM
from keras_rcl.vocabulary.phase import SGD

pytestmark = pytest.mark.slow


def one_step(epsilon: float, network=None):
    """The network and the runner after one step on 16 images and their examples."""
    network = network or tiny_network()
    method = AdversarialBatch(
        batch_size=BATCH,
        attack=FGSM(epsilon=epsilon),
        optimizer=SGD(learning_rate=0.1, momentum=0.0),
        separate_batchnorm=True,
    )
    (phase,) = method.phases()
    steps = runner(network, dataclasses.replace(phase, epochs=1), image_data(BATCH))
    steps.begin()
    eager_epoch(steps)
    return network, steps


def norms(network):
    encoder = network.get_layer("encoder")
    return [layer for layer in encoder.layers if isinstance(layer, keras.layers.BatchNormalization)]


def by_layer(network, steps):
    """(layer, its own variables by name, those of the second set by name), layer by layer."""
    others = iter(steps.clean_batchnorm.variables)
    return [
        (layer, {v.name: v.numpy() for v in layer.variables}, {v.name: next(others).numpy() for v in layer.variables})
        for layer in norms(network)
    ]


def test_each_set_moves_its_statistics_by_its_own_images_and_a_phase_begins_with_copies():
    before = tiny_network()
    encoder, normalize = before.get_layer("encoder"), before.get_layer("normalize")
    first = keras.Model(encoder.input, encoder.get_layer("conv1").output)
    start = {v.name: v.numpy() for v in norms(before)[0].variables}
    images, labels = image_data(BATCH).train.images.astype(np.float32) / 255, image_data(BATCH).train.labels

    attacked = craft(FGSM(epsilon=32 / 255), lambda x: before(x, training=False)["logits"], images, labels)
    network, steps = one_step(32 / 255)
    (_, own, clean), *_ = by_layer(network, steps)
    for found, seen in ((own, attacked), (clean, images)):
        read = first(normalize(seen)).numpy().reshape(-1, start["gamma"].size)
        np.testing.assert_allclose(found["moving_mean"], 0.9 * start["moving_mean"] + 0.1 * read.mean(0), atol=1e-5)
        np.testing.assert_allclose(
            found["moving_variance"], 0.9 * start["moving_variance"] + 0.1 * read.var(0), rtol=1e-4
        )
    assert np.abs(own["moving_mean"] - clean["moving_mean"]).max() > 1e-3
    for kind in ("gamma", "beta"):
        assert (own[kind] != start[kind]).any() and (clean[kind] != start[kind]).any()
        assert (own[kind] != clean[kind]).any()
    steps.begin()
    for _, own, clean in by_layer(network, steps):
        for name in own:
            np.testing.assert_array_equal(own[name], clean[name])


def test_at_epsilon_0_both_sets_are_equal():
    for _, own, clean in by_layer(*one_step(0.0)):
        for name in own:
            np.testing.assert_allclose(own[name], clean[name], atol=1e-6)
