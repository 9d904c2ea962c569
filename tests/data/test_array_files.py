"""Own arrays: the keys and the units of an `.npz` file, its splits, and what is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from keras_rcl.cli.app import cli
from keras_rcl.data.sources import load
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.dataset import Dataset

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (30, 6, 5, 3)).astype(np.uint8), np.arange(30) % 3


def loaded(path, **settings):
    return load(Dataset(name="arrays", data=path, **settings))


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("images_train", "labels_train", "images_test", "labels_test"),
    ],
    ids=lambda keys: keys[0],
)
def test_the_splits_of_a_file_are_kept(keys, tmp_path, capsys):
    path = tmp_path / "images.npz"
    np.savez(path, **dict(zip(keys, (X[:20], Y[:20], X[20:], Y[20:]), strict=True)))
    data = loaded(path, validation_fraction=0.25)
    np.testing.assert_array_equal(data.test.images, X[20:])
    np.testing.assert_array_equal(data.test.labels, Y[20:])
    assert (len(data.train.labels), len(data.validation.labels)) == (15, 5)
    np.testing.assert_array_equal(data.train.images, X[data.train.indices])
    assert data.class_names == ("0", "1", "2")
    assert "images are uint8 in 0..255; 20 train, 10 test; 3 classes" in capsys.readouterr().err


def test_a_validation_split_is_taken_and_one_array_is_divided_by_the_seed(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, x_train=X[:18], y_train=Y[:18], x_val=X[18:24], y_val=Y[18:24], x_test=X[24:], y_test=Y[24:])
    data = loaded(path)
    np.testing.assert_array_equal(data.validation.images, X[18:24])
    assert len(data.train.labels) == 18
    np.savez(path, x=X, y=Y)
    first, again, other = (loaded(path, split_seed=seed).test.indices for seed in (0, 0, 1))
    assert list(first) == list(again) != list(other)
    assert np.bincount(Y[first]).tolist() == [2, 2, 2]


UNITS = {
    "0..255": (lambda x: x.astype(np.float32), "float32 in 0..255"),
    "0..1": (lambda x: x / 255, "float64 in 0..1"),
    "-1..1": (lambda x: np.float32(x / 127.5 - 1), "float32 in -1..1"),
    "integers": (lambda x: x.astype(np.int64), "int64 in 0..255"),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("labels", [Y, Y[:, None], np.eye(3)[Y], Y.astype(float)], ids=["N", "N,1", "one-hot", "float"])
def test_units_and_labels_as_users_have_them(unit, labels, tmp_path, capsys):
    change, said = UNITS[unit]
    path = tmp_path / "images.npz"
    np.savez(path, x=change(X), y=labels)
    data = loaded(path)
    np.testing.assert_array_equal(data.train.images, X[data.train.indices])
    np.testing.assert_array_equal(data.train.labels, Y[data.train.indices])
    assert said in capsys.readouterr().err


def test_grey_images_without_a_channel_names_and_another_size(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, images=X[..., 0], labels=np.array(["bee", "ant", "cat"])[Y])
    data = loaded(path, image_size=4)
    assert data.image_shape == (4, 4, 1) and data.class_names == ("ant", "bee", "cat")
    assert data.train.labels[0] == [1, 0, 2][Y[data.train.indices[0]]]
    np.savez(path, x=X, y=Y, class_names=["x", "y", "z"])
    assert loaded(path).class_names == ("x", "y", "z")


class Harm:
    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def objects(size: int = 30) -> np.ndarray:
    values = np.empty(size, object)
    values[:] = [Harm()] * size
    return values


REFUSED = {
    "no labels": (dict(x_train=X), "x_train without labels"),
    "no training images": (dict(x_test=X, y_test=Y), "no training images and labels; it holds the arrays x_test"),
    "other names": (dict(pictures=X, y=Y), "y without images"),
    "no images at all": (dict(a=X, b=Y), "it holds the arrays a, b; hint: name them x_train"),
    "twice": (dict(x_train=X, train_images=X, y_train=Y), "x_train and train_images, which are the same images"),
    "flat images": (dict(x=X.reshape(30, -1), y=Y), r"array x has shape \(30, 90\)"),
    "channels first": (dict(x=np.moveaxis(X, -1, 1), y=Y), "channels first"),
    "no image": (dict(x=X[:0], y=Y[:0]), r"has shape \(0, 6, 5, 3\)"),
    "not a number": (dict(x=np.where(X > 9, np.nan, X / 255), y=Y), "array x: images span .nan"),
    "infinity": (dict(x=np.where(X > 9, np.inf, X / 255), y=Y), "array x: images span"),
    "normalized": (dict(x=(X - 120.0) / 50, y=Y), "put mean/std normalisation inside the model"),
    "booleans": (dict(x=X > 9, y=Y), "array x: images are bool"),
    "fewer labels": (dict(x=X, y=Y[:9]), "array y: 9 labels for 30 images"),
    "fractions": (dict(x=X, y=Y + 0.5), "array y: label 0.5 of image 0 is not a whole number"),
    "negative labels": (dict(x=X, y=Y - 1), "array y: label -1"),
    "unknown class": (dict(x=X, y=Y, class_names=["a", "b"]), "array y: label 2 of image 2 is outside the 2 classes"),
    "two sizes": (dict(x_train=X, y_train=Y, x_test=X[:, :4], y_test=Y), r"x_test holds images of shape \(4, 5, 3\)"),
    "two units": (
        dict(x_train=X, y_train=Y, x_test=X / 255, y_test=Y),
        "x_test is float64 in 0..1, and x_train is uint8",
    ),
    "objects": (dict(x=X, y=objects()), "array y holds Python objects, which are never loaded"),
    "images of objects": (dict(x=objects(), y=Y), "array x holds Python objects, which are never loaded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays, message = REFUSED[name]
    np.savez("images.npz", **arrays)
    with pytest.raises(InvalidInputError, match=message) as raised:
        loaded("images.npz")
    assert "\n" not in str(raised.value) and "images.npz" in str(raised.value)
    assert not Path("unpickled").exists()


def test_what_is_no_file_of_arrays_is_one_line(tmp_path):
    pickled, single = tmp_path / "pickled.npz", tmp_path / "single.npy"
    pickled.write_bytes(pickle.dumps([1, 2]))
    np.save(single, X)
    for path, message in (
        (tmp_path / "none.npz", "does not exist"),
        (pickled, "not a readable .npz file"),
        (single, "not a readable .npz file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            loaded(path)
    with pytest.raises(InvalidInputError, match="names no file.*--data"):
        load(Dataset(name="arrays"))
    with pytest.raises(ValueError, match="images.npz is not read for digits"):
        Dataset(data="images.npz")


@pytest.mark.slow
def test_a_model_is_trained_and_attacked_on_arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", x=RNG.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8), y=np.arange(40) % 2)
    small = ["--no-compare", "--set", "method.epochs=1", "--set", "evaluation.attacks=[]"]
    small += ["--set", "evaluation.validation_attack={name: noise}"]
    command = ["fit", "--data", "images.npz", "--variant", "baseline", *small]
    fitted = CliRunner().invoke(cli, command)
    assert fitted.exit_code == 0, fitted.output
    model = "saved_models/arrays-baseline"
    for more in ([], ["--data", "images.npz"], ["--dataset", "arrays", "--data", "images.npz"]):
        attacked = CliRunner().invoke(cli, ["attack", model, "--attack", "fgsm", "--limit", "8", *more])
        assert attacked.exit_code == 0 and "8 images of arrays (test)" in attacked.stdout
    refused = CliRunner().invoke(cli, ["fit", "--data", "images.npz", "--dataset", "digits", *small])
    assert refused.exit_code == 2 and "--data images.npz is not read for --dataset digits" in refused.stderr
