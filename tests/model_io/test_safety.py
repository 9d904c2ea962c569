"""What a model may hold: planted harm is refused before it is loaded, and ordinary models pass."""

import ast
import json
import shutil
import stat
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from keras_rcl.cli.app import cli
from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.model_io.encoder import load_encoder
from keras_rcl.model_io.safety import check_keras, check_saved_model

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


def write(images):
    with tf.control_dependencies([tf.io.write_file("planted", "x")]):
        return tf.identity(images)


def read(images):
    return images + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)


def read_lines(images):
    line = next(iter(tf.data.TextLineDataset("/etc/hostname")))
    return images + tf.cast(tf.strings.length(line), tf.float32)


def log(images):
    tf.print("images", output_stream="file://planted")
    return images


def overwrite(images):
    saved = tf.raw_ops.SaveV2(prefix="planted", tensor_names=["x"], shape_and_slices=[""], tensors=[images])
    with tf.control_dependencies([saved]):
        return tf.identity(images)


HARMFUL = {
    "WriteFile": write,
    "ReadFile": read,
    "EagerPyFunc": lambda images: tf.ensure_shape(tf.py_function(lambda x: x, [images], tf.float32), [None, 8, 8, 1]),
    "PyFunc": lambda images: tf.ensure_shape(tf.numpy_function(lambda x: x, [images], tf.float32), [None, 8, 8, 1]),
    "PrintV2": log,
    "SaveV2": overwrite,
    "RestoreV2": lambda images: (
        images + tf.raw_ops.RestoreV2(prefix="x", tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32])[0]
    ),
    "ImmutableConst": lambda images: (
        images + tf.raw_ops.ImmutableConst(dtype=tf.float32, shape=[1], memory_region_name="/etc/hostname")
    ),
    "Dataset": read_lines,
}


@pytest.mark.parametrize("op", HARMFUL)
def test_an_op_of_files_or_of_python_is_refused(tmp_path, monkeypatch, op):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "model", HARMFUL[op])
    Path("planted").unlink(missing_ok=True)
    for load in (load_classifier, lambda path: load_encoder(path, (8, 8, 1))):
        with pytest.raises(InvalidInputError, match=rf"holds the op '\w*{op}' .* give --skip-safety-check") as refused:
            load(path)
        assert "\n" not in str(refused.value)
    assert not Path("planted").exists()


def test_an_op_in_a_function_in_a_function_is_refused(tmp_path):
    path = save(tmp_path / "model", lambda images: tf.map_fn(write_deep_within, images))
    with pytest.raises(InvalidInputError, match="holds the op 'WriteFile' in 'cond"):
        check_saved_model(path)


class Planted(tf.Module):
    """A resource of which loading runs the initialiser."""

    def __init__(self, place):
        super().__init__()
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(place, tf.string, 0, tf.int64, 1, delimiter=" "), -1
        )


def test_an_initialiser_that_reads_a_file_is_refused(tmp_path):
    (tmp_path / "words.txt").write_text("a 1\n")
    path = save(tmp_path / "model", lambda images: images, planted=Planted(str(tmp_path / "words.txt")))
    with pytest.raises(InvalidInputError, match="InitializeTableFromTextFileV2"):
        check_saved_model(path)


def edited(path, change):
    """The SavedModel with its first graph changed."""
    whole = tf.__internal__.saved_model.parse_saved_model(str(path))
    change(whole.meta_graphs[0])
    (path / "saved_model.pb").write_bytes(whole.SerializeToString())
    return path


def test_an_op_in_an_initialiser_is_refused(tmp_path):
    """What runs when the model is loaded, and not when it is called."""

    def plant(graph):
        (name,) = (n for n in graph.object_graph_def.concrete_functions if "initializer" in n)
        (function,) = (f for f in graph.graph_def.library.function if f.signature.name == name)
        for text in ("planted", "x"):
            node = function.node_def.add(name=text, op="Const")
            node.attr["dtype"].type = tf.string.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text))
        function.node_def.add(name="write", op="WriteFile", input=["planted:output:0", "x:output:0"])
        function.control_ret["write"] = "write"

    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), -1)
    path = save(tmp_path / "model", lambda images: images, table=table)
    check_saved_model(path)
    with pytest.raises(InvalidInputError, match="holds the op 'WriteFile' in '__inference__initializer"):
        check_saved_model(edited(path, plant))


