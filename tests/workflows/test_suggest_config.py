"""`init`: a configuration that fits the images, and says why."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import keras_rcl
from keras_rcl import InvalidInputError, config
from keras_rcl.cli.app import cli

RNG = np.random.default_rng(0)


def folder_of(path: Path, sizes: list[tuple[int, int]], per_class: int, mode: str = "RGB") -> Path:
    """A folder of two classes, `dark` and `light`, with images of these sizes in turn."""
    for name, level in (("dark", 40), ("light", 200)):
        (path / name).mkdir(parents=True)
        for number in range(per_class):
            width, height = sizes[number % len(sizes)]
            pixels = RNG.integers(level - 30, level + 30, (height, width, 3)).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(path / name / f"{number}.png")
    return path


def chosen(text: str) -> tuple[config.Experiment, str]:
    Path("mine.yaml").write_text(text)
    return config.load(Path("mine.yaml")), text


def test_photographs_of_different_sizes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "photos", [(70, 90), (50, 120)], 30)
    experiment, text = chosen(keras_rcl.suggest_config("photos"))
    assert experiment.dataset == keras_rcl.Dataset(name="folder", folder="photos", image_size=48)
    assert experiment.network.encoder == "strided_cnn" and experiment.method.name == "at"
    assert experiment.method.attack.epsilon == 8 / 255 and experiment.method.augmentation.name == "crop_flip"
    # 60 images, 12 for the test, 10 for validation: two steps of 16
    assert (experiment.method.batch_size, experiment.method.epochs) == (16, 100)
    assert [attack.epsilon for attack in experiment.evaluation.attacks] == [8 / 255] * 2
    assert "60 images of 50 to 120 pixels, colour, 2 classes" in text
    values = [line for line in text.splitlines() if ": " in line and not line.startswith("#")]
    assert sum("  # " in line for line in values) >= len(values) - 4  # all except names and paths


def test_small_grey_arrays_whose_classes_are_close(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    labels = np.arange(4000) % 2
    images = np.full((4000, 8, 8), 100, np.uint8)
    images[:, 2, 2] += (10 * labels).astype(np.uint8)  # the classes differ by 10/255 in one pixel
    np.savez("images.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    experiment, text = chosen(keras_rcl.suggest_config(Path("images.npz")))
    assert experiment.dataset == keras_rcl.Dataset(name="arrays", data="images.npz")
    assert experiment.network.encoder == "small_cnn" and experiment.method.augmentation.name == "none"
    assert experiment.method.attack.epsilon == pytest.approx(5 / 255)
    assert "half the distance of the two most similar images of different classes (16/255 is usual)" in text
    # 3,200 of 4,000 images: 25 steps of 128
    assert (experiment.method.batch_size, experiment.method.epochs) == (128, 100)
    assert experiment.evaluation.limit == 1000


def test_a_batch_is_at_most_all_training_images(tmp_path):
    folder_of(tmp_path, [(8, 8)], 10, "L")
    text = keras_rcl.suggest_config(tmp_path)
    # 20 images, 4 for the test, 3 for validation
    assert "leaves 13 images to train on" in text and "1 step per epoch" in text
    assert yaml.safe_load(text)["methods"]["at"]["batch_size"] == 13


def test_what_holds_no_images_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "none", "does not exist"), (tmp_path / "empty", "holds no images")):
        with pytest.raises(InvalidInputError, match=message):
            keras_rcl.suggest_config(path)


@pytest.mark.slow
def test_fit_runs_what_init_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "photos", [(8, 8)], 10, "L")
    printed = CliRunner().invoke(cli, ["init", "photos"])
    assert printed.exit_code == 0, printed.output
    assert yaml.safe_load(printed.stdout)["variant"] == "at"
    Path("mine.yaml").write_text(printed.stdout)
    fitted = CliRunner().invoke(cli, ["fit", "--config", "mine.yaml", "--set", "method.epochs=1"])
    assert fitted.exit_code == 0, fitted.output
    assert "saved_models/folder-at" in fitted.stdout
