"""The audit catches each planted fault, and passes the sound model beside it.

The sound model is a linear classifier of scikit-learn's digits. Its margins are linear in the pixels, so gradients are
exact everywhere, and what is planted is the only fault.
"""

import dataclasses
import functools
import re
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from keras_rcl.attacks.estimated_gradient import with_estimated_gradient
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation import audit as auditing
from keras_rcl.evaluation.audit import Evidence, Subject, audit
from keras_rcl.evaluation.checks import CHECKS, Finding
from keras_rcl.evaluation.checks.context import Attempt, Context, WorstCase
from keras_rcl.evaluation.early import attack_until_decided
from keras_rcl.evaluation.robustness import Survival
from keras_rcl.runtime.progress import Silent
from keras_rcl.vocabulary.attacks import PGD, AutoAttack, Embedding, Square, Transfer
from keras_rcl.vocabulary.claim import AuditBudget, Claim, as_claim

pytestmark = pytest.mark.usefixtures("unoptimized")

DIGITS = load_digits()
PIXELS = (DIGITS.images[..., None] / 16).astype("float32")
TRAIN, TEST = slice(0, 1200), slice(1200, 1260)
FIT = LogisticRegression(C=0.1, max_iter=500).fit(PIXELS[TRAIN].reshape(-1, 64), DIGITS.target[TRAIN])
KERNEL, BIAS = FIT.coef_.T.astype("float32"), FIT.intercept_.astype("float32")
IMAGES, LABELS = PIXELS[TEST], DIGITS.target[TEST].astype("int32")
EPSILON = 32 / 255
BUDGET = AuditBudget(
    num_images=60,
    num_steps=10,
    num_restarts=2,
    num_queries=200,
    num_draws=3,
    verifier=PGD(epsilon=EPSILON, num_steps=40, num_restarts=2, loss="logit_margin"),
)


SHORT = AuditBudget(
    num_images=30,
    num_steps=3,
    num_restarts=1,
    num_queries=10,
    num_draws=1,
    verifier=PGD(epsilon=EPSILON, num_steps=20, loss="logit_margin"),
)


def flat(x):
    return tf.reshape(x, [-1, 64])


def sound(x):
    return flat(x) @ KERNEL + BIAS


@functools.cache
def true_accuracy():
    """Of the linear model, in closed form: each difference of two classes is minimised pixel by pixel, in the box."""
    robust = []
    for image, label in zip(IMAGES.reshape(-1, 64).astype("float64"), LABELS, strict=True):
        low, high = np.maximum(image - EPSILON, 0), np.minimum(image + EPSILON, 1)
        margins = []
        for other in set(range(10)) - {label}:
            weights = (KERNEL[:, label] - KERNEL[:, other]).astype("float64")
            worst = np.where(weights > 0, low, high) @ weights + float(BIAS[label] - BIAS[other])
            margins.append(worst)
        robust.append(min(margins) > 0)
    return float(np.mean(robust))


OF_THE_MODEL = ("logits", "repeated", "margin_gradient", "attacks", "checked", "measured", "stronger", "estimated")
"""The measurements of an audit that depend on the model, the ball and the budget, and not on the claimed number."""


@functools.cache
def measured_once(logits, budget):
    """The context of an audit of a model, in which each measurement is made by the first audit that needs it."""
    claim = Claim(robust_accuracy=0.5, epsilon=EPSILON)
    context = Context(Subject(logits), IMAGES, LABELS, claim, None, budget, 60, 0, Silent())
    if budget is not BUDGET:
        vars(context)["evaluator"] = measured_once(logits, BUDGET).evaluator
    return context


def survival(logits, attack=BUDGET.verifier):
    return measured_once(logits, BUDGET).evaluate((attack,), slice(None))


def found(subject, claimed, *, evidence=None, budget=BUDGET):
    """The audit of a claim, and the raised checks; audits of one function share what the claim does not change."""
    claim = Claim(robust_accuracy=claimed, epsilon=EPSILON)
    if isinstance(subject, Subject):
        result = audit(subject, IMAGES, LABELS, claim, evidence=evidence, budget=budget)
    else:
        measured = measured_once(subject, budget)
        context = dataclasses.replace(measured, claim=claim, evidence=evidence)
        vars(context).update(evaluator=measured.evaluator, **{name: getattr(measured, name) for name in OF_THE_MODEL})
        result = auditing.conclude(context)
    return result, {finding.check for finding in result.findings if finding.status == "raised"}


