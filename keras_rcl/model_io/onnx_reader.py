"""ONNX networks as folded steps: what `folding.fold` makes of Keras networks, of files from elsewhere.

ONNX has images channels first, and flattens them in that order; steps have channels last. So every ONNX tensor is kept
as a step and, in the tensor's shape, the position of each of its values in the step. Nodes that only move values
(Flatten, Reshape, Transpose) change the positions and add no step.
"""

import functools
import gzip
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_rcl.errors import InvalidInputError
from keras_rcl.folding.fold import NO_ZEROS, Add, Dense, Image, Mean, Reshape, Step, StepBuilder, needed, with_weights
from keras_rcl.folding.fold import same_zeros as zeros_of_same
from keras_rcl.folding.numpy_forward import evaluate

_TOLERANCE = 1e-4
"""The largest difference to onnxruntime, which computes in float32, relative to the largest output or to 1."""

_LARGEST_PERMUTATION = 4096
"""The largest number of values whose order is changed by a matrix."""

_ON_IMAGES = ("Conv", "AveragePool", "MaxPool", "GlobalAveragePool", "Pad")
"""The nodes that read an image. In a network without them, the input is a vector."""


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """A network that was read from an ONNX file.

    Attributes:
        path: the file.
        steps: the folded network, float64.
        inputs: int [n], where each value of the ONNX input is in the flattened input of the steps.
        outputs: int [m], where each value of the ONNX output is in the last step's values, a vector.
        session: onnxruntime's, or None if it is not installed.
    """

    path: Path
    steps: list[Step]
    inputs: np.ndarray
    outputs: np.ndarray
    session: Any

    def images(self, values: np.ndarray) -> np.ndarray:
        """The input of the steps [N, *shape] of ONNX inputs [N, n]."""
        flat = np.empty_like(values)
        flat[:, self.inputs] = values
        return flat.reshape(-1, *self.steps[0].shape)

    def values(self, images: np.ndarray) -> np.ndarray:
        """The ONNX inputs [N, n] of inputs of the steps [N, *shape]."""
        return images.reshape(len(images), -1)[:, self.inputs]

    def outputs_of(self, values: np.ndarray) -> np.ndarray:
        """The ONNX outputs float64 [N, m] of ONNX inputs [N, n], computed by the steps in NumPy."""
        return evaluate(self.steps, self.images(np.asarray(values, np.float64)))[:, self.outputs]

    def onnxruntime_outputs(self, values: np.ndarray) -> np.ndarray | None:
        """The ONNX outputs float64 [N, m] of ONNX inputs [N, n] as onnxruntime computes them; None without it."""
        if self.session is None:
            return None
        (read,) = self.session.get_inputs()
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in read.shape]
        dtype = np.float64 if "double" in read.type else np.float32
        found = [self.session.run(None, {read.name: row.reshape(shape).astype(dtype)})[0] for row in np.asarray(values)]
        return np.stack(found).astype(np.float64).reshape(len(values), -1)


def read_onnx(path: str | Path) -> OnnxNetwork:
    """Read an ONNX file as a folded network.

    Where onnxruntime is installed, its outputs of random inputs are compared with those of the steps.

    Args:
        path: a `.onnx` file, or a `.onnx.gz` file.

    Raises:
        InvalidInputError: If onnx is not installed, the file is not an ONNX network of one input and one output, or a
            node, which is named, cannot be read.
    """
    path, onnx = Path(path), _import_onnx()
    model = _load(path, onnx)
    names = {tensor.name for tensor in model.graph.initializer}
    inputs, outputs = [value for value in model.graph.input if value.name not in names], model.graph.output
    if len(inputs) != 1 or len(outputs) != 1:
        raise InvalidInputError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs: networks of one each are read"
        )
    reader = _Reader(path, model, onnx)
    reader.read(inputs[0])
    network = reader.network(outputs[0].name)
    network = replace(network, session=_session(path, model))
    _compare(network)
    return network


def _import_onnx():
    if not importlib.util.find_spec("onnx"):
        raise InvalidInputError("onnx is not installed: ONNX files cannot be read; hint: pip install onnx onnxruntime")
    import onnx
    import onnx.external_data_helper
    import onnx.reference  # constants of the graph are computed by it

    return onnx


