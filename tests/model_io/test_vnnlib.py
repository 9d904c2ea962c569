"""ONNX computes what the network does; VNN-LIB says what robustness is; result files are read and not trusted."""

import itertools
import math
import pickle
import re
import sys
from collections import defaultdict

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from bounds.tiny_networks import IMAGE_BLOCKS, TAILS, random_images, random_network, randomize
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_rcl.errors import InvalidInputError
from keras_rcl.folding.fold import fold, least_precise_dtype
from keras_rcl.model_io import onnx as onnx_writer
from keras_rcl.model_io.onnx import onnx_network
from keras_rcl.model_io.vnnlib import Instance, read_results, vnnlib_property, write_instances
from keras_rcl.networks import build_network
from keras_rcl.vocabulary.network import Network

L = keras.layers


def run_onnx(model, images):
    """What onnxruntime computes of images [N, H, W, C]."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    if images.ndim == 4:
        images = np.stack([images[..., channel] for channel in range(images.shape[3])], axis=1)
    return session.run(["logits"], {"image": images})[0]


def same(network, images):
    expected = np.asarray(network(images, training=False))
    np.testing.assert_allclose(
        run_onnx(onnx_network(network), images), expected, atol=1e-5 * (1 + np.abs(expected).max())
    )


@pytest.mark.parametrize("block", IMAGE_BLOCKS)
def test_onnx_computes_what_the_layers_do(block):
    for seed, tail in enumerate(TAILS):
        same(random_network([block, "conv", block], tail, seed), random_images(4, seed))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("pooling", [L.MaxPooling2D, L.AveragePooling2D])
def test_pooling_at_the_border(pooling, padding):
    """Of negative values, whose maximum a zero is not; on zeros that the network itself lays around them."""
    for zeros, size, strides in itertools.product((0, ((1, 0), (0, 2))), (2, (3, 2)), (1, 2, 3)):
        image = keras.Input((7, 6, 2))
        x = L.ZeroPadding2D(zeros)(L.Rescaling(-1.0, offset=-0.5)(image))
        x = pooling(size, strides=strides, padding=padding)(x)
        network = keras.Model(image, L.Dense(3)(L.Flatten()(x)))
        same(network, random_images(2, shape=(7, 6, 2)))


def test_values_that_are_read_in_two_orders():
    """A flattened image goes to a dense layer and, in the network's order, to a sum."""
    image = keras.Input((2, 3, 2))
    flat = L.Flatten()(image)
    deep = L.Reshape((3, 2, 2))(L.Dense(12, activation="relu")(flat))
    network = keras.Model(image, L.Dense(3)(L.Add()([flat, L.Flatten()(L.Conv2D(2, 1)(deep)), L.ReLU()(flat)])))
    randomize(network, np.random.default_rng(0))
    same(network, random_images(4, shape=(2, 3, 2)))


def test_vectors():
    network = keras.Sequential([keras.Input((5,)), L.BatchNormalization(), L.ReLU(), L.Dense(3)])
    randomize(network, np.random.default_rng(0))
    same(network, np.random.default_rng(0).random((4, 5), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["strided_cnn", "preact_resnet18"])
def test_our_networks_are_plain_operators(encoder):
    network = build_network(Network(encoder=encoder), (8, 8, 3), 4, mean=[0.4, 0.5, 0.6], std=[0.1, 0.2, 0.3])
    model, images = onnx_network(network), random_images(3, shape=(8, 8, 3))
    expected = np.asarray(network(images, training=False)["logits"])
    np.testing.assert_allclose(run_onnx(model, images), expected, atol=1e-5 * (1 + np.abs(expected).max()))
    plain = {"Conv", "Relu", "Gemm", "Flatten"}
    residual = plain | {"Add", "GlobalAveragePool"}
    assert {node.op_type for node in model.graph.node} == (plain if encoder == "strided_cnn" else residual)
    (value,) = model.graph.input
    assert [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim] == ["N", 3, 8, 8]


def test_what_differs_is_not_exported(monkeypatch):
    right, wrong = (random_network(["conv"], seed=seed) for seed in (0, 1))
    monkeypatch.setattr(onnx_writer, "fold", lambda network, dtype: fold(wrong, dtype=dtype))
    with pytest.raises(RuntimeError, match="logits differ by .* not exported"):
        onnx_network(right)


def test_what_cannot_be_exported_is_refused(monkeypatch):
    with pytest.raises(InvalidInputError, match="layer odd .*has no bounds"):
        onnx_network(keras.Sequential([keras.Input((4,)), L.Dense(2), L.Softmax(name="odd")]))
    with pytest.raises(InvalidInputError, match=r"\(None, None, 1\).*fix it"):
        onnx_network(keras.Sequential([keras.Input((None, None, 1)), L.GlobalAveragePooling2D()]))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InvalidInputError, match="pip install onnx"):
        onnx_network(random_network(["conv"]))


