"""The phases of every variant on a few digits, trained and attacked; some exported and attacked from disk."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from keras_rcl.config import Evaluation, Experiment
from keras_rcl.data import sources
from keras_rcl.evaluation.record import read_record
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.methods import VARIANTS
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.storage.checkpoints import Checkpoints
from keras_rcl.training.run_context import RunContext
from keras_rcl.training.tensorboard import TensorBoardWriter
from keras_rcl.vocabulary.attacks import FGSM, AttackBase, Noise
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.network import Network
from keras_rcl.workflows import fit as experiment
from keras_rcl.workflows.inputs import pixels

ATTACK = FGSM(epsilon=16 / 255)
DIGITS = Dataset(limit=40, validation_fraction=0)


SHARED = {
    "clafs": "warmup_epochs",
    "margin_scl": "baseline_epochs",
    "rocl_at": "finetuning_epochs",
    "sc_both": "pretraining_epochs",
    "sc_supcon_retrained": "supcon_epochs",
}
"""A phase of these variants that another variant trains."""

COVERED = ("refined_scl", "pgd_ce", "pgd_supcon", "sc_ce", "sc_supcon")
"""Variants whose phases are all trained by others."""


def small(name: str):
    """The variant with one epoch of each phase, batches of 20, and attacks of at most two steps."""
    method, changes = VARIANTS[name](batch_size=20), {}
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name.endswith("epochs"):
            changes[field.name] = 1
        elif isinstance(value, AttackBase):
            changes[field.name] = dataclasses.replace(value, num_steps=min(2, value.num_steps))
    return dataclasses.replace(method, **changes)


def trained(name: str):
    """The small variant without the phase that another variant trains."""
    return dataclasses.replace(small(name), **({SHARED[name]: 0} if name in SHARED else {}))


def kinds(method) -> set[str]:
    """What decides how phases are computed: all but names, lengths, and numbers of the optimizer and the attack."""
    phases = [one for phase in method.phases() if phase.epochs for one in (*phase.refresh, phase)]
    plain = dict(name="", epochs=1, refresh=())
    texts = [repr(dataclasses.replace(phase, **plain, optimizer=type(phase.optimizer)())) for phase in phases]
    return {re.sub(r"(step_size|epsilon)=[^,)]+", "", text) for text in texts}


def test_every_phase_of_every_variant_is_trained_by_one_of_them():
    of_all = set().union(*(kinds(small(name)) for name in VARIANTS))
    assert of_all == set().union(*(kinds(trained(name)) for name in VARIANTS if name not in COVERED))


def experiment_of(name: str, **evaluation) -> Experiment:
    network = Network(projection_hidden=8, projection_dim=4)
    return Experiment(method=trained(name), dataset=DIGITS, network=network, evaluation=Evaluation(**evaluation))


EXPORTED = ("certified",)
"""Its whole network is trained at the end; that of `clafs`, which has a test of its own, is the classifier alone.
Variants differ in how they train; networks, records and exports of all are made by the same code."""


def check_phases(method, folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [phase for phase in method.phases() if phase.epochs]
    assert [line["phase"] for line in lines] == [step.name for phase in trained for step in (*phase.refresh, phase)]
    assert all(np.isfinite(line["loss"]) for line in lines)


def fit(name: str, folder: Path, **evaluation) -> experiment.Fitted:
    """Train a variant, and check that each of its phases was trained and that the export is of the variant."""
    settings = experiment_of(name, **evaluation)
    fitted = experiment.fit(settings, runs=folder / "runs", saved_models=folder / "saved_models")
    check_phases(settings.method, fitted.run)
    contract = json.loads((fitted.saved_model / "model.json").read_text())
    assert contract["variant"] == name
    return fitted


@pytest.fixture(scope="module")
def images_and_labels():
    test = sources.load(DIGITS).test
    assert len(test.labels) == 40
    return pixels(test.images), test.labels


@pytest.fixture(scope="module")
def attacked():
    """The network of all variants, and what attacks it; traced once."""
    network = experiment.build(experiment_of("baseline"), sources.load(DIGITS))
    return network, Evaluator(experiment.output_of(network, "logits"), (ATTACK,))


@pytest.mark.slow
def test_the_export_is_as_robust_as_the_record_says(tmp_path, images_and_labels):
    fitted = fit("clafs", tmp_path, attacks=(ATTACK,), validation_attack=ATTACK)
    served = Evaluator(load_classifier(fitted.saved_model).logits, (ATTACK,))(*images_and_labels)
    survival = read_record(fitted.run / "record.json")["survival"]
    np.testing.assert_array_equal(served.clean, survival["clean"])
    np.testing.assert_array_equal(served.survived, survival["attacks"])
    assert served.survived.sum() <= served.clean.sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_it_trains_exports_and_is_attacked(name, tmp_path, images_and_labels, attacked):
    """The weights of its last checkpoint are attacked, which the export has; a run attacks all variants alike."""
    fitted = fit(name, tmp_path, attacks=(), validation_attack=Noise())
    (network, evaluator), (images, labels) = attacked, images_and_labels
    Checkpoints(fitted.run / "checkpoints").load(network, "last")
    survival = evaluator(images, labels)
    logits = np.asarray(network(images, training=False)["logits"])
    exported = load_classifier(fitted.saved_model).logits(images)
    np.testing.assert_allclose(exported, logits, rtol=0, atol=1e-5 * max(1, np.abs(logits).max()))
    np.testing.assert_array_equal(survival.clean, read_record(fitted.run / "record.json")["survival"]["clean"])
    assert survival.survived.sum() <= survival.clean.sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in (*EXPORTED, *COVERED, "clafs")])
def test_it_trains_and_is_attacked(name, tmp_path, images_and_labels, attacked, unoptimized):
    """Trained as `fit` trains, by all its phases; its last checkpoint has the weights with which it ends."""
    settings = experiment_of(name, validation_attack=Noise())
    data, (network, evaluator), (images, labels) = sources.load(DIGITS), attacked, images_and_labels
    trained, served = experiment.networks(settings, data)
    start = trained.get_weights()
    with TensorBoardWriter(tmp_path) as writer:
        experiment.train(settings, data, (trained, served), RunContext(tmp_path, writer))
    check_phases(settings.method, tmp_path)
    Checkpoints(tmp_path / "checkpoints").load(network, "last")
    assert any((weight != first).any() for weight, first in zip(network.get_weights(), start, strict=True))
    for weight, last in zip(network.get_weights(), served.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, last)
    survival = evaluator(images, labels)
    assert survival.survived.sum() <= survival.clean.sum()
