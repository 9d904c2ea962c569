"""The range of the images that a model reads: from its first layers, and from its clean accuracy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.input_range import INPUT_RANGES, Declared, find_input_range, range_of_layers
from keras_rcl.model_io.classifier import load_classifier

SHAPE = (8, 8, 3)


def ended(x):
    return layers.Dense(3)(layers.Flatten()(layers.Conv2D(2, 3)(x)))


def functional(*first, shape=SHAPE):
    inputs = keras.Input(shape)
    x = inputs
    for layer in first:
        x = layer(x)
    return keras.Model(inputs, ended(x))


def nested():
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, functional(layers.Rescaling(1 / 255))(layers.RandomFlip("horizontal")(inputs)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.scale = layers.Rescaling(1 / 255)
        self.dense = layers.Dense(3)

    def call(self, images):
        return self.dense(tf.reshape(self.scale(images), [-1, 192]))


CASES = {
    "1/255": (lambda: functional(layers.Rescaling(1 / 255)), "0..255"),
    "1/127.5 - 1": (lambda: functional(layers.Rescaling(1 / 127.5, offset=-1)), "0..255"),
    "2x - 1": (lambda: functional(layers.Rescaling(2, offset=-1)), "0..1"),
    "(x + 1) / 2": (lambda: functional(layers.Rescaling(0.5, offset=0.5)), "-1..1"),
    "normalised after 1/255": (
        lambda: functional(layers.Rescaling(1 / 255), layers.Normalization(mean=[0.5] * 3, variance=[0.06] * 3)),
        "0..255",
    ),
    "normalised pixels": (lambda: functional(layers.Normalization(mean=[120.0] * 3, variance=[4000.0] * 3)), "0..255"),
    "mean taken off": (
        lambda: functional(layers.Normalization(mean=[103.9, 116.8, 123.7], variance=[1.0] * 3)),
        "0..255",
    ),
    "augmented": (lambda: functional(layers.RandomZoom(0.1), layers.Rescaling(1 / 255)), "0..255"),
    "preprocess_input": (lambda: functional(keras.applications.mobilenet_v2.preprocess_input), "0..255"),
    "arithmetic": (lambda: functional(lambda x: x / 255.0), "0..255"),
    "of any size": (lambda: functional_of_any_size(), "0..255"),
    "nested": (nested, "0..255"),
    "sequential": (
        lambda: keras.Sequential([keras.Input(SHAPE), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(3)]),
        "0..255",
    ),
    "subclassed": (Subclassed, "0..255"),
    "nothing": (lambda: functional(), None),
    "identity": (lambda: functional(layers.Rescaling(1.0)), None),
    "unclear": (lambda: functional(layers.Normalization(mean=[0.2] * 3, variance=[0.2] * 3)), None),
    "two readers": (lambda: two_readers(), None),
}


def functional_of_any_size():
    inputs = keras.Input((None, None, 1))
    x = layers.Conv2D(2, 3)(layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def two_readers():
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, ended(layers.Concatenate()([layers.Rescaling(1 / 255)(inputs), inputs])))


@pytest.mark.parametrize("name", CASES)
def test_the_first_layers_tell_the_range(name):
    build, expected = CASES[name]
    found = range_of_layers(build())
    assert (found and found.name) == expected
    assert expected is None or (found.source == "layers" and expected in found.reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "options", "expected"),
    [
        (keras.applications.MobileNetV3Small, {}, "0..255"),
        (keras.applications.MobileNetV3Small, {"include_preprocessing": False}, None),
        (keras.applications.EfficientNetB0, {}, "0..255"),
        (keras.applications.ConvNeXtTiny, {}, "0..255"),
        (keras.applications.MobileNetV2, {}, None),
    ],
)
def test_the_range_of_models_of_keras(build, options, expected):
    """What the documentation of keras.applications says of each model's inputs."""
    found = range_of_layers(build(weights=None, input_shape=(96, 96, 3), **options))
    assert (found and found.name) == expected


# --- clean accuracy ---------------------------------------------------------------------------------------------------

CENTRES = np.linspace(0.1, 0.9, 4)


