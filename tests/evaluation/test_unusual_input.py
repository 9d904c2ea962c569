"""Labels, answers, batches and gradients that are not the usual ones, at the entries that all public calls share."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.attacks import craft
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.certification import Certifier
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.evaluation.warnings import attack_warnings, model_warnings
from keras_rcl.storage.atomic import json_text
from keras_rcl.vocabulary.attacks import FGSM, PGD, AutoPGD, Square

WEIGHTS = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
IMAGES = np.random.default_rng(1).random((24, 4, 4, 1), np.float32)


def logits_fn(images):
    return tf.reshape(images - 0.5, [-1, 16]) @ WEIGHTS


LABELS = np.argmax(np.reshape(IMAGES - 0.5, (-1, 16)) @ WEIGHTS, axis=1)
KINDS = {
    "[N, 1]": LABELS[:, None],
    "one-hot": np.eye(4, dtype=np.float32)[LABELS],
    "floats": LABELS.astype(np.float32),
    "tensor": tf.constant(LABELS[:, None]),
}


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(logits_fn, [PGD(epsilon=0.05, num_steps=3, loss="logit_margin")])


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("kind", KINDS)
def test_an_attack_is_that_of_integer_labels(evaluator, kind):
    for attack in (*evaluator.attacks, Square(num_queries=3)):
        np.testing.assert_array_equal(
            craft(attack, logits_fn, IMAGES, KINDS[kind]), craft(attack, logits_fn, IMAGES, LABELS)
        )
    found = evaluator(IMAGES, KINDS[kind])
    assert found.clean_accuracy == 1.0
    assert found.survived.tolist() == evaluator(IMAGES, LABELS).survived.tolist()


def test_labels_within_a_graph():
    attack = FGSM(epsilon=0.05)
    run = tf.function(lambda x, y: craft(attack, logits_fn, x, y), autograph=False)
    expected = run(IMAGES, LABELS)
    for labels in (KINDS["[N, 1]"], KINDS["one-hot"], KINDS["floats"]):
        np.testing.assert_array_equal(run(IMAGES, labels), expected)


def test_labels_outside_the_classes():
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(4)])
    for call in (
        lambda: craft(PGD(loss="logit_margin"), logits_fn, IMAGES, LABELS + 1),
        lambda: craft(AutoPGD(loss="dlr_targeted"), logits_fn, IMAGES, LABELS + 1),
        lambda: Evaluator(logits_fn, [Square()])(IMAGES, LABELS + 1),
        lambda: Certifier(network, [0.01], method="ibp", attacks=())(IMAGES, LABELS + 1),
    ):
        with pytest.raises(InvalidInputError, match="label 4 of image .* is outside the 4 classes"):
            call()
    with pytest.raises(InvalidInputError, match="23 labels for 24 images"):
        craft(FGSM(), logits_fn, IMAGES, LABELS[:-1])


def test_a_classifier_of_one_output_is_refused_with_the_remedy():
    def one(images):
        return logits_fn(images)[:, :1]

    for attack in (PGD(), Square(num_queries=3), PGD(num_restarts=2)):
        for call in (lambda a=attack: craft(a, one, IMAGES, LABELS * 0), lambda a=attack: Evaluator(one, [a])):
            with pytest.raises(InvalidInputError, match=r"gives 1 number per image.*which are \[0, z\]"):
                found = call()
                found(IMAGES, LABELS * 0)


# --- answers that are not finite --------------------------------------------------------------------------------------


def brittle(images):
    """Numbers for images of 8 bits alone, and infinity elsewhere."""
    off = tf.reduce_max(tf.abs(images * 255 - tf.round(images * 255)), axis=(1, 2, 3)) > 1e-3
    return tf.where(off[:, None], np.inf, logits_fn(images))


def test_an_answer_that_is_not_finite_is_wrong_and_counted():
    images = (np.round(IMAGES * 255) / 255).astype(np.float32)
    labels = np.argmax(logits_fn(images), axis=1)
    never = Evaluator(lambda x: logits_fn(x) * np.nan, [FGSM()])(images, np.zeros(24, int))
    assert never.clean_accuracy == 0.0 and set(never.clean_predictions) == {-1}
    assert never.rows()[0]["robust_accuracy"] == 0.0
    found = Evaluator(brittle, [PGD(epsilon="1/255", num_steps=2)])(images, labels)
    assert found.clean_accuracy == 1.0 and not found.survived.any() and found.rows()[0]["not_finite"] == 24
    assert any("not finite for 0 clean and 24 attacked images" in line for line in attack_warnings(found))
    assert any("not finite for 24 clean" in line for line in attack_warnings(never))


def test_json_has_null_for_what_is_not_finite():
    value = {"a": float("nan"), "b": [1.0, float("-inf"), (float("inf"), 2)], "c": {"d": np.float64("nan")}, "e": "NaN"}
    expected = {"a": None, "b": [1.0, None, [None, 2]], "c": {"d": None}, "e": "NaN"}
    assert json.loads(json_text(value)) == expected


# --- no images, rounding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [FGSM(), PGD(), PGD(num_restarts=2), Square()])
def test_no_images(attack):
    images, labels = np.zeros((0, 4, 4, 1), np.float32), np.zeros(0, int)
    assert craft(attack, logits_fn, images, labels).shape == (0, 4, 4, 1)
    found = Evaluator(logits_fn, [attack])(images, labels)
    assert found.survived.shape == (1, 0) and np.isnan(found.clean_accuracy)
    assert np.isnan(found.rows()[0]["robust_accuracy"])


def test_a_rounding_above_one_is_clipped():
    images = IMAGES.copy()
    images[0, 0, 0, 0], images[1, 0, 0, 0] = np.nextafter(np.float32(1), np.float32(2)), -1e-7
    clipped = np.clip(images, 0, 1)
    np.testing.assert_array_equal(craft(FGSM(), logits_fn, images, LABELS), craft(FGSM(), logits_fn, clipped, LABELS))
    found = Evaluator(logits_fn, [FGSM()])(images, LABELS)
    assert found.predictions.tolist() == Evaluator(logits_fn, [FGSM()])(clipped, LABELS).predictions.tolist()


# --- warnings ---------------------------------------------------------------------------------------------------------


@tf.custom_gradient
def without_gradient(images):
    return tf.identity(images), tf.zeros_like


def test_a_dead_gradient_is_warned_of():
    found = Evaluator(
        lambda x: logits_fn(without_gradient(x)), [PGD(epsilon="64/255", num_steps=5), Square(num_queries=3)]
    )
    survival = found(IMAGES, LABELS)
    (line,) = attack_warnings(survival)
    assert line.startswith("PGD-5 linf 64/255: the gradient is zero on all of 100% of the images")
    assert survival.dead_gradients.tolist() == [1.0, 0.0]


def test_a_gradient_that_is_dead_for_some_images_is_warned_of():
    bright = np.mean(IMAGES, axis=(1, 2, 3)) > np.median(np.mean(IMAGES, axis=(1, 2, 3)))

    def half(x):
        off = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True) > np.median(np.mean(IMAGES, axis=(1, 2, 3)))
        return logits_fn(tf.where(off, without_gradient(x), x))

    survival = Evaluator(half, [FGSM(epsilon=1e-4)])(IMAGES, LABELS)
    assert survival.dead_gradients[0] == pytest.approx(bright.mean())
    assert "all of 50% of the images" in attack_warnings(survival)[0]


def test_no_warning_without_a_reason():
    assert attack_warnings(Evaluator(logits_fn, [PGD(num_steps=3)])(IMAGES, LABELS)) == []
    assert model_warnings(logits_fn, IMAGES) == [] == model_warnings(logits_fn, IMAGES[:1])


def test_a_random_model_is_warned_of():
    (line,) = model_warnings(lambda x: logits_fn(x + tf.random.normal(tf.shape(x), stddev=0.1)), IMAGES)
    assert line.startswith("the model is random: outputs for the same images differ by")


def test_a_model_that_depends_on_the_batch_is_warned_of():
    (line,) = model_warnings(lambda x: logits_fn(x - tf.reduce_mean(x, axis=0) + 0.5), IMAGES)
    assert "with the other images of its batch" in line
