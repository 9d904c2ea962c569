"""Sources of images: the digits of scikit-learn, TensorFlow Datasets, a folder, or arrays. One seed fixes splits."""

import contextlib
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_rcl.data.array_files import ArraySplit, read_npz
from keras_rcl.data.images import decode, image_files, is_greyscale, is_hidden, open_image, resized, upright_size
from keras_rcl.data.splits import ImageData, SourceSplit, Split, StreamedSplit, gathered, stratified
from keras_rcl.data.streaming import load_streamed
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


def load(dataset: Dataset) -> ImageData:
    """Load a data set and divide it.

    Args:
        dataset: its name, place, size and splits.

    Returns:
        The three splits; `validation` is empty where `validation_fraction` is 0.

    Raises:
        InvalidInputError: if there is no such data set, it cannot be downloaded, it has no images with labels, or an
            image is corrupt.
    """
    if dataset.streamed:
        with _quiet_logs(), readable(dataset.name):
            return load_streamed(dataset)
    with _reading(dataset):
        return divided(dataset, open_source(dataset))


def open_source(dataset: Dataset) -> SourceData:
    """Return what a data set holds: all labels, and images that are read when they are needed.

    Raises:
        InvalidInputError: as of `load`.
    """
    source = {"digits": _digits, "folder": _folder, "arrays": _arrays}.get(dataset.name, tfds_splits)
    with _reading(dataset):
        found = SourceData(*source(dataset))
    for split in filter(None, (found.train, found.validation, found.test)):
        if wrong := [int(label) for label in split.labels if not 0 <= label < len(found.class_names)]:
            classes = f"its {len(found.class_names)} classes"
            raise InvalidInputError(f"{dataset.name}: label {wrong[0]} is outside {classes}; mend the data set")
    return found


@contextlib.contextmanager
def _reading(dataset: Dataset):
    """Hide the logs of libraries, and report what fails in TFDS in one line."""
    with _quiet_logs(), contextlib.nullcontext() if dataset.name in SOURCES else readable(dataset.name):
        yield


def divided(dataset: Dataset, source: SourceData) -> ImageData:
    """Hold out the validation split, and the test split if there is none, each stratified; then apply the limit.

    Only the images that are kept are read. What is held out depends on `split_seed` alone, not on the limit. A source's
    own validation split is taken whole, unless the fraction is 0.
    """
    class_names, train, test, validation = source
    rng = np.random.default_rng(dataset.split_seed)

    def hold_out(pool: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        held = pool[stratified(train.labels[pool], round(fraction * len(pool)), rng)]
        return np.setdiff1d(pool, held), held

    def limited(split: SourceSplit, indices: np.ndarray) -> np.ndarray:
        size = min(dataset.limit or len(indices), len(indices))
        return indices[stratified(split.labels[indices], size, np.random.default_rng(dataset.split_seed))]

    def splits_of(split: SourceSplit, *chosen: np.ndarray) -> list[Split]:
        kept = np.sort(np.concatenate(chosen))
        images = split.read(kept)
        return [Split(images[np.searchsorted(kept, indices)], split.labels[indices], indices) for indices in chosen]

    pool, tested = np.arange(len(train.labels)), None
    if test is None:
        pool, tested = hold_out(pool, dataset.test_fraction)
    if validation is None:
        trained, validated = (limited(train, indices) for indices in hold_out(pool, dataset.validation_fraction))
    else:
        own = np.arange(len(validation.labels)) if dataset.validation_fraction else np.zeros(0, np.int64)
        trained, validated = limited(train, pool), limited(validation, own)
    tested = limited(test or train, np.arange(len(test.labels)) if test else tested)
    for name, indices in (("train", trained), ("test", tested)):
        if not len(indices):
            hint = "change dataset.validation_fraction or dataset.test_fraction"
            raise InvalidInputError(
                f"{dataset.name}: {len(train.labels)} images leave none for its {name} split; {hint}"
            )
    if validation is None:
        train_split, validation_split = splits_of(train, trained, validated)
    else:
        (train_split,), (validation_split,) = splits_of(train, trained), splits_of(validation, validated)
    (test_split,) = splits_of(test or train, tested)
    return ImageData(dataset.name, tuple(class_names), train_split, validation_split, test_split)


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

        return SourceSplit(np.repeat(np.arange(len(members)), [len(of_class) for of_class in members]), read)

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
