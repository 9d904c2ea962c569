"""Check of the reading: whether the model is given images as it was trained on them."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_rcl.evaluation.checks.context import Context, Result, result
from keras_rcl.evaluation.intervals import interval

READINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "0..255": lambda images: 255 * images,
    "-1..1": lambda images: 2 * images - 1,
    "0..1, from 0..255": lambda images: images / 255,
    "0..1, from -1..1": lambda images: (images + 1) / 2,
}
"""Other ranges that a model may have been trained on, and the pixels that it would then be given."""

BETTER = 0.1
"""How much larger the accuracy under another reading must be, beyond chance."""

DOMINANT = 0.5
"""How much more often a class may be predicted than it is true, as a share of the images."""


def read_as_trained(context: Context) -> Result:
    """Whether clean accuracy and predictions look like those of a model that is given the images it was trained on.

    An audit of a model that is misread says nothing of the claim: with pixels of another range, another data set,
    other classes or other channels it classifies by chance, and is robust by chance.
    """
    (correct, predicted), total, classes = context.as_given, len(context.labels), context.num_classes
    accuracy, signs = correct / total, []
    low, high = interval(correct, total, context.budget.confidence)
    if low <= 1 / classes and accuracy < (1 + 1 / classes) / 2:
        signs.append(f"{accuracy:.1%} of {total} images are classified correctly, as by chance among {classes} classes")
    counts = np.bincount(predicted, minlength=classes) - np.bincount(context.labels, minlength=classes)[:classes]
    if counts.max() > DOMINANT * total:
        most = int(np.argmax(counts))
        signs.append(f"{np.mean(predicted == most):.1%} of the images are taken for class {most}")
    for name, images_fn in READINGS.items():
        try:
            better, _ = context.accuracy(images_fn)
        except (ValueError, tf.errors.InvalidArgumentError):  # a model that accepts images in [0, 1] alone
            continue
        if better - correct > BETTER * total and interval(better, total, context.budget.confidence)[0] > high:
            signs.append(f"{better / total:.1%} are classified correctly if the range is {name}")
    agrees = (
        f"{accuracy:.1%} of {total} images are classified correctly, and no other range of pixels gives clearly more"
    )
    return result(bool(signs), "; ".join(signs) or agrees, clean_accuracy=accuracy)
