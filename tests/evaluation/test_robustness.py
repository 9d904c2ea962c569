"""The survival table against hand arithmetic and a plain loop."""

import dataclasses
import importlib
import threading
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_rcl.attacks import craft
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.robustness import Evaluator, Survival, _batches, measures
from keras_rcl.report.tables import attack_table
from keras_rcl.vocabulary.attacks import (
    BIM,
    DDN,
    FAB,
    FGSM,
    FMN,
    PGD,
    AutoPGD,
    Embedding,
    RayS,
    Square,
    Transfer,
)

quick = settings(max_examples=100)
THREE_AND_ONE = (FGSM(), BIM(), PGD(epsilon="4/255"), PGD())
"""Three attacks of one threat model, and between them one of another."""


@st.composite
def tables(draw):
    """clean [N] and after [4, N]: right before any attack, right on the adversarial images."""
    count = draw(st.integers(1, 200))
    clean = draw(hnp.arrays(bool, count))
    return clean, draw(hnp.arrays(bool, (len(THREE_AND_ONE), count)))


def survival_of(clean, after, attacks=THREE_AND_ONE):
    zeros = np.zeros(len(attacks))
    labels = np.arange(len(clean)) % 10
    return Survival(
        attacks=attacks,
        labels=labels,
        clean_predictions=np.where(clean, labels, labels + 1),
        predictions=np.where(after, labels, labels + 1),
        distances=np.full((len(attacks), len(clean)), np.nan),
        zero_gradients=zeros,
        forwards=zeros,
        backwards=zeros,
        seconds=zeros,
    )


def exactly(value, count):
    """The fraction with a denominator of at most `count` that a float stands for."""
    nearest = Fraction(value).limit_denominator(count)
    assert abs(Fraction(value) - nearest) < Fraction(1, 10**15)
    return nearest


@quick
@given(tables())
def test_robust_accuracy_is_accuracy_times_failure_rate_is_survivors(table):
    clean, after = table
    count = len(clean)
    rows = survival_of(clean, after).rows()
    broken_and_survivors = []
    for outcomes in after:
        survivors = sum(1 for before, then in zip(clean, outcomes, strict=True) if before and then)
        broken_and_survivors.append((sum(clean) - survivors, survivors))
    for row, (broken, survivors) in zip(rows, broken_and_survivors, strict=False):
        right = broken + survivors
        product = row["clean_accuracy"] * (1 - row["attack_success_rate"])
        assert row["robust_accuracy"] == survivors / count == pytest.approx(product, abs=1e-15)
        assert row["attack_failure_rate"] == (survivors / right if right else 1.0)
        assert row["attack_failure_rate"] == pytest.approx(1 - row["attack_success_rate"], abs=1e-15)
        assert exactly(row["clean_accuracy"], count) == Fraction(int(right), count)
        assert exactly(row["adversarial_accuracy"], count) == Fraction(survivors, count)
        assert exactly(row["robust_accuracy"], count) == Fraction(survivors, count)
        if right:
            assert exactly(row["attack_success_rate"], count) == Fraction(int(broken), int(right))


@quick
@given(tables())
def test_worst_case_of_each_threat_model(table):
    """An image stands where it stands under every attack of the threat model; one attack alone has no such row."""
    clean, after = table
    rows = survival_of(clean, after).rows()
    assert [row["attack"] for row in rows] == [
        "FGSM linf 8/255",
        "BIM-10 linf 8/255",
        "PGD-10 linf 4/255",
        "PGD-10 linf 8/255",
        "worst case",
    ]
    assert (rows[-1]["norm"], rows[-1]["epsilon"]) == ("linf", 8 / 255)
    standing = sum(clean[i] and after[0][i] and after[1][i] and after[3][i] for i in range(len(clean)))
    assert exactly(rows[-1]["robust_accuracy"], len(clean)) == Fraction(int(standing), len(clean))
    assert rows[-1]["robust_accuracy"] <= min(rows[i]["robust_accuracy"] for i in (0, 1, 3)) + 1e-15


def test_two_threat_models_have_two_worst_cases():
    attacks = (FGSM(), FGSM(norm="l2"), BIM(norm="l2"), BIM())
    after = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0]], bool)
    rows = survival_of(np.ones(4, bool), after, attacks).rows()
    found = [(row["norm"], row["robust_accuracy"]) for row in rows if row["attack"] == "worst case"]
    assert found == [("linf", 0.5), ("l2", 0.5)]


