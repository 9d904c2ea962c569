"""VNN-LIB files as conditions: what another tool asks about a network.

A file declares inputs X_0, X_1, ... and outputs Y_0, Y_1, ..., and asserts linear constraints joined by `and` and `or`.
All assertions are brought into a disjunction of conditions, each a box of inputs and a conjunction of constraints of
outputs. Numbers are the nearest float64 values. The package `vnnlib` of PyPI reads the language's version 2.0 alone;
the files of the competitions of 2021 to 2024 are of version 1.0, which is read here.

Source: Demarchi et al. 2023, "Supporting standardization of neural networks verification with VNNLIB and CoCoNet".
"""

import gzip
import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linprog

from keras_rcl.bounds.properties import Condition
from keras_rcl.errors import InvalidInputError

MAX_CONDITIONS = 100_000
"""The largest number of conditions of one file."""

_TOKEN = re.compile(r"[()]|[^\s()]+")
_COMMENT = re.compile(r";[^\n]*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NAME = re.compile(r"([XY])_(\d+)")
_IGNORED = ("set-logic", "set-info", "set-option", "check-sat", "get-model", "exit")

Linear = dict[str, float]
"""Coefficients by name; the constant is that of the empty name."""


@dataclass(frozen=True, eq=False)
class Property:
    """What a file asks: whether one of its conditions can be satisfied.

    Attributes:
        path: the file.
        num_inputs: the number of declared inputs.
        num_outputs: the number of declared outputs.
        conditions: their boxes are [num_inputs]. None that is contradictory in itself.
    """

    path: Path
    num_inputs: int
    num_outputs: int
    conditions: list[Condition]


@dataclass(frozen=True)
class _Constraint:
    """terms <= 0, or < 0."""

    terms: Linear
    strict: bool


class _Unread(Exception):
    """Why a file cannot be read."""


def read_vnnlib(path: str | Path) -> Property:
    """Read a VNN-LIB file of version 1.0, as of VNN-COMP 2021 to 2024.

    Args:
        path: a `.vnnlib` file, or a `.vnnlib.gz` file.

    Raises:
        InvalidInputError: If something in it cannot be read: the message says what.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return _parsed(path, content.decode("utf-8"))
    except _Unread as error:
        raise InvalidInputError(f"{path}: {error}") from None
    except RecursionError:
        raise InvalidInputError(f"{path}: its terms are nested too deeply; hint: write them flat") from None
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise InvalidInputError(f"{path} is not a VNN-LIB file: {error}") from None


def _parsed(path: Path, text: str) -> Property:
    declared, assertions = [], []
    for command in _expressions(text):
        name, *arguments = command if isinstance(command, list) and command else [command]
        if name in ("declare-const", "declare-fun"):
            kind = arguments[1:] if name == "declare-const" else arguments[2:]
            if kind != ["Real"] or (name == "declare-fun" and arguments[1]):
                raise _Unread(f"declares {_shown(command)}; constants of the sort Real are read")
            if not isinstance(arguments[0], str) or not _NAME.fullmatch(arguments[0]):
                raise _Unread(f"declares {_shown(arguments[0])}; X_0, X_1, ... and Y_0, Y_1, ... are read")
            declared.append(arguments[0])
        elif name == "assert" and len(arguments) == 1:
            assertions.append(arguments[0])
        elif name not in _IGNORED:
            hint = "; VNN-LIB 1.0 is read" if name in ("vnnlib-version", "declare-network") else ""
            raise _Unread(f"has the command {_shown(command)}, which is not supported{hint}")
    sizes = [_count(declared, letter) for letter in "XY"]
    alternatives = _Formulas(set(declared)).conjunctions(["and", *assertions])
    conditions = [_condition(constraints, *sizes) for constraints in alternatives]
    return Property(path, *sizes, [condition for condition in conditions if condition is not None])


def _expressions(text: str) -> Iterator[Any]:
    """The s-expressions of a text: lists of lists and words."""
    open_lists: list[list] = []
    for token in _TOKEN.findall(_COMMENT.sub("", text)):
        if token == "(":
            open_lists.append([])
        elif token == ")":
            if not open_lists:
                raise _Unread("has a ')' without a '('")
            done = open_lists.pop()
            if open_lists:
                open_lists[-1].append(done)
            else:
                yield done
        elif open_lists:
            open_lists[-1].append(token)
        else:
            raise _Unread(f"has {token!r} outside of parentheses")
    if open_lists:
        raise _Unread("ends within a '('")


def _count(declared: list[str], letter: str) -> int:
    """The number of declared inputs or outputs, whose indices are 0, 1, ..."""
    indices = sorted(int(name[2:]) for name in declared if name[0] == letter)
    if indices != list(range(len(indices))) or not indices:
        raise _Unread(f"does not declare {letter}_0, {letter}_1, ... once each, without a gap")
    return len(indices)


def _shown(expression) -> str:
    """An expression as text, shortened."""
    if isinstance(expression, list):
        text = f"({' '.join(map(_shown, expression[:6]))}{' ...' if len(expression) > 6 else ''})"
    else:
        text = str(expression)
    return text if len(text) <= 80 else f"{text[:76]} ..."


class _Formulas:
    """Formulas of declared constants as disjunctions of conjunctions."""

    def __init__(self, declared: set[str]):
        self.declared = declared

    def conjunctions(self, formula) -> list[list[_Constraint]]:
        """The conjunctions of which one holds where the formula does."""
        operator, *arguments = formula if isinstance(formula, list) and formula else [formula]
        if operator == "or":
            found = [conjunction for argument in arguments for conjunction in self.conjunctions(argument)]
            return self.limited(len(found)) and found
        if operator == "and":
            parts = [self.conjunctions(argument) for argument in arguments]
            self.limited(math.prod(map(len, parts)))
            # What has one alternative only is joined once.
            plain = list(itertools.chain.from_iterable(part[0] for part in parts if len(part) == 1))
            others = itertools.product(*(part for part in parts if len(part) != 1))
            return [[*plain, *itertools.chain.from_iterable(chosen)] for chosen in others]
        if operator in ("<=", ">=", "<", ">", "=") and len(arguments) >= 2:
            values = [self.linear(argument) for argument in arguments]
            pairs = itertools.pairwise(values)
            return [[constraint for pair in pairs for constraint in _compared(operator, *pair)]]
        if formula == "true":
            return [[]]
        if formula == "false":
            return []
        raise _Unread(f"asserts {_shown(formula)}, which is not supported: and, or, <=, >=, <, > and = are")

    def limited(self, count: int) -> bool:
        if count > MAX_CONDITIONS:
            raise _Unread(f"has {count} cases; at most {MAX_CONDITIONS} are read")
        return True

    def linear(self, term) -> Linear:
        """A term as coefficients."""
        if isinstance(term, str):
            if _NUMBER.fullmatch(term):
                value = float(term)
                if not math.isfinite(value):
                    raise _Unread(f"has the number {term}, which is too large")
                return {"": value}
            if term in self.declared:
                return {term: 1.0}
            raise _Unread(f"has {_shown(term)}, which is not declared")
        operator, *arguments = term or [""]
        if not arguments or operator not in ("+", "-", "*", "/"):
            raise _Unread(f"has the term {_shown(term)}, which is not supported: +, -, * and / are")
        first, *others = (self.linear(argument) for argument in arguments)
        if operator == "-" and not others:
            return _times(first, -1.0)
        for other in others:
            if operator in ("+", "-"):
                first = _plus(first, other if operator == "+" else _times(other, -1.0))
            elif operator == "*" and not set(other) - {""}:
                first = _times(first, other.get("", 0.0))
            elif operator == "*" and not set(first) - {""}:
                first = _times(other, first.get("", 0.0))
            elif operator == "/" and not set(other) - {""} and other.get("", 0.0):
                first = {name: value / other[""] for name, value in first.items()}
            else:
                raise _Unread(f"has the term {_shown(term)}, which is not linear")
        return first


def _plus(first: Linear, other: Linear) -> Linear:
    return {name: first.get(name, 0.0) + other.get(name, 0.0) for name in {**first, **other}}


def _times(terms: Linear, factor: float) -> Linear:
    return {name: factor * value for name, value in terms.items()}


def _compared(operator: str, first: Linear, second: Linear) -> list[_Constraint]:
    below = _Constraint(_plus(first, _times(second, -1.0)), strict=operator in ("<", ">"))
    above = _Constraint(_times(below.terms, -1.0), below.strict)
    return {"<": [below], "<=": [below], ">": [above], ">=": [above], "=": [below, above]}[operator]


def _condition(constraints: list[_Constraint], num_inputs: int, num_outputs: int) -> Condition | None:
    """The box and the constraints of outputs of a conjunction; None where it is contradictory in itself."""
    lower, upper = np.full(num_inputs, -np.inf), np.full(num_inputs, np.inf)
    rows, offsets, strict = [], [], []
    for constraint in constraints:
        constant = constraint.terms.get("", 0.0)
        terms = {name: value for name, value in constraint.terms.items() if name and value}
        letters = {name[0] for name in terms}
        if not terms:
            if constant > 0 or (constraint.strict and constant == 0):
                return None
        elif letters == {"X"}:
            if len(terms) > 1 or constraint.strict:
                shown = " and ".join(sorted(terms)[:4])
                raise _Unread(f"constrains {shown} together, or by < or >; an input alone by <= or >= is read")
            ((name, value),) = terms.items()
            index, bound = int(name[2:]), -constant / value
            if value > 0:
                upper[index] = min(upper[index], bound)
            else:
                lower[index] = max(lower[index], bound)
        elif letters == {"Y"}:
            row = np.zeros(num_outputs)
            for name, value in terms.items():
                row[int(name[2:])] = value
            rows.append(row)
            offsets.append(constant)
            strict.append(constraint.strict)
        else:
            raise _Unread(f"constrains inputs and outputs together: {', '.join(sorted(terms)[:4])}")
    for bounds, what in ((lower, "lower"), (upper, "upper")):
        if not np.isfinite(bounds).all():
            raise _Unread(f"gives X_{int(np.argmin(np.isfinite(bounds)))} no {what} bound")
    if (lower > upper).any():
        return None
    rows = np.array(rows).reshape(-1, num_outputs)
    if _contradictory(rows, np.array(offsets, float)):
        return None
    return Condition(lower + 0.0, upper + 0.0, rows, np.array(offsets, float), np.array(strict, bool))


def _contradictory(rows: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether no y satisfies rows y + offsets <= 0, by Farkas' lemma.

    It is so where weights >= 0 exist with weights rows = 0 and weights offsets > 0. The weights come from a linear
    program, are rounded to fractions, and are checked exactly.
    """
    count = len(offsets)
    if count < 2:
        return False
    found = linprog(
        -offsets, A_eq=rows.T, b_eq=np.zeros(rows.shape[1]), A_ub=np.ones((1, count)), b_ub=[1.0], method="highs"
    )
    if not found.success or -found.fun < 1e-12:
        return False
    weights = [Fraction(max(weight, 0.0)).limit_denominator(10**6) for weight in found.x]
    columns = [[Fraction(value) for value in column] for column in (*rows.T, offsets)]
    *sums, constant = (sum(w * value for w, value in zip(weights, column, strict=True)) for column in columns)
    return not any(sums) and constant > 0
