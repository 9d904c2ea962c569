"""A head on a frozen encoder learns the same from embeddings that were computed once."""

import dataclasses

import numpy as np
import pytest
from tiny import BATCH, image_data, runner, snapshot, tiny_clafs, tiny_network

from keras_rcl.methods import SupConLinear
from keras_rcl.runtime.progress import Silent
from keras_rcl.vocabulary.dataset import CropFlip
from keras_rcl.vocabulary.phase import Clean, Phase, WeightPerturbation

pytestmark = pytest.mark.slow

HEAD = dataclasses.replace(tiny_clafs().phases()[2], epochs=2, views=(Clean(), Clean()))


def trained(phase, data, *, moves=False):
    """Losses, accuracies and weights after two epochs; where the encoder `moves`, it does so after the first."""
    network = tiny_network()
    steps, found = runner(network, phase, data, epochs=2), []
    for _ in range(2):
        steps.begin()
        metrics = steps.run_epoch(Silent(), "")
        found.append([metrics["loss"], metrics["accuracy_clean"]])
        if moves:
            kernel = network.get_layer("encoder").weights[0]
            kernel.assign(2 * kernel)
    return steps, found, snapshot(network)


@pytest.mark.parametrize("moves", [False, True])
def test_the_same_weights_with_and_without(monkeypatch, moves):
    phase = dataclasses.replace(HEAD, reinitialize=())
    data = image_data(5 * BATCH // 2)  # half a batch is left out
    cached, metrics, weights = trained(phase, data, moves=moves)
    assert cached.features is not None
    monkeypatch.setattr(Phase, "reads_fixed_features", False)
    plain, expected_metrics, expected = trained(phase, data, moves=moves)
    assert plain.features is None
    np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-5)
    assert weights.keys() == expected.keys()
    for key in expected:
        for found, value in zip(weights[key], expected[key], strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6, err_msg=str(key))


def test_which_phases_read_fixed_features():
    """Not where images are attacked or varied, statistics move, or weights are perturbed."""
    final = tiny_clafs().phases()[2]
    assert final.reads_fixed_features and SupConLinear().phases()[1].reads_fixed_features
    assert tiny_clafs(inner_classifier="natural").phases()[1].refresh[0].reads_fixed_features
    others = [
        tiny_clafs(linear_evaluation="adversarial").phases()[2],
        tiny_clafs(batchnorm_statistics="moving").phases()[2],
        SupConLinear(linear_augmentation=CropFlip()).phases()[1],
        dataclasses.replace(final, augmentation=CropFlip()),
        dataclasses.replace(final, awp=WeightPerturbation(gamma=0.01)),
        dataclasses.replace(final, trains=("encoder", "classifier")),
    ]
    assert not any(phase.reads_fixed_features for phase in others)
