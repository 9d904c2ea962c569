"""Contrastive objectives: functions with one value per anchor, computed in float32; and thin Keras losses.

There are M anchors (N images, or V views of each: M = V * N) with projections of D dimensions. For anchor i, A(i) are
all other anchors, P(i) its positives (the other anchors with the same label), N(i) its negatives. Projections are not
normalized here: if an equation means cosines, bring them to unit length first, as `keras_rcl.networks` does.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_rcl.errors import InvalidInputError
from keras_rcl.objectives import tiled
from keras_rcl.objectives.labels import LabelLoss, groups_of, label_vector, one_per_row
from keras_rcl.objectives.tensors import Tensor

TILED_FROM = 2048
"""From this number of anchors, similarities are computed a block of rows at a time (`keras_rcl.objectives.tiled`)."""
MASKED = -1e30
"""Replaces the similarity of an anchor to itself; finite, so that even a batch of one image gives no NaN."""


def supervised_contrastive(labels: Tensor, projection: Tensor, *, temperature: float) -> Tensor:
    """Compute the supervised contrastive loss (SupCon) of each anchor.

    Formula:

        -1 / |P(i)| * sum_{p in P(i)} log( exp(z_i . z_p / tau) / sum_{a in A(i)} exp(z_i . z_a / tau) )

    An anchor without positives has the value 0 and no gradient. The loss of Wang is the mean over all anchors; that of
    Cusin and of CLAF is the sum. The mean over the anchors that have positives (`mean_over_anchors`) is larger than
    Wang's: by 1.39 for batches of 128 images of 100 classes. There is no base temperature.

    Args:
        labels: Integers [M].
        projection: [M, D], of unit length.
        temperature: tau, positive.

    Returns:
        float32 [M].

    Raises:
        InvalidInputError: If the temperature is not positive, `projection` is not [M, D], or there is not one integer
            label per row.

    Example:
        >>> import numpy as np
        >>> projection = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> values = supervised_contrastive(np.array([0, 0, 1, 1]), projection, temperature=0.5)
        >>> [round(float(value), 3) for value in values]
        [0.24, 0.24, 0.24, 0.24]

    References:
        Khosla et al. 2020, "Supervised contrastive learning", L_out; Wang eq. 1, Cusin eq. 1, CLAF eq. 2.
    """
    _check_temperature(temperature)
    return _plain_or_tiled(_supcon, _tiled_supcon, labels, projection, temperature)


def _supcon(labels: Tensor, projection: Tensor, temperature: float) -> Tensor:
    """The M x M log-softmax, averaged over the positives."""
    similarity = ops.where(_same_anchor(labels), MASKED, _similarity(projection))
    similarity = similarity - ops.stop_gradient(ops.max(similarity, axis=1, keepdims=True))
    log_softmax = similarity / temperature
    log_softmax = log_softmax - ops.log(ops.sum(ops.exp(log_softmax), axis=1, keepdims=True))
    return -_mean_where(_positives(labels), log_softmax)


def _tiled_supcon(labels: Tensor, projection: Tensor, temperature: float) -> Tensor:
    """log sum_{a in A(i)} exp(z_i . z_a / tau) - z_i . mean_{p in P(i)} z_p / tau; the mean is a sum over the class."""
    groups = groups_of(labels)
    positives = groups.sizes - 1
    to_positives = ops.sum(projection * (tiled.sum_over_group(projection, groups) - projection), axis=1)
    to_positives = ops.divide_no_nan(to_positives, positives) / temperature
    others = tiled.log_sum_exp_of_others(projection, temperature)
    return ops.where(positives > 0, others - to_positives, 0.0)


def contrast_of_pairs(projection: Tensor, positives: Tensor, others: Tensor, *, temperature: float) -> Tensor:
    """Compute SupCon over chosen pairs: the positives P(i) and the others O(i) of each anchor are given.

    Formula:

        1 / |P(i)| * sum_{p in P(i)} ( log sum_{a in P(i) + O(i)} exp(z_i . z_a / tau) - z_i . z_p / tau )

    An anchor without positives has the value 0 and no gradient. The memory grows with M x M.

    Args:
        projection: [M, D], of unit length.
        positives: bool [M, M]; row i is P(i).
        others: bool [M, M]; row i is O(i).
        temperature: tau, positive.

    Returns:
        float32 [M].

    Example:
        >>> import numpy as np
        >>> projection = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> positives = np.array([[False, True, False], [True, False, False], [False, False, False]])
        >>> others = np.array([[False, False, True], [False, False, False], [True, True, False]])
        >>> values = contrast_of_pairs(projection, positives, others, temperature=0.5)
        >>> [round(float(value), 3) for value in values]
        [0.127, 0.0, 0.0]
    """
    _check_temperature(temperature)
    similarity = _similarity(ops.cast(projection, "float32")) / temperature
    positives = ops.convert_to_tensor(positives)
    some = ops.any(positives, axis=1, keepdims=True)
    # An anchor without positives is compared with all rows: it has finite numbers, of which none is used.
    compared = positives | ops.convert_to_tensor(others) | ~some
    among = ops.logsumexp(ops.where(compared, similarity, MASKED), axis=1)
    return ops.where(some[:, 0], among - _mean_where(positives, similarity), 0.0)


def hard_pairs(
    labels: Tensor, predictions: Tensor, *, hard_positives: bool = True, hard_negatives: bool = True
) -> tuple[Tensor, Tensor]:
    """Choose the pairs that the classifier now gets wrong, as local selection does.

    A hard positive has the anchor's label and another prediction than the anchor. A hard negative has another label and
    the anchor's prediction.

    Args:
        labels: Integers [M].
        predictions: The predicted classes, integers [M].
        hard_positives: False takes all rows of the anchor's label, except for the anchor.
        hard_negatives: False takes all rows of another label.

    Returns:
        Positives and negatives, bool [M, M] each.

    Example:
        >>> import numpy as np
        >>> positives, negatives = hard_pairs(np.array([0, 0, 1]), np.array([0, 1, 1]))
        >>> positives.numpy().tolist()
        [[False, True, False], [True, False, False], [False, False, False]]
        >>> negatives.numpy().tolist()
        [[False, False, False], [False, False, True], [False, True, False]]

    References:
        Bui et al. 2021, "Understanding and achieving efficient robustness with adversarial supervised contrastive
        learning".
    """
    labels, predictions = ops.convert_to_tensor(labels), ops.convert_to_tensor(predictions)
    positives, negatives = _positives(labels), ~_same_label(labels)
    alike = _same_label(predictions)
    return positives & ~alike if hard_positives else positives, negatives & alike if hard_negatives else negatives


def prototype_contrastive(labels: Tensor, projection: Tensor, *, temperature: float, detached: bool = False) -> Tensor:
    """Compute the cross-entropy of each anchor over its cosines to the mean directions of the classes of the batch.

    Formula:

        -log( exp(z_i . c_i / tau) / (exp(z_i . c_i / tau) + sum_{k != y_i} exp(z_i . c_k / tau)) )

    c_k is the sum of the projections of class k at unit length; c_i is that of the anchor's class without the anchor.
    An anchor whose class has no other row has the value 0 and no gradient.

    Args:
        labels: Integers [M].
        projection: [M, D], of unit length.
        temperature: tau, positive.
        detached: True stops the gradient at the means.

    Returns:
        float32 [M].

    Raises:
        InvalidInputError: If the temperature is not positive, `projection` is not [M, D], or there is not one integer
            label per row.

    Example:
        >>> import numpy as np
        >>> projection = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> values = prototype_contrastive(np.array([0, 0, 1, 1]), projection, temperature=0.5)
        >>> [round(float(value), 3) for value in values]
        [0.127, 0.127, 0.127, 0.127]
    """
    _check_temperature(temperature)
    labels = ops.convert_to_tensor(one_per_row(_anchor_labels(labels), projection))
    projection = ops.cast(projection, "float32")
    rows = ops.stop_gradient(projection) if detached else projection
    groups = groups_of(labels)
    sums = tiled.sum_over_group(rows, groups)
    own = ops.sum(projection * _unit(sums - rows), axis=1) / temperature
    # Column a stands for the class of row a, which has as many columns as rows: each counts for its share.
    to_classes = ops.matmul(projection, ops.transpose(_unit(sums))) / temperature - ops.log(groups.sizes)
    to_others = ops.where(_same_label(labels), MASKED, to_classes)
    among = ops.logsumexp(ops.concatenate([own[:, None], to_others], axis=1), axis=1)
    return ops.where(groups.sizes > 1, among - own, 0.0)


def margin_contrastive(
    labels: Tensor, projection: Tensor, *, positive_margin: float = 0.5, negative_margin: float = 0.1
) -> Tensor:
    """Compute the margin contrastive loss of each anchor.

    Formula:

        mean_{p in P(i)} max(0, m_p - z_i . z_p) + mean_{n in N(i)} max(0, z_i . z_n - m_n)

    A mean over an empty set is 0. The loss of Wang is the mean over all anchors: an anchor without positives
    still has negatives.

    Args:
        labels: Integers [M].
        projection: [M, D], of unit length.
        positive_margin: m_p, the cosine above which a positive is near enough.
        negative_margin: m_n, the cosine below which a negative is far enough.

    Returns:
        float32 [M].

    Raises:
        InvalidInputError: If `projection` is not [M, D], or there is not one integer label per row.

    Example:
        >>> import numpy as np
        >>> projection = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> values = margin_contrastive(np.array([0, 0, 1]), projection)
        >>> [round(float(value), 3) for value in values]
        [0.5, 1.4, 0.45]

    References:
        Wang 2024, arXiv:2412.19747, eq. 4.
    """
    return _plain_or_tiled(_margin, _tiled_margin, labels, projection, positive_margin, negative_margin)


def _margin(labels: Tensor, projection: Tensor, positive_margin: float, negative_margin: float) -> Tensor:
    similarity = _similarity(projection)
    too_far = _mean_where(_positives(labels), ops.relu(positive_margin - similarity))
    too_near = _mean_where(~_same_label(labels), ops.relu(similarity - negative_margin))
    return too_far + too_near


def _tiled_margin(labels: Tensor, projection: Tensor, positive_margin: float, negative_margin: float) -> Tensor:
    return tiled.margin_sums(projection, groups_of(labels), positive_margin, negative_margin)


def euclidean_supcon(
    labels: Tensor, embedding: Tensor, *, negatives: Literal["ignored", "subtracted"] = "ignored"
) -> Tensor:
    """Compute the masked Euclidean distance of each anchor, summed over its positives.

    Formula:

        sum_{p in P(i)} ||v_i - v_p||                                  negatives="ignored"
        sum_{p in P(i)} ||v_i - v_p|| - sum_{n in N(i)} ||v_i - v_n||  negatives="subtracted"

    The paper masks the distances by label and sums them per anchor; it does not say what becomes of the negatives. With
    `ignored` the smallest value is that of equal embeddings. The almost uniform probabilities that its Table 2 implies
    for the networks trained so fit this form. `subtracted` has no lower limit unless embeddings are normalized. The
    gradient at equal embeddings is 0. The memory grows with M x M.

    Args:
        labels: Integers [M].
        embedding: [M, D], of any length.
        negatives: What the distances to anchors of other classes do.

    Returns:
        float32 [M].

    Raises:
        InvalidInputError: If `embedding` is not [M, D], there is not one integer label per row, or `negatives` is
            another text.

    Example:
        >>> import numpy as np
        >>> embedding = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
        >>> [round(float(value), 3) for value in euclidean_supcon(np.array([0, 0, 1]), embedding)]
        [5.0, 5.0, 0.0]

    References:
        Landsman, Zhao and Chari, section 2.
    """
    _check_negatives(negatives)
    return _plain_or_tiled(_euclidean, _euclidean, labels, embedding, float(negatives == "subtracted"))


def _euclidean(labels: Tensor, embedding: Tensor, share_of_negatives: float) -> Tensor:
    squares = ops.sum(embedding * embedding, axis=1)
    squared = ops.expand_dims(squares, 1) + ops.expand_dims(squares, 0) - 2 * _similarity(embedding)
    apart = (squared > 0) & ~_same_anchor(labels)
    distance = ops.where(apart, ops.sqrt(ops.where(apart, squared, 1.0)), 0.0)
    return ops.sum(ops.where(_same_label(labels), distance, -share_of_negatives * distance), axis=1)


def has_positive(labels: Tensor) -> Tensor:
    """Whether another anchor of the batch has the same label.

    Args:
        labels: Integers [M].

    Returns:
        bool [M].
    """
    return groups_of(_anchor_labels(labels)).sizes > 1


def mean_over_anchors(values: Tensor, labels: Tensor) -> Tensor:
    """The mean of values over the anchors that have positives.

    Args:
        values: One per anchor, [M].
        labels: Integers [M].

    Returns:
        A float32 scalar; 0 if no anchor has positives.
    """
    anchors = ops.cast(has_positive(labels), "float32")
    return ops.divide_no_nan(ops.sum(ops.cast(values, "float32") * anchors), ops.sum(anchors))


def collapse_value(num_anchors: int) -> float:
    """The supervised contrastive loss of M equal embeddings at any temperature: ln(M - 1).

    Args:
        num_anchors: M.

    Raises:
        InvalidInputError: If there are fewer than two anchors.

    Example:
        >>> round(collapse_value(256), 3)
        5.541
    """
    if num_anchors < 2:
        raise InvalidInputError(f"{num_anchors} anchors cannot be contrasted; hint: give at least 2")
    return math.log(num_anchors - 1)


class _Contrastive(LabelLoss):
    """An objective over anchors as a Keras loss: labels [N] or [N, 1], projections [N, D], or [N, V, D] for V views."""

    def numbered(self, labels: Tensor) -> Tensor:
        """Small numbers for labels [N] of any size: only which labels are equal matters."""
        return groups_of(labels).segments

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The loss of each image, [N]: the mean of the values of its views, or their sum for `reduction="sum"`."""
        if len(y_pred.shape) not in (2, 3):
            raise InvalidInputError(
                f"projections of shape {tuple(y_pred.shape)} are not [N, D] or [N, V, D]; hint: reshape them"
            )
        labels = one_per_row(label_vector(y_true), y_pred)
        views = 1 if len(y_pred.shape) == 2 else ops.shape(y_pred)[1]
        values = self.anchor_values(ops.repeat(labels, views), ops.reshape(y_pred, (-1, y_pred.shape[-1])))
        values = ops.reshape(values, (-1, views))
        return ops.sum(values, axis=1) if self.reduction == "sum" else ops.mean(values, axis=1)

    def anchor_values(self, labels: Tensor, projection: Tensor) -> Tensor:
        """One value per anchor, [M], of which the loss is the mean or the sum over the batch."""
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="keras_rcl")
class SupervisedContrastive(_Contrastive):
    """`supervised_contrastive` as a loss for `compile`: the mean over anchors, or the sum.

    Labels are [N] or [N, 1], projections [N, D], or [N, V, D] for V views of each image.

    Args:
        temperature: tau, positive.
        reduction: `sum_over_batch_size` for the mean over anchors, `sum` for the sum (Cusin, CLAF).
        name: Of the loss.
        anchors: The anchors of the mean: those `with_positives` in the batch, or `all` (Wang eq. 1).

    Raises:
        InvalidInputError: If the temperature is not positive, or `anchors` is another text.

    Example:
        >>> import numpy as np
        >>> projection = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(float(SupervisedContrastive(temperature=0.5)(np.array([0, 0, 1, 1]), projection)), 3)
        0.24

    References:
        Khosla et al. 2020, "Supervised contrastive learning".
    """

    def __init__(
        self,
        temperature: float = 0.07,
        reduction: str = "sum_over_batch_size",
        name: str = "supervised_contrastive",
        anchors: Literal["with_positives", "all"] = "with_positives",
    ):
        super().__init__(name=name, reduction=reduction, dtype="float32")
        _check_temperature(temperature)
        _check_choice("anchors", anchors, ("with_positives", "all"))
        self.temperature = temperature
        self.anchors = anchors

    def anchor_values(self, labels: Tensor, projection: Tensor) -> Tensor:
        values = supervised_contrastive(labels, projection, temperature=self.temperature)
        if self.reduction in ("sum", "none", None) or self.anchors == "all":
            return values
        share = ops.mean(ops.cast(has_positive(labels), "float32"))
        return ops.divide_no_nan(values, share)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature, "anchors": self.anchors}


