"""ONNX networks as folded steps: each operator against onnxruntime, orders of values by hand, refusals by name."""

import gzip

import numpy as np
import onnx
import onnxruntime
import pytest
from bounds.tiny_networks import IMAGE_BLOCKS, TAILS, random_network
from onnx import TensorProto, helper, numpy_helper

from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io import onnx_reader
from keras_rcl.model_io.onnx import onnx_network
from keras_rcl.model_io.onnx_reader import read_onnx


def model(nodes, shape, constants=(), opset=13, output=None):
    """A network of nodes (operator, inputs, attributes) from `x`, each read by the next unless inputs are named."""
    made, last = [], "x"
    for number, (kind, inputs, attributes) in enumerate(nodes):
        made.append(helper.make_node(kind, inputs or [last], [f"t{number}"], name=f"node{number}", **attributes))
        last = f"t{number}"
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(constants).items()]
    graph = helper.make_graph(
        made,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output or last, TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def read(tmp_path, network):
    path = tmp_path / "network.onnx"
    path.write_bytes(network.SerializeToString())
    return read_onnx(path)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def agrees(tmp_path, network, shape):
    """The outputs of random inputs are those of onnxruntime, to float32 rounding."""
    found = read(tmp_path, network)
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = [size if isinstance(size, int) else 1 for size in shape]
    for seed in range(3):
        x = normal(*shape, seed=seed)
        expected = session.run(None, {"x": x})[0].ravel()
        np.testing.assert_allclose(
            found.outputs_of(x.reshape(1, -1))[0], expected, rtol=1e-4, atol=1e-5 * (1 + np.abs(expected).max())
        )
    return found


IMAGE = [1, 2, 5, 6]
CONV = {"w": normal(3, 2, 3, 2), "b": normal(3)}
FLAT = ("Flatten", None, {})
OPERATORS = {
    "conv": ([("Conv", ["x", "w", "b"], dict(strides=[2, 1], pads=[1, 0, 2, 1])), FLAT], CONV),
    "conv_same_upper": ([("Conv", ["x", "w"], dict(auto_pad="SAME_UPPER", strides=[2, 2])), FLAT], CONV),
    "conv_same_lower": ([("Conv", ["x", "w"], dict(auto_pad="SAME_LOWER")), FLAT], CONV),
    "conv_dilated": ([("Conv", ["x", "w"], dict(dilations=[2, 3])), FLAT], CONV),
    "conv_groups": ([("Conv", ["x", "w"], dict(group=2))], {"w": normal(4, 1, 2, 2)}),
    "relu": ([("Relu", None, {})], {}),
    "curves": ([("Sigmoid", None, {}), ("Conv", ["t0", "w", "b"], {}), ("Tanh", None, {}), FLAT], CONV),
    "average": ([("AveragePool", None, dict(kernel_shape=[2, 3], pads=[1, 1, 0, 1], strides=[1, 2]))], {}),
    "average_counts_zeros": (
        [("AveragePool", None, dict(kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1))],
        {},
    ),
    "maximum": ([("MaxPool", None, dict(kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 2]))], {}),
    "global_average": ([("GlobalAveragePool", None, {}), FLAT], {}),
    "batch_norm": (
        [("BatchNormalization", ["x", "s", "b", "m", "v"], dict(epsilon=1e-2))],
        {"s": normal(2), "b": normal(2, seed=1), "m": normal(2, seed=2), "v": np.float32([0.5, 2.0])},
    ),
    "normalised_images": (
        [("Sub", ["x", "m"], {}), ("Div", ["t0", "d"], {}), ("Conv", ["t1", "w", "b"], {}), FLAT],
        {**CONV, "m": normal(2, 1, 1), "d": np.float32([[[0.5]], [[2.0]]])},
    ),
    "pixels_apart": (
        [("Mul", ["p", "x"], {}), ("Sub", ["q", "t0"], {}), ("Conv", ["t1", "w"], {})],
        {**CONV, "p": normal(5, 6), "q": normal(1, 2, 5, 1)},
    ),
    "flatten_order": (
        [FLAT, ("Gemm", ["t0", "w", "b"], dict(transB=1, alpha=0.5, beta=2.0)), ("Relu", None, {})],
        {"w": normal(4, 60), "b": normal(1, 4)},
    ),
    "residual": (
        [
            ("Relu", None, {}),
            ("Conv", ["t0", "w", "b"], dict(pads=[1, 1, 1, 1])),
            ("Add", ["t1", "x"], {}),
            ("Sub", ["t2", "t0"], {}),
            ("Add", ["t3", "t3"], {}),
        ],
        {"w": normal(2, 2, 3, 3), "b": normal(2)},
    ),
    "transposed": (
        [
            ("Transpose", None, dict(perm=[0, 2, 3, 1])),
            ("Reshape", ["t0", "to"], {}),
            ("MatMul", ["t1", "w"], {}),
            ("Add", ["t2", "b"], {}),
        ],
        {"to": np.int64([1, -1]), "w": normal(60, 3), "b": normal(3)},
    ),
    "two_orders": (
        [FLAT, ("Transpose", ["x"], dict(perm=[0, 3, 1, 2])), ("Flatten", ["t1"], {}), ("Add", ["t0", "t2"], {})],
        {},
    ),
    "another_image": (
        [("Transpose", ["x"], dict(perm=[0, 1, 3, 2])), ("Conv", ["t0", "w", "b"], {}), FLAT, ("Neg", None, {})],
        CONV,
    ),
    "padded": ([("Pad", ["x", "p"], {}), ("Identity", None, {})], {"p": np.int64([0, 0, 1, 0, 0, 0, 0, 2])}),
    "moved": (
        [
            ("Squeeze", ["x", "zero"], {}),
            ("Unsqueeze", ["t0", "zero"], {}),
            ("Shape", ["t1"], {}),
            ("Gather", ["t2", "zero"], {}),
            ("Concat", ["t3", "minus"], dict(axis=0)),
            ("Reshape", ["t1", "t4"], {}),
            ("Cast", ["t5"], dict(to=1)),
        ],
        {"zero": np.int64([0]), "minus": np.int64([-1])},
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_each_operator_computes_what_onnxruntime_does(tmp_path, name):
    nodes, constants = OPERATORS[name]
    agrees(tmp_path, model(nodes, IMAGE, constants), IMAGE)


def test_vectors_in_the_shapes_of_the_competition(tmp_path):
    tail = [FLAT, ("MatMul", ["t1", "w"], {}), ("Add", ["t2", "b"], {}), ("Relu", None, {})]
    constants = {"m": normal(1, 1, 1, 5), "w": normal(5, 3), "b": normal(3)}
    found = agrees(tmp_path, model([("Sub", ["x", "m"], {}), *tail], [1, 1, 1, 5], constants), [1, 1, 1, 5])
    assert [type(step.operation).__name__ for step in found.steps] == ["Image", "Dense", "ReLU"]
    agrees(tmp_path, model([("MatMul", ["w", "x"], {})], [5, 1], {"w": normal(3, 5)}), [5, 1])
    agrees(tmp_path, model([FLAT, ("MatMul", ["t0", "w"], {})], ["N", 7, 1], {"w": normal(7, 2)}), [1, 7, 1])


@pytest.mark.slow
@pytest.mark.parametrize("block", IMAGE_BLOCKS)
def test_what_is_exported_is_read_back(tmp_path, block):
    """Networks of Keras, written by this package: the logits are those of the layers."""
    for seed, tail in enumerate(TAILS):
        network = random_network([block, "conv", block], tail, seed)
        images = np.random.default_rng(seed).random((3, *network.input_shape[1:]), np.float32)
        found = read(tmp_path, onnx_network(network))
        expected = np.asarray(network(images, training=False))
        flat = np.moveaxis(images, 3, 1).reshape(3, -1)
        np.testing.assert_allclose(found.outputs_of(flat), expected, atol=1e-4 * (1 + np.abs(expected).max()))
        np.testing.assert_array_equal(found.values(found.images(flat)), flat)


def test_compressed_files(tmp_path):
    network = model([FLAT], IMAGE)
    (tmp_path / "network.onnx.gz").write_bytes(gzip.compress(network.SerializeToString()))
    x = normal(1, 60)
    np.testing.assert_array_equal(read_onnx(tmp_path / "network.onnx.gz").outputs_of(x), x)


REFUSED = {
    "Softplus": ([("Softplus", None, {})], {}, "node node0 (Softplus) is not supported"),
    "grown": ([("Add", ["x", "c"], {})], {"c": normal(3, 1, 1, 1)}, "makes shape [3, 2, 5, 6]"),
    "product": ([("Mul", ["x", "x"], {})], {}, "multiplies two tensors"),
    "divided": ([("Div", ["c", "x"], {})], {"c": np.float32(1)}, "divisor that is not a constant"),
    "zero": ([("Div", ["x", "c"], {})], {"c": np.float32(0)}, "divides by 0"),
    "ceil": ([("MaxPool", None, dict(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1))], {}, "ceil_mode"),
    "integers": ([("Cast", None, dict(to=7))], {}, "casts to type 7"),
    "unknown": ([("Relu", ["y"], {})], {}, "reads 'y'"),
    "attribute": ([("Relu", None, dict(speed=3))], {}, "has the attribute speed"),
    "nothing": ([("Relu", [""], {})], {}, "node0 (Relu)"),
    "constants": ([("Reshape", ["c", "c"], {})], {"c": np.int64([3])}, "node0 (Reshape)"),
    "channels": ([("Conv", ["x", "w"], {})], {"w": normal(3, 4, 2, 2)}, "for 2 channels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_node_that_cannot_be_read_is_named(tmp_path, name):
    nodes, constants, said = REFUSED[name]
    with pytest.raises(InvalidInputError) as error:
        read(tmp_path, model(nodes, IMAGE, constants))
    assert said in str(error.value) and "\n" not in str(error.value) and "node0" in str(error.value)


def test_files_that_are_no_networks(tmp_path):
    for name, content in {"text.onnx": b"no network", "empty.onnx": b"", "bad.onnx.gz": b"no gzip"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInputError, match=name):
            read_onnx(tmp_path / name)
    with pytest.raises(InvalidInputError, match="input of any size"):
        read(tmp_path, model([FLAT], [1, "width"]))


def test_a_network_that_was_misread_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(onnx_reader.READERS, "Relu", onnx_reader.READERS["Neg"])
    with pytest.raises(InvalidInputError, match="other outputs than onnxruntime"):
        read(tmp_path, model([("Relu", None, {}), FLAT], IMAGE))


def test_without_onnxruntime_nothing_is_compared(tmp_path, monkeypatch):
    find = onnx_reader.importlib.util.find_spec
    monkeypatch.setattr(onnx_reader.importlib.util, "find_spec", lambda name: name != "onnxruntime" and find(name))
    found = read(tmp_path, model([FLAT], IMAGE))
    assert found.onnxruntime_outputs(normal(1, 60)) is None
    assert onnx.__version__
