"""The moving average of a network: its arithmetic, and that it is what a run measures and leaves."""

import dataclasses

import numpy as np
import pytest
from tiny import runner, tiny_network, train

from keras_rcl.methods.at import AT
from keras_rcl.runtime.progress import Silent
from keras_rcl.storage.checkpoints import Checkpoints
from keras_rcl.training.monitor import overfits_catastrophically
from keras_rcl.training.moving_average import MovingAverage
from keras_rcl.vocabulary.attacks import FGSM
from keras_rcl.vocabulary.phase import SGD, Clean, CrossEntropy, Phase

pytestmark = pytest.mark.slow

METHOD = AT(epochs=2, batch_size=16, augmentation="none", attack=FGSM(), optimizer=SGD(learning_rate=0.05))


def same(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_recurrence():
    network, rng = tiny_network(), np.random.default_rng(0)
    average = MovingAverage(network, 0.4)
    average.begin()
    expected = network.get_weights()
    for step in (1, 2, 3, 40):
        network.set_weights([rng.normal(size=weight.shape) for weight in network.get_weights()])
        average.update(step)
        decay = min(0.4, (1 + step) / (10 + step))
        expected = [decay * a + (1 - decay) * w for a, w in zip(expected, network.get_weights(), strict=True)]
    weights = network.get_weights()
    average.show(True)
    average.show(True)
    for found, value in zip(network.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
    average.show(False)
    assert same(network.get_weights(), weights)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_an_epoch_leaves_the_average_and_the_next_goes_on_from_the_weights(precision):
    (phase,) = METHOD.phases()
    if precision != "float32":  # scaling the loss is the point here
        phase = dataclasses.replace(phase, views=(Clean(),), terms=(CrossEntropy(),))
    plain, averaged = (tiny_network(precision=precision) for _ in range(2))
    first, second = (
        runner(network, dataclasses.replace(phase, ema=decay), precision=precision)
        for network, decay in ((plain, 0.0), (averaged, 0.9))
    )
    for steps in (first, second):
        steps.begin()
    for _ in range(2):
        first.run_epoch(Silent(), "")
        second.run_epoch(Silent(), "")
        assert not same(plain.get_weights(), averaged.get_weights())
        second.average.show(False)
        for weight, other in zip(plain.get_weights(), averaged.get_weights(), strict=True):
            np.testing.assert_allclose(weight, other, rtol=1e-3, atol=1e-4)  # the average changes no step
        second.average.show(True)


@pytest.mark.slow
def test_the_average_is_validated_saved_and_left(tmp_path):
    network, seen = tiny_network(), []

    def validate():
        seen.append(network.get_weights())
        return {"clean_accuracy": 0.5, "robust_accuracy": 0.5 - 0.1 * len(seen)}

    train(tmp_path, network, dataclasses.replace(METHOD, ema=0.9).phases(), evaluate=validate)
    assert same(network.get_weights(), seen[0]) and not same(*seen)
    last = tiny_network(seed=1)
    Checkpoints(tmp_path / "checkpoints").load(last, "last")
    assert same(last.get_weights(), seen[1])


def test_an_average_beside_refreshes_is_refused():
    (phase,) = METHOD.phases()
    with pytest.raises(ValueError, match="refreshes would train the average"):
        Phase(**{**vars(phase), "ema": 0.9, "refresh": (phase,)})


@pytest.mark.parametrize(
    ("trained_on", "monitored", "best", "named"),
    [(0.9, 0.0, 0.4, True), (0.45, 0.1, 0.4, True), (0.3, 0.1, 0.4, False), (0.9, 0.3, 0.4, False), (0.9, 0, 0, False)],
)
def test_catastrophic_overfitting(trained_on, monitored, best, named):
    metrics = {"accuracy_adversarial": trained_on, "monitor_adversarial_accuracy": monitored}
    assert overfits_catastrophically(metrics, best) is named
    assert not overfits_catastrophically({"monitor_adversarial_accuracy": monitored}, best or 0.1)