def _load(path: Path, onnx):
    from google.protobuf.message import DecodeError

    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        model = onnx.load_model_from_string(content)
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (DecodeError, OSError, EOFError, ValueError, onnx.checker.ValidationError) as error:
        raise InvalidInputError(f"{path} is not a readable ONNX file: {error}") from None
    if not model.graph.node:
        raise InvalidInputError(f"{path} is not an ONNX network: it has no nodes")
    return model


def _session(path: Path, model):
    if not importlib.util.find_spec("onnxruntime"):
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise InvalidInputError(f"{path} is not loaded by onnxruntime: {error}") from None


def _compare(network: OnnxNetwork) -> None:
    """Raise InvalidInputError if the steps and onnxruntime disagree about random inputs."""
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, (3, len(network.inputs))).astype(np.float32)
    found, expected = network.outputs_of(values), network.onnxruntime_outputs(values)
    if expected is None:
        return
    if found.shape != expected.shape or not np.abs(found - expected).max() <= _TOLERANCE * max(
        1.0, np.abs(expected).max()
    ):
        raise InvalidInputError(
            f"{network.path} was read as a network with other outputs than onnxruntime computes; hint: report it"
        )


@dataclass(frozen=True, eq=False)
class _Value:
    """A tensor: the number of a step, and for each value its position in the flattened step; the batch is 1."""

    step: int
    places: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.places.shape


class _Unread(Exception):
    """Why a node cannot be read."""


class _Reader(StepBuilder):
    """Turns the nodes of a graph into steps, one after the other."""

    def __init__(self, path: Path, model, onnx):
        super().__init__("float64")
        self.file, self.onnx, self.model = path, onnx, model
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.known: dict[str, Any] = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }

    def read(self, image) -> None:
        """Read all nodes; `image` is the input's value info."""
        dims = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
        shape = [max(size, 1) if axis == 0 else size for axis, size in enumerate(dims)]
        if not shape or min(shape) < 1:
            raise InvalidInputError(f"{self.file} reads an input of any size: it has no bounds; hint: fix the size")
        as_image = len(shape) == 4 and shape[0] == 1 and any(n.op_type in _ON_IMAGES for n in self.model.graph.node)
        places = np.arange(math.prod(shape)).reshape(shape)
        if as_image:
            channels, height, width = shape[1:]
            places = np.moveaxis(places.reshape(1, height, width, channels), 3, 1)
        own = (height, width, channels) if as_image else (math.prod(shape),)
        self.inputs = places.ravel()
        self.known[image.name] = _Value(self.add(Image(), (), own, "input"), places)
        for node in self.model.graph.node:
            self.read_node(node)

    def network(self, output: str) -> OnnxNetwork:
        result = self.known.get(output)
        if not isinstance(result, _Value):
            raise InvalidInputError(f"{self.file} has the output {output!r}, which does not depend on the input")
        vector = self.vector(result)
        steps = with_weights(needed(self.steps, vector.step), np.asarray)
        return OnnxNetwork(self.file, steps, self.inputs, vector.places.ravel(), None)

    def read_node(self, node) -> None:
        """Add what a node computes to the known tensors."""
        try:
            values = [self.value(name) for name in node.input]
            if node.domain not in ("", "ai.onnx"):
                raise _Unread(f"is of the domain {node.domain}")
            if node.op_type == "Shape" and isinstance(values[0], _Value):
                results = [np.array(values[0].shape)]
            elif not any(isinstance(value, _Value) for value in values):
                results = self.constants(node, values)
            elif node.op_type not in READERS:
                raise _Unread(f"is not supported; supported are {', '.join(sorted(READERS))}")
            else:
                results = [READERS[node.op_type](self, _Node(node, self.onnx), *values)]
        except _Unread as error:
            raise InvalidInputError(f"{self.file}: node {_name(node)} ({node.op_type}) {error}") from None
        except Exception as error:  # what NumPy and onnx raise of a malformed node is anything
            raise InvalidInputError(
                f"{self.file}: node {_name(node)} ({node.op_type}) cannot be read: {error}"
            ) from None
        self.known.update(zip(node.output, results, strict=False))  # a result that is not made is not known

    def value(self, name: str):
        if not name:
            return None
        if name not in self.known:
            raise _Unread(f"reads {name!r}, which no node before it gives")
        return self.known[name]

    def constants(self, node, values) -> list[np.ndarray]:
        """What a node computes of constants."""
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise _Unread("holds another graph")
        evaluator = self.onnx.reference.ReferenceEvaluator(node, opsets=self.opsets)
        fed = {name: value for name, value in zip(node.input, values, strict=True) if name}
        return [np.asarray(value) for value in evaluator.run(None, fed)]

    # Values in the order that a step has

    def vector(self, x: _Value) -> _Value:
        """The same values in a step that is a vector."""
        shape = self.steps[x.step].shape
        if len(shape) == 1:
            return x
        return _Value(self.add(Reshape(), [x.step], (math.prod(shape),), "flatten"), x.places)

    def ordered(self, x: _Value, order: np.ndarray, shape: Sequence[int]) -> int:
        """The number of a step of this shape whose flattened values are those at the positions `order` of x's step."""
        if np.array_equal(order, np.arange(order.size)):
            same = self.steps[x.step].shape == tuple(shape)
            return x.step if same else self.add(Reshape(), [x.step], shape, "reshape")
        if order.size > _LARGEST_PERMUTATION:
            raise _Unread(f"reads {order.size} values in an order that no step has")
        kernel = np.zeros((order.size, order.size))
        kernel[order, np.arange(order.size)] = 1.0
        moved = self.add(Dense(kernel, np.zeros(order.size)), [self.vector(x).step], (order.size,), "order")
        return moved if len(shape) == 1 else self.add(Reshape(), [moved], shape, "reshape")

    def image(self, x: _Value) -> int:
        """The number of a step [H, W, C] of a tensor [1, C, H, W]."""
        if len(x.shape) != 4 or x.shape[0] != 1:
            raise _Unread(f"reads shape {list(x.shape)}; [1, C, H, W] is read")
        order = np.moveaxis(x.places[0], 0, 2)
        return self.ordered(x, order.ravel(), order.shape)

    def of_image(self, step: int) -> _Value:
        """The tensor [1, C, H, W] of a step [H, W, C]."""
        shape = self.steps[step].shape
        places = np.arange(math.prod(shape)).reshape(shape)
        return _Value(step, np.moveaxis(places, 2, 0)[None])

    def affine(self, x: _Value, factor, offset, path: str) -> _Value:
        """factor x + offset, of constants that are broadcast to the shape of x."""
        factor, offset = np.asarray(factor, np.float64), np.asarray(offset, np.float64)
        shape = np.broadcast_shapes(x.shape, factor.shape, offset.shape)
        if math.prod(shape) != x.places.size:
            raise _Unread(f"makes shape {list(shape)} of {list(x.shape)}")
        x = _Value(x.step, x.places.reshape(shape))
        own = self.steps[x.step].shape
        at_places = []
        for constant in (factor, offset):
            flat = np.empty(x.places.size)
            flat[x.places] = np.broadcast_to(constant, shape)
            at_places.append(flat.reshape(own))
        if (at_places[0] == 1).all() and (at_places[1] == 0).all():
            return x
        if len(own) == 3 and all((values == values[:1, :1]).all() for values in at_places):
            return _Value(self.scale(x.step, *(values[0, 0] for values in at_places), path), x.places)
        return _Value(self.scale(self.vector(x).step, *(values.ravel() for values in at_places), path), x.places)


