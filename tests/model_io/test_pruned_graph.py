"""SavedModels from elsewhere: only the graph of one signature is run, and only operations of the allow list."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import variable_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import kernels, op_def_registry

from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.allowed_operations import ALLOWED_OPERATIONS
from keras_rcl.model_io.classifier import load_classifier
from keras_rcl.model_io.encoder import load_encoder
from keras_rcl.model_io.pruned_graph import PrunedSavedModel
from tests.security.saved_models import edited, write_version_1

IMAGES = tf.TensorSpec([None, 8, 8, 1])
OPERATIONS = sorted({kernel.op for kernel in kernels.get_all_registered_kernels().kernel})


def save(path, call, classes=3, **attributes):
    """A SavedModel of logits [N, classes], with `call` on the way to them."""
    module = tf.Module()
    module.kernel = tf.Variable(np.random.default_rng(0).normal(size=(64, classes)).astype(np.float32))
    for name, value in attributes.items():
        setattr(module, name, value)

    @tf.function(input_signature=[IMAGES])
    def serve(image):
        return {"logits": tf.reshape(call(image), [-1, 64]) @ module.kernel}

    tf.saved_model.save(module, str(path), signatures={"serve": serve})
    return path


def save_v1(path, logits_of, resource=True, **variables):
    """A SavedModel of TensorFlow 1."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, [None, 8, 8, 1], "image")
        kernel = v1.get_variable("kernel", [64, 3], use_resource=resource, **variables)
        logits, initialiser = logits_of(tf.reshape(image, [-1, 64]), kernel), v1.tables_initializer()
        session.run([v1.global_variables_initializer(), initialiser])
        return write_version_1(path, session, image, logits, initialiser)


def add_write(nodes, path, function=False):
    """Add nodes that write a file, to a graph or to a function; return the name of the one that writes."""
    for name, text in (("path", path), ("text", "planted")):
        node = nodes.add(name=f"evil/{name}", op="Const")
        node.attr["dtype"].type = tf.string.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text))
    end = ":output:0" if function else ":0"
    nodes.add(name="evil", op="WriteFile", input=[f"evil/path{end}", f"evil/text{end}"])
    return "evil"


def add_evil_function(graph, path):
    """Add a function that writes a file, and a node of the graph that calls it."""
    function = graph.graph_def.library.function.add()
    function.signature.name, function.signature.is_stateful = "evil_function", True
    add_write(function.node_def, path, function=True)
    function.control_ret["evil"] = "evil"
    function.signature.control_output.append("evil")
    call = graph.graph_def.node.add(name="evil_call", op="StatefulPartitionedCall")
    call.attr["f"].func.name = "evil_function"
    call.attr["Tin"].list.SetInParent()
    call.attr["Tout"].list.SetInParent()
    return "evil_function", "evil_call"


# --- places that are never run ----------------------------------------------------------------------------------------


def in_saver(graph, path):
    _, call = add_evil_function(graph, path)
    names = {tensor.partition(":")[0] for tensor in (graph.saver_def.save_tensor_name, graph.saver_def.restore_op_name)}
    for node in graph.graph_def.node:
        if node.name in names:
            node.input.append(f"^{call}")


def in_restore_function(graph, path):
    for function in graph.graph_def.library.function:
        if "traced_restore" in function.signature.name:
            function.node_def[0].input.append("^" + add_write(function.node_def, path, function=True))


def in_main_op(graph, path):
    _, call = add_evil_function(graph, path)
    graph.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = f"{call}:0"
    for key in ("saved_model_main_op", "legacy_init_op", "table_initializer", "saved_model_train_op"):
        graph.collection_def[key].node_list.value[:] = [call]


def in_local_variables(graph, path):
    add_evil_function(graph, path)
    variable = variable_pb2.VariableDef(
        variable_name="kernel:0", initializer_name="evil_call", snapshot_name="kernel:0"
    )
    for key in ("local_variables", "variables", "trainable_variables", "model_variables"):
        graph.collection_def[key].bytes_list.value.append(variable.SerializeToString())


