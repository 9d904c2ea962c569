"""Images and labels that a user has in memory: arrays, tensors, a `tf.data.Dataset`, or a folder of classes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.data.pixel_units import to_pixels
from keras_rcl.data.sources import load
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.dataset import Dataset

__all__ = ["Arrays", "read_arrays", "to_pixels"]

_IMAGE_KEYS, _LABEL_KEYS = ("image", "images", "x"), ("label", "labels", "y")


class Arrays(NamedTuple):
    """Images and labels.

    Attributes:
        images: [N, H, W, C], in the unit and dtype that they were given in.
        labels: As they were given, see `class_labels`; None if there are none.
        class_names: The names of the classes, if the source names them.
    """

    images: np.ndarray
    labels: Any
    class_names: tuple[str, ...] = ()


def read_arrays(x: Any, y: Any = None, *, image_shape: tuple[int | None, ...] | None = None) -> Arrays:
    """Read images and labels.

    Args:
        x: Images [N, H, W, C] or [N, H, W], an array, a tensor or a list; or a source of images and labels: a
            `tf.data.Dataset`, batched or not, a `keras.utils.PyDataset`, a pair (images, labels), or the path of a
            folder with one sub-folder per class.
        y: The labels, if `x` does not hold them.
        image_shape: (H, W, C) to which the images of a folder are resized; None keeps their size.

    Raises:
        InvalidInputError: If x holds no images of one size, or labels are given twice.
    """
    if y is None and isinstance(x, tuple) and len(x) == 2:
        x, y = x
    class_names: tuple[str, ...] = ()
    if isinstance(x, (str, Path)):
        found = _read_folder(Path(x), image_shape)
    elif isinstance(x, tf.data.Dataset):
        found = _read_dataset(x)
        class_names = tuple(getattr(x, "class_names", ()))
    elif isinstance(x, keras.utils.PyDataset):
        found = _joined([_pair(x[index]) for index in range(len(x))], batched=True)
    else:
        found = Arrays(_array(x), None)
    if y is not None and found.labels is not None:
        raise InvalidInputError("y is given, and x holds labels too; hint: leave out y")
    images = found.images[..., None] if found.images.ndim == 3 else found.images
    if images.ndim != 4:
        raise InvalidInputError(f"images have shape {list(images.shape)}; hint: give [N, H, W, C]")
    if images.shape[1] in (1, 3) and images.shape[3] not in (1, 2, 3, 4):
        raise InvalidInputError(
            f"images have shape {list(images.shape)}, channels first; hint: give "
            "numpy.moveaxis(images, 1, -1), [N, H, W, C]"
        )
    return Arrays(images, found.labels if y is None else y, found.class_names or class_names)


def _read_dataset(dataset: tf.data.Dataset) -> Arrays:
    """All elements of a `tf.data.Dataset`."""
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise InvalidInputError("the tf.data.Dataset is infinite; hint: take(N) of its elements")
    spec, label_spec = _pair(dataset.element_spec)
    if not hasattr(spec, "shape") or spec.shape.rank not in (None, 3, 4):
        shape = getattr(getattr(spec, "shape", None), "as_list", lambda: "another kind")()
        raise InvalidInputError(f"elements of the tf.data.Dataset are {shape}; hint: give images, or (images, labels)")
    try:
        pairs = [_pair(element) for element in dataset.as_numpy_iterator()]
    except tf.errors.OpError as error:
        raise InvalidInputError(f"the tf.data.Dataset fails: {str(error).splitlines()[0][:200]}") from None
    batched = pairs[0][0].ndim == 4 if spec.shape.rank is None and pairs else spec.shape.rank != 3
    if spec.shape.rank == 3 and spec.shape[0] is None and getattr(getattr(label_spec, "shape", None), "rank", 0):
        batched = True  # grey images without a channel
    if not pairs:
        shape = [size or 1 for size in (spec.shape[1:] if batched else spec.shape)]
        return Arrays(np.zeros((0, *shape), np.float32), np.zeros(0, np.int32))
    return _joined(pairs, batched)


def _joined(pairs: Iterable[tuple[Any, Any]], batched: bool) -> Arrays:
    """Elements one after the other: batches of images and labels, or single ones."""
    images, labels = zip(*pairs, strict=True)
    if len(shapes := sorted({np.shape(one)[1 if batched else 0 :] for one in images})) > 1:
        raise InvalidInputError(f"images have the shapes {shapes[0]} and {shapes[1]}; hint: resize them to one size")

    def join(values: Iterable[Any]) -> np.ndarray:
        return (np.concatenate if batched else np.stack)([np.asarray(value) for value in values])

    return Arrays(join(images), None if labels[0] is None else join(labels))


def _pair(element: Any) -> tuple[Any, Any]:
    """Image and label of an element: a pair, possibly with weights behind it, a mapping, or the image alone."""
    if isinstance(element, dict):
        images = [element[key] for key in _IMAGE_KEYS if key in element]
        labels = [element[key] for key in _LABEL_KEYS if key in element]
        if len(images) != 1:
            raise InvalidInputError(f"elements have the keys {', '.join(element)}; hint: give (images, labels)")
        return images[0], labels[0] if labels else None
    if isinstance(element, (tuple, list)):
        return element[0], element[1] if len(element) > 1 else None
    return element, None


def _array(x: Any) -> np.ndarray:
    try:
        array = np.asarray(x)
    except ValueError:
        raise InvalidInputError("images are of different sizes; hint: resize them to one size") from None
    if array.dtype == object:
        raise InvalidInputError(
            f"{type(x).__name__} holds no images of one size; hint: give an array [N, H, W, C], a tf.data.Dataset or a "
            "folder"
        )
    return array


def _read_folder(folder: Path, image_shape: tuple[int | None, ...] | None) -> Arrays:
    """All images of a folder with one sub-folder per class; labels are the names of the classes."""
    size = image_shape[0] if image_shape is not None and image_shape[0] == image_shape[1] else None
    data = load(Dataset(name="folder", folder=str(folder), image_size=size))
    splits = [split for split in (data.train, data.validation, data.test) if len(split.labels)]
    images = np.concatenate([split.images for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    order = np.argsort(np.concatenate([split.indices for split in splits]), kind="stable")
    names = [data.class_names[label] for label in labels[order]]
    return Arrays(images[order], np.array(names), tuple(data.class_names))
