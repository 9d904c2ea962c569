"""SavedModels that try to do harm: each operation of `payloads` in each place of the file, and files that lie.

Three models are the ground: one of TensorFlow 2 with branches, loops, a table and a custom gradient, and two of
TensorFlow 1, with resource and with reference variables. A `Place` plants a payload in one of them.
"""

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorflow.core.framework import function_pb2, node_def_pb2, types_pb2, variable_pb2
from tensorflow.core.protobuf import (
    meta_graph_pb2,
    saved_model_pb2,
    tensor_bundle_pb2,
    trackable_object_graph_pb2,
)
from tensorflow.python.saved_model.nested_structure_coder import encode_structure

from tests.security.harness import Canary
from tests.security.payloads import BARE, PAYLOADS, bare_library_of, library_of

Graph = meta_graph_pb2.MetaGraphDef


# --- the models that attempts are made of -----------------------------------------------------------------------------


@tf.custom_gradient
def _doubled(x):
    return 2 * x, lambda upstream: 3 * upstream


def save_ground(path: Path) -> Path:
    """Write a SavedModel of TensorFlow 2 that has every place where a function can be named."""
    module = tf.Module()
    module.kernel = tf.Variable(np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32), name="kernel")
    module.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), 0.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 1])])
    def inner(image):
        rows = tf.reshape(_doubled(image), [-1, 16])
        rows = tf.cond(tf.reduce_sum(rows) > 0, lambda: rows + 1, lambda: -rows)
        rows = tf.while_loop(lambda i, _: i < 2, lambda i, rows: (i + 1, rows * 2), [0, rows])[1]
        return tf.switch_case(tf.size(rows) % 2, [lambda: rows, lambda: rows / 2])

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 1])])
    def serve(image):
        return {"logits": inner(image) @ module.kernel * module.table.lookup(tf.constant(["a"]))}

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 4, 1])])
    def embed(image):
        return {"embedding": inner(image)}

    tf.saved_model.save(module, str(path), signatures={"serve": serve, "embed": embed})
    return path


def write_version_1(path: Path, session, image: tf.Tensor, logits: tf.Tensor, main_op: tf.Operation) -> Path:
    """Write the graph of a session of TensorFlow 1 as a SavedModel with the signature `serve`."""
    saved_model = tf.compat.v1.saved_model
    builder = saved_model.Builder(str(path))
    signature = saved_model.build_signature_def(
        {"image": saved_model.build_tensor_info(image)}, {"logits": saved_model.build_tensor_info(logits)}, "predict"
    )
    builder.add_meta_graph_and_variables(session, ["serve"], {"serve": signature}, main_op=main_op)
    builder.save()
    return path


def save_ground_v1(path: Path, resource: bool) -> Path:
    """Write a SavedModel of TensorFlow 1 with a table and a local variable."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, [None, 4, 4, 1], "image")
        kernel = v1.get_variable("kernel", [16, 3], use_resource=resource)
        v1.get_variable("local", [], collections=["local_variables"], use_resource=resource)
        table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([0], [1.0]), 0.0)
        logits = tf.reshape(image, [-1, 16]) @ kernel * table.lookup(tf.constant([0]))
        session.run([v1.global_variables_initializer(), initialiser := v1.tables_initializer()])
        return write_version_1(path, session, image, logits, initialiser)


def edited(path: Path, change: Callable[[Graph], object]) -> Path:
    """Change the first graph of a SavedModel."""
    file = path / "saved_model.pb"
    whole = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(whole.meta_graphs[0])
    file.write_bytes(whole.SerializeToString())
    return path


# --- places -----------------------------------------------------------------------------------------------------------


def _call(nodes, name: str = "evil_call") -> node_def_pb2.NodeDef:
    """Add a node that calls the function `evil`."""
    call = nodes.add(name=name, op="StatefulPartitionedCall")
    call.attr["f"].func.name = "evil"
    call.attr["Tin"].list.SetInParent()
    call.attr["Tout"].list.type.append(types_pb2.DT_INT32)
    return call


def _function(graph: Graph, word: str) -> function_pb2.FunctionDef:
    return next(f for f in graph.graph_def.library.function if word in f.signature.name)


def _in_function(word: str) -> Callable[[Graph], None]:
    def plant(graph: Graph) -> None:
        function = _function(graph, word)
        _call(function.node_def)
        function.node_def[0].input.append("^evil_call")
        function.control_ret["evil_call"] = "evil_call"
        function.signature.control_output.append("evil_call")
        function.signature.is_stateful = True

    return plant


def _signature(graph: Graph) -> None:
    _call(graph.graph_def.node)
    output = graph.signature_def["serve"].outputs["logits"].name.partition(":")[0]
    next(node for node in graph.graph_def.node if node.name == output).input.append("^evil_call")


def _by_name(graph: Graph) -> None:
    """The name of the function is the operation of a node."""
    _signature(graph)
    call = next(node for node in graph.graph_def.node if node.name == "evil_call")
    call.op = "evil"
    call.ClearField("attr")


def _as_branch(graph: Graph) -> None:
    """A list of functions names it."""
    _signature(graph)
    call = next(node for node in graph.graph_def.node if node.name == "evil_call")
    call.op = "Case"
    del call.attr["f"]
    call.attr["branches"].list.func.add(name="evil")
    index = graph.graph_def.node.add(name="evil_index", op="Const")
    index.attr["dtype"].type = types_pb2.DT_INT32
    index.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0))
    call.input.append("evil_index")


def _embed(graph: Graph) -> None:
    _call(graph.graph_def.node)
    output = graph.signature_def["embed"].outputs["embedding"].name.partition(":")[0]
    next(node for node in graph.graph_def.node if node.name == output).input.append("^evil_call")


def _other_signature(graph: Graph) -> None:
    _call(graph.graph_def.node)
    graph.signature_def["other"].CopyFrom(graph.signature_def["serve"])
    graph.signature_def["other"].outputs["logits"].name = "evil_call:0"


def _custom_gradient(graph: Graph) -> None:
    name = graph.graph_def.library.registered_gradients[0].gradient_func
    _in_function(name)(graph)


def _gradient_of_function(graph: Graph) -> None:
    """The old way to name a function's gradient."""
    for function in list(graph.graph_def.library.function)[:3]:
        graph.graph_def.library.gradient.add(function_name=function.signature.name, gradient_func="evil")