def in_object_graph(graph, path):
    name, _ = add_evil_function(graph, path)
    graph.object_graph_def.concrete_functions[name].SetInParent()
    for node in graph.object_graph_def.nodes:
        if node.WhichOneof("kind") == "bare_concrete_function":
            node.bare_concrete_function.concrete_function_name = name
        if node.WhichOneof("kind") == "function":
            node.function.concrete_functions[:] = [name]


def in_table_initialiser(graph, path):
    for function in graph.graph_def.library.function:
        if "initializer" in function.signature.name:
            function.node_def[0].input.append("^" + add_write(function.node_def, path, function=True))


def in_gradient(graph, path):
    name, _ = add_evil_function(graph, path)
    other = graph.graph_def.library.function[0].signature.name
    graph.graph_def.library.gradient.add(function_name=other, gradient_func=name)
    graph.graph_def.library.registered_gradients.add(registered_op_type="Conv2D", gradient_func=name)


def in_other_signature(graph, path):
    _, call = add_evil_function(graph, path)
    graph.signature_def["other"].CopyFrom(graph.signature_def["serve"])
    graph.signature_def["other"].outputs["logits"].name = f"{call}:0"


def in_assets(graph, path):
    graph.asset_file_def.add(filename="../../secret").tensor_info.name = "evil/path:0"
    add_write(graph.graph_def.node, path)


NEVER_RUN = [
    in_saver,
    in_restore_function,
    in_main_op,
    in_local_variables,
    in_object_graph,
    in_table_initialiser,
    in_gradient,
    in_other_signature,
    in_assets,
]


@pytest.mark.parametrize("plant", NEVER_RUN, ids=lambda plant: plant.__name__)
def test_what_the_signature_does_not_need_is_never_run(tmp_path, plant):
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), 0.0)
    path = save(tmp_path / "model", lambda images: images + table.lookup(tf.constant(["a"])), table=table)
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    expected = load_classifier(path).logits(images)
    edited(path, lambda graph: plant(graph, str(tmp_path / "planted")))
    np.testing.assert_array_equal(load_classifier(path).logits(images), expected)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("plant", [in_saver, in_main_op, in_local_variables, in_other_signature, in_assets])
def test_what_the_signature_of_tensorflow_1_does_not_need_is_never_run(tmp_path, plant):
    path = save_v1(tmp_path / "model", lambda rows, kernel: rows @ kernel)
    edited(path, lambda graph: plant(graph, str(tmp_path / "planted")))
    assert load_classifier(path).num_classes == 3
    assert not (tmp_path / "planted").exists()


def test_a_second_graph_is_never_run(tmp_path):
    path = save(tmp_path / "model", lambda images: images)
    file = path / "saved_model.pb"
    whole = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    second = whole.meta_graphs.add()
    second.CopyFrom(whole.meta_graphs[0])
    second.meta_info_def.tags[:] = ["train"]
    in_main_op(second, str(tmp_path / "planted"))
    file.write_bytes(whole.SerializeToString())
    assert load_classifier(path).num_classes == 3
    assert not (tmp_path / "planted").exists()
    second.meta_info_def.tags[:] = ["serve"]
    file.write_bytes(whole.SerializeToString())
    with pytest.raises(InvalidInputError, match="has 2 graphs"):
        load_classifier(path)


# --- places that are run: every operation outside the allow list is refused -------------------------------------------


def in_signature(graph, operation):
    graph.graph_def.node.add(name="evil", op=operation)
    output = graph.signature_def["serve"].outputs["logits"].name.partition(":")[0]
    next(node for node in graph.graph_def.node if node.name == output).input.append("^evil")