@keras.saving.register_keras_serializable(package="keras_rcl")
class MarginContrastive(_Contrastive):
    """`margin_contrastive` as a loss for `compile`: the mean over all anchors, or the sum.

    Labels are [N] or [N, 1], projections [N, D], or [N, V, D] for V views of each image.

    Args:
        positive_margin: m_p, the cosine above which a positive is near enough.
        negative_margin: m_n, the cosine below which a negative is far enough.
        reduction: `sum_over_batch_size` for the mean over anchors (Wang), `sum` for the sum.
        name: Of the loss.

    Example:
        >>> import numpy as np
        >>> projection = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(float(MarginContrastive()(np.array([0, 0, 1]), projection)), 3)
        0.783
    """

    def __init__(
        self,
        positive_margin: float = 0.5,
        negative_margin: float = 0.1,
        reduction: str = "sum_over_batch_size",
        name: str = "margin_contrastive",
    ):
        super().__init__(name=name, reduction=reduction, dtype="float32")
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin

    def anchor_values(self, labels: Tensor, projection: Tensor) -> Tensor:
        return margin_contrastive(
            labels, projection, positive_margin=self.positive_margin, negative_margin=self.negative_margin
        )

    def get_config(self) -> dict[str, Any]:
        margins = {"positive_margin": self.positive_margin, "negative_margin": self.negative_margin}
        return {**super().get_config(), **margins}