def test_by_hand():
    """5 images, 4 right, 3 of these fall: ASR 3/4, RA 1/5."""
    found = measures(np.array([1, 1, 1, 1, 0], bool), np.array([1, 0, 0, 0, 0], bool))
    assert found == pytest.approx(
        {
            "clean_accuracy": 0.8,
            "adversarial_accuracy": 0.2,
            "attack_success_rate": 0.75,
            "attack_failure_rate": 0.25,
            "robust_accuracy": 0.2,
        }
    )


@pytest.mark.parametrize(
    ("count", "right", "left", "expected"),
    [
        (125, 45, 18, {"robust_accuracy": 0.144, "attack_failure_rate": 0.4, "attack_success_rate": 0.6}),
        (10, 10, 9, {"robust_accuracy": 0.9, "attack_success_rate": 0.1}),
        (1000, 483, 161, {"clean_accuracy": 0.483, "robust_accuracy": 0.161}),
    ],
)
def test_a_measure_is_the_nearest_float_to_its_fraction(count, right, left, expected):
    """A product of shares would print 0.14400000000000002, a difference 0.09999999999999998."""
    images = np.arange(count)
    found = measures(images < right, images < left)
    assert {name: found[name] for name in expected} == expected


def test_nothing_right_leaves_nothing_to_attack():
    found = measures(np.zeros(3, bool), np.zeros(3, bool))
    assert found["clean_accuracy"] == found["robust_accuracy"] == found["attack_success_rate"] == 0


RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(4, 3))
IMAGES = np.clip(RNG.uniform(-0.1, 1.1, (23, 2, 2, 1)), 0, 1).astype("float32")
SCORES = IMAGES.reshape(23, 4).astype("float64") @ KERNEL
# Every fourth image has the label that it looks least like.
LABELS = np.where(np.arange(23) % 4 == 0, SCORES.argmin(axis=1), SCORES.argmax(axis=1)).astype("int32")
RIGHT = np.flatnonzero(SCORES.argmax(axis=1) == LABELS)


def linear(x):
    """In float64, so that no batch size moves an image across the border."""
    return tf.reshape(tf.cast(x, tf.float64), [-1, 4]) @ KERNEL


def fgsm_by_loop(epsilon, norm):
    """Class [23] of each image after FGSM on the cross-entropy; an image that is wrong before it is left alone."""
    found = []
    for image, label in zip(IMAGES.reshape(23, 4).astype("float64"), LABELS, strict=True):
        scores = image @ KERNEL
        if scores.argmax() == label:
            probabilities = np.exp(scores - scores.max())
            probabilities /= probabilities.sum()
            probabilities[label] -= 1
            gradient = KERNEL @ probabilities
            step = np.sign(gradient) if norm == "linf" else gradient / np.sqrt((gradient**2).sum())
            scores = np.clip(image + epsilon * step, 0, 1) @ KERNEL
        found.append(scores.argmax())
    return np.array(found)


def test_equals_a_loop():
    attacks = [FGSM(epsilon=epsilon, norm=norm) for norm in ("linf", "l2") for epsilon in (0.02, 0.1, 0.3)]
    survival = Evaluator(linear, attacks, batch_size=5)(IMAGES, LABELS)
    np.testing.assert_array_equal(survival.clean_predictions, SCORES.argmax(axis=1))
    assert survival.clean_accuracy == pytest.approx(17 / 23)
    survivors = []
    for number, attack in enumerate(attacks):
        expected = fgsm_by_loop(attack.epsilon, attack.norm)
        np.testing.assert_array_equal(survival.predictions[number], expected)
        row = survival.rows()[number]
        survivors.append(sum(expected == LABELS))
        assert row["robust_accuracy"] == pytest.approx(survivors[-1] / 23)
        assert row["attack_success_rate"] == pytest.approx(1 - survivors[-1] / 17)
    assert 17 > survivors[0] > survivors[2] and 17 > survivors[3] > survivors[5]
    np.testing.assert_array_equal(survival.zero_gradients, 0)


ATTACKS = (
    PGD(epsilon=0.1, num_steps=3, num_restarts=2),
    PGD(epsilon=0.2, norm="l2", num_steps=3),
    BIM(epsilon=0.2, num_steps=3, targeted=True),
)


