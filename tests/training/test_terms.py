"""Each term on stacked views against the papers' equations as loops."""

import dataclasses
import math
from typing import get_args

import numpy as np
import pytest
import tensorflow as tf
from reference import objectives as loops

from keras_rcl.training.loss_terms import (
    TERMS,
    Batch,
    evaluate_terms,
    phase_collapse_value,
    share_without_positives,
    term_names,
    weigh,
)
from keras_rcl.vocabulary.attacks import FGSM
from keras_rcl.vocabulary.dataset import CropFlip
from keras_rcl.vocabulary.phase import (
    Adversarial,
    Augmented,
    BoostedCrossEntropy,
    Clean,
    CrossEntropy,
    EuclideanSupCon,
    IntervalTightness,
    KLToClean,
    MarginContrastive,
    MisclassifiedKL,
    Phase,
    PrototypeContrastive,
    Ramp,
    SupCon,
    Term,
    WorstCase,
)

CLEAN, CROP, ATTACKED = Clean(), Augmented(policy=CropFlip()), Adversarial(attack=FGSM())
N, LABELS = 5, np.array([0, 2, 0, 1, 2])


def phase_of(*terms, views=(CROP, CROP, ATTACKED)) -> Phase:
    return Phase(name="test", epochs=1, trains=("encoder",), views=views, terms=terms)


def batch_of(phase: Phase, labels=LABELS) -> Batch:
    """Random outputs of every view of the labelled images, stacked view by view."""
    rng = np.random.default_rng(0)
    count = len(phase.views) * len(labels)
    projection = rng.normal(size=(count, 4)).astype("float32")
    outputs = {
        "logits": 2 * rng.normal(size=(count, 3)).astype("float32"),
        "embedding": 3 * rng.normal(size=(count, 6)).astype("float32"),
        "unnormalized_projection": projection,
        "projection": projection / np.linalg.norm(projection, axis=1, keepdims=True),
    }
    return Batch(np.tile(labels, len(phase.views)), outputs, tuple(view.kind for view in phase.views))


def value_of(term, views=(CROP, CROP, ATTACKED)) -> tuple[float, Batch]:
    phase = phase_of(term, views=views)
    batch = batch_of(phase)
    (value,) = evaluate_terms(phase, batch).values()
    return float(value), batch


@pytest.mark.parametrize("views", [(CLEAN,), (CROP, CROP), (CROP, CROP, ATTACKED)])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_supcon(views, normalized, reduction):
    value, batch = value_of(SupCon(temperature=0.3, normalized=normalized, reduction=reduction), views)
    projection = batch.outputs["projection" if normalized else "unnormalized_projection"]
    mean, total = (
        loops.supcon_mean(batch.labels, projection, 0.3),
        loops.supcon(batch.labels, projection, 0.3).sum(),
    )
    assert value == pytest.approx(mean if reduction == "mean" else total, rel=1e-5)
    assert total > 1.5 * mean


@pytest.mark.parametrize("normalized", [True, False])
def test_supcon_of_the_embedding(normalized):
    value, batch = value_of(SupCon(temperature=0.5, reads="embedding", normalized=normalized))
    embedding = batch.outputs["embedding"]
    if normalized:
        embedding = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    assert value == pytest.approx(loops.supcon_mean(batch.labels, embedding, 0.5), rel=1e-5)


def test_supcon_with_the_views_of_an_image_as_its_only_positives():
    """NT-Xent (Chen et al. 2020): the loop of SupCon with a label of its own for each image."""
    value, batch = value_of(SupCon(temperature=0.5, positives="image"))
    images = np.tile(np.arange(N), 3)
    assert value == pytest.approx(loops.supcon_mean(images, batch.outputs["projection"], 0.5), rel=1e-5)
    assert value_of(SupCon(temperature=0.5, positives="image"), (CLEAN,))[0] == 0.0  # one view has no positive


def test_supcon_over_all_anchors_is_wangs_equation_1():
    """Labels 0, 2, 0, 1, 2: the fourth of five anchors has no positive."""
    value, batch = value_of(SupCon(temperature=0.5, anchors="all"), (CLEAN,))
    assert value == pytest.approx(loops.supcon_mean_of_all(LABELS, batch.outputs["projection"], 0.5), rel=1e-5)
    assert value == pytest.approx(value_of(SupCon(temperature=0.5), (CLEAN,))[0] * 4 / 5, rel=1e-5)


