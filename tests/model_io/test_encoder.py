"""Any encoder on disk becomes the same thing: images in [0, 1] -> embedding; and what attacks read through one."""

import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.attacks.craft import craft
from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.model_io.encoder import load_encoder
from keras_rcl.model_io.export import export
from keras_rcl.networks.two_headed import build_network
from keras_rcl.vocabulary.attacks import Embedding
from keras_rcl.vocabulary.network import Network

RNG = np.random.default_rng(0)
GREY = RNG.random((5, 8, 8, 1), np.float32)
COLOUR = RNG.random((5, 8, 8, 3), np.float32)


def linear(width, shape, seed=1):
    """images [N, *shape] -> [N, width], with the weights that it closes over."""
    kernel = tf.constant(np.random.default_rng(seed).normal(size=(np.prod(shape), width)), tf.float32)
    return lambda x: tf.reshape(x, [-1, kernel.shape[0]]) @ kernel


def save(path, output, shape, *, count=None, dtype=tf.float32, endpoint="serving_default"):
    function = tf.function(output, input_signature=[tf.TensorSpec((count, *shape), dtype, name="x")])
    tf.saved_model.save(tf.Module(), str(path), signatures={endpoint: function})
    return path


@pytest.fixture(scope="module")
def network():
    return build_network(Network(projection_hidden=16, projection_dim=8), (8, 8, 1), 3, mean=[0.3], std=[0.2])


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    contract = {"data_set": "digits", "class_names": ["zero", "one", "two"]}
    return export(network, tmp_path_factory.mktemp("encoder") / "digits", contract)