def expressions(text):
    """VNN-LIB text as nested lists: an own reader of the format, by its grammar alone."""
    stack = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    assert len(stack) == 1, "parentheses do not match"
    return stack[0]


def holds(expression, values):
    """Whether a formula is true of the variables' values."""
    operator, *operands = expression
    if operator in ("and", "or"):
        return (all if operator == "and" else any)(holds(operand, values) for operand in operands)
    first, second = (values[operand] if operand in values else float(operand) for operand in operands)
    return {"<=": first <= second, ">=": first >= second}[operator]


def variables(image, logits):
    """X channels first, Y."""
    height, width, channels = image.shape
    order = itertools.product(range(channels), range(height), range(width))
    values = {f"X_{i}": float(image[h, w, c]) for i, (c, h, w) in enumerate(order)}
    return values | {f"Y_{j}": float(value) for j, value in enumerate(logits)}


@settings(max_examples=60)
@given(st.data(), st.integers(0, 2**31), st.sampled_from([0.0, 1 / 255, 8 / 255, 0.3, 1.0]), st.integers(2, 4))
def test_a_property_is_the_negation_of_robustness(data, seed, epsilon, num_classes):
    image = random_images(1, seed, shape=(2, 3, 2))[0]
    label = data.draw(st.integers(0, num_classes - 1))
    statements = expressions(vnnlib_property(image, label, epsilon, num_classes))
    declared = [statement[1] for statement in statements if statement[0] == "declare-const"]
    assert declared == [f"X_{i}" for i in range(12)] + [f"Y_{j}" for j in range(num_classes)]
    *box, counterexample = [statement[1] for statement in statements if statement[0] == "assert"]
    assert counterexample[0] == "or" and all(clause[0] == "and" for clause in counterexample[1:])

    rng = np.random.default_rng(seed)
    low, high = np.maximum(0, image.astype(float) - epsilon), np.minimum(1, image.astype(float) + epsilon)
    logits = rng.integers(-2, 3, num_classes)  # ties among them
    inside = variables(low + (high - low) * rng.random(image.shape), logits)
    assert all(holds(formula, inside) for formula in box)
    assert holds(counterexample, inside) == any(logits[j] >= logits[label] for j in range(num_classes) if j != label)
    for sign, edge in ((-1, low), (1, high)):
        outside = edge.copy()
        outside.flat[rng.integers(12)] += sign * 1e-9
        assert not all(holds(formula, variables(outside, logits)) for formula in box)


