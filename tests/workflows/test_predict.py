"""`predict`, and paths as text in every public function that takes one."""

import json

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import keras_rcl
from keras_rcl.cli.app import cli
from keras_rcl.errors import InvalidInputError
from keras_rcl.workflows.inputs import dataset_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Linear models of 1, 2 and 4 channels; and images in folders, as macOS leaves them."""
    folder = tmp_path_factory.mktemp("predict")
    for channels in (1, 2, 4):
        image = keras.Input((8, 8, channels))
        keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(image))).save(folder / f"net{channels}.keras")
    for name in ("scans/scan.png", "scans/left/scan.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), "uint8")).save(folder / name)
        (folder / name).with_name("._scan.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    return folder


def test_hidden_files_are_left_out_and_sub_folders_are_searched(folder):
    result = CliRunner().invoke(cli, ["predict", str(folder / "net1.keras"), str(folder / "scans"), "--json"])
    assert result.exit_code == 0, result.output
    names = [entry["image"] for entry in json.loads(result.stdout)]
    assert names == [str(folder / name) for name in ("scans/left/scan.png", "scans/scan.png")]


@pytest.mark.parametrize("channels", [2, 4])
def test_models_of_other_channels_read_arrays_only(folder, channels):
    result = CliRunner().invoke(cli, ["predict", str(folder / f"net{channels}.keras"), str(folder / "scans/scan.png")])
    assert result.exit_code == 2
    assert f"the model reads {channels} channels; give an .npy array" in result.stderr.splitlines()[-1]
    np.save(folder / "images.npy", np.zeros((3, 8, 8, channels), np.uint8))
    assert len(keras_rcl.predict(str(folder / f"net{channels}.keras"), [str(folder / "images.npy")])) == 3


def test_text_is_a_path(folder, monkeypatch):
    monkeypatch.chdir(folder)
    data = {"name": "digits", "limit": 20}
    record, out = keras_rcl.attack("net1.keras", [keras_rcl.FGSM()], dataset=data)
    assert out.name == "net1" and (out / "record.json").is_file()
    record, out = keras_rcl.attack("net1.keras", [keras_rcl.FGSM()], dataset=data, output_dir="out")
    assert str(out) == "out" and record["images"] == 20
    image = str(folder / "scans/scan.png")
    assert len(keras_rcl.predict("net1.keras", image)) == len(keras_rcl.predict("net1.keras", [image])) == 1


def test_a_path_is_text_where_settings_are_stored(folder):
    dataset = keras_rcl.Dataset(name="folder", folder=folder, data_dir=folder)
    assert dataset == keras_rcl.Dataset(name="folder", folder=str(folder), data_dir=str(folder))
    assert keras_rcl.Stored(folder=folder).folder == str(folder)
    assert keras_rcl.Transfer(source=folder, attack="pgd").source == str(folder)
    classifier = keras_rcl.load_classifier(folder / "net1.keras")
    assert dataset_of(classifier, {"name": "folder", "folder": folder}).folder == str(folder)
    with pytest.raises(InvalidInputError, match="folder"):
        dataset_of(classifier, {"name": "folder", "folder": 3})