@pytest.mark.slow
def test_batch_size_does_not_matter_and_craft_makes_the_same_again():
    """In large batches the rounds of an attack run side by side, and Square asks for several moves at once."""
    attacks = (*ATTACKS, FAB(epsilon=0.2, num_steps=3, num_targets=2), Square(epsilon=0.1, num_queries=40))
    first = Evaluator(linear, attacks, batch_size=5, seed=3)(IMAGES, LABELS, keep_images=True)
    wrong = np.setdiff1d(np.arange(23), RIGHT)
    assert 0 < first.survived.sum() < len(attacks) * len(RIGHT)
    for batch_size in (1, 100):
        evaluator = Evaluator(linear, attacks, batch_size=batch_size, seed=3)
        survival = evaluator(IMAGES, LABELS, keep_images=True)
        np.testing.assert_array_equal(survival.predictions, first.predictions)
        np.testing.assert_allclose(survival.adversarial, first.adversarial, rtol=0, atol=1e-6)
        np.testing.assert_allclose(survival.zero_gradients, first.zero_gradients, atol=1e-6)
        for number in range(len(attacks)):
            chosen = RIGHT[[7, 2, 11]]
            again = evaluator.craft(number, IMAGES[chosen], LABELS[chosen])
            np.testing.assert_allclose(again, first.adversarial[number, chosen], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(first.adversarial[:, wrong], np.broadcast_to(IMAGES[wrong], (5, 6, 2, 2, 1)))
    for number in range(len(attacks)):
        seen = first.adversarial[number].reshape(23, 4).astype("float64") @ KERNEL
        np.testing.assert_array_equal(seen.argmax(axis=1), first.predictions[number])


@pytest.mark.parametrize(
    "attack", [ATTACKS[0], PGD(epsilon=0.3, num_steps=5, num_restarts=3), AutoPGD(epsilon=0.2, num_steps=5)]
)
def test_the_first_broken_and_robust_images_are_kept(attack, monkeypatch):
    """They are those of an evaluation that keeps all; images that another process attacked are crafted."""
    monkeypatch.setattr("keras_rcl.evaluation.robustness.SAMPLES", 3)
    evaluator = Evaluator(linear, [attack], batch_size=4, seed=3)
    whole, survival = evaluator(IMAGES, LABELS, keep_images=True), evaluator(IMAGES, LABELS)
    broken, robust = np.flatnonzero(survival.clean & ~survival.survived[0]), np.flatnonzero(survival.survived[0])
    first = np.concatenate([broken[:3], robust[:3]])
    assert len(first) > 3 and set(first.tolist()) == set(survival.samples[0])
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "craft", None)
        kept = evaluator.adversarial_images(survival, 0, first, IMAGES)
    np.testing.assert_array_equal(kept, whole.adversarial[0, first])
    np.testing.assert_array_equal(evaluator.adversarial_images(whole, 0, RIGHT, IMAGES), whole.adversarial[0, RIGHT])
    crafted = evaluator.adversarial_images(survival, 0, RIGHT, IMAGES)
    np.testing.assert_allclose(crafted, whole.adversarial[0, RIGHT], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_it_is_the_attack_with_its_seed():
    evaluator = Evaluator(linear, ATTACKS[:2], batch_size=5, seed=3)
    for number in range(2):
        images, labels = IMAGES[RIGHT], LABELS[RIGHT]
        expected = craft(ATTACKS[number], linear, images, labels, seed=3).numpy()
        found = evaluator.craft(number, images, labels)
        fooled = np.argmax(expected.reshape(-1, 4) @ KERNEL, axis=1) != labels
        np.testing.assert_array_equal(np.argmax(found.reshape(-1, 4) @ KERNEL, axis=1) != labels, fooled)
        if ATTACKS[number].num_rounds == 1:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (FGSM(epsilon=0.1), BIM(epsilon=0.2, num_steps=3, step_size=0.03)),
        (PGD(epsilon=0.1, num_restarts=2), PGD(epsilon=0.3, num_steps=4)),
        (AutoPGD(epsilon=0.1, num_steps=5), AutoPGD(epsilon=0.2, num_steps=5)),
        (FAB(epsilon=0.1, num_steps=3, num_targets=1), FAB(epsilon=0.3, num_steps=3, num_targets=1)),
        (Square(epsilon=0.1, num_queries=5), Square(epsilon=0.2, num_queries=5)),
    ],
)
def test_attacks_that_differ_in_numbers_share_a_graph(first, second):
    """Nothing is traced for the second attack, and it gives what it gives with its numbers as constants."""
    traced = []

    def counted(x):
        traced.extend([] if tf.executing_eagerly() else [x.shape])
        return linear(x)

    images, labels = IMAGES[RIGHT], LABELS[RIGHT]
    evaluator = Evaluator(counted, [first], seed=3)
    evaluator(images, labels)
    before = len(traced)
    survival = evaluator.with_attacks([second], 3)(images, labels, keep_images=True)
    assert len(traced) == before > 0
    expected = craft(second, linear, images, labels, seed=3)
    np.testing.assert_allclose(survival.adversarial[0], expected, rtol=0, atol=1e-6)


