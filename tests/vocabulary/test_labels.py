"""Labels as users have them, and pixels at the edge of [0, 1]."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.labels import class_labels
from keras_rcl.vocabulary.pixels import check_pixel_range, without_rounding

LABELS = np.array([3, 0, 2, 1, 3])
NAMES = ("cat", "dog", "Käfer", "鳥")

SAME = {
    "integers": LABELS,
    "uint8": LABELS.astype(np.uint8),
    "column": LABELS[:, None],
    "one-hot": np.eye(4, dtype=np.float32)[LABELS],
    "one-hot of booleans": np.eye(4, dtype=bool)[LABELS],
    "one-hot of integers": np.eye(4, dtype=int)[LABELS],
    "floats": LABELS.astype(np.float32),
    "column of floats": LABELS.astype(np.float64)[:, None],
    "tensor": tf.constant(LABELS),
    "one-hot tensor": tf.one_hot(LABELS, 4),
    "bfloat16 tensor": tf.cast(LABELS, tf.bfloat16),
    "list": LABELS.tolist(),
    "names": [NAMES[label] for label in LABELS],
    "bytes": np.array([NAMES[label].encode() for label in LABELS]),
    "column of names": np.array([[NAMES[label]] for label in LABELS]),
    "tensor of names": tf.constant([NAMES[label] for label in LABELS]),
}


@pytest.mark.parametrize("kind", SAME)
def test_labels_of_each_kind_are_the_integers(kind):
    found = class_labels(SAME[kind], 4, count=5, class_names=NAMES)
    assert found.dtype == np.int32 and found.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 4, 1], "label 4 of image 1 is outside the 4 classes, which are 0 to 3; hint: count classes from 0"),
        ([0, -1, 1], "label -1 of image 1 is outside"),
        ([0.0, 1.5, 1.0], "label 1.5 of image 1 is not a whole number"),
        ([0.0, 1.0, np.nan], "label nan of image 2 is not a whole number"),
        ([0, 1], "2 labels for 3 images"),
        (np.eye(4)[:3] * 0.9, r"labels have shape \[3, 4\], and a row is not one-hot"),
        (np.zeros((3, 4)), "a row is not one-hot"),
        (np.zeros((3, 2)), r"labels of 4 classes have shape \[3, 2\]"),
        (np.zeros((3, 1, 1)), "have shape"),
        (np.float32(1), r"have shape \[\]"),
        ([[0], [1, 2], []], "rows of different lengths"),
        (["cat", "dgo", "dog"], "label 'dgo' is not one of the 4 class names; did you mean 'dog'?"),
        ([None, 1, 2], "label None is neither a number nor text"),
        (np.array([1j, 0, 2]), "labels are complex128"),
    ],
)
def test_labels_that_are_none_are_one_line(labels, message):
    with pytest.raises(InvalidInputError, match=message) as raised:
        class_labels(labels, 4, count=3, class_names=NAMES)
    assert "\n" not in str(raised.value)


def test_names_without_class_names():
    with pytest.raises(InvalidInputError, match="label 'cat' is text, and the class names are not known"):
        class_labels(["cat"], 4)


def test_no_labels():
    assert class_labels([], 4, count=0).tolist() == class_labels(np.zeros((0, 4)), 4).tolist() == []


def test_rounding_is_clipped_and_nothing_else():
    above, below = np.nextafter(np.float32(1), np.float32(2)), np.nextafter(np.float32(0), np.float32(-1))
    images = np.array([below, 0, 0.3, 1, above, 1.01, -0.01], np.float32)
    assert without_rounding(images).tolist() == np.float32([0, 0, 0.3, 1, 1, 1.01, -0.01]).tolist()
    check_pixel_range(float(below), float(above), "float32")
    check_pixel_range(0.0, 1.001, "float16")


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0.0, 1.001, r"images span \[0, 1.001\]; .*; hint: clip them"),
        (0.0, 1 + 1e-6, r"images span \[0, 1.000001\]"),
        (0.0, 255.0, "hint: divide 0-255 by 255; if the model reads 0-255 itself"),
        (-1.0, 1.0, r"hint: give \(images \+ 1\) / 2; if the model reads -1..1 itself"),
        (-2.1, 2.6, "hint: give pixels, and put mean/std normalisation inside"),
        (float("nan"), float("nan"), "hint: give finite pixels"),
    ],
)
def test_pixels_of_another_range_get_a_hint_that_fits(low, high, message):
    with pytest.raises(InvalidInputError, match=message):
        check_pixel_range(low, high, "float32")