def test_the_folder_that_alpha_beta_crown_takes(tmp_path):
    network, images = random_network(["conv"]), random_images(2)
    instances = [Instance(images[i], i, epsilon, 7 + i) for epsilon in (1 / 255, 0.01) for i in (0, 1)]
    write_instances(tmp_path, onnx_network(network), instances, 180)
    lines = [line.split(",") for line in (tmp_path / "instances.csv").read_text().splitlines()]
    assert [line[1:] for line in lines] == [
        ["vnnlib/image7_epsilon1_255.vnnlib", "180"],
        ["vnnlib/image8_epsilon1_255.vnnlib", "180"],
        ["vnnlib/image7_epsilon0.01.vnnlib", "180"],
        ["vnnlib/image8_epsilon0.01.vnnlib", "180"],
    ]
    model = onnx.load(tmp_path / lines[0][0])
    assert run_onnx(model, images).shape == (2, 3)
    assert (tmp_path / lines[3][1]).read_text() == vnnlib_property(images[1], 1, 0.01, 3)
    settings = yaml.safe_load((tmp_path / "abcrown.yaml").read_text())
    assert settings["general"]["csv_name"] == "instances.csv" and settings["general"]["results_file"] == "results.pkl"
    assert settings["model"]["input_shape"] == [-1, 2, 6, 5] and settings["data"]["num_outputs"] == 3


def result_file(path, results, **more):
    """As alpha-beta-CROWN writes it: statuses and seconds, and other things."""
    summary = defaultdict(list, {"safe": [0]})
    path.write_bytes(
        pickle.dumps({"summary": summary, "results": results, "bab_ret": [[0, -0.5, 12, 3.2, [1]]], **more})
    )
    return path


def test_results_are_read_in_our_words(tmp_path):
    said = {
        "safe": "safe",
        "safe-mip": "safe",
        "safe-incomplete": "safe-incomplete",
        "unsafe-pgd": "unsafe",
        "unsafe-bab": "unsafe",
        "unknown": "timeout",
        "safe (timed out)": "timeout",
        "unsafe-bab (timed out)": "timeout",
    }
    path = result_file(tmp_path / "results.pkl", [[word, 1.5 + i] for i, word in enumerate(said)], bound=np.float32(2))
    assert read_results(path) == [(ours, 1.5 + i) for i, ours in enumerate(said.values())]


class Trap:
    def __reduce__(self):
        return open, (self.path, "w")

    def __init__(self, path):
        self.path = str(path)


def test_a_result_file_runs_nothing(tmp_path):
    path = result_file(tmp_path / "results.pkl", [["safe", 1.0]], trap=Trap(tmp_path / "sprung"))
    assert read_results(path) == [("safe", 1.0)]
    assert not (tmp_path / "sprung").exists()
    with path.open("rb") as file:
        pickle.load(file)["trap"].close()
    assert (tmp_path / "sprung").exists(), "the trap is one"


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "not a result file.*EOFError"),
        (b"onnx,vnnlib\n", "not a result file"),
        (pickle.dumps({"results": [["solved", 1.0]]}), "'solved'.*alpha-beta-CROWN does not write"),
        (pickle.dumps({"results": [[3, 1.0]]}), "result 3"),
        (pickle.dumps({"summary": {}}), "not a result file"),
        (pickle.dumps({"results": [["safe", math.nan, 1]]}), "not a result file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, what):
    path = tmp_path / "results.pkl"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=what) as refusal:
        read_results(path)
    assert str(path) in str(refusal.value)


def test_a_missing_result_file(tmp_path):
    with pytest.raises(InvalidInputError, match="abcrown.yaml says"):
        read_results(tmp_path / "results.pkl")


@pytest.mark.parametrize(("policy", "dtype"), [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")])
def test_a_network_in_half_precision_is_written_with_its_own_weights(policy, dtype):
    layers = [keras.layers.Conv2D(4, 3, activation="relu", dtype=policy), keras.layers.Flatten(dtype=policy)]
    network = keras.Sequential([keras.Input((6, 6, 1)), *layers, keras.layers.Dense(3, dtype=policy)])
    assert least_precise_dtype(network) == dtype
    written = onnx_network(network)
    twin = keras.models.clone_model(
        network, clone_function=lambda layer: type(layer).from_config({**layer.get_config(), "dtype": "float32"})
    )
    twin.set_weights(network.get_weights())
    expected = onnx_network(twin)
    assert [c.raw_data for c in written.graph.initializer] == [c.raw_data for c in expected.graph.initializer]
    assert [node.op_type for node in written.graph.node] == [node.op_type for node in expected.graph.node]