# Images of three classes in the middle of the box, the last of them misclassified. Logits are far apart, so that
# cross-entropy leads to the border as well.
MIDDLE = RNG.uniform(0.47, 0.53, (8, 2, 2, 1)).astype("float32")
STEEP = 40 * np.array([[9, -7, -8], [6, 9, -9], [-7, 8, 9], [8, -6, 7]], "float64")
BIAS = -STEEP.sum(axis=0) / 2
MIDDLE_SCORES = MIDDLE.reshape(-1, 4).astype("float64") @ STEEP + BIAS
MIDDLE_LABELS = np.where(np.arange(8) == 7, MIDDLE_SCORES.argmin(axis=1), MIDDLE_SCORES.argmax(axis=1))


def steep(x):
    return tf.reshape(x, [-1, 4]) @ tf.constant(STEEP, tf.float32) + tf.constant(BIAS, tf.float32)


def distances_to_the_border(norm):
    """[7], the closed form: the smallest (z_y - z_k) / ||w_y - w_k||, in the dual norm, over the other classes k."""
    found = []
    for scores, label in zip(MIDDLE_SCORES[:7], MIDDLE_LABELS, strict=False):
        others = [k for k in range(3) if k != label]
        sizes = [
            np.linalg.norm(STEEP[:, label] - STEEP[:, k], {"linf": 1, "l2": 2, "l1": np.inf}[norm]) for k in others
        ]
        found.append(min((scores[label] - scores[k]) / size for k, size in zip(others, sizes, strict=True)))
    return np.array(found)


def between(distances):
    """Epsilons of which each is beyond the distances of some images and short of those of others."""
    ranked = np.sort(distances)
    return [float(ranked[number : number + 2].mean()) for number in (2, 3, 5)]


@pytest.mark.parametrize(
    "attack",
    [
        FMN(norm="l2", num_steps=200),
        FMN(norm="l1", num_steps=200),
        DDN(num_steps=200, initial_epsilon=0.02),
    ],
    ids=lambda attack: f"{attack.name} {attack.norm}",
)
def test_one_run_gives_the_median_distance_and_the_robust_accuracy_at_every_epsilon(attack):
    """Of a linear classifier both are closed forms."""
    expected = distances_to_the_border(attack.norm)
    attacks = [attack.with_epsilon(epsilon) for epsilon in between(expected)]
    survival = Evaluator(steep, [FGSM(), *attacks], batch_size=4)(MIDDLE, MIDDLE_LABELS, keep_images=True)
    rows = survival.rows()[1:]
    for number, (row, each) in enumerate(zip(rows, attacks, strict=True), 1):
        np.testing.assert_allclose(survival.nearest[number][:7], expected, rtol=0.02)
        np.testing.assert_array_equal(survival.survived[number][:7], expected > each.epsilon)
        assert row["robust_accuracy"] == np.sum(expected > each.epsilon) / 8
        assert row["median_distance"] == pytest.approx(np.median(expected), rel=0.02)
        assert row["largest_distance"] <= each.epsilon
        moved = np.abs(survival.adversarial[number] - MIDDLE).max(axis=(1, 2, 3)) > 0
        np.testing.assert_array_equal(moved[:7], expected <= each.epsilon)
    assert np.isnan(survival.nearest[:, 7]).all() and np.isnan(survival.nearest[0]).all()
    assert "median_distance" not in survival.rows()[0]
    forwards, backwards = attack.for_classes(3).num_passes
    assert (rows[0]["forwards"], rows[0]["backwards"]) == (7 * (forwards + 1), 7 * backwards)
    assert rows[0]["seconds"] > 0
    assert {(row["forwards"], row["backwards"], row["seconds"]) for row in rows[1:]} == {(0, 0, 0)}


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_a_search_through_logits_that_differ_by_rounding_ends_past_the_border_of_the_served_ones(norm):
    """The logits that are read favour other classes by 1e-4, so that their border is nearer by less than 0.1 %."""
    expected = distances_to_the_border(norm)
    right = tf.one_hot(MIDDLE_LABELS, 3)

    def read(x):
        return steep(x) - 1e-4 * tf.gather(right, tf.range(tf.shape(x)[0]))

    attack = FMN(norm=norm, num_steps=200, epsilon={"linf": 0.9, "l2": 1.9, "l1": 3.9}[norm])
    survival = Evaluator(steep, [attack], batch_size=8, gradient_fn=read)(MIDDLE, MIDDLE_LABELS)
    assert not survival.survived[0][:7].any()
    np.testing.assert_allclose(survival.nearest[0][:7], expected, rtol=0.02)


