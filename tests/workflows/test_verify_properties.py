"""`verify --onnx` and `verify --instances`: answers in closed form, witnesses, time-outs, resuming, real instances."""

import csv
import gzip
import itertools
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import keras_rcl
from keras_rcl.cli.app import cli
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation import property_search
from keras_rcl.workflows import verify_properties


def run(*arguments):
    before = signal.getsignal(signal.SIGTERM)
    try:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)


def dense_network(layers, size, activation="Relu"):
    """x -> layers of (kernel [F, G], bias [G]), an activation between two."""
    nodes, tensors, last = [], [], "x"
    for number, (kernel, bias) in enumerate(layers):
        for name, value in ((f"w{number}", kernel), (f"b{number}", bias)):
            tensors.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        nodes.append(helper.make_node("Gemm", [last, f"w{number}", f"b{number}"], [f"z{number}"], name=f"gemm{number}"))
        last = f"z{number}"
        if number + 1 < len(layers):
            nodes.append(helper.make_node(activation, [last], [f"a{number}"], name=f"activation{number}"))
            last = f"a{number}"
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, np.shape(layers[-1][1])[0]])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def total_network(size):
    """Y_0 = sum |x_i| and Y_1 = x_0, by ReLUs."""
    both = np.concatenate([np.eye(size), -np.eye(size)], axis=1)
    last = np.ones((2 * size, 2))
    last[:, 1] = 0
    last[0, 1], last[size, 1] = 1, -1
    return dense_network([(both, np.zeros(2 * size)), (last, np.zeros(2))], size)


def declared(inputs, outputs=2):
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{i}" for i in range(outputs)]
    return "".join(f"(declare-const {name} Real)\n" for name in names)


def box(*bounds):
    return "".join(f"(assert (<= {low} X_{i} {high}))\n" for i, (low, high) in enumerate(bounds))


SIZES = {"few": 3, "many": 30}
"""Networks whose inputs are split, and whose ReLUs are."""

