"""Untrusted SavedModels, read without TensorFlow's loader: one signature at a time, and nothing but its graph.

`tf.saved_model.load` runs initialisers, restores through operations of the graph, and calls functions that the object
graph names. Here none of them is run. The graph of a signature is pruned to what its outputs need; each operation that
is left, in each function that it calls, must be one of `ALLOWED_OPERATIONS`. The variables that the graph reads are
filled by a checkpoint reader, the tables by constants of the graph. The saver and the initialisers are only parsed, to
find which tensor of the checkpoint belongs to which variable.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import (
    attr_value_pb2,
    function_pb2,
    graph_pb2,
    node_def_pb2,
    op_def_pb2,
    tensor_pb2,
    types_pb2,
)
from tensorflow.core.function.capture import restore_captures
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2, saved_object_graph_pb2
from tensorflow.python.framework import op_def_registry
from tensorflow.python.saved_model import function_deserialization, nested_structure_coder

from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.allowed_operations import ALLOWED_OPERATIONS
from keras_rcl.model_io.untrusted_files import Checkpoint, refusal, regular
from keras_rcl.runtime.gradients import custom_gradient

_VARIABLES = {"VarHandleOp", "VariableV2", "Variable"}
_TABLES = {"HashTableV2", "MutableHashTableV2"}
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_FILLERS = {"InitializeTableV2", "LookupTableImportV2"}
_OF_LOADER = {"__saved_model_init_op", "__saved_model_train_op"}
_KEPT_ATTRIBUTES = {
    "_lower_using_switch_merge",
    "_num_original_outputs",
    "_output_shapes",
    "_read_only_resource_inputs",
    "_stateful_parallelism",
    "_xla_propagate_compile_time_consts",
}
"""Attributes of a node beyond those of its operation that are kept; the others are options of the runtime."""
_HANDLES = {types_pb2.DT_RESOURCE, types_pb2.DT_RESOURCE_REF, types_pb2.DT_VARIANT, types_pb2.DT_VARIANT_REF}
"""Types of which a constant could name a resource of another model, or hold an object of a class of TensorFlow's."""
_MOST_CALLS = 1_000
"""Calls of functions that are followed to find what the saver and the initialisers fill."""
_MOST_BYTES = 2**31
"""Size of the graph's file, and of a constant of the graph once it is expanded; protobuf has the same limit."""


class Signature(NamedTuple):
    """A signature: the names of its inputs and outputs, and the TensorSpec of each, as the file states them."""

    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]


class PrunedSavedModel:
    """A SavedModel from elsewhere, of which single signatures can be loaded.

    Attributes:
        folder: where it lies.
        signatures: the signatures by name. Nothing of them is loaded yet.
    """

    def __init__(self, folder: str | Path):
        """Parse a SavedModel; nothing of it is run.

        Args:
            folder: holds saved_model.pb or saved_model.pbtxt, and the folder variables.

        Raises:
            InvalidInputError: if there are several graphs and none is for serving, or a file is outside the folder.
            OSError, google.protobuf.message.DecodeError: if it cannot be parsed.
        """
        self.folder = Path(folder)
        self._meta_graph = _serving_graph(self.folder)
        self._graph = _Graph(self._meta_graph, self.folder)
        self.signatures = {
            name: Signature(_specs_of(signature.inputs), _specs_of(signature.outputs))
            for name, signature in sorted(self._meta_graph.signature_def.items())
            if name not in _OF_LOADER
        }

    def load(self, name: str) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        """Load a signature of one input.

        Args:
            name: a key of `signatures`.

        Returns:
            images -> the outputs by name; eagerly or within a graph, and differentiable where the operations are.

        Raises:
            InvalidInputError: if an operation is not allowed, or a variable or table cannot be filled from the
                checkpoint or from constants.
        """
        signature = self._meta_graph.signature_def[name]
        for key, tensor in (*signature.inputs.items(), *signature.outputs.items()):
            if tensor.WhichOneof("encoding") != "name":
                raise refusal(self.folder, f"has the tensor {key!r}, which is sparse or composite")
        (fed,) = signature.inputs.values()
        (spec,) = self.signatures[name].inputs.values()
        outputs = {key: tensor.name for key, tensor in signature.outputs.items()}
        pruned = self._graph.pruned(_Tensor.of(fed.name), outputs.values())
        return _callable(pruned, fed.name, spec, outputs, self.signatures[name].outputs)