def record_of(logits, attack, **changes):
    """What a record of this attack on these logits says."""
    table = survival(logits, attack)
    fields = dict(
        clean=table.clean,
        survived=table.survived[0],
        attacked=((table.adversarial[0], table.survived[0]),),
        protocol=attack.protocol,
        largest_distance=table.rows()[0]["largest_distance"],
    )
    return Evidence(**{**fields, **changes})


def context_of(logits, images, labels, claim, survived=None, evidence=None):
    """The context of an audit, with the outcome of all attacks given instead of measured."""
    context = Context(Subject(logits), images, labels, claim, evidence, SHORT, 50, 0, Silent())
    clean = np.argmax(np.concatenate([logits(images[i : i + 50]) for i in range(0, len(images), 50)]), axis=1) == labels
    survived = clean if survived is None else survived
    measured = SimpleNamespace(clean=clean, clean_accuracy=float(clean.mean()), survived=survived[None])
    vars(context).update(worst_case=WorstCase(survived, images, labels), measured=measured)
    return context


def raised_by(logits, *names):
    """Which of these checks a model raises, and the verdict on it if no attack broke an image."""
    context = context_of(logits, IMAGES, LABELS, Claim(robust_accuracy=0.5, epsilon=EPSILON))
    findings = tuple(Finding(name, *CHECKS[name].run(context)) for name in names)
    raised = {finding.check for finding in findings if finding.status == "raised"}
    return raised, auditing._verdict(context, findings)[0]


@pytest.mark.slow
def test_the_sound_model_stands():
    assert 0.3 < true_accuracy() < 0.8
    result, raised = found(Subject(sound, embedding=lambda x: flat(x) @ KERNEL), true_accuracy())
    assert (result.verdict, raised) == ("stands", set()), result
    assert [finding.check for finding in result.findings] == list(CHECKS)
    assert result.measured.survived[0].mean() == pytest.approx(true_accuracy())
    assert not len(result.counterexamples)
    evidence = record_of(sound, BUDGET.verifier)
    result, raised = found(sound, float(evidence.survived.mean()), evidence=evidence)
    assert (result.verdict, raised) == ("stands", set()), result


@pytest.mark.slow
def test_a_false_number_falls_with_its_counterexamples():
    evidence = record_of(sound, PGD(epsilon=EPSILON, num_steps=1, step_size=0.001))
    result, raised = found(sound, float(evidence.survived.mean()), evidence=evidence)
    assert result.verdict == "falls" and "claimed number" in raised
    assert len(result.counterexamples) == round(60 * (evidence.survived.mean() - true_accuracy()))
    assert np.all(evidence.survived[result.counterexamples])
    assert np.all(np.argmax(sound(result.adversarial), axis=1) != LABELS[result.counterexamples])
    assert np.abs(result.adversarial - IMAGES[result.counterexamples]).max() <= EPSILON + 1e-6


def test_softmax_fed_to_cross_entropy():
    """The output is a softmax, or its logarithm: the check measures nothing else."""

    def probabilities(x):
        return tf.nn.softmax(30 * sound(x))

    def logarithm(x):
        return tf.math.log(tf.maximum(probabilities(x), np.finfo("float32").tiny))

    for logits, subject in (
        (probabilities, Subject(probabilities)),
        (logarithm, Subject(logarithm, probabilities=True)),
    ):
        context = dataclasses.replace(measured_once(logits, BUDGET), subject=subject)
        assert CHECKS["logits"].run(context).status == "raised"


@pytest.mark.parametrize("kind", ["rounds", "jpeg"])
def test_gradient_masked_by_quantising(kind):
    def rounds(x):
        """Eight grey levels, as floor division gives them: no gradient at all."""
        return tf.floor(x * 8) / 8 + 0 * x

    def jpeg(x):
        """Rounded coefficients of 8x8 blocks, with the gradient that a careless custom gradient gives: of noise."""

        @tf.custom_gradient
        def quantise(x):
            return tf.round(x * 8) / 8, lambda upstream: tf.random.stateless_normal(tf.shape(upstream), [1, 2])

        return quantise(x)

    layer = {"rounds": rounds, "jpeg": jpeg}[kind]
    raised, verdict = raised_by(lambda x: sound(layer(x)), "gradients", "loss surface")
    assert raised and verdict == "not shown"
    assert raised_by(sound, "gradients", "loss surface") == (set(), "stands")


