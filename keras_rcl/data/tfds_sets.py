"""Image classification data sets of TensorFlow Datasets: found, prepared, read in the fixed order of their files."""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from keras_rcl.data.images import resized
from keras_rcl.data.splits import SourceSplit, gathered
from keras_rcl.data.tfdata_options import PARALLEL, PREFETCHED, as_written, untuned
from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.launcher import is_launched
from keras_rcl.vocabulary.dataset import Dataset

RECORDS = 256
"""Number of records that are parsed at once."""
BUFFER = 2**20
"""Bytes that are read of a file at once."""
FILES, BLOCK = 16, 16
"""Number of files that TFDS reads in turn, and of records of each: the order of the examples of a split."""


def tfds_splits(dataset: Dataset) -> tuple[list[str], SourceSplit, SourceSplit | None]:
    """An image classification data set of TFDS in its official splits.

    The test split is its `test` split, otherwise its `validation` split (ImageNet's test labels are not public).
    """
    builder, (image_key, label_key) = prepared(dataset)

    def split_of(name: str) -> SourceSplit:
        return SourceSplit(
            lambda: _read_labels(builder, name, label_key),
            lambda indices: _read_images(builder, name, image_key, indices, dataset.image_size),
        )

    held_out = (split_of(name) for name in ("test", "validation") if name in builder.info.splits)
    test = next((split for split in held_out if (split.labels >= 0).any()), None)
    return builder.info.features[label_key].names, split_of("train"), test


def prepared(dataset: Dataset):
    """The builder of a data set that lies prepared on disk and has a train split, and its image and label key."""
    builder = builder_of(dataset)
    keys = _image_and_label(dataset, builder.info)
    if not builder.is_prepared():
        _prepare(dataset, builder)
    if "train" not in builder.info.splits:
        raise InvalidInputError(
            f"{dataset.name} has no train split, only {sorted(builder.info.splits)}; choose another data set"
        )
    return builder, keys


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """A context in which files of a prepared data set are read; a damaged one is named in one line."""
    import tensorflow as tf

    try:
        yield
    except InvalidInputError:
        raise
    except (tf.errors.OpError, ValueError, LookupError, TypeError, AttributeError) as error:  # of TFDS and its files
        raise InvalidInputError(
            f"{name} cannot be read: {_line(error)[:300]}; hint: prepare the data set again"
        ) from error


def _data_dir(dataset: Dataset) -> str | None:
    """The folder of prepared data sets; None is TFDS' default."""
    place = dataset.data_dir or os.environ.get("TFDS_DATA_DIR")
    return place and str(Path(place).expanduser())


