"""`craft-dataset` by the command line, and training on what it stored."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from keras_rcl.cli.app import cli
from keras_rcl.data.sources import load
from keras_rcl.model_io.export import export
from keras_rcl.networks.two_headed import build_network
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.network import Network
from keras_rcl.workflows import craft_dataset as crafting

DIGITS = ("--dataset", "digits", "--limit", "60")
COMMAND = ("craft-dataset", "model", *DIGITS, "--batch-size", "16", "--shard-size", "25", "--attack", "pgd-2")
ON_STORED = "method.attack={name: stored, folder: stored, epsilon: 8/255}"
FIT = (
    "fit",
    "--variant",
    "adversarial",
    "--no-compare",
    "--set",
    "dataset={name: digits, limit: 60}",
    "--set",
    "method.epochs=1",
    "--set",
    ON_STORED,
    "--set",
    "evaluation.attacks=[]",
    "--set",
    "evaluation.validation_attack={name: noise}",
)


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model."""
    word = Network(encoder="small_cnn", projection_hidden=8, projection_dim=4)
    network = build_network(word, (8, 8, 1), 10, mean=[0.3], std=[0.4])
    return export(network, tmp_path_factory.mktemp("made") / "model", {"class_names": list("0123456789")})


@pytest.fixture
def here(model, tmp_path, monkeypatch):
    """A folder with the model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "model")
    return tmp_path


@pytest.mark.slow
def test_broken_off_and_resumed_it_stores_the_same_and_a_training_reads_it(here, monkeypatch):
    assert run(*COMMAND, "--output-dir", "whole").exit_code == 0
    cut, done = crafting.whole_levels, []

    def stopped(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return cut(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(crafting, "whole_levels", stopped)
        result = run(*COMMAND, "--output-dir", "stored")
    assert result.exit_code == 130 and "the same command resumes" in result.stderr
    assert not (here / "stored").exists()
    result = run(*COMMAND, "--output-dir", "stored")
    assert result.exit_code == 0 and "2 batches done" in result.stderr, result.output
    shards = [f"adversarial-{number:05d}-of-00003.tfrecord" for number in range(3)]
    assert sorted(os.listdir("stored")) == sorted(os.listdir("whole")) == [*shards, "examples.json"]
    for name in shards:
        assert (here / "stored" / name).read_bytes() == (here / "whole" / name).read_bytes()
    assert sorted(os.listdir()) == ["model", "stored", "whole"]

    train = load(Dataset(name="digits", limit=60)).train
    seen = {}
    for raw in tf.data.TFRecordDataset([str(here / "stored" / name) for name in shards]):
        feature = tf.train.Example.FromString(raw.numpy()).features.feature
        assert feature["part"].bytes_list.value == [b"train"]
        pixels = np.frombuffer(feature["image"].bytes_list.value[0], np.uint8).reshape(8, 8, 1)
        seen[feature["index"].int64_list.value[0]] = (feature["label"].int64_list.value[0], pixels.astype(int))
    assert sorted(seen) == sorted(train.indices) and len(seen) == 60
    for index, label, image in zip(train.indices, train.labels, train.images, strict=True):
        assert seen[index][0] == label
        assert 0 < np.abs(seen[index][1] - image).max() <= 8
    record = json.loads((here / "stored/examples.json").read_text())
    assert record["attack"]["num_steps"] == 2 and record["data"] == {"name": "digits", "part": "train"}
    assert 0 <= record["accuracy"] <= record["clean_accuracy"] < 0.5

    result = run(*FIT)
    assert result.exit_code == 0, result.output
    (line,) = map(json.loads, (here / "runs/digits-adversarial/metrics.jsonl").read_text().splitlines())
    assert {"accuracy_clean", "accuracy_adversarial"} <= line.keys() and "zero_gradients" not in line
    contract = json.loads((here / "saved_models/digits-adversarial/model.json").read_text())
    assert contract["threat_model"] == {"norm": "linf", "epsilon": 8 / 255}


@pytest.mark.slow
def test_a_training_refuses_examples_of_test_images(here):
    assert run(*COMMAND, "--split", "test", "--output-dir", "stored").exit_code == 0
    result = run(*FIT)
    assert result.exit_code == 2 and "training on them would leak it" in result.stderr
    assert result.stdout == "" and sorted(os.listdir()) == ["model", "stored"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--attack", "pgd:protocol=claf-repo"), "is not in pixels"),
        (("--attack", "joint"), "joint is an attack of training"),
        (("--attack", "stored:folder=x"), "stored is an attack of training"),
        (("--output-dir", "model"), "model already exists"),
        (("--output-dir", "model", "--overwrite"), "not ours to overwrite"),
    ],
)
def test_refused(here, arguments, said):
    result = run(*COMMAND, "--output-dir", "stored", *arguments)
    assert result.exit_code == 2 and said in result.stderr.splitlines()[-1]
    assert os.listdir() == ["model"]