@pytest.mark.slow
def test_no_gradient_at_all():
    """The verifier is Square by default; one that was given and needs gradients is refused, not replaced."""

    def logits(x):
        return sound(tf.cast(tf.cast(x * 255, tf.int32), tf.float32) / 255)

    with pytest.raises(InvalidInputError, match="PGD-40x2 logit_margin needs gradients"):
        found(Subject(logits), 0.99)
    short = dataclasses.replace(BUDGET, verifier=Square(num_queries=200))
    result, raised = found(logits, 0.99, budget=short)
    assert "gradients" in raised and result.verdict == "falls"
    assert f"the claim falls: {result.reason}" == str(result).splitlines()[-1]
    assert len(str(result).splitlines()) == len(result.findings) + 1
    assert repr(result).startswith("Audit(verdict='falls', robust_accuracy=")
    assert result.measured.attacks[0] == Square(epsilon=EPSILON, num_queries=200)
    default = dataclasses.replace(BUDGET, verifier=None)
    assert default.resolved_verifier(result.claim, False, 10, False) == Square(epsilon=EPSILON)


def saturated(x):
    return 1e4 * sound(x)


@pytest.mark.slow
def test_saturated_logits():
    result, raised = found(saturated, true_accuracy())
    assert raised == {"saturation"} and result.verdict == "stands"


def test_random_resizing():
    def resized(x):
        size = tf.random.uniform([], 5, 9, tf.int32)
        return sound(tf.image.resize(tf.image.resize(x, [size, size]), [8, 8]))

    assert raised_by(resized, "deterministic") == ({"deterministic"}, "not shown")


def test_noise_added_at_inference():
    noisy = lambda x: sound(x + tf.random.normal(tf.shape(x), stddev=0.1))  # noqa: E731
    assert raised_by(noisy, "deterministic") == ({"deterministic"}, "not shown")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["wang-meanstd", "wang-minus1to1", "cusin-repo"])
def test_epsilon_in_other_units(protocol):
    """A number that holds in normalised or [-1, 1] units, given as one of pixels: named, and contradicted."""
    attack = PGD(epsilon=EPSILON, num_steps=10, loss="logit_margin", protocol=protocol)
    table = survival(sound, attack)
    result, raised = found(sound, float(table.survived[0].mean()))
    assert result.verdict == "falls" and {"protocol", "claimed number"} <= raised
    (finding,) = (finding for finding in result.findings if finding.check == "protocol")
    assert protocol in finding.because


@pytest.mark.slow
def test_a_record_that_names_another_protocol():
    evidence = record_of(sound, PGD(epsilon=EPSILON, protocol="wang-minus1to1"))
    result, raised = found(sound, true_accuracy(), evidence=evidence)
    assert "protocol" in raised and result.verdict != "stands"


@pytest.mark.slow
def test_a_clamp_in_normalised_space():
    """What `claf-repo` clamps to moves pixels farther than epsilon, whatever the number that comes of it."""
    evidence = record_of(sound, PGD(epsilon=EPSILON, protocol="claf-repo"), protocol="pixel")
    result, raised = found(sound, float(evidence.survived.mean()), evidence=evidence)
    assert "ball and box" in raised and result.verdict != "stands"


@pytest.mark.slow
def test_a_record_whose_images_leave_the_ball():
    evidence = record_of(sound, BUDGET.verifier)
    images, outcome = evidence.attacked[0]
    beyond = np.clip(IMAGES + 1.5 * (images - IMAGES), 0, 1)
    beyond = dataclasses.replace(evidence, attacked=((beyond, outcome),))
    _, raised = found(sound, true_accuracy(), evidence=beyond)
    assert "ball and box" in raised
    brighter = dataclasses.replace(evidence, attacked=((images + 0.01, outcome),))
    _, raised = found(sound, true_accuracy(), evidence=brighter)
    assert "ball and box" in raised


@pytest.mark.slow
def test_a_stale_head():
    """The gradient flows through a head of other training than the one that answers."""
    rng = np.random.default_rng(0)
    stale = rng.normal(size=KERNEL.shape).astype("float32")

    def logits(x):
        through_stale = flat(x) @ stale
        return through_stale + tf.stop_gradient(sound(x) - through_stale)

    weak = float(survival(logits, PGD(epsilon=EPSILON, num_steps=10)).survived[0].mean())
    assert weak > true_accuracy() + 0.1
    result, raised = found(Subject(logits, embedding=lambda x: flat(x) @ KERNEL), weak)
    assert "embedding" in raised and result.verdict != "stands"