@keras.saving.register_keras_serializable(package="keras_rcl")
class EuclideanSupCon(_Contrastive):
    """`euclidean_supcon` as a loss for `compile`: the mean over all anchors, or the sum.

    Labels are [N] or [N, 1], embeddings [N, D], or [N, V, D] for V views of each image.

    Args:
        negatives: What the distances to anchors of other classes do: `ignored` or `subtracted`.
        reduction: `sum_over_batch_size` for the mean over anchors, `sum` for the sum.
        name: Of the loss.

    Raises:
        InvalidInputError: If `negatives` is another text.

    Example:
        >>> import numpy as np
        >>> embedding = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
        >>> round(float(EuclideanSupCon()(np.array([0, 0, 1]), embedding)), 3)
        3.333

    References:
        Landsman, Zhao and Chari, section 2.
    """

    def __init__(
        self,
        negatives: Literal["ignored", "subtracted"] = "ignored",
        reduction: str = "sum_over_batch_size",
        name: str = "euclidean_supcon",
    ):
        super().__init__(name=name, reduction=reduction, dtype="float32")
        _check_negatives(negatives)
        self.negatives: Literal["ignored", "subtracted"] = negatives

    def anchor_values(self, labels: Tensor, projection: Tensor) -> Tensor:
        return euclidean_supcon(labels, projection, negatives=self.negatives)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "negatives": self.negatives}


