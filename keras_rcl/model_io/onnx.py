"""A network as ONNX, for verifiers from elsewhere.

The network is folded, so that only convolutions, dense layers, activations, sums and poolings are left of it,
channels first.
"""

import importlib.util
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_rcl.errors import InvalidInputError
from keras_rcl.folding.fold import (
    ROUNDING,
    Add,
    Conv,
    Dense,
    Image,
    Max,
    Mean,
    Pad,
    PixelScale,
    ReLU,
    Reshape,
    Scale,
    SShaped,
    Step,
    fold,
    least_precise_dtype,
)
from keras_rcl.folding.numpy_forward import evaluate

OPSET, IR_VERSION = 13, 8
"""The versions of the ONNX files: old enough for the verifiers' own readers."""

_TOLERANCE = 1e-5


def onnx_network(network: keras.Model):
    """The folded network as an `onnx.ModelProto`: `image` float32 [N, C, H, W] in [0, 1] -> `logits` [N, K].

    Its operators are Conv, Gemm, Relu, Sigmoid, Tanh, Add, Flatten, GlobalAveragePool and MaxPool; Mul where an average
    pooling reaches over the border; Reshape and Transpose where the network reshapes other than to flatten.

    Where onnxruntime is installed, what it computes of random images is compared with what the network does.

    Args:
        network: functional or Sequential, image [N, H, W, C] or [N, F] -> `logits` [N, K], alone or in a dict.

    Raises:
        InvalidInputError: if onnx is not installed, the image's size is not fixed, or a layer cannot be folded, by its
            path.
        RuntimeError: if the logits differ by more than 1e-5 of the largest, or of 1 where that is larger. For a network
            that computes in half precision, this holds of its layers in float64, and `ROUNDING` of its own logits.
    """
    if None in network.input_shape[1:]:
        raise InvalidInputError(
            f"model {network.name} reads images {network.input_shape[1:]}; ONNX is for one size, so fix it"
        )
    graph = _Graph(fold(network, dtype="float64"), _import_onnx())
    onnx = graph.onnx
    graph.value(len(graph.steps) - 1)
    graph.nodes[-1].output[:] = ["logits"]
    image, logits = graph.steps[0].shape, graph.steps[-1].shape
    float32 = onnx.TensorProto.FLOAT
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            network.name,
            [onnx.helper.make_tensor_value_info("image", float32, ["N", *_channels_first(image)])],
            [onnx.helper.make_tensor_value_info("logits", float32, ["N", *logits])],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="keras_rcl",
    )
    onnx.checker.check_model(model, full_check=True)
    if importlib.util.find_spec("onnxruntime"):
        _check_logits(network, model.SerializeToString())
    return model


def _check_logits(network: keras.Model, model: bytes) -> None:
    """Compare with the network, and with its layers in float64 if it computes in half precision."""
    import onnxruntime

    images = np.random.default_rng(0).random((3, *network.input_shape[1:]), np.float32)
    with keras.device("cpu"):  # where float32 is float32, and not TF32
        served = np.asarray(_logits(network(images, training=False)), np.float32)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": to_channels_first(images)})
    dtype = least_precise_dtype(network)
    compared = [(served, _TOLERANCE)]
    if dtype != "float32":
        compared = [(served, ROUNDING[dtype]), (evaluate(fold(network, dtype="float64"), images), _TOLERANCE)]
    for expected, tolerance in compared:
        difference = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
        if not difference <= tolerance:
            raise RuntimeError(f"the ONNX network's logits differ by {difference:g} of the largest: not exported")


def _logits(outputs):
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def _import_onnx():
    try:
        import onnx
    except ModuleNotFoundError:
        raise InvalidInputError("onnx is not installed: pip install onnx onnxruntime") from None
    return onnx


def _channels_first(shape: Sequence[int]) -> tuple[int, ...]:
    """(H, W, C) -> (C, H, W); any other shape as it is."""
    return (shape[2], *shape[:2]) if len(shape) == 3 else tuple(shape)


def to_channels_first(images: np.ndarray) -> np.ndarray:
    """[N, H, W, C] -> [N, C, H, W]; vectors as they are."""
    return np.ascontiguousarray(np.moveaxis(images, 3, 1)) if images.ndim == 4 else images


class _Graph:
    """The ONNX nodes of folded steps, each written when it is first read.

    So a Pad or Reshape whose readers take it upon themselves is never written: a convolution pads by itself, and a
    dense layer reads an image's values in whatever order its kernel's rows are in.
    """

    def __init__(self, steps: Sequence[Step], onnx):
        self.steps, self.onnx = steps, onnx
        self.nodes: list = []
        self.constants: list = []
        self.names: dict[int, str] = {}

    def value(self, number: int) -> str:
        """The name of a step's result: an image's [N, C, H, W], all else as in the network."""
        if number not in self.names:
            step = self.steps[number]
            self.names[number] = WRITERS[type(step.operation)](self, step)
        return self.names[number]

    def add(self, kind: str, step: Step, *inputs: str, **attributes) -> str:
        """Append a node; returns the name of its result."""
        name = f"{step.path}/{kind}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, step: Step, value, dtype=np.float32) -> str:
        """The name of an initializer that holds this."""
        name = f"{step.path}/constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def unpadded(self, number: int) -> tuple[int, tuple[tuple[int, int], tuple[int, int]]]:
        """A step before it is padded, and the zeros that are then laid around it."""
        operation = self.steps[number].operation
        if isinstance(operation, Pad):
            return self.steps[number].inputs[0], operation.amounts
        return number, ((0, 0), (0, 0))

    def convolution(self, step: Step, x: str, kernel, bias, strides=(1, 1), pads=((0, 0), (0, 0))) -> str:
        """Kernel [kh, kw, C, F], as Keras has it."""
        kernel = np.asarray(kernel).transpose(3, 2, 0, 1)
        inputs = x, self.constant(step, kernel), self.constant(step, bias)
        return self.add("Conv", step, *inputs, kernel_shape=kernel.shape[2:], strides=strides, pads=_ends(pads))

    def gemm(self, step: Step, x: str, kernel, bias) -> str:
        """Kernel [F, G], as Keras has it."""
        return self.add("Gemm", step, x, self.constant(step, np.asarray(kernel).T), self.constant(step, bias), transB=1)

    def reshape(self, step: Step, x: str, shape: Sequence[int]) -> str:
        if len(shape) == 1:
            return self.add("Flatten", step, x, axis=1)
        return self.add("Reshape", step, x, self.constant(step, (-1, *shape), np.int64))


