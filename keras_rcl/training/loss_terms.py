"""The terms of a loss: functions over the stacked outputs of a batch, which a phase weighs."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_rcl.errors import InvalidInputError
from keras_rcl.networks.two_headed import unit_norm
from keras_rcl.objectives.classification import boosted_cross_entropy, cross_entropy, kl_to_clean, misclassified_kl
from keras_rcl.objectives.contrastive import (
    collapse_value,
    contrast_of_pairs,
    euclidean_supcon,
    hard_pairs,
    has_positive,
    margin_contrastive,
    mean_over_anchors,
    prototype_contrastive,
    supervised_contrastive,
)
from keras_rcl.training.ramps import value_at
from keras_rcl.vocabulary.phase import (
    BoostedCrossEntropy,
    CrossEntropy,
    EuclideanSupCon,
    IntervalTightness,
    KLToClean,
    MarginContrastive,
    MisclassifiedKL,
    Phase,
    PrototypeContrastive,
    ReLUBalance,
    SupCon,
)
from keras_rcl.vocabulary.registry import find


class Batch(NamedTuple):
    """The outputs of one forward pass over V views of N images, stacked view by view.

    Attributes:
        labels: [V * N].
        outputs: Named outputs, each [V * N, ...]. The outputs of a worst case, which is the last view, are stored apart
            in `outputs["worst_case"]`, each [N, ...].
        kinds: The kind of each of the V views.
        weights: [V * N], of the images in the terms; empty: all are 1.
    """

    labels: Any
    outputs: dict[str, Any]
    kinds: tuple[str, ...]
    weights: Any = ()

    def view(self, name: str, kind: str | None):
        """An output, or the labels, on the views of one kind.

        Args:
            name: Of the output, or `labels`.
            kind: Of the views. None: all views except for the worst case.

        Returns:
            [number of these views * N, ...].
        """
        if name == "labels":
            return self._rows(self.labels, kind)
        if kind == "worst_case":
            return self.outputs["worst_case"][name]
        if kind is None:
            return self.outputs[name]
        kinds = [k for k in self.kinds if k != "worst_case"]
        views = ops.split(self.outputs[name], len(kinds), axis=0)
        return ops.concatenate([v for v, k in zip(views, kinds, strict=True) if k == kind], axis=0)

    def weighted(self, values, kind: str | None):
        """Values of the rows of `view`, one per row, times the weights of their images."""
        return values if isinstance(self.weights, tuple) else values * self._rows(self.weights, kind)

    def _rows(self, per_image, kind: str | None):
        """The rows [number of views * N] of a vector [V * N] that is the same in all views."""
        count = sum(k == kind if kind else k != "worst_case" for k in self.kinds)
        return per_image[: count * (ops.shape(per_image)[0] // len(self.kinds))]

    def is_of(self, kind: str | None):
        """Whether each row, of all views except for the worst case, is of a view of one kind: bool [rows, 1].

        None: of any kind.
        """
        kinds = [k for k in self.kinds if k != "worst_case"]
        count = ops.shape(self.labels)[0] // len(self.kinds)
        return ops.repeat(ops.convert_to_tensor([[kind in (None, k)] for k in kinds]), count, axis=0)

    def images(self, kind: str | None):
        """The number of the image, below N, of which each row of `view` is a view."""
        count = ops.shape(self.labels)[0] // len(self.kinds)
        return ops.arange(ops.shape(self.view("labels", kind))[0]) % count


def _cross_entropy(term: CrossEntropy, batch: Batch):
    labels, logits = batch.view("labels", term.on), batch.view("logits", term.on)
    values = cross_entropy(labels, logits, label_smoothing=term.label_smoothing, margin=term.margin)
    return ops.mean(batch.weighted(values, term.on))


def _boosted_cross_entropy(term: BoostedCrossEntropy, batch: Batch):
    values = boosted_cross_entropy(batch.view("labels", term.on), batch.view("logits", term.on))
    return ops.mean(batch.weighted(values, term.on))


def _contrasted_output(term: SupCon) -> str:
    if term.reads == "embedding":
        return "embedding"
    return "projection" if term.normalized else "unnormalized_projection"


def _supcon(term: SupCon, batch: Batch):
    labels = batch.view("labels", term.on) if term.positives == "class" else batch.images(term.on)
    rows = _contrasted(term, batch)
    if term.selects_pairs:
        return _supcon_of_chosen(term, batch, labels, rows)
    values = batch.weighted(supervised_contrastive(labels, rows, temperature=term.temperature), term.on)
    if term.reduction == "sum":
        return ops.sum(values)
    return ops.mean(values) if term.anchors == "all" else mean_over_anchors(values, labels)


def _contrasted(term: SupCon, batch: Batch):
    """The row that the term compares of each anchor: [number of views * N, D]."""
    rows = batch.view(_contrasted_output(term), term.on)
    rows = unit_norm(rows) if term.reads == "embedding" and term.normalized else rows
    return rows if term.detached is None else ops.where(batch.is_of(term.detached), ops.stop_gradient(rows), rows)


def _supcon_of_chosen(term: SupCon, batch: Batch, labels, rows):
    """SupCon of a term that leaves out pairs: over all anchors, or over those that have positives."""
    predictions = ops.argmax(batch.view("logits", term.on), axis=-1)
    positives, negatives = hard_pairs(
        labels, predictions, hard_positives=term.hard_positives, hard_negatives=term.hard_negatives
    )
    if term.anchors_on:
        anchors = batch.is_of(term.anchors_on)
        positives, negatives = positives & anchors, negatives & anchors
    values = batch.weighted(contrast_of_pairs(rows, positives, negatives, temperature=term.temperature), term.on)
    if term.reduction == "sum":
        return ops.sum(values)
    counted = ops.any(positives, axis=1) if term.anchors == "with_positives" else batch.is_of(term.anchors_on)[:, 0]
    return ops.divide_no_nan(ops.sum(values), ops.sum(ops.cast(counted, "float32")))


def _prototype_contrastive(term: PrototypeContrastive, batch: Batch):
    labels = batch.view("labels", None)
    values = prototype_contrastive(
        labels, batch.outputs["projection"], temperature=term.temperature, detached=term.detached
    )
    return mean_over_anchors(batch.weighted(values, None), labels)


def _margin_contrastive(term: MarginContrastive, batch: Batch):
    values = margin_contrastive(
        batch.view("labels", None),
        batch.outputs["projection"],
        positive_margin=term.positive_margin,
        negative_margin=term.negative_margin,
    )
    return ops.mean(batch.weighted(values, None))


def _euclidean_supcon(term: EuclideanSupCon, batch: Batch):
    rows = batch.outputs["embedding"]
    values = euclidean_supcon(
        batch.view("labels", None), unit_norm(rows) if term.normalized else rows, negatives=term.negatives
    )
    return ops.mean(batch.weighted(values, None))


def _kl_to_clean(term: KLToClean, batch: Batch):
    values = kl_to_clean(batch.view("logits", "clean"), batch.view("logits", "adversarial"))
    return ops.mean(batch.weighted(values, "clean"))


def _misclassified_kl(term: MisclassifiedKL, batch: Batch):
    labels = batch.view("labels", "clean")
    values = misclassified_kl(labels, batch.view("logits", "clean"), batch.view("logits", "adversarial"))
    return ops.mean(batch.weighted(values, "clean"))


def _regularizer(term: IntervalTightness | ReLUBalance, batch: Batch):
    return batch.outputs["worst_case"][term.term]


class TermRule(NamedTuple):
    """How one kind of term is computed.

    Attributes:
        value: Computes the unweighted scalar from a term and a batch.
        output: The output of the network that the term reads.
        contrastive: Whether the term compares projections or embeddings.
    """

    value: Callable[[Any, Batch], Any]
    output: Callable[[Any], str] = lambda term: "logits"
    contrastive: bool = False


TERMS: dict[str, TermRule] = {
    "cross_entropy": TermRule(_cross_entropy),
    "boosted_cross_entropy": TermRule(_boosted_cross_entropy),
    "supcon": TermRule(_supcon, output=_contrasted_output, contrastive=True),
    "prototype_contrastive": TermRule(_prototype_contrastive, output=lambda term: "projection", contrastive=True),
    "margin_contrastive": TermRule(_margin_contrastive, output=lambda term: "projection", contrastive=True),
    "euclidean_supcon": TermRule(_euclidean_supcon, output=lambda term: "embedding", contrastive=True),
    "kl_to_clean": TermRule(_kl_to_clean),
    "misclassified_kl": TermRule(_misclassified_kl),
    "interval_tightness": TermRule(_regularizer),
    "relu_balance": TermRule(_regularizer),
}
"""The rule of each kind of term by its name; one row per class of the union `Term` that is built in."""


def rule_of(term: Any) -> TermRule:
    """The rule of a term, of those that are built in or registered."""
    if term.term in TERMS:
        return TERMS[term.term]
    entry = find("loss", term.term)
    if entry is None or entry.run is None:
        raise InvalidInputError(f"no loss is registered as {term.term!r}; hint: call keras_rcl.register_loss")
    output = entry.options["output"]
    return TermRule(entry.run, output=lambda term: output, contrastive=entry.options["contrastive"])


def term_names(phase: Phase) -> tuple[str, ...]:
    """The name of each term in logs: its own name with the kind of its views; numbered if two are equal."""
    kinds = [getattr(term, "on", None) for term in phase.terms]
    names = [f"{term.term}_{kind}" if kind else term.term for term, kind in zip(phase.terms, kinds, strict=True)]
    return tuple(
        f"{name}_{names[: index + 1].count(name)}" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    )


def evaluate_terms(phase: Phase, batch: Batch) -> dict[str, keras.KerasTensor]:
    """The unweighted value of each term under its name."""
    return {name: rule_of(term).value(term, batch) for name, term in zip(term_names(phase), phase.terms, strict=True)}


def weigh(phase: Phase, values: dict, epochs=0):
    """The total loss: the sum of weight * value.

    Args:
        phase: Its terms have the weights.
        values: Of `evaluate_terms`.
        epochs: How many epochs of the phase are done, on which the weights may depend.
    """
    return sum(
        value_at(term.weight, epochs) * values[name] for name, term in zip(term_names(phase), phase.terms, strict=True)
    )


def is_contrastive(phase: Phase) -> bool:
    """Whether a term of the phase compares projections or embeddings."""
    return any(rule_of(term).contrastive for term in phase.terms)


def outputs_read(phase: Phase) -> tuple[str, ...]:
    """The outputs of the network that a step reads: the logits, for its accuracies, and the outputs of the terms."""
    return tuple(sorted({"logits", *(rule_of(term).output(term) for term in phase.terms)}))


def share_without_positives(labels):
    """The share of anchors that have no positive in the batch; labels are [V * N]."""
    return 1.0 - ops.mean(ops.cast(has_positive(labels), "float32"))


def phase_collapse_value(phase: Phase, batch_size: int) -> float:
    """The value of SupCon for collapsed embeddings: ln(V * N - 1), V * N times that for the sum.

    NaN without SupCon, and if it leaves pairs out.
    """
    for term in phase.terms:
        if isinstance(term, SupCon) and not term.selects_pairs:
            kinds = [view.kind for view in phase.views]
            views = sum(kind == term.on if term.on else kind != "worst_case" for kind in kinds)
            anchors = max(2, views * batch_size)
            return collapse_value(anchors) * (anchors if term.reduction == "sum" else 1)
    return math.nan