@keras.saving.register_keras_serializable(package="keras_rcl")
class PrototypeContrastive(_Contrastive):
    """`prototype_contrastive` as a loss for `compile`: the mean over all anchors, or the sum.

    Labels are [N] or [N, 1], projections [N, D], or [N, V, D] for V views of each image.

    Args:
        temperature: tau, positive.
        detached: True stops the gradient at the means.
        reduction: `sum_over_batch_size` for the mean over anchors, `sum` for the sum.
        name: Of the loss.

    Raises:
        InvalidInputError: If the temperature is not positive.

    Example:
        >>> import numpy as np
        >>> projection = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(float(PrototypeContrastive(temperature=0.5)(np.array([0, 0, 1, 1]), projection)), 3)
        0.127
    """

    def __init__(
        self,
        temperature: float = 0.1,
        detached: bool = False,
        reduction: str = "sum_over_batch_size",
        name: str = "prototype_contrastive",
    ):
        super().__init__(name=name, reduction=reduction, dtype="float32")
        _check_temperature(temperature)
        self.temperature = temperature
        self.detached = detached

    def anchor_values(self, labels: Tensor, projection: Tensor) -> Tensor:
        return prototype_contrastive(labels, projection, temperature=self.temperature, detached=self.detached)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature, "detached": self.detached}


