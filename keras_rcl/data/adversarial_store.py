"""Adversarial examples on disk: made once from one split of a data set, trained on as they are."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_rcl.data.splits import ImageData, Split, StreamedSplit
from keras_rcl.data.tfdata_options import untuned
from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.kinds import EXAMPLES
from keras_rcl.vocabulary.attacks import Attack, Stored
from keras_rcl.vocabulary.threat import format_epsilon, parse_pixels

FORMAT = 1
RECORD = "examples.json"
"""The record of the folder, beside its shards: the attack, the model, the data set and its split."""
ROUNDING = 1e-4
"""In grey levels: rounding of float32 pixels makes a change appear smaller by less than this."""

_FEATURES = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "label": tf.io.FixedLenFeature([], tf.int64),
    "index": tf.io.FixedLenFeature([], tf.int64),
    "part": tf.io.FixedLenFeature([], tf.string),
}


def whole_levels(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """Adversarial images as the bytes that a picture has.

    Each change is cut to whole grey levels toward the clean image, so that the bytes are in every ball and box that
    the floats were in.

    Args:
        clean: uint8 [N, H, W, C].
        adversarial: float32 [N, H, W, C] in [0, 1].

    Returns:
        uint8 [N, H, W, C].
    """
    change = 255.0 * adversarial.astype(np.float64) - clean
    return (clean + np.sign(change) * np.floor(np.abs(change) + ROUNDING)).astype(np.uint8)


def write_shard(path: Path, examples: Split, split: str) -> None:
    """Write a TFRecord file of examples with the features `image` (its bytes), `label`, `index` and `part`.

    Args:
        path: of the file.
        examples: adversarial images, with the labels and indices of the images that they were made from.
        split: `train`, `validation` or `test`, where those images are from; stored as `part`.
    """
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image, label, index in zip(examples.images, examples.labels, examples.indices, strict=True):
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                "index": tf.train.Feature(int64_list=tf.train.Int64List(value=[index])),
                "part": tf.train.Feature(bytes_list=tf.train.BytesList(value=[split.encode()])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def shard_name(number: int, count: int) -> str:
    return f"adversarial-{number:05d}-of-{count:05d}.tfrecord"


def with_stored(data: ImageData, attacks: Iterable[Attack]) -> ImageData:
    """The same data, with the stored examples that these attacks name in its training split.

    Raises:
        InvalidInputError: if a folder holds no examples; if they are from another split, another data set, other images
            or another ball; or if some training images have none.
    """
    attacks = [attack for attack in attacks if attack.name == "stored"]
    if not attacks:
        return data
    if isinstance(data.train, StreamedSplit):
        streamed = data.train
        files = {attack.folder: _shards(attack, data, streamed) for attack in attacks}
        identity = "; ".join([streamed.identity, *(f"{attack.folder} {_hash(attack)}" for attack in attacks)])
        return dataclasses.replace(data, train=dataclasses.replace(streamed, identity=identity, stored=files))
    stored = {attack.folder: _examples(attack, data, data.train) for attack in attacks}
    return dataclasses.replace(data, train=dataclasses.replace(data.train, stored=stored))


def _hash(attack: Stored) -> str:
    """Of the record of the stored examples, which has the model, the attack and the sizes of the shards."""
    return hashlib.sha256((Path(attack.folder).expanduser() / RECORD).read_bytes()).hexdigest()


def _shards(attack: Stored, data: ImageData, train: StreamedSplit) -> tuple[str, ...]:
    """The file of examples beside each piece of a streamed split.

    Their order is that of the records in the files of the data set. The sizes of the files and the first example of
    each are compared.
    """
    folder, record = _checked_record(attack, data)
    beside = record.get("streamed")
    if beside is None or beside["identity"] != train.identity or tuple(beside["image_shape"]) != data.image_shape:
        raise InvalidInputError(
            f"{folder} holds no examples of the files that training streams; hint: craft them with the data set's "
            "fields as they are in training"
        )
    paths = [folder / shard for shard in record["shards"]]
    if not len(paths) == len(beside["sizes"]) == len(train.pieces):
        raise InvalidInputError(f"{folder / RECORD}: the number of shards is not that of the data set's files")
    for number, (path, size) in enumerate(zip(paths, beside["sizes"], strict=True)):
        if not path.is_file() or path.stat().st_size != size:
            raise InvalidInputError(f"{path} is missing or cut; hint: {EXAMPLES.hint}")
        clean, first = train.read(number, 0, 1), _read(folder, [path.name], data.image_shape, limit=1)
        _check_examples(folder, attack, first.images, first.labels, clean)
    return tuple(map(str, paths))


def decode_example(record: tf.Tensor, shape: tf.TensorShape, label: tf.Tensor) -> tf.Tensor:
    """A stored example, uint8 [H, W, C], of an image with this shape and label."""
    read = tf.io.parse_single_example(record, _FEATURES)
    message = "a stored example has another label than its image; craft the examples again"
    with tf.control_dependencies([tf.debugging.assert_equal(tf.cast(read["label"], label.dtype), label, message)]):
        return tf.reshape(tf.io.decode_raw(read["image"], tf.uint8), shape)


def _checked_record(attack: Stored, data: ImageData) -> tuple[Path, Any]:
    """The folder of the examples and its record, which fits the training's data set and ball."""
    folder = Path(attack.folder).expanduser()
    record = EXAMPLES.read(folder / RECORD)
    split, source = record["data"]["part"], record["data"]["name"]
    if split != "train":
        raise _leak(folder, split)
    if source != data.name:
        raise InvalidInputError(
            f"{folder} holds examples of {source}, and the training is on {data.name}; craft them of that"
        )
    norm, epsilon = record["attack"]["norm"], _epsilon(record["attack"]["epsilon"], folder / RECORD)
    ball = f"{norm} {format_epsilon(epsilon, norm)}"
    if (norm, epsilon) != (attack.norm, attack.epsilon):
        raise InvalidInputError(
            f"{folder} holds examples of {ball}, and the training asks for {attack.norm} "
            f"{format_epsilon(attack.epsilon, attack.norm)}; set norm and epsilon of the stored attack to those"
        )
    return folder, record