def _gradient_of_operation(graph: Graph) -> None:
    for operation in ("MatMul", "Reshape", "Mul", "StatefulPartitionedCall", "PartitionedCall", "IdentityN"):
        graph.graph_def.library.registered_gradients.add(registered_op_type=operation, gradient_func="evil")


def _saver(graph: Graph) -> None:
    _call(graph.graph_def.node)
    names = {graph.saver_def.save_tensor_name.partition(":")[0], graph.saver_def.restore_op_name}
    for node in graph.graph_def.node:
        if node.name in names:
            node.input.append("^evil_call")


def _init_op(graph: Graph) -> None:
    _call(graph.graph_def.node)
    for key in ("__saved_model_init_op", "__saved_model_train_op"):
        graph.signature_def[key].outputs[key].name = "evil_call"  # an operation, and not its output


def _collections(graph: Graph) -> None:
    _call(graph.graph_def.node)
    for key in ("saved_model_main_op", "legacy_init_op", "saved_model_train_op", "table_initializer", "init_op"):
        graph.collection_def[key].node_list.value[:] = ["evil_call"]


def _variable_initializers(graph: Graph) -> None:
    """Fault 2: TensorFlow runs the initialisers of local variables if the file has no main op."""
    _call(graph.graph_def.node)
    graph.signature_def.pop("__saved_model_init_op", None)
    for key in ("saved_model_main_op", "legacy_init_op"):
        graph.collection_def.pop(key, None)
    for key in ("local_variables", "variables", "trainable_variables", "model_variables", "moving_average_variables"):
        values = graph.collection_def[key].bytes_list.value
        found = [variable_pb2.VariableDef.FromString(value) for value in values]
        found = found or [variable_pb2.VariableDef(variable_name="kernel:0", snapshot_name="kernel:0")]
        for variable in found:
            variable.initializer_name = variable.initial_value_name = "evil_call"
        values[:] = [variable.SerializeToString() for variable in found]


def _as_object(graph: Graph) -> None:
    """Say what `evil` takes and returns, so that an object can name it."""
    stated = graph.object_graph_def.concrete_functions["evil"]
    stated.canonicalized_input_signature.CopyFrom(encode_structure(((), {})))
    stated.output_signature.CopyFrom(encode_structure(tf.TensorSpec([], tf.int32)))


def _object_functions(graph: Graph) -> None:
    """Every function that a node of the object graph names: initialisers, creators, restorers, signatures."""
    _as_object(graph)
    for node in graph.object_graph_def.nodes:
        if node.WhichOneof("kind") == "bare_concrete_function":
            node.bare_concrete_function.concrete_function_name = "evil"
        if node.WhichOneof("kind") == "function":
            node.function.concrete_functions[:] = ["evil"]


def _table_initializer(graph: Graph) -> None:
    """Fault 1: only the table's `_initialize` names it, and the saver's node calls it."""
    _saver(graph)
    _as_object(graph)
    nodes = graph.object_graph_def.nodes
    table = next(node for node in nodes if node.WhichOneof("kind") == "resource")
    initialize = next(child.node_id for child in table.children if child.local_name == "_initialize")
    nodes[initialize].bare_concrete_function.concrete_function_name = "evil"


