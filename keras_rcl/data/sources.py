"""Sources of images: the digits of scikit-learn, TensorFlow Datasets, a folder, or arrays. One seed fixes splits."""

import contextlib
import dataclasses
import functools
import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_rcl.data.array_files import ArraySplit, read_npz
from keras_rcl.data.images import decode, image_files, is_greyscale, is_hidden, open_image, resized, upright_size
from keras_rcl.data.splits import (
    SPLITS,
    ImageData,
    OnDemand,
    SourceSplit,
    Split,
    StreamedSplit,
    gathered,
    stratified,
)
from keras_rcl.data.streaming import SAMPLE, load_streamed, streamed_files
from keras_rcl.data.tfds_sets import readable, tfds_splits
from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.atomic import check_storable
from keras_rcl.vocabulary.dataset import Dataset

__all__ = ["ImageData", "Split", "StreamedSplit", "load", "open_source", "stratified"]

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The name of a folder in lower case -> the split whose class folders it holds."""
SOURCES = ("digits", "folder", "arrays")
"""The sources beside TFDS."""

LAYOUTS = "one sub-folder per class, or train/, val/ and test/ with such sub-folders"


class SourceData(NamedTuple):
    """What a source holds: the class names, and its own splits.

    Attributes:
        class_names: K names.
        train: From which the splits that are None are held out.
        test: Its own test split.
        validation: Its own validation split.
    """

    class_names: list[str]
    train: SourceSplit
    test: SourceSplit | None = None
    validation: SourceSplit | None = None


def load(dataset: Dataset, part: str | None = None) -> ImageData:
    """Load a data set and divide it.

    Args:
        dataset: its name, place, size and splits.
        part: the split that is read now; any other is read when it is first needed. None: all splits are read.

    Returns:
        The three splits; `validation` is empty where `validation_fraction` is 0.

    Raises:
        InvalidInputError: if there is no such data set, it cannot be downloaded, it has no images with labels, or an
            image is corrupt.
    """
    if dataset.streamed and dataset.name not in SOURCES:
        with _quiet_logs(), readable(dataset.name):
            return load_streamed(dataset)
    with _reading(dataset):
        source = _opened(dataset)
        if dataset.streamed:
            return _with_streamed_training(dataset, source)
        if part is None:
            return divided(dataset, source)
    division = _Division(dataset, source)

    def read(name: str) -> Split:
        with _reading(dataset):
            return division.read(name)[name]

    data = OnDemand(dataset.name, tuple(source.class_names), read)
    getattr(data, part)
    return data


def open_source(dataset: Dataset) -> SourceData:
    """Return what a data set holds: all labels, and images that are read when they are needed.

    Raises:
        InvalidInputError: as of `load`.
    """
    with _reading(dataset):
        found = _opened(dataset)
        for split in filter(None, (found.train, found.validation, found.test)):
            _check_labels(dataset, found, split)
    return found


def _opened(dataset: Dataset) -> SourceData:
    """What a data set holds; labels that are read when they are needed are not checked."""
    source = {"digits": _digits, "folder": _folder, "arrays": _arrays}.get(dataset.name, tfds_splits)
    return SourceData(*source(dataset))


def _check_labels(dataset: Dataset, source: SourceData, split: SourceSplit) -> None:
    """Raise InvalidInputError if a label is outside the classes."""
    wrong = split.labels[(split.labels < 0) | (split.labels >= len(source.class_names))]
    if len(wrong):
        classes = f"its {len(source.class_names)} classes"
        raise InvalidInputError(f"{dataset.name}: label {wrong[0]} is outside {classes}; mend the data set")


@contextlib.contextmanager
def _reading(dataset: Dataset):
    """Hide the logs of libraries, and report what fails in TFDS in one line."""
    with _quiet_logs(), contextlib.nullcontext() if dataset.name in SOURCES else readable(dataset.name):
        yield


def divided(dataset: Dataset, source: SourceData) -> ImageData:
    """Hold out the validation split, and the test split if there is none, each stratified; then apply the limit.

    Only the images that are kept are read. What is held out, and which labels are noisy, depends on `split_seed` alone,
    not on the limit. A source's own validation split is taken whole, unless the fraction is 0.
    """
    return ImageData(dataset.name, tuple(source.class_names), **_Division(dataset, source).read(*SPLITS))


def _with_streamed_training(dataset: Dataset, source: SourceData) -> ImageData:
    """`divided`, with at most `held_images` of each split in memory; without a limit, training images are streamed."""
    limited = dataclasses.replace(dataset, limit=dataset.limit or dataset.held_images)
    division = _Division(limited, source)
    data = ImageData(dataset.name, tuple(source.class_names), **division.read(*SPLITS))
    if dataset.limit:
        return data
    train = streamed_files(source.train, division.indices("train"), data.train.held.limited(SAMPLE), dataset)
    return dataclasses.replace(data, train=train)


class _Division:
    """How `divided` divides a source; splits can be read one by one."""

    def __init__(self, dataset: Dataset, source: SourceData):
        self.dataset, self.source = dataset, source

    def read(self, *names: str) -> dict[str, Split]:
        """Read splits by name.

        Raises:
            InvalidInputError: If the train or the test split is empty, or a label is outside the classes.
        """
        own = {name: getattr(self.source, name) or self.source.train for name in names}
        for split in dict.fromkeys(own.values()):
            _check_labels(self.dataset, self.source, split)
        chosen = {name: self._limited(split, self.indices(name)) for name, split in own.items()}
        for name in ("train", "test"):
            if name in chosen and not len(chosen[name]):
                hint = "change dataset.validation_fraction or dataset.test_fraction"
                raise InvalidInputError(
                    f"{self.dataset.name}: {len(self.source.train.labels)} images leave none for its {name} split; "
                    f"{hint}"
                )
        found = {}
        for split in dict.fromkeys(own.values()):
            of_split = {name: indices for name, indices in chosen.items() if own[name] is split}
            kept = np.sort(np.concatenate([*of_split.values()]))
            images = split.read(kept)
            for name, indices in of_split.items():
                labels = self._noisy(split.labels) if name == "train" else split.labels
                found[name] = Split(images[np.searchsorted(kept, indices)], labels[indices], indices)
        return found

    def _noisy(self, labels: np.ndarray) -> np.ndarray:
        """The labels of the source's train split; `label_noise` of those of training images are of another class."""
        rng, classes = np.random.default_rng([self.dataset.split_seed, 1]), len(self.source.class_names)
        training = self.indices("train")
        wrong = rng.choice(training, round(self.dataset.label_noise * len(training)), replace=False)
        labels = labels.copy()
        labels[wrong] = (labels[wrong] + rng.integers(1, max(2, classes), len(wrong))) % classes
        return labels

    def indices(self, name: str) -> np.ndarray:
        """The images of a split, without the limit."""
        own = getattr(self.source, name)
        if own is None or name == "train":
            return self._of_train[name]
        taken = name == "test" or self.dataset.validation_fraction
        return np.arange(len(own.labels)) if taken else np.zeros(0, np.int64)

    @functools.cached_property
    def _of_train(self) -> dict[str, np.ndarray]:
        """The images of the source's train split, divided among the splits that it has not itself."""
        labels, rng = self.source.train.labels, np.random.default_rng(self.dataset.split_seed)
        found = {"train": np.arange(len(labels))}
        for name, fraction in (
            ("test", self.dataset.test_fraction),
            ("validation", self.dataset.validation_fraction),
        ):
            if getattr(self.source, name) is None:
                pool = found["train"]
                found[name] = pool[stratified(labels[pool], round(fraction * len(pool)), rng)]
                found["train"] = np.setdiff1d(pool, found[name])
        return found

    def _limited(self, split: SourceSplit, indices: np.ndarray) -> np.ndarray:
        size = min(self.dataset.limit or len(indices), len(indices))
        return indices[stratified(split.labels[indices], size, np.random.default_rng(self.dataset.split_seed))]


