"""A command reads and checks the files of a model once, and runs each attack once."""

from collections import Counter

import pytest

from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.model_io import loading
from keras_rcl.model_io.export import export
from keras_rcl.networks.two_headed import build_network
from keras_rcl.vocabulary.attacks import FGSM, PGD
from keras_rcl.vocabulary.claim import AuditBudget, Claim
from keras_rcl.vocabulary.network import Network
from keras_rcl.workflows.attack import attack
from keras_rcl.workflows.audit import audit_model
from keras_rcl.workflows.verify import verify_model

DIGITS = {"name": "digits", "limit": 12}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    network = build_network(Network(encoder="small_cnn"), (8, 8, 1), 10, mean=[0.3], std=[0.4])
    return export(network, tmp_path_factory.mktemp("loads") / "export", {"class_names": list("0123456789")})


@pytest.fixture
def loads(monkeypatch):
    """How often each function that reads or checks a model's files was called."""
    calls: Counter = Counter()

    def counted(name):
        original = getattr(loading, name)

        def call(*args):
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(loading, name, call)

    for name in ("_open_saved_model", "load_keras_archive", "_load_keras"):
        counted(name)
    return calls


ONCE = {"_open_saved_model": 1, "load_keras_archive": 1, "_load_keras": 1}


@pytest.mark.slow
def test_attack(exported, loads, tmp_path, monkeypatch):
    """The geometry, the folded network, the attacks and the pictures share one model; pictures run no attack again."""
    monkeypatch.setattr(Evaluator, "craft", None)
    record, folder = attack(
        exported, [FGSM(epsilon="8/255")], dataset=DIGITS, output_dir=tmp_path / "out", geometry=True
    )
    assert record["geometry"]["embedding"] and (folder / "pictures.png").is_file()
    assert loads == ONCE


@pytest.mark.slow
def test_verify(exported, loads, tmp_path):
    verify_model(exported, [1 / 255], method="ibp", no_attack=True, dataset=DIGITS, output_dir=tmp_path / "out")
    assert loads == ONCE


@pytest.mark.slow
def test_audit(exported, loads, tmp_path):
    budget = AuditBudget(
        num_images=4, num_steps=1, num_restarts=1, num_queries=2, num_draws=1, verifier=PGD(num_steps=1)
    )
    claim = Claim(robust_accuracy=0.1, epsilon="1/255")
    audit_model(exported, claim=claim, budget=budget, dataset=DIGITS, output_dir=tmp_path / "out")
    assert loads == {"_open_saved_model": 1}