@pytest.mark.parametrize("file", ["", "model.keras"])
def test_ours(network, folder, file):
    encoder = load_encoder(str(folder / file), (8, 8, 1))
    expected = network(GREY, training=False)["embedding"]
    np.testing.assert_allclose(encoder.embedding(GREY), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(tf.function(encoder.embedding)(GREY), expected, rtol=0, atol=1e-5)
    if not file:
        assert encoder.model_hash == load_classifier(folder).model_hash


def test_any_other_is_flattened(tmp_path):
    encode = linear(6, (8, 8, 1))
    path = save(tmp_path / "model", lambda x: {"tokens": tf.reshape(encode(x), [-1, 2, 3])}, (8, 8, 1))
    encoder = load_encoder(path, (8, 8, 1))
    np.testing.assert_allclose(encoder.embedding(GREY), encode(GREY), rtol=0, atol=1e-5)
    assert len(encoder.model_hash) == 64


def test_of_several_outputs_the_embedding(tmp_path):
    encode = linear(6, (8, 8, 1))
    path = save(tmp_path / "named", lambda x: {"embedding": encode(x), "zzz": x, "aaa": x}, (8, 8, 1))
    np.testing.assert_allclose(load_encoder(path, (8, 8, 1)).embedding(GREY), encode(GREY), rtol=0, atol=1e-5)
    path = save(tmp_path / "unnamed", lambda x: {"a": x, "b": x}, (8, 8, 1))
    with pytest.raises(InvalidInputError, match="gives a, b, none of them embedding; name the one"):
        load_encoder(path, (8, 8, 1))


def test_a_larger_one_for_grey_images(tmp_path):
    encode = linear(4, (20, 12, 3))
    path = save(tmp_path / "model", lambda x: {"y": encode(x)}, (20, 12, 3))
    found = load_encoder(path, (8, 8, 1)).embedding(GREY)
    expected = encode(tf.tile(tf.image.resize(GREY, (20, 12)), [1, 1, 1, 3]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_smaller_one_sees_every_pixel(tmp_path):
    encode = linear(1, (3, 3, 3))
    path = save(tmp_path / "model", lambda x: {"y": encode(x)}, (3, 3, 3))
    encoder = load_encoder(path, (8, 8, 3))
    x = tf.constant(COLOUR)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(encoder.embedding(x))
    assert np.all(np.abs(tape.gradient(total, x)) > 0)


def test_one_of_any_size_sees_the_images_as_they_are(tmp_path):
    path = save(tmp_path / "model", lambda x: {"y": tf.reduce_mean(x, axis=[1, 2])}, (None, None, 3))
    np.testing.assert_allclose(load_encoder(path, (8, 8, 3)).embedding(COLOUR), COLOUR.mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 5, 7])
def test_a_fixed_batch_size_is_filled_up(tmp_path, size):
    encode = linear(4, (8, 8, 3))
    path = save(tmp_path / "model", lambda x: {"y": encode(x)}, (8, 8, 3), count=size)
    np.testing.assert_allclose(load_encoder(path, (8, 8, 3)).embedding(COLOUR), encode(COLOUR), rtol=0, atol=1e-5)


def test_the_attack_through_one_of_another_size(tmp_path):
    """Of a linear encoder of one number it ends in the corner of the ball where that changes most, either way."""
    encode = linear(1, (13, 13, 3))
    path = save(tmp_path / "model", lambda x: {"y": encode(x)}, (13, 13, 3))
    encoder = load_encoder(path, (8, 8, 1))
    pixels = np.eye(64, dtype=np.float32).reshape(64, 8, 8, 1)
    weights = np.asarray(encoder.embedding(pixels))[:, 0]
    grey = np.full((5, 8, 8, 1), 0.5, np.float32)
    found = craft(Embedding(num_steps=20, source=str(path)), encoder.embedding, grey, np.zeros(5), seed=1)
    change = (found.numpy() - grey).reshape(5, 64)
    np.testing.assert_allclose(np.abs(change @ weights), 8 / 255 * np.abs(weights).sum(), rtol=1e-3)


@pytest.mark.parametrize(
    "shape, dtype, given, message",
    [
        ((8, 8, 1), tf.float32, (8, 8, 3), "reads images of 1 channels, and these have 3"),
        ((8, 8, 3), tf.float32, (8, 8, 4), "reads images of 3 channels, and these have 4"),
        ((8, 8, 3), tf.uint8, (8, 8, 3), "uint8, which no gradient reaches"),
        ((64,), tf.float32, (8, 8, 3), r"must read images \[N, H, W, C\]"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, shape, dtype, given, message):
    path = save(tmp_path / "model", lambda x: {"y": x}, shape, dtype=dtype)
    with pytest.raises(InvalidInputError, match=message):
        load_encoder(path, given)


def test_what_fails_or_is_not_there_is_refused(tmp_path):
    path = save(tmp_path / "model", lambda x: {"y": tf.reshape(x, [-1, 7])}, (8, 8, 1))
    with pytest.raises(InvalidInputError, match=r"fails on images \[4, 8, 8, 1\]"):
        load_encoder(path, (8, 8, 1))
    with pytest.raises(InvalidInputError, match="there is no model at .*absent"):
        load_encoder(str(tmp_path / "absent"), (8, 8, 1))


class TestTheDefendedModelsOwn:
    @pytest.mark.parametrize("file", ["", "model.keras"])
    @pytest.mark.parametrize("output", ["embedding", "projection", "logits"])
    def test_ours(self, network, folder, file, output):
        read = load_classifier(folder / file).outputs(output)
        np.testing.assert_allclose(read(GREY), network(GREY, training=False)[output], rtol=0, atol=1e-5)

    def test_of_another_keras_file_what_the_last_layer_reads(self, tmp_path):
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(5, activation="relu", name="features"),
                keras.layers.Dense(3),
                keras.layers.Softmax(),
            ]
        )
        model.save(tmp_path / "model.keras")
        classifier = load_classifier(tmp_path / "model.keras", input_range="0..255")
        assert classifier.gives_probabilities
        expected = keras.Model(model.inputs, model.get_layer("features").output)([255 * GREY])
        np.testing.assert_allclose(classifier.outputs("embedding")(GREY), expected, rtol=1e-5, atol=1e-4)
        assert classifier.outputs("projection") is None

    def test_none_where_the_model_does_not_tell(self, tmp_path):
        path = save(tmp_path / "model", lambda x: {"logits": linear(3, (8, 8, 1))(x)}, (8, 8, 1))
        inner = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        keras.Sequential([keras.Input((8, 8, 1)), inner]).save(tmp_path / "nested.keras")
        for model in (path, tmp_path / "nested.keras"):
            assert load_classifier(model).outputs("embedding") is None


class TestKerasHub:
    """Presets of KerasHub: a stand-in for the library, and the library itself where it is installed."""

    def library(self, monkeypatch, backbone, converter):
        models = SimpleNamespace(Backbone=SimpleNamespace(from_preset=backbone))
        layers = SimpleNamespace(ImageConverter=SimpleNamespace(from_preset=lambda preset: converter))
        monkeypatch.setitem(sys.modules, "keras_hub", SimpleNamespace(models=models, layers=layers))

    @pytest.mark.parametrize("named", [True, False])
    def test_its_image_converter_says_what_it_reads(self, monkeypatch, named):
        image = keras.Input((12, 12, 3), name="images")
        tokens = keras.layers.Reshape((4, 9))(keras.layers.Conv2D(9, 6, strides=6)(image))
        backbone = keras.Model({"images": image} if named else image, tokens)
        converter = SimpleNamespace(image_size=(12, 12), scale=[0.1, 0.2, 0.3], offset=[-1.0, -2.0, -3.0])
        asked = {}
        self.library(
            monkeypatch, lambda preset, **settings: asked.update(settings, preset=preset) or backbone, converter
        )
        encoder = load_encoder("kerashub:tiny", (8, 8, 3))
        assert asked == {"preset": "tiny", "dtype": "float32"}
        pixels = 255 * tf.image.resize(COLOUR, (12, 12)) * [0.1, 0.2, 0.3] + [-1.0, -2.0, -3.0]
        expected = tf.reshape(backbone({"images": pixels} if named else pixels), [5, 36])
        np.testing.assert_allclose(encoder.embedding(COLOUR), expected, rtol=1e-4, atol=1e-4)
        load_encoder("kerashub:tiny@12", (8, 8, 3))
        assert asked["image_shape"] == (12, 12, 3)

    @pytest.mark.parametrize("converter", [None, SimpleNamespace(image_size=(10, 10), scale=None, offset=None)])
    def test_imagenets_mean_where_it_does_not_say(self, monkeypatch, converter):
        image = keras.Input((None, None, 3))
        backbone = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
        self.library(monkeypatch, lambda preset, **settings: backbone, converter)
        found = load_encoder("kerashub:tiny", (8, 8, 3)).embedding(COLOUR)
        resized = COLOUR if converter is None else tf.image.resize(COLOUR, (10, 10))
        mean = np.mean(resized, axis=(1, 2))
        np.testing.assert_allclose(found, (mean - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], rtol=0, atol=1e-4)

    def test_two_sets_of_weights_have_two_hashes(self, monkeypatch):
        converter, hashes = SimpleNamespace(image_size=(8, 8), scale=1.0, offset=None), []
        for seed in (0, 0, 1):
            kernel = keras.initializers.GlorotUniform(seed)
            image = keras.Input((8, 8, 3))
            backbone = keras.Model(image, keras.layers.Conv2D(2, 3, kernel_initializer=kernel)(image))
            self.library(monkeypatch, lambda preset, backbone=backbone, **settings: backbone, converter)
            hashes.append(load_encoder("kerashub:tiny", (8, 8, 3)).model_hash)
        assert hashes[0] == hashes[1] != hashes[2]

    def test_what_is_not_to_be_had_is_refused(self, monkeypatch):
        def fail(preset, **settings):
            raise OSError("no route to host\nat all")

        self.library(monkeypatch, fail, None)
        with pytest.raises(
            InvalidInputError, match="kerashub:tiny could not be downloaded: no route to host; .*Kaggle"
        ) as refusal:
            load_encoder("kerashub:tiny", (8, 8, 3))
        assert "\n" not in str(refusal.value)
        with pytest.raises(InvalidInputError, match="'big' is not a number of pixels; write kerashub:tiny@224"):
            load_encoder("kerashub:tiny@big", (8, 8, 3))
        inputs = [keras.Input((8, 8, 3)), keras.Input((4,))]
        two = keras.Model(inputs, keras.layers.Concatenate()([keras.layers.Flatten()(inputs[0]), inputs[1]]))
        self.library(monkeypatch, lambda preset, **settings: two, None)
        with pytest.raises(InvalidInputError, match="reads 2 inputs"):
            load_encoder("kerashub:tiny", (8, 8, 3))
        monkeypatch.setitem(sys.modules, "keras_hub", None)
        with pytest.raises(InvalidInputError, match="not installed: pip install keras-hub"):
            load_encoder("kerashub:tiny", (8, 8, 3))

    @pytest.mark.filterwarnings("ignore")
    def test_the_library_itself(self, tmp_path):
        keras_hub = pytest.importorskip("keras_hub")
        backbone = keras_hub.models.DINOV2Backbone(
            patch_size=14,
            num_layers=1,
            hidden_dim=16,
            num_heads=2,
            intermediate_dim=32,
            image_shape=(56, 56, 3),
            position_embedding_shape=(56, 56),
        )
        std = np.array([0.2, 0.3, 0.4])
        converter = keras_hub.layers.DINOV2ImageConverter(
            image_size=(56, 56), scale=list(1 / 255 / std), offset=[-1.0, -2.0, -3.0]
        )
        backbone.save_to_preset(str(tmp_path / "tiny"))
        converter.save_to_preset(str(tmp_path / "tiny"))
        found = load_encoder(f"kerashub:{tmp_path / 'tiny'}", (8, 8, 3)).embedding(COLOUR)
        pixels = tf.image.resize(COLOUR, (56, 56)) / std.astype("f") - [1.0, 2.0, 3.0]
        np.testing.assert_allclose(found, tf.reshape(backbone({"images": pixels}), [5, 17 * 16]), rtol=0, atol=1e-4)
        smaller = load_encoder(f"kerashub:{tmp_path / 'tiny'}@28", (8, 8, 3)).embedding(COLOUR)
        assert smaller.shape == (5, 5 * 16)