class _Tensor(NamedTuple):
    """An output of a node: its name, and which of the outputs."""

    node: str
    index: int

    @staticmethod
    def of(text: str) -> "_Tensor":
        """The tensor `node`, `node:1`, or in a function `node:output:1`."""
        node, _, index = text.partition(":")
        return _Tensor(node, int(index.rpartition(":")[2] or 0))


class _Pruned(NamedTuple):
    """What a signature needs: a graph, its functions as loaded, and variables and tables in place of its nodes."""

    graph_def: graph_pb2.GraphDef
    functions: dict
    resources: dict[str, tf.Variable | tf.Tensor]
    captured: dict[str, tf.Variable | tf.Tensor]


class _Scope:
    """The nodes of the graph or of one call of a function, to follow tensors back to where they come from."""

    def __init__(self, nodes: dict[str, node_def_pb2.NodeDef], arguments: dict[str, tuple["_Scope", str]]):
        self.nodes, self.arguments = nodes, arguments

    def source(self, text: str) -> tuple["_Scope", node_def_pb2.NodeDef | None, int]:
        """The node that a tensor is from, through identities and into the callers; None where there is no such node."""
        scope, seen = self, set()
        while (id(scope), text) not in seen:
            seen.add((id(scope), text))
            tensor = _Tensor.of(text)
            if tensor.node in scope.arguments:
                scope, text = scope.arguments[tensor.node]
                continue
            node = scope.nodes.get(tensor.node)
            if node is None or node.op != "Identity" or not node.input:
                return scope, node, tensor.index
            text = node.input[0]
        return scope, None, 0

    def constant(self, text: str) -> np.ndarray | None:
        """The value of a tensor that is a constant of the graph; None for any other."""
        _, node, _ = self.source(text)
        if node is None or node.op != "Const" or _expanded_bytes(node.attr["value"].tensor) > _MOST_BYTES:
            return None
        return tf.make_ndarray(node.attr["value"].tensor)


