"""Data sets that stay on disk: every image once an epoch, the same order again from any step, parts apart, balanced."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from click.testing import CliRunner
from PIL import Image

from keras_rcl.cli.app import cli
from keras_rcl.data import sources, streaming
from keras_rcl.data.adversarial_store import FORMAT, RECORD, shard_name, with_stored, write_shard
from keras_rcl.data.pipeline import Batches
from keras_rcl.data.sources import StreamedSplit, load
from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.export import export
from keras_rcl.networks import build_network
from keras_rcl.vocabulary.attacks import FGSM, Refreshed, Stored
from keras_rcl.vocabulary.dataset import CropFlip, Dataset
from keras_rcl.vocabulary.network import Network
from keras_rcl.vocabulary.phase import Adversarial, Augmented, Clean

COUNT, HELD_OUT = 40, 10


class TinyStream(tfds.core.GeneratorBasedBuilder):
    """Forty RGB images of plain colour, of sizes of their own: red = 6 i, label i % 4. A test part of eight."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        names = ["ant", "bee", "cat", "dog"]
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=names)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(COUNT), "test": self._generate_examples(8)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": plain(i), "label": i % 4}


def plain(i):
    image = np.zeros((8 + i % 3, 8 + i % 5, 3), np.uint8)
    image[..., 0] = 6 * i
    return image


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the data set in three files."""
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(num_shards=3)
    TinyStream(data_dir=folder).download_and_prepare(download_config=config)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the same images."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", COUNT), ("test", 8)):
        for i in range(count):
            path = root / split / ["ant", "bee", "cat", "dog"][i % 4] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(plain(i)).save(path)
    return root


@pytest.fixture(scope="module", params=["TFDS", "folder"])
def streamed(request):
    """The data set, as most tests read it; image files in pieces of eight."""
    if request.param == "TFDS":
        yield load(dataset(request.getfixturevalue("prepared")))
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "PIECE", 8)
        yield load(of_folder(request.getfixturevalue("folder")))


def dataset(folder, **fields) -> Dataset:
    fields = {"validation_fraction": HELD_OUT / COUNT, "image_size": 8, "shuffle_buffer": 16, **fields}
    return Dataset(name="tiny_stream", data_dir=str(folder), streamed=True, **fields)


def of_folder(folder, **fields) -> Dataset:
    fields = {
        "validation_fraction": HELD_OUT / COUNT,
        "image_size": 8,
        "shuffle_buffer": 16,
        "streamed": True,
        **fields,
    }
    return Dataset(name="folder", folder=str(folder), **fields)


def epoch(batches, number, step=0):
    batches.start_epoch(number, step)
    return [[part.numpy() for part in element] for element in batches.dataset]


def reds(elements):
    return np.concatenate([np.round(255 * images[0, :, 0, 0, 0]) for images, _, _ in elements]).astype(int)


def test_an_epoch_has_every_training_image_once_with_its_label(streamed):
    data = streamed
    assert isinstance(data.train, StreamedSplit) and data.train.count == COUNT - HELD_OUT
    assert data.image_shape == (8, 8, 3) and data.class_names == ("ant", "bee", "cat", "dog")
    batches = Batches(data.train, (Clean(),), 10, seed=0)
    assert batches.steps_per_epoch == 3
    first, second = epoch(batches, 0), epoch(batches, 1)
    held_out = set(data.validation.images[:, 0, 0, 0])
    assert len(held_out) == HELD_OUT
    for elements in (first, second):
        found = reds(elements)
        assert len(set(found)) == COUNT - HELD_OUT and not held_out & set(found)
        labels = np.concatenate([labels for _, labels, _ in elements])
        np.testing.assert_array_equal(labels, found // 6 % 4)
    assert (reds(first) != reds(second)).any()
    assert set(data.test.images[:, 0, 0, 0]) == {6 * i for i in range(8)}


@pytest.mark.slow
def test_from_any_step_on_an_epoch_is_what_it_was(streamed):
    views = (Clean(), Augmented(policy=CropFlip(padding=1)), Adversarial(attack=FGSM()))
    batches = Batches(streamed.train, views, 7, seed=3)
    whole = epoch(Batches(streamed.train, views, 7, seed=3), 2)
    assert len(whole) == 4
    assert all((images[0] == images[2]).all() for images, _, _ in whole)  # an attack starts at the clean images
    for step in range(4):
        again = epoch(batches, 2, step)
        for expected, found in zip(whole[step:], again, strict=True):
            for one, other in zip(expected, found, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_the_order_does_not_depend_on_the_global_seed(streamed):
    train = streamed.train
    labels = [batch[1] for batch in epoch(Batches(train, (Clean(),), 7, seed=3), 2)]
    tf.random.set_seed(0)
    try:
        again = [batch[1] for batch in epoch(Batches(train, (Clean(),), 7, seed=3), 2)]
    finally:
        tf.random.set_seed(None)
    np.testing.assert_array_equal(labels, again)


def test_a_limit_takes_every_class_as_often_and_reads_no_further(prepared, monkeypatch):
    read = []

    def counted(builder, split, keys, examples=streaming._examples):
        for example in examples(builder, split, keys):
            read.append(split)
            yield example

    monkeypatch.setattr(streaming, "_examples", counted)
    data = load(dataset(prepared, limit=8, validation_fraction=0))
    assert not isinstance(data.train, StreamedSplit) and len(data.validation.labels) == 0
    np.testing.assert_array_equal(np.bincount(data.train.labels), [2, 2, 2, 2])
    np.testing.assert_array_equal(data.train.images[:, 0, 0, 0] // 6 % 4, data.train.labels)
    assert 8 <= read.count(f"train[:{COUNT}]") < COUNT
    builder = tfds.builder("tiny_stream", data_dir=str(prepared))
    labels = [int(example["label"]) for example in builder.as_dataset(split="train").as_numpy_iterator()]
    np.testing.assert_array_equal(data.train.labels, np.array(labels)[data.train.indices])


def test_the_validation_part_tells_where_its_images_are(prepared):
    data = load(dataset(prepared))
    builder = tfds.builder("tiny_stream", data_dir=str(prepared))
    colours = [int(example["image"][0, 0, 0]) for example in builder.as_dataset(split="train").as_numpy_iterator()]
    np.testing.assert_array_equal(data.validation.images[:, 0, 0, 0], np.array(colours)[data.validation.indices])
    assert data.validation.indices.min() >= COUNT - HELD_OUT


def test_a_streamed_folder_has_the_images_that_it_has_in_memory(folder):
    memory, data = load(of_folder(folder, streamed=False)), load(of_folder(folder))
    batches = epoch(Batches(data.train, (Clean(),), 5, seed=0), 0)
    images = np.concatenate([np.round(255 * images[0]).astype(np.uint8) for images, _, _ in batches])
    labels = np.concatenate([labels for _, labels, _ in batches])
    order, expected = np.argsort(images[:, 0, 0, 0]), np.argsort(memory.train.images[:, 0, 0, 0])
    np.testing.assert_array_equal(images[order], memory.train.images[expected])
    np.testing.assert_array_equal(labels[order], memory.train.labels[expected])
    for split in ("validation", "test"):
        np.testing.assert_array_equal(getattr(data, split).images, getattr(memory, split).images)


def test_a_limited_folder_is_in_memory_and_few_images_are_held(folder):
    assert load(of_folder(folder, limit=8)).train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    data = load(of_folder(folder, held_images=4))
    held = [len(data.train.held.labels), len(data.validation.labels), len(data.test.labels)]
    assert data.train.count == COUNT - HELD_OUT and held == [4, 4, 4]


@pytest.mark.slow
def test_an_image_that_cannot_be_decoded_ends_training_in_one_line(folder, tmp_path, monkeypatch):
    """The folder is read without a fault, and its files are cut before training reads them."""
    shutil.copytree(folder, tmp_path / "images")
    monkeypatch.chdir(tmp_path)

    def cut_afterwards(chosen, part=None):
        data = load(chosen, part)
        for path in (tmp_path / "images/train").rglob("*.png"):
            path.write_bytes(path.read_bytes()[:-30])
        return data

    monkeypatch.setattr(sources, "load", cut_afterwards)
    fields = {"name": "folder", "folder": "images", "streamed": True, "image_size": 8}
    changes = [f"dataset={json.dumps(fields)}", "method.batch_size=10"]
    fit = ["fit", "--no-compare", "--variant", "baseline", *(part for change in changes for part in ("--set", change))]
    fitted = CliRunner().invoke(cli, fit)
    assert fitted.exit_code == 2 and ".png is truncated or corrupt" in fitted.stderr
    assert "Traceback" not in fitted.output


def test_the_middle_is_cut_out():
    image = np.zeros((70, 140, 1), np.uint8)
    image[:, 35:105] = 200  # the square in the middle
    cut = streaming.cropped(tf.constant(image), 35, 1).numpy()
    assert cut.shape == (35, 35, 1) and (cut == 200).all()
    same = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    np.testing.assert_array_equal(streaming.cropped(tf.constant(same), 12, 3), same)


def stored_beside(folder, data, change=3):
    """Examples of the whole stream: each image with another green, which tells whose example it is."""
    sizes = []
    names = [shard_name(number, len(data.train.pieces)) for number in range(len(data.train.pieces))]
    folder.mkdir()
    for number, (name, piece) in enumerate(zip(names, data.train.pieces, strict=True)):
        clean = data.train.read(number, 0, piece.take)
        images = clean.images.copy()
        images[..., 1] = clean.images[..., 0] % (change + 1)
        write_shard(folder / name, dataclasses.replace(clean, images=images), "train")
        sizes.append((folder / name).stat().st_size)
    record = {
        "format": FORMAT,
        "attack": {"norm": "linf", "epsilon": "8/255"},
        "data": {"name": data.name, "part": "train"},
        "shards": names,
        "streamed": {"identity": data.train.identity, "image_shape": [8, 8, 3], "sizes": sizes},
    }
    (folder / RECORD).write_text(json.dumps(record))
    return Stored(folder=str(folder))


@pytest.mark.slow
def test_the_graph_that_decodes_an_image_is_traced_once(prepared, monkeypatch):
    """It serves the three splits in memory, the pieces that `craft-dataset` reads, and the batches."""
    traced, cropped = [], streaming.cropped
    monkeypatch.setattr(streaming, "cropped", lambda *arguments: traced.append(arguments) or cropped(*arguments))
    train = load(dataset(prepared)).train
    assert len(traced) == 1
    read = [train.read(0, start, 2) for start in (0, 2)]
    assert [len(part.labels) for part in read] == [2, 2] and len(epoch(Batches(train, (Clean(),), 10, seed=0), 0)) == 3
    assert len(traced) == 1


@pytest.mark.slow
def test_stored_examples_are_read_beside_their_images(streamed, tmp_path):
    """Every image comes once, with its own example, in the order without examples, and again from any step on."""
    plain = streamed
    attack = stored_beside(tmp_path / "stored", plain)
    data = with_stored(plain, [attack])
    assert data.train.identity != plain.train.identity
    views = (Clean(), Adversarial(attack=attack))
    elements = epoch(Batches(data.train, views, 7, seed=3), 2)
    alone = epoch(Batches(plain.train, (Clean(),), 7, seed=3), 2)
    np.testing.assert_array_equal(reds(elements), reds(alone))
    for (images, labels, _), (_, expected, _) in zip(elements, alone, strict=True):
        clean, adversarial = np.round(255 * images).astype(int)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(adversarial[..., 0], clean[..., 0])
        np.testing.assert_array_equal(adversarial[..., 1], clean[..., 0] % 4)
    (again, *_), *_ = epoch(Batches(data.train, views, 7, seed=3), 2, step=3)
    np.testing.assert_array_equal(again, elements[3][0])


@pytest.mark.slow
def test_stored_examples_of_other_files_are_refused(prepared, tmp_path):
    data = load(dataset(prepared))
    attack = stored_beside(tmp_path / "stored", data)
    with pytest.raises(InvalidInputError, match="no examples of the files that training streams"):
        with_stored(load(dataset(prepared, validation_fraction=0)), [attack])
    with pytest.raises(InvalidInputError, match="not within linf 8/255 of the training images"):
        with_stored(data, [stored_beside(tmp_path / "far", data, change=200)])
    shard = sorted((tmp_path / "stored").glob("*.tfrecord"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InvalidInputError, match=f"{shard.name} is missing or cut"):
        with_stored(data, [attack])


def test_what_is_read_from_memory_is_refused(streamed):
    with pytest.raises(InvalidInputError, match="streamed holds no training image"):
        Batches(streamed.train, (Adversarial(attack=Refreshed(every=5)),), 10, seed=0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(name="digits"), "TFDS data sets and folders, not for digits"),
        (dict(image_size=None), "streamed needs image_size"),
        (dict(balanced_batches=True), "no balanced_batches"),
    ],
)
def test_settings_that_do_not_go_together(fields, said):
    with pytest.raises(ValueError, match=said):
        Dataset(**{"name": "tiny_stream", "image_size": 8, "streamed": True, **fields})


@pytest.mark.slow
def test_craft_fit_and_attack_on_it(prepared, tmp_path, monkeypatch):
    """Examples are crafted file by file through an untrained model, and trained on beside the images."""
    monkeypatch.chdir(tmp_path)
    network = build_network(Network(encoder="small_cnn"), (8, 8, 3), 4, mean=[0.2] * 3, std=[0.3] * 3)
    settings = {"name": "tiny_stream", "streamed": True, "image_size": 8, "validation_fraction": 0.25}
    export(network, "untrained", {"class_names": ["ant", "bee", "cat", "dog"], "config": {"dataset": settings}})
    here = ["--data-dir", str(prepared)]
    crafted = ["craft-dataset", "untrained", "--attack", "pgd-2", "--output-dir", "stored", "--batch-size", "7", *here]
    crafted = CliRunner().invoke(cli, crafted)
    assert crafted.exit_code == 0, crafted.output
    record = json.loads((tmp_path / "stored/examples.json").read_text())
    assert record["examples"] == 30 and len(record["shards"]) == len(record["streamed"]["sizes"])
    changes = [
        f"dataset={json.dumps({**settings, 'data_dir': str(prepared)})}",
        *("evaluation.attacks=[]", "evaluation.validation_attack={name: noise}"),
        *("method.attack={name: stored, folder: stored}", "method.mixed=true", "method.batch_size=10"),
        *("method.pretraining_epochs=0", "method.contrast=euclidean_supcon", "method.supcon_epochs=1"),
    ]
    fit = ["fit", "--no-compare", "--variant", "sc_supcon", "--json"]
    fitted = CliRunner().invoke(cli, [*fit, *(part for change in changes for part in ("--set", change))])
    assert fitted.exit_code == 0, fitted.output
    (record,) = json.loads(fitted.stdout)
    assert record["images"] == 8 and record["config"]["dataset"]["streamed"]
    arguments = ["attack", "saved_models/tiny_stream-sc_supcon", "--attack", "fgsm", "--json", *here]
    attacked = CliRunner().invoke(cli, arguments)
    assert attacked.exit_code == 0, attacked.output
    assert json.loads(attacked.stdout)["clean_accuracy"] == record["clean_accuracy"]
    refused = CliRunner().invoke(cli, [*arguments, "--split", "train"])
    assert refused.exit_code == 2 and "is streamed" in refused.stderr
