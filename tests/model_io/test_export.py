"""What is exported is what was in memory, to anybody with plain TensorFlow, and is never half there."""

import errno
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.export import export, model_hash
from keras_rcl.networks.two_headed import build_network
from keras_rcl.vocabulary.network import Network
from tests import forked

CONTRACT = {
    "data_set": "digits",
    "class_names": ["zero", "one", "two"],
    "threat_model": {"norm": "linf", "epsilon": 8 / 255},
    "config": {"seed": 0},
    "metrics": {"accuracy": 0.5},
    "versions": {"keras": keras.__version__},
}

PLAIN_TENSORFLOW = """
import sys

class NoKerasRCL:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "keras_rcl":
            raise ImportError("keras_rcl is not to be imported here")

sys.meta_path.insert(0, NoKerasRCL())
import numpy as np
import tensorflow as tf

folder, images, outputs = sys.argv[1:]
model = tf.saved_model.load(folder)
x = tf.constant(np.load(images))
with tf.GradientTape() as tape:
    tape.watch(x)
    logits = model.serve(x)["logits"]
gradient = tape.gradient(logits, x)
signature = model.signatures["serving_default"](image=x)["logits"]
assert "keras_rcl" not in sys.modules
np.savez(outputs, logits=logits, signature=signature, gradient=gradient)
"""