class _Node:
    """A node's name and attributes; one that the reader does not ask for is an error, so that none is passed over."""

    def __init__(self, node, onnx):
        self.path = _name(node)
        self.given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}

    def attributes(self, **defaults) -> list:
        """The values of attributes in the order of the defaults."""
        if unknown := sorted(set(self.given) - set(defaults)):
            raise _Unread(f"has the attribute {unknown[0]}, which is not supported")
        return [self.given.get(name, default) for name, default in defaults.items()]


def _name(node) -> str:
    return node.name or next(iter(node.output), "without a name")


# Readers: (reader, node, *inputs) -> the node's first result


def _constant(value, what: str) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise _Unread(f"has a {what} that is not a constant")
    return value


def _variable(value) -> _Value:
    if not isinstance(value, _Value):
        raise _Unread("reads a constant where a tensor of the network is expected")
    return value


def _relu(reader: _Reader, node: _Node, x) -> _Value:
    node.attributes()
    return _Value(reader.relu(x.step, node.path), x.places)


def _s_shaped(kind: str, reader: _Reader, node: _Node, x) -> _Value:
    node.attributes()
    return _Value(reader.s_shaped(x.step, kind, node.path), x.places)


def _identity(reader: _Reader, node: _Node, x) -> _Value:
    node.attributes()
    return x


def _dropout(reader: _Reader, node: _Node, x, ratio=None, training=None) -> _Value:
    node.attributes(ratio=0.5, seed=0, is_test=1)
    if training is not None and np.any(_constant(training, "training mode")):
        raise _Unread("drops values at inference")
    return x


