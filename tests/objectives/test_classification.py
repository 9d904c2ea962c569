"""Cross-entropy, the KL of TRADES and MART's two terms against the papers' loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objectives as reference

from keras_rcl.errors import InvalidInputError
from keras_rcl.objectives import (
    BoostedCrossEntropy,
    CrossEntropy,
    KLToClean,
    boosted_cross_entropy,
    cross_entropy,
    kl_to_clean,
    misclassified_kl,
)

quick = settings(max_examples=15)


@st.composite
def two_sets_of_logits(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 6)), draw(st.integers(2, 10))
    scale = draw(st.sampled_from((0.1, 1.0, 10.0)))
    return tuple((scale * rng.normal(size=shape)).astype("float32") for _ in range(2))


def close(actual, expected):
    np.testing.assert_allclose(np.array(actual), expected, rtol=1e-6, atol=1e-6)


@quick
@given(two_sets_of_logits(), st.integers(0, 2**32 - 1))
def test_cross_entropy_is_the_loop(logits, seed):
    logits, _ = logits
    labels = np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))
    expected = reference.cross_entropy(labels, logits)
    close(cross_entropy(labels, logits), expected)
    close(CrossEntropy()(labels[:, None], logits), expected.mean())
    close(CrossEntropy(reduction="sum")(labels, logits), expected.sum())


@quick
@given(two_sets_of_logits())
def test_kl_is_the_loop(logits):
    clean, adversarial = logits
    expected = reference.kl(clean, adversarial)
    np.testing.assert_allclose(kl_to_clean(clean, adversarial), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(KLToClean()(clean, adversarial), expected.mean(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(kl_to_clean(clean, clean), 0.0)


@quick
@given(two_sets_of_logits(), st.integers(0, 2**32 - 1))
def test_marts_terms_are_the_loops(logits, seed):
    clean, adversarial = logits
    labels = np.random.default_rng(seed).integers(0, clean.shape[1], len(clean))
    expected = reference.boosted_cross_entropy(labels, adversarial)
    np.testing.assert_allclose(boosted_cross_entropy(labels, adversarial), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        BoostedCrossEntropy()(labels[:, None], adversarial), expected.mean(), rtol=1e-5, atol=1e-6
    )
    expected = reference.misclassified_kl(labels, clean, adversarial)
    np.testing.assert_allclose(misclassified_kl(labels, clean, adversarial), expected, rtol=1e-5, atol=1e-6)


def test_boosted_cross_entropy_has_a_slope_where_the_wrong_class_is_certain():
    """p_k rounds to 1 there, and log(1 - p_k) would be infinite; the published code adds 1e-4 instead."""
    logits = tf.constant([[60.0, -60.0, -60.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = boosted_cross_entropy(tf.constant([1]), logits)
    np.testing.assert_allclose(value, [120 + 120 - np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(value, logits), [[2.0, -1.5, -0.5]], atol=1e-6)


def test_what_is_certain_and_right_weighs_nothing_in_marts_kl():
    clean, adversarial = np.array([[100.0, 0.0]] * 2, "float32"), np.array([[0.0, 3.0]] * 2, "float32")
    right, wrong = misclassified_kl(np.array([0, 1]), clean, adversarial)
    assert float(right) == 0.0
    np.testing.assert_allclose(wrong, kl_to_clean(clean, adversarial)[1])


def test_half_precision_logits_are_computed_in_float32_and_stay_finite():
    clean, adversarial = np.array([[60000.0, -60000.0]], "float16"), np.array([[-60000.0, 60000.0]], "float16")
    value = kl_to_clean(clean, adversarial)
    assert value.dtype == cross_entropy(np.array([1]), clean).dtype == "float32"
    assert float(value[0]) == 120000.0


def test_kl_moves_both_clean_and_adversarial_logits():
    clean, adversarial = tf.constant([[1.0, 0.0]]), tf.constant([[0.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch([clean, adversarial])
        value = kl_to_clean(clean, adversarial)
    assert all(np.any(slope) for slope in tape.gradient(value, [clean, adversarial]))


def test_logits_of_other_images_raise():
    with pytest.raises(InvalidInputError, match=r"\(2, 3\) and adversarial logits \(1, 3\)"):
        kl_to_clean(np.zeros((2, 3)), np.zeros((1, 3)))


@pytest.mark.parametrize(
    "loss", [CrossEntropy("sum", "one"), KLToClean("sum", "two"), BoostedCrossEntropy("sum", "three")]
)
def test_loss_classes_survive_serialisation(loss):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()


def test_anybodys_model_trains_on_them():
    """One model under `CrossEntropy` to its labels, another under `KLToClean` to the first one's logits."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    labels = (x[:, 0] > 0).astype("int64")
    teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]) for _ in range(2))
    for model, loss, target in ((teacher, CrossEntropy(), lambda: labels), (student, KLToClean(), lambda: teacher(x))):
        model.compile(keras.optimizers.Adam(0.1), loss=loss, jit_compile=False)
        history = model.fit(x, np.array(target()), epochs=5, verbose=0).history["loss"]
        assert history[-1] < history[0]