def _examples(attack: Stored, data: ImageData, clean: Split) -> np.ndarray:
    """The stored example of each training image, uint8 [N, H, W, C], in their order."""
    folder, record = _checked_record(attack, data)
    found = _read(folder, record["shards"], data.image_shape)
    place = {int(index): position for position, index in enumerate(found.indices)}
    if missing := sum(int(index) not in place for index in clean.indices):
        raise InvalidInputError(
            f"{folder} has no example of {missing} of the {len(clean.indices)} training images; "
            "craft them with the data set's fields as they are in training"
        )
    chosen = np.array([place[int(index)] for index in clean.indices])
    images = found.images[chosen]
    _check_examples(folder, attack, images, found.labels[chosen], clean)
    return images


def _check_examples(folder: Path, attack: Stored, images: np.ndarray, labels: np.ndarray, clean: Split) -> None:
    """Raise InvalidInputError if examples have other labels than their images, or are outside the ball."""
    if (labels != clean.labels).any() or _distance(images, clean.images, attack.norm) > 255 * attack.epsilon + ROUNDING:
        raise InvalidInputError(
            f"{folder} holds examples that are not within {attack.norm} {format_epsilon(attack.epsilon, attack.norm)} "
            "of the training images, or labelled otherwise; craft them again"
        )


def _read(folder: Path, shards: Sequence[str], shape: tuple[int, int, int], limit: int = -1) -> Split:
    """The first `limit` examples of each shard; all if negative.

    Raises:
        InvalidInputError: if one is damaged, or from another split than training.
    """
    images, labels, indices = [], [], []
    for shard in shards:
        path = folder / shard
        try:
            for batch in tf.data.TFRecordDataset(str(path)).take(limit).batch(1024).with_options(untuned()):
                read = tf.io.parse_example(batch, _FEATURES)
                for split in np.unique(read["part"].numpy()):
                    if split != b"train":
                        raise _leak(folder, split.decode(errors="backslashreplace"))
                sizes = tf.strings.length(read["image"]).numpy()
                if (sizes != np.prod(shape)).any():
                    raise InvalidInputError(
                        f"{path}: an image has {sizes[sizes != np.prod(shape)][0]} bytes, and images of shape {shape} "
                        f"have {np.prod(shape)}; hint: {EXAMPLES.hint}"
                    )
                images.append(tf.reshape(tf.io.decode_raw(read["image"], tf.uint8), [-1, *shape]).numpy())
                labels.append(read["label"].numpy())
                indices.append(read["index"].numpy())
        except tf.errors.OpError as error:
            reason = (error.message or type(error).__name__).splitlines()[0]
            raise InvalidInputError(f"{path} cannot be read: {reason}; hint: {EXAMPLES.hint}") from None
    if not images:
        raise InvalidInputError(f"{folder} holds no example; hint: {EXAMPLES.hint}")
    return Split(*map(np.concatenate, (images, labels, indices)))


def _epsilon(stored: str | float, path: Path) -> float:
    """The radius that a record holds."""
    try:
        return parse_pixels(stored)
    except ValueError as error:
        raise InvalidInputError(f"{path}: attack.epsilon: {error}; hint: {EXAMPLES.hint}") from None


def _leak(folder: Path, split: str) -> InvalidInputError:
    return InvalidInputError(
        f"{folder} holds examples of the {split} split; training on them would leak it; craft those of --split train"
    )


def _distance(images: np.ndarray, clean: np.ndarray, norm: str) -> float:
    """The largest distance of an image from its clean one, in grey levels."""
    largest = 0.0
    for start in range(0, len(clean), 1024):
        chosen = slice(start, start + 1024)
        change = (images[chosen].astype(np.float64) - clean[chosen]).reshape(len(clean[chosen]), -1)
        lengths = np.linalg.norm(change, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
        largest = max(largest, float(lengths.max()))
    return largest
