"""Stored adversarial examples: what is written, what is read, and above all what is refused."""

import dataclasses
import json
import re

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_rcl.data.adversarial_store import FORMAT, RECORD, shard_name, whole_levels, with_stored, write_shard
from keras_rcl.data.sources import ImageData, Split
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import PGD, Stored

RNG = np.random.default_rng(0)
SHAPE = (4, 4, 3)


def part(count: int, first: int) -> Split:
    """Random images with every third label; the indices are not in order, as after a division they may not be."""
    indices = first + RNG.permutation(count)
    return Split(RNG.integers(0, 256, (count, *SHAPE), dtype=np.uint8), np.arange(count) % 3, indices)


DATA = ImageData("squares", ("a", "b", "c"), train=part(10, 100), validation=part(4, 200), test=part(6, 100))


def moved(images: np.ndarray, levels: int) -> np.ndarray:
    """Change every byte by the given number of grey levels, up or down."""
    return np.where(images < 128, images + levels, images - levels).astype(np.uint8)


@pytest.fixture
def store(tmp_path):
    """A function that stores examples of a part, in shards of four, and gives the attack that names them."""

    def write(of: Split = DATA.train, levels: int = 8, part: str = "train", written_as: str | None = None, **changes):
        examples = Split(moved(of.images, levels), of.labels, of.indices)
        starts = range(0, len(of.labels), 4)
        shards = [shard_name(number, len(starts)) for number in range(len(starts))]
        for name, start in zip(shards, starts, strict=True):
            taken = slice(start, start + 4)
            arrays = (array[taken] for array in (examples.images, examples.labels, examples.indices))
            write_shard(tmp_path / name, Split(*arrays), written_as or part)
        record = {
            "format": FORMAT,
            "attack": {"name": "pgd", "norm": "linf", "epsilon": "8/255"},
            "data": {"name": "squares", "part": part},
            "shards": shards,
        }
        (tmp_path / RECORD).write_text(json.dumps({**record, **changes}))
        return Stored(folder=str(tmp_path))

    return write


def refusal(attack: Stored, data: ImageData = DATA) -> str:
    with pytest.raises(InvalidInputError) as refused:
        with_stored(data, [attack])
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_each_training_image_gets_its_own(store):
    everything = part(30, 90)  # of which the training part is some, in another order
    chosen = RNG.permutation(30)[:12]
    train = Split(everything.images[chosen], everything.labels[chosen], everything.indices[chosen])
    attack = store(everything)
    found = with_stored(dataclasses.replace(DATA, train=train), [PGD(), attack]).train
    np.testing.assert_array_equal(found.stored[attack.folder], moved(train.images, 8))
    np.testing.assert_array_equal(found.images, train.images)
    few = found.limited(6)
    np.testing.assert_array_equal(few.stored[attack.folder], moved(few.images, 8))


def test_without_stored_examples_the_data_is_the_same():
    assert with_stored(DATA, [PGD()]) is DATA


def test_examples_of_the_test_part_are_refused(store):
    assert "examples of the test split; training on them would leak it" in refusal(store(DATA.test, part="test"))


def test_examples_of_the_validation_part_are_refused(store):
    assert "examples of the validation split" in refusal(store(DATA.validation, part="validation"))


def test_a_record_that_tells_another_part_than_its_examples_is_refused(store):
    assert "examples of the test split" in refusal(store(DATA.test, part="train", written_as="test"))


