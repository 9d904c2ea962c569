"""Where images come from: the digits of scikit-learn, TensorFlow Datasets, or a folder. Parts are fixed by one seed."""

import contextlib
import difflib
import functools
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_rcl.data.images import decode, is_greyscale, open_image, resized
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.word import Refused

FOLDER_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class Part:
    """One part of a data set.

    Fields:
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        indices: int64 [N], the position in the data set's own split (in the whole data set where it has only one).
        stored: by their folder, adversarial examples of the images, uint8 [N, H, W, C].
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    stored: dict[str, np.ndarray] = field(default_factory=dict)

    @functools.cached_property
    def tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Images uint8 [N, H, W, C] and labels int32 [N] in the host's memory, once for all who draw from them."""
        with tf.device("CPU"):
            return tf.constant(self.images), tf.constant(self.labels, tf.int32)

    def limited(self, limit: int | None) -> "Part":
        """At most `limit` images, class balance kept, always the same ones; all where `limit` is None."""
        if limit is None or limit >= len(self.labels):
            return self
        kept = _stratified(self.labels, limit, np.random.default_rng(0))
        stored = {folder: examples[kept] for folder, examples in self.stored.items()}
        return Part(self.images[kept], self.labels[kept], self.indices[kept], stored)


@dataclass(frozen=True)
class ImageData:
    """A labelled image data set in its three disjoint parts."""

    name: str
    class_names: tuple[str, ...]
    train: Part
    validation: Part
    test: Part

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.train.images.shape[1:]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [C] of the training pixels in [0, 1]; 1 for a channel that never varies."""
        values = np.arange(256) / 255
        channels = np.moveaxis(self.train.images, -1, 0)
        shares = np.stack([np.bincount(channel.ravel(), minlength=256) / channel.size for channel in channels])
        mean = shares @ values
        variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
        constant = np.count_nonzero(shares, axis=1) == 1
        return mean, np.where(constant, 1.0, np.sqrt(variance))


def load(dataset: Dataset) -> ImageData:
    """Load a data set and divide it.

    Args:
        dataset: its name, place, size and parts.

    Returns:
        The three parts; `validation` is empty where `validation_fraction` is 0.

    Raises:
        Refused: no such data set, not to be had without a network, not of images with labels, or a corrupt image.
    """
    source = {"digits": _digits, "folder": _folder}.get(dataset.name, _tfds)
    with _quiet_logs():
        class_names, train, test = source(dataset)
        for split in filter(None, (train, test)):
            if wrong := [int(label) for label in split.labels if not 0 <= label < len(class_names)]:
                classes = f"its {len(class_names)} classes"
                raise Refused(f"{dataset.name}: label {wrong[0]} is outside {classes}: mend the data set")
        return _divide(dataset, class_names, train, test)


@dataclass(frozen=True)
class _Split:
    """One of a data set's own splits: all its labels, and its images on demand.

    Fields:
        labels: int64 [N].
        read: indices, ascending -> images uint8 [len(indices), H, W, C].
    """

    labels: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]


def _divide(dataset: Dataset, class_names: list[str], train: _Split, test: _Split | None) -> ImageData:
    """Hold out the validation part, and the test part where there is none, each stratified; then keep the limit.

    Only the images that are kept are read. What is held out depends on `split_seed` alone, not on the limit.
    """
    rng = np.random.default_rng(dataset.split_seed)

    def hold_out(pool: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        held = pool[_stratified(train.labels[pool], round(fraction * len(pool)), rng)]
        return np.setdiff1d(pool, held), held

    def limited(split: _Split, indices: np.ndarray) -> np.ndarray:
        size = min(dataset.limit or len(indices), len(indices))
        return indices[_stratified(split.labels[indices], size, np.random.default_rng(dataset.split_seed))]

    def parts(split: _Split, *chosen: np.ndarray) -> list[Part]:
        kept = np.sort(np.concatenate(chosen))
        images = split.read(kept)
        return [Part(images[np.searchsorted(kept, indices)], split.labels[indices], indices) for indices in chosen]

    pool, tested = np.arange(len(train.labels)), None
    if test is None:
        pool, tested = hold_out(pool, dataset.test_fraction)
    trained, validated = (limited(train, indices) for indices in hold_out(pool, dataset.validation_fraction))
    tested = limited(test or train, np.arange(len(test.labels)) if test else tested)
    for name, indices in (("train", trained), ("test", tested)):
        if not len(indices):
            cure = "change dataset.validation_fraction or dataset.test_fraction"
            raise Refused(f"{dataset.name}: {len(train.labels)} images leave none for its {name} part: {cure}")
    train_part, validation_part = parts(train, trained, validated)
    (test_part,) = parts(test or train, tested)
    return ImageData(dataset.name, tuple(class_names), train_part, validation_part, test_part)


def _stratified(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Choose `size` positions at random, ascending, with the classes in the proportions of `labels`.

    Each class has its share rounded down; what is left goes to the largest remainders (Hamilton's method).
    """
    if not size:
        return np.zeros(0, np.int64)
    classes, counts = np.unique(labels, return_counts=True)
    quota, remainder = np.divmod(size * counts, len(labels))
    quota[np.argsort(-remainder, kind="stable")[: size - quota.sum()]] += 1
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
    return np.sort(np.concatenate([member[:share] for member, share in zip(members, quota, strict=True)]))


