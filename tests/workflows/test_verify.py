"""`verify` by the command line, on a small `.keras` file and on an export."""

import json
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from keras_rcl.cli.app import cli
from keras_rcl.cli.verify import METHODS
from keras_rcl.evaluation import certification
from keras_rcl.model_io.export import export
from keras_rcl.networks.two_headed import build_network
from keras_rcl.vocabulary.attacks import AutoPGD
from keras_rcl.vocabulary.network import Network

HERE = ("--dataset", "digits", "--limit", "20", "--epsilon", "1/255,40/255", "--timeout", "100000")


def run(*arguments):
    before = signal.getsignal(signal.SIGTERM)
    try:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)


def refused(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output and result.stdout == "", result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error:"))
    return line


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A `.keras` file of a trained network, and an untrained export."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("verify")
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(12, activation="relu")
    network = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), hidden, keras.layers.Dense(10)])
    network.compile(
        keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    data = load_digits()
    network.fit(data.images[..., None] / 16, data.target, epochs=4, batch_size=100, verbose=0)
    network.save(folder / "small.keras")
    built = build_network(Network(encoder="small_cnn"), (8, 8, 1), 10, mean=[0.3], std=[0.4])
    export(built, folder / "export", {"class_names": list("0123456789")})
    return folder


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    """In a folder with the models alone, and attacks of a few steps."""
    monkeypatch.chdir(tmp_path)
    for name in ("small.keras", "export"):
        (tmp_path / name).symlink_to(models / name)
    return tmp_path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("keras_rcl.workflows.verify.ATTACKS", (AutoPGD(num_steps=5),))


def test_the_record_the_counterexamples_and_the_table(here):
    result = run("verify", "small.keras", *HERE, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads((here / "verifications/small/record.json").read_text())
    assert record["protocol"] == "pixel" and record["dtype"] == "float32" and record["method"] == METHODS[-1]
    assert [row["epsilon"] for row in record["rows"]] == [1 / 255, 40 / 255]
    assert record["attacks"] == ["APGD-CE linf 1/255", "APGD-CE linf 40/255"]
    for row, outcome in zip(record["rows"], record["outcomes"], strict=True):
        statuses = outcome["statuses"]
        assert len(statuses) == record["images"] == sum(row["counts"].values())
        assert row["verified_accuracy"] <= row["attacked_accuracy"] <= row["clean_accuracy"]
        assert sum(statuses.count(name) for name in ("safe", "safe-incomplete")) == round(
            row["verified_accuracy"] * len(statuses)
        )
    unsafe = sum(outcome["statuses"].count("unsafe") for outcome in record["outcomes"])
    with np.load(here / "verifications/small/counterexamples.npz") as kept:
        assert len(kept["adversarial"]) == unsafe > 0
        change = np.abs(kept["adversarial"].astype("float64") - kept["images"]).max(axis=(1, 2, 3))
        assert np.all(change <= kept["epsilons"])
        network = keras.saving.load_model(here / "small.keras")
        assert np.all(np.argmax(network.predict(kept["adversarial"], verbose=0), axis=1) != kept["labels"])
    table = run("verify", "small.keras", *HERE[:-2], "--method", "ibp").stdout
    assert table.split()[:4] == ["epsilon", "clean", "attacked", "verified"] and "small-2" in table
    assert "float32 rounding" in table


@pytest.mark.slow
def test_sound_bounds_are_named_in_the_table_and_in_the_record(here):
    sound = run("verify", "small.keras", *HERE[:-2], "--method", "ibp", "--no-attack", "--sound")
    assert "float32 and hold for the folded network in real arithmetic" in sound.stdout, sound.output
    assert json.loads((here / "verifications/small/record.json").read_text())["sound"] is True
    assert "--sound is not for --norm l2" in refused(
        "verify", "small.keras", "--sound", "--norm", "l2", "--epsilon", "1"
    )


def test_an_export_is_verified_by_its_layers(here):
    result = run("verify", "export", *HERE[:4], "--method", "crown-ibp", "--no-attack", "--float64", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["dtype"] == "float64" and record["attacks"] == []
    assert record["model"]["hash"] == json.loads((here / "export/model.json").read_text())["model_hash"]


def test_a_model_in_half_precision_is_verified_as_its_twin_in_float32(here):
    """Bounds are of the weights, which both keep in float32."""
    whole = keras.saving.load_model("small.keras", compile=False)
    half = keras.models.clone_model(
        whole, clone_function=lambda layer: type(layer).from_config({**layer.get_config(), "dtype": "mixed_float16"})
    )
    half.set_weights(whole.get_weights())
    half.save("half.keras")
    found = {}
    for name in ("small", "half"):
        result = run("verify", f"{name}.keras", *HERE[:4], "--method", "crown-ibp", "--no-attack", "--json")
        assert result.exit_code == 0, result.output
        found[name] = json.loads(result.stdout)
        noted = "half.keras computes in float16, and its weights are verified as if it computed exactly"
        assert (noted in result.stderr) == (name == "half")
    half, small = ([outcome["statuses"] for outcome in found[name]["outcomes"]] for name in ("half", "small"))
    assert half == small


def test_as_many_images_as_asked_for_are_bounded(here):
    record = json.loads(run("verify", "small.keras", *HERE, "--max-images", "2", "--json").stdout)
    assert record["count"] == 2
    near = record["rows"][0]["counts"]
    assert near["safe"] + near["safe-incomplete"] + near["timeout"] == 2 < near["unknown"]


def test_only_images_that_survived_a_record_are_verified(here):
    attack = ("attack", "small.keras", "--dataset", "digits", "--limit", "20", "--attack", "pgd-3:epsilon=40/255")
    record = json.loads(run(*attack, "--output-dir", "attacked", "--json").stdout)
    survived = [digit == "1" for digit in record["survival"]["attacks"][0]]
    assert 0 < sum(survived) < 20
    options = (*HERE, "--survivors-of", "attacked/record.json", "--method", "ibp", "--no-attack")
    found = json.loads(run("verify", "small.keras", *options[:6], *options[8:], "--json").stdout)
    assert found["images"] == sum(survived) and found["survivors_of"] == ["PGD-3 linf 40/255"]
    indices = [i for first, last in record["data"]["indices"] for i in range(first, last + 1)]
    verified = [i for first, last in found["data"]["indices"] for i in range(first, last + 1)]
    assert verified == [index for index, kept in zip(indices, survived, strict=True) if kept]
    line = refused("verify", "export", *options[:6], *options[8:])
    assert "attacked/record.json is a record of another model, small; hint: attack export first" in line
    line = refused("verify", "small.keras", *options[:6], *options[8:], "--split", "train")
    assert "is of the test split, not train" in line


@pytest.mark.slow
def test_the_balls_of_another_norm(here):
    radii = ("--dataset", "digits", "--limit", "20", "--norm", "l2", "--epsilon", "0.1,0.5", "--method", "crown-ibp")
    record = json.loads(run("verify", "small.keras", *radii, "--json").stdout)
    assert {row["norm"] for row in record["rows"]} == {"l2"} and "l2" in "".join(record["attacks"])
    assert record["rows"][0]["verified_accuracy"] >= record["rows"][1]["verified_accuracy"] > 0
    with np.load(here / "verifications/small/counterexamples.npz") as kept:
        change = (kept["adversarial"].astype("float64") - kept["images"]).reshape(len(kept["labels"]), -1)
        assert len(change) and np.all(np.linalg.norm(change, axis=1) <= kept["epsilons"])
    table = run("verify", "small.keras", *radii[:5], "l1", "--epsilon", "0.5", "--method", "ibp", "--no-attack").stdout
    assert "l1, in % of" in table and "small-2" in table


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_uninterrupted(here, monkeypatch):
    whole = json.loads(run("verify", "small.keras", *HERE, "--json", "--output-dir", "whole").stdout)
    ours, done = certification.Certifier._run, []

    def signalled(*arguments):
        done.append(1)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return ours(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(certification.Certifier, "_run", signalled)
        broken = run("verify", "small.keras", *HERE)
    assert broken.exit_code == 143 and "the same command resumes" in broken.stderr
    assert [path.name for path in (here / "verifications").iterdir()] == [".small.partial"]
    again = run("verify", "small.keras", *HERE, "--json")
    assert "resuming" in again.stderr
    resumed = json.loads(again.stdout)
    for one, other in zip(whole["outcomes"], resumed["outcomes"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert [path.name for path in (here / "verifications").iterdir()] == ["small"]


class TestRefusals:
    def test_a_radius(self, here):
        assert "--epsilon 8: " in refused("verify", "small.keras", "--epsilon", "8")
        assert "--epsilon x" in refused("verify", "small.keras", "--epsilon", "1/255,x")

    def test_a_radius_of_another_norm(self, here):
        assert "--norm l1: 2/255 is a radius in linf; hint: give --epsilon 12 or another" in refused(
            "verify", "small.keras", "--norm", "l1"
        )
        message = refused("verify", "small.keras", *HERE[:4], "--norm", "l1", "--epsilon", "12/255")
        assert "epsilon 12/255 in l1 is less than the range of one pixel" in message and "epsilon=12" in message
        message = refused("export-vnnlib", "small.keras", "--norm", "l2", "--epsilon", "0.5")
        assert "--norm l2: a VNN-LIB property is over a box" in message and "hint: use `verify --norm l2`" in message

    def test_a_model_without_layers(self, here):
        module = tf.Module()
        tf.saved_model.save(module, "bare")
        message = refused("verify", "bare", *HERE)
        assert "has no layers" in message and "give the .keras file" in message
        assert "there is no model at nowhere" in refused("verify", "nowhere", *HERE)

    def test_a_layer_without_bounds(self, here):
        image = keras.Input((8, 8, 1))
        odd = keras.layers.Dense(4, activation="softplus", name="curved")(keras.layers.Flatten()(image))
        keras.Model(image, keras.layers.Dense(10)(odd)).save("odd.keras")
        message = refused("verify", "odd.keras", *HERE)
        assert "layer curved has activation softplus" in message
        assert not (here / "verifications").exists()

    def test_probabilities(self, here):
        image = keras.Input((8, 8, 1))
        keras.Model(image, keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(image))).save("p.keras")
        assert "without its last softmax" in refused("verify", "p.keras", *HERE)

    def test_a_folder_that_is_taken(self, here):
        (here / "taken").mkdir()
        assert "taken already exists" in refused("verify", "small.keras", *HERE, "--output-dir", "taken")


def test_the_methods_of_the_command_are_those_of_the_certifier():
    from keras_rcl.bounds import Method

    assert METHODS == (*Method.__args__, certification.COMPLETE)
