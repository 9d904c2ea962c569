"""Whether a model may be loaded: what its files say that they would run, checked before any of it runs.

A TensorFlow graph is a program, and so is the configuration of a `.keras` file. What is let through is known to compute
and to do nothing else; all else is refused, known to be harmful or not. `docs/security.md` says what that promises.
"""

import json
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import op_def_registry

from keras_rcl.errors import InvalidInputError

_HARMLESS = re.compile(
    "|".join(
        (
            # variables
            r"Var(iableV2|iable|HandleOp|iableShape|IsInitializedOp)|ReadVariableOp|Assign(Add|Sub)?VariableOp",
            r"DestroyResourceOp|DisableCopyOnRead|Resource((Sparse)?Apply|Scatter|Gather|StridedSlice|CountUpTo)\w*",
            # random numbers
            r"Random(UniformInt|Uniform|StandardNormal|Shuffle|Crop|Gamma|Poisson|PoissonV2)|Multinomial",
            r"(Truncated|ParameterizedTruncated)Normal|SampleDistortedBoundingBox(V2)?|NonDeterministicInts",
            r"Stateful(Uniform(FullInt|Int)?|StandardNormal(V2)?|TruncatedNormal|RandomBinomial)",
            r"Rng(Skip|ReadAndSkip)|StatelessRandomGetAlg",
            # control
            r"(Stateful)?PartitionedCall|If|While|Case|(Ref)?Enter|Assert|CheckNumerics(V2)?|GuaranteeConst|DeviceIndex",
            r"Stack(Push|Pop|Close)?(V2)?|TensorArray\w*|Empty",
            # arrays
            r"Einsum|GatherNd|(TensorScatter|ScatterNd)\w*|DataFormat(DimMap|VecPermute)|CudnnRNN\w*|Fingerprint",
            r"ImageProjectiveTransformV[23]|ScaleAndTranslate(Grad)?|ExtractGlimpse(V2)?",
            # encoded images, and text
            r"Decode(Jpeg|AndCropJpeg|Png|Gif|Bmp|WebP|Image|Wav|Raw|PaddedRaw|Base64|CSV)|ExtractJpegShape",
            r"Encode(Jpeg|Base64)|Parse(Single)?Example(V2)?|String\w+|AsString|Substr|ReduceJoin|UnsortedSegmentJoin",
            r"(Static)?Regex(Replace|FullMatch)|Unicode\w+",
            # tables of constants
            r"(Anonymous)?(Mutable)?(Dense)?HashTable(OfTensors)?(V2)?|InitializeTable(V2)?|LookupTable\w+",
        )
    )
)
"""Names of the ops with state or with text that name no file, no host and nothing of Python's."""

_SAVER = {"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"}
"""What reads and writes the variables: only where nothing but the saver leads to it."""

_MODULES = re.compile(
    r"keras(_rcl|\.src)?\.(applications|layers|networks|models|ops|random|activations|initializers|regularizers|constraints"
    r"|dtype_policies|quantizers|optimizers|losses|metrics)(\.\w+)*"
)
"""Where the classes of a `.keras` file may be from."""

_FUNCTIONS = re.compile(r"builtins|keras(\.src)?\.(activations|ops|losses|metrics|initializers)(\.\w+)*")
_TOP_LEVEL = {"DTypePolicy", "Functional", "Model", "Sequential"}
_FOREIGN_CODE = {"TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "__typespec__"}
_SWOLLEN = 64 * 2**20, 100
"""Bytes, and times the bytes stored, that a member of an archive must not exceed both of."""


def check_saved_model(folder: Path) -> None:
    """See that a SavedModel computes and does nothing else: its graph, every function of it, and its files.

    Raises:
        InvalidInputError: naming the first op, name or link that is not known to be harmless.
        OSError, ValueError: if it cannot be parsed.
    """
    for file in folder.rglob("*"):
        if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
            raise _refusal(folder, f"has the link {file.relative_to(folder)} out of its folder")
    # The parser of the loader, so that what is checked is what is loaded.
    for meta_graph in tf.__internal__.saved_model.parse_saved_model(str(folder)).meta_graphs:
        for asset in meta_graph.asset_file_def:
            if _leaves(asset.filename):
                raise _refusal(folder, f"has the asset {asset.filename!r} out of its folder")
        for place, op in _unknown_ops(meta_graph):
            raise _refusal(folder, f"holds the op {op!r} in {place!r}, which is not known to be harmless")


def check_keras(file: Path) -> None:
    """See that a `.keras` archive stays in its folder, and names no classes and functions but those of Keras and ours.

    Raises:
        InvalidInputError: naming the first member, class or function that is not known to be harmless.
        OSError, KeyError, ValueError, RecursionError, zipfile.BadZipFile: if it cannot be parsed.
    """
    floor, ratio = _SWOLLEN
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if _leaves(member.filename):
                raise _refusal(file, f"has the member {member.filename!r} out of its folder")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _refusal(file, f"has the link {member.filename!r} for a member")
            if member.file_size > max(floor, ratio * member.compress_size):
                swells = f"swells from {member.compress_size} to {member.file_size} bytes"
                raise _refusal(file, f"has the member {member.filename!r}, which {swells}")
        config = json.loads(archive.read("config.json"))
    for named in _mappings(config):
        if "class_name" in named:
            _check_class(file, named)


def _refusal(path: Path, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path} {why}, so it is not loaded; give --skip-safety-check if you trust whoever made it"
    )


