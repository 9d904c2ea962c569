"""VNN-LIB files as conditions: what they say by hand, and a line for everything that is not read."""

import gzip
import itertools

import numpy as np
import pytest

from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.vnnlib import vnnlib_property
from keras_rcl.model_io.vnnlib_reader import read_vnnlib

DECLARED = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
BOX = "(assert (>= X_0 -1)) (assert (<= X_0 2.5e-1)) (assert (and (<= 3 X_1) (<= X_1 3)))\n"


def read(tmp_path, text, name="a.vnnlib"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return read_vnnlib(path)


@pytest.mark.parametrize("name", ["a.vnnlib", "a.vnnlib.gz"])
def test_a_box_and_a_constraint(tmp_path, name):
    text = f"; a comment ( with ) parentheses\n{DECLARED}{BOX}(assert (<= (+ Y_0 (* 2 Y_1) 4) (- Y_2 1.5)))"
    found = read(tmp_path, text, name)
    (condition,) = found.conditions
    assert (found.num_inputs, found.num_outputs) == (2, 3)
    np.testing.assert_array_equal([condition.lower, condition.upper], [[-1, 3], [0.25, 3]])
    np.testing.assert_array_equal(condition.rows, [[1, 2, -1]])
    np.testing.assert_array_equal(condition.offsets, [5.5])


def truth(text, tmp_path, x, y):
    """Whether the read file asks for these inputs and outputs."""
    return any(c.contains(np.array(x, float)) and c.holds(np.array(y, float)) for c in read(tmp_path, text).conditions)


def test_formulas_hold_where_python_says(tmp_path):
    """Boxes in a disjunction, nested formulas, equality, chains and strict constraints, on a grid of points."""
    text = (
        DECLARED
        + "(assert (or (and (<= 0 X_0 1) (= X_1 0)) (and (>= X_0 2) (<= X_0 2) (>= X_1 -1) (<= X_1 0))))"
        + "(assert (or (and (<= Y_0 Y_1) (or (>= Y_2 1) (< Y_2 Y_0))) (= Y_0 Y_1 Y_2) false))"
        + "(assert true)"
    )
    found = read(tmp_path, text)
    assert len(found.conditions) == 6
    for *x, a, b, c in itertools.product((0, 1, 2), (-1, 0), (-1, 0, 1), (-1, 0, 1), (0, 1)):
        box = (0 <= x[0] <= 1 and x[1] == 0) or (x[0] == 2 and -1 <= x[1] <= 0)
        expected = box and ((a <= b and (c >= 1 or c < a)) or a == b == c)
        said = any(k.contains(np.array(x, float)) and k.holds(np.array([a, b, c], float)) for k in found.conditions)
        assert said == expected, (x, a, b, c)


@pytest.mark.parametrize(
    "asserted",
    [
        "(>= X_0 1)",  # above the upper bound
        "(<= 2 1)",
        "(and (<= Y_0 1) (>= Y_0 2))",
        "(and (<= (+ Y_0 Y_1) 0) (>= Y_0 1) (>= (* 0.5 Y_1) 0.25))",
        "(or)",
        "false",
        "(< (- Y_0 Y_0) 0)",
    ],
)
def test_contradictions_leave_no_condition(tmp_path, asserted):
    assert read(tmp_path, f"{DECLARED}{BOX}(assert {asserted})").conditions == []


@pytest.mark.parametrize("asserted", ["true", "(<= Y_0 Y_0)", "(and)", "(or (<= Y_0 0) (<= 1 1))"])
def test_what_is_always_true_constrains_no_output(tmp_path, asserted):
    conditions = read(tmp_path, f"{DECLARED}{BOX}(assert {asserted})").conditions
    assert any(len(condition.offsets) == 0 for condition in conditions)


def test_what_is_exported_is_read_back(tmp_path):
    image = np.random.default_rng(0).random((2, 3, 2)).astype(np.float32)
    found = read(tmp_path, vnnlib_property(image, 1, 0.125, 3))
    values = np.moveaxis(image.astype(float), 2, 0).ravel()
    assert [condition.rows.tolist() for condition in found.conditions] == [[[-1, 1, 0]], [[0, 1, -1]]]
    np.testing.assert_array_equal(found.conditions[0].lower, np.maximum(values - 0.125, 0))
    np.testing.assert_array_equal(found.conditions[1].upper, np.minimum(values + 0.125, 1))


REFUSED = {
    "(assert (<= X_0 Y_0))": "inputs and outputs together",
    "(assert (<= (+ X_0 X_1) 0))": "X_0 and X_1 together",
    "(assert (< X_0 0))": "by < or >",
    "(assert (<= (* Y_0 Y_1) 0))": "not linear",
    "(assert (<= (/ 1 Y_1) 0))": "not linear",
    "(assert (not (<= Y_0 0)))": "(not (<= Y_0 0))",
    "(assert (<= (sin Y_0) 0))": "(sin Y_0)",
    "(assert (<= Y_7 0))": "Y_7, which is not declared",
    "(assert (<= Y_0 1e999))": "too large",
    "(assert (<= Y_0 0x1))": "0x1",
    "(assert (<= Y_0 0)": "ends within",
    "(assert (<= Y_0 0)))": "')' without",
    "(declare-const Z_0 Real)": "Z_0",
    "(declare-const Y_4 Real)": "without a gap",
    "(declare-const Y_3 Int)": "Real",
    "(declare-network f)": "VNN-LIB 1.0",
    "(minimize Y_0)": "minimize",
    "(assert (<= Y_0))": "(<= Y_0)",
    "Y_0": "outside of parentheses",
    "(assert (<= () Y_0))": "()",
    "()": "()",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_read_is_one_line(tmp_path, text):
    with pytest.raises(InvalidInputError) as error:
        read(tmp_path, DECLARED + BOX + text)
    assert REFUSED[text] in str(error.value) and "a.vnnlib" in str(error.value) and "\n" not in str(error.value)


def test_unbounded_inputs_and_too_many_cases(tmp_path):
    with pytest.raises(InvalidInputError, match="X_1 no lower bound"):
        read(tmp_path, f"{DECLARED}(assert (<= 0 X_0 1)) (assert (<= X_1 1))")
    many = "(assert (or (<= Y_0 0) (<= Y_1 0)))" * 40
    with pytest.raises(InvalidInputError, match="cases"):
        read(tmp_path, DECLARED + BOX + many)
    deep = "(and " * 100000 + "true" + ")" * 100000
    with pytest.raises(InvalidInputError, match="nested too deeply"):
        read(tmp_path, f"{DECLARED}(assert {deep})")
    (tmp_path / "b.vnnlib").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match="not a VNN-LIB file"):
        read_vnnlib(tmp_path / "b.vnnlib")