def test_test_images_that_all_labels_call_training_images_are_refused(store):
    """Their indices are those of training images, and so may their labels be: the pixels are not."""
    disguised = dataclasses.replace(DATA.test, labels=DATA.train.labels[:6], indices=DATA.train.indices[:6])
    train = Split(*(array[:6] for array in (DATA.train.images, DATA.train.labels, DATA.train.indices)))
    said = refusal(store(disguised), dataclasses.replace(DATA, train=train))
    assert "not within linf 8/255 of the training images" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(levels=9), "not within linf 8/255"),
        (dict(of=dataclasses.replace(DATA.train, labels=(DATA.train.labels + 1) % 3)), "or labelled otherwise"),
        (dict(of=DATA.train.limited(7)), "no example of 3 of the 10 training images"),
        (dict(data={"name": "circles", "part": "train"}), "examples of circles, and the training is on squares"),
        (dict(attack={"norm": "linf", "epsilon": "4/255"}), "of linf 4/255, and the training asks for linf 8/255"),
        (dict(attack={"norm": "l2", "epsilon": "8/255"}), "of l2 8/255, and"),
        (dict(format=0), "format 0, and this version reads 1"),
        (dict(shards=["lost.tfrecord"]), "make them again with `craft-dataset`"),
    ],
)
def test_what_does_not_fit_is_refused(store, changes, said):
    assert said in refusal(store(**changes))


def test_what_is_no_store_is_refused(store, tmp_path):
    assert "examples.json cannot be read as a record of adversarial examples: No such file" in refusal(
        Stored(folder=str(tmp_path / "nowhere"))
    )
    attack = store()
    shard = tmp_path / shard_name(1, 3)
    shard.write_bytes(shard.read_bytes()[:-20])
    assert "make them again with `craft-dataset`" in refusal(attack)


def write_example(path, **features):
    """A shard of one example with any features."""
    kinds = {bytes: ("bytes_list", tf.train.BytesList), int: ("int64_list", tf.train.Int64List)}
    made = {}
    for name, value in features.items():
        kind, cls = kinds[type(value)]
        made[name] = tf.train.Feature(**{kind: cls(value=[value])})
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString())


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (dict(image=bytes(47), label=0, index=100, part=b"train"), "an image has 47 bytes, and images of shape"),
        (dict(image=bytes(96), label=0, index=100, part=b"train"), "an image has 96 bytes"),
        (dict(image=bytes(48), label=0, index=100, part=b"\xff"), r"examples of the \\xff split"),
        (dict(image=bytes(48), label=0, part=b"train"), "index"),
        (dict(image=7, label=0, index=100, part=b"train"), "image"),
        (dict(image=bytes(48), label=0, index=2**62, part=b"train"), "no example of 10 of the 10 training images"),
    ],
)
def test_shards_with_other_content(store, tmp_path, features, said):
    attack = store()
    for name in (shard_name(number, 3) for number in range(3)):
        write_example(tmp_path / name, **features)
    assert re.search(said, refusal(attack))


def test_shards_without_examples(store, tmp_path):
    attack = store()
    for name in (shard_name(number, 3) for number in range(3)):
        (tmp_path / name).write_bytes(b"")
    assert "holds no example; hint: make them again with `craft-dataset`" in refusal(attack)


@given(
    arrays.arrays(np.uint8, (1, 2, 2, 3)),
    arrays.arrays(np.float32, (1, 2, 2, 3), elements=st.floats(-0.25, 0.25, width=32)),
)
def test_whole_levels_stay_within_what_was_crafted(clean, change):
    adversarial = np.clip(clean.astype(np.float32) / 255 + change, 0, 1)
    exact = 255 * adversarial.astype(np.float64) - clean
    cut = whole_levels(clean, adversarial).astype(int) - clean
    assert np.all(np.abs(cut) <= np.abs(exact) + 1e-4) and np.all(np.abs(cut) > np.abs(exact) - 1)
    assert np.all((cut == 0) | (np.sign(cut) == np.sign(exact)))


@given(arrays.arrays(np.uint8, (1, 2, 2, 3)), arrays.arrays(np.uint8, (1, 2, 2, 3)))
def test_what_is_whole_already_is_kept(clean, adversarial):
    np.testing.assert_array_equal(whole_levels(clean, adversarial.astype(np.float32) / 255), adversarial)