def in_function(graph, operation):
    function = next(f for f in graph.graph_def.library.function if "serve" in f.signature.name)
    function.node_def.add(name="evil", op=operation)
    function.node_def[0].input.append("^evil")


def in_branch(graph, operation):
    function = next(f for f in graph.graph_def.library.function if "cond_true" in f.signature.name)
    function.node_def.add(name="evil", op=operation)


def in_custom_gradient(graph, operation):
    name = graph.graph_def.library.registered_gradients[0].gradient_func
    next(f for f in graph.graph_def.library.function if f.signature.name == name).node_def.add(name="e", op=operation)


@tf.custom_gradient
def doubled(x):
    return 2 * x, lambda upstream: 3 * upstream


RUN = [in_signature, in_function, in_branch, in_custom_gradient]


@pytest.mark.parametrize("every", [40, pytest.param(len(RUN), marks=pytest.mark.slow)])
@pytest.mark.parametrize("plant", RUN, ids=lambda plant: plant.__name__)
def test_every_operation_outside_the_allow_list_is_refused(tmp_path, plant, every):
    """Before anything is built: each operation (by default one in 40) is planted in turn, each in one of the places."""

    def call(images):
        return tf.cond(tf.reduce_sum(images) > 0, lambda: doubled(images), lambda: -images)

    path = save(tmp_path / "model", call)
    original = (path / "saved_model.pb").read_bytes()
    forbidden = [name for name in OPERATIONS if name not in ALLOWED_OPERATIONS]
    assert len(forbidden) > 500
    known = {
        "VarHandleOp",
        "VariableV2",
        "Variable",
        "HashTableV2",
        "MutableHashTableV2",
        "Placeholder",
        "PlaceholderV2",
    }
    let_through = []
    for operation in [*forbidden[RUN.index(plant) :: every], "NoSuchOperation", "_Send", "__inference"]:
        (path / "saved_model.pb").write_bytes(original)
        edited(path, lambda graph, operation=operation: plant(graph, operation))
        try:
            PrunedSavedModel(path).load("serve")
        except InvalidInputError as refused:
            said = str(refused)
            as_resource = plant is in_signature and operation in known
            assert as_resource or f"runs the operation {operation!r}" in said, said
        else:
            let_through.append(operation)
    assert not let_through


def test_the_allow_list_names_no_operation_of_files_hosts_python_or_devices():
    for name in ALLOWED_OPERATIONS:
        assert op_def_registry.get(name) is not None, name
    words = ("File", "Py", "Read", "Write", "Save", "Restore", "Dataset", "Iterator", "Print", "Send", "Recv")
    words += (
        "Xla",
        "TPU",
        "Debug",
        "Summary",
        "Queue",
        "Sql",
        "Record",
        "Table",
        "Handle",
        "Collective",
        "Rpc",
        "Asset",
    )
    harmless = {"ReadVariableOp", "TensorArrayReadV3", "TensorArrayWriteV3", "RngReadAndSkip"}
    harmless |= {"LookupTableFind", "LookupTableFindV2", "LookupTableSize", "LookupTableSizeV2"}
    harmless |= {"XlaDynamicUpdateSlice"}  # keras.ops.slice_update, an ordinary kernel
    assert not {name for name in ALLOWED_OPERATIONS - harmless if any(word in name for word in words)}


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
def test_an_operation_of_files_or_of_python_is_refused(tmp_path, monkeypatch, op):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "model", HARMFUL[op])
    (tmp_path / "planted").unlink(missing_ok=True)
    for load in (load_classifier, lambda path: load_encoder(path, (8, 8, 1))):
        with pytest.raises(
            InvalidInputError, match=rf"runs the operation '\w*{op}' .* hint: --skip-safety-ch"
        ) as refused:
            load(path)
        assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("planted*"))


def test_a_function_with_the_name_of_an_operation_is_refused(tmp_path):
    def plant(graph):
        graph.graph_def.library.function.add().signature.name = "WriteFile"
        in_function(graph, "WriteFile")

    with pytest.raises(InvalidInputError, match="the name of the operation 'WriteFile'"):
        load_classifier(edited(save(tmp_path / "model", lambda images: images), plant))