@pytest.fixture(scope="module")
def network():
    network = build_network(Network(projection_hidden=16, projection_dim=8), (8, 8, 1), 3, mean=[0.3], std=[0.2])
    rng = np.random.default_rng(1)
    for weight in network.non_trainable_weights:  # moving statistics that are not the initial ones
        if weight.name.startswith("moving"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return network


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    return export(network, tmp_path_factory.mktemp("export") / "digits", CONTRACT)


@pytest.fixture(scope="module")
def served(folder):
    return tf.saved_model.load(str(folder))


@pytest.fixture
def images():
    return np.random.default_rng(0).random((5, 8, 8, 1), np.float32)


@pytest.mark.slow
def test_plain_tensorflow_serves_it_and_differentiates_it(network, folder, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "plain.py").write_text(PLAIN_TENSORFLOW)
    files = [tmp_path / name for name in ("images.npy", "outputs.npz")]
    done = forked.run(tmp_path / "plain.py", folder, *files, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "outputs.npz") as outputs:
        expected = network(images, training=False)["logits"].numpy()
        np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(outputs["signature"], outputs["logits"])
        assert np.all(np.abs(outputs["gradient"]).max(axis=(1, 2, 3)) > 0)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_serve_takes_any_batch(network, served, count):
    images = np.random.default_rng(count).random((count, 8, 8, 1), np.float32)
    outputs = served.serve(images)
    logits = network(images, training=False)["logits"].numpy()
    np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs["probabilities"], tf.nn.softmax(logits), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(outputs["class"], logits.argmax(axis=1))
    assert outputs["class"].dtype == tf.int64


def test_serve_uint8_is_serve_of_the_pixels(served):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    ours, theirs = served.serve_uint8(pixels), served.serve(pixels.astype(np.float32) / 255)
    for name in ("logits", "probabilities", "class"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5)


def test_embed(network, served, images):
    outputs, expected = served.embed(images), network(images, training=False)
    assert set(outputs) == {"embedding", "projection"}
    for name in outputs:
        np.testing.assert_allclose(outputs[name], expected[name], rtol=0, atol=1e-5)


def test_each_weight_is_stored_once(network, folder):
    stored = dict(tf.train.list_variables(str(folder / "variables" / "variables")))
    shapes = sorted(tuple(shape) for name, shape in stored.items() if name.endswith("VARIABLE_VALUE"))
    assert shapes == sorted(tuple(weight.shape) for weight in network.variables)


@keras.saving.register_keras_serializable("test_export")
class Lookup(keras.layers.Layer):
    """Adds a plain TensorFlow variable to what a table says of the rounded pixels."""

    def build(self, _):
        rows = tf.lookup.KeyValueTensorInitializer([0, 1], [0.25, 0.75], tf.int64, tf.float32)
        self.table = tf.lookup.StaticHashTable(rows, -1.0)
        self.shift = tf.Variable(3.0)

    def call(self, images):
        return self.table.lookup(tf.cast(tf.round(images), tf.int64)) + self.shift

    def compute_output_shape(self, shape):
        return shape


def test_tables_and_plain_variables_of_a_users_layers_are_exported(images, tmp_path):
    pixels = keras.Input((8, 8, 1))
    encoder = keras.Model(pixels, keras.layers.Flatten()(Lookup()(pixels)))
    network = build_network(Network(encoder="own", projection_dim=2), (8, 8, 1), 3, encoder=encoder)
    served = tf.saved_model.load(str(export(network, tmp_path / "model", CONTRACT)))
    expected = np.where(np.round(images) == 1, 3.75, 3.25).reshape(5, 64)
    np.testing.assert_array_equal(served.embed(images)["embedding"], expected)


def test_the_keras_file_is_the_network(network, folder, images):
    reloaded = keras.saving.load_model(folder / "model.keras")
    expected = network(images, training=False)
    for name, values in reloaded(images, training=False).items():
        np.testing.assert_array_equal(values, expected[name])


def test_model_json_says_what_it_is(network, folder):
    contract = json.loads((folder / "model.json").read_text())
    assert {name: contract[name] for name in CONTRACT} == CONTRACT
    assert contract["format"] == 1
    assert contract["image_shape"] == [8, 8, 1]
    assert contract["num_classes"] == 3
    assert contract["input"] == "float32 [N, H, W, C] in [0, 1]"
    assert contract["parameters"] == sum(weight.value.numpy().size for weight in network.weights)
    assert contract["model_hash"] == model_hash(network) and len(bytes.fromhex(contract["model_hash"])) == 32
    assert set(contract["endpoints"]) == {"serve", "serve_uint8", "embed"}


def test_the_hash_covers_weights_and_normalisation():
    def hash_of(**changed):
        settings = dict(mean=[0.5], std=[0.25], seed=0) | changed
        return model_hash(build_network(Network(encoder="small_cnn"), (8, 8, 1), 3, **settings))

    first = hash_of()
    assert hash_of() == first
    assert first not in (hash_of(seed=1), hash_of(mean=[0.4]))


def test_an_existing_folder_is_kept_unless_told_and_nothing_is_printed(network, tmp_path, capfd):
    target = tmp_path / "model"
    target.mkdir()
    (target / "precious.txt").write_text("kept")
    with pytest.raises(InvalidInputError, match="already exists"):
        export(network, target, CONTRACT)
    assert [file.name for file in target.iterdir()] == ["precious.txt"]
    export(network, target, CONTRACT, overwrite=True)
    assert (target / "saved_model.pb").is_file() and not (target / "precious.txt").exists()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "writer, error",
    [
        ("tensorflow.saved_model.save", tf.errors.ResourceExhaustedError(None, None, "No space left on device")),
        ("keras_rcl.model_io.export.write_json", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_full_disk_leaves_nothing(network, tmp_path, monkeypatch, writer, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(writer, full)
    with pytest.raises(InvalidInputError, match="no space left"):
        export(network, tmp_path / "model", CONTRACT)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_reads_back_otherwise_is_not_exported(network, tmp_path, monkeypatch):
    load = tf.saved_model.load

    def load_damaged(path):
        model = load(path)
        model.variables[0].assign_add(tf.ones_like(model.variables[0]))
        return model

    monkeypatch.setattr(tf.saved_model, "load", load_damaged)
    with pytest.raises(RuntimeError, match="differ"):
        export(network, tmp_path / "model", CONTRACT)
    assert list(tmp_path.iterdir()) == []


def test_class_names_must_fit(network, tmp_path):
    with pytest.raises(InvalidInputError, match="2 class names for a network of 3"):
        export(network, tmp_path / "model", {**CONTRACT, "class_names": ["a", "b"]})
