"""Images and labels in an `.npz` file: its arrays by name become the splits of a data set."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from keras_rcl.data.pixel_units import to_pixels
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.labels import class_labels

IMAGES, LABELS = ("x", "images", "image"), ("y", "labels", "label")
SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
CLASS_NAMES = "class_names"
HINT = "name them x_train, y_train, x_test and y_test, or x and y"


class ArraySplit(NamedTuple):
    """One split of a file.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int64 [N].
    """

    images: np.ndarray
    labels: np.ndarray


def read_npz(path: Path) -> tuple[list[str], dict[str, ArraySplit]]:
    """Read the splits of an `.npz` file, and say on stderr in which unit its images are.

    The names of its arrays are `x_train`, `y_train`, and the same of `val` and `test`, or `x` and `y` for all images;
    also `images` and `labels` for `x` and `y`, and the split in front, as in `train_images`. `class_names` is optional.

    Returns:
        The names of the classes; and `train` with, if the file has them, `validation` and `test`. Floats are rounded to
        256 levels.

    Raises:
        InvalidInputError: If an array is missing, is not of images or of labels, or holds Python objects, which are
            never loaded.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(path.open("rb"))
        except FileNotFoundError:
            raise InvalidInputError(f"dataset.data {str(path)!r} does not exist; hint: give an .npz file") from None
        except OSError as error:
            raise InvalidInputError(f"dataset.data {str(path)!r}: {error.strerror}; hint: give an .npz file") from None
        return _read(path, _Archive(path, stream))


def _read(path: Path, arrays: "_Archive") -> tuple[list[str], dict[str, ArraySplit]]:
    pairs = dict(_pairs(arrays))
    if "train" not in pairs:
        held = ", ".join(arrays.names.values()) or "none"
        raise InvalidInputError(f"{path} has no training images and labels; it holds the arrays {held}; hint: {HINT}")
    names = _class_names(arrays, pairs["train"][1])
    splits, units = {}, {}
    for split, (x, y) in pairs.items():
        images, units[split] = _images(path, x, arrays[x])
        labels = _named(path, y, class_labels, arrays[y], count=len(images), class_names=names)
        splits[split] = ArraySplit(images, labels.astype(np.int64))
    shape = splits["train"].images.shape[1:]
    for split, (x, _) in pairs.items():
        if splits[split].images.shape[1:] != shape:
            raise InvalidInputError(
                f"{path}: {arrays.names[x]} holds images of shape {splits[split].images.shape[1:]}, and "
                f"{arrays.names[pairs['train'][0]]} of {shape}; hint: resize them"
            )
        if units[split] != units["train"]:
            raise InvalidInputError(
                f"{path}: {arrays.names[x]} is {units[split]}, and {arrays.names[pairs['train'][0]]} is "
                f"{units['train']}; hint: give all images in one unit"
            )
    count = max(int(split.labels.max()) for split in splits.values()) + 1
    names = names or [str(number) for number in range(count)]
    for split, (_, y) in pairs.items():
        _named(path, y, class_labels, splits[split].labels, len(names))
    sizes = ", ".join(f"{len(split.labels)} {name}" for name, split in splits.items())
    print(f"note: {path}: images are {units['train']}; {sizes}; {len(names)} classes", file=sys.stderr)
    return names, splits


class _Archive:
    """The arrays of an `.npz` file by their names in lower case, each read when it is needed.

    Attributes:
        names: Name in lower case -> name.
    """

    def __init__(self, path: Path, stream: BinaryIO):
        self._path = path
        try:
            self._file = np.load(stream, allow_pickle=False)
            self.names = {name.lower(): name for name in self._file.files}
        except Exception:  # np.load raises EOFError, ValueError, BadZipFile, OSError ... on other files
            raise InvalidInputError(
                f"dataset.data {str(path)!r} is not a readable .npz file; hint: write it with numpy.savez"
            ) from None

    def __getitem__(self, key: str) -> np.ndarray:
        name = self.names[key]
        try:
            return self._file[name]
        except Exception as error:
            held = "holds Python objects, which are never loaded" if "Object arrays" in str(error) else "is damaged"
            raise InvalidInputError(f"{self._path}: array {name} {held}; hint: save plain arrays of numbers") from None


def _pairs(arrays: _Archive) -> Iterator[tuple[str, tuple[str, str]]]:
    """Split -> the keys of its images and labels."""
    named = {split: _keys(arrays.names, spellings) for split, spellings in SPLITS.items()}
    if not any(images or labels for images, labels in named.values()):
        named["train"] = tuple([key for key in keys if key in arrays.names] for keys in (IMAGES, LABELS))
    for split, (images, labels) in named.items():
        for what, found, other in (("images", images, labels), ("labels", labels, images)):
            if len(found) > 1:
                both = " and ".join(arrays.names[key] for key in found)
                raise InvalidInputError(f"{arrays._path} has {both}, which are the same {what}; hint: keep one")
            if not found and other:
                raise InvalidInputError(
                    f"{arrays._path} has {arrays.names[other[0]]} without {what}; it holds the arrays "
                    f"{', '.join(arrays.names.values())}; hint: {HINT}"
                )
        if images:
            yield split, (images[0], labels[0])


def _class_names(arrays: _Archive, labels: str) -> list[str]:
    """The names of the classes that the file has, or labels that are text; empty if they are numbers."""
    source = CLASS_NAMES if CLASS_NAMES in arrays.names else labels
    values = arrays[source]
    if source == labels and values.dtype.kind not in "US":
        return []
    values = values.ravel() if source == CLASS_NAMES else np.unique(values)
    return [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in values.tolist()]


def _keys(names: Mapping[str, str], spellings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The keys of the images and of the labels of a split."""
    found = []
    for stems in (IMAGES, LABELS):
        keys = [key for stem in stems for split in spellings for key in (f"{stem}_{split}", f"{split}_{stem}")]
        found.append([key for key in keys if key in names])
    return found[0], found[1]


def _images(path: Path, key: str, values: np.ndarray) -> tuple[np.ndarray, str]:
    """Images uint8 [N, H, W, C], and their dtype and range."""
    values = values[..., None] if values.ndim == 3 else values
    if values.ndim != 4 or not values.size:
        raise InvalidInputError(f"{path}: array {key} has shape {values.shape}; hint: give images [N, H, W, C]")
    if values.shape[1] in (1, 3) and values.shape[3] not in (1, 2, 3, 4):
        raise InvalidInputError(
            f"{path}: array {key} has shape {values.shape}, channels first; hint: save "
            "numpy.moveaxis(images, 1, -1), [N, H, W, C]"
        )
    if values.dtype == np.uint8:
        return values, "uint8 in 0..255"
    pixels, unit = _named(path, key, to_pixels, values)
    return np.rint(pixels * 255).astype(np.uint8), f"{values.dtype.name} in {unit}"


def _named(path: Path, key: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function, and name the array in an InvalidInputError."""
    try:
        return function(*arguments, **options)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: array {key}: {error}") from None
