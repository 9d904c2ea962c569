"""`.keras` files from elsewhere: harm is refused before anything runs, and sound files load as with Keras."""

import importlib
import inspect
import json
import os
import sys
import zipfile
from types import ModuleType

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from keras import layers
from keras.src.applications.convnext import ConvNeXt
from keras.src.applications.efficientnet_v2 import EfficientNetV2

import keras_rcl
from keras_rcl.cli.app import cli
from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.model_io.loading import LoadedModel
from keras_rcl.networks import build_network
from keras_rcl.storage.keras_archive import load_keras_archive
from keras_rcl.vocabulary import allowed_layers
from keras_rcl.vocabulary.network import Network
from tests.security import harness, keras_files


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return keras_files.sound_model(tmp_path_factory.mktemp("sound") / "sound.keras")


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    with harness.Canary(tmp_path_factory.mktemp("canary") / "canary") as canary:
        yield canary


def refusal(path):
    with pytest.raises(InvalidInputError) as refused:
        _ = LoadedModel(path).layers
    assert "\n" not in str(refused.value)
    return str(refused.value)


# --- harm -------------------------------------------------------------------------------------------------------------

NOT_READ = ("the loss", "the optimizer", "the metrics")
"""Places that an inference load leaves out."""


def test_an_object_that_does_more_than_compute_is_refused_in_each_place(sound, canary, tmp_path):
    """Each payload in one place, and each place with one payload; the rest is slow."""
    names, places = list(keras_files.payloads(canary)), list(keras_files.PLACES)
    for number in range(max(len(names), len(places))):
        name, place = names[number % len(names)], places[number % len(places)]
        path = keras_files.planted(sound, keras_files.payloads(canary)[name], place)(tmp_path)
        if place in NOT_READ:
            load_keras_archive(path)
        else:
            assert str(path) in refusal(path)
    assert not canary.planted.exists() and not canary.connected()


def test_the_message_names_what_is_not_allowed(sound, canary, tmp_path):
    for name, said in {
        "CVE-2026-1462 TFSMLayer": "names keras.layers.TFSMLayer, which is not on the list",
        "CVE-2025-8747 get_file": "names the function keras.utils.get_file",
        "CVE-2025-12058 StringLookup": f"reads the file {str(canary.secret)!r} for a vocabulary",
        "CVE-2024-3660 Lambda with bytecode": "carries Python code in a Lambda layer, which is not run; hint: give",
        "a tokenizer": "keras_hub",
    }.items():
        path = keras_files.planted(sound, keras_files.payloads(canary)[name], "activation")(tmp_path)
        assert said in refusal(path)


@pytest.mark.parametrize("kind", ["HDF5", "zip", "JSON", "pickle", "weights", "CVE-2025-9905", "memory"])
def test_weights_that_are_not_plain_arrays_and_archives_of_other_makes_are_refused(sound, canary, tmp_path, kind):
    attempts = keras_files.attempts(sound, canary)
    slow = ("zip: many members that expand", "JSON: a configuration of 100 MB")
    for name, make in attempts.items():
        if name.startswith((kind, f"CVE-2026-0897 {kind}")) and name not in slow and " as " not in name:
            path = make(tmp_path)
            with pytest.raises(InvalidInputError) as refused:
                load_classifier(path)
            assert "\n" not in str(refused.value) and str(path) in str(refused.value), name
    assert not canary.planted.exists()


def test_the_members_of_an_archive_are_measured_together(sound, tmp_path):
    """Sixteen members that each stay below the limit of one."""
    path = keras_files.rewritten(sound, tmp_path / "m.keras")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(3):
            archive.writestr(f"assets/{number}", bytes(63 * 2**20))
    assert f"expands from {path.stat().st_size} to " in refusal(path)