def _cast(reader: _Reader, node: _Node, x) -> _Value:
    to, _ = node.attributes(to=None, saturate=1)
    if to not in (1, 11):  # float and double
        raise _Unread(f"casts to type {to}")
    return x


def _dense(reader: _Reader, x: _Value, kernel: np.ndarray, bias, path: str) -> int:
    """The step of x @ kernel + bias, x of the values [F] in the tensor's order."""
    kernel, size = np.asarray(kernel, np.float64), x.places.size
    if kernel.ndim != 2 or len(kernel) != size:
        raise _Unread(f"multiplies {size} values by a matrix of shape {list(kernel.shape)}")
    rows = np.empty_like(kernel)
    rows[x.places.ravel()] = kernel
    bias = np.array(np.broadcast_to(np.asarray(bias, np.float64), kernel.shape[1:]))
    return reader.add(Dense(rows, bias), [reader.vector(x).step], kernel.shape[1:], path)


def _gemm(reader: _Reader, node: _Node, a, b, c=None) -> _Value:
    alpha, beta, flip_a, flip_b, *_ = node.attributes(alpha=1.0, beta=1.0, transA=0, transB=0, broadcast=1)
    if flip_a or len(_variable(a).shape) != 2 or a.shape[0] != 1:
        raise _Unread(f"reads shape {list(a.shape)}, transA={flip_a}; [1, F] is read")
    kernel = alpha * _constant(b, "matrix").astype(np.float64)
    bias = 0.0 if c is None else beta * _constant(c, "bias").astype(np.float64)
    if np.ndim(bias) == 2 and len(bias) == 1:
        bias = bias[0]
    step = _dense(reader, a, kernel.T if flip_b else kernel, bias, node.path)
    return _Value(step, np.arange(reader.steps[step].shape[0])[None])


def _matmul(reader: _Reader, node: _Node, a, b) -> _Value:
    """x @ W of x [..., 1, F], or W @ x of x [F, 1] or [F]."""
    node.attributes()
    if isinstance(a, _Value):
        if a.shape[-1] != a.places.size:
            raise _Unread(f"reads shape {list(a.shape)}; one row is read")
        step = _dense(reader, a, _constant(b, "matrix"), 0.0, node.path)
        return _Value(step, np.arange(reader.steps[step].shape[0]).reshape(*a.shape[:-1], -1))
    if b.shape not in ((b.places.size,), (b.places.size, 1)):
        raise _Unread(f"reads shape {list(b.shape)}; one column is read")
    step = _dense(reader, b, _constant(a, "matrix").T, 0.0, node.path)
    return _Value(step, np.arange(reader.steps[step].shape[0]).reshape(-1, *b.shape[1:]))