def test_a_function_that_is_not_there_is_refused(tmp_path):
    def plant(graph):
        call = next(node for node in graph.graph_def.node if node.op == "StatefulPartitionedCall")
        call.attr["f"].func.name = "absent"

    with pytest.raises(InvalidInputError, match="calls the function 'absent'"):
        load_classifier(edited(save(tmp_path / "model", lambda images: images), plant))


# --- variables and tables ---------------------------------------------------------------------------------------------


def test_links_out_of_the_folder_are_refused(tmp_path):
    path = save(tmp_path / "model", lambda images: images)
    data = next((path / "variables").glob("*.data*"))
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInputError, match="out of its folder"):
        load_classifier(path)
    data.unlink()
    (tmp_path / "elsewhere").rename(path / "inside")
    data.symlink_to("../inside")
    assert load_classifier(path).num_classes == 3
    (path / "saved_model.pb").rename(tmp_path / "graph")
    (path / "saved_model.pb").symlink_to(tmp_path / "graph")
    with pytest.raises(InvalidInputError, match="out of its folder"):
        load_classifier(path)


def test_a_restore_from_another_path_reads_the_folder_of_the_model(tmp_path):
    """The path that RestoreV2 is fed is not even read."""

    def elsewhere(graph):
        for node in graph.graph_def.node:
            if node.op == "Const" and node.attr["dtype"].type == tf.string.as_datatype_enum and "save" in node.name:
                if node.attr["value"].tensor.string_val[:1] == [b"model"]:
                    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(str(tmp_path / "secret")))

    path = save_v1(tmp_path / "model", lambda rows, kernel: rows @ kernel)
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    expected = load_classifier(path).logits(images)
    np.testing.assert_array_equal(load_classifier(edited(path, elsewhere)).logits(images), expected)


def test_a_variable_that_the_checkpoint_does_not_hold_is_refused(tmp_path):
    path = save(tmp_path / "model", lambda images: images)
    for file in (path / "variables").iterdir():
        file.unlink()
    with pytest.raises(InvalidInputError, match="which its checkpoint does not hold"):
        load_classifier(path)


def test_variables_that_share_a_name_are_told_apart(tmp_path):
    """Fault: `tf.saved_model.save` of a Keras 3 model, in which only the object graph says which tensor is whose."""
    layers = [keras.layers.Conv2D(3, 1), keras.layers.Conv2D(3, 1), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(3)])
    for number, variable in enumerate(model.variables):
        variable.assign(np.random.default_rng(number).random(variable.shape) + 0.5)
    tf.saved_model.save(model, str(tmp_path / "model"))
    call = PrunedSavedModel(tmp_path / "model").load("serving_default")
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    expected = images.astype(float)
    for layer in layers[:2]:
        expected = expected @ layer.kernel.numpy()[0, 0].astype(float) + layer.bias.numpy()
    norm = layers[2]
    scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy().astype(float) + norm.epsilon)
    expected = (expected - norm.moving_mean.numpy()) * scale + norm.beta.numpy()
    expected = expected.reshape(2, -1) @ model.layers[-1].kernel.numpy() + model.layers[-1].bias.numpy()
    np.testing.assert_allclose(next(iter(call(images).values())), expected, rtol=1e-5)


def test_variables_of_one_name_are_told_apart(tmp_path):
    """A sibling: variables of a module that have one name, one of them read by a custom gradient alone."""
    parts = [tf.Variable(value, trainable=False, name="kernel") for value in (2.0, 3.0, 5.0)]

    @tf.custom_gradient
    def scaled(x):
        return x * parts[0], lambda upstream: upstream * parts[2]

    path = save(tmp_path / "model", lambda x: scaled(x) * parts[0] / parts[1], parts=parts)
    assert_same(path)