def test_the_lists_name_what_exists_and_leave_out_what_calls():
    """Every name is of Keras or KerasCV; an operation that is allowed is not given a function."""
    for name in allowed_layers.LAYERS:
        assert issubclass(getattr(keras.layers, name), keras.Layer)
    classes = {kind for kind in vars(keras.layers).values() if inspect.isclass(kind) and issubclass(kind, keras.Layer)}
    left_out = {"FlaxLayer", "JaxLayer", "Lambda", "Layer", "TFSMLayer", "TorchModuleWrapper", "Wrapper"}
    listed = {getattr(keras.layers, name) for name in allowed_layers.LAYERS}
    assert {kind.__name__ for kind in classes - listed} == left_out  # a new one is to be read before it is listed
    for module in (*allowed_layers.OPERATION_MODULES, "core"):
        for name, kind in vars(importlib.import_module(f"keras.src.ops.{module}")).items():
            if not (inspect.isclass(kind) and issubclass(kind, keras.Operation)):
                continue
            if name in allowed_layers.CALLING_OPERATIONS or (
                module == "core" and name not in allowed_layers.CORE_OPERATIONS
            ):
                continue
            arguments = {*inspect.signature(kind.__init__).parameters, *inspect.signature(kind.call).parameters}
            functions = "f fn fun func function pyfunc body cond branches body_fun true_fn false_fn".split()
            assert not arguments & set(functions), name


# --- sound files ------------------------------------------------------------------------------------------------------

IMAGE = (16, 16, 3)


def sequential(*inner):
    return keras.Sequential([keras.Input(IMAGE), *inner, layers.Flatten(), layers.Dense(3)])


def normalized():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).random((10, *IMAGE), np.float32))
    return sequential(normalization, layers.Rescaling(2.0, -1), layers.Resizing(12, 12))


def looked_up(layer, dtype):
    entered = keras.Input((4,), dtype=dtype)
    return keras.Model(entered, layers.Dense(3)(layers.Flatten()(layers.Embedding(8, 4)(layer(entered)))))


def strings():
    layer = layers.StringLookup()
    layer.adapt(np.array(["1", "2", "3"]))
    return looked_up(layer, "string")


def buckets():
    layer = layers.Discretization(num_bins=4)
    layer.adapt(np.random.default_rng(0).random(100))
    entered = keras.Input(IMAGE)
    return keras.Model(entered, layers.Dense(3)(layers.Flatten()(layers.Embedding(5, 2)(layer(entered)))))


def augmented():
    changes = [layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandAugment((0, 1)), layers.GaussianNoise(0.1)]
    return sequential(*changes, layers.RandomContrast(0.2), layers.Dropout(0.5, seed=3))


def mixed():
    return sequential(
        layers.Conv2D(8, 3, dtype="mixed_float16", activation="relu"),
        layers.BatchNormalization(dtype="mixed_bfloat16"),
        layers.Conv2D(4, 3, dtype="bfloat16"),
    )


def quantized(mode):
    model = keras.Sequential([keras.Input(IMAGE), layers.Flatten(), layers.Dense(16), layers.Dense(4)])
    model.quantize(mode)
    return model


def attending():
    image = keras.Input(IMAGE)
    x = layers.Reshape((64, 12))(layers.Conv2D(12, 3, strides=2, padding="same")(image))
    x = layers.LayerNormalization()(layers.MultiHeadAttention(2, 8)(x, x) + layers.Attention()([x, x]))
    return keras.Model(image, layers.Dense(3)(keras.ops.mean(x, axis=1)))


def recurrent():
    cells = [layers.GRUCell(4), layers.LSTMCell(3)]
    return sequential(
        layers.Reshape((16, 48)),
        layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
        layers.RNN(cells, return_sequences=True),
        layers.TimeDistributed(layers.Dense(3, kernel_regularizer="l2")),
    )


def grouped():
    return sequential(
        layers.Conv2D(8, 3, kernel_initializer=keras.initializers.HeNormal(3), kernel_constraint="max_norm"),
        layers.GroupNormalization(4),
        layers.SpectralNormalization(layers.Conv2D(4, 3)),
        layers.PReLU(),
        layers.SeparableConv2D(4, 3, activation="softplus", bias_regularizer=keras.regularizers.L1(0.1)),
    )


def nested():
    inner = sequential(layers.Conv2D(4, 3, activation="gelu"), layers.MaxPooling2D())
    image = keras.Input(IMAGE)
    middle = keras.Model(image, {"logits": inner(image), "twice": inner(image) * 2})
    outer = keras.Input(IMAGE)
    return keras.Model(outer, middle(outer)["logits"] + middle(outer)["twice"])


def operations():
    image = keras.Input(IMAGE)
    x = keras.ops.relu(image) - 0.5
    x = keras.ops.image.resize(keras.ops.concatenate([x, x[:, :, ::-1]], -1), (8, 8))
    x = x[..., :2] / (keras.ops.norm(x, axis=-1, keepdims=True) + 1e-3)
    return keras.Model(image, layers.Dense(3)(keras.ops.reshape(x, (-1, 128))))