def _leaves(name: str) -> bool:
    """Whether a file name in an archive could be of a file outside it."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name


def _check_class(file: Path, named: dict[str, Any]) -> None:
    """Refuse what Keras would look up, by its class and module, where that is more than arithmetic."""
    name, module, config = named["class_name"], named.get("module"), named.get("config")
    if name in ("Lambda", "__lambda__"):
        raise InvalidInputError(f"{file} carries Python code in a Lambda layer, which is not run; give a SavedModel")
    if name == "function":
        known = isinstance(module, str) and _FUNCTIONS.fullmatch(module)
        name = config
    elif not isinstance(name, str) or name in _FOREIGN_CODE:
        known = False
    elif module in ("keras", "builtins"):
        known = name in _TOP_LEVEL
    else:
        known = module is None or (isinstance(module, str) and _MODULES.fullmatch(module))
    if not known:
        where = f"{module}." if module else ""
        raise _refusal(file, f"names {where}{name}, which is not known to be harmless")
    if isinstance(config, dict) and isinstance(config.get("vocabulary"), str):
        raise _refusal(file, f"reads the file {config['vocabulary']!r} for a vocabulary")


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings within a JSON value, itself included."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _unknown_ops(graph: meta_graph_pb2.MetaGraphDef) -> Iterator[tuple[str, str]]:
    """(where, op) of each node that is not known to be harmless, in the graph and in all of its functions."""
    library = {function.signature.name: function for function in graph.graph_def.library.function}
    nodes = {node.name: node for node in graph.graph_def.node}
    saver = graph.saver_def
    restoring = _ancestors(nodes, [saver.restore_op_name])
    saving = _ancestors(nodes, [saver.save_tensor_name])
    served = _ancestors(nodes, [*_fetched(graph), *(nodes.keys() - restoring - saving)])
    of_saver = (restoring | saving) - served
    if graph.HasField("object_graph_def"):  # the loader runs none of these nodes, but restores the variables itself
        exempt_nodes, exempt = set(), _saver_functions(graph, library, nodes, of_saver)
    else:
        named = _plain(saver.filename_tensor_name)
        reads = {name for name in restoring & of_saver if _plain(next(iter(nodes[name].input), "")) == named}
        exempt_nodes = {name for name in of_saver - restoring if nodes[name].op in _SAVER}
        exempt_nodes |= {name for name in reads if nodes[name].op == "RestoreV2"}
        exempt = set()
    for name in library:
        if op_def_registry.get(name) is not None:
            yield "its functions", name
    for node in graph.graph_def.node:
        if node.name not in exempt_nodes and (op := _unknown(node, library)):
            yield node.name, op
    for name, function in library.items():
        for node in function.node_def:
            if not (name in exempt and node.op in _SAVER) and (op := _unknown(node, library)):
                yield name, op


def _unknown(node, library: dict) -> str | None:
    """The op of a node, or the function that it calls, where that is not known to be harmless."""
    missing = next((name for name in _called(node) if name not in library), None)
    if missing is not None:
        return missing
    if node.op in library or _HARMLESS.fullmatch(node.op):
        return None
    definition = op_def_registry.get(node.op)
    return None if definition is not None and _only_computes(definition) else node.op


def _only_computes(definition) -> bool:
    """Whether an op has neither state nor text, without which it can name no file, no host and nothing of Python's."""
    text = any(argument.type == types_pb2.DT_STRING for argument in definition.input_arg) or any(
        attribute.type in ("string", "list(string)") and not attribute.HasField("allowed_values")
        for attribute in definition.attr
    )
    return not (definition.is_stateful or text or definition.name.startswith("_"))


def _saver_functions(graph: meta_graph_pb2.MetaGraphDef, library: dict, nodes: dict, of_saver: set[str]) -> set[str]:
    """The functions that the nodes of the saver call, and nothing else can."""
    by_saver = {name for node in of_saver for name in _mentioned(nodes[node], library)}
    others = [nodes[name] for name in nodes.keys() - of_saver]
    others += [node for function in library.values() for node in function.node_def]
    definitions = graph.graph_def.library
    return (
        by_saver
        - {name for node in others for name in _mentioned(node, library)}
        - {name for function in library.values() for name in _mentioned(function, library)}
        - set(graph.object_graph_def.concrete_functions)
        - {gradient.gradient_func for gradient in definitions.gradient}
        - {gradient.gradient_func for gradient in definitions.registered_gradients}
    )


def _called(node) -> Iterator[str]:
    """The functions in the attributes of a node."""
    for value in node.attr.values():
        for function in (value.func, *value.list.func):
            if function.name:
                yield function.name


def _mentioned(node, library: dict) -> set[str]:
    """The functions that a node or a function can lead to: as its op, or by name in its attributes."""
    texts = {value.s.decode("utf-8", "replace") for value in node.attr.values()}
    return {getattr(node, "op", ""), *_called(node), *texts} & library.keys()


def _fetched(graph: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
    """The nodes that signatures and initialisers name."""
    for signature in graph.signature_def.values():
        for tensor in (*signature.inputs.values(), *signature.outputs.values()):
            parts = tensor.coo_sparse
            yield from (tensor.name, parts.values_tensor_name, parts.indices_tensor_name, parts.dense_shape_tensor_name)
            yield from (component.name for component in tensor.composite_tensor.components)
    for collection in graph.collection_def.values():
        yield from collection.node_list.value


def _ancestors(nodes: dict, names: Iterable[str]) -> set[str]:
    """The nodes that these depend on, themselves included."""
    found, waiting = set(), [_plain(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in nodes and name not in found:
            found.add(name)
            waiting += map(_plain, nodes[name].input)
    return found


def _plain(tensor: str) -> str:
    """The node of a tensor `node:0` or of a control input `^node`."""
    return tensor.removeprefix("^").partition(":")[0]