@pytest.mark.parametrize("hard_negatives", [True, False])
@pytest.mark.parametrize("hard_positives", [True, False])
@pytest.mark.parametrize("anchors_on", ["adversarial", None])
def test_supcon_of_chosen_pairs(anchors_on, hard_positives, hard_negatives):
    """Bui et al. 2021: which rows count is decided by label and prediction, in a loop over all pairs."""
    term = SupCon(temperature=0.5, anchors_on=anchors_on, hard_positives=hard_positives, hard_negatives=hard_negatives)
    value, batch = value_of(term)
    labels, predicted = batch.labels, np.argmax(batch.outputs["logits"], axis=1)
    rows = range(len(labels))
    anchors = [i for i in rows if anchors_on is None or i >= 2 * N]
    positives, others = [[] for _ in rows], [[] for _ in rows]
    for i in anchors:
        for j in set(rows) - {i}:
            if labels[j] == labels[i] and not (hard_positives and predicted[j] == predicted[i]):
                positives[i].append(j)
            if labels[j] != labels[i] and not (hard_negatives and predicted[j] != predicted[i]):
                others[i].append(j)
    values = loops.contrast_of_pairs(batch.outputs["projection"], positives, others, 0.5)
    with_positives = sum(bool(chosen) for chosen in positives)
    assert 0 < with_positives <= len(anchors)
    assert value == pytest.approx(values.sum() / with_positives, rel=1e-5)
    total, _ = value_of(dataclasses.replace(term, reduction="sum"))
    assert total == pytest.approx(values.sum(), rel=1e-5)
    if not term.selects_pairs:
        assert value == pytest.approx(loops.supcon_mean(labels, batch.outputs["projection"], 0.5), rel=1e-5)


def test_the_gradient_of_supcon_does_not_reach_detached_views():
    batch = batch_of(phase_of(SupCon()))
    projection = tf.constant(batch.outputs["projection"])

    def gradient(**fields):
        phase = phase_of(SupCon(temperature=0.5, **fields), views=(CLEAN, CROP, ATTACKED))
        with tf.GradientTape() as tape:
            tape.watch(projection)
            outputs = {**batch.outputs, "projection": projection}
            kinds = tuple(view.kind for view in phase.views)
            (value,) = evaluate_terms(phase, batch._replace(outputs=outputs, kinds=kinds)).values()
        return tape.gradient(value, projection).numpy()

    everywhere, attacked = gradient(), gradient(anchors_on="adversarial", detached="clean")
    assert np.abs(everywhere[:N]).max() > 1e-3 and not attacked[:N].any()
    assert np.abs(attacked[2 * N :]).max() > 1e-3


def test_prototype_contrastive():
    value, batch = value_of(PrototypeContrastive(temperature=0.4))
    loop = loops.prototype_contrastive(batch.labels, batch.outputs["projection"], 0.4)
    assert value == pytest.approx(loop.mean(), rel=1e-5)
    value, batch = value_of(PrototypeContrastive(temperature=0.4), (CLEAN,))  # one class has a single row
    loop = loops.prototype_contrastive(batch.labels, batch.outputs["projection"], 0.4)
    assert value == pytest.approx(loop.sum() / 4, rel=1e-5)


@pytest.mark.parametrize("normalized", [True, False])
def test_euclidean_supcon(normalized):
    value, batch = value_of(EuclideanSupCon(negatives="subtracted", normalized=normalized))
    embedding = batch.outputs["embedding"]
    if normalized:
        embedding = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    assert value == pytest.approx(loops.euclidean_supcon(batch.labels, embedding, 1.0).mean(), rel=1e-4)