def _sized(image: np.ndarray, image_size: int | None) -> np.ndarray:
    """An image uint8 [H, W, C], resized where a size is asked for."""
    return image if image_size is None else resized(image, image_size, image_size)


def _digits(dataset: Dataset) -> tuple[list[str], SourceSplit, None]:
    """1797 digits of 8x8 pixels, 0..16, from scikit-learn (a test set of UCI's optical recognition of digits)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]

    def read(indices: np.ndarray) -> np.ndarray:
        return gathered((_sized(image, dataset.image_size) for image in images[indices]), len(indices))

    return [str(name) for name in digits.target_names], SourceSplit(digits.target.astype(np.int64), read), None


def _arrays(dataset: Dataset) -> SourceData:
    """The arrays of an `.npz` file."""
    if dataset.data is None:
        raise InvalidInputError(
            "data set arrays names no file, as of arrays that were in memory; hint: give an .npz file by --data "
            "(dataset.data)"
        )
    path = Path(dataset.data).expanduser()
    check_storable(path)
    class_names, splits = read_npz(path)

    def split_of(split: ArraySplit) -> SourceSplit:
        def read(indices: np.ndarray) -> np.ndarray:
            return gathered((_sized(image, dataset.image_size) for image in split.images[indices]), len(indices))

        return SourceSplit(split.labels, read)

    return SourceData(class_names, **{name: split_of(split) for name, split in splits.items()})


# --- a folder ---------------------------------------------------------------------------------------------------------


def _folder(dataset: Dataset) -> SourceData:
    """A folder with one sub-folder per class, or with a folder of such sub-folders for each split."""
    if dataset.folder is None:
        raise InvalidInputError("dataset.folder is not given; name a folder with one sub-folder per class")
    root = Path(dataset.folder).expanduser()
    if not root.is_dir():
        raise InvalidInputError(f"dataset.folder {root} is not a folder; name one with {LAYOUTS}")
    check_storable(root)
    roots = _split_folders(root)
    class_names = _subfolders(roots["train"])
    if len(class_names) < 2:
        raise InvalidInputError(
            f"{roots['train']} has {len(class_names)} class folders, at least 2 are needed; give {LAYOUTS}"
        )
    for name in class_names:
        check_storable(roots["train"] / name)
    for other in roots.values():
        if _subfolders(other) != class_names:
            raise InvalidInputError(f"{roots['train']} and {other} have different class folders; give both the same")
    files = {split: [_class_files(folder / name) for name in class_names] for split, folder in roots.items()}

    sizes, greyscale = set(), True
    for path in (path for split in files.values() for members in split for path in members):
        with open_image(path) as image:
            sizes.add(upright_size(image))
            greyscale = greyscale and is_greyscale(image)
        if len(sizes) > 1 and dataset.image_size is None:
            raise InvalidInputError(f"{path} is of another size than the images before it; set dataset.image_size")

    def split_of(members: list[list[Path]]) -> SourceSplit:
        paths = [path for of_class in members for path in of_class]
        channels = 1 if greyscale else 3

        def read(indices: np.ndarray) -> np.ndarray:
            chosen = (paths[index] for index in indices)
            decoded = (_sized(decode(open_image(path), path, channels), dataset.image_size) for path in chosen)
            return gathered(decoded, len(indices))

        def identity() -> str:
            """Names all files, with their sizes."""
            listed = ("\0".join([str(path.relative_to(root)), str(path.stat().st_size)]) for path in paths)
            return f"{root.name} {hashlib.sha256(chr(10).join(listed).encode(errors='surrogateescape')).hexdigest()}"

        labels = np.repeat(np.arange(len(members)), [len(of_class) for of_class in members])
        return SourceSplit(labels, read, identity)

    return SourceData(class_names, **{split: split_of(members) for split, members in files.items()})


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> the folder of its class folders; `train` is the root itself if the root has no folders of splits.

    Without a test folder the validation folder is the test split, as for data sets of TFDS.
    """
    found: dict[str, Path] = {}
    others = []
    for name in _subfolders(root):
        split = SPLIT_FOLDERS.get(name.lower())
        if split is None:
            others.append(name)
        elif split in found:
            raise InvalidInputError(f"{root} has {found[split].name} and {name}, which are one split; merge them")
        else:
            found[split] = root / name
    names = " and ".join(folder.name for folder in found.values())
    if others and len(found) < 2:  # a class may be called train
        return {"train": root}
    if others:
        raise InvalidInputError(f"{root} has {names} beside {others[0]}; give {LAYOUTS}")
    if found and "train" not in found:
        raise InvalidInputError(f"{root} has {names} and no train folder; give {LAYOUTS}")
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return found or {"train": root}


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _class_files(folder: Path) -> list[Path]:
    """The image files of one class, with those of its sub-folders, sorted."""
    files = image_files(folder)
    if not files:
        raise InvalidInputError(f"{folder} holds no PNG, JPEG or other image; add some, or give {LAYOUTS}")
    return files


@contextlib.contextmanager
def _quiet_logs():
    """Hide warnings of TFDS and urllib3 from the user, who gets one line instead."""
    loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