def _table_creator(graph: Graph) -> None:
    _as_object(graph)
    nodes = graph.object_graph_def.nodes
    table = next(node for node in nodes if node.WhichOneof("kind") == "resource")
    for child in table.children:
        nodes[child.node_id].bare_concrete_function.concrete_function_name = "evil"


def _saveables(graph: Graph) -> None:
    _as_object(graph)
    nodes = graph.object_graph_def.nodes
    number = len(nodes)
    nodes.add().bare_concrete_function.concrete_function_name = "evil"
    for node in list(nodes)[:number]:
        node.saveable_objects["x"].save_function = node.saveable_objects["x"].restore_function = number
        node.registered_name, node.registered_saver = "x", "x"


def _user_object(graph: Graph) -> None:
    _as_object(graph)
    nodes = graph.object_graph_def.nodes
    number = len(nodes)
    nodes.add().bare_concrete_function.concrete_function_name = "evil"
    for name in ("_initialize", "_create_resource", "__init__", "call", "_gather_saveables_for_checkpoint"):
        nodes[0].children.add(node_id=number, local_name=name)
    nodes[0].user_object.identifier = "trackable_dict_wrapper"


def _second_graph(whole: saved_model_pb2.SavedModel) -> None:
    whole.meta_graphs.add().CopyFrom(whole.meta_graphs[0])
    whole.meta_graphs[1].meta_info_def.tags[:] = ["train"]
    _init_op(whole.meta_graphs[1])
    _signature(whole.meta_graphs[1])


def _restore_elsewhere(graph: Graph) -> None:
    """The node that reads the checkpoint waits for it."""
    restore = next(node for node in graph.graph_def.node if node.op == "RestoreV2")
    restore.input.append(f"^{_call(graph.graph_def.node).name}")


class Place(NamedTuple):
    """A place for a payload.

    Attributes:
        name: of the place.
        ground: `tf2`, `tf1` (resource variables) or `tf1ref`.
        plant: changes the graph.
        runs: whether the place is of a signature, so that every operation outside the allow list is refused.
    """

    name: str
    ground: str
    plant: Callable
    runs: bool


PLACES = (
    Place("signature", "tf2", _signature, True),
    Place("function of the signature", "tf2", _in_function("signature_wrapper_serve"), True),
    Place("nested function", "tf2", _in_function("__inference_inner"), True),
    Place("branch of If", "tf2", _in_function("cond_true"), True),
    Place("condition of While", "tf2", _in_function("while_cond"), True),
    Place("body of While", "tf2", _in_function("while_body"), True),
    Place("branch of Case", "tf2", _in_function("case_branch0"), True),
    Place("custom gradient", "tf2", _custom_gradient, True),
    Place("function as operation", "tf2", _by_name, True),
    Place("list of functions", "tf2", _as_branch, True),
    Place("signature embed", "tf2", _embed, True),
    Place("signature of TF 1", "tf1", _signature, True),
    Place("signature of TF 1, reference variables", "tf1ref", _signature, True),
    Place("other signature", "tf2", _other_signature, False),
    Place("gradient of a function", "tf2", _gradient_of_function, False),
    Place("gradient of an operation", "tf2", _gradient_of_operation, False),
    Place("saver", "tf2", _saver, False),
    Place("function of the saver: save", "tf2", _in_function("traced_save"), False),
    Place("function of the saver: restore", "tf2", _in_function("traced_restore"), False),
    Place("initialiser of the graph", "tf2", _init_op, False),
    Place("initialiser of a table", "tf2", _in_function("__initializer"), False),
    Place("initialiser of a table, named", "tf2", _table_initializer, False),
    Place("creator of a table", "tf2", _table_creator, False),
    Place("functions of the object graph", "tf2", _object_functions, False),
    Place("saveables of the object graph", "tf2", _saveables, False),
    Place("user object", "tf2", _user_object, False),
    Place("collections", "tf2", _collections, False),
    Place("variables of collections", "tf2", _variable_initializers, False),
    Place("second graph", "tf2", _second_graph, False),
    Place("saver of TF 1", "tf1", _saver, False),
    Place("saver of TF 1, reference variables", "tf1ref", _saver, False),
    Place("restore of TF 1", "tf1", _restore_elsewhere, False),
    Place("initialiser of TF 1", "tf1", _init_op, False),
    Place("collections of TF 1", "tf1", _collections, False),
    Place("local variables of TF 1", "tf1", _variable_initializers, False),
    Place("local variables of TF 1, reference", "tf1ref", _variable_initializers, False),
    Place("other signature of TF 1", "tf1", _other_signature, False),
    Place("second graph of TF 1", "tf1", _second_graph, False),
)


# --- files that lie ---------------------------------------------------------------------------------------------------