def bright(names=("0..255",), classes=4, order=slice(None), constant=False):
    """Logits of a classifier of brightness that was trained on images of these ranges."""

    def logits_of(name):
        scale, offset = INPUT_RANGES[name]
        fits = [INPUT_RANGES[trained] for trained in names]

        def logits(images):
            read = scale * tf.reduce_mean(images, axis=(1, 2, 3)) + offset
            rows = [
                -tf.abs(((read - low) / factor)[:, None] - CENTRES[None].astype(np.float32)) for factor, low in fits
            ]
            rows = tf.reduce_max(rows, axis=0)
            return tf.gather(0 * rows if constant else rows, np.arange(classes)[order], axis=1)

        return logits

    return logits_of


@pytest.fixture(scope="module")
def data():
    labels = np.arange(120) % 4
    noise = np.random.default_rng(0).uniform(-0.04, 0.04, (120, 4, 4, 3))
    return (CENTRES[labels][:, None, None, None] + noise).astype(np.float32), labels


@pytest.mark.parametrize("name", INPUT_RANGES)
def test_the_range_of_the_highest_accuracy(data, name):
    found = find_input_range(bright([name]), *data)
    assert (found.name, found.source, found.doubts) == (name, "accuracy", ())
    assert found.accuracies[name] == 1.0 and found.num_images == 120 and "100.0%" in found.text


def test_a_given_range_is_kept_and_what_fits_better_is_said(data):
    found = find_input_range(bright(["0..255"]), *data, declared=Declared("0..1", "given", "as given"))
    assert found.name == "0..1" and found.accuracies["0..255"] == 1.0
    assert any("100.0% read as 0..255; hint: --input-range 0..255" in doubt for doubt in found.doubts)
    assert any("at chance" in doubt for doubt in found.doubts)
    assert any(doubt.startswith("the answer is class 0 for 100%") for doubt in found.doubts)


def test_two_ranges_that_fit_alike_are_asked(data):
    with pytest.raises(InvalidInputError, match="fit alike; hint: say which the model reads, by --input-range"):
        find_input_range(bright(["0..255", "-1..1"]), *data, name="model")


def test_layers_that_contradict_the_accuracy_are_asked(data):
    declared = Declared("0..255", "layers", "its first layers, Rescaling, take 0..255")
    with pytest.raises(InvalidInputError, match="100.0% read as 0..1; hint: say which"):
        find_input_range(bright(["0..1"]), *data, declared=declared, name="model")


def test_the_default_is_kept_unless_another_range_is_better(data):
    assert find_input_range(bright(INPUT_RANGES), *data).name == "0..1"
    images = data[0][:5], data[1][:5]
    few = find_input_range(bright(["0..255"]), *images)
    assert (few.name, few.source, few.doubts) == ("0..1", "assumed", ())


def test_classes_in_another_order(data):
    found = find_input_range(bright(["0..1"], order=[1, 2, 3, 0]), *data, declared=Declared("0..1", "export", ""))
    assert "clean accuracy is 0.0%, and 100.0% with the classes in another order" in found.doubts


def test_channels_in_another_order():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.uniform(0, 0.4, (60, 4, 4, 3)).astype(np.float32)
    images[np.arange(60), :, :, labels] += 0.5  # class 0 is red

    def logits_of(name):
        return lambda x: tf.reverse(tf.reduce_mean(x, axis=(1, 2)), [1])  # trained on BGR

    found = find_input_range(logits_of, images, labels, declared=Declared("0..1", "given", ""))
    assert any("BGR, clean accuracy is 100.0%, and 33.3% as given" in doubt for doubt in found.doubts)


def test_answers_that_are_not_finite_are_wrong(data):
    found = find_input_range(lambda name: lambda x: bright(["0..1"])(name)(x) * np.nan, *data)
    assert found.accuracies["0..1"] == 0.0
    assert any("the answer is not finite for 100%" in doubt for doubt in found.doubts)


def test_a_classifier_is_read_as_it_was_trained(tmp_path, data):
    """The model of a file reads 0..255 by its first layer; the logits are those of 255 times the images."""
    images, _ = data
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(4)])
    model.save(tmp_path / "model.keras")
    labels = np.argmax(model(255 * images), axis=1)
    classifier, found = load_classifier(tmp_path / "model.keras", output="logits").as_trained(images, labels)
    assert classifier.input_range == found.name == "0..255" and found.source == "layers"
    np.testing.assert_allclose(classifier.logits(images), model(255 * images), atol=1e-6)
    np.testing.assert_allclose(classifier.read_as("-1..1").logits(images), model(2 * images - 1), atol=1e-6)
    np.testing.assert_allclose(classifier.gradient_fn(images)(images), model(255 * images), atol=1e-5)