class _Graph:
    """The graph of a SavedModel, and the checkpoint beside it."""

    def __init__(self, meta_graph: meta_graph_pb2.MetaGraphDef, folder: Path):
        self.folder = folder
        self.graph_def = meta_graph.graph_def
        self.restore = meta_graph.saver_def.restore_op_name
        self.nodes = {node.name: node for node in self.graph_def.node}
        self.library = {function.signature.name: function for function in self.graph_def.library.function}
        self.gradients = {
            gradient.registered_op_type: gradient.gradient_func
            for gradient in self.graph_def.library.registered_gradients
        }
        self.objects = meta_graph.object_graph_def
        self.twins: dict[tuple[str, bytes], list[str]] = collections.defaultdict(list)
        for node in self.graph_def.node:
            if node.op in _VARIABLES:
                self.twins[node.op, node.attr["shared_name"].s].append(node.name)
        self.scope = _Scope(self.nodes, {})
        self.checkpoint = Checkpoint(folder)
        self._filled: dict[str, tf.Variable | tf.Tensor] = {}

    def pruned(self, fed: _Tensor, outputs: Iterable[str]) -> _Pruned:
        """What these outputs need, and not what the input replaces; checked before anything of it is built."""
        kept, filled = self._needed(fed, outputs)
        names = self._called(kept)
        self._check(kept, names)
        with tf.init_scope():
            resources = {name: self._resource(self.nodes[name]) for name in filled}
            library = self._library(names)
            functions = self._loaded(library)
        graph_def = graph_pb2.GraphDef(versions=self.graph_def.versions)
        absent = filled | {fed.node}
        for node in kept:
            copied = self._cleaned(graph_def.node.add(), node, in_function=False)
            present = [text for text in node.input if not (text.startswith("^") and text[1:] in absent)]
            copied.ClearField("input")
            copied.input.extend(present)
            function_deserialization.fix_node_def(copied, functions, "")
        return _Pruned(graph_def, functions, resources, self._filled)

    def _check(self, kept: list[node_def_pb2.NodeDef], names: list[str]) -> None:
        """See that these nodes and functions compute and do nothing else."""
        for name in names:
            for attribute in self.library[name].signature.attr:
                if _functions_of(attribute.default_value):
                    raise refusal(self.folder, f"has the function {name!r}, which takes functions")
        for where, nodes in [("its graph", kept), *((name, self.library[name].node_def) for name in names)]:
            for node in nodes:
                if node.op not in self.library and node.op not in ALLOWED_OPERATIONS:
                    raise refusal(self.folder, f"runs the operation {node.op!r} in {where!r}, which is not allowed")
                self._check_gradient(node)
                for tensor in (tensor for value in node.attr.values() for tensor in _tensors_of(value)):
                    if tensor.dtype in _HANDLES:
                        raise refusal(self.folder, f"has a resource as the constant {node.name!r} in {where!r}")
                    if _expanded_bytes(tensor) > _MOST_BYTES:
                        raise refusal(self.folder, f"has the constant {node.name!r} of over 2 GiB in {where!r}")

    def _check_gradient(self, node: node_def_pb2.NodeDef) -> None:
        """See that the custom gradient of a node takes its outputs and returns one value for each of its inputs."""
        name = self.gradients.get(_text(node.attr["_gradient_op_type"].s)) if "_gradient_op_type" in node.attr else None
        if name is None or node.op in _CALLS:
            return
        signature, objects = self.library[name].signature, self.objects.concrete_functions
        captured = len(objects[name].bound_inputs) if name in objects else 0
        inputs = sum(not text.startswith("^") for text in node.input)
        taken, returned = len(signature.input_arg) - captured, len(self._returned(signature))
        if returned != inputs or taken != len(node.attr["T"].list.type):
            raise refusal(self.folder, f"has the gradient {name!r}, which is not one of the node {node.name!r}")

    def _needed(self, fed: _Tensor, outputs: Iterable[str]) -> tuple[list[node_def_pb2.NodeDef], set[str]]:
        """The nodes that these outputs need, in the graph's order; and the names of the variables and tables."""
        kept, filled, waiting = set(), set(), list(outputs)
        while waiting:
            text = waiting.pop()
            tensor = _Tensor.of(text.removeprefix("^"))
            node = self.nodes.get(tensor.node)
            if tensor == fed and (not text.startswith("^") or _is_fed(node)):
                continue
            if tensor.node in kept or tensor.node in filled:
                continue
            if node is None:
                raise refusal(self.folder, f"needs the node {tensor.node!r}, which it does not have")
            if _is_fed(node):
                raise refusal(self.folder, f"needs the input {tensor.node!r}, which its signature does not name")
            if node.op in _VARIABLES | _TABLES:
                filled.add(node.name)
            else:
                kept.add(node.name)
                waiting += node.input
        return [node for node in self.graph_def.node if node.name in kept], filled

    def _called(self, nodes: list[node_def_pb2.NodeDef]) -> list[str]:
        """The functions that these nodes can lead to, their custom gradients included."""
        found, waiting = {}, list(nodes)
        while waiting:
            for name in self._named_by(waiting.pop()):
                if name not in self.library:
                    raise refusal(self.folder, f"calls the function {name!r}, which it does not have")
                if op_def_registry.get(name) is not None:
                    raise refusal(self.folder, f"gives a function the name of the operation {name!r}")
                if name not in found:
                    found[name] = None
                    waiting += self.library[name].node_def
        return list(found)

    def _named_by(self, node: node_def_pb2.NodeDef) -> Iterator[str]:
        """The functions that one node names: as its operation, in its attributes, or as its gradient."""
        if node.op in self.library:
            yield node.op
        for value in node.attr.values():
            yield from _functions_of(value)
        if "_gradient_op_type" in node.attr and (gradient := _text(node.attr["_gradient_op_type"].s)) in self.gradients:
            yield self.gradients[gradient]

    def _library(self, names: list[str]) -> function_pb2.FunctionDefLibrary:
        """These functions, with what they need to compute and no other attributes."""
        library = function_pb2.FunctionDefLibrary()
        for name in names:
            original, function = self.library[name], library.function.add()
            function.signature.CopyFrom(original.signature)
            function.ret.update(original.ret)
            function.control_ret.update(original.control_ret)
            if "_input_shapes" in original.attr:
                function.attr["_input_shapes"].CopyFrom(original.attr["_input_shapes"])
            for node in original.node_def:
                self._cleaned(function.node_def.add(), node, in_function=True)
        for kind, function in self.gradients.items():
            if function in names:
                library.registered_gradients.add(registered_op_type=kind, gradient_func=function)
        return library

    def _loaded(self, library: function_pb2.FunctionDefLibrary) -> dict:
        """The functions by their names in the file; gradient functions with the tensors that they captured."""
        gradients = {gradient.gradient_func for gradient in library.registered_gradients}
        # What a gradient function takes and returns, so that it can be called; all other functions are operations.
        typed = saved_object_graph_pb2.SavedObjectGraph()
        for function in library.function:
            if function.signature.name in gradients:
                inputs = tuple(tf.TensorSpec(None, one.type, one.name) for one in function.signature.input_arg)
                outputs = self._returned(function.signature)
                proto = typed.concrete_functions[function.signature.name]
                proto.canonicalized_input_signature.CopyFrom(nested_structure_coder.encode_structure((inputs, {})))
                proto.output_signature.CopyFrom(nested_structure_coder.encode_structure(outputs))
        functions = function_deserialization.load_function_def_library(library, typed)
        for name in gradients & self.objects.concrete_functions.keys():
            numbers = self.objects.concrete_functions[name].bound_inputs
            restore_captures.restore_captures(
                functions[name], [self._captured(number, functions) for number in numbers]
            )
        return functions

    def _returned(self, signature: op_def_pb2.OpDef) -> tuple[tf.TensorSpec | None, ...]:
        """What a gradient function returns: of the inputs that it has no gradient for, None."""
        specs = [tf.TensorSpec(None, one.type, one.name) for one in signature.output_arg]
        stated = self.objects.concrete_functions[signature.name].output_signature
        values = stated.list_value.values or stated.tuple_value.values
        present = [value.WhichOneof("kind") != "none_value" for value in values] or [True] * len(specs)
        if sum(present) != len(specs):
            raise refusal(self.folder, f"has the gradient {signature.name!r}, whose outputs are not those it states")
        specs = iter(specs)
        return tuple(next(specs) if one else None for one in present)

    def _captured(self, number: int, functions: dict) -> tf.Variable | tf.Tensor:
        """What a gradient function captured: a variable, a constant, or a tensor of the function that it is of."""
        saved = self.objects.nodes[number]
        kind = saved.WhichOneof("kind")
        if kind == "captured_tensor" and saved.captured_tensor.concrete_function in functions:
            return functions[saved.captured_tensor.concrete_function].graph.get_tensor_by_name(
                saved.captured_tensor.name
            )
        if kind == "constant" and (value := self.scope.constant(saved.constant.operation)) is not None:
            return tf.constant(value)
        if kind == "variable":
            for name in (*self._handles[number], *self.twins["VarHandleOp", saved.variable.name.encode()]):
                return self._resource(self.nodes[name])
        raise refusal(self.folder, f"has a gradient that captures a {kind}, which is not in its graph")

    def _cleaned(
        self, target: node_def_pb2.NodeDef, node: node_def_pb2.NodeDef, in_function: bool
    ) -> node_def_pb2.NodeDef:
        """A node for any device, with the attributes of its operation and no options of the runtime."""
        target.CopyFrom(node)
        target.ClearField("device")
        target.ClearField("experimental_debug_info")
        for key in list(target.attr):
            value = target.attr[key]
            # TensorFlow renames the custom gradients of operations in functions. Elsewhere a name could be that of a
            # gradient which this process has registered for something else.
            renamed = in_function and node.op not in _CALLS and _text(value.s) in self.gradients
            of_file = key == "_gradient_op_type" and renamed
            if key.startswith("_") and key not in _KEPT_ATTRIBUTES and not of_file:
                del target.attr[key]
            elif node.op in _CALLS and key in ("config", "config_proto", "executor_type"):
                value.s = b""
            elif value.WhichOneof("value") == "func":
                value.func.ClearField("attr")
            elif value.WhichOneof("value") == "list":
                for function in value.list.func:
                    function.ClearField("attr")
        return target

    def _resource(self, node: node_def_pb2.NodeDef) -> tf.Variable | tf.Tensor:
        """A variable or a table in place of a node that makes one; nodes of one shared name have one."""
        name = _text(node.attr["shared_name"].s) or node.name
        if name not in self._filled:
            make = self._table if node.op in _TABLES else self._variable
            self._filled[name] = make(node, name)
        return self._filled[name]

    def _variable(self, node: node_def_pb2.NodeDef, shared_name: str) -> tf.Variable | tf.Tensor:
        twins = [node.name, *self.twins[node.op, shared_name.encode()]]
        keys = [(self._bound[name], "") for name in twins if name in self._bound]
        keys += [self._restored[name] for name in twins if name in self._restored]
        keys += [(name, "") for name in (node.name, shared_name) if name in self.checkpoint]
        if not keys:
            raise refusal(self.folder, f"reads the variable {node.name!r}, which its checkpoint does not hold")
        value = self.checkpoint.read(*keys[0])
        dtype, shape = tf.as_dtype(node.attr["dtype"].type), tf.TensorShape(node.attr["shape"].shape)
        if value.dtype != dtype.as_numpy_dtype or not shape.is_compatible_with(value.shape):
            raise refusal(
                self.folder,
                f"has the variable {node.name!r} of {dtype.name} {shape}, and {value.dtype} {list(value.shape)} in its "
                "checkpoint",
            )
        return tf.Variable(value, trainable=False, dtype=dtype) if node.op == "VarHandleOp" else tf.constant(value)

    def _table(self, node: node_def_pb2.NodeDef, shared_name: str) -> tf.Tensor:
        keys, values = self._contents(node, shared_name)
        types = {"key_dtype": node.attr["key_dtype"].type, "value_dtype": node.attr["value_dtype"].type}
        if node.op == "HashTableV2":
            table = tf.raw_ops.AnonymousHashTable(**types)
            tf.raw_ops.InitializeTableV2(table_handle=table, keys=keys, values=values)
        else:
            table = tf.raw_ops.AnonymousMutableHashTable(**types)
            tf.raw_ops.LookupTableImportV2(table_handle=table, keys=keys, values=values)
        return table

    def _contents(self, node: node_def_pb2.NodeDef, shared_name: str) -> tuple[np.ndarray, np.ndarray]:
        """The keys and values of a table: from the checkpoint, else the constants that an initialiser would fill in."""
        if node.name in self._restored_tables:
            return tuple(self.checkpoint.read(*key) for key in self._restored_tables[node.name])

        def is_this(found):
            return found is node or (found is not None and _is_twin(found, node, shared_name))

        callers = [
            other
            for other in self.nodes.values()
            if other.op in _FILLERS
            or (other.op in _CALLS and any(is_this(self.scope.source(t)[1]) for t in other.input))
        ]
        found = []
        for scope, filler in self._visited(callers):
            if filler.op in _FILLERS and len(filler.input) >= 3 and is_this(scope.source(filler.input[0])[1]):
                found.append((scope.constant(filler.input[1]), scope.constant(filler.input[2])))
        if not found or any(part is None for contents in found for part in contents):
            raise refusal(
                self.folder,
                f"reads the table {node.name!r}, which is filled from a file and not from constants of its graph",
            )
        return found[0]

    @functools.cached_property
    def _handles(self) -> dict[int, list[str]]:
        """Of each object of the object graph: the variables of the graph that a call gives a function for it."""
        found = collections.defaultdict(list)
        for node in self.graph_def.node:
            name = node.attr["f"].func.name if node.op in _CALLS else ""
            if name in self.objects.concrete_functions and (
                numbers := self.objects.concrete_functions[name].bound_inputs
            ):
                inputs = [text for text in node.input if not text.startswith("^")]
                for number, text in zip(reversed(numbers), reversed(inputs), strict=False):
                    target = self.scope.source(text)[1]
                    if target is not None and target.op in _VARIABLES:
                        found[number].append(target.name)
        return found

    @functools.cached_property
    def _bound(self) -> dict[str, str]:
        """Of each variable that belongs to an object of the object graph: the tensor of the checkpoint."""
        keys = self.checkpoint.keys_of(self.objects)
        return {name: keys[number] for number, names in self._handles.items() if number in keys for name in names}

    @functools.cached_property
    def _restored(self) -> dict[str, tuple[str, str]]:
        """Of each variable that the saver would restore: the tensor of the checkpoint, and the slice of it."""
        return {
            target.name: key
            for scope, node in self._saver
            if node.op in ("AssignVariableOp", "Assign")
            and (target := scope.source(node.input[0])[1]) is not None
            and target.op in _VARIABLES
            and (key := self._key(scope, node.input[1])) is not None
        }

    @functools.cached_property
    def _restored_tables(self) -> dict[str, tuple[tuple[str, str], tuple[str, str]]]:
        """Of each table that the saver would restore: the tensors of the checkpoint with its keys and its values."""
        return {
            target.name: (keys, values)
            for scope, node in self._saver
            if node.op == "LookupTableImportV2"
            and (target := scope.source(node.input[0])[1]) is not None
            and (keys := self._key(scope, node.input[1])) is not None
            and (values := self._key(scope, node.input[2])) is not None
        }

    @functools.cached_property
    def _saver(self) -> list[tuple[_Scope, node_def_pb2.NodeDef]]:
        found, waiting = {}, [self.restore]
        while waiting:
            name = _Tensor.of(waiting.pop().removeprefix("^")).node
            if name in self.nodes and name not in found:
                found[name] = self.nodes[name]
                waiting += found[name].input
        return list(self._visited(found.values()))

    def _key(self, scope: _Scope, text: str) -> tuple[str, str] | None:
        """The name in the checkpoint, and the slice, of a tensor that the saver would read."""
        scope, node, index = scope.source(text)
        if node is None or node.op != "RestoreV2" or len(node.input) < 3:
            return None
        names, slices = scope.constant(node.input[1]), scope.constant(node.input[2])
        if names is None or slices is None or not index < min(names.size, slices.size):
            return None
        return _text(names.ravel()[index]), _text(slices.ravel()[index])

    def _visited(self, nodes: Iterable[node_def_pb2.NodeDef]) -> Iterator[tuple[_Scope, node_def_pb2.NodeDef]]:
        """These nodes, and those of the functions that they call, each with the scope to follow its inputs in."""
        waiting, calls = [(self.scope, node) for node in nodes], 0
        while waiting:
            scope, node = waiting.pop()
            yield scope, node
            function = self.library.get(node.attr["f"].func.name) if node.op in _CALLS else None
            if function is not None and calls < _MOST_CALLS:
                calls += 1
                arguments = zip(function.signature.input_arg, node.input, strict=False)
                inner = _Scope(
                    {inside.name: inside for inside in function.node_def},
                    {argument.name: (scope, text) for argument, text in arguments},
                )
                waiting += [(inner, inside) for inside in function.node_def]