DATA = "variables/variables.data-00000-of-00001"


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def write_index(file: Path, entries: dict[bytes, bytes], restart: int = 0, compression: bytes = b"\0") -> None:
    """Write the index of a checkpoint: a sorted table of keys and values in the format of LevelDB."""
    varint = _varint

    def block(pairs) -> bytes:
        body = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in pairs)
        content = body + struct.pack("<II", restart, 1)
        return content + compression + struct.pack("<I", masked_crc32c(content + compression))

    data = block(sorted(entries.items()))
    restart, compression = 0, b"\0"
    meta = block([])
    handle = varint(0) + varint(len(data) - 5)
    index = block([(max(entries) + b"\xff", handle)])
    footer = varint(len(data)) + varint(len(meta) - 5) + varint(len(data) + len(meta)) + varint(len(index) - 5)
    file.write_bytes(data + meta + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))


def _index(
    header: dict | None = None,
    shape: tuple[int, ...] = (16, 3),
    slices: tuple[tuple[int, int], ...] = (),
    table: dict | None = None,
    **changes,
) -> Callable[[Path, Canary], None]:
    """Write an index that says these things of the kernel."""

    def lie(path: Path, canary: Canary) -> None:
        stored = (path / DATA).read_bytes()
        entry = tensor_bundle_pb2.BundleEntryProto(dtype=types_pb2.DT_FLOAT, size=192, crc32c=masked_crc32c(stored))
        for size in shape:
            entry.shape.dim.add(size=size)
        for start, length in slices:
            part = entry.slices.add()
            part.extent.add(start=start, length=length)
            part.extent.add()
        for key, value in changes.items():
            setattr(entry, key, value)
        first = tensor_bundle_pb2.BundleHeaderProto(**{"num_shards": 1, **(header or {})})
        first.version.producer = 1
        entries = {b"": first.SerializeToString(), b"kernel": entry.SerializeToString()}
        write_index(path / "variables/variables.index", entries, **(table or {}))

    return lie


OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"


def _objects(change: Callable) -> Callable[[Path, Canary], None]:
    """Change the object graph in the checkpoint."""

    def lie(path: Path, canary: Canary) -> None:
        reader = tf.train.load_checkpoint(prefix := str(path / "variables/variables"))
        tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        whole = trackable_object_graph_pb2.TrackableObjectGraph.FromString(tensors[OBJECTS])
        tensors[OBJECTS] = change(whole, canary) or whole.SerializeToString()
        slices = [""] * len(tensors)
        tf.raw_ops.SaveV2(
            prefix=prefix, tensor_names=list(tensors), shape_and_slices=slices, tensors=list(tensors.values())
        )

    return lie


def _long_text(length: int) -> Callable[[Path, Canary], None]:
    """State a length of the object graph's text that its bytes do not have."""

    def lie(path: Path, canary: Canary) -> None:
        entry = tensor_bundle_pb2.BundleEntryProto(dtype=types_pb2.DT_STRING)
        width = "<I" if length < 2**32 else "<Q"
        with (path / DATA).open("ab") as stream:
            entry.offset = stream.tell()
            checksum = struct.pack("<I", masked_crc32c(struct.pack(width, length)))
            entry.size = stream.write(_varint(length) + checksum + b"short")
        header = tensor_bundle_pb2.BundleHeaderProto(num_shards=1)
        header.version.producer = 1
        entries = {b"": header.SerializeToString(), OBJECTS.encode(): entry.SerializeToString()}
        write_index(path / "variables/variables.index", entries)

    return lie


def _cycle_of_objects(objects, canary: Canary) -> None:
    for node in objects.nodes:
        for name in ("kernel", "table", "again"):
            node.children.add(node_id=0, local_name=name)


def _objects_beyond_the_end(objects, canary: Canary) -> None:
    for node in objects.nodes:
        for child in node.children:
            child.node_id += 2**30


def _tensors_elsewhere(objects, canary: Canary) -> None:
    for node in objects.nodes:
        for attribute in node.attributes:
            attribute.checkpoint_key = str(canary.folder / "weights")


def _bound_beyond_the_end(graph: Graph, canary: Canary) -> None:
    for function in graph.object_graph_def.concrete_functions.values():
        function.bound_inputs[:] = [-(2**30), 2**30, *function.bound_inputs] * 3


def _graph(change: Callable[[Graph, Canary], object]) -> Callable[[Path, Canary], None]:
    return lambda path, canary: edited(path, lambda graph: change(graph, canary))


def _link(name: str, target: str | None = None, inside: str | None = None) -> Callable[[Path, Canary], None]:
    """Replace a file or folder of the model by a link to the canary's secret, or to what is given."""

    def lie(path: Path, canary: Canary) -> None:
        place = path / name
        place.parent.mkdir(exist_ok=True)
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.symlink_to(target or (canary.folder / inside if inside else canary.secret))

    return lie