def test_margin_contrastive():
    value, batch = value_of(MarginContrastive(positive_margin=0.6, negative_margin=0.2))
    assert value == pytest.approx(loops.margin(batch.labels, batch.outputs["projection"], 0.6, 0.2).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("on", "rows"), [(None, slice(None)), ("augmented", slice(0, 2 * N)), ("adversarial", slice(2 * N, None))]
)
def test_cross_entropy_on_the_views_of_a_kind(on, rows):
    for word, loop in ((CrossEntropy, loops.cross_entropy), (BoostedCrossEntropy, loops.boosted_cross_entropy)):
        value, batch = value_of(word(on=on))
        assert value == pytest.approx(loop(batch.labels, batch.outputs["logits"])[rows].mean(), rel=1e-5)


def test_cross_entropy_of_smoothed_labels():
    value, batch = value_of(CrossEntropy(label_smoothing=0.2))
    loop = loops.smoothed_cross_entropy(batch.labels, batch.outputs["logits"], 0.2)
    assert value == pytest.approx(loop.mean(), rel=1e-5)


def test_cross_entropy_with_a_margin():
    value, batch = value_of(CrossEntropy(margin=0.7))
    loop = loops.cross_entropy_with_margin(batch.labels, batch.outputs["logits"], 0.7)
    assert value == pytest.approx(loop.mean(), rel=1e-5)


@pytest.mark.parametrize("views", [(CLEAN, ATTACKED), (ATTACKED, CLEAN)])
def test_kl_to_clean_whatever_the_order_of_views(views):
    value, batch = value_of(KLToClean(), views)
    clean, attacked = (slice(0, N), slice(N, None)) if views[0] is CLEAN else (slice(N, None), slice(0, N))
    logits = batch.outputs["logits"]
    assert value == pytest.approx(loops.kl(logits[clean], logits[attacked]).mean(), rel=1e-5)
    assert value != pytest.approx(loops.kl(logits[attacked], logits[clean]).mean(), rel=1e-2)
    value, _ = value_of(MisclassifiedKL(), views)
    assert value == pytest.approx(loops.misclassified_kl(LABELS, logits[clean], logits[attacked]).mean(), rel=1e-5)


def test_kl_to_clean_beside_other_views():
    value, batch = value_of(KLToClean(), (CLEAN, CROP, ATTACKED))
    logits = batch.outputs["logits"]
    assert value == pytest.approx(loops.kl(logits[:N], logits[2 * N :]).mean(), rel=1e-5)


@pytest.mark.parametrize("term", [KLToClean(), MisclassifiedKL()])
def test_a_kl_without_its_two_views_is_refused(term):
    with pytest.raises(ValueError, match=f"{term.term} needs one clean and one adversarial view"):
        phase_of(term, views=(CLEAN, CLEAN))


@pytest.mark.parametrize("term", [CrossEntropy(on="clean"), BoostedCrossEntropy(on="clean")])
def test_a_term_on_a_view_that_is_not_there_is_refused(term):
    with pytest.raises(ValueError, match=f"no clean view for its {term.term}"):
        phase_of(term)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"anchors_on": "clean"}, "no clean view for its supcon"),
        ({"detached": "clean"}, "no clean view for its supcon"),
        ({"on": "augmented", "detached": "augmented"}, "leave out on, or anchors_on and detached"),
        ({"anchors_on": "augmented", "detached": "augmented"}, "anchors_on and detached are both augmented"),
    ],
)
def test_supcon_of_views_that_do_not_fit_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        phase_of(SupCon(**fields))


def test_weigh_is_the_weighted_sum():
    terms = (
        CrossEntropy(weight=0.5, on="clean"),
        KLToClean(weight=6.0),
        SupCon(weight=0.25),
        CrossEntropy(weight=0.0),
    )
    phase = phase_of(*terms, views=(CLEAN, ATTACKED))
    assert term_names(phase) == ("cross_entropy_clean", "kl_to_clean", "supcon", "cross_entropy")
    values = {"cross_entropy_clean": 2.0, "kl_to_clean": 0.1, "supcon": 4.0, "cross_entropy": 100.0}
    assert weigh(phase, values) == pytest.approx(0.5 * 2 + 6 * 0.1 + 0.25 * 4)
    assert set(evaluate_terms(phase, batch_of(phase))) == set(values)


