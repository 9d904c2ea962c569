"""Checkpoints: what is saved is what is loaded, whole or not at all."""

import numpy as np
import pytest
from tiny import tiny_network

from keras_rcl.errors import InvalidInputError
from keras_rcl.networks import build_network
from keras_rcl.storage.checkpoints import Checkpoints
from keras_rcl.vocabulary.network import Network


@pytest.fixture(scope="module")
def network():
    network = tiny_network(seed=0)
    rng = np.random.default_rng(0)  # statistics too, which are the same in every fresh network
    network.set_weights([rng.random(weight.shape) for weight in network.get_weights()])
    return network


@pytest.fixture(scope="module")
def other():
    return tiny_network(seed=1)


def same(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first.get_weights(), second.get_weights(), strict=True))


def test_weights_and_statistics_come_back(tmp_path, network, other):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(other, "last")
    checkpoints.save(network, "last")
    checkpoints.save(network, "best")
    assert checkpoints.names() == ["best", "last"]
    loaded = tiny_network(seed=2)
    checkpoints.load(loaded, "last")
    assert same(loaded, network)
    assert [path.name for path in checkpoints.folder.iterdir() if not path.name.endswith(".weights.h5")] == []


def test_a_save_that_fails_leaves_what_stood_there(tmp_path, network, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(network, "last")
    before = checkpoints.path("last").read_bytes()

    def torn(path):
        path.write_bytes(b"half")
        raise RuntimeError("power cut")

    torn_network = tiny_network(seed=1)
    monkeypatch.setattr(torn_network, "save_weights", torn)
    with pytest.raises(RuntimeError, match="power cut"):
        checkpoints.save(torn_network, "last")
    assert checkpoints.path("last").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_an_unknown_name_is_refused_with_those_that_there_are(tmp_path, network):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(InvalidInputError, match="no checkpoint 'best' in .*; it holds none"):
        checkpoints.load(network, "best")
    checkpoints.save(network, "best")
    checkpoints.save(network, "last")
    with pytest.raises(InvalidInputError, match="no checkpoint 'bets' in .*did you mean 'best'.*it holds best, last"):
        checkpoints.load(network, "bets")


@pytest.mark.parametrize("size", [0, 100, 10_000])
def test_a_truncated_checkpoint_is_refused(tmp_path, network, size):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(network, "last")
    path = checkpoints.path("last")
    path.write_bytes(path.read_bytes()[:size])
    victim = tiny_network(seed=3)
    with pytest.raises(InvalidInputError, match="checkpoint .*last.weights.h5 cannot be read: ") as refusal:
        checkpoints.load(victim, "last")
    assert "\n" not in str(refusal.value)
    assert same(victim, tiny_network(seed=3))


@pytest.mark.parametrize("changes", [dict(projection_dim=5), dict(encoder="strided_cnn")])
def test_a_checkpoint_of_another_network_is_refused(tmp_path, network, changes):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(network, "last")
    word = Network(**{"projection_hidden": 8, "projection_dim": 4, **changes})
    with pytest.raises(InvalidInputError, match="cannot be read: ") as refusal:
        checkpoints.load(build_network(word, (8, 8, 1), 3, mean=[0.5], std=[0.2]), "last")
    assert "\n" not in str(refusal.value)
