"""Classification objectives: functions with one value per image, computed in float32; and thin Keras losses."""

import math

import keras
from keras import ops

from keras_rcl.errors import InvalidInputError
from keras_rcl.objectives.labels import LabelLoss, label_vector
from keras_rcl.objectives.tensors import Tensor


def cross_entropy(labels: Tensor, logits: Tensor, *, label_smoothing: float = 0.0, margin: float = 0.0) -> Tensor:
    """Compute the cross-entropy of each image.

    Formula, with s for `label_smoothing` and z_i for the logits of image i, of which the one of its label is reduced by
    `margin`:

        -(1 - s) log softmax(z_i)[label_i] - s / K * sum_k log softmax(z_i)[k]

    Args:
        labels: Integers below K, [N].
        logits: [N, K].
        label_smoothing: The share of each label that is spread evenly over all classes.
        margin: What is subtracted from the logit of the label. With logits of s times a cosine, as a cosine classifier
            gives, s times the additive margin of Wang et al. 2018.

    Returns:
        float32 [N].

    Example:
        >>> import numpy as np
        >>> values = cross_entropy(np.array([0, 1]), np.array([[2.0, 0.0], [2.0, 0.0]]))
        >>> [round(float(value), 3) for value in values]
        [0.127, 2.127]

    References:
        Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision", for the smoothing;
        Wang et al. 2018, "CosFace: large margin cosine loss for deep face recognition", for the margin.
    """
    logits = ops.cast(logits, "float32")
    if margin:
        logits = logits - margin * ops.one_hot(labels, logits.shape[-1], dtype="float32")
    values = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    if not label_smoothing:
        return values
    spread = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
    return (1 - label_smoothing) * values + label_smoothing * spread


def boosted_cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    """Compute the cross-entropy of each image plus a margin on the most probable wrong class (BCE of MART).

    Formula:

        -log p_iy - log(1 - max_{k != y} p_ik),  p = softmax(logits)

    Args:
        labels: Integers below K, [N].
        logits: [N, K].

    Returns:
        float32 [N].

    Example:
        >>> import numpy as np
        >>> values = boosted_cross_entropy(np.array([0, 1]), np.array([[2.0, 0.0], [2.0, 0.0]]))
        >>> [round(float(value), 3) for value in values]
        [0.254, 4.254]

    References:
        Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified examples".
    """
    logits = ops.cast(logits, "float32")
    num_classes = logits.shape[-1]
    top_wrong = ops.argmax(ops.where(ops.one_hot(labels, num_classes) > 0, -math.inf, logits), axis=-1)
    # 1 - p_k is the sum over all other classes: computed from logits it is finite even if p_k rounds to 1.
    others = ops.logsumexp(ops.where(ops.one_hot(top_wrong, num_classes) > 0, -math.inf, logits), axis=-1)
    return cross_entropy(labels, logits) + ops.logsumexp(logits, axis=-1) - others


def kl_to_clean(clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """Compute KL(p(clean) || p(adversarial)) of each image, the regularizer of TRADES.

    Formula:

        sum_k p_ik (log p_ik - log q_ik),  p = softmax(clean), q = softmax(adversarial)

    As in the paper, the gradient flows through both.

    Args:
        clean_logits: [N, K].
        adversarial_logits: [N, K], of the same images under attack.

    Returns:
        float32 [N].

    Raises:
        InvalidInputError: If the shapes differ.

    Example:
        >>> import numpy as np
        >>> values = kl_to_clean(np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 2.0]]))
        >>> [round(float(value), 3) for value in values]
        [0.0, 1.523]

    References:
        Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy", eq. 5.
    """
    if tuple(clean_logits.shape) != tuple(adversarial_logits.shape):
        raise InvalidInputError(
            f"clean logits {tuple(clean_logits.shape)} and adversarial logits {tuple(adversarial_logits.shape)} "
            "are not of the same images; hint: give one adversarial image for each clean one"
        )
    clean = ops.log_softmax(ops.cast(clean_logits, "float32"), axis=-1)
    adversarial = ops.log_softmax(ops.cast(adversarial_logits, "float32"), axis=-1)
    return ops.sum(ops.exp(clean) * (clean - adversarial), axis=-1)


def misclassified_kl(labels: Tensor, clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """Compute the regularizer of MART: the divergence from clean to adversarial, weighted by the clean error.

    Formula:

        KL(p(clean) || p(adversarial)) * (1 - p_y(clean))

    As in the paper, the gradient flows through both factors.

    Args:
        labels: Integers below K, [N].
        clean_logits: [N, K].
        adversarial_logits: [N, K], of the same images under attack.

    Returns:
        float32 [N].

    Raises:
        InvalidInputError: If the shapes of the logits differ.

    Example:
        >>> import numpy as np
        >>> clean, adversarial = np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 2.0]])
        >>> [round(float(value), 3) for value in misclassified_kl(np.array([0, 1]), clean, adversarial)]
        [0.182, 1.342]

    References:
        Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified examples".
    """
    return kl_to_clean(clean_logits, adversarial_logits) * (1.0 - ops.exp(-cross_entropy(labels, clean_logits)))


@keras.saving.register_keras_serializable(package="keras_rcl")
class CrossEntropy(LabelLoss):
    """`cross_entropy` as a loss for `compile`: labels [N] or [N, 1] and logits [N, K].

    Args:
        reduction: How the values of the batch are reduced: a mean by default; see `keras.losses.Loss`.
        name: Of the loss.

    Example:
        >>> import numpy as np
        >>> round(float(CrossEntropy()(np.array([0, 1]), np.array([[2.0, 0.0], [2.0, 0.0]]))), 3)
        1.127
    """

    def __init__(self, reduction: str = "sum_over_batch_size", name: str = "cross_entropy"):
        super().__init__(name=name, reduction=reduction, dtype="float32")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The value of each image, [N]."""
        return cross_entropy(ops.cast(label_vector(y_true), "int32"), y_pred)


@keras.saving.register_keras_serializable(package="keras_rcl")
class BoostedCrossEntropy(LabelLoss):
    """`boosted_cross_entropy` as a loss for `compile`: labels [N] or [N, 1] and logits [N, K].

    Args:
        reduction: How the values of the batch are reduced: a mean by default; see `keras.losses.Loss`.
        name: Of the loss.

    Example:
        >>> import numpy as np
        >>> round(float(BoostedCrossEntropy()(np.array([0, 1]), np.array([[2.0, 0.0], [2.0, 0.0]]))), 3)
        2.254
    """

    def __init__(self, reduction: str = "sum_over_batch_size", name: str = "boosted_cross_entropy"):
        super().__init__(name=name, reduction=reduction, dtype="float32")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The value of each image, [N]."""
        return boosted_cross_entropy(ops.cast(label_vector(y_true), "int32"), y_pred)


@keras.saving.register_keras_serializable(package="keras_rcl")
class KLToClean(keras.losses.Loss):
    """`kl_to_clean` as a Keras loss: `y_true` are clean logits [N, K], `y_pred` adversarial logits [N, K].

    Args:
        reduction: How the values of the batch are reduced: a mean by default; see `keras.losses.Loss`.
        name: Of the loss.

    Example:
        >>> import numpy as np
        >>> round(float(KLToClean()(np.array([[2.0, 0.0]]), np.array([[0.0, 2.0]]))), 3)
        1.523
    """

    def __init__(self, reduction: str = "sum_over_batch_size", name: str = "kl_to_clean"):
        super().__init__(name=name, reduction=reduction, dtype="float32")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The value of each image, [N]."""
        return kl_to_clean(y_true, y_pred)
