"""Class labels as users have them become integers [N]: one function for every public entry that takes labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_rcl.errors import InvalidInputError, did_you_mean

_HINT = "give integers [N] from 0 to the number of classes - 1"


def class_labels(
    labels: Any, num_classes: int | None = None, *, count: int | None = None, class_names: Sequence[str] = ()
) -> np.ndarray:
    """Check labels, and convert them to integers.

    Args:
        labels: Integers [N] or [N, 1] (as `keras.datasets` returns them), whole numbers as floats, one-hot rows
            [N, K], or names of classes [N]; an array, a tensor or a list.
        num_classes: K; not checked if None.
        count: N, the number of images; not checked if None.
        class_names: The names of the K classes, for labels that are text.

    Returns:
        int32 [N].

    Raises:
        InvalidInputError: If the shape, kind or number of labels is another one, or a label is outside the classes.

    Example:
        >>> import numpy as np
        >>> class_labels([[3], [1]], 10).tolist()
        [3, 1]
        >>> class_labels(np.eye(3)[[2, 0]], 3).tolist()
        [2, 0]
        >>> class_labels(["dog", "cat"], class_names=["cat", "dog"]).tolist()
        [1, 0]
    """
    try:
        values = np.asarray(labels)
    except ValueError:
        raise InvalidInputError(f"labels are rows of different lengths; hint: {_HINT}") from None
    shape = list(values.shape)
    if values.ndim == 2 and shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and num_classes in (None, shape[1]):
        values = _from_one_hot(values)
    if values.ndim != 1:
        classes = "" if num_classes is None else f" of {num_classes} classes"
        raise InvalidInputError(f"labels{classes} have shape {shape}; hint: {_HINT}, or one-hot rows [N, K]")
    if count is not None and len(values) != count:
        raise InvalidInputError(f"{len(values)} labels for {count} images; hint: give one label per image")
    if values.dtype.kind in "USO":
        values = _from_names(values, class_names)
    values = _whole(values)
    if num_classes is not None and len(values) and not 0 <= values.min() <= values.max() < num_classes:
        position = int(np.flatnonzero((values < 0) | (values >= num_classes))[0])
        raise InvalidInputError(
            f"label {int(values[position])} of image {position} is outside the {num_classes} classes, which are "
            f"0 to {num_classes - 1}; hint: count classes from 0, and check that data and model have the same classes"
        )
    return values.astype(np.int32)


def _from_one_hot(rows: np.ndarray) -> np.ndarray:
    """The position of the 1 in each row [N, K]."""
    if rows.dtype.kind not in "biuf" or not (np.isin(rows, (0, 1)).all() and (rows.sum(axis=1) == 1).all()):
        raise InvalidInputError(f"labels have shape {list(rows.shape)}, and a row is not one-hot; hint: {_HINT}")
    return rows.argmax(axis=1)


def _from_names(names: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """The number of each class name."""
    texts = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names.tolist()]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise InvalidInputError(f"label {wrong[0]!r} is neither a number nor text; hint: {_HINT}")
    if texts and not class_names:
        raise InvalidInputError(f"label {texts[0]!r} is text, and the class names are not known; hint: {_HINT}")
    numbers = {name: number for number, name in enumerate(class_names)}
    if unknown := [text for text in texts if text not in numbers]:
        raise InvalidInputError(
            f"label {unknown[0]!r} is not one of the {len(numbers)} class names"
            f"{did_you_mean(unknown[0], numbers) or f'; hint: {_HINT}'}"
        )
    return np.array([numbers[text] for text in texts], np.int64)


def _whole(values: np.ndarray) -> np.ndarray:
    """The labels as integers; raises InvalidInputError if they are not whole numbers."""
    if values.dtype.kind in "biu" or not len(values):
        return values.astype(np.int64)
    if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
        raise InvalidInputError(f"labels are {values.dtype.name}; hint: {_HINT}")
    values = values.astype(np.float64)
    if len(wrong := np.flatnonzero(~(np.isfinite(values) & (values == np.round(values))))):
        raise InvalidInputError(f"label {values[wrong[0]]:g} of image {wrong[0]} is not a whole number; hint: {_HINT}")
    return values.astype(np.int64)
