"""Files that version 0.1.0 wrote: a run, its export and the record of an attack on it are still read.

The archive holds a run of `fit --variant baseline` on 60 digits for one epoch, with the weights rounded to 1/32 so that
it is small, what `export` made of the run, and the record of `attack` on the export. They were written by the code of
commit 145cda2, and before 0.2.0 renamed modules and options.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from keras_rcl import config
from keras_rcl.cli.app import cli
from keras_rcl.evaluation.record import read_record
from keras_rcl.model_io.classifier import load_classifier

ARCHIVE = Path(__file__).parent / "files/run_of_0.1.0.tar.xz"
RUN, MODEL, ATTACK = "runs/digits-baseline", "saved_models/digits-baseline", "attacks/digits-baseline"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """In a folder with the files."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_configuration_is_shown(here):
    shown = yaml.safe_load(run("show", "--config", f"{RUN}/config.yaml"))
    assert shown["method"]["name"] == "baseline" and shown["dataset"]["limit"] == 60
    assert config.load(Path(RUN, "config.yaml")).attack_dtype == "float32"


def test_the_records_are_read(here):
    record = read_record(Path(RUN, "record.json"))
    assert [row["attack"] for row in record["rows"]][0] == "FGSM linf 16/255"
    assert read_record(Path(ATTACK, "record.json"))["model"]["hash"] == record_of(MODEL)["model_hash"]


@pytest.mark.slow
def test_the_run_is_exported_to_the_same_model(here):
    run("export", RUN, "--name", "again")
    images = np.random.default_rng(0).uniform(size=(5, 8, 8, 1)).astype(np.float32)
    before, after = (np.asarray(load_classifier(Path(path)).logits(images)) for path in (MODEL, "saved_models/again"))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)
    assert record_of("saved_models/again")["model_hash"] == record_of(MODEL)["model_hash"]


def test_an_attack_gives_the_same_record(here):
    run("attack", MODEL, "--attack", "pgd-3:epsilon=4/255", "--limit", "30", "--output-dir", "again")
    before, after = (json.loads(Path(folder, "record.json").read_text()) for folder in (ATTACK, "again"))
    del after["model"]["input_range"]  # is new
    for part in ("survival", "model", "data", "seed", "clean_accuracy"):
        assert after[part] == before[part], part


def record_of(model: str) -> dict:
    return json.loads(Path(model, "model.json").read_text())