def test_two_terms_of_a_kind_are_kept_apart():
    phase = phase_of(SupCon(temperature=0.1), SupCon(temperature=1.0, weight=10.0), CrossEntropy())
    batch = batch_of(phase)
    values = evaluate_terms(phase, batch)
    assert list(values) == ["supcon_1", "supcon_2", "cross_entropy"]
    labels, outputs = batch.labels, batch.outputs
    expected = (
        loops.supcon_mean(labels, outputs["projection"], 0.1)
        + 10 * loops.supcon_mean(labels, outputs["projection"], 1.0)
        + loops.cross_entropy(labels, outputs["logits"]).mean()
    )
    assert float(weigh(phase, values)) == pytest.approx(expected, rel=1e-5)


def test_every_term_has_a_rule():
    classes = get_args(get_args(Term)[0])
    assert set(TERMS) == {term.__dataclass_fields__["term"].default for term in classes}
    assert set(TERMS) == {
        "cross_entropy",
        "boosted_cross_entropy",
        "supcon",
        "prototype_contrastive",
        "margin_contrastive",
        "euclidean_supcon",
        "kl_to_clean",
        "misclassified_kl",
        "interval_tightness",
        "relu_balance",
    }


def test_a_ramp_weighs_by_the_epochs_that_are_done():
    ramp = Ramp(start=1, stop=0.5, epochs=10, after=2)
    phase = phase_of(CrossEntropy(weight=ramp))
    assert [float(weigh(phase, {"cross_entropy": 4.0}, epochs)) for epochs in (0, 2, 7, 12, 50)] == [4, 4, 3, 2, 2]


def test_the_worst_case_is_apart_from_the_views_of_images():
    """SupCon is of the two crops alone, cross-entropy of the logits of either; each term of a worst case is its own."""
    worst = WorstCase(epsilon=0.1)
    of_worst = CrossEntropy(on="worst_case"), IntervalTightness(), SupCon(reads="embedding", on="worst_case")
    phase = phase_of(SupCon(), CrossEntropy(), *of_worst, views=(CROP, CROP, worst))
    batch = batch_of(phase_of(CrossEntropy(), views=(CROP, CROP)))
    rng, labels = np.random.default_rng(1), np.tile(LABELS, 2)
    bounded = {"logits": rng.normal(size=(N, 3)), "embedding": rng.normal(size=(N, 6)), "interval_tightness": 0.3}
    outputs = {**batch.outputs, "worst_case": bounded}
    values = evaluate_terms(phase, Batch(np.tile(LABELS, 3), outputs, ("augmented", "augmented", "worst_case")))
    unit = bounded["embedding"] / np.linalg.norm(bounded["embedding"], axis=1, keepdims=True)
    expected = {
        "supcon": loops.supcon_mean(labels, outputs["projection"], 0.07),
        "cross_entropy": loops.cross_entropy(labels, outputs["logits"]).mean(),
        "cross_entropy_worst_case": loops.cross_entropy(LABELS, bounded["logits"]).mean(),
        "interval_tightness": 0.3,
        "supcon_worst_case": loops.supcon_mean(LABELS, unit, 0.07),
    }
    assert {name: float(value) for name, value in values.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "share"), [([0, 0, 1, 1], 0.0), ([0, 0, 1, 2], 0.5), ([0, 1, 2], 1.0), ([0, 0, 0, 1], 0.25)]
)
def test_share_of_anchors_without_positives(labels, share):
    assert float(share_without_positives(np.array(labels))) == pytest.approx(share)
    assert float(share_without_positives(np.array(2 * labels))) == 0.0  # a second view is a positive


@pytest.mark.parametrize("views", [(CROP, CROP), (CROP, CROP, ATTACKED)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_collapse_value_is_the_loss_of_equal_projections(views, reduction):
    phase = phase_of(SupCon(temperature=0.07, reduction=reduction), views=views)
    labels = np.tile(LABELS, len(views))
    equal = np.tile([[0.6, 0.8]], (len(labels), 1))
    values = loops.supcon(labels, equal, 0.07)
    expected = values.sum() if reduction == "sum" else values.mean()
    assert phase_collapse_value(phase, N) == pytest.approx(expected)


@pytest.mark.parametrize("term", [CrossEntropy(), MarginContrastive(), SupCon(hard_negatives=True)])
def test_other_terms_have_no_collapse_value(term):
    assert math.isnan(phase_collapse_value(phase_of(term), N))