def test_a_model_that_is_never_fooled_has_an_infinite_median():
    attack = FMN(norm="l2", num_steps=1)
    survival = Evaluator(lambda x: 1e-5 * steep(x) + [1.0, 0, 0], [attack], batch_size=8)(MIDDLE, np.zeros(8, int))
    rows = survival.rows()
    assert np.isinf(survival.nearest).all() and rows[0]["median_distance"] is None
    table = attack_table({"rows": [*rows, {**rows[0], "median_distance": 0.25}], "images": 8}).splitlines()
    assert table[0].endswith("median distance") and table[2].endswith("  infinite") and table[3].endswith("  0.250")


@pytest.mark.slow
def test_an_attack_that_ends_within_epsilon_runs_once_for_several_epsilons():
    """The outcomes are those of a run per epsilon, which ends at the first adversarial image within epsilon."""
    attack = RayS(num_queries=200)
    attacks = [attack.with_epsilon(epsilon) for epsilon in between(distances_to_the_border(attack.norm))]
    evaluator = Evaluator(steep, attacks, batch_size=8)
    survival = evaluator(MIDDLE, MIDDLE_LABELS)
    for number, each in enumerate(attacks):
        alone = evaluator.with_attacks([each], 0)(MIDDLE, MIDDLE_LABELS)
        np.testing.assert_array_equal(alone.survived[0], survival.survived[number])
        assert np.isnan(alone.nearest).all()
    assert survival.rows()[0]["median_distance"] == survival.rows()[1]["median_distance"] > 0


def test_zero_gradients_of_the_images_attacked():
    """Images whose first pixel is bright have no gradient; the brightest, which fills up a batch, counts once."""

    def dull(x):
        return linear(tf.where(x[:, :1, :1] > 0.5, tf.stop_gradient(x), x))

    chosen = RIGHT[np.argsort(IMAGES[RIGHT, 0, 0, 0])]
    share = np.mean(IMAGES[chosen, 0, 0, 0] > 0.5)
    assert 0.2 < share < 0.8
    attacks = [FGSM(), BIM(num_steps=2, epsilon=0)]
    survival = Evaluator(dull, attacks, batch_size=len(chosen) - 1)(IMAGES[chosen], LABELS[chosen])
    np.testing.assert_allclose(survival.zero_gradients, share, rtol=1e-6)


def test_epsilon_0_is_clean_accuracy_exactly():
    survival = Evaluator(linear, [attack.with_epsilon(0.0) for attack in ATTACKS], batch_size=5)(
        IMAGES, LABELS, keep_images=True
    )
    assert {row["robust_accuracy"] for row in survival.rows()} == {survival.clean_accuracy}
    np.testing.assert_array_equal(survival.adversarial, np.broadcast_to(IMAGES, (3, *IMAGES.shape)))


def test_a_targeted_attack_aims_at_the_least_likely_class():
    attack = FGSM(epsilon=0.01, targeted=True, loss="logit_margin")
    survival = Evaluator(linear, [attack], batch_size=17)(IMAGES, LABELS, keep_images=True)
    for index in RIGHT:
        ranked = np.argsort(SCORES[index])
        # It narrows the margin between the best class and the least likely one.
        step = np.sign(KERNEL[:, ranked[0]] - KERNEL[:, ranked[2]])
        expected = np.clip(IMAGES[index].ravel() + 0.01 * step, 0, 1)
        np.testing.assert_allclose(survival.adversarial[0, index].ravel(), expected, atol=1e-6)


