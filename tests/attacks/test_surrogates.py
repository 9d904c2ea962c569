"""What an attacker maximises, and the gradient's scale."""

import dataclasses
import importlib
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_rcl.attacks import craft, craft_and_count
from keras_rcl.attacks.surrogates import SURROGATES, surrogate_of, unit_gradient
from keras_rcl.errors import InvalidInputError
from keras_rcl.networks import build_network
from keras_rcl.vocabulary.attacks import BIM, FGSM, MIFGSM, PGD
from keras_rcl.vocabulary.network import Network

quick = settings(max_examples=30)


@st.composite
def labelled_logits(draw):
    count, classes = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    logits = draw(hnp.arrays("float32", (count, classes), elements=st.floats(-50, 50, width=32)))
    return np.array(draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))), logits


@quick
@given(labelled_logits())
def test_equal_a_loop(batch):
    labels, logits = batch
    cross_entropy, margin = [], []
    for label, row in zip(labels, logits.astype("float64"), strict=True):
        cross_entropy.append(math.log(sum(math.exp(value - row[label]) for value in row)))
        margin.append(max(value for k, value in enumerate(row) if k != label) - row[label])
    labels, logits = tf.constant(labels), tf.constant(logits)
    np.testing.assert_allclose(SURROGATES["cross_entropy"](labels, logits), cross_entropy, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(SURROGATES["logit_margin"](labels, logits), margin, rtol=1e-6, atol=1e-6)


def test_gradients_by_hand():
    """d CE / d z = softmax - one-hot; d margin / d z = +1 at the runner-up, -1 at the label."""
    logits = tf.constant([[math.log(1.0), math.log(2.0), math.log(5.0)]])
    for name, expected in {"cross_entropy": [1 / 8, 2 / 8 - 1, 5 / 8], "logit_margin": [0, -1, 1]}.items():
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = SURROGATES[name](tf.constant([1]), logits)
        np.testing.assert_allclose(tape.gradient(loss, logits), [expected], atol=1e-6)


@quick
@given(hnp.arrays("float32", (4, 3), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)))
def test_unit_gradient(upstream):
    """Values stay; each row's gradient is divided by its largest entry, and a row of zeros stays zero."""
    logits = tf.reshape(tf.range(12.0), [4, 3])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        passed = unit_gradient(logits)
        total = tf.reduce_sum(passed * upstream)
    np.testing.assert_array_equal(passed, logits)
    expected = [[value / (max(map(abs, row)) or 1) for value in row] for row in upstream.astype("float64")]
    np.testing.assert_allclose(tape.gradient(total, logits), expected, rtol=1e-6, atol=1e-30)


def test_confidence_masks_no_gradient_in_half_precision(monkeypatch):
    """SPEC section 8, lesson 3: at p(label) = 1 - 1e-9 float16 underflows, unless scaled."""
    rng = np.random.default_rng(0)
    images = rng.random((8, 8, 8, 1)).astype("float32")
    words = Network(projection_hidden=None, projection_dim=4, normalization="minus1to1")
    shares = {}
    for precision in ("float32", "mixed_float16"):
        network = build_network(words, (8, 8, 1), 2, precision=precision, seed=1)
        values = np.asarray(network(images, training=False)["logits"])
        labels = values.argmax(axis=1)
        scale = (-math.log(1e-9) / np.abs(values[:, :1] - values[:, 1:])).astype("float32")

        def logits(x, network=network, scale=scale):
            return scale * network(x, training=False)["logits"]

        attack = BIM(epsilon="1/255", num_steps=1)
        shares[precision] = craft_and_count(attack, logits, images, labels).zero_gradients.numpy().mean()
        with monkeypatch.context() as patch:
            patch.setattr(importlib.import_module("keras_rcl.attacks.gradient_ascent"), "unit_gradient", tf.identity)
            crafted = craft_and_count(attack, logits, images, labels)
            shares[precision, "unscaled"] = crafted.zero_gradients.numpy().mean()
    assert shares["float32"] == shares["float32", "unscaled"]
    assert shares["mixed_float16"] <= shares["float32"]
    assert shares["mixed_float16", "unscaled"] > shares["float32"] + 0.1


def test_the_targeted_dlr_is_equation_7():
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), where y is the likeliest class apart from t."""
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(30, 6)), rng.integers(0, 6, 30)
    targets[:3] = logits[:3].argmax(axis=1)  # reached
    expected = []
    for z, target in zip(logits, targets, strict=True):
        left = max((k for k in range(6) if k != target), key=lambda k, z=z: z[k])
        largest = sorted(z, reverse=True)
        expected.append((z[target] - z[left]) / (largest[0] - (largest[2] + largest[3]) / 2))
    targets, logits = tf.constant(targets, tf.int32), tf.constant(logits)
    np.testing.assert_allclose(surrogate_of("dlr", targets, targeted=True)(logits), expected, rtol=1e-9)
    for name in ("cross_entropy", "logit_margin"):
        found = surrogate_of(name, targets, targeted=True)(logits)
        np.testing.assert_array_equal(found, -SURROGATES[name](targets, logits))


@pytest.mark.parametrize(
    "attack",
    [PGD(num_steps=20), BIM(num_steps=20, norm="l2"), MIFGSM(num_steps=20), FGSM()],
    ids=["pgd", "bim l2", "mifgsm", "fgsm"],
)
def test_the_targeted_dlr_reaches_its_target_about_as_often_as_the_margin(attack):
    """The untargeted DLR, followed downwards, raises its own denominator instead."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(16, 10)).astype("float32")
    images = rng.uniform(0.2, 0.8, (200, 4, 4, 1)).astype("float32")

    def logits_fn(x):
        return tf.reshape(x, [-1, 16]) @ kernel

    targets = (np.argmax(logits_fn(images), axis=1) + 1 + np.arange(200) % 9) % 10
    reached = {}
    for loss in ("logit_margin", "dlr"):
        chosen = attack.with_epsilon(0.15 if attack.norm == "linf" else 0.6)
        chosen = dataclasses.replace(chosen, loss=loss, targeted=True)
        crafted = tf.function(lambda chosen=chosen: craft(chosen, logits_fn, images, targets), autograph=False)()
        found = np.argmax(logits_fn(crafted), axis=1)
        reached[loss] = np.mean(found == targets)
    assert 0.1 < reached["logit_margin"] < 0.9
    adapts = attack.name in ("pgd", "bim")  # one step, or the momentum of the first steps, follows the first direction
    assert reached["dlr"] > (0.9 if adapts else 0.5) * reached["logit_margin"]


def test_the_targeted_dlr_needs_four_classes():
    attack = PGD(loss="dlr", targeted=True, num_steps=1)
    with pytest.raises(InvalidInputError, match="needs at least 4 classes and the model has 3"):
        craft(attack, lambda x: tf.reshape(x, [-1, 4])[:, :3], np.full((2, 2, 2, 1), 0.5, "float32"), [0, 1])
