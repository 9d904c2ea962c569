"""Gradient functions that live as long as the graph or the model that they belong to.

TensorFlow registers the gradient function of each `tf.custom_gradient` that it traces, and of each custom gradient that
it loads, under a new name in a table that only grows. A gradient function refers to its graph, so every traced graph
would stay in memory until the process ends. Here the graph, or the loaded model, holds its gradient functions; the
table refers to them weakly, and a name leaves the table with its function.
"""

import functools
import re
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.framework import ops

_TABLE: dict[str, dict[str, Any]] = ops.gradient_registry._registry
"""Name -> `type`, the gradient function, and `location`, the frame that registered it."""


class _Weak:
    """A gradient function that is not kept alive."""

    def __init__(self, function: Callable, name: str):
        self._function = weakref.ref(function, lambda _: _TABLE.pop(name, None))

    def __call__(self, *args):
        function = self._function()
        if function is None:
            raise LookupError("the graph of this gradient function is gone")
        return function(*args)


def operation_without_gradient(error: LookupError) -> str | None:
    """The type of the operation that TensorFlow found no gradient of, such as ResizeArea; None for other errors."""
    found = re.search(r"(?:op type|registry has no entry for): (\w+)", str(error))
    return found and found[1]


def without_tapes(function: Callable, *args: Any) -> Any:
    """Call a traced function that no gradient flows through: a tape around the call would trace its gradient as well.

    Args:
        function: A concrete function.
        *args: The arguments.

    Returns:
        What the function returns.
    """
    with record.stop_recording():
        return function(*args)


def custom_gradient(function: Callable) -> Callable:
    """`tf.custom_gradient`, with gradient functions that live as long as the graph in which the function is traced.

    Args:
        function: Tensors -> the result and its gradient function.

    Returns:
        Tensors -> the result.
    """
    decorated = tf.custom_gradient(function)

    @functools.wraps(function)
    def call(*tensors):
        if tf.executing_eagerly():
            return decorated(*tensors)
        return registering(decorated, *tensors, owner=tf.compat.v1.get_default_graph())

    return call


def registering(function: Callable, *args: Any, owner: Any = None) -> Any:
    """Call a function; the gradient functions that it registers live as long as an owner.

    Args:
        function: Called with `args`.
        *args: The arguments.
        owner: An object with attributes, such as a graph. None: what the function returns.

    Returns:
        What the function returns.
    """
    before = set(_TABLE)
    result = function(*args)
    for name in set(_TABLE) - before:
        entry = _TABLE[name]
        if not isinstance(entry["type"], _Weak):
            _hold(result if owner is None else owner, entry["type"])
            entry["type"] = _Weak(entry["type"], name)
    return result


class _Held:
    """The gradient functions of an owner; of a class of its own, so that a trackable owner does not wrap it."""

    def __init__(self):
        self.functions: list[Callable] = []


def _hold(owner: Any, function: Callable) -> None:
    """Keep a gradient function alive as long as its owner."""
    held = getattr(owner, "_gradient_functions", None)
    if held is None:
        held = _Held()
        setattr(owner, "_gradient_functions", held)  # noqa: B010  graphs and functions declare no such attribute
    held.functions.append(function)
