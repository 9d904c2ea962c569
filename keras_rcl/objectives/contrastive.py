"""Contrastive objectives: one value per anchor, in float32 whatever comes in; and thin `keras.losses` classes.

M anchors (N images, or V views of each: M = V * N), D projection. For anchor i, A(i) is everything but i, P(i) its
positives (same label, i itself excluded), N(i) its negatives. Projections are taken as they come: bring them to unit
length before, as `keras_rcl.networks` does, where the equation means cosines.
"""

import math

import keras
from keras import ops

from keras_rcl.errors import InvalidInputError

MASKED = -1e30
"""Stands for the similarity of an anchor to itself: finite, so that even a batch of one has no NaN."""


def supervised_contrastive(labels, projection, *, temperature: float):
    """Supervised contrastive loss of each anchor (Khosla et al. 2020, L_out; Wang eq. 1, Cusin eq. 1, CLAF eq. 2).

        -1 / |P(i)| * sum_{p in P(i)} log( exp(z_i . z_p / tau) / sum_{a in A(i)} exp(z_i . z_a / tau) )

    An anchor without positives has the value 0 and no gradient. Wang's loss is the mean over the anchors that have
    positives (`mean_over_anchors`), Cusin's and CLAF's the sum. Nothing else is scaled: no base temperature.

    Args:
        labels: [M], integers.
        projection: [M, D], of unit length.
        temperature: tau, positive.

    Returns:
        [M], float32.

    Raises:
        InvalidInputError: if the temperature is not positive, or `projection` is not [M, D].
    """
    _check_temperature(temperature)
    similarity = ops.where(_same_anchor(labels), MASKED, _similarity(projection))
    similarity = similarity - ops.stop_gradient(ops.max(similarity, axis=1, keepdims=True))
    log_softmax = similarity / temperature
    log_softmax = log_softmax - ops.log(ops.sum(ops.exp(log_softmax), axis=1, keepdims=True))
    return -_mean_where(_positives(labels), log_softmax)


def margin_contrastive(labels, projection, *, positive_margin: float = 0.5, negative_margin: float = 0.1):
    """Margin contrastive loss of each anchor (Wang eq. 4); a mean over an empty set is 0.

        mean_{p in P(i)} max(0, m_p - z_i . z_p) + mean_{n in N(i)} max(0, z_i . z_n - m_n)

    Wang's loss is the mean over all anchors: one without positives still has its negatives.

    Args:
        labels: [M], integers.
        projection: [M, D], of unit length.
        positive_margin: m_p, the cosine above which a positive is near enough.
        negative_margin: m_n, the cosine below which a negative is far enough.

    Returns:
        [M], float32.

    Raises:
        InvalidInputError: if `projection` is not [M, D].
    """
    similarity = _similarity(projection)
    too_far = _mean_where(_positives(labels), ops.relu(positive_margin - similarity))
    too_near = _mean_where(~_same_label(labels), ops.relu(similarity - negative_margin))
    return too_far + too_near


def has_positive(labels):
    """Whether another anchor of the batch has the same label: labels [M] -> bool [M]."""
    return ops.any(_positives(labels), axis=1)


def mean_over_anchors(values, labels):
    """Mean of `values` [M] over the anchors that have positives under `labels` [M]; 0 where none has, never NaN."""
    anchors = ops.cast(has_positive(labels), "float32")
    return ops.divide_no_nan(ops.sum(ops.cast(values, "float32") * anchors), ops.sum(anchors))


def collapse_value(num_anchors: int) -> float:
    """ln(M - 1): the supervised contrastive loss of M equal embeddings, at any temperature.

    Raises:
        InvalidInputError: if there are fewer than two anchors.
    """
    if num_anchors < 2:
        raise InvalidInputError(f"{num_anchors} anchors cannot be contrasted; give at least 2")
    return math.log(num_anchors - 1)