def _plain_or_tiled(plain: Callable, blocks: Callable, labels: Tensor, projection: Tensor, *settings: float) -> Tensor:
    """Check labels and projections, and compute an objective: few anchors by its plain form, more by blocks.

    The two forms differ by rounding only. The plain one is faster for few anchors, and its memory grows with M x M. A
    graph that does not know M computes by blocks.
    """
    if len(projection.shape) != 2:
        raise InvalidInputError(f"projections of shape {tuple(projection.shape)} are not [M, D]; hint: stack the views")
    labels = ops.convert_to_tensor(one_per_row(_anchor_labels(labels), projection))
    few = projection.shape[0] is not None and projection.shape[0] < TILED_FROM
    return (plain if few else blocks)(labels, ops.cast(projection, "float32"), *settings)


def _similarity(projection: Tensor) -> Tensor:
    """z_i . z_a: [M, D] -> [M, M]."""
    return ops.matmul(projection, ops.transpose(projection))


def _anchor_labels(labels: Tensor) -> Tensor:
    """The labels [M], checked."""
    shape = tuple(np.shape(labels))
    if len(shape) != 1:
        raise InvalidInputError(f"labels of shape {shape} are not [M]; hint: give one integer per anchor")
    return label_vector(labels)


def _same_label(labels: Tensor) -> Tensor:
    """bool [M, M]."""
    return ops.expand_dims(labels, 1) == ops.expand_dims(labels, 0)


