"""Labels as losses receive them: [N] or [N, 1], integers of any size, never one-hot."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_rcl.errors import InvalidInputError
from keras_rcl.objectives.tensors import Tensor


def label_vector(labels: Tensor) -> Tensor:
    """Check labels, and return them as a vector of their own dtype.

    Args:
        labels: Integers [N] or [N, 1], of an integer or floating dtype.

    Returns:
        The same labels, [N].

    Raises:
        InvalidInputError: If they are text or have another shape, or if a label that is known now is not an integer.
    """
    labels = ops.convert_to_tensor(labels if tf.is_tensor(labels) else np.asarray(labels))
    shape, dtype = tuple(labels.shape), keras.backend.standardize_dtype(labels.dtype)
    if dtype == "string":
        raise InvalidInputError(
            "labels are text: a loss compares integers; hint: np.unique(labels, return_inverse=True)[1] numbers them"
        )
    if len(shape) == 2 and shape[1] not in (1, None):
        raise InvalidInputError(
            f"labels of shape {shape} are not [N] or [N, 1]; hint: give the classes of one-hot labels, y.argmax(axis=1)"
        )
    if len(shape) not in (1, 2):
        raise InvalidInputError(f"labels of shape {shape} are not [N] or [N, 1]; hint: give one integer per image")
    labels = labels if len(shape) == 1 else ops.squeeze(labels, axis=1)
    if "float" in dtype and tf.executing_eagerly() and not bool(tf.reduce_all(tf.floor(labels) == labels)):
        raise InvalidInputError("labels are not integers; hint: give the number of each image's class")
    return labels


def first_occurrences(labels: Tensor) -> Tensor:
    """Number labels by the place of their first occurrence, so that equal labels, and only these, have equal numbers.

    Keras casts the labels of a loss to float32, in which integers above 2^24 run together; these numbers are small.

    Args:
        labels: [N].

    Returns:
        int32 [N].

    Example:
        >>> import numpy as np
        >>> first_occurrences(np.array([2**24, 2**24 + 1, 2**24])).numpy().tolist()
        [0, 1, 0]
    """
    labels = ops.convert_to_tensor(labels)
    place = ops.arange(ops.shape(labels)[0])
    same = (labels[:, None] == labels[None, :]) | (place[:, None] == place[None, :])
    return ops.cast(ops.argmax(ops.cast(same, "int32"), axis=1), "int32")


def check_rows(labels: Tensor, projections: Tensor) -> None:
    """Check that there is one label per row of projections.

    Args:
        labels: [N].
        projections: [N, D], or [N, V, D] for V views of each image.

    Raises:
        InvalidInputError: If the numbers of rows differ. If they are known only when the graph runs, TensorFlow raises
            its own `InvalidArgumentError` with this text.
    """
    stacked = len(projections.shape) == 2
    hint = "stack the views of each image, [N, V, D]" + (", or give each row its label" if stacked else "")
    problem = "labels and projections differ in number"
    count, rows = labels.shape[0], projections.shape[0]
    if count is None or rows is None:
        tf.debugging.assert_equal(tf.shape(labels)[0], tf.shape(projections)[0], message=f"{problem}; hint: {hint}")
    elif count != rows:
        raise InvalidInputError(
            f"{problem}: {count} labels, and projections of shape {tuple(projections.shape)}; hint: {hint}"
        )


class LabelLoss(keras.losses.Loss):
    """A Keras loss of labels [N] or [N, 1], which are checked before Keras casts them to float32."""

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of a batch."""
        return super().__call__(self.numbered(label_vector(y_true)), y_pred, sample_weight)

    def numbered(self, labels: Tensor) -> Tensor:
        """The numbers below 2^24 that stand for labels [N]; classes are such numbers."""
        return labels