def test_batchnorm_in_training_mode():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 8, 8, 1))
    raised, verdict = raised_by(lambda x: sound(layer(x, training=True)), "per image", "deterministic")
    assert raised and verdict == "not shown"


@pytest.mark.slow
def test_a_success_counted_before_the_last_step():
    """Images that fool at the end are counted as robust, as success was looked for before the last step."""
    before = survival(sound, PGD(epsilon=EPSILON, num_steps=3, loss="logit_margin", random_start=False))
    after = survival(sound, PGD(epsilon=EPSILON, num_steps=4, loss="logit_margin", random_start=False))
    counted = before.survived[0]
    assert np.sum(counted & ~after.survived[0]) >= 3
    evidence = Evidence(clean=before.clean, survived=counted, attacked=((after.adversarial[0], counted),))
    result, raised = found(sound, float(counted.mean()), evidence=evidence)
    assert "record" in raised and result.verdict == "falls"


@pytest.mark.parametrize(
    ("count", "broken", "claimed", "verdict", "needed"),
    [
        (100, 4, 1.0, "falls", None),  # under the claim no image is broken
        (100, 1, 1.0, "falls", None),
        (100, 50, 0.6, "not shown", 101),  # P(X <= 50) is 0.027 under the claim
        (100, 51, 0.6, "falls", None),  # and 0.017 for 49
        (60, 20, 0.6, "stands", None),
        (1, 0, 0.6, "not shown", 42),
        (10, 0, 1.0, "not shown", 23),  # 0.025^(1/23) is the first above 0.85
        (23, 0, 1.0, "stands", None),
        (1000, 400, 0.6, "stands", None),
    ],
)
def test_small_samples(count, broken, claimed, verdict, needed):
    survived, ones = np.arange(count) >= broken, np.ones(count, int)
    images, claim = np.full((count, 2, 2, 1), 0.9, "float32"), Claim(robust_accuracy=claimed)

    def logits(x):  # class 1 for all images
        bright = tf.reduce_sum(x, axis=(1, 2, 3))
        return tf.stack([-bright, bright], axis=1)

    context = context_of(logits, images, ones, claim, survived)
    found_verdict, reason = auditing._verdict(context, ())
    assert found_verdict == verdict, reason
    found_needed = context.comparison.images_needed
    if needed is None:
        assert found_needed is None
    else:
        assert abs(found_needed - needed) <= 1 and f"about {found_needed} images" in reason


def misread(kind):
    """The linear model, if it reads images of another range than it is given, or names classes in another order."""

    def signed(x):
        return tf.where(tf.reduce_min(x) < -0.5, sound((x + 1) / 2), tf.one_hot(tf.ones(tf.shape(x)[0], tf.int32), 10))

    return {"0..255": lambda x: sound(x / 255.0), "-1..1": signed, "classes": lambda x: tf.roll(sound(x), 3, axis=1)}[
        kind
    ]


@pytest.mark.parametrize("kind", ["0..255", "-1..1", "classes"])
@pytest.mark.parametrize("claimed", [0.05, 0.6])
def test_no_verdict_about_a_model_that_is_misread(kind, claimed):
    context = context_of(misread(kind), IMAGES, LABELS, Claim(robust_accuracy=claimed))
    status, because, _ = CHECKS["read as trained"].run(context)
    assert status == "raised" and (kind == "classes" or kind in because)
    verdict, reason = auditing._verdict(context, (Finding("read as trained", status, because),))
    assert verdict == "not shown" and "not read as it was trained" in reason
    context = context_of(sound, IMAGES, LABELS, Claim(robust_accuracy=claimed))
    assert CHECKS["read as trained"].run(context).status == "passed"


def test_a_claim_above_the_clean_accuracy_does_not_fall_without_a_counterexample():
    """No attack breaks an image, and fewer images are right than are claimed."""
    claim = Claim(robust_accuracy=1.0, epsilon=1e-4)
    labels = LABELS.copy()
    labels[:20] = (labels[:20] + 1) % 10
    context = context_of(sound, IMAGES, labels, claim)
    findings = (Finding("clean accuracy", *CHECKS["clean accuracy"].run(context)),)
    verdict, reason = auditing._verdict(context, findings)
    assert verdict == "not shown" and "clean accuracy" in reason and "no attack broke an image" in reason


@pytest.mark.slow
def test_transferred_images_break_a_model_without_a_gradient():
    """`others` are attacked where the model itself has no gradient: they are not dropped."""

    def rounds(x):
        return sound(tf.cast(tf.cast(x * 1000, tf.int32), tf.float32) / 1000)

    budget = dataclasses.replace(SHORT, num_images=len(IMAGES), num_steps=20, verifier=Square(num_queries=5))
    result, raised = found(Subject(rounds, others={"linear": sound}), 0.9, budget=budget)
    assert "transfer" in raised and result.verdict == "falls"