def _ends(amounts) -> list[int]:
    """((top, bottom), (left, right)) -> [top, left, bottom, right], as ONNX has it."""
    return [side[end] for end in (0, 1) for side in amounts]


def _image(graph: _Graph, step: Step) -> str:
    return "image"


def _conv(graph: _Graph, step: Step) -> str:
    operation = step.operation
    x, pads = graph.unpadded(*step.inputs)
    return graph.convolution(step, graph.value(x), operation.kernel, operation.bias, operation.strides, pads)


def _dense(graph: _Graph, step: Step) -> str:
    kernel, read = np.asarray(step.operation.kernel), graph.steps[step.inputs[0]]
    shape = graph.steps[read.inputs[0]].shape if isinstance(read.operation, Reshape) else ()
    if len(shape) != 3:
        return graph.gemm(step, graph.value(*step.inputs), kernel, step.operation.bias)
    rows = to_channels_first(np.arange(len(kernel)).reshape(1, *shape)).ravel()
    return graph.gemm(step, graph.reshape(read, graph.value(*read.inputs), (-1,)), kernel[rows], step.operation.bias)


def _scale(graph: _Graph, step: Step) -> str:
    """A linear layer with a diagonal kernel, which every verifier has rules for."""
    kernel, x = np.diag(np.asarray(step.operation.factor)), graph.value(*step.inputs)
    if len(step.shape) == 3:
        return graph.convolution(step, x, kernel[None, None], step.operation.offset)
    return graph.gemm(step, x, kernel, step.operation.offset)


def _pixel_scale(graph: _Graph, step: Step) -> str:
    weight = graph.constant(step, to_channels_first(step.operation.weight[None]))
    return graph.add("Mul", step, graph.value(*step.inputs), weight)


def _pad(graph: _Graph, step: Step) -> str:
    return _padded(graph, step, graph.value(*step.inputs), step.operation.amounts)


def _padded(graph: _Graph, step: Step, x: str, amounts) -> str:
    """Zeros around an image, by the identity as a convolution: onnxruntime melts a Pad into a MaxPool, as if -inf."""
    channels = step.shape[-1]
    identity = np.eye(channels)[None, None]
    return graph.convolution(step, x, identity, np.zeros(channels), pads=amounts) if np.any(amounts) else x


def _reshape(graph: _Graph, step: Step) -> str:
    """Values keep the order that they have in the network, channels last."""
    (before,) = step.inputs
    x = graph.value(before)
    if len(graph.steps[before].shape) == 3:
        x = graph.add("Transpose", step, x, perm=(0, 2, 3, 1))
    x = graph.reshape(step, x, step.shape)
    return graph.add("Transpose", step, x, perm=(0, 3, 1, 2)) if len(step.shape) == 3 else x


def _mean(graph: _Graph, step: Step) -> str:
    return graph.reshape(step, graph.add("GlobalAveragePool", step, graph.value(*step.inputs)), step.shape)


def _add(graph: _Graph, step: Step) -> str:
    first, *others = (graph.value(x) for x in step.inputs)
    for other in others:
        first = graph.add("Add", step, first, other)
    return first


def _relu(graph: _Graph, step: Step) -> str:
    return graph.add("Relu", step, graph.value(*step.inputs))


def _s_shaped(graph: _Graph, step: Step) -> str:
    return graph.add(step.operation.kind.capitalize(), step, graph.value(*step.inputs))


def _max(graph: _Graph, step: Step) -> str:
    """The pooling that the steps took apart: the convolution that lays out the windows is passed over.

    Of what lies around the image, a pixel that no window counts is left out, and any other is a zero.
    """
    windows = graph.steps[step.inputs[0]]
    size, strides = windows.operation.kernel.shape[:2], windows.operation.strides
    x, amounts = graph.unpadded(*windows.inputs)
    counts = step.operation.valid.reshape(*step.shape[:2], *size)
    rows, columns = counts.any(axis=(1, 3)), counts.any(axis=(0, 2))  # [H, kh], [W, kw]
    left_out = [(int((~ends[0]).sum()), int((~ends[-1]).sum())) for ends in (rows, columns)]
    zeros = [tuple(a - b for a, b in zip(*pair, strict=True)) for pair in zip(amounts, left_out, strict=True)]
    x = _padded(graph, step, graph.value(x), zeros)
    return graph.add("MaxPool", step, x, kernel_shape=size, strides=strides, pads=_ends(left_out))


WRITERS: dict[type, Callable[[_Graph, Step], str]] = {
    Image: _image,
    Conv: _conv,
    Dense: _dense,
    Scale: _scale,
    PixelScale: _pixel_scale,
    Pad: _pad,
    Reshape: _reshape,
    Mean: _mean,
    Add: _add,
    ReLU: _relu,
    SShaped: _s_shaped,
    Max: _max,
}
"""Kind of step -> what writes its nodes and gives the name of its result."""
