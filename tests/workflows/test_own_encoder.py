"""`network.encoder` that is a user's own: a file, a function, a network of keras.applications, a preset of KerasHub."""

import json
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from keras import layers

import keras_rcl
from keras_rcl import InvalidInputError
from keras_rcl.cli.app import cli
from keras_rcl.config import Experiment
from keras_rcl.model_io.continued import build_continued
from keras_rcl.model_io.own_encoder import load_own_encoder
from keras_rcl.workflows.fit import Run, export_run

MODULE = """
import keras

@keras.saving.register_keras_serializable("own")
class Squared(keras.layers.Layer):
    def call(self, x):
        return x * x

def build(image_shape):
    image = keras.Input(image_shape)
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(keras.layers.Rescaling(1 / 255)(image))
    return keras.Model(image, keras.layers.Dense(8)(keras.layers.Flatten()(x)))

def unbuilt():
    return keras.Sequential([Squared(), keras.layers.Flatten(), keras.layers.Dense(8)])

def classifier(image_shape):
    return keras.Sequential([keras.Input(image_shape), keras.layers.Flatten(), keras.layers.Dense(8, "softmax")])

def feature_map(image_shape):
    return keras.Sequential([keras.Input(image_shape), keras.layers.Conv2D(4, 3)])

def fails():
    raise KeyError("width")

def nothing():
    return None

number = 3
"""
SMALL = [
    *("--limit", "60", "--no-compare", "--variant", "at", "--set", "method.epochs=1"),
    *("--set", "method.attack={name: fgsm, epsilon: 16/255}", "--set", "evaluation.attacks=[]"),
    *("--set", "evaluation.validation_attack={name: noise}", "--set", "network.projection_dim=4"),
]


def run(*arguments) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a module of the user."""
    (tmp_path / "user_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("user_networks", None)


def own_file(folder: Path) -> Path:
    """A `.keras` file of an encoder that reads 0..255."""
    image = keras.Input((8, 8, 1))
    x = layers.Flatten()(layers.ReLU()(layers.Conv2D(4, 3)(layers.Rescaling(1 / 127.5, -1)(image))))
    keras.Model(image, layers.Dense(8)(x)).save(folder / "mine.keras")
    return folder / "mine.keras"


IMAGES = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)


def test_a_file_begins_with_its_own_weights_and_reads_its_own_range(tmp_path):
    path = own_file(tmp_path)
    theirs = keras.saving.load_model(path)
    own = load_own_encoder(str(path), (8, 8, 1))
    np.testing.assert_allclose(own(IMAGES), theirs(255 * IMAGES), rtol=1e-5, atol=1e-6)
    network = keras_rcl.build_network(keras_rcl.Network(encoder=path), (8, 8, 1), 10, encoder=own)
    np.testing.assert_allclose(network(IMAGES)["embedding"], theirs(255 * IMAGES), rtol=1e-5, atol=1e-6)


def test_a_function_is_imported_from_the_current_directory_and_its_weights_depend_on_the_seed(here):
    same, again, other = (load_own_encoder("user_networks:build", (8, 8, 1), seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(same(IMAGES), again(IMAGES))
    assert np.abs(same(IMAGES) - other(IMAGES)).max() > 1e-3
    assert str(here) not in sys.path
    unbuilt = load_own_encoder("user_networks:unbuilt", (8, 8, 1))
    np.testing.assert_allclose(
        unbuilt(IMAGES), IMAGES.reshape(3, -1) ** 2 @ unbuilt.get_weights()[0], rtol=1e-4, atol=1e-6
    )


REFUSED = {
    "user_networks:nothing": "returns NoneType; hint: return a keras.Model",
    "user_networks:fails": "raises KeyError: 'width'",
    "user_networks:number": "is a int; hint: name a function",
    "user_networks:biuld": "has no biuld; did you mean 'build'",
    "user_networks:classifier": "ends in a softmax",
    "user_networks:feature_map": r"not an embedding \[N, E\]",
    "no_such_module:build": "cannot be imported: ModuleNotFoundError",
    "none.keras": "there is no model at none.keras",
    "damaged.keras": "damaged.keras is not a valid .keras archive",
    "lambda.keras": "Lambda",
    "wide.keras": r"reads images of shape \(9, 9, 1\), and these have \(8, 8, 1\); hint: set dataset.image_size=9",
    "keras.applications.MobilNetV2": "no network 'MobilNetV2'; did you mean 'MobileNetV2'",
    "keras.applications.VGG16": "keras.applications.VGG16 cannot be built for images of shape",
}


@pytest.mark.parametrize("encoder", REFUSED)
def test_what_is_no_encoder_is_one_line(encoder, here):
    (here / "damaged.keras").write_text("no archive")
    if encoder == "lambda.keras":
        keras.Sequential([keras.Input((8, 8, 1)), layers.Lambda(lambda x: x), layers.Flatten()]).save("lambda.keras")
    if encoder == "wide.keras":
        keras.Sequential([keras.Input((9, 9, 1)), layers.Flatten()]).save("wide.keras")
    with pytest.raises(InvalidInputError, match=REFUSED[encoder]) as raised:
        load_own_encoder(encoder, (8, 8, 1))
    assert "\n" not in str(raised.value)


def test_a_preset_without_kerashub_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(InvalidInputError, match="keras_hub:resnet_18 needs KerasHub.*pip install"):
        load_own_encoder("keras_hub:resnet_18", (8, 8, 3))


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for KerasHub with one preset."""
    image = keras.Input((None, None, 3), name="images")
    backbone = keras.Model(image, layers.Conv2D(5, 3)(image))

    def from_preset(name, **settings):
        if name != "tiny":
            raise ValueError("no route to host")
        return backbone

    converter = types.SimpleNamespace(image_size=None, scale=[1 / 255, 2 / 255, 1 / 255], offset=[-0.5, 0, 0.25])
    module = types.ModuleType("keras_hub")
    module.models = types.SimpleNamespace(Backbone=types.SimpleNamespace(from_preset=from_preset))
    module.layers = types.SimpleNamespace(ImageConverter=types.SimpleNamespace(from_preset=lambda name: converter))
    monkeypatch.setitem(sys.modules, "keras_hub", module)
    return backbone