@pytest.mark.parametrize("who", ["signature", "gradient", "name"])
def test_the_savers_own_function_is_for_the_saver_alone(tmp_path, who):
    """`SaveV2` is in every SavedModel; another function must not call the one that holds it."""

    def plant(graph):
        library = graph.graph_def.library
        (saver,) = (f for f in library.function if "traced_save" in f.signature.name)
        other = next(f for f in library.function if "serve" in f.signature.name)
        if who == "signature":
            other.node_def.add(name="save", op="PartitionedCall").attr["f"].func.name = saver.signature.name
        elif who == "gradient":
            library.gradient.add(function_name=other.signature.name, gradient_func=saver.signature.name)
        else:
            other.node_def.add(name="save", op=saver.signature.name)

    path = save(tmp_path / "model", lambda images: images)
    check_saved_model(path)
    with pytest.raises(InvalidInputError, match="in '__inference__traced_save"):
        check_saved_model(edited(path, plant))


@pytest.mark.parametrize(
    "plant",
    [
        lambda graph: graph.graph_def.node.add(name="x", op="NoSuchOp"),
        lambda graph: graph.graph_def.node.add(name="x", op="_Send"),
        lambda graph: graph.graph_def.node.add(name="x", op="PartitionedCall").attr["f"].func.__setattr__("name", "y"),
        lambda graph: graph.graph_def.library.function.add().signature.__setattr__("name", "WriteFile"),
    ],
    ids=["unknown op", "internal op", "function that is not there", "function named as an op"],
)
def test_what_is_not_known_is_refused(tmp_path, plant):
    path = save(tmp_path / "model", lambda images: images)
    with pytest.raises(InvalidInputError, match="not known to be harmless"):
        check_saved_model(edited(path, plant))


def test_trust_loads_what_never_writes_and_says_so_in_the_command_line(tmp_path, monkeypatch):
    """The op is in a function that no signature calls."""
    monkeypatch.chdir(tmp_path)
    module_function = tf.function(write, input_signature=[IMAGES])
    save("model", lambda images: images, unused=module_function)
    Path("planted").unlink(missing_ok=True)
    np.save("images.npy", np.zeros((2, 8, 8, 1), np.float32))
    refused = CliRunner().invoke(cli, ["predict", "model", "images.npy"])
    assert refused.exit_code == 2 and "'WriteFile'" in refused.stderr and len(refused.stderr.splitlines()) == 1
    answered = CliRunner().invoke(cli, ["predict", "model", "images.npy", "--skip-safety-check"])
    assert answered.exit_code == 0, answered.output
    save("harmless", lambda images: images, classes=10)
    through = ["harmless", "--dataset", "digits", "--limit", "10", "--transfer-from", "model"]
    for command in (["attack", "--attack", "fgsm"], ["audit", "--claim", "50%"]):
        assert "'WriteFile'" in CliRunner().invoke(cli, [*command, *through]).stderr
        assert "tells 3 classes apart" in CliRunner().invoke(cli, [*command, *through, "--skip-safety-check"]).stderr
    assert not Path("planted").exists()


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    path = save(tmp_path / "model", lambda images: images)
    (path / "assets").mkdir(exist_ok=True)
    (path / "assets/inner").symlink_to("../fingerprint.pb")
    check_saved_model(path)
    (path / "assets/outer").symlink_to("/etc/hostname")
    with pytest.raises(InvalidInputError, match="has the link assets/outer out of its folder"):
        check_saved_model(path)


def test_an_asset_out_of_the_folder_is_refused(tmp_path):
    path = save(tmp_path / "model", lambda images: images)
    with pytest.raises(InvalidInputError, match=r"has the asset '\.\./\.\./secret' out of its folder"):
        check_saved_model(edited(path, lambda graph: graph.asset_file_def.add(filename="../../secret")))


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
    check_keras(tmp_path / "model.keras")
    model.export(tmp_path / "export", verbose=False)
    check_saved_model(tmp_path / "export")


def test_tables_of_constants_loops_conditions_and_gradients_pass(tmp_path):
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), 0.0)

    @tf.custom_gradient
    def doubled(x):
        return 2 * x, lambda upstream: 3 * upstream

    def call(images):
        images = tf.cond(tf.reduce_sum(images) > 0, lambda: images, lambda: -images)
        for _ in tf.range(2):
            images = doubled(images) + table.lookup(tf.constant(["a"]))
        tf.debugging.assert_all_finite(images, "finite")
        return tf.map_fn(lambda image: image + tf.random.normal([8, 8, 1]), images)

    check_saved_model(save(tmp_path / "model", tf.function(call), table=table))


