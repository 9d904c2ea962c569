"""The audit catches each planted fault, and passes the sound model beside it.

The sound model is a linear classifier of scikit-learn's digits. Its margins are linear in the pixels, so gradients are
exact everywhere, and what is planted is the only fault.
"""

import dataclasses
import functools
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.audit import Evidence, Subject, audit
from keras_rcl.evaluation.checks import CHECKS
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.vocabulary.attacks import PGD, AutoAttack, Square
from keras_rcl.vocabulary.claim import AuditBudget, Claim

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


def flat(x):
    return tf.reshape(x, [-1, 64])


def sound(x):
    return flat(x) @ KERNEL + BIAS


def survival(logits, attack=BUDGET.verifier):
    return Evaluator(logits, [attack], batch_size=60)(IMAGES, LABELS, keep_images=True)


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


def found(subject, claimed, **changes):
    if not isinstance(subject, Subject):
        subject = Subject(subject)
    given = {"budget": BUDGET, **changes}
    result = audit(subject, IMAGES, LABELS, Claim(robust_accuracy=claimed, epsilon=EPSILON), **given)
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


@pytest.mark.slow
def test_softmax_fed_to_cross_entropy():
    """The output is a softmax, and the claim is of an attack on the cross-entropy of that."""

    def probabilities(x):
        return tf.nn.softmax(30 * sound(x))

    weak = survival(probabilities, PGD(epsilon=EPSILON, num_steps=10))
    claimed = float(weak.survived[0].mean())
    result, raised = found(probabilities, claimed)
    assert "logits" in raised
    logarithm = Subject(
        lambda x: tf.math.log(tf.maximum(probabilities(x), np.finfo("float32").tiny)), probabilities=True
    )
    _, raised = found(logarithm, claimed)
    assert "logits" in raised


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rounds", pytest.param("jpeg", marks=pytest.mark.slow)])
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
    result, raised = found(lambda x: sound(layer(x)), true_accuracy())
    assert raised & {"gradients", "loss surface"} and result.verdict in ("not shown", "falls")


def test_no_gradient_at_all():
    """The verifier is Square by default; one that was given and needs gradients is refused, not replaced."""

    def logits(x):
        return sound(tf.cast(tf.cast(x * 255, tf.int32), tf.float32) / 255)

    with pytest.raises(InvalidInputError, match="PGD-40x2 logit_margin needs gradients"):
        found(logits, 0.99)
    short = dataclasses.replace(BUDGET, verifier=Square(num_queries=200))
    result, raised = found(logits, 0.99, budget=short)
    assert "gradients" in raised and result.verdict == "falls"
    assert result.measured.attacks[0] == Square(epsilon=EPSILON, num_queries=200)
    default = dataclasses.replace(BUDGET, verifier=None)
    assert default.resolved_verifier(result.claim, False, 10, False) == Square(epsilon=EPSILON)


@pytest.mark.slow
def test_saturated_logits():
    result, raised = found(lambda x: 1e4 * sound(x), true_accuracy())
    assert raised == {"saturation"} and result.verdict == "stands"


@pytest.mark.slow
def test_random_resizing():
    def resized(x):
        size = tf.random.uniform([], 5, 9, tf.int32)
        return sound(tf.image.resize(tf.image.resize(x, [size, size]), [8, 8]))

    result, raised = found(resized, 0.5)
    assert "deterministic" in raised and result.verdict != "stands"


@pytest.mark.slow
def test_noise_added_at_inference():
    result, raised = found(lambda x: sound(x + tf.random.normal(tf.shape(x), stddev=0.1)), 0.5)
    assert "deterministic" in raised and result.verdict != "stands"


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


@pytest.mark.slow
def test_batchnorm_in_training_mode():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 8, 8, 1))
    result, raised = found(lambda x: sound(layer(x, training=True)), 0.5)
    assert raised & {"per image", "deterministic"} and result.verdict != "stands"


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


def test_every_check_is_a_row_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs/auditing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z0-9 ]+?)( \*)? \| .+ \|$", text.partition("## Checks")[2], re.MULTILINE)
    documented = {name: bool(star) for name, star in rows if name != "check"}
    assert documented == {name: check.blocks for name, check in CHECKS.items()}


def test_the_verifier_by_default_is_autoattack():
    claim = Claim(robust_accuracy=0.5, norm="l2", epsilon=1.0)
    assert AuditBudget().resolved_verifier(claim, False) == AutoAttack(norm="l2", epsilon=1.0)
    assert AuditBudget().resolved_verifier(claim, True).version == "rand"