@pytest.mark.slow
def test_transfer_is_crafted_on_its_source_and_counts_on_the_target():
    """Also with several rounds, each on what survived on the target; and beside the white-box attack."""
    other = np.random.default_rng(7).normal(size=(4, 3))

    def source(x):
        return tf.reshape(tf.cast(x, tf.float64), [-1, 4]) @ other

    inner = (PGD(epsilon=0.3, num_steps=5), AutoPGD(epsilon=0.3, num_steps=5), PGD(epsilon=0.3, num_restarts=3))
    attacks = [PGD(epsilon=0.3, num_steps=5), *(Transfer(source="other", attack=attack) for attack in inner)]
    evaluator = Evaluator(
        linear, attacks, batch_size=5, seed=3, outputs=lambda attack: source if attack.proxy else linear
    )
    survival = evaluator(IMAGES, LABELS, keep_images=True)
    images, labels = IMAGES[RIGHT], LABELS[RIGHT]
    for number, logits in ((0, linear), (1, source), (2, source)):
        plain = attacks[0] if number == 0 else attacks[number].attack
        expected = craft(plain, logits, images, labels, seed=3)
        np.testing.assert_allclose(survival.adversarial[number, RIGHT], expected, rtol=0, atol=1e-6)
        predicted = np.argmax(linear(expected), axis=1)
        np.testing.assert_array_equal(survival.predictions[number, RIGHT], predicted)
    broken = (~survival.survived[:, RIGHT]).sum(axis=1)
    assert broken[0] > broken[1] > 0 and broken[3] >= broken[1]


def test_an_attack_on_the_embedding_restarts_on_what_survives_on_the_logits():
    """Of an encoder that looks at one pixel: each image goes up or down there, by chance, until it falls."""
    row = np.array([[1.0], [0.0], [0.0], [0.0]])

    def encoder(x):
        return tf.reshape(tf.cast(x, tf.float64), [-1, 4]) @ row

    broken = []
    for restarts in (1, 8):
        attack = Embedding(epsilon=0.5, num_steps=5, num_restarts=restarts)
        evaluator = Evaluator(linear, [attack], batch_size=5, outputs=lambda attack: encoder)
        broken.append(set(np.flatnonzero(~evaluator(IMAGES, LABELS).survived[0])))
    assert broken[0] < broken[1]


@pytest.mark.slow
def test_passes_are_those_that_a_model_sees(monkeypatch):
    module = importlib.import_module("keras_rcl.attacks.craft")
    monkeypatch.setattr(module, "_splits", lambda *_: False)  # by which one image would be both halves
    seen, lock = {"forward": 0, "backward": 0}, threading.Lock()

    def count(kind):
        def tell(size):
            with lock:
                seen[kind] += int(size)
            return np.int32(0)

        return tell

    @tf.custom_gradient
    def counted(x):
        def backward(upstream):
            tf.numpy_function(count("backward"), [tf.shape(x)[0]], tf.int32)
            return upstream

        tf.numpy_function(count("forward"), [tf.shape(x)[0]], tf.int32)
        return tf.identity(x), backward

    # One image per batch, so that no batch is filled up; and one pass to learn the number of classes.
    images, labels = IMAGES[RIGHT[:16]], LABELS[RIGHT[:16]]
    several = FAB(num_steps=2, multi_targeted=False), PGD(num_steps=2, eot_iter=3)
    attacks = (*ATTACKS, *several, FGSM(), dataclasses.replace(ATTACKS[0], targeted=True))
    for attack in attacks:
        evaluator = Evaluator(lambda x: linear(counted(x)), [attack], batch_size=1)
        seen.update(forward=0, backward=0)
        survival = evaluator(images, labels)
        assert (seen["forward"] - 16 - 1, seen["backward"]) == (survival.forwards[0], survival.backwards[0])
        assert survival.rows()[0]["forwards"] == survival.forwards[0] >= 32
        seen.update(forward=0, backward=0)
        again = evaluator(images, labels)
        assert seen["forward"] - 16 == again.forwards[0], "the number of classes is asked for once"


@pytest.mark.parametrize("images", [IMAGES * 255, (IMAGES * 255).astype("uint8"), IMAGES - 0.5, IMAGES[0]])
def test_what_is_no_batch_of_images_is_refused(images):
    with pytest.raises(InvalidInputError, match=r"\[0, 1\]|\[N, H, W, C\]"):
        Evaluator(linear, [FGSM()], batch_size=5)(images, LABELS)


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_batches_cover_every_index_once(size):
    for count in (0, 1, 2, 7, 8, 9, 40):
        indices = np.arange(count) + 5
        batches = _batches(indices, size)
        np.testing.assert_array_equal(np.concatenate([*batches, indices[:0]]), indices)
        sizes = [len(batch) for batch in batches]
        assert len(batches) == -(-count // size) and all(0 < held <= size for held in sizes)
        assert not sizes or max(sizes) - min(sizes) <= 1