QUESTIONS = {
    # The sum of |x_i| over the box: of the inputs after x_0, whose boxes are points, it is 0.25 each.
    "sat": ("(assert (>= Y_0 {rest} )) (assert (>= Y_1 0.5))", "sat"),
    "unsat": ("(assert (<= Y_0 {below}))", "unsat"),
    "more_than_possible": ("(assert (>= Y_0 {above}))", "unsat"),
    # Y_0 = |x_0| + rest, so that Y_0 - Y_1 <= rest - 0.5 has no solution, and neither has the pair below.
    "a_conjunction_that_no_row_alone_refutes": ("(assert (<= Y_0 {quarter})) (assert (>= Y_1 0.5))", "unsat"),
    "a_conjunction": ("(assert (<= Y_0 {three_quarters})) (assert (<= 0.5 Y_1))", "sat"),
    "a_disjunction": ("(assert (or (and (<= Y_0 {below})) (and (<= Y_1 -2)) (and (<= Y_1 -0.75))))", "sat"),
    "no_case": ("(assert (or (and (<= Y_0 {below})) (and (<= Y_1 -2)) (and (>= Y_1 2))))", "unsat"),
    "contradictory": ("(assert (<= Y_0 0)) (assert (>= Y_0 1))", "unsat"),
    "always_true": ("(assert (<= Y_0 Y_0))", "sat"),
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    for name, size in SIZES.items():
        (folder / f"{name}.onnx").write_bytes(total_network(size))
    return folder


@pytest.fixture(scope="module")
def decide():
    """One set of traced functions for all tests."""
    return verify_properties.verifier_of_properties(float64=False, seed=0)


@pytest.mark.parametrize(
    ("name", "question"),
    [*(("few", question) for question in QUESTIONS), *(("many", question) for question in list(QUESTIONS)[:5])],
)
def test_answers_are_those_of_the_closed_form(networks, decide, tmp_path, name, question):
    """sum |x_i| over x_0 in [-1, 1] and |x_i| <= 0.01 around 0.25."""
    size = SIZES[name]
    rest, slack = 0.25 * (size - 1), 0.01 * (size - 1)
    sums = {"rest": rest + 0.5, "below": rest - slack - 0.01, "above": rest + slack + 1.01}
    sums |= {"quarter": rest - slack + 0.25, "three_quarters": rest + 0.75}
    text, expected = QUESTIONS[question]
    path = tmp_path / "a.vnnlib"
    path.write_text(declared(size) + box((-1, 1), *[(0.24, 0.26)] * (size - 1)) + text.format(**sums))
    found = decide(networks / f"{name}.onnx", path, 60)
    assert found.answer == expected
    if expected == "sat":
        assert -1 <= found.inputs[0] <= 1 and (0.24 <= found.inputs[1:]).all() and (found.inputs[1:] <= 0.26).all()
        np.testing.assert_allclose(found.outputs, [np.abs(found.inputs).sum(), found.inputs[0]], atol=1e-12)


def test_several_boxes_and_boxes_of_one_point(networks, decide, tmp_path):
    """A point decides by its own value; float32 does not have 0.1, and the witness is in the box."""
    path, cases = tmp_path / "a.vnnlib", "(assert (or (and {}) (and {})))"
    point = " ".join(f"(= X_{i} {value})" for i, value in enumerate(("-0.5", "0.1", "0.1")))
    other = "(<= 0 X_0 0.25) (= X_1 0) (= X_2 0)"
    for bound, answer in (("0.71", "unsat"), ("0.69", "sat")):
        path.write_text(declared(3) + cases.format(point, other) + f"(assert (>= Y_0 {bound}))")
        found = decide(networks / "few.onnx", path, 60)
        assert found.answer == answer
    np.testing.assert_array_equal(found.inputs, [-0.5, 0.1, 0.1])
    path.write_text(declared(3) + cases.format(point, other) + "(assert (<= Y_0 0.125))")
    assert decide(networks / "few.onnx", path, 60).inputs[0] <= 0.125
    path.write_text(declared(3) + box((1, 0), (0, 1), (0, 1)))
    assert decide(networks / "few.onnx", path, 60).answer == "unsat", "an empty box holds no witness"


def test_strict_constraints_need_more_than_the_border(networks, decide, tmp_path):
    path = tmp_path / "a.vnnlib"
    for operator, answer in (("<=", "sat"), ("<", "timeout")):  # the minimum, 0, is at one point
        path.write_text(declared(3) + box((0, 1), (0, 0), (0, 0)) + f"(assert ({operator} Y_0 0))")
        assert decide(networks / "few.onnx", path, 1).answer == answer


def test_a_time_limit_ends_the_search(networks, decide, tmp_path):
    path = tmp_path / "a.vnnlib"
    path.write_text(declared(3) + box(*[(-1, 1)] * 3) + "(assert (< Y_0 0))")  # no bound is above 0, and no witness is
    started = time.monotonic()
    assert decide(networks / "few.onnx", path, 0.5).answer == "timeout"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("size", [30, pytest.param(3, marks=pytest.mark.slow)])
def test_a_network_of_sigmoids_has_the_answers_of_its_closed_form(decide, tmp_path, size):
    """Y_0 is the sum of sigmoid(2 x_i - 1), least where all inputs are."""
    network, path = tmp_path / "curves.onnx", tmp_path / "a.vnnlib"
    layers = [(2 * np.eye(size), -np.ones(size)), (np.ones((size, 2)), np.zeros(2))]
    network.write_bytes(dense_network(layers, size, "Sigmoid"))
    least = size / (1 + np.exp(1 - 2 * 0.2))
    for bound, answer in ((least - 1e-3, "unsat"), (least + 1e-3, "sat")):
        path.write_text(declared(size) + box(*[(0.2, 0.9)] * size) + f"(assert (<= Y_0 {bound:.6f}))")
        found = decide(network, path, 60)
        assert found.answer == answer
    np.testing.assert_allclose(found.outputs, 2 * [(1 / (1 + np.exp(1 - 2 * found.inputs))).sum()])


def random_layers(seed, size=4):
    rng = np.random.default_rng(seed)
    widths = (size, 6, 6, 3)
    return [(rng.normal(size=pair), rng.normal(size=pair[1])) for pair in itertools.pairwise(widths)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "splitting", "count", "thresholds"),
    [
        ("Relu", "inputs", 3, ((0.0, -0.3), (0.0, -0.01), (0.001, 0.0), (0.05, 0.0))),
        ("Relu", "relus", 1, ((0.0, -0.3), (0.001, 0.0))),
        ("Tanh", "inputs", 3, ((0.0, -0.3), (0.0, -0.05), (0.001, 0.0), (0.05, 0.0))),
        ("Tanh", "relus", 1, ((0.0, -3.0), (0.001, 0.0))),
    ],
)
def test_no_answer_is_wrong_on_random_networks(tmp_path, monkeypatch, activation, splitting, count, thresholds):
    """Thresholds between the least value of many points and below: a witness is one, and `unsat` has no such point."""
    if splitting == "relus":
        monkeypatch.setattr(property_search, "MAX_SPLIT_INPUTS", 0)
    decide, answers = verify_properties.verifier_of_properties(float64=False, seed=0), []
    for seed in range(count):
        layers, rng = random_layers(seed), np.random.default_rng(seed)
        network = tmp_path / f"{seed}.onnx"
        network.write_bytes(dense_network(layers, 4, activation))
        points = rng.uniform(-1, 1, (20000, 4))
        values = points
        for number, (kernel, bias) in enumerate(layers):
            values = values @ kernel.astype(np.float32).astype(float) + bias.astype(np.float32).astype(float)
            values = {"Relu": np.maximum(values, 0), "Tanh": np.tanh(values)}[activation] if number < 2 else values
        pair = values[:, 0] - values[:, 1], values[:, 2]
        for quantile, gap in thresholds:
            a, b = (np.quantile(v, quantile) + gap for v in pair)
            text = f"(assert (or (and (<= (- Y_0 Y_1) {a:.6f}) (<= Y_2 {np.median(pair[1]):.6f})) (<= Y_2 {b:.6f})))"
            (tmp_path / "a.vnnlib").write_text(declared(4, 3) + box(*[(-1, 1)] * 4) + text)
            found = decide(network, tmp_path / "a.vnnlib", 100)
            there = ((pair[0] <= a - 1e-6) & (pair[1] <= np.median(pair[1]) - 1e-6)) | (pair[1] <= b - 1e-6)
            assert found.answer != "unsat" or not there.any()
            assert found.answer == "sat" or not there.any(), "a point that 20,000 random ones hold is found"
            answers.append(found.answer)
    assert answers.count("unsat") and answers.count("sat") >= count and "timeout" not in answers