def _moved(name: str) -> Callable[[Path, Canary], None]:
    """Move a file of the model to the canary's folder, and leave a link."""

    def lie(path: Path, canary: Canary) -> None:
        target = canary.folder / Path(name).name
        if (path / name).is_dir():
            shutil.copytree(path / name, target, dirs_exist_ok=True)
            shutil.rmtree(path / name)
        else:
            shutil.copy(path / name, target)
            (path / name).unlink()
        (path / name).symlink_to(target)

    return lie


def _pipe(name: str) -> Callable[[Path, Canary], None]:
    def lie(path: Path, canary: Canary) -> None:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)

    return lie


def _restored(change: Callable[[Graph, node_def_pb2.NodeDef, Canary], object]) -> Callable[[Path, Canary], None]:
    """Change the node of TensorFlow 1 that reads the checkpoint."""

    def lie(graph: Graph, canary: Canary) -> None:
        change(graph, next(node for node in graph.graph_def.node if node.op == "RestoreV2"), canary)

    return _graph(lie)


def _constant(graph: Graph, name: str, value, dtype=None) -> str:
    node = graph.graph_def.node.add(name=name, op="Const")
    tensor = tf.make_tensor_proto(value, dtype)
    node.attr["dtype"].type = tensor.dtype
    node.attr["value"].tensor.CopyFrom(tensor)
    return name


def _second_output(graph: Graph, restore: node_def_pb2.NodeDef, canary: Canary) -> None:
    """Fault 3: the checkpoint's name is a second output of the node that the loader feeds."""
    two = _constant(graph, "two", ["unused", str(canary.folder / "weights")])
    split = graph.graph_def.node.add(name="names", op="Unpack", input=[two])
    split.attr["num"].i, split.attr["T"].type = 2, types_pb2.DT_STRING
    graph.saver_def.filename_tensor_name = "names:0"
    restore.input[0] = "names:1"


def _checkpoint_path(graph: Graph, restore: node_def_pb2.NodeDef, canary: Canary) -> None:
    restore.input[0] = _constant(graph, "elsewhere", str(canary.folder / "weights"))


def _tensor_names(names: list[str]) -> Callable:
    def change(graph: Graph, restore: node_def_pb2.NodeDef, canary: Canary) -> None:
        restore.input[1] = _constant(graph, "tensors", [name.format(canary.folder) for name in names])

    return change


def _slices(*slices: str) -> Callable:
    return lambda graph, restore, canary: restore.input.__setitem__(2, _constant(graph, "parts", list(slices)))


def _output(graph: Graph) -> node_def_pb2.NodeDef:
    name = graph.signature_def["serve"].outputs["logits"].name.partition(":")[0]
    return next(node for node in graph.graph_def.node if node.name == name)


def _add_constant(dtype: int, fill: Callable) -> Callable[[Path, Canary], None]:
    """Let the signature wait for a constant."""

    def change(graph: Graph, canary: Canary) -> None:
        node = graph.graph_def.node.add(name="constant", op="Const")
        node.attr["dtype"].type = node.attr["value"].tensor.dtype = dtype
        fill(node.attr["value"].tensor)
        _output(graph).input.append("^constant")

    return _graph(change)


def _huge(tensor) -> None:
    for _ in range(3):
        tensor.tensor_shape.dim.add(size=2**20)
    tensor.float_val.append(1.0)


def _resource(tensor) -> None:
    handle = tensor.resource_handle_val.add(device="/job:localhost/replica:0/task:0/device:CPU:0", name="kernel")
    handle.container, handle.hash_code = "localhost", 1


def _variant(tensor) -> None:
    value = tensor.variant_val.add(type_name="tensorflow::data::WrappedDatasetVariantWrapper")
    value.metadata = b"x"


def _bomb_of_variables(graph: Graph, canary: Canary) -> None:
    for node in graph.graph_def.node:
        if node.op == "VarHandleOp":
            for dim in node.attr["shape"].shape.dim:
                dim.size = 2**40


def _call_attributes(graph: Graph, canary: Canary) -> None:
    """Options of the runtime: an executor, a configuration with a cluster, another device, XLA."""
    config = tf.compat.v1.ConfigProto()
    config.cluster_def.job.add(name="worker").tasks[0] = canary.address
    config.graph_options.rewrite_options.custom_optimizers.add(name="evil")
    for node in [*graph.graph_def.node, *(n for f in graph.graph_def.library.function for n in f.node_def)]:
        if node.op in ("PartitionedCall", "StatefulPartitionedCall"):
            node.attr["executor_type"].s = b"SINGLE_THREADED_EXECUTOR"
            node.attr["config_proto"].s = config.SerializeToString()
            node.attr["_XlaMustCompile"].b = True
        node.device = "/job:worker/replica:0/task:1/device:GPU:7"


def _implements(graph: Graph, canary: Canary) -> None:
    for function in graph.graph_def.library.function:
        function.attr["api_implements"].s = b"lstm_x"
        function.attr["forward_function_name"].s = function.attr["backward_function_name"].s = b"evil"


