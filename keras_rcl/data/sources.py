"""Sources of images: the digits of scikit-learn, TensorFlow Datasets, or a folder. One seed fixes the splits."""

import contextlib
import logging
from pathlib import Path

import numpy as np

from keras_rcl.data.images import decode, is_greyscale, open_image, resized
from keras_rcl.data.splits import ImageData, SourceSplit, Split, StreamedSplit, gathered, stratified
from keras_rcl.data.streaming import load_streamed
from keras_rcl.data.tfds_sets import tfds_splits
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.dataset import Dataset

__all__ = ["ImageData", "Split", "StreamedSplit", "load"]

FOLDER_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


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
    source = {"digits": _digits, "folder": _folder}.get(dataset.name, tfds_splits)
    with _quiet_logs():
        if dataset.streamed:
            return load_streamed(dataset)
        class_names, train, test = source(dataset)
        for split in filter(None, (train, test)):
            if wrong := [int(label) for label in split.labels if not 0 <= label < len(class_names)]:
                classes = f"its {len(class_names)} classes"
                raise InvalidInputError(f"{dataset.name}: label {wrong[0]} is outside {classes}; mend the data set")
        return _divide(dataset, class_names, train, test)


def _divide(dataset: Dataset, class_names: list[str], train: SourceSplit, test: SourceSplit | None) -> ImageData:
    """Hold out the validation split, and the test split if there is none, each stratified; then apply the limit.

    Only the images that are kept are read. What is held out depends on `split_seed` alone, not on the limit.
    """
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
    trained, validated = (limited(train, indices) for indices in hold_out(pool, dataset.validation_fraction))
    tested = limited(test or train, np.arange(len(test.labels)) if test else tested)
    for name, indices in (("train", trained), ("test", tested)):
        if not len(indices):
            hint = "change dataset.validation_fraction or dataset.test_fraction"
            raise InvalidInputError(
                f"{dataset.name}: {len(train.labels)} images leave none for its {name} split; {hint}"
            )
    train_split, validation_split = splits_of(train, trained, validated)
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


# --- a folder ---------------------------------------------------------------------------------------------------------


def _folder(dataset: Dataset) -> tuple[list[str], SourceSplit, SourceSplit | None]:
    """A folder with one sub-folder per class, or with `train` and `test` folders of such sub-folders."""
    if dataset.folder is None:
        raise InvalidInputError("dataset.folder is not given; name a folder with one sub-folder per class")
    root = Path(dataset.folder).expanduser()
    if not root.is_dir():
        raise InvalidInputError(f"dataset.folder {root} is not a folder; name one with one sub-folder per class")
    roots = [root]
    if {"train", "test"} == set(_subfolders(root)):
        roots = [root / "train", root / "test"]
    class_names = _subfolders(roots[0])
    if len(class_names) < 2:
        raise InvalidInputError(
            f"{roots[0]} has {len(class_names)} class folders, at least 2 are needed; give one sub-folder per class"
        )
    if _subfolders(roots[-1]) != class_names:
        raise InvalidInputError(f"{roots[0]} and {roots[-1]} have different class folders; give both the same")
    files = [[_class_files(folder / name) for name in class_names] for folder in roots]

    sizes, greyscale = set(), True
    for path in (path for split in files for members in split for path in members):
        with open_image(path) as image:
            sizes.add(image.size)
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
        raise InvalidInputError(f"{folder} holds no PNG, JPEG or BMP image; add some or remove this class")
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
