"""What a model may hold: planted harm is refused before it is loaded, and ordinary models pass."""

import ast
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from keras_rcl.cli.app import cli
from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.classifier import load_classifier

PACKAGE = Path(__file__).parents[2] / "keras_rcl"
IMAGES = tf.TensorSpec([None, 8, 8, 1])


def save(path, call, classes=3, **attributes):
    """A SavedModel of logits [N, classes], with `call` on the way to them."""
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones([64, classes]))
    for name, value in attributes.items():
        setattr(module, name, value)

    @tf.function(input_signature=[IMAGES])
    def serve(image):
        return {"logits": tf.reshape(call(image), [-1, 64]) @ module.kernel}

    tf.saved_model.save(module, str(path), signatures={"serve": serve})
    return path


def small_keras(*layers):
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(3)])


@tf.function
def write_deep_within(images):
    def write():
        with tf.control_dependencies([tf.io.write_file("planted", "x")]):
            return tf.identity(images)

    return tf.cond(tf.reduce_sum(images) > 1e9, write, lambda: images)


def test_trust_loads_what_never_writes_and_says_so_in_the_command_line(tmp_path, monkeypatch):
    """The operation is in a branch that is never taken."""
    monkeypatch.chdir(tmp_path)
    save("model", write_deep_within)
    np.save("images.npy", np.zeros((2, 8, 8, 1), np.float32))
    refused = CliRunner().invoke(cli, ["predict", "model", "images.npy"])
    assert refused.exit_code == 2 and "'WriteFile'" in refused.stderr and len(refused.stderr.splitlines()) == 1
    answered = CliRunner().invoke(cli, ["predict", "model", "images.npy", "--skip-safety-check"])
    assert answered.exit_code == 0, answered.output
    save("harmless", lambda images: images, classes=10)
    through = ["harmless", "--dataset", "digits", "--limit", "10", "--transfer-from", "model"]
    for command in (["attack", "--attack", "fgsm"], ["audit", "--claim", "50%"]):
        assert "'WriteFile'" in CliRunner().invoke(cli, [*command, *through]).stderr
        assert "has 3 classes, but" in CliRunner().invoke(cli, [*command, *through, "--skip-safety-check"]).stderr
    assert not Path("planted").exists()


# --- ordinary models --------------------------------------------------------------------------------------------------


def random_layers():
    return small_keras(
        keras.layers.RandomFlip(),
        keras.layers.GaussianNoise(0.1),
        keras.layers.Dropout(0.5),
        keras.layers.RandomZoom(0.1),
    )


def recurrent():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Reshape((8, 8)),
            keras.layers.LSTM(4, return_sequences=True),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax", kernel_regularizer="l2"),
        ]
    )


def with_operations():
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="gelu")(image)
    x = keras.ops.relu(keras.layers.BatchNormalization()(x)) * 2
    return keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x)))


@pytest.mark.parametrize("make", [random_layers, recurrent, with_operations])
def test_models_of_keras_pass(tmp_path, make):
    model = make()
    model.compile("adam", "mse", metrics=["accuracy"])
    model.save(tmp_path / "model.keras")
    assert load_classifier(tmp_path / "model.keras").num_classes == 3
    model.export(tmp_path / "export", verbose=False)
    assert load_classifier(tmp_path / "export").num_classes == 3


# --- .keras files (tests/security has the rest) -----------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_a_lambda_layer_is_refused_trusted_or_not(tmp_path, nested):
    inner = keras.layers.Lambda(lambda x: 2 * x)
    small_keras(keras.Sequential([keras.Input((8, 8, 1)), inner]) if nested else inner).save(tmp_path / "model.keras")
    for trust in (False, True):
        with pytest.raises(InvalidInputError, match="Lambda layer, which is not run"):
            load_classifier(tmp_path / "model.keras", trust=trust)


# --- the package itself -----------------------------------------------------------------------------------------------


def test_no_pickle_no_eval_and_only_the_safe_loaders():
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                found.append((file.name, ast.unparse(node.func), words))
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            banned = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"} & set(names)
            # alpha-beta-CROWN writes a pickle, which is read by an unpickler that calls nothing (test_vnnlib.py).
            assert not banned or (file.name, banned) == ("vnnlib.py", {"pickle"}), file
    assert {name for _, name, _ in found} & {"np.load", "keras.saving.load_model", "yaml.load"}
    for file, name, words in found:
        assert name not in ("eval", "exec", "os.system", "yaml.unsafe_load", "yaml.full_load"), file
        assert name != "np.load" or words.get("allow_pickle") == "False", file
        assert not name.endswith("load_model") or words.get("safe_mode") == "True" or name != "keras.saving.load_model"
        assert "shell" not in words, file
        assert not name.endswith(("extractall", "unpack_archive")), file