@pytest.mark.parametrize(
    ("classes", "verifier", "said"),
    [
        (3, AutoAttack(epsilon=EPSILON), "needs at least 4 classes"),
        (10, PGD(protocol="wang-minus1to1"), "runs under wang-minus1to1"),
        (10, PGD(norm="l2"), "has norm l2"),
        (10, Transfer(source="other"), "give it with --transfer-from"),
        (10, Embedding(), "reads the embedding"),
    ],
)
def test_a_verifier_that_cannot_be_run_is_refused(classes, verifier, said):
    with pytest.raises(InvalidInputError, match=re.escape(said)):
        found(Subject(lambda x: sound(x)[:, :classes]), 0.5, budget=dataclasses.replace(BUDGET, verifier=verifier))


@pytest.mark.slow
def test_a_verifier_is_run_on_few_classes():
    chosen = LABELS < 3
    verifier, claim = PGD(epsilon=EPSILON, num_steps=7), Claim(robust_accuracy=0.1, epsilon=EPSILON)
    few = dataclasses.replace(SHORT, verifier=verifier)
    result = audit(Subject(lambda x: sound(x)[:, :3]), IMAGES[chosen], LABELS[chosen], claim, budget=few)
    assert result.measured.attacks == (verifier,)


@pytest.mark.slow
def test_a_record_of_pixels_is_not_accused():
    """What the record says is not guessed again; of a bare number a coincidence is called one."""
    attack = PGD(epsilon=EPSILON, num_steps=10, loss="logit_margin", protocol="wang-minus1to1")
    evidence = record_of(sound, attack, protocol="pixel")
    result, raised = found(sound, float(evidence.survived.mean()), evidence=evidence)
    assert result.verdict == "falls" and "protocol" not in raised
    result, raised = found(sound, float(evidence.survived.mean()))
    (finding,) = (finding for finding in result.findings if finding.check == "protocol")
    assert "may be a coincidence" in finding.because


@pytest.mark.slow
def test_a_weak_check_does_not_withhold_what_the_verifier_broke():
    """PGD on the cross-entropy is blind, so that Square breaks what it leaves; the verifier broke these as well."""
    blind = dataclasses.replace(BUDGET, num_steps=3)
    result, raised = found(saturated, true_accuracy() - 0.05, budget=blind)
    assert result.verdict == "stands" and raised <= {"saturation"}, result.reason


def test_an_estimated_gradient_sees_through_steps():
    """Of one pixel the estimate is the slope between x - r and x + r, whatever is drawn."""
    stairs = lambda x: tf.stop_gradient(tf.floor(10 * tf.reshape(x, [-1, 1])) * [[1.0, -3.0]])  # noqa: E731
    measured = with_estimated_gradient(stairs, 0.16, 2)
    images = tf.constant([0.25, 0.55])[:, None, None, None]
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = measured(images)
        second = tf.reduce_sum(logits[:, 1])
    np.testing.assert_allclose(logits, stairs(images))
    steps = np.floor([4.1, 7.1]) - np.floor([0.9, 3.9])
    np.testing.assert_allclose(tape.gradient(second, images).numpy().ravel(), -3 * steps / 0.32, rtol=1e-5)


def test_every_check_is_a_row_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs/auditing.md").read_text(encoding="utf-8")
    section = text.partition("## Checks")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-z0-9 ]+?)( \*)? \| .+ \|$", section, re.MULTILINE)
    documented = {name: bool(star) for name, star in rows if name != "check"}
    assert documented == {name: check.blocks for name, check in CHECKS.items()}


def test_the_verifier_by_default_is_autoattack():
    claim = Claim(robust_accuracy=0.5, norm="l2", epsilon=1.0)
    assert AuditBudget().resolved_verifier(claim, False) == AutoAttack(norm="l2", epsilon=1.0)
    assert AuditBudget().resolved_verifier(claim, True).version == "rand"


# Audits that end when the verdict is decided.

MANY, MANY_LABELS = PIXELS[1200:], DIGITS.target[1200:].astype("int32")
EARLY = dataclasses.replace(BUDGET, verdict_confidence=0.99)