@pytest.mark.parametrize("resource", [False, True])
def test_a_graph_of_tensorflow_1_passes_and_its_saver_cannot_be_called(tmp_path, resource):
    v1, path = tf.compat.v1, tmp_path / "model"
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, [None, 8, 8, 1], "image")
        kernel = v1.get_variable("kernel", [64, 3], use_resource=resource)
        logits = tf.reshape(image, [-1, 64]) @ kernel
        session.run(v1.global_variables_initializer())
        inputs = {"image": v1.saved_model.build_tensor_info(image)}
        outputs = {"logits": v1.saved_model.build_tensor_info(logits)}
        builder = v1.saved_model.Builder(str(path))
        signature = v1.saved_model.build_signature_def(inputs, outputs, "predict")
        builder.add_meta_graph_and_variables(session, ["serve"], {"serve": signature})
        builder.save()
    assert load_classifier(path).num_classes == 3

    def serve_the_saver(graph):
        graph.signature_def["serve"].outputs["logits"].name = graph.saver_def.save_tensor_name

    with pytest.raises(InvalidInputError, match="SaveV2|MergeV2Checkpoints|ShardedFilename"):
        check_saved_model(edited(path, serve_the_saver))


# --- .keras files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "model.keras"
    small_keras().save(path)
    check_keras(path)
    return path


def rewritten(whole, path, change):
    """A copy of a `.keras` file with its configuration changed."""
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config["config"]["layers"])
                content = json.dumps(config).encode()
            target.writestr(name, content)
    return path


@pytest.mark.parametrize("nested", [False, True])
def test_a_lambda_layer_is_refused_trusted_or_not(tmp_path, nested):
    inner = keras.layers.Lambda(lambda x: 2 * x)
    small_keras(keras.Sequential([keras.Input((8, 8, 1)), inner]) if nested else inner).save(tmp_path / "model.keras")
    for trust in (False, True):
        with pytest.raises(InvalidInputError, match="Lambda layer, which is not run"):
            load_classifier(tmp_path / "model.keras", trust=trust)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "x"}}, "keras.layers.TFSMLayer"),
        ({"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {}}, "TorchModuleWrapper"),
        ({"module": "keras.utils", "class_name": "function", "config": "get_file"}, "keras.utils.get_file"),
        ({"module": "keras.models", "class_name": "function", "config": "load_model"}, "keras.models.load_model"),
        ({"module": "os", "class_name": "system", "config": {}}, "os.system"),
        ({"module": "builtins", "class_name": "eval", "config": {}}, "builtins.eval"),
        ({"module": ["keras"], "class_name": "Dense", "config": {}}, "which is not known"),
        ({"module": "keras.layers", "class_name": ["Dense"], "config": {}}, "which is not known"),
        (
            {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
            "reads the file '/etc/passwd'",
        ),
    ],
)
def test_classes_and_functions_beyond_arithmetic_are_refused(whole, tmp_path, layer, said):
    def plant(layers):
        layers[1]["config"]["kernel_regularizer"] = [{"within": layer}]

    with pytest.raises(InvalidInputError) as refused:
        check_keras(rewritten(whole, tmp_path / "model.keras", plant))
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["../planted", "/tmp/planted", "assets/../../planted", "..\\planted", "C:planted"])
def test_an_archive_that_leaves_its_folder_is_refused(whole, tmp_path, name):
    path = shutil.copy(whole, tmp_path / "model.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(InvalidInputError, match="out of its folder"):
        load_classifier(path)


def test_a_link_in_an_archive_is_refused(whole, tmp_path):
    path = shutil.copy(whole, tmp_path / "model.keras")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("assets/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(InvalidInputError, match="has the link 'assets/link' for a member"):
        load_classifier(path)


def test_an_archive_that_swells_is_refused(whole, tmp_path):
    path = shutil.copy(whole, tmp_path / "model.keras")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(70 * 2**20))
    with pytest.raises(InvalidInputError, match="swells from"):
        load_classifier(path)


# --- the package itself -----------------------------------------------------------------------------------------------


def calls():
    """(file, the function as it is written, the names of its keyword arguments) of every call in the package."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield file.name, ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_no_pickle_no_eval_and_only_the_safe_loaders():
    found = list(calls())
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
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
