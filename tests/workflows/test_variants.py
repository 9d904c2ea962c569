"""Every variant end to end on a few digits: trained by its own phases, exported, attacked again from disk."""

import dataclasses
import json

import numpy as np
import pytest

from keras_rcl.config import Evaluation, Experiment
from keras_rcl.data import sources
from keras_rcl.evaluation.record import read_record
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.methods import VARIANTS
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.vocabulary.attacks import FGSM
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.network import Network
from keras_rcl.workflows import fit as experiment
from keras_rcl.workflows.inputs import pixels

ATTACK = FGSM(epsilon=16 / 255)


def small(name: str):
    """The variant with one epoch of everything, batches of 20, and attacks of at most two steps."""
    method, changes = VARIANTS[name](batch_size=20), {}
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name.endswith("epochs"):
            changes[field.name] = 1
        elif field.name.endswith("attack"):
            changes[field.name] = dataclasses.replace(value, num_steps=min(2, value.num_steps))
    return dataclasses.replace(method, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "clafs" else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_it_trains_exports_and_is_attacked(name, tmp_path):
    method, data = small(name), Dataset(limit=40, validation_fraction=0)
    fitted = experiment.fit(
        Experiment(
            method=method,
            dataset=data,
            network=Network(projection_hidden=8, projection_dim=4),
            evaluation=Evaluation(attacks=(ATTACK,), validation_attack=ATTACK),
        ),
        runs=tmp_path / "runs",
        saved_models=tmp_path / "saved_models",
    )
    lines = [json.loads(line) for line in (fitted.run / "metrics.jsonl").read_text().splitlines()]
    stages = [step.name for phase in method.phases() for step in (*phase.refresh, phase)]
    assert [line["phase"] for line in lines] == stages
    assert all(np.isfinite(line["loss"]) for line in lines)
    contract = json.loads((fitted.saved_model / "model.json").read_text())
    assert contract["variant"] == name

    test = sources.load(data).test
    served = Evaluator(load_classifier(fitted.saved_model).logits, (ATTACK,))(pixels(test.images), test.labels)
    survival = read_record(fitted.run / "record.json")["survival"]
    assert len(test.labels) == 40
    np.testing.assert_array_equal(served.clean, survival["clean"])
    np.testing.assert_array_equal(served.survived, survival["attacks"])
    assert served.survived.sum() <= served.clean.sum()