def builder_of(dataset: Dataset):
    """The TFDS builder of a name."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(dataset.name, data_dir=_data_dir(dataset))
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(dataset.name, [*known, "digits", "folder", "arrays"], n=1)
        meant = f"did you mean {close[0]}?" if close else "give digits, folder, or a name from tensorflow.org/datasets"
        raise InvalidInputError(f"no data set is called {dataset.name!r}; {meant}") from None
    except (
        Exception
    ) as error:  # TFDS raises AssertionError, ValueError, ImportError ... for versions and configurations
        raise InvalidInputError(f"dataset.name {dataset.name!r}: {_line(error)}") from None


def _image_and_label(dataset: Dataset, info) -> tuple[str, str]:
    """The keys of the image and its label."""
    import tensorflow_datasets as tfds

    keys = info.supervised_keys
    if not (keys and len(keys) == 2 and all(isinstance(key, str) for key in keys)):
        keys = ("image", "label")
    image, label = (info.features[key] if key in info.features else None for key in keys)
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise InvalidInputError(
            f"{dataset.name} is not an image classification data set of TFDS; choose one with images and labels"
        )
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise InvalidInputError(
            f"{dataset.name} has {image.np_dtype.__name__} images of shape {image.shape}; choose 8-bit grey or RGB ones"
        )
    if None in image.shape and dataset.image_size is None:
        raise InvalidInputError(f"{dataset.name} has images of varying size; set dataset.image_size")
    return keys


def _prepare(dataset: Dataset, builder) -> None:
    """Download and prepare a data set; what TFDS prints goes to stderr."""
    hint = "connect to the network, or name a folder that has it with --data-dir or TFDS_DATA_DIR"
    if is_launched():
        hint = "the processes of --workers have no network: prepare it with one process, or name a folder that has it"
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not _reachable(builder):
        raise InvalidInputError(f"{dataset.name} is not in {builder.data_path.parent} and cannot be downloaded; {hint}")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    except Exception as error:  # network, disk, checksums, missing manual downloads
        raise InvalidInputError(f"{dataset.name} could not be prepared ({_line(error)}); {hint}") from None


def _reachable(builder) -> bool:
    """Whether the first download answers. TFDS itself tries for minutes before it gives up."""
    import requests

    url = next((url for url in builder.url_infos or () if url.startswith("http")), None)
    try:
        if url:
            requests.get(url, stream=True, timeout=10).close()
    except requests.RequestException:
        return False
    return True


def examples(builder, split: str, keys: Sequence[str], chosen: np.ndarray | None = None):
    """The values of some keys in the examples of a split, as they are stored, in the fixed order of TFDS.

    Whole batches of records are parsed. TFDS itself calls a function for each record, which takes ten times as long.

    Args:
        builder: What `prepared` returned.
        split: Its name, or a part of it such as `train[:50]`.
        keys: Of features at the top level, of one value each.
        chosen: bool [N], the examples that are parsed; all of them if it is not given.

    Returns:
        A tf.data.Dataset of batches: key -> values [n].

    Raises:
        InvalidInputError: If the records are in another format than TFRecord.
    """
    import tensorflow as tf

    info = builder.info
    if info.file_format is None or info.file_format.value != "tfrecord":
        raise InvalidInputError(f"{info.name} is not prepared as TFRecords, which are read here; prepare it as those")
    pieces, features = info.splits[split], {key: info.features.tf_example_spec[key] for key in keys}
    # The place and the number of the records of each file.
    columns = zip(*((str(one.filename), one.skip, one.take) for one in pieces.file_instructions), strict=True)
    files, skips, takes = (tf.constant(column) for column in columns)

    def read(file: tf.Tensor, skip: tf.Tensor, take: tf.Tensor) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(file, buffer_size=BUFFER).skip(skip).take(take)

    def parsed(records: tf.Tensor, kept: tf.Tensor) -> dict[str, tf.Tensor]:
        return tf.io.parse_example(tf.boolean_mask(records, kept), features)

    turns = {"cycle_length": 1 if info.disable_shuffling else FILES, "block_length": BLOCK}
    if len(files) > 1:
        turns["num_parallel_calls"] = PARALLEL
    kept = np.ones(pieces.num_examples, bool) if chosen is None else chosen
    with tf.device("CPU"):
        records = (
            tf.data.Dataset.from_tensor_slices((files, tf.cast(skips, tf.int64), tf.cast(takes, tf.int64)))
            .interleave(as_written(read), **turns)
            .apply(tf.data.experimental.assert_cardinality(pieces.num_examples))
            .batch(RECORDS)
        )
        mask = tf.data.Dataset.from_tensor_slices(kept).batch(RECORDS)
        return tf.data.Dataset.zip(records, mask).map(as_written(parsed)).with_options(untuned())


def _read_labels(builder, split: str, label_key: str) -> np.ndarray:
    """All labels int64 [N] of a split, without decoding an image."""
    found = [batch[label_key] for batch in examples(builder, split, [label_key]).as_numpy_iterator()]
    return np.concatenate(found).astype(np.int64)


def _read_images(builder, split: str, image_key: str, indices: np.ndarray, image_size: int | None) -> np.ndarray:
    """The images uint8 [len(indices), H, W, C] at ascending positions of a split; only these are decoded."""
    import tensorflow as tf

    feature = builder.info.features[image_key]
    chosen = np.zeros(builder.info.splits[split].num_examples, bool)
    chosen[indices] = True
    shape = feature.shape if image_size is None else (image_size, image_size, feature.shape[-1])

    def image_of(example: dict[str, tf.Tensor]) -> tf.Tensor:
        image = feature.decode_example(example[image_key])
        if image_size is not None:
            image = tf.numpy_function(resized, [image, image_size, image_size], tf.uint8, stateful=False)
        return tf.ensure_shape(image, shape)

    with tf.device("CPU"):
        images = (
            examples(builder, split, [image_key], chosen)
            .unbatch()
            .map(as_written(image_of), num_parallel_calls=PARALLEL)
            .batch(256)
            .prefetch(PREFETCHED)
        )
        return gathered((image for batch in images.as_numpy_iterator() for image in batch), len(indices))


def _line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
