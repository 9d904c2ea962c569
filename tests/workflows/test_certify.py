"""The command `certify` on a small `.keras` file: its files, its refusals, and how it resumes."""

import json
import signal

import keras
import numpy as np
import pytest
from click.testing import CliRunner

import keras_rcl
from keras_rcl.cli.app import cli
from keras_rcl.evaluation.smoothing import Smoother

HERE = ("--dataset", "digits", "--limit", "6", "--smoothing", "0.5", "--n", "300")


def run(*arguments):
    before = signal.getsignal(signal.SIGTERM)
    try:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """In a folder with a classifier by the nearest class mean alone."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = data.images.reshape(-1, 64) / 16
    means = np.stack([pixels[data.target == label].mean(axis=0) for label in range(10)])
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.layers[-1].set_weights([means.T, -np.square(means).sum(axis=1) / 2])
    monkeypatch.chdir(tmp_path)
    model.save("small.keras")
    return tmp_path


@pytest.mark.slow
def test_an_interrupted_certification_resumes_image_by_image(here, monkeypatch):
    whole = run("certify", "small.keras", *HERE, "--output-dir", "whole", "--json")
    assert whole.exit_code == 0, whole.output
    record = json.loads((here / "whole" / "record.json").read_text())
    assert json.loads(whole.stdout) == record and (here / "whole" / "certified_accuracy.png").is_file()
    assert record["sigma"] == 0.5 and record["n"] == 300 and len(record["outcomes"]["radii"]) == 6
    assert record["rows"][0]["certified_accuracy"] > 0

    certify, done = Smoother._certify, []

    def stops(self, image):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(image)
        return certify(self, image)

    monkeypatch.setattr(Smoother, "_certify", stops)
    stopped = run("certify", "small.keras", *HERE)
    assert stopped.exit_code == 130 and "the same command resumes" in stopped.output
    assert not (here / "certificates" / "small").exists()
    done.clear()
    monkeypatch.setattr(Smoother, "_certify", lambda self, image: done.append(image) or certify(self, image))
    resumed = run("certify", "small.keras", *HERE)
    assert resumed.exit_code == 0 and len(done) == 2, resumed.output
    assert "L2 radius  certified" in resumed.stdout and "written to certificates/small" in resumed.stdout
    found = json.loads((here / "certificates" / "small" / "record.json").read_text())
    assert found["outcomes"] == record["outcomes"] and found["rows"] == record["rows"]

    direct, folder = keras_rcl.certify_model(
        "small.keras", sigma=0.5, n=300, dataset={"name": "digits", "limit": 6}, output_dir="direct"
    )
    assert direct["outcomes"] == record["outcomes"] and (folder / "record.json").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--smoothing", "0"), "error: sigma 0: the noise needs"),
        (("--smoothing", "0.25", "--n", "50"), "error: n 50 is smaller than n0 100"),
        ((), "Missing option '--smoothing'"),
    ],
)
def test_bad_input_is_one_line(here, options, said):
    result = run("certify", "small.keras", "--dataset", "digits", *options)
    assert result.exit_code == 2 and "Traceback" not in result.output and result.stdout == ""
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error:"))
    assert said in line
    assert not (here / "certificates").exists()
