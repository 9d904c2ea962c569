"""Gradients that are zero, not finite, or missing; and arrays that are not images."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.attacks import craft, craft_and_count
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import BIM, FGSM, PGD

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.3, 0.7, (3, 4, 4, 1)).astype("float32")
LABELS = np.array([0, 1, 0])
KERNEL = RNG.normal(size=(16, 2)).astype("float32")
ATTACKS = {
    "fgsm": FGSM(),
    "bim l2": BIM(norm="l2", epsilon=0.2, num_steps=3),
    "pgd": PGD(num_steps=3),
    "pgd l2 restarts": PGD(norm="l2", epsilon=0.2, num_steps=3, num_restarts=2),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def linear(x):
    return tf.reshape(x, [-1, 16]) @ KERNEL


def spoil(replacement):
    """The linear model with pixel gradients replaced where `replacement` [3, 4, 4, 1] is not 1."""

    @tf.custom_gradient
    def hurt(x):
        return tf.identity(x), lambda upstream: tf.where(replacement == 1, upstream, replacement)

    return lambda x: linear(hurt(x))


@every_attack
def test_counted_and_harmless(attack):
    """Image 0 is whole, a quarter of image 1's gradients is 0, NaN or infinite, all of image 2's are."""
    replacement = np.ones((3, 16), "float32")
    replacement[1, :4] = [0, np.nan, np.inf, -np.inf]
    replacement[2] = np.resize([np.nan, 0, np.inf], 16)
    replacement = replacement.reshape(3, 4, 4, 1)
    crafted = craft_and_count(attack, spoil(replacement), IMAGES, LABELS, seed=1)
    np.testing.assert_allclose(crafted.zero_gradients, [0, 0.25, 1], atol=1e-6)
    found = crafted.images.numpy()
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[0], craft(attack, linear, IMAGES, LABELS, seed=1).numpy()[0])
    if not attack.random_start:
        np.testing.assert_array_equal((found != IMAGES).reshape(3, 16), replacement.reshape(3, 16) == 1)


@every_attack
def test_a_model_that_says_nan_spoils_only_that_image(attack):
    broken = np.array([[1], [np.nan], [1]], "float32")
    crafted = craft_and_count(attack, lambda x: linear(x) * broken, IMAGES, LABELS, seed=1)
    whole = craft(attack, linear, IMAGES, LABELS, seed=1).numpy()
    assert np.isfinite(crafted.images.numpy()).all()
    np.testing.assert_allclose(crafted.images.numpy()[[0, 2]], whole[[0, 2]], rtol=0, atol=1e-6)
    np.testing.assert_allclose(crafted.zero_gradients, [0, 1, 0], atol=1e-6)


@every_attack
def test_a_flat_model_moves_nothing(attack):
    crafted = craft_and_count(attack, lambda x: linear(x) * 0.0, IMAGES, LABELS, seed=1)
    np.testing.assert_array_equal(crafted.zero_gradients, 1)
    if not attack.random_start:
        np.testing.assert_array_equal(crafted.images, IMAGES)


def refusal(call):
    with pytest.raises(InvalidInputError) as caught:
        call()
    (line,) = str(caught.value).splitlines()
    return line


@every_attack
@pytest.mark.parametrize(
    "images, says",
    {
        "0-255": (IMAGES * 255, f"[{IMAGES.min() * 255:g}, {IMAGES.max() * 255:g}]"),
        "standardised": ((IMAGES - 0.5) / 0.1, "mean/std normalisation inside the model"),
        "just below 0": (IMAGES - IMAGES.min() - np.float32(1e-6), "[-1e-06, "),
        "NaN": (np.where(IMAGES > 0.6, np.nan, IMAGES), "[nan, nan]"),
        "uint8": ((IMAGES * 255).astype("uint8"), "uint8"),
        "uint8 tensor": (tf.constant((IMAGES * 255).astype("uint8")), "uint8"),
        "one image": (IMAGES[0], "(4, 4, 1)"),
        "flat": (IMAGES.reshape(3, 16), "(3, 16)"),
    }.values(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_batch_of_images_is_refused(attack, images, says):
    line = refusal(lambda: craft(attack, linear, images, LABELS))
    assert says in line and ("[0, 1]" in line or "[N, H, W, C]" in line)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("convert", [np.asarray, tf.constant])
def test_other_floats_are_images_too(dtype, convert):
    images = IMAGES.astype(dtype)
    expected = craft(PGD(num_steps=2), linear, images.astype("float32"), LABELS)
    np.testing.assert_array_equal(craft(PGD(num_steps=2), linear, convert(images), LABELS), expected)


def test_wrong_rank_is_refused_in_a_graph():
    graph = tf.function(lambda x: craft(FGSM(), linear, x, LABELS), autograph=False)
    assert "(3, 16)" in refusal(lambda: graph(IMAGES.reshape(3, 16)))


@every_attack
@pytest.mark.parametrize(
    "quantize",
    [lambda x: tf.cast(tf.cast(x * 255, tf.uint8), tf.float32) / 255, lambda x: tf.round(x * 255) / 255],
    ids=["uint8", "round"],
)
def test_a_model_without_a_gradient_is_refused(attack, quantize):
    def model(x):
        return linear(quantize(x))

    assert "no gradient" in refusal(lambda: craft(attack, model, IMAGES, LABELS))
    graph = tf.function(lambda x: craft(attack, model, x, LABELS), autograph=False)
    assert "no gradient" in refusal(lambda: graph(IMAGES))