def _unit(rows: Tensor) -> Tensor:
    """Rows at unit length; a row of zeros stays one, with the gradient 0."""
    squares = ops.sum(rows * rows, axis=1, keepdims=True)
    return ops.where(squares > 0, rows * ops.rsqrt(ops.where(squares > 0, squares, 1.0)), 0.0)


def _same_anchor(labels: Tensor) -> Tensor:
    """bool [M, M], the diagonal."""
    index = ops.arange(ops.shape(labels)[0])
    return ops.expand_dims(index, 1) == ops.expand_dims(index, 0)


def _positives(labels: Tensor) -> Tensor:
    """bool [M, M]: row i is P(i)."""
    return _same_label(labels) & ~_same_anchor(labels)


def _mean_where(mask: Tensor, values: Tensor) -> Tensor:
    """The mean of each row [M, M] over the true entries of the mask; 0 if there are none."""
    count = ops.sum(ops.cast(mask, "float32"), axis=1)
    return ops.divide_no_nan(ops.sum(ops.where(mask, values, 0.0), axis=1), count)


def _check_negatives(negatives: str) -> None:
    _check_choice("negatives", negatives, ("ignored", "subtracted"))


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidInputError(f"{name} {value!r} is unknown; hint: choose one of {', '.join(known)}")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise InvalidInputError(f"temperature {temperature} is not positive; hint: the papers use 0.07 and 0.1")