class _Contrastive(keras.losses.Loss):
    """An objective over anchors as a Keras loss: y_true [N] or [N, 1], y_pred [N, D] or V views of each [N, V, D]."""

    def call(self, y_true, y_pred):
        """The loss of each image [N]: the mean of its views' values, or their sum under `reduction="sum"`."""
        if len(y_pred.shape) not in (2, 3):
            raise InvalidInputError(
                f"projections of shape {tuple(y_pred.shape)} are not [N, D] or [N, V, D]; reshape them"
            )
        dimension = y_pred.shape[-1]
        views = ops.reshape(y_pred, (ops.shape(y_true)[0], -1, dimension))
        labels = ops.broadcast_to(ops.reshape(ops.cast(y_true, "int32"), (-1, 1)), ops.shape(views)[:2])
        values = self.anchor_values(ops.reshape(labels, (-1,)), ops.reshape(views, (-1, dimension)))
        values = ops.reshape(values, ops.shape(views)[:2])
        return ops.sum(values, axis=1) if self.reduction == "sum" else ops.mean(values, axis=1)

    def anchor_values(self, labels, projection):
        """One value per anchor, [M], whose mean or sum over the batch is the loss."""
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="keras_rcl")
class SupervisedContrastive(_Contrastive):
    """`supervised_contrastive` for `compile(loss=...)`: the mean over the anchors that have positives, or the sum.

    Args:
        temperature: tau, positive.
        reduction: `sum_over_batch_size` for the mean (Wang), `sum` over anchors (Cusin, CLAF).
        name: of the loss.

    Raises:
        InvalidInputError: if the temperature is not positive.
    """

    def __init__(self, temperature=0.07, reduction="sum_over_batch_size", name="supervised_contrastive"):
        super().__init__(name=name, reduction=reduction, dtype="float32")
        _check_temperature(temperature)
        self.temperature = temperature

    def anchor_values(self, labels, projection):
        values = supervised_contrastive(labels, projection, temperature=self.temperature)
        if self.reduction in ("sum", "none", None):
            return values
        share = ops.mean(ops.cast(has_positive(labels), "float32"))
        return ops.divide_no_nan(values, share)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable(package="keras_rcl")
class MarginContrastive(_Contrastive):
    """`margin_contrastive` for `compile(loss=...)`: the mean over all anchors, or the sum.

    Args:
        positive_margin: m_p, the cosine above which a positive is near enough.
        negative_margin: m_n, the cosine below which a negative is far enough.
        reduction: `sum_over_batch_size` for the mean (Wang), `sum` over anchors.
        name: of the loss.
    """

    def __init__(
        self, positive_margin=0.5, negative_margin=0.1, reduction="sum_over_batch_size", name="margin_contrastive"
    ):
        super().__init__(name=name, reduction=reduction, dtype="float32")
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin

    def anchor_values(self, labels, projection):
        return margin_contrastive(
            labels, projection, positive_margin=self.positive_margin, negative_margin=self.negative_margin
        )

    def get_config(self):
        margins = {"positive_margin": self.positive_margin, "negative_margin": self.negative_margin}
        return {**super().get_config(), **margins}


def _similarity(projection):
    """z_i . z_a: [M, D] -> float32 [M, M]."""
    if len(projection.shape) != 2:
        raise InvalidInputError(f"projections of shape {tuple(projection.shape)} are not [M, D]; stack the views first")
    projection = ops.cast(projection, "float32")
    return ops.matmul(projection, ops.transpose(projection))


def _same_label(labels):
    """bool [M, M]."""
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) != 1:
        raise InvalidInputError(f"labels of shape {tuple(labels.shape)} are not [M]; give one integer for each anchor")
    return ops.expand_dims(labels, 1) == ops.expand_dims(labels, 0)


def _same_anchor(labels):
    """bool [M, M], the diagonal."""
    index = ops.arange(ops.shape(labels)[0])
    return ops.expand_dims(index, 1) == ops.expand_dims(index, 0)


def _positives(labels):
    """bool [M, M]: row i is P(i)."""
    return _same_label(labels) & ~_same_anchor(labels)


def _mean_where(mask, values):
    """Mean of each row [M, M] over the true entries of `mask`; 0 where there are none."""
    count = ops.sum(ops.cast(mask, "float32"), axis=1)
    return ops.divide_no_nan(ops.sum(ops.where(mask, values, 0.0), axis=1), count)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise InvalidInputError(f"temperature {temperature} is not positive; the papers use 0.07 and 0.1")
