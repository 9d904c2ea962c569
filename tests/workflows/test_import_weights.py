"""Imported networks answer as the networks of the checkpoints do, and take part in every command."""

import json
import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner
from reference import torch_files as files
from reference import torch_networks as networks

from keras_rcl.cli.app import cli
from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.torch_names import LAYOUTS, sort_tensors
from keras_rcl.vocabulary.network import Architecture
from keras_rcl.workflows.import_weights import build_named

WEIGHTS = Path(os.environ.get("CUSIN_WEIGHTS", Path(os.environ.get("TFDS_DATA_DIR", ".")).parent / "cusin_weights"))
CLASSES = 10


def images(size=8, count=2):
    return np.random.default_rng(1).random((count, size, size, 3), np.float32)


def reference(forward, size=8, mean=0.0, std=1.0, **options):
    """Tensors of a checkpoint, and the logits that its network gives of `images(size)`."""
    tensors = networks.Parameters()
    pixels = images(size).astype(np.float64).transpose(0, 3, 1, 2)
    return tensors, forward(tensors, (pixels - mean) / std, CLASSES, **options)


NETWORKS = {
    "cusin_cnn": ("cusin_cnn", networks.cusin_cnn, {"size": 32, "mean": 0.5, "std": 0.5}),
    "resnet18": ("resnet18", networks.resnet, {}),
    "preact_resnet18": ("preact_resnet18", networks.preact_resnet18, {}),
    "preact_resnet18 of MAIR": ("preact_resnet18", networks.preact_resnet18, {"closing": False}),
    "preact_resnet18_fast": ("preact_resnet18_fast", networks.preact_resnet18, {"closing": False, "raw": True}),
    "resnet50": ("resnet50", networks.resnet, {"depths": (3, 4, 6, 3), "bottleneck": True}),
    "resnet18 of torchvision": ("resnet18", networks.resnet, {"size": 72, "imagenet": True}),
    "wide_resnet_28_10": ("wide_resnet_28_10", networks.wide_resnet_28_10, {}),
}


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_checkpoints_network(name):
    architecture, forward, options = NETWORKS[name]
    tensors, expected = reference(forward, **options)
    size = options.get("size", 8)
    normalization = None if name == "cusin_cnn" else "none"
    network, _, _ = build_named(sort_tensors(tensors), architecture, normalization, size)
    found = network(images(size), training=False)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_every_architecture_has_a_layout():
    assert set(LAYOUTS) == set(get_args(Architecture))


def test_the_normalization_of_a_checkpoint_becomes_a_layer():
    tensors, expected = reference(networks.cusin_cnn, 32, mean=0.25, std=0.125)
    tensors = {f"module.1.{name}": array for name, array in tensors.items()}
    tensors |= {"module.0.mean": np.full(3, 0.25, np.float32), "module.0.std": np.full((1, 3, 1, 1), 0.125)}
    network, _, normalization = build_named(sort_tensors(tensors), "cusin_cnn")
    assert normalization == ((0.25,) * 3, (0.125,) * 3)
    np.testing.assert_allclose(network(images(32))["logits"], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInputError, match="'none' contradicts the checkpoint, which holds mean 0.25"):
        build_named(sort_tensors(tensors), "cusin_cnn", "none")


def without(tensors, name):
    return {key: array for key, array in tensors.items() if key != name}


REFUSED = {
    "a tensor too many": (lambda t: t | {"classifier.extra": np.zeros(3)}, r"1 tensors \(classifier.extra\) not used"),
    "a weight too few": (lambda t: without(t, "encoder.proj.0.bias"), r"1 weights \(dense1/bias\) not filled"),
    "another architecture": (lambda t: {"fc.weight": np.zeros((10, 4)), "fc.bias": np.zeros(10)}, "28 weights"),
    "other channels": (lambda t: t | {"encoder.encoder.0.weight": np.zeros((32, 1, 3, 3))}, r"\[32, 1, 3, 3\], and"),
    "another size": (lambda t: t | {"encoder.proj.0.weight": np.zeros((256, 512))}, r"strided_cnn has \[256, 2048\]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_of_something_else_is_refused(kind):
    change, reason = REFUSED[kind]
    tensors, _ = reference(networks.cusin_cnn, 32)
    with pytest.raises(InvalidInputError, match=reason):
        build_named(sort_tensors(change(tensors)), "cusin_cnn")


@pytest.mark.parametrize("text", ["0.5", "0.5,0.5,0.5,0.5,0.5,x", "0,0,0,0,1,1", "0,0,0,nan,1,1", "cifar"])
def test_a_normalization_that_is_none_is_refused(text):
    tensors, _ = reference(networks.cusin_cnn, 32)
    with pytest.raises(InvalidInputError, match="normalization"):
        build_named(sort_tensors(tensors), "cusin_cnn", text)


def test_a_cifar_checkpoint_does_not_say_its_normalization():
    tensors, _ = reference(networks.preact_resnet18)
    with pytest.raises(InvalidInputError, match="does not say how images are normalized .* --normalization"):
        build_named(sort_tensors(tensors), "preact_resnet18", None, 8)


def run(*arguments):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
def test_an_imported_network_is_attacked_and_fine_tuned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for number in range(20):
            from PIL import Image

            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    tensors = networks.Parameters()
    expected = networks.cusin_cnn(tensors, images(32).transpose(0, 3, 1, 2).astype(np.float64) * 2 - 1, 2)
    files.write_checkpoint(tmp_path / "theirs.pt", tensors, lambda state: files.mapping({"state_dict": state}))
    printed = run("import", "theirs.pt", "--architecture", "cusin_cnn")
    assert "28 tensors of 'state_dict', named as in Cusin" in printed
    assert "mean 0.5 0.5 0.5 and std 0.5 0.5 0.5" in printed
    contract = json.loads((tmp_path / "saved_models/theirs/model.json").read_text())
    assert contract["imported"]["files"] == ["theirs.pt"] and contract["class_names"] == ["0", "1"]
    data = ("--dataset", "folder", "--folder", "photos")
    record = json.loads(run("attack", "saved_models/theirs", *data, "--split", "train", "--attack", "fgsm", "--json"))
    assert record["model"]["weights"] == contract["imported"]["weights"]
    settings = ("network.encoder=strided_cnn", "network.pretrained=saved_models/theirs", "method.epochs=0")
    from keras_rcl import config
    from keras_rcl.data import sources
    from keras_rcl.workflows.fit import build

    experiment = config.load(None, "at", [*settings, "dataset.name=folder", "dataset.folder=photos"])
    built = build(experiment, sources.load(experiment.dataset))
    np.testing.assert_allclose(built(images(32))["logits"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the published networks of Cusin and Serafini are not here")
def test_the_accuracy_of_a_published_network_is_the_published_one(tmp_path):
    from keras_rcl import import_weights, load_classifier
    from keras_rcl.data import sources
    from keras_rcl.vocabulary.dataset import Dataset

    stems = ("encoder", "classifier")
    paths = [WEIGHTS / f"augmentation__certified_contrastive_{stem}.pt" for stem in stems]
    imported = import_weights(paths, "cusin_cnn", name="theirs", saved_models=tmp_path)
    logits = load_classifier(imported.path).logits
    test = sources.load(Dataset(name="cifar10")).test
    batches = range(0, len(test.labels), 500)
    right = [np.argmax(logits(test.images[i : i + 500] / 255), 1) == test.labels[i : i + 500] for i in batches]
    assert abs(100 * np.mean(right) - 33.95) < 0.1