def test_a_preset_of_kerashub_reads_what_its_converter_gives_and_is_pooled(hub):
    images = np.random.default_rng(1).random((2, 8, 8, 3), np.float32)
    scaled = images * np.float32([1, 2, 1]) + np.float32([-0.5, 0, 0.25])
    expected = np.asarray(hub(scaled)).mean(axis=(1, 2))
    np.testing.assert_allclose(load_own_encoder("keras_hub:tiny", (8, 8, 3))(images), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidInputError, match="keras_hub:other could not be downloaded: no route to host"):
        load_own_encoder("keras_hub:other", (8, 8, 3))
    with pytest.raises(InvalidInputError, match=r"reads images of shape .*, and these have \(8, 8, 1\).*RGB"):
        load_own_encoder("keras_hub:tiny", (8, 8, 1))


@pytest.mark.slow
def test_a_run_with_layers_of_the_user_is_attacked_and_exported(here):
    run("fit", *SMALL, "--name", "mine", "--set", "network.encoder=user_networks:unbuilt")
    record = json.loads(Path("runs/mine/record.json").read_text())
    assert record["config"]["network"]["encoder"] == "user_networks:unbuilt"
    with pytest.raises(InvalidInputError, match="Squared"):
        export_run("runs/mine", name="again")
    del sys.modules["user_networks"], keras.saving.get_custom_objects()["own>Squared"]  # as in another process
    run("export", "runs/mine", "--name", "again", "--skip-safety-check")
    first, again = (keras_rcl.load_classifier(Path(f"saved_models/{name}")) for name in ("mine", "again"))
    np.testing.assert_allclose(first.logits(IMAGES), again.logits(IMAGES), rtol=1e-5, atol=1e-5)
    run("attack", "saved_models/again", "--attack", "fgsm", "--limit", "20")


@pytest.mark.slow
def test_a_network_of_keras_applications_has_the_channels_of_the_images_and_reads_minus_one_to_one():
    images = np.random.default_rng(0).random((2, 32, 32, 1), np.float32)
    own = load_own_encoder("keras.applications.MobileNet", (32, 32, 1))
    assert own.output_shape == (None, 1024)
    np.testing.assert_allclose(own(images), own.layers[-1](2 * images - 1), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_an_interrupted_run_resumes_and_a_changed_encoder_does_not(here, monkeypatch):
    calls = []
    original = Run.train

    def interrupted(self, *arguments):
        calls.append(self.fingerprint)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Run, "train", interrupted)
    own_file(here)
    command = ["fit", *SMALL, "--name", "mine", "--set", "network.encoder=mine.keras"]
    assert CliRunner().invoke(cli, command).exit_code == 130
    keras.utils.set_random_seed(9)
    kept = (here / "mine.keras").read_bytes()
    own_file(here)
    changed = CliRunner().invoke(cli, command)
    assert changed.exit_code == 2 and "with other encoder" in changed.stderr
    (here / "mine.keras").write_bytes(kept)
    run(*command)
    exported = keras_rcl.load_classifier(export_run("runs/mine", name="again"))
    classifier = keras_rcl.load_classifier(Path("saved_models/mine"))
    np.testing.assert_allclose(classifier.logits(IMAGES), exported.logits(IMAGES), rtol=1e-5, atol=1e-5)
    spec = keras_rcl.Network(encoder="mine.keras", pretrained="saved_models/mine", projection_dim=4)
    own = load_own_encoder("mine.keras", (8, 8, 1))
    continued = build_continued(spec, (8, 8, 1), 10, encoder=own)
    np.testing.assert_allclose(classifier.logits(IMAGES), continued(IMAGES)["logits"], rtol=1e-5, atol=1e-5)
    np.save("scans.npy", IMAGES)
    predicted = [line.split()[1] for line in run("predict", "saved_models/mine", "scans.npy").splitlines()[2:]]
    assert predicted == [str(label) for label in np.argmax(classifier.logits(IMAGES), axis=1)]
    bounds = run("verify", "saved_models/mine", "--epsilon", "1/255", "--limit", "5", "--method", "ibp", "--no-attack")
    assert "verified" in bounds.splitlines()[0]
    untrained = ["--set", "network.pretrained=saved_models/mine", "--set", "method.epochs=0", "--name", "untrained"]
    run(*command[:-4], "--set", "network.encoder=mine.keras", *untrained)
    same = keras_rcl.load_classifier(Path("saved_models/untrained"))
    np.testing.assert_allclose(same.logits(IMAGES), classifier.logits(IMAGES), rtol=1e-5, atol=1e-5)


def test_settings_name_what_an_encoder_can_be():
    with pytest.raises(InvalidInputError, match=r"did you mean 'resnet18'.*package.module:function.*keras_hub:PRESET"):
        keras_rcl.config.parse({"method": {"name": "at"}, "network": {"encoder": "resnet118"}}, "mine.yaml")
    with pytest.raises(ValueError, match="trained in float32"):
        Experiment(method=keras_rcl.AT(), network={"encoder": "a.b:c"}, precision="mixed_bfloat16")
