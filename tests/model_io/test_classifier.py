"""Any model on disk becomes the same thing: images in [0, 1] -> logits."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.attacks.craft import craft
from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.model_io.export import export
from keras_rcl.networks.two_headed import build_network
from keras_rcl.vocabulary.attacks import MIFGSM, PGD, AutoPGD
from keras_rcl.vocabulary.network import Network


class Linear(tf.Module):
    """logits = x W of images in a range of its own, as somebody else would save it."""

    def __init__(self, scale=1.0, offset=0.0, classes=3):
        super().__init__()
        rng = np.random.default_rng(0)
        self.kernel = tf.Variable(rng.normal(size=(64, classes)).astype(np.float32) / 4)
        self.scale, self.offset = scale, offset

    def logits(self, image):
        """Images in [scale * 0 + offset, scale * 1 + offset]."""
        image = (tf.cast(image, tf.float32) - self.offset) / self.scale
        return tf.reshape(image, [-1, 64]) @ self.kernel

    def save(self, path, output, shape=(None, 8, 8, 1), dtype=tf.float32, endpoint="serving_default"):
        function = tf.function(output, input_signature=[tf.TensorSpec(shape, dtype, name="x")])
        tf.saved_model.save(self, str(path), signatures={endpoint: function})
        return path


@pytest.fixture
def images():
    return np.random.default_rng(0).random((5, 8, 8, 1), np.float32)


@pytest.fixture(scope="module")
def network():
    return build_network(Network(projection_hidden=16, projection_dim=8), (8, 8, 1), 3, mean=[0.3], std=[0.2])


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    contract = {"data_set": "digits", "class_names": ["zero", "one", "two"]}
    return export(network, tmp_path_factory.mktemp("classifier") / "digits", contract)


def test_ours(network, folder, images):
    classifier = load_classifier(folder)
    contract = json.loads((folder / "model.json").read_text())
    assert classifier.image_shape == (8, 8, 1)
    assert classifier.num_classes == 3
    assert classifier.class_names == ("zero", "one", "two")
    assert classifier.contract == contract
    assert classifier.model_hash == contract["model_hash"]
    assert classifier.note == ""
    np.testing.assert_allclose(classifier.logits(images), network(images, training=False)["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", ["", "model.keras"])
def test_an_attack_on_it_is_the_attack_on_the_network(network, folder, images, file):
    labels = np.array([0, 1, 2, 0, 1])
    attack = PGD(epsilon="8/255", num_steps=5)
    expected = craft(attack, lambda x: network(x, training=False)["logits"], images, labels, seed=3)
    found = craft(attack, load_classifier(folder / file).logits, images, labels, seed=3)
    assert np.abs(expected - images).max() > 0.02
    assert np.mean(np.abs(found - expected) < 1e-6) > 0.99


def test_attacks_read_the_folded_network_if_its_logits_are_the_served_ones(network, folder, images, tmp_path):
    """Of our export another function that gives the same; of a model without layers, or with other ones, the served."""
    classifier = load_classifier(folder)
    fast = classifier.gradient_fn(images)
    assert fast is not classifier.logits
    served = classifier.logits(images).numpy()
    np.testing.assert_allclose(fast(images), served, rtol=1e-4, atol=1e-5)
    rounded = classifier.gradient_fn(images, "bfloat16")(images)
    np.testing.assert_allclose(rounded, served, atol=0.03 * np.abs(served).max())
    assert np.abs(rounded - served).max() > 1e-4 * np.abs(served).max()
    model = Linear()
    other = load_classifier(model.save(tmp_path / "other", model.logits))
    assert other.gradient_fn(images) is other.logits
    with pytest.raises(InvalidInputError, match="no layers that can be computed in bfloat16; leave out --attack-dtype"):
        other.gradient_fn(images, "bfloat16")
    false = shutil.copytree(folder, tmp_path / "false")
    strange = build_network(
        Network(projection_hidden=16, projection_dim=8), (8, 8, 1), 3, mean=[0.1], std=[0.2], seed=1
    )
    strange.save(false / "model.keras")
    classifier = load_classifier(false)
    assert classifier.gradient_fn(images) is classifier.logits


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(
    ("attack", "count"),
    [
        (PGD(num_steps=2), 1),
        (PGD(num_steps=2), 3),
        (MIFGSM(num_steps=2, protocol="cusin-repo"), 1),
        (AutoPGD(num_steps=2), 1),
    ],
)
def test_an_attack_on_it_within_a_graph_of_so_many_images(folder, images, attack, count):
    """A SavedModel does not say how many rows it gives; a batch of one is where shapes are easily mistaken."""
    logits, labels = load_classifier(folder).logits, np.zeros(count, int)
    crafted = tf.function(lambda x: craft(attack, logits, x, labels), autograph=False)(images[:count])
    np.testing.assert_allclose(crafted, craft(attack, logits, images[:count], labels), rtol=0, atol=1e-5)


def test_it_runs_within_a_graph_after_its_maker_is_gone(folder, images):
    logits = load_classifier(folder).logits
    np.testing.assert_allclose(tf.function(logits)(images), logits(images), rtol=0, atol=1e-6)


def test_a_keras_file_of_ours(network, folder, images):
    classifier = load_classifier(folder / "model.keras")
    np.testing.assert_array_equal(classifier.logits(images), network(images, training=False)["logits"])
    assert classifier.class_names == ("0", "1", "2")
    assert classifier.contract == {}
    assert len(classifier.model_hash) == 64


@pytest.mark.parametrize("input_range, scale, offset", [("0..255", 255, 0), ("-1..1", 2, -1), ("0..1", 1, 0)])
def test_probabilities_of_another_saved_model(tmp_path, images, input_range, scale, offset):
    linear = Linear(scale, offset)
    path = linear.save(tmp_path / "model", lambda x: {"output_0": tf.nn.softmax(linear.logits(x))})
    classifier = load_classifier(path, input_range=input_range)
    assert "taken for probabilities" in classifier.note
    expected = tf.nn.log_softmax(linear.logits(scale * images + offset))
    np.testing.assert_allclose(classifier.logits(images), expected, rtol=0, atol=1e-4)
    given = load_classifier(path, input_range=input_range, output="probabilities")
    assert given.note == ""
    np.testing.assert_array_equal(given.logits(images), classifier.logits(images))
    raw = load_classifier(path, input_range=input_range, output="logits")
    np.testing.assert_allclose(raw.logits(images), tf.exp(expected), rtol=0, atol=1e-4)


def test_the_gradient_reaches_the_pixels_through_the_range_and_the_logarithm(tmp_path, images):
    linear = Linear(255)
    path = linear.save(tmp_path / "model", lambda x: {"probabilities": tf.nn.softmax(linear.logits(x))})
    classifier = load_classifier(path, input_range="0..255")
    with tf.GradientTape() as tape:
        x = tf.constant(images)
        tape.watch(x)
        logits = classifier.logits(x)
        margin = logits[:, 0] - logits[:, 1]
    gradient = tape.gradient(margin, x)
    expected = np.tile((linear.kernel[:, 0] - linear.kernel[:, 1]).numpy().reshape(1, 8, 8, 1), (5, 1, 1, 1))
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


def test_certainty_gives_finite_logits_and_gradients(tmp_path, images):
    linear = Linear()
    path = linear.save(tmp_path / "model", lambda x: {"probabilities": tf.nn.softmax(1e4 * linear.logits(x))})
    classifier = load_classifier(path)
    with tf.GradientTape() as tape:
        x = tf.constant(images)
        tape.watch(x)
        logits = classifier.logits(x)
    assert np.all(np.isfinite(logits)) and np.all(np.isfinite(tape.gradient(logits, x)))


@pytest.mark.parametrize("count", [1, 6])
def test_a_fixed_batch_size_is_filled_up(tmp_path, count):
    linear = Linear()
    path = linear.save(tmp_path / "model", lambda x: {"y": linear.logits(x)}, shape=(4, 8, 8, 1))
    classifier = load_classifier(path)
    images = np.random.default_rng(count).random((count, 8, 8, 1), np.float32)
    np.testing.assert_allclose(classifier.logits(images), linear.logits(images), rtol=0, atol=1e-5)
    labels = np.zeros(count, int)
    attack = PGD(epsilon="8/255", num_steps=2)
    found = tf.function(lambda x: craft(attack, classifier.logits, x, labels))(images)
    np.testing.assert_allclose(found, craft(attack, linear.logits, images, labels), rtol=0, atol=1e-6)


def test_images_of_any_size(tmp_path):
    model = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)]
    )
    model.save(tmp_path / "model.keras")
    classifier = load_classifier(tmp_path / "model.keras")
    assert classifier.image_shape == (None, None, 3)
    assert classifier.num_classes == 4
    assert classifier.logits(np.zeros((2, 9, 7, 3))).shape == (2, 4)


def test_another_keras_file_and_its_export(tmp_path, images):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(5, activation="softmax"),
        ]
    )
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "exported", verbose=False)
    expected = np.log(model(255 * images, training=False))
    for path in (tmp_path / "model.keras", tmp_path / "exported"):
        classifier = load_classifier(path, input_range="0..255")
        assert "taken for probabilities" in classifier.note
        np.testing.assert_allclose(classifier.logits(images), expected, rtol=0, atol=1e-4)


def test_the_endpoint_may_be_said(tmp_path, images):
    linear = Linear()
    spec = [tf.TensorSpec((None, 8, 8, 1), tf.float32)]
    signatures = {
        "classify": tf.function(lambda x: {"logits": linear.logits(x)}, input_signature=spec),
        "pixels": tf.function(lambda x: {"logits": linear.logits(x / 2)}, input_signature=spec),
    }
    tf.saved_model.save(linear, str(tmp_path / "model"), signatures=signatures)
    found = load_classifier(tmp_path / "model", endpoint="pixels").logits(images)
    np.testing.assert_allclose(found, linear.logits(images / 2), rtol=0, atol=1e-5)
    with pytest.raises(InvalidInputError, match="classify, pixels; choose one with --endpoint"):
        load_classifier(tmp_path / "model")
    with pytest.raises(InvalidInputError, match="no endpoint 'pixel'; it has .*did you mean 'pixels'"):
        load_classifier(tmp_path / "model", endpoint="pixel")


@pytest.mark.parametrize(
    "output, shape, dtype, message",
    [
        (lambda x: {"a": x, "b": x}, (None, 8, 8, 1), tf.float32, "gives a, b, none of them .* --endpoint"),
        (lambda x: {"y": x}, (None, 8, 8, 1), tf.uint8, "reads uint8, which no gradient reaches"),
        (lambda x: {"y": x}, (None, 64), tf.float32, r"reads the shape \(None, 64\)"),
        (lambda x: {"y": x}, (None, 3, 32, 32), tf.float32, "channels first"),
        (lambda x: {"y": x}, (None, 8, 8, 1), tf.float32, "a row of 2 or more"),
        (lambda x: {"y": x[:, 0]}, (None, 8, 8, 1), tf.float32, "a row of 2 or more"),
        (lambda x: {"y": tf.reshape(x, [-1, 7])}, (None, 8, 8, 1), tf.float32, "fails on images"),
    ],
)
def test_what_is_no_classifier_is_refused(tmp_path, output, shape, dtype, message):
    path = Linear().save(tmp_path / "model", output, shape=shape, dtype=dtype)
    with pytest.raises(InvalidInputError, match=message):
        load_classifier(path)


def test_what_does_not_fit_our_own_is_refused(folder):
    with pytest.raises(InvalidInputError, match="uint8, which no gradient reaches"):
        load_classifier(folder, endpoint="serve_uint8")
    with pytest.raises(InvalidInputError, match="gives embedding, projection"):
        load_classifier(folder, endpoint="embed")
    with pytest.raises(InvalidInputError, match="leave out --input-range"):
        load_classifier(folder, input_range="0..255")
    with pytest.raises(InvalidInputError, match="unknown input range '0-255'"):
        load_classifier(folder, input_range="0-255")
    with pytest.raises(InvalidInputError, match="unknown output 'softmax'"):
        load_classifier(folder, output="softmax")
    with pytest.raises(InvalidInputError, match="leave it out"):
        load_classifier(folder / "model.keras", endpoint="serve")


def _halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: _halve(model / "saved_model.pb"),
        lambda model: (model / "saved_model.pb").write_bytes(b""),
        lambda model: (model / "saved_model.pb").write_text("not a protocol buffer"),
        lambda model: (model / "saved_model.pb").unlink(),
        lambda model: shutil.rmtree(model / "variables"),
        lambda model: (model / "variables" / "variables.index").unlink(),
        lambda model: (model / "variables" / "variables.data-00000-of-00001").unlink(),
        lambda model: _halve(model / "variables" / "variables.data-00000-of-00001"),
        lambda model: _halve(model / "model.json"),
        lambda model: (model / "model.json").write_text('{"model_hash": "0", "format": 2}'),
    ],
)
def test_a_damaged_saved_model_is_refused_in_one_line(folder, tmp_path, damage):
    model = shutil.copytree(folder, tmp_path / "model")
    damage(model)
    with pytest.raises(InvalidInputError) as refusal:
        load_classifier(model)
    _is_one_line_about(refusal, model)


def _flip(file):
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(byte ^ 255 for byte in content[middle : middle + 200])
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [_halve, _flip, lambda file: file.write_text("hello"), lambda file: file.unlink()])
def test_a_damaged_keras_file_is_refused_in_one_line(folder, tmp_path, damage):
    file = tmp_path / "model.keras"
    shutil.copy(folder / "model.keras", file)
    damage(file)
    with pytest.raises(InvalidInputError) as refusal:
        load_classifier(file)
    _is_one_line_about(refusal, file)


def _is_one_line_about(refusal, path):
    message = str(refusal.value)
    assert str(path) in message and "\n" not in message and len(message) < 400


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="there is no model at"):
        load_classifier(tmp_path / "absent")
    with pytest.raises(InvalidInputError, match="holds no SavedModel"):
        load_classifier(tmp_path / "empty")
    with pytest.raises(InvalidInputError, match="neither a SavedModel folder nor a .keras file"):
        load_classifier(tmp_path / "notes.txt")


def test_code_in_a_keras_file_is_not_run(tmp_path):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3), keras.layers.Lambda(lambda x: 2 * x)]
    )
    model.save(tmp_path / "model.keras")
    with pytest.raises(InvalidInputError, match="Lambda layer, which is not run"):
        load_classifier(tmp_path / "model.keras")


def test_a_layer_that_is_not_known_here(tmp_path):
    class Private(keras.layers.Layer):
        def call(self, x):
            return x

    model = keras.Sequential([keras.Input((8, 8, 1)), Private(), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(InvalidInputError, match=r"names (test_classifier\.|Custom>)?Private, which is not on the list"):
        load_classifier(tmp_path / "model.keras")
    with pytest.raises(InvalidInputError, match="a layer of its own"):
        load_classifier(tmp_path / "model.keras", trust=True)