def _sum(reader: _Reader, node: _Node, a: _Value, b: _Value) -> _Value:
    """The sum of two tensors, brought into one order."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    if not a.places.size == b.places.size == math.prod(shape):
        raise _Unread(f"combines shapes {list(a.shape)} and {list(b.shape)}, which differ")
    a, b = (_Value(x.step, x.places.reshape(shape)) for x in (a, b))
    if reader.steps[a.step].shape != reader.steps[b.step].shape:
        a, b = reader.vector(a), reader.vector(b)
    own = reader.steps[a.step].shape
    if not np.array_equal(a.places, b.places):
        order = np.empty(a.places.size, int)
        order[a.places] = b.places
        b = _Value(reader.ordered(b, order, own), a.places)
    return _Value(reader.add(Add(), [a.step, b.step], own, node.path), a.places)


def _add(reader: _Reader, node: _Node, a, b) -> _Value:
    node.attributes(axis=None, broadcast=1) if reader.opsets.get("", 13) < 7 else node.attributes()
    if "axis" in node.given:
        raise _Unread("broadcasts along an axis")
    if isinstance(a, _Value) and isinstance(b, _Value):
        return _sum(reader, node, a, b)
    x, constant = (a, b) if isinstance(a, _Value) else (b, a)
    return reader.affine(x, 1.0, constant, node.path)


def _sub(reader: _Reader, node: _Node, a, b) -> _Value:
    node.attributes()
    if isinstance(a, _Value) and isinstance(b, _Value):
        return _sum(reader, node, a, reader.affine(b, -1.0, 0.0, node.path))
    if isinstance(a, _Value):
        return reader.affine(a, 1.0, -np.asarray(b, np.float64), node.path)
    return reader.affine(b, -1.0, a, node.path)


def _mul(reader: _Reader, node: _Node, a, b) -> _Value:
    node.attributes()
    if isinstance(a, _Value) and isinstance(b, _Value):
        raise _Unread("multiplies two tensors of the network")
    x, constant = (a, b) if isinstance(a, _Value) else (b, a)
    return reader.affine(x, constant, 0.0, node.path)


def _div(reader: _Reader, node: _Node, a, b) -> _Value:
    node.attributes()
    divisor = _constant(b, "divisor").astype(np.float64)
    if not np.all(divisor):
        raise _Unread("divides by 0")
    return reader.affine(a, 1 / divisor, 0.0, node.path)


def _neg(reader: _Reader, node: _Node, x) -> _Value:
    node.attributes()
    return reader.affine(x, -1.0, 0.0, node.path)


def _batch_norm(reader: _Reader, node: _Node, x, *constants) -> _Value:
    epsilon, _, training, spatial, _ = node.attributes(
        epsilon=1e-5, momentum=0.9, training_mode=0, spatial=1, is_test=1
    )
    if training or not spatial:
        raise _Unread("normalises by the batch, or each pixel apart")
    gamma, beta, mean, variance = (_constant(value, "statistic").astype(np.float64) for value in constants)
    factor = gamma / np.sqrt(variance + epsilon)
    shape = (-1, *(1,) * (len(x.shape) - 2))
    return reader.affine(x, factor.reshape(shape), (beta - mean * factor).reshape(shape), node.path)


def _flatten(reader: _Reader, node: _Node, x) -> _Value:
    (axis,) = node.attributes(axis=1)
    axis = axis + len(x.shape) if axis < 0 else axis
    return _Value(x.step, x.places.reshape(math.prod(x.shape[:axis]), -1))


def _reshape(reader: _Reader, node: _Node, x, shape=None) -> _Value:
    allow_zero, given = node.attributes(allowzero=0, shape=None)
    wanted = [int(size) for size in (given if shape is None else _constant(shape, "shape"))]
    if not allow_zero:
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return _Value(x.step, x.places.reshape(wanted))


def _axes(node: _Node, axes) -> tuple[int, ...]:
    (given,) = node.attributes(axes=None)
    axes = given if axes is None else _constant(axes, "list of axes")
    return tuple(int(axis) for axis in ([] if axes is None else axes))


def _squeeze(reader: _Reader, node: _Node, x, axes=None) -> _Value:
    return _Value(x.step, np.squeeze(x.places, _axes(node, axes) or None))


def _unsqueeze(reader: _Reader, node: _Node, x, axes=None) -> _Value:
    return _Value(x.step, np.expand_dims(x.places, _axes(node, axes)))


def _transpose(reader: _Reader, node: _Node, x) -> _Value:
    (perm,) = node.attributes(perm=None)
    return _Value(x.step, np.transpose(x.places, perm))


def _window(node: _Node, shape: Sequence[int], size: Sequence[int], strides, pads, auto: bytes):
    """Strides and zeros of a window that moves over an image [H, W, C]."""
    strides = tuple(strides or (1, 1))
    if len(size) != 2 or len(strides) != 2:
        raise _Unread(f"has a window of shape {list(size)}; images are read")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        zeros = zeros_of_same(shape, size, strides)
        return strides, zeros if auto == b"SAME_UPPER" else tuple((after, before) for before, after in zeros)
    if auto not in (b"NOTSET", b"VALID"):
        raise _Unread(f"has auto_pad {auto!r}")
    if auto == b"VALID" or not pads:
        return strides, NO_ZEROS
    top, left, bottom, right = (int(amount) for amount in pads)
    if min(top, left, bottom, right) < 0:
        raise _Unread(f"has negative pads {list(pads)}")
    return strides, ((top, bottom), (left, right))


def _conv(reader: _Reader, node: _Node, x, weight, bias=None) -> _Value:
    auto, dilations, groups, size, pads, strides = node.attributes(
        auto_pad=b"NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None
    )
    weight = _constant(weight, "kernel").astype(np.float64)
    if weight.ndim != 4:
        raise _Unread(f"has a kernel of shape {list(weight.shape)}; images are read")
    kernel = _dilated(_ungrouped(weight, groups).transpose(2, 3, 1, 0), dilations or (1, 1))
    step = reader.image(_variable(x))
    shape = reader.steps[step].shape
    if shape[2] != kernel.shape[2] or (size and tuple(size) != weight.shape[2:]):
        raise _Unread(f"has a kernel of shape {list(weight.shape)} for {shape[2]} channels")
    strides, zeros = _window(node, shape, kernel.shape[:2], strides, pads, auto)
    bias = np.zeros(kernel.shape[3]) if bias is None else _constant(bias, "bias").astype(np.float64)
    return reader.of_image(reader.convolve(step, kernel, bias, strides, zeros, node.path))


def _ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """The kernel [F, C, kh, kw] of a convolution of all channels, with zeros between groups."""
    if groups == 1:
        return weight
    filters, channels = len(weight) // groups, weight.shape[1]
    whole = np.zeros((len(weight), channels * groups, *weight.shape[2:]))
    for group in range(groups):
        rows = slice(group * filters, (group + 1) * filters)
        whole[rows, group * channels : (group + 1) * channels] = weight[rows]
    return whole


def _dilated(kernel: np.ndarray, rates: Sequence[int]) -> np.ndarray:
    """The kernel [kh, kw, C, F] with `rate - 1` zeros between its entries."""
    spread = np.zeros(
        [(size - 1) * rate + 1 for size, rate in zip(kernel.shape, rates, strict=False)] + list(kernel.shape[2:])
    )
    spread[:: rates[0], :: rates[1]] = kernel
    return spread


def _pool(reader: _Reader, node: _Node, x, **defaults):
    """The step that a pooling reads, the size of its window, strides and zeros, and its further attributes."""
    names = dict(auto_pad=b"NOTSET", ceil_mode=0, dilations=None, kernel_shape=None, pads=None, strides=None)
    auto, ceil, dilations, size, pads, strides, *others = node.attributes(**names, **defaults)
    if dilations and set(dilations) != {1}:
        raise _Unread("is dilated")
    step = reader.image(_variable(x))
    strides, zeros = _window(node, reader.steps[step].shape, size, strides, pads, auto)
    rests = [
        (n + sum(ends) - k) % s
        for n, ends, k, s in zip(reader.steps[step].shape[:2], zeros, size, strides, strict=True)
    ]
    if ceil and any(rests):
        raise _Unread("has ceil_mode=1 and a last window over the border")
    return (step, tuple(size), strides, zeros), others


def _average_pool(reader: _Reader, node: _Node, x) -> _Value:
    window, (count_zeros,) = _pool(reader, node, x, count_include_pad=0)
    return reader.of_image(reader.average(*window, node.path, count_zeros=bool(count_zeros)))


def _max_pool(reader: _Reader, node: _Node, x) -> _Value:
    window, _ = _pool(reader, node, x, storage_order=0)
    return reader.of_image(reader.maximum(*window, node.path))


def _global_average(reader: _Reader, node: _Node, x) -> _Value:
    node.attributes()
    step = reader.image(_variable(x))
    channels = reader.steps[step].shape[2]
    mean = reader.add(Mean(), [step], (channels,), node.path)
    return _Value(mean, np.arange(channels).reshape(1, channels, 1, 1))


def _pad(reader: _Reader, node: _Node, x, pads=None, value=None, axes=None) -> _Value:
    mode, given, filled = node.attributes(mode=b"constant", pads=None, value=0.0)
    pads = given if pads is None else _constant(pads, "list of pads")
    filled = filled if value is None else _constant(value, "value")
    if mode != b"constant" or np.any(filled) or axes is not None:
        raise _Unread("does not pad with zeros on all axes")
    before, after = np.reshape(np.asarray(pads, int), (2, -1))
    if len(before) != 4 or before[:2].any() or after[:2].any() or min(before.min(), after.min()) < 0:
        raise _Unread(f"pads by {list(pads)}; height and width are padded")
    zeros = ((int(before[2]), int(after[2])), (int(before[3]), int(after[3])))
    return reader.of_image(reader.pad(reader.image(_variable(x)), zeros, node.path))


READERS: dict[str, Callable[..., _Value]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "Identity": _identity,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Neg": _neg,
    "Pad": _pad,
    "Relu": _relu,
    "Reshape": _reshape,
    "Sigmoid": functools.partial(_s_shaped, "sigmoid"),
    "Squeeze": _squeeze,
    "Sub": _sub,
    "Tanh": functools.partial(_s_shaped, "tanh"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operator -> its reader `(reader, node, *inputs) -> the first result`; a constant input is an array."""
