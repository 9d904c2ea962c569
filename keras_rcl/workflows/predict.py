"""The composition of a prediction: a model and image files become a class each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_rcl.data.images import read_images
from keras_rcl.model_io.classifier import load_classifier


def predict(path: Path, inputs: Sequence[Path], *, resize: bool = False, **foreign) -> list[dict[str, Any]]:
    """Classify image files, folders of them, or arrays: one entry an image, with its class and probability."""
    classifier = load_classifier(path, **foreign)
    images, names = read_images(list(inputs), classifier.image_shape, resize=resize)
    evaluated = [classifier.logits(images[start : start + 250]) for start in range(0, len(images), 250)]
    probabilities = np.asarray(keras.ops.softmax(keras.ops.concatenate(evaluated, axis=0)))
    class_names = classifier.class_names or tuple(str(index) for index in range(classifier.num_classes))
    return [
        {
            "image": name,
            "class": int(row.argmax()),
            "class_name": class_names[int(row.argmax())],
            "probability": float(row.max()),
        }
        for name, row in zip(names, probabilities, strict=True)
    ]