def _default_function(graph: Graph, canary: Canary) -> None:
    attribute = _function(graph, "__inference_inner").signature.attr.add(name="f", type="func")
    attribute.default_value.func.name = "evil"


def _gradient_not_stated(graph: Graph, canary: Canary) -> None:
    """A gradient of which no object says what it returns."""
    del graph.object_graph_def.concrete_functions[graph.graph_def.library.registered_gradients[0].gradient_func]


def _gradient_of_other_values(graph: Graph, canary: Canary) -> None:
    """A gradient that returns nothing, as it states."""
    name = graph.graph_def.library.registered_gradients[0].gradient_func
    function = _function(graph, name)
    function.signature.ClearField("output_arg")
    function.ClearField("ret")
    graph.object_graph_def.concrete_functions[name].output_signature.CopyFrom(encode_structure(()))


def _gradient_of_process(graph: Graph, canary: Canary) -> None:
    for node in [*graph.graph_def.node, *(n for f in graph.graph_def.library.function for n in f.node_def)]:
        node.attr["_gradient_op_type"].s = b"EagerPyFunc"


def _named(name: str) -> Callable[[Path, Canary], None]:
    """Give the signature and its output another name."""

    def change(graph: Graph, canary: Canary) -> None:
        graph.signature_def[name].CopyFrom(graph.signature_def["serve"])
        graph.signature_def[name].outputs[name].CopyFrom(graph.signature_def["serve"].outputs["logits"])
        del graph.signature_def["serve"], graph.signature_def["embed"]

    return _graph(change)


def _cycle(graph: Graph, canary: Canary) -> None:
    function = _function(graph, "__inference_inner")
    call = function.node_def.add(name="again", op="StatefulPartitionedCall")
    call.attr["f"].func.name = function.signature.name


def _loop_of_nodes(graph: Graph, canary: Canary) -> None:
    first, second = (graph.graph_def.node.add(name=name, op="NoOp") for name in ("first", "second"))
    first.input.append("^second")
    second.input.append("^first")
    _output(graph).input.append("^first")


def _shared_names(graph: Graph, canary: Canary) -> None:
    """Variables and tables of one name."""
    for node in graph.graph_def.node:
        if node.op in ("VarHandleOp", "HashTableV2"):
            node.attr["shared_name"].s = b"kernel"


def _bytes(name: str, content: Callable[[bytes], bytes]) -> Callable[[Path, Canary], None]:
    return lambda path, canary: (path / name).write_bytes(content((path / name).read_bytes()))


def _sparse(name: str, size: int) -> Callable[[Path, Canary], None]:
    """Let a file claim a size that it does not have on the disk."""
    return lambda path, canary: os.truncate(path / name, size)


