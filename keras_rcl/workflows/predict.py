"""Classify image files with a model on disk."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_rcl.data.images import read_images
from keras_rcl.model_io.classifier import load_classifier


def predict(
    path: str | Path,
    inputs: str | Path | Sequence[str | Path],
    *,
    resize: bool = False,
    say: Callable[[str], object] | None = None,
    **foreign,
) -> list[dict[str, Any]]:
    """Classify image files, folders of them, or arrays.

    Args:
        path: a SavedModel or `.keras` file.
        inputs: image files, folders of them with their sub-folders, or `.npy` and `.npz` arrays; or one of these.
        resize: resize images that do not have the model's size.
        say: called with one line that says in which range the model reads images, and why.
        **foreign: how a model that was not made here is fed and read, see `load_classifier`.

    Returns:
        One entry per image: `image`, its name; `class`, the index; `class_name`; and `probability`, in [0, 1]. The last
        three are None if the model's answer is not finite.

    Raises:
        InvalidInputError: if the model or an image cannot be read.

    Example:
        >>> import pathlib, tempfile, keras, numpy as np, keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     folder = pathlib.Path(folder)
        ...     model.save(folder / "model.keras")
        ...     np.save(folder / "images.npy", np.zeros((3, 4, 4, 1), np.uint8))
        ...     entries = keras_rcl.predict(folder / "model.keras", [folder / "images.npy"])
        >>> len(entries), entries[0]["class"], entries[0]["probability"]
        (3, 0, 0.5)
    """
    classifier = load_classifier(path, **foreign)
    if say is not None:
        declared = classifier.declared
        reason = "the default; hint: --input-range" if declared is None else declared.reason
        say(f"the model reads images in {classifier.input_range} ({reason})")
    paths = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    images, names = read_images([Path(one) for one in paths], classifier.image_shape, resize=resize)
    evaluated = [classifier.logits(images[start : start + 250]) for start in range(0, len(images), 250)]
    probabilities = np.asarray(keras.ops.softmax(keras.ops.concatenate(evaluated, axis=0)))
    class_names = classifier.class_names or tuple(str(index) for index in range(classifier.num_classes))

    def entry(name: str, row: np.ndarray) -> dict[str, Any]:
        if not np.isfinite(row).all():
            return {"image": name, "class": None, "class_name": None, "probability": None}
        index = int(row.argmax())
        return {"image": name, "class": index, "class_name": class_names[index], "probability": float(row[index])}

    return [entry(name, row) for name, row in zip(names, probabilities, strict=True)]