def test_a_table_of_a_file_is_refused_where_it_is_read(tmp_path):
    (tmp_path / "words.txt").write_text("a 1\n")
    initialiser = tf.lookup.TextFileInitializer(str(tmp_path / "words.txt"), tf.string, 0, tf.int64, 1, delimiter=" ")
    table = tf.lookup.StaticHashTable(initialiser, -1)
    path = save(
        tmp_path / "model",
        lambda images: images + tf.cast(table.lookup(tf.constant(["a"])), tf.float32),
        table=table,
    )
    with pytest.raises(InvalidInputError, match="filled from a file and not from constants.*hint: --skip-safety-check"):
        load_classifier(path)
    unread = save(tmp_path / "unread", lambda images: images, table=table)
    assert load_classifier(unread).num_classes == 3


# --- ordinary models --------------------------------------------------------------------------------------------------


def loop(images):
    for _ in tf.range(2):
        images = doubled(images)
    tf.debugging.assert_all_finite(images, "finite")
    return tf.map_fn(lambda image: image * 2, images)


@tf.custom_gradient
def with_captured_tensor(x):
    y = tf.tanh(x)
    return y, lambda upstream: upstream * (1 - y * y)


def table_of_constants(images):
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [2.0]), 0.0)
    return images * table.lookup(tf.constant(["a", "b"]))[0], table


@pytest.mark.parametrize(
    "call",
    [
        lambda images: images,
        tf.function(loop),
        with_captured_tensor,
        lambda images: tf.cond(tf.reduce_sum(images) > 0, lambda: doubled(images), lambda: -images),
        lambda images: tf.image.resize(images, (4, 16), antialias=True),
    ],
    ids=["linear", "loops", "custom gradient", "branches", "resize"],
)
def test_logits_and_gradients_are_those_of_the_ordinary_loader(tmp_path, call):
    assert_same(save(tmp_path / "model", call))


def partitioned(rows, kernel):
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([0, 1, 2], [1.0, 2.0, 3.0]), 0.0)
    rows = tf.compat.v1.while_loop(lambda i, rows: i < 1, lambda i, rows: (i + 1, rows), [0, rows])[1]
    return rows @ kernel * table.lookup(tf.constant([0, 1, 2]))


@pytest.mark.parametrize("resource", [False, True])
def test_logits_of_tensorflow_1_are_those_of_the_ordinary_loader(tmp_path, resource):
    simple = save_v1(tmp_path / "simple", lambda rows, kernel: tf.nn.sigmoid(rows @ kernel), resource)
    assert_same(simple)
    v1 = tf.compat.v1
    whole = save_v1(tmp_path / "model", partitioned, resource, partitioner=v1.fixed_size_partitioner(2))
    assert_same(whole, gradients=False)


def assert_same(path, endpoint="serve", gradients=True):
    """See that the outputs and gradients of a signature are those of `tf.saved_model.load`."""
    pruned = PrunedSavedModel(path)
    ((name, spec),) = pruned.signatures[endpoint].inputs.items()
    shape = [size or 4 for size in spec.shape]
    images = tf.constant(np.random.default_rng(0).random(shape), spec.dtype)
    found, ordinary = pruned.load(endpoint), tf.saved_model.load(str(path))
    expected = ordinary.signatures[endpoint](**{name: images})
    for output, values in found(images).items():
        np.testing.assert_allclose(values, expected[output], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(tf.function(found)(images)["logits"], expected["logits"], rtol=1e-6, atol=1e-6)
    if gradients:
        results = []
        for call in (found, lambda images: ordinary.signatures[endpoint](**{name: images})):
            with tf.GradientTape() as tape:
                tape.watch(images)
                total = tf.reduce_sum(call(images)["logits"] ** 2)
            results.append(tape.gradient(total, images))
        np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
        assert np.abs(results[0]).max() > 0