LIES: dict[str, tuple[str, Callable[[Path, Canary], object]]] = {
    "graph is a link": ("tf2", _moved("saved_model.pb")),
    "graph is a link to a secret": ("tf2", _link("saved_model.pb")),
    "graph is a pipe": ("tf2", _pipe("saved_model.pb")),
    "graph is a device": ("tf2", _link("saved_model.pb", "/dev/zero")),
    "variables are a link": ("tf2", _moved("variables")),
    "data is a link": ("tf2", _moved(DATA)),
    "index is a link": ("tf2", _moved("variables/variables.index")),
    "data is a pipe": ("tf2", _pipe(DATA)),
    "index is a pipe": ("tf2", _pipe("variables/variables.index")),
    "asset is a link": ("tf2", _link("assets/words.txt")),
    "asset is a link to a folder": ("tf2", _link("assets/words", "/etc")),
    "asset is a relative link": ("tf2", _link("assets/words", "../../../../../../../../etc/passwd")),
    "asset is a pipe": ("tf2", _pipe("assets/words")),
    "fingerprint is a link": ("tf2", _link("fingerprint.pb")),
    "contract is a link": ("tf2", _link("model.json")),
    "contract is a pipe": ("tf2", _pipe("model.json")),
    "keras file is a link": ("tf2", _link("model.keras")),
    "keras file is a pipe": ("tf2", _pipe("model.keras")),
    "extra file is a link": ("tf2", _link("extra")),
    "link to a link": ("tf2", lambda path, canary: (_link("a")(path, canary), (path / "b").symlink_to("a"))),
    "loop of links": ("tf2", lambda path, canary: [(path / a).symlink_to(b) for a, b in (("a", "b"), ("b", "a"))]),
    "asset with dots": ("tf2", _graph(lambda g, c: g.asset_file_def.add(filename="../../../etc/passwd"))),
    "asset with a root": ("tf2", _graph(lambda g, c: g.asset_file_def.add(filename=str(c.secret)))),
    "checkpoint elsewhere": ("tf1", _restored(_checkpoint_path)),
    "checkpoint elsewhere, reference": ("tf1ref", _restored(_checkpoint_path)),
    "checkpoint from a second output": ("tf1", _restored(_second_output)),
    "tensor with dots": ("tf1", _restored(_tensor_names(["../../weights", "x"]))),
    "tensor with a root": ("tf1", _restored(_tensor_names(["{}/weights", "x"]))),
    "tensor without a name": ("tf1", _restored(_tensor_names(["", ""]))),
    "tensors of a megabyte of names": ("tf1", _restored(_tensor_names(["x" * 2**20]))),
    "slice beyond the end": ("tf1", _restored(_slices("16 3 0,99999:-"))),
    "slice of a negative length": ("tf1", _restored(_slices("16 3 0,-4:-"))),
    "slice that is text": ("tf1", _restored(_slices("; rm -rf /"))),
    "index: honest": ("tf1", _index()),
    "index: offset beyond the end": ("tf1", _index(offset=2**40)),
    "index: negative offset": ("tf1", _index(offset=-64)),
    "index: negative size": ("tf1", _index(size=-1)),
    "index: size of other shape": ("tf1", _index(shape=(2**20, 2**20))),
    "index: huge size": ("tf1", _index(shape=(2**20, 2**20), size=2**42)),
    "index: shape that overflows": ("tf1", _index(shape=(2**32, 2**32))),
    "index: negative shape": ("tf1", _index(shape=(-1, 3))),
    "index: shape of 300 dimensions": ("tf1", _index(shape=(1,) * 300)),
    "index: shape of zeros that overflows": ("tf1", _index(shape=(2**62, 2**62, 0))),
    "index: a slice": ("tf1", _index(slices=((0, 16),))),
    "index: a slice twice": ("tf1", _index(slices=((0, 8), (0, 8)))),
    "index: a negative slice": ("tf1", _index(slices=((-8, 8),))),
    "index: a slice beyond the end": ("tf1", _index(slices=((0, 2**62),))),
    "index: restart within a key": ("tf1", _index(table={"restart": 3})),
    "index: restart beyond the end": ("tf1", _index(table={"restart": 2**31})),
    "index: compressed": ("tf1", _index(table={"compression": b"\1"})),
    "index: other shard": ("tf1", _index(shard_id=7)),
    "index: negative shard": ("tf1", _index(shard_id=-1)),
    "index: many shards": ("tf1", _index({"num_shards": 2**30})),
    "index: no shards": ("tf1", _index({"num_shards": 0})),
    "index: other byte order": ("tf1", _index({"endianness": 1})),
    "index: strings": ("tf1", _index(dtype=types_pb2.DT_STRING)),
    "index: variants": ("tf1", _index(dtype=types_pb2.DT_VARIANT)),
    "index: resources": ("tf1", _index(dtype=types_pb2.DT_RESOURCE)),
    "index: type that does not exist": ("tf1", _index(dtype=99)),
    "index: text": ("tf2", _bytes("variables/variables.index", lambda content: b"secret" * 100)),
    "index: cut": ("tf2", _bytes("variables/variables.index", lambda content: content[: len(content) // 2])),
    "index: empty": ("tf2", _bytes("variables/variables.index", lambda content: b"")),
    "data: cut": ("tf2", _bytes(DATA, lambda content: content[:10])),
    "data: a terabyte of nothing": ("tf2", _sparse(DATA, 2**40)),
    "graph: of 8 GiB": ("tf2", _sparse("saved_model.pb", 2**33)),
    "graph: a terabyte": ("tf2", _sparse("saved_model.pb", 2**40)),
    "graph: empty": ("tf2", _bytes("saved_model.pb", lambda content: b"")),
    "graph: cut": ("tf2", _bytes("saved_model.pb", lambda content: content[: len(content) // 2])),
    "graph: deep": ("tf2", _bytes("saved_model.pb", lambda content: b"\x12\x7f" * 10_000)),
    "graph: text beside it": ("tf2", lambda path, canary: (path / "saved_model.pbtxt").symlink_to(canary.secret)),
    "objects: text of a terabyte": ("tf2", _long_text(2**40)),
    "objects: text of 2^63 bytes": ("tf2", _long_text(2**63)),
    "objects: text that is cut": ("tf2", _long_text(6)),
    "objects: other bytes": ("tf2", _objects(lambda objects, canary: b"secret" * 100)),
    "objects: a cycle": ("tf2", _objects(_cycle_of_objects)),
    "objects: beyond the end": ("tf2", _objects(_objects_beyond_the_end)),
    "objects: tensors elsewhere": ("tf2", _objects(_tensors_elsewhere)),
    "objects: none": ("tf2", _objects(lambda objects, canary: objects.ClearField("nodes"))),
    "objects of functions beyond the end": ("tf2", _graph(_bound_beyond_the_end)),
    "gradient without its statement": ("tf2", _graph(_gradient_not_stated)),
    "gradient of other values": ("tf2", _graph(_gradient_of_other_values)),
    "constant of 4 EiB": ("tf2", _add_constant(types_pb2.DT_FLOAT, _huge)),
    "constant is a resource": ("tf2", _add_constant(types_pb2.DT_RESOURCE, _resource)),
    "constant is a variant": ("tf2", _add_constant(types_pb2.DT_VARIANT, _variant)),
    "variables of 2^80 numbers": ("tf2", _graph(_bomb_of_variables)),
    "options of the runtime": ("tf2", _graph(_call_attributes)),
    "implementations of functions": ("tf2", _graph(_implements)),
    "default that is a function": ("tf2", _graph(_default_function)),
    "gradient of this process": ("tf2", _graph(_gradient_of_process)),
    "names with controls": ("tf2", _named("a\nb\x1b[2J\x07")),
    "names of paths": ("tf2", _named("../../../etc/passwd")),
    "function that calls itself": ("tf2", _graph(_cycle)),
    "nodes in a loop": ("tf2", _graph(_loop_of_nodes)),
    "resources of one name": ("tf2", _graph(_shared_names)),
    "function with the name of an operation": (
        "tf2",
        _graph(lambda g, c: setattr(_function(g, "__inference_inner").signature, "name", "WriteFile")),
    ),
    "no nodes": ("tf2", _graph(lambda g, c: g.graph_def.ClearField("node"))),
    "no functions": ("tf2", _graph(lambda g, c: g.graph_def.ClearField("library"))),
    "no objects": ("tf2", _graph(lambda g, c: g.ClearField("object_graph_def"))),
    "no saver": ("tf2", _graph(lambda g, c: g.ClearField("saver_def"))),
    "sparse input": (
        "tf2",
        _graph(lambda g, c: g.signature_def["serve"].inputs["image"].coo_sparse.SetInParent()),
    ),
}
"""Name of the lie -> the model that it changes, and how."""


# --- attempts ---------------------------------------------------------------------------------------------------------

Make = Callable[[Path], Path]
"""(an empty folder) -> the path of a model that was written to it."""


def save_grounds(folder: Path, canary: Canary) -> dict[str, Path]:
    """Write the models that attempts are made of, and a checkpoint among the canary's files."""
    tf.raw_ops.SaveV2(
        prefix=str(canary.folder / "weights"), tensor_names=["x"], shape_and_slices=[""], tensors=[[1.0, 2.0]]
    )
    return {
        "tf2": save_ground(folder / "tf2"),
        "tf1": save_ground_v1(folder / "tf1", resource=True),
        "tf1ref": save_ground_v1(folder / "tf1ref", resource=False),
    }


def _copied(ground: Path, folder: Path) -> Path:
    return Path(shutil.copytree(ground, folder / "model", symlinks=True))


def sound(grounds: dict[str, Path], name: str) -> Make:
    """A model that is not changed, which loads."""
    return lambda folder: _copied(grounds[name], folder)


def planted(grounds: dict[str, Path], canary: Canary, operation: str, place: Place) -> Make:
    """An operation in a place."""

    def make(folder: Path) -> Path:
        file = (path := _copied(grounds[place.ground], folder)) / "saved_model.pb"
        whole = saved_model_pb2.SavedModel.FromString(file.read_bytes())
        library = library_of(operation, canary) if operation in PAYLOADS else bare_library_of(operation)
        whole.meta_graphs[0].graph_def.library.MergeFrom(library)
        place.plant(whole if place.plant is _second_graph else whole.meta_graphs[0])
        file.write_bytes(whole.SerializeToString())
        return path

    return make


def lying(grounds: dict[str, Path], canary: Canary, name: str) -> Make:
    """One of `LIES`."""

    def make(folder: Path) -> Path:
        ground, lie = LIES[name]
        lie(path := _copied(grounds[ground], folder), canary)
        return path

    return make


def attempts(folder: Path, canary: Canary) -> dict[str, Make]:
    """The long list, by name: each operation where it would run, the worst ones where nothing runs, and the lies."""
    grounds = save_grounds(folder, canary)
    found = {f"sound {name}": sound(grounds, name) for name in grounds}
    running = [place for place in PLACES if place.runs]
    others = [place for place in PLACES if not place.runs]
    pairs = [(operation, place) for place in running for operation in PAYLOADS]
    pairs += [(operation, place) for place in (running[0], running[2], running[3]) for operation in BARE]
    worst = ("WriteFile", "ReadFile", "SaveV2", "RestoreV2", "TextLineDataset")
    pairs += [(operation, place) for place in others for operation in worst]
    found |= {f"{o} in {place.name}": planted(grounds, canary, o, place) for o, place in pairs}
    return found | {name: lying(grounds, canary, name) for name in LIES}
