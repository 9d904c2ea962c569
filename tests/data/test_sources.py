"""Data sets and their parts: disjoint, stratified, fixed by one seed, limited in balance; and what is refused."""

import os
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from keras_rcl.data import splits as parts_module
from keras_rcl.data import tfds_sets
from keras_rcl.data.sources import load
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.dataset import Dataset


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Twelve RGB images of 6x5: label i % 3, red = i. `varied` has sizes of its own, `unlabelled` a test part of -1."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="plain"),
        tfds.core.BuilderConfig(name="varied"),
        tfds.core.BuilderConfig(name="unlabelled"),
        tfds.core.BuilderConfig(name="alone"),
    ]

    def _info(self):
        shape = (None, None, 3) if self.builder_config.name == "varied" else (6, 5, 3)
        names = ["ant", "bee", "cat"]
        features = {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(names=names)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        config = self.builder_config.name
        splits = {"train": self._generate_examples(12)}
        if config != "alone":
            splits["validation" if config == "unlabelled" else "test"] = self._generate_examples(6)
        if config == "unlabelled":
            splits["test"] = self._generate_examples(6, labelled=False)
        return splits

    def _generate_examples(self, count, labelled=True):
        for i in range(count):
            height = 6 + i if self.builder_config.name == "varied" else 6
            image = np.zeros((height, 5, 3), np.uint8)
            image[..., 0] = i
            yield i, {"image": image, "label": i % 3 if labelled else -1}


class ManyFiles(tfds.core.GeneratorBasedBuilder):
    """700 grey images of one pixel, labels 0 to 699, whose pixel is the label modulo 251."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(1, 1, 1)), "label": tfds.features.ClassLabel(num_classes=700)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for label in range(700):
            yield label, {"image": np.full((1, 1, 1), label % 251, np.uint8), "label": label}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the tiny data set prepared in it."""
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    for config in ("plain", "varied", "unlabelled", "alone"):
        tfds.builder(f"tiny_pictures/{config}", data_dir=folder).download_and_prepare()
    return str(folder)


def save(path: Path, pixels, mode=None):
    """Write an image file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image.convert(mode) if mode else image).save(path)


def two_classes(folder: Path, per_class: int = 5, pixels=None):
    """A folder of two classes of greyscale images, `b` before `a` on disk; grey = 10 * class + number."""
    for label, name in ((1, "b"), (0, "a")):
        for i in range(per_class):
            save(folder / name / f"{i}.png", np.full((4, 3), 10 * label + i) if pixels is None else pixels)
    return Dataset(name="folder", folder=str(folder), validation_fraction=0.2, test_fraction=0.2)


def parts(data):
    return data.train, data.validation, data.test


def test_digits_are_scikit_learns_in_8_bits():
    data, own = load(Dataset()), load_digits()
    assert data.class_names == tuple("0123456789") and data.image_shape == (8, 8, 1) and data.num_classes == 10
    for part in parts(data):
        assert part.images.dtype == np.uint8 and part.labels.dtype == part.indices.dtype == np.int64
        for image, label, index in zip(part.images[:20], part.labels, part.indices, strict=False):
            assert label == own.target[index]
            assert np.abs(image[..., 0] / 255 * 16 - own.images[index]).max() <= 0.5 * 16 / 255
    indices = np.concatenate([part.indices for part in parts(data)])
    assert sorted(indices) == list(range(1797))
    assert len(data.test.labels) == round(0.2 * 1797) and len(data.validation.labels) == round(0.2 * (1797 - 359))


def test_parts_are_stratified():
    data = load(Dataset())
    shares = np.bincount(load_digits().target) / 1797
    for part in parts(data):
        assert np.abs(np.bincount(part.labels) - shares * len(part.labels)).max() <= 1 + 1e-9


def test_parts_depend_on_the_split_seed_alone():
    first, again, other = load(Dataset()), load(Dataset()), load(Dataset(split_seed=1))
    for a, b, c in zip(parts(first), parts(again), parts(other), strict=True):
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_array_equal(a.images, b.images)
        assert not np.array_equal(a.indices, c.indices)


@settings(max_examples=20)
@given(limit=st.integers(1, 400), seed=st.integers(0, 2**32 - 1), fraction=st.floats(0, 0.7))
def test_limit_keeps_the_balance_within_the_same_parts(limit, seed, fraction):
    limited = load(Dataset(limit=limit, split_seed=seed, validation_fraction=fraction))
    whole = load(Dataset(split_seed=seed, validation_fraction=fraction))
    for part, of in zip(parts(limited), parts(whole), strict=True):
        assert len(part.labels) == min(limit, len(of.labels))
        assert set(part.indices) <= set(of.indices)
        if len(of.labels):
            share = np.bincount(of.labels, minlength=10) * len(part.labels) / len(of.labels)
            assert np.abs(np.bincount(part.labels, minlength=10) - share).max() < 1


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_noisy_labels_are_a_share_of_the_training_labels_and_of_another_class(share):
    clean, noisy = load(Dataset()), load(Dataset(label_noise=share))
    for a, b in zip(parts(clean), parts(noisy), strict=True):
        np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(clean.validation.labels, noisy.validation.labels)
    np.testing.assert_array_equal(clean.test.labels, noisy.test.labels)
    wrong = clean.train.labels != noisy.train.labels
    assert wrong.sum() == round(share * len(wrong))
    offsets = np.bincount((noisy.train.labels - clean.train.labels)[wrong] % 10, minlength=10)
    # Chi-square with 8 degrees of freedom: 26.1 is exceeded once in 1,000 seeds.
    assert offsets[0] == 0 and ((offsets[1:] - wrong.sum() / 9) ** 2).sum() / (wrong.sum() / 9) < 26.1


def test_noise_does_not_depend_on_the_limit():
    whole, limited = (load(Dataset(label_noise=0.3, limit=limit)).train for limit in (None, 200))
    np.testing.assert_array_equal(limited.labels, whole.labels[np.searchsorted(whole.indices, limited.indices)])


def test_noise_is_for_images_in_memory():
    with pytest.raises(ValueError, match="label_noise is for images in memory; leave out streamed or label_noise"):
        Dataset(name="cifar10", streamed=True, image_size=32, label_noise=0.1)


def test_stratified_choice_by_hand():
    # 6 of 4 + 4 + 3: quotas 2.18, 2.18, 1.64; floors 2, 2, 1; the last goes to the remainder 0.64
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1])
    chosen = parts_module.stratified(labels, 6, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [2, 2, 2] and chosen.tolist() == sorted(set(chosen))


def test_no_validation_part():
    data = load(Dataset(validation_fraction=0))
    assert data.validation.images.shape == (0, 8, 8, 1) and len(data.train.labels) == 1797 - 359


def test_mean_and_deviation():
    data = load(Dataset())
    mean, std = data.mean_std()
    pixels = data.train.images / 255
    np.testing.assert_allclose([mean[0], std[0]], [pixels.mean(), pixels.std()], rtol=1e-12)
    black = parts_module.Split(np.full((2, 4, 4, 2), [0, 7], np.uint8), np.zeros(2, np.int64), np.arange(2))
    mean, std = parts_module.ImageData("black", ("one",), black, black, black).mean_std()
    np.testing.assert_allclose(mean, [0, 7 / 255])
    np.testing.assert_array_equal(std, [1, 1])


def test_digits_resized():
    assert load(Dataset(image_size=16, limit=5)).train.images.shape == (5, 16, 16, 1)


def test_digits_as_arrays_are_divided_like_the_digits(tmp_path):
    digits = load_digits()
    np.savez(tmp_path / "digits.npz", images=digits.images / 16, labels=digits.target)
    data = load(Dataset(name="arrays", data=tmp_path / "digits.npz", limit=40))
    expected = load(Dataset(limit=40))
    for name in ("train", "validation", "test"):
        one, other = getattr(data, name), getattr(expected, name)
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.images, other.images)


def test_tfds_official_splits(prepared):
    data = load(Dataset(name="tiny_pictures/plain", data_dir=prepared, validation_fraction=0.25))
    assert data.class_names == ("ant", "bee", "cat") and data.image_shape == (6, 5, 3)
    assert np.bincount(data.train.labels).tolist() == [3, 3, 3]
    assert np.bincount(data.validation.labels).tolist() == [1, 1, 1]
    assert data.test.indices.tolist() == list(range(6))
    assert sorted([*data.train.indices, *data.validation.indices]) == list(range(12))
    for part in parts(data):  # TFDS stores in an order of its own, fixed: the image tells which example it was
        np.testing.assert_array_equal(part.images[:, 0, 0, 0] % 3, part.labels)
    assert sorted(np.concatenate([data.train.images, data.validation.images])[:, 0, 0, 0]) == list(range(12))


def test_examples_of_many_files_are_read_in_the_order_of_tfds(tmp_path):
    """Which reads 16 files in turn, and 16 records of each: 20 files of 35 records end at different times."""
    builder = ManyFiles(data_dir=tmp_path)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=20))
    found = load(Dataset(name="many_files", data_dir=str(tmp_path))).test
    expected = list(builder.as_dataset(split="test").as_numpy_iterator())
    np.testing.assert_array_equal(found.labels, [example["label"] for example in expected])
    np.testing.assert_array_equal(found.images, [example["image"] for example in expected])
    np.testing.assert_array_equal(found.indices, np.arange(700))
    assert not np.array_equal(found.labels, np.sort(found.labels))


def test_another_format_than_tfrecord_is_refused(prepared):
    builder = tfds.builder("tiny_pictures/plain", data_dir=prepared)
    builder.info.set_file_format("riegeli", override=True, override_if_initialized=True)
    with pytest.raises(InvalidInputError, match="tiny_pictures is not prepared as TFRecords"):
        tfds_sets.examples(builder, "test", ["label"])


def test_tfds_limit_reads_the_same_images(prepared):
    whole = load(Dataset(name="tiny_pictures/plain", data_dir=prepared))
    few = load(Dataset(name="tiny_pictures/plain", data_dir=prepared, limit=3))
    assert [len(part.labels) for part in parts(few)] == [3, 2, 3]
    for part, of in zip(parts(few), parts(whole), strict=True):
        np.testing.assert_array_equal(part.images, of.images[np.searchsorted(of.indices, part.indices)])


@pytest.mark.slow
def test_parts_that_are_read_one_by_one_are_those_that_are_read_together(prepared, tmp_path):
    two_classes(tmp_path / "train")
    two_classes(tmp_path / "val", per_class=2)
    two_classes(tmp_path / "test", per_class=3)
    for dataset in (
        Dataset(limit=50),
        Dataset(name="folder", folder=str(tmp_path), limit=3),
        Dataset(name="tiny_pictures/plain", data_dir=prepared),
        Dataset(name="tiny_pictures/alone", data_dir=prepared),
    ):
        together = load(dataset)
        for first in ("train", "validation", "test"):
            alone = load(dataset, first)
            assert alone.image_shape == together.image_shape and alone.class_names == together.class_names
            for part, of in zip(reversed(parts(alone)), reversed(parts(together)), strict=True):
                np.testing.assert_array_equal(part.images, of.images)
                np.testing.assert_array_equal(part.labels, of.labels)
                np.testing.assert_array_equal(part.indices, of.indices)


def test_a_part_that_is_not_needed_is_not_read(prepared, tmp_path):
    expected = load(Dataset(name="tiny_pictures/plain", data_dir=prepared)).test
    shutil.copytree(Path(prepared, "tiny_pictures"), tmp_path / "tiny_pictures")
    for file in (tmp_path / "tiny_pictures/plain").rglob("*-train.tfrecord-*"):
        file.write_bytes(b"damaged")
    data = load(Dataset(name="tiny_pictures/plain", data_dir=str(tmp_path)), "test")
    np.testing.assert_array_equal(data.test.images, expected.images)
    with pytest.raises(InvalidInputError, match="plain cannot be read"):
        data.train  # noqa: B018


def test_tfds_test_part_where_there_is_none_or_without_labels(prepared):
    alone = load(Dataset(name="tiny_pictures/alone", data_dir=prepared, test_fraction=0.25, validation_fraction=0))
    assert len(alone.test.labels) == 3 and sorted([*alone.train.indices, *alone.test.indices]) == list(range(12))
    unlabelled = load(Dataset(name="tiny_pictures/unlabelled", data_dir=prepared))
    assert sorted(unlabelled.test.labels) == [0, 0, 1, 1, 2, 2]


def test_tfds_varied_sizes(prepared):
    with pytest.raises(InvalidInputError, match="dataset.image_size"):
        load(Dataset(name="tiny_pictures/varied", data_dir=prepared))
    data = load(Dataset(name="tiny_pictures/varied", data_dir=prepared, image_size=4))
    assert data.image_shape == (4, 4, 3)
    np.testing.assert_array_equal(data.train.images[:, 1, 2, 0] % 3, data.train.labels)


def test_tfds_home_and_environment(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", prepared)
    assert load(Dataset(name="tiny_pictures/plain")).num_classes == 3
    monkeypatch.setenv("HOME", str(Path(prepared).parent))
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert load(Dataset(name="tiny_pictures/plain", data_dir=f"~/{Path(prepared).name}")).num_classes == 3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifr10", "did you mean cifar10"),
        ("digit", "did you mean digits"),
        ("xyzzy_quux", "tensorflow.org/datasets"),
        ("glue", "not an image classification"),
        ("cifar10/nope", "nope"),
        ("cifar10:99.9.9", "99.9.9"),
        ("mnist", "connect to the network.*--data-dir or TFDS_DATA_DIR"),
    ],
)
def test_tfds_refusals_are_one_line(name, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tfds_sets, "_reachable", lambda builder: False)
    with pytest.raises(InvalidInputError, match=says) as refused:
        load(Dataset(name=name, data_dir=str(tmp_path)))
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""


def test_unreachable_network_is_noticed_at_once(monkeypatch):
    requests = pytest.importorskip("requests")

    def refuse(url, **kwargs):
        raise requests.ConnectionError("no route")

    class Builder:
        url_infos = {"https://example.org/images.tar": None}

    monkeypatch.setattr(requests, "get", refuse)
    assert not tfds_sets._reachable(Builder())


def test_failed_download_is_one_line(prepared, tmp_path, monkeypatch):
    def fail(self, **kwargs):
        raise OSError("disk full\nmuch more")

    monkeypatch.setattr(TinyPictures, "download_and_prepare", fail)
    with pytest.raises(InvalidInputError, match="disk full") as refused:
        load(Dataset(name="tiny_pictures/plain", data_dir=str(tmp_path)))
    assert "\n" not in str(refused.value)


def test_folder_is_sorted_and_greyscale(tmp_path):
    data = load(two_classes(tmp_path))
    assert data.class_names == ("a", "b") and data.image_shape == (4, 3, 1)
    for part in parts(data):
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], 10 * part.labels + part.indices % 5)
    assert [len(part.labels) for part in parts(data)] == [6, 2, 2]
    assert data.test.labels.tolist() == [0, 1]


def test_folder_with_official_parts(tmp_path):
    two_classes(tmp_path / "train")
    two_classes(tmp_path / "test", per_class=2)
    dataset = Dataset(name="folder", folder=str(tmp_path))
    data = load(dataset)
    assert [len(part.labels) for part in parts(data)] == [8, 2, 4]
    assert data.test.images[:, 0, 0, 0].tolist() == [0, 1, 10, 11]
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "c")
    with pytest.raises(InvalidInputError, match="different class folders"):
        load(dataset)


def test_folder_with_one_colour_image_is_rgb(tmp_path):
    dataset = two_classes(tmp_path)
    save(tmp_path / "b" / "x.png", np.full((4, 3, 3), [200, 100, 0]))
    save(tmp_path / "a" / "x.png", np.full((4, 3, 3), [255, 0, 0]), mode="P")
    data = load(dataset)
    assert data.image_shape == (4, 3, 3)
    pixels = {tuple(image[0, 0].tolist()) for part in parts(data) for image in part.images}
    assert {(200, 100, 0), (255, 0, 0), (0, 0, 0), (14, 14, 14)} <= pixels


def test_folder_sizes(tmp_path):
    dataset = two_classes(tmp_path)
    save(tmp_path / "b" / "z.png", np.zeros((5, 5)))
    with pytest.raises(InvalidInputError, match="z.png is of another size.*dataset.image_size"):
        load(dataset)
    resized = load(Dataset(name="folder", folder=str(tmp_path), image_size=2))
    assert resized.image_shape == (2, 2, 1)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_folder_with_a_corrupt_file(tmp_path, content):
    dataset = two_classes(tmp_path, pixels=np.random.default_rng(0).integers(0, 255, (40, 40)))
    victim = tmp_path / "a" / "2.png"
    victim.write_bytes(victim.read_bytes()[:800] if content is None else content)
    with pytest.raises(InvalidInputError, match="2.png"):
        load(dataset)


def test_folder_refusals(tmp_path):
    with pytest.raises(InvalidInputError, match="dataset.folder"):
        load(Dataset(name="folder"))
    with pytest.raises(InvalidInputError, match="missing is not a folder"):
        load(Dataset(name="folder", folder=str(tmp_path / "missing")))
    (tmp_path / "a").mkdir()
    with pytest.raises(InvalidInputError, match="1 class folders"):
        load(Dataset(name="folder", folder=str(tmp_path)))
    (tmp_path / "b").mkdir()
    with pytest.raises(InvalidInputError, match="a holds no PNG"):
        load(Dataset(name="folder", folder=str(tmp_path)))


def lengths(folder, **fields):
    data = load(Dataset(name="folder", folder=folder, **{"validation_fraction": 0.2, **fields}))
    return [len(part.labels) for part in parts(data)], data


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (("train", "test"), [8, 2, 4]),
        (("Train", "Test"), [8, 2, 4]),
        (("train", "val", "test"), [10, 6, 4]),
        (("training", "Validation", "testing"), [10, 6, 4]),
        (("train", "val"), [8, 2, 6]),  # as for TFDS, the validation images are the test split
        (("train",), [6, 2, 2]),
    ],
)
def test_folders_of_splits(tmp_path, layout, expected):
    for name in layout:
        two_classes(tmp_path / name, per_class={"tra": 5, "val": 3, "tes": 2}[name[:3].lower()])
    found, data = lengths(tmp_path)
    assert found == expected and data.class_names == ("a", "b")
    (tmp_path / "__MACOSX").mkdir()
    assert lengths(tmp_path)[0] == expected


def test_a_validation_folder_is_left_out_with_a_fraction_of_0(tmp_path):
    for name, count in (("train", 5), ("val", 3), ("test", 2)):
        two_classes(tmp_path / name, per_class=count)
    assert lengths(tmp_path, validation_fraction=0)[0] == [10, 0, 4]


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train", "test", "extra"), "has test and train beside extra; give one sub-folder per class, or train/, val/"),
        (("val", "test"), "has test and val and no train folder"),
        (("train", "Train"), "which are one split; merge them"),
        (("train", "test"), "train has 0 class folders"),
    ],
)
def test_other_layouts_are_named(tmp_path, folders, said):
    for name in folders:
        save(tmp_path / name / ("x.png" if folders == ("train", "test") else "a/x.png"), np.zeros((4, 3)))
    with pytest.raises(InvalidInputError, match=said):
        lengths(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        for number in range(5):
            save(tmp_path / name / f"{number}.png", np.zeros((4, 3)))
    assert lengths(tmp_path)[1].class_names == ("bus", "train")


def test_every_image_below_a_class_is_read(tmp_path):
    """As many as Keras finds where it reads the formats, and those of other formats too."""
    for name in ("a", "b"):
        for number in range(5):
            save(tmp_path / name / f"{number}.png", np.full((4, 3), number))
            for camera in ("left", "right"):
                save(tmp_path / name / camera / f"{number}.png", np.full((4, 3), number))
        save(tmp_path / name / ".thumbnails/0.png", np.zeros((4, 3)))
    keras_reads = keras.utils.image_dataset_from_directory(tmp_path, verbose=False).file_paths
    assert sum(lengths(tmp_path)[0]) == 30 == sum("thumbnails" not in path for path in keras_reads)
    for suffix in ("webp", "jfif", "tif"):
        save(tmp_path / f"a/x.{suffix}", np.zeros((4, 3)))
    assert sum(lengths(tmp_path)[0]) == 33
    (tmp_path / "b/right/photo.HEIC").touch()
    with pytest.raises(InvalidInputError, match="photo.HEIC has a format that is not read"):
        lengths(tmp_path)


@pytest.mark.skipif(sys.platform == "darwin", reason="file names must be UTF-8 there")
@pytest.mark.parametrize("place", [b"caf\xe9/a", b"data/caf\xe9", b"data/train/caf\xe9"])
def test_names_that_are_not_utf_8_are_refused_before_the_training(tmp_path, place):
    folder = tmp_path / os.fsdecode(place)
    for name in (folder, folder.with_name("b")):
        save(name / "x.png", np.zeros((4, 3)))
    with pytest.raises(InvalidInputError, match=r"caf\\xe9.* is not UTF-8, so its name cannot be stored; hint: "):
        lengths(tmp_path / Path(os.fsdecode(place)).parts[0])
    save(tmp_path / "data/x" / os.fsdecode(b"\xe9.png"), np.zeros((4, 3)))  # a file may be called so


def test_a_split_left_empty_is_refused(tmp_path):
    two_classes(tmp_path, per_class=1)
    with pytest.raises(InvalidInputError, match="test split"):
        load(Dataset(name="folder", folder=str(tmp_path), test_fraction=0.1))


@pytest.mark.data
def test_cifar10():
    folder = Path(os.environ.get("TFDS_DATA_DIR", "")) / "cifar10"
    if not os.environ.get("TFDS_DATA_DIR") or not folder.is_dir():
        pytest.skip("CIFAR-10 is not prepared under TFDS_DATA_DIR")
    data = load(Dataset(name="cifar10", limit=500))
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
    for part in parts(data):
        assert part.images.shape == (500, 32, 32, 3) and np.bincount(part.labels).tolist() == [50] * 10
    np.testing.assert_allclose(data.mean_std()[0], [0.4914, 0.4822, 0.4465], atol=0.02)  # as everybody quotes them