def early(claimed):
    """The audit of a claim about the linear model on 597 images, of which the first are those of the other tests."""
    measured = measured_once(sound, BUDGET)
    claim = Claim(robust_accuracy=claimed, epsilon=EPSILON)
    context = Context(Subject(sound), MANY, MANY_LABELS, claim, None, EARLY, 60, 0, Silent())
    shared = [name for name in OF_THE_MODEL if name != "measured"]
    vars(context).update(evaluator=measured.evaluator, **{name: getattr(measured, name) for name in shared})
    return context, auditing.conclude(context)


@pytest.mark.slow
def test_a_false_claim_falls_early_without_the_checks_that_attack():
    context, result = early(0.95)
    assert result.verdict == "falls" and len(result.attacked) == 60
    not_run = {finding.check for finding in result.findings if finding.because == "the verdict was decided without it"}
    assert not_run == {name for name, check in CHECKS.items() if check.attacks}
    assert len(result.counterexamples) == np.sum(result.measured.clean & ~result.survived)
    answers = np.argmax(sound(result.adversarial), axis=1)
    assert np.all(answers != MANY_LABELS[result.counterexamples])
    assert np.abs(result.adversarial - MANY[result.counterexamples]).max() <= EPSILON + 1e-6
    table = context.evaluate((BUDGET.verifier,), slice(None))
    low, high = result.interval
    assert low < table.survived[0].mean() < high and "with 99% confidence" in result.reason


@pytest.mark.slow
def test_a_true_claim_stands_early_with_all_checks():
    context, result = early(0.3)
    assert result.verdict == "stands" and 60 <= len(result.attacked) < 300
    assert {finding.status for finding in result.findings if CHECKS[finding.check].attacks} <= {"passed", "not run"}
    assert "the verdict was decided without it" not in {finding.because for finding in result.findings}
    table = context.evaluate((BUDGET.verifier,), result.attacked)
    np.testing.assert_array_equal(table.survived, result.measured.survived)
    assert result.measured.rows()[0]["robust_accuracy"] == pytest.approx(table.survived.mean())


def test_early_verdicts_are_those_of_all_images(monkeypatch):
    """Of populations whose outcomes are given: the same verdict, and few images where the claim is far off."""
    rng, attack = np.random.default_rng(0), PGD(epsilon=EPSILON)
    monkeypatch.setattr("keras_rcl.evaluation.early.CHECKS", {})
    for share in (0.1, 0.5, 0.8):
        clean = rng.random(1000) < 0.9
        outcomes = clean & (rng.random(1000) < share / 0.9)

        def evaluate(self, attacks, chosen, seed=None, clean=clean, outcomes=outcomes):
            count = np.zeros(len(attacks), int)
            given = {"labels": np.ones(len(clean[chosen]), int), "clean_predictions": clean[chosen].astype(int)}
            for name in ("zero_gradients", "dead_gradients", "forwards", "backwards", "seconds"):
                given[name] = count
            outputs = np.repeat(outcomes[None, chosen].astype(int), len(attacks), axis=0)
            images = np.zeros((len(attacks), len(clean[chosen]), 1, 1, 1))
            return Survival(attacks, predictions=outputs, distances=0.0 * outputs, adversarial=images, **given)

        monkeypatch.setattr(Context, "evaluate", evaluate)
        for away in (-0.1, -0.04, 0.0, 0.02, 0.04, 0.1, 0.3):
            claim = Claim(robust_accuracy=float(np.clip(outcomes.mean() + away, 0, 1)), epsilon=EPSILON)
            verdicts, nothing = [], Attempt(np.zeros(0, int), None)
            for confidence in (None, 0.99):
                budget = AuditBudget(num_images=50, verdict_confidence=confidence)
                images, ones = np.zeros((1000, 1, 1, 1), np.float32), np.ones(1000, int)
                context = Context(Subject(sound), images, ones, claim, None, budget, 50, 1, Silent())
                predicted = SimpleNamespace(predict=lambda images, clean=clean: clean.astype(int))
                vars(context).update(
                    verifier=attack, attacks={}, evaluator=predicted, stronger=nothing, estimated=nothing
                )
                if confidence is not None:
                    context = attack_until_decided(context, confidence)
                verdicts.append(auditing._verdict(context, ())[0])
            assert verdicts[0] == verdicts[1], (share, away)
            assert away not in (-0.1, 0.3) or len(context.positions) <= 500, (share, away)


def test_a_number_is_not_a_claim():
    with pytest.raises(InvalidInputError, match="^0.6 is not a claim; hint: give one, such as"):
        as_claim(0.6)