@keras.saving.register_keras_serializable(package="user")
class UsersLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(y_pred - y_true, axis=-1)


def compiled(loss):
    model = keras.Sequential([keras.Input(IMAGE), layers.Flatten(), layers.Dense(8), keras_rcl.UnitNorm()])
    model.compile("adam", loss=loss)
    return model


def application(build, **settings):
    """A network of keras.applications, of few and narrow blocks."""
    return lambda: build(**settings, weights=None, input_shape=(32, 32, 3), classes=10)


SOUND = {
    "normalization, rescaling, resizing": normalized,
    "texts": strings,
    "integers": lambda: looked_up(layers.IntegerLookup(vocabulary=[1, 2, 3]), "int64"),
    "discretization": buckets,
    "augmentation": augmented,
    "mixed precision": mixed,
    "attention": attending,
    "group normalization, wrappers, regularizers": grouped,
    "nested": nested,
    "operations": operations,
    "our network": lambda: build_network(Network(encoder="small_cnn"), IMAGE, 3, mean=[0.3] * 3, std=[0.4] * 3),
    "our layer and our loss": lambda: compiled(keras_rcl.SupervisedContrastive(temperature=0.1)),
    "a loss of the user": lambda: compiled(UsersLoss()),
    "recurrent": recurrent,
    "int8": lambda: quantized("int8"),
    "int4": lambda: quantized("int4"),
    "MobileNetV3": application(keras.applications.MobileNetV3Small, alpha=0.25),
    "EfficientNetV2": application(
        EfficientNetV2, width_coefficient=0.1, depth_coefficient=0.1, default_size=32, name="efficientnetv2-b0"
    ),
    "ConvNeXt": application(ConvNeXt, depths=[1, 1, 1, 1], projection_dims=[8, 8, 16, 16], name="convnext"),
}


@pytest.mark.slow_after(13)
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("name", SOUND)
def test_a_sound_file_gives_what_keras_gives(tmp_path, name):
    model = SOUND[name]()
    model.save(path := tmp_path / "model.keras")
    loaded, kept = load_keras_archive(path), keras.saving.load_model(path, compile=False)
    entered = model.inputs[0]
    shape = (2, *entered.shape[1:])
    random = np.random.default_rng(0)
    if entered.dtype == "string":
        values = tf.constant(random.choice(["1", "2", "3", "9"], shape))
    else:
        values = random.integers(1, 5, shape) if "int" in entered.dtype else random.random(shape, np.float32)
    found, expected = loaded(values, training=False), kept(values, training=False)
    if not isinstance(found, dict):
        found, expected = {"logits": found}, {"logits": expected}
    assert found.keys() == expected.keys()
    for output in found:
        np.testing.assert_allclose(found[output], expected[output], rtol=0, atol=1e-6)
    assert not loaded.compiled and [w.shape for w in loaded.weights] == [w.shape for w in model.weights]
    for weight, other in zip(loaded.weights, kept.weights, strict=True):
        np.testing.assert_array_equal(weight, other)


@pytest.mark.slow
def test_a_model_compiled_with_our_loss_is_attacked_and_used_as_an_encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    net.compile("adam", loss=keras_rcl.CrossEntropy())
    net.save("mine.keras")
    encoder = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(16), keras_rcl.UnitNorm()])
    encoder.compile("adam", loss=keras_rcl.SupervisedContrastive(temperature=0.1))
    encoder.save("encoder.keras")
    for attack in ("fgsm", "embedding-2:source=encoder.keras"):
        command = ["attack", "mine.keras", "--attack", attack, "--dataset", "digits", "--limit", "10"]
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output


def test_a_layer_of_the_user_is_refused_by_its_name_and_loads_if_trusted(tmp_path):
    @keras.saving.register_keras_serializable(package="user")
    class Halve(layers.Layer):
        def call(self, x):
            return x / 2

    sequential(Halve()).save(path := tmp_path / "model.keras")
    assert "names user>Halve, which is not on the list of layers" in refusal(path)
    assert load_classifier(path, trust=True, output="logits").num_classes == 3


def test_a_name_of_a_registered_object_is_not_taken_from_the_file(tmp_path):
    """Keras takes a text for the object that is registered under it."""
    sequential(layers.Activation("relu")).save(path := tmp_path / "model.keras")

    def change(config):
        config["config"]["layers"][1]["config"]["activation"] = "user>UsersLoss"

    changed = keras_files.rewritten(path, tmp_path / "changed.keras", change)
    assert "'user>UsersLoss', which is the name of a registered class" in refusal(changed)


