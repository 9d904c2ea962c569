"""Every variant end to end on a few digits: trained by its own phases, exported, attacked again from disk."""

import dataclasses
import json

import numpy as np
import pytest

from keras_rcl import experiment
from keras_rcl.config import Evaluation, Experiment
from keras_rcl.methods import VARIANTS
from keras_rcl.vocabulary.attack import FGSM
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.network import Network

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
@pytest.mark.parametrize("name", VARIANTS)
def test_it_trains_exports_and_is_attacked(name, tmp_path):
    method = small(name)
    fitted = experiment.fit(
        Experiment(
            method=method,
            dataset=Dataset(limit=40, validation_fraction=0),
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

    record, _ = experiment.attack(fitted.saved_model, (ATTACK,), output_dir=tmp_path / "attacks")
    assert record["survival"] == fitted.record["survival"]
    (row, *_) = record["rows"]
    assert row["robust_accuracy"] <= row["clean_accuracy"]
