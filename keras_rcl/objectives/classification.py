"""Classification objectives: one value per image, in float32 whatever comes in; and thin `keras.losses` classes."""

import math

import keras
from keras import ops

from keras_rcl.errors import InvalidInputError


def cross_entropy(labels, logits):
    """-log softmax(logits_i)[label_i].

    Args:
        labels: [N], integers below K.
        logits: [N, K].

    Returns:
        [N], float32.
    """
    return ops.sparse_categorical_crossentropy(labels, ops.cast(logits, "float32"), from_logits=True)


def boosted_cross_entropy(labels, logits):
    """Cross-entropy and a margin on the likeliest wrong class (BCE of MART, Wang et al. 2020).

        -log p_iy - log(1 - max_{k != y} p_ik),  p = softmax(logits)

    Args:
        labels: [N], integers below K.
        logits: [N, K].

    Returns:
        [N], float32.
    """
    logits = ops.cast(logits, "float32")
    num_classes = logits.shape[-1]
    likeliest_wrong = ops.argmax(ops.where(ops.one_hot(labels, num_classes) > 0, -math.inf, logits), axis=-1)
    # 1 - p_k is the share of all classes but k: in logits, so that it stays finite where p_k rounds to 1.
    others = ops.logsumexp(ops.where(ops.one_hot(likeliest_wrong, num_classes) > 0, -math.inf, logits), axis=-1)
    return cross_entropy(labels, logits) + ops.logsumexp(logits, axis=-1) - others


def kl_to_clean(clean_logits, adversarial_logits):
    """KL(p(clean) || p(adversarial)), the regulariser of TRADES (Zhang et al. 2019, eq. 5).

        sum_k p_ik (log p_ik - log q_ik),  p = softmax(clean), q = softmax(adversarial)

    The gradient flows through both, as there.

    Args:
        clean_logits: [N, K].
        adversarial_logits: [N, K], of the same images, attacked.

    Returns:
        [N], float32.

    Raises:
        InvalidInputError: if the shapes differ.
    """
    if tuple(clean_logits.shape) != tuple(adversarial_logits.shape):
        raise InvalidInputError(
            f"clean logits {tuple(clean_logits.shape)} and adversarial logits {tuple(adversarial_logits.shape)} "
            "are not of the same images; give one adversarial image for each clean one"
        )
    clean = ops.log_softmax(ops.cast(clean_logits, "float32"), axis=-1)
    adversarial = ops.log_softmax(ops.cast(adversarial_logits, "float32"), axis=-1)
    return ops.sum(ops.exp(clean) * (clean - adversarial), axis=-1)


def misclassified_kl(labels, clean_logits, adversarial_logits):
    """KL(p(clean) || p(adversarial)) * (1 - p_y(clean)), the regulariser of MART (Wang et al. 2020).

    The gradient flows through both factors, as there.

    Args:
        labels: [N], integers below K.
        clean_logits: [N, K].
        adversarial_logits: [N, K], of the same images, attacked.

    Returns:
        [N], float32.

    Raises:
        InvalidInputError: if the shapes differ.
    """
    return kl_to_clean(clean_logits, adversarial_logits) * (1.0 - ops.exp(-cross_entropy(labels, clean_logits)))


@keras.saving.register_keras_serializable(package="keras_rcl")
class CrossEntropy(keras.losses.Loss):
    """`cross_entropy` for `compile(loss=...)`: y_true labels [N] or [N, 1], y_pred logits [N, K]."""

    def __init__(self, reduction="sum_over_batch_size", name="cross_entropy"):
        super().__init__(name=name, reduction=reduction, dtype="float32")

    def call(self, y_true, y_pred):
        return cross_entropy(ops.reshape(ops.cast(y_true, "int32"), (-1,)), y_pred)


@keras.saving.register_keras_serializable(package="keras_rcl")
class BoostedCrossEntropy(keras.losses.Loss):
    """`boosted_cross_entropy` for `compile(loss=...)`: y_true labels [N] or [N, 1], y_pred logits [N, K]."""

    def __init__(self, reduction="sum_over_batch_size", name="boosted_cross_entropy"):
        super().__init__(name=name, reduction=reduction, dtype="float32")

    def call(self, y_true, y_pred):
        return boosted_cross_entropy(ops.reshape(ops.cast(y_true, "int32"), (-1,)), y_pred)


@keras.saving.register_keras_serializable(package="keras_rcl")
class KLToClean(keras.losses.Loss):
    """`kl_to_clean` for `compile(loss=...)`: y_true clean logits [N, K], y_pred adversarial logits [N, K]."""

    def __init__(self, reduction="sum_over_batch_size", name="kl_to_clean"):
        super().__init__(name=name, reduction=reduction, dtype="float32")

    def call(self, y_true, y_pred):
        return kl_to_clean(y_true, y_pred)