def _sized(image: np.ndarray, image_size: int | None) -> np.ndarray:
    """An image uint8 [H, W, C], resized where a size is asked for."""
    return image if image_size is None else resized(image, image_size, image_size)


def _digits(dataset: Dataset) -> tuple[list[str], _Split, None]:
    """1797 digits of 8x8 pixels, 0..16, from scikit-learn (a test set of UCI's optical recognition of digits)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]

    def read(indices: np.ndarray) -> np.ndarray:
        return _gather((_sized(image, dataset.image_size) for image in images[indices]), len(indices))

    return [str(name) for name in digits.target_names], _Split(digits.target.astype(np.int64), read), None


def _gather(images, count: int) -> np.ndarray:
    """Collect `count` images uint8 [H, W, C] of one shape in one array, without holding them twice."""
    gathered = np.zeros((0, 1, 1, 1), np.uint8)
    for position, image in enumerate(images):
        if not position:
            gathered = np.empty((count, *image.shape), np.uint8)
        gathered[position] = image
    return gathered


# --- a folder ---------------------------------------------------------------------------------------------------------


def _folder(dataset: Dataset) -> tuple[list[str], _Split, _Split | None]:
    """A folder with a sub-folder a class, or with `train` and `test` folders of such sub-folders."""
    if dataset.folder is None:
        raise Refused("dataset.folder is not given: name a folder with a sub-folder a class")
    root = Path(dataset.folder).expanduser()
    if not root.is_dir():
        raise Refused(f"dataset.folder {root} is not a folder: name one with a sub-folder a class")
    roots = [root]
    if {"train", "test"} == set(_subfolders(root)):
        roots = [root / "train", root / "test"]
    class_names = _subfolders(roots[0])
    if len(class_names) < 2:
        raise Refused(f"{roots[0]} has {len(class_names)} class folders, at least 2 are needed: one sub-folder a class")
    if _subfolders(roots[-1]) != class_names:
        raise Refused(f"{roots[0]} and {roots[-1]} have different class folders: give both the same")
    files = [[_class_files(folder / name) for name in class_names] for folder in roots]

    sizes, greyscale = set(), True
    for path in (path for split in files for members in split for path in members):
        with open_image(path) as image:
            sizes.add(image.size)
            greyscale = greyscale and is_greyscale(image)
        if len(sizes) > 1 and dataset.image_size is None:
            raise Refused(f"{path} is of another size than the images before it: set dataset.image_size")

    def split_of(members: list[list[Path]]) -> _Split:
        paths = [path for of_class in members for path in of_class]
        channels = 1 if greyscale else 3

        def read(indices: np.ndarray) -> np.ndarray:
            chosen = (paths[index] for index in indices)
            decoded = (_sized(decode(open_image(path), path, channels), dataset.image_size) for path in chosen)
            return _gather(decoded, len(indices))

        return _Split(np.repeat(np.arange(len(members)), [len(of_class) for of_class in members]), read)

    splits = [split_of(members) for members in files]
    return class_names, splits[0], splits[1] if len(splits) > 1 else None


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_files(folder: Path) -> list[Path]:
    """The image files of one class, sorted by name."""
    files = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in FOLDER_SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise Refused(f"{folder} holds no PNG, JPEG or BMP image: add some or remove this class")
    return files


# --- TensorFlow Datasets ----------------------------------------------------------------------------------------------


def _tfds(dataset: Dataset) -> tuple[list[str], _Split, _Split | None]:
    """An image classification data set of TFDS in its official splits.

    The test part is its `test` split, else its `validation` split (ImageNet's test labels are not public).
    """
    builder = _builder(dataset)
    image_key, label_key = _image_and_label(dataset, builder.info)
    if not builder.is_prepared():
        _prepare(dataset, builder)

    def split_of(name: str) -> _Split:
        labels = _read_labels(builder, name, label_key)
        return _Split(labels, lambda indices: _read_images(builder, name, image_key, indices, dataset.image_size))

    if "train" not in builder.info.splits:
        raise Refused(f"{dataset.name} has no train split, only {sorted(builder.info.splits)}: choose another data set")
    held_out = (split_of(name) for name in ("test", "validation") if name in builder.info.splits)
    test = next((split for split in held_out if (split.labels >= 0).any()), None)
    return builder.info.features[label_key].names, split_of("train"), test


def _data_dir(dataset: Dataset) -> str | None:
    """Where prepared data sets are; None is TFDS' own default."""
    place = dataset.data_dir or os.environ.get("TFDS_DATA_DIR")
    return place and str(Path(place).expanduser())


def _builder(dataset: Dataset):
    """The TFDS builder of a name."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    try:
        return tfds.builder(dataset.name, data_dir=_data_dir(dataset))
    except tfds.core.DatasetNotFoundError:
        close = difflib.get_close_matches(dataset.name, [*known, "digits", "folder"], n=1)
        meant = f"did you mean {close[0]}?" if close else "give digits, folder, or a name from tensorflow.org/datasets"
        raise Refused(f"no data set is called {dataset.name!r}: {meant}") from None
    except (
        Exception
    ) as error:  # TFDS raises AssertionError, ValueError, ImportError ... for versions and configurations
        raise Refused(f"dataset.name {dataset.name!r}: {_line(error)}") from None


def _image_and_label(dataset: Dataset, info) -> tuple[str, str]:
    """The keys of the image and its label."""
    import tensorflow_datasets as tfds

    keys = info.supervised_keys
    if not (keys and len(keys) == 2 and all(isinstance(key, str) for key in keys)):
        keys = ("image", "label")
    image, label = (info.features[key] if key in info.features else None for key in keys)
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise Refused(f"{dataset.name} is no image classification data set of TFDS: choose one with images and labels")
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise Refused(
            f"{dataset.name} has {image.np_dtype.__name__} images of shape {image.shape}: choose 8-bit grey or RGB ones"
        )
    if None in image.shape and dataset.image_size is None:
        raise Refused(f"{dataset.name} has images of varying size: set dataset.image_size")
    return keys


def _prepare(dataset: Dataset, builder) -> None:
    """Download and prepare a data set; what TFDS prints goes to stderr."""
    cure = "connect to the network, or name a folder that has it with --data-dir or TFDS_DATA_DIR"
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not _reachable(builder):
        raise Refused(f"{dataset.name} is not in {builder.data_path.parent} and cannot be downloaded: {cure}")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    except Exception as error:  # network, disk, checksums, missing manual downloads
        raise Refused(f"{dataset.name} could not be prepared ({_line(error)}): {cure}") from None


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


def _read_labels(builder, split: str, label_key: str) -> np.ndarray:
    """All labels int64 [N] of a split, without decoding an image."""
    import tensorflow_datasets as tfds

    decoders = tfds.decode.PartialDecoding({label_key: builder.info.features[label_key]})
    examples = builder.as_dataset(split=split, decoders=decoders, read_config=_read_config())
    found = [batch[label_key] for batch in examples.batch(1024).as_numpy_iterator()]
    return np.concatenate(found).astype(np.int64)


def _read_images(builder, split: str, image_key: str, indices: np.ndarray, image_size: int | None) -> np.ndarray:
    """The images uint8 [len(indices), H, W, C] at ascending positions of a split; only these are decoded."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    feature = builder.info.features[image_key]
    decoders = tfds.decode.PartialDecoding({image_key: feature}, decoders={image_key: tfds.decode.SkipDecoding()})
    wanted = np.zeros(builder.info.splits[split].num_examples, bool)
    wanted[indices] = True
    shape = feature.shape if image_size is None else (image_size, image_size, feature.shape[-1])

    def image_of(_, example: dict[str, tf.Tensor]) -> tf.Tensor:
        image = feature.decode_example(example[image_key])
        if image_size is not None:
            image = tf.numpy_function(resized, [image, image_size, image_size], tf.uint8, stateful=False)
        return tf.ensure_shape(image, shape)

    with tf.device("CPU"):
        wanted = tf.constant(wanted)
        examples = (
            builder.as_dataset(split=split, decoders=decoders, read_config=_read_config())
            .enumerate()
            .filter(lambda position, _: wanted[position])
            .map(image_of, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(256)
            .prefetch(tf.data.AUTOTUNE)
        )
        return _gather((image for batch in examples.as_numpy_iterator() for image in batch), len(indices))


def _read_config():
    """Read in the fixed order of the files."""
    import tensorflow_datasets as tfds

    return tfds.ReadConfig(try_autocache=False, add_tfds_id=False)


@contextlib.contextmanager
def _quiet_logs():
    """Keep TFDS' and urllib3's warnings from the user, who gets one line instead."""
    loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _line(error: Exception) -> str:
    """What an error says first, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