@pytest.fixture
def hub(monkeypatch):
    """A package `keras_hub` of one module, as what matters is where a class is defined."""
    package, module = ModuleType("keras_hub"), ModuleType("keras_hub.src.models.tiny")

    class Tiny(layers.Dense):
        pass

    class Tokenizer(layers.Layer):
        pass

    class TinyTokenizer(Tokenizer):
        pass

    for kind in (Tiny, TinyTokenizer):
        kind.__module__ = module.__name__
        setattr(module, kind.__name__, kind)
    module.Lambda, module.system, module.load = layers.Lambda, os.system, keras.saving.load_model
    for each in (package, module):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    return module


@pytest.mark.parametrize("name", ["Tiny", "TinyTokenizer", "TFSMLayer", "system", "load", "absent"])
def test_a_class_of_keras_hub_is_one_that_it_defines(sound, hub, tmp_path, name):
    hub.TFSMLayer = layers.TFSMLayer

    def change(config):
        dense = config["config"]["layers"][-1]
        dense |= {"module": hub.__name__, "class_name": name, "registered_name": f"keras_hub>{name}"}

    def rename(file):  # after the class, as Keras would
        file.move("layers/dense", "layers/tiny")

    path = keras_files.rewritten(sound, tmp_path / "model.keras", change, rename)
    if name == "Tiny":
        assert type(load_keras_archive(path).layers[-1]) is hub.Tiny
    else:
        assert f"names keras_hub>{name}, which is not on the list" in refusal(path)


@pytest.mark.parametrize("name", ["UnitNorm", "RobustTrainer", "TrainingState"])
def test_a_class_of_this_package_is_one_that_is_registered(sound, tmp_path, name):
    module = {"UnitNorm": "keras_rcl.networks.two_headed"}.get(name, "keras_rcl.training.robust_trainer")
    importlib.import_module(module)

    def change(config):
        flatten = config["config"]["layers"][1]
        flatten |= {"module": module, "class_name": name, "registered_name": f"keras_rcl>{name}"}
        flatten["config"] = {"name": "flatten"}

    said = refusal(keras_files.rewritten(sound, tmp_path / "model.keras", change))
    assert (f"names keras_rcl>{name}, which is not on the list" in said) == (name != "UnitNorm")


@pytest.mark.parametrize("units", [3, 10**10])
def test_a_model_that_makes_variables_at_once_gets_memory_for_what_the_file_stores(sound, hub, tmp_path, units):
    """As the tasks of KerasHub, which compile themselves while they are built."""

    class Counted(layers.Dense):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.calls = keras.Variable(np.float32(0), trainable=False, name="calls")

    hub.Counted, Counted.__module__ = Counted, hub.__name__

    def change(config):
        dense = config["config"]["layers"][-1]
        dense |= {"module": hub.__name__, "class_name": "Counted", "registered_name": None}
        dense["config"]["units"] = units

    def rename(file):
        file.move("layers/dense", "layers/counted")
        file["layers/counted/vars/2"] = np.float32(7)

    path = keras_files.rewritten(sound, tmp_path / "model.keras", change, rename)
    if units == 3:
        found, expected = (load_keras_archive(file).layers[-1].kernel for file in (path, sound))
        np.testing.assert_array_equal(found, expected)
    else:
        assert "describes a model of more than the" in refusal(path)


@pytest.mark.parametrize("version", ["2.15.0", "2.13.1", "1.0"])
def test_a_file_of_keras_2_is_called_one(sound, tmp_path, version):
    path = tmp_path / "old.keras"
    with zipfile.ZipFile(sound) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            old = json.dumps({"keras_version": version, "date_saved": "2024-01-01@00:00:00"})
            target.writestr(name, old if name == "metadata.json" else source.read(name))
    assert f"was saved by Keras {version}, and this reads files of Keras 3; hint:" in refusal(path)


def test_a_failed_load_leaves_no_variables_that_a_later_one_would_make(sound, tmp_path):
    """Keras makes the variables that wait for memory at the end of any stateless scope."""

    def change(config):
        keras_files._layer(config, "dense")["config"]["units"] = 10**10

    assert "describes a model of" in refusal(keras_files.rewritten(sound, tmp_path / "large.keras", change))
    layers.Dense(2)(keras.Input((3,)))
    assert load_keras_archive(sound).count_params() == 64 * 3 + 3
