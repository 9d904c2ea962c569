"""Labels as losses receive them: [N] or [N, 1], integers of any size, never one-hot."""

from typing import NamedTuple

import keras
import numpy as np
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
    labels = labels if ops.is_tensor(labels) else np.asarray(labels)
    shape, known = tuple(labels.shape), labels.numpy() if hasattr(labels, "numpy") else labels
    if isinstance(known, np.ndarray) and known.dtype.kind not in "iufb":
        raise InvalidInputError(
            "labels are text or objects, not integers; hint: number them by np.unique(labels, return_inverse=True)[1]"
        )
    if len(shape) == 2 and shape[1] not in (1, None):
        raise InvalidInputError(
            f"labels of shape {shape} are not [N] or [N, 1]; hint: give the classes of one-hot labels, y.argmax(axis=1)"
        )
    if len(shape) not in (1, 2):
        raise InvalidInputError(f"labels of shape {shape} are not [N] or [N, 1]; hint: give one integer per image")
    if isinstance(known, np.ndarray) and known.dtype.kind == "f" and not (np.floor(known) == known).all():
        raise InvalidInputError("labels are not integers; hint: give the number of each image's class")
    return ops.reshape(labels, (-1,))


class Groups(NamedTuple):
    """The anchors that share a label.

    Attributes:
        segments: The number of the group of each anchor, integers [M] below M.
        sizes: The number of anchors of the group of each anchor, float32 [M].
    """

    segments: Tensor
    sizes: Tensor


def groups_of(labels: Tensor) -> Groups:
    """Number the groups of equal labels.

    Keras casts the labels of a loss to float32, in which integers above 2^24 run together; these numbers are small.

    Args:
        labels: Integers [M].

    Example:
        >>> import numpy as np
        >>> groups_of(np.array([2**24, 2**24 + 1, 2**24])).segments.numpy().tolist()
        [0, 1, 0]
    """
    labels = ops.convert_to_tensor(labels)
    count = ops.shape(labels)[0]
    order = ops.argsort(labels)
    in_order = ops.take(labels, order)
    begins = ops.concatenate([ops.zeros_like(order[:1]), ops.cast(in_order[1:] != in_order[:-1], order.dtype)])
    segments = ops.scatter(order[:, None], ops.cumsum(begins), (count,))
    members = ops.segment_sum(ops.ones((count,), "float32"), segments, count)
    return Groups(segments, ops.take(members, segments))


def one_per_row(labels: Tensor, projections: Tensor) -> Tensor:
    """Return the labels after a check that there is one per row of projections.

    Args:
        labels: [N].
        projections: [N, D], or [N, V, D] for V views of each image.

    Raises:
        InvalidInputError: If the numbers differ. Numbers that are known only when the graph runs are compared there, by
            a reshape that fails.
    """
    count, rows = labels.shape[0], projections.shape[0]
    if count is None or rows is None:
        return ops.reshape(labels, (ops.shape(projections)[0],))
    if count != rows:
        stacked = len(projections.shape) == 2
        hint = "stack the views of each image, [N, V, D]" + (", or give each row its label" if stacked else "")
        raise InvalidInputError(
            f"labels and projections differ in number: {count} labels, and projections of shape "
            f"{tuple(projections.shape)}; hint: {hint}"
        )
    return labels


class LabelLoss(keras.losses.Loss):
    """A Keras loss of labels [N] or [N, 1], which are checked before Keras casts them to float32."""

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of a batch."""
        return super().__call__(self.numbered(label_vector(y_true)), y_pred, sample_weight)

    def numbered(self, labels: Tensor) -> Tensor:
        """The numbers below 2^24 that stand for labels [N]; classes are such numbers."""
        return labels