def _callable(
    pruned: _Pruned, fed: str, spec: tf.TensorSpec, outputs: dict[str, str], specs: dict[str, tf.TensorSpec]
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A pruned graph as a function of what is fed to it."""
    functions = {function.name: function for function in pruned.functions.values()}
    loops = any(node.op == "Enter" for node in pruned.graph_def.node)

    def call(images):
        graph = tf.compat.v1.get_default_graph()
        for function in functions.values():
            function.add_to_graph(graph)
        entering = {fed: images}
        for name, resource in pruned.resources.items():
            handle = resource.handle if isinstance(resource, tf.Variable) else resource
            entering[f"{name}:0"] = graph.capture(handle)
        found = tf.graph_util.import_graph_def(
            pruned.graph_def, input_map=entering, return_elements=list(outputs.values()), name=""
        )
        function_deserialization._restore_gradient_functions(graph, functions, {})
        return {name: tf.ensure_shape(tensor, specs[name].shape) for name, tensor in zip(outputs, found, strict=True)}

    # Without the control dependencies that `tf.function` adds: the graph has its own, and added ones would cross the
    # frames of loops of TensorFlow 1.
    wrapped = tf.compat.v1.wrap_function(call, [spec])
    whole = _without_gradient(wrapped) if loops else wrapped

    def run(images):
        return whole(tf.convert_to_tensor(images, spec.dtype))

    run.resources = pruned.captured  # a captured handle does not keep its variable alive
    return run


def _without_gradient(call: Callable) -> Callable:
    """A function whose graph has loops of TensorFlow 1, of which TensorFlow cannot build gradients after an import."""

    def refuse(*_):
        raise InvalidInputError(
            "the SavedModel has loops of TensorFlow 1, which have no gradients; hint: attack it with square, or export "
            "it with TensorFlow 2"
        )

    # Nothing of the call is recorded: TensorFlow would build the gradient of its graph at once.
    return custom_gradient(lambda images: (call(tf.stop_gradient(images)), refuse))


def _serving_graph(folder: Path) -> meta_graph_pb2.MetaGraphDef:
    """The graph of a SavedModel: its only one, or the one for serving."""
    file = folder / "saved_model.pb"
    if not file.exists():
        file = folder / "saved_model.pbtxt"
    if (size := regular(folder, file).stat().st_size) > _MOST_BYTES:
        raise refusal(folder, f"has a {file.name} of {size} bytes, and a graph has at most 2 GiB")
    if file.suffix == ".pb":
        saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    else:
        saved_model = text_format.Parse(file.read_text(encoding="utf-8"), saved_model_pb2.SavedModel())
    graphs = list(saved_model.meta_graphs)
    if len(graphs) > 1:
        graphs = [graph for graph in graphs if set(graph.meta_info_def.tags) == {"serve"}]
    if len(graphs) != 1:
        raise InvalidInputError(f"{folder} has {len(saved_model.meta_graphs)} graphs; export it with one, for serving")
    return graphs[0]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _functions_of(value: attr_value_pb2.AttrValue) -> list[str]:
    """The names of the functions that an attribute holds."""
    return [function.name for function in (value.func, *value.list.func) if function.name]


def _tensors_of(value: attr_value_pb2.AttrValue) -> Iterable[tensor_pb2.TensorProto]:
    """The constants that an attribute holds."""
    kind = value.WhichOneof("value")
    return [value.tensor] if kind == "tensor" else value.list.tensor if kind == "list" else ()


def _expanded_bytes(tensor: tensor_pb2.TensorProto) -> int:
    """What a constant takes in memory, where one value in the file may stand for all."""
    return math.prod(dim.size for dim in tensor.tensor_shape.dim) * tf.as_dtype(tensor.dtype or 1).size


def _specs_of(tensors) -> dict[str, tf.TensorSpec]:
    return {
        name: tf.TensorSpec(tf.TensorShape(tensor.tensor_shape), tf.as_dtype(tensor.dtype), name)
        for name, tensor in sorted(tensors.items())
    }


def _is_fed(node: node_def_pb2.NodeDef | None) -> bool:
    return node is not None and node.op in ("Placeholder", "PlaceholderV2")


def _is_twin(other: node_def_pb2.NodeDef, node: node_def_pb2.NodeDef, shared_name: str) -> bool:
    """Whether two nodes make one resource: of the same operation and the same shared name."""
    return other.op == node.op and "shared_name" in other.attr and other.attr["shared_name"].s == shared_name.encode()