@pytest.fixture
def folder(networks, tmp_path, monkeypatch):
    """An instances file with three answers, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.onnx.gz").write_bytes(gzip.compress((networks / "few.onnx").read_bytes()))
    (tmp_path / "sat.vnnlib").write_text(declared(3) + box(*[(-1, 1)] * 3) + "(assert (>= Y_0 2.5))")
    (tmp_path / "unsat.vnnlib.gz").write_bytes(
        gzip.compress((declared(3) + box(*[(-1, 1)] * 3) + "(assert (>= Y_0 3.5))").encode())
    )
    (tmp_path / "open.vnnlib").write_text(declared(3) + box(*[(-1, 1)] * 3) + "(assert (< Y_0 0))")
    (tmp_path / "all_instances.csv").write_text(
        "few.onnx.gz,sat.vnnlib,60\nfew.onnx.gz,unsat.vnnlib.gz,60.0\nfew.onnx.gz,open.vnnlib,0.1\n"
    )
    return tmp_path


def test_one_property_on_the_command_line(folder):
    result = run("verify", "--onnx", "few.onnx.gz", "--vnnlib", "sat.vnnlib")
    assert result.exit_code == 0, result.output
    first, *witness = result.stdout.splitlines()
    assert first == "sat" and witness[0].startswith("((X_0 ") and witness[-1].endswith("))") and len(witness) == 5
    values = [float(line.strip("()").split()[1]) for line in witness]
    served = onnxruntime.InferenceSession(gzip.decompress((folder / "few.onnx.gz").read_bytes())).run(
        None, {"x": np.float32([values[:3]])}
    )[0][0]
    assert served[0] >= 2.5 and np.abs(values[:3]).max() <= 1
    np.testing.assert_allclose(values[3:], served, atol=1e-5)
    result = run("verify", "--onnx", "few.onnx.gz", "--vnnlib", "unsat.vnnlib.gz", "--json")
    assert json.loads(result.stdout)["answer"] == "unsat"
    assert not list(folder.glob("verifications")), "one property writes no file"


def test_an_instances_file_resumes_and_is_written(folder, monkeypatch):
    decided, real = [], verify_properties.read_vnnlib

    def interrupted(path):
        decided.append(path.name)
        if len(decided) == 2:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(verify_properties, "read_vnnlib", interrupted)
    assert run("verify", "--instances", "all_instances.csv").exit_code == 130
    result = run("verify", "--instances", "all_instances.csv")
    assert result.exit_code == 0, result.output
    assert decided == ["sat.vnnlib", "unsat.vnnlib.gz", "unsat.vnnlib.gz", "open.vnnlib"], "the first was not repeated"
    assert "1 sat, 1 unsat, 1 timeout" in result.stdout and "resuming" in result.stderr
    written = folder / "verifications" / "all_instances"
    rows = list(csv.reader((written / "results.csv").read_text().splitlines()))
    assert [(row[0], row[2], row[4]) for row in rows] == [
        ("all", "sat.vnnlib", "sat"),
        ("all", "unsat.vnnlib.gz", "unsat"),
        ("all", "open.vnnlib", "timeout"),
    ]
    assert (written / "witnesses" / "0.txt").read_text().startswith("sat\n((X_0 ")
    record = json.loads((written / "record.json").read_text())
    assert record["counts"] == {"sat": 1, "unsat": 1, "timeout": 1} and len(record["instances"][0]["inputs"]) == 3
    assert sorted(os.listdir(folder / "verifications")) == ["all_instances"]


def test_what_cannot_be_used_is_one_line(folder):
    wrong = declared(2) + box((0, 1), (0, 1)) + "(assert (<= Y_0 0))"
    (folder / "wrong.vnnlib").write_text(wrong)
    (folder / "missing.csv").write_text("few.onnx.gz,nowhere.vnnlib,60\n")
    (folder / "words.csv").write_text("few.onnx.gz,sat.vnnlib,soon\n")
    (folder / "nothing.csv").write_text("\n")
    pair = ("--onnx", "few.onnx.gz", "--vnnlib")
    for arguments, said in (
        ((*pair, "wrong.vnnlib"), "2 inputs and 2 outputs"),
        ((*pair, "nowhere.vnnlib"), "nowhere.vnnlib: No such file"),
        ((*pair, "few.onnx.gz"), "few.onnx.gz"),
        ((*pair[:2],), "give one of"),
        ((*pair, "sat.vnnlib", "--instances", "all_instances.csv"), "give one of"),
        ((), "give one of"),
        ((*pair, "sat.vnnlib", "--epsilon", "1/255"), "--epsilon has no effect"),
        ((*pair, "sat.vnnlib", "--dataset", "digits"), "--dataset has no effect"),
        ((*pair, "sat.vnnlib", "--output-dir", "x"), "--output-dir has no effect"),
        (("--instances", "missing.csv"), "nowhere.vnnlib"),
        (("--instances", "words.csv"), "line 1"),
        (("--instances", "nothing.csv"), "holds no instance"),
    ):
        result = run("verify", *arguments)
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 2 and said in line and result.stdout == "", (arguments, result.output)


def test_a_witness_that_onnxruntime_does_not_confirm_is_not_one(networks, monkeypatch, tmp_path):
    """The check is of both; an answer `sat` needs an input on which they agree."""
    monkeypatch.setattr(
        verify_properties.OnnxNetwork, "onnxruntime_outputs", lambda self, values: np.array([[-9.0, 0.0]])
    )
    network = verify_properties.read_onnx
    monkeypatch.setattr("keras_rcl.model_io.onnx_reader._compare", lambda network: None)
    (tmp_path / "a.vnnlib").write_text(declared(3) + box(*[(-1, 1)] * 3) + "(assert (>= Y_0 2.5))")
    found, asked = network(networks / "few.onnx"), verify_properties.read_vnnlib(tmp_path / "a.vnnlib")
    assert verify_properties.witness_check(found, asked)(np.ones(3)) is None


@pytest.mark.slow
def test_python_calls(folder):
    assert keras_rcl.verify_property("few.onnx.gz", "sat.vnnlib", timeout=60).answer == "sat"
    with pytest.raises(InvalidInputError, match="already exists"):
        keras_rcl.verify_instances("all_instances.csv", output_dir=folder)


REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "vnncomp2021"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the instances of VNN-COMP 2021 are absent")
@pytest.mark.parametrize(
    ("category", "network", "name", "answer"),
    [
        ("acasxu", "ACASXU_run2a_1_1_batch_2000.onnx", "prop_1.vnnlib", "unsat"),
        ("acasxu", "ACASXU_run2a_1_3_batch_2000.onnx", "prop_2.vnnlib", "sat"),
        ("acasxu", "ACASXU_run2a_2_9_batch_2000.onnx", "prop_8.vnnlib", "sat"),
    ],
)
def test_published_answers(category, network, name, answer):
    """Seven tools agree on them."""
    folder = REAL / category
    assert keras_rcl.verify_property(folder / network, folder / name, timeout=60).answer == answer
