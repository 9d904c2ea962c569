"""The configuration of a Keras model from elsewhere, written again with the names of an allow list only.

Keras builds whatever a configuration names. Here each name is looked up in the lists of `vocabulary.allowed_layers`,
and the mapping that is returned is made of what was found: classes under their public name, activations, and plain
values. Keys that are not needed to compute outputs, such as the loss and the optimizer, are left out unread.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import keras

from keras_rcl.vocabulary import allowed_layers

_VALUES = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__")
"""What Keras calls values that JSON has no notation for."""

_FUNCTIONAL = ("keras.src.models.functional", "Functional")
_SAME_CLASS = {
    ("keras", "Functional"): _FUNCTIONAL,
    ("keras.src.models.functional", "Functional"): _FUNCTIONAL,
    ("keras.src.models.sequential", "Sequential"): ("keras", "Sequential"),
    ("keras.src.models.model", "Model"): ("keras", "Model"),
    ("keras.models", "Sequential"): ("keras", "Sequential"),
    ("keras.models", "Model"): ("keras", "Model"),
    ("keras", "DTypePolicy"): ("keras.dtype_policies", "DTypePolicy"),
}
"""Names under which versions of Keras 3 have written a class, and the one under which it is looked up."""

_OUR_PACKAGES = ("keras_rcl", "keras_hub")
"""Packages whose own layers and models are allowed: ours if registered, those of KerasHub apart from tokenizers."""


class NotAllowedError(ValueError):
    """A configuration names something that is not on the list. Its text continues the sentence "FILE ...".

    Attributes:
        hint: What the user can do.
    """

    def __init__(
        self,
        text: str,
        hint: str = "give a SavedModel, or --skip-safety-check (in Python trust=True) if you trust whoever made it",
    ):
        super().__init__(text)
        self.hint = hint


def allowed_config(config: Any) -> dict[str, Any]:
    """Return the configuration of a model with allowed classes, functions and plain values only.

    Args:
        config: A JSON value.

    Returns:
        A configuration for `keras.saving.deserialize_keras_object`.

    Raises:
        NotAllowedError: If it names a class or a function that is not on the list, or a file.
        RecursionError: If it is nested too deeply.
    """
    if not (isinstance(config, dict) and "class_name" in config):
        raise NotAllowedError("has a configuration that names no model")
    return _object(config)


def _object(named: dict[str, Any]) -> dict[str, Any]:
    """The configuration of one object: a layer, an operation, an initializer, or the like."""
    name, module, inner = named["class_name"], named.get("module"), named.get("config")
    if name in ("Lambda", "__lambda__"):
        raise NotAllowedError("carries Python code in a Lambda layer, which is not run", "give a SavedModel")
    if name == "function":
        return _function(module, inner)
    if not isinstance(inner, dict | None):
        raise NotAllowedError(f"names {_shown(module, name)} with a configuration that is not a mapping")
    written = _class(module, name, named.get("registered_name"))
    written["config"] = _fields(inner or {}, _any_value)
    if isinstance(named.get("name"), str):
        written["name"] = _text(named["name"])
    if isinstance(named.get("shared_object_id"), int):
        written["shared_object_id"] = named["shared_object_id"]
    if isinstance(named.get("build_config"), dict):
        written["build_config"] = _fields(named["build_config"], _plain_value)
    if "inbound_nodes" in named:
        written["inbound_nodes"] = _nodes(named["inbound_nodes"])
    return written


def _nodes(nodes: Any) -> list:
    """The calls of a layer in a functional model: each on at least one tensor of the model, so that none computes."""
    if not isinstance(nodes, list) or not all(_has_tensor(node) for node in nodes):
        raise NotAllowedError("calls a layer on values that the file holds, and not on tensors of the model")
    return [_plain_value(node) for node in nodes]


def _has_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("class_name") == "__keras_tensor__" or any(map(_has_tensor, value.values()))
    return isinstance(value, list) and any(map(_has_tensor, value))


def _fields(mapping: dict, value: Callable[[Any], Any]) -> dict[str, Any]:
    """A mapping of names to values."""
    if isinstance(mapping.get("vocabulary"), str):
        raise NotAllowedError(f"reads the file {mapping['vocabulary']!r} for a vocabulary")
    return {key: value(item) for key, item in mapping.items()}


def _any_value(value: Any) -> Any:
    """A value in the configuration of an object, which may be an object."""
    if isinstance(value, dict):
        if "class_name" not in value:
            return _fields(value, _any_value)
        return _special(value) if value["class_name"] in _VALUES else _object(value)
    return [_any_value(item) for item in value] if isinstance(value, list) else _text(value)


def _plain_value(value: Any) -> Any:
    """A value of which no part is an object."""
    if isinstance(value, dict):
        return _special(value) if "class_name" in value else _fields(value, _plain_value)
    return [_plain_value(item) for item in value] if isinstance(value, list) else _text(value)


def _special(value: dict) -> dict[str, Any]:
    """A value that JSON has no notation for."""
    name = value["class_name"]
    if name not in _VALUES:
        named = value.get("config") if name == "function" else name
        raise NotAllowedError(f"names {_shown(value.get('module'), named)} where a plain value belongs")
    return {"class_name": name, "config": _plain_value(value.get("config"))}


def _text(value: Any) -> Any:
    """A number, or a text that Keras cannot take for the name of something that was registered."""
    if isinstance(value, str) and keras.saving.get_registered_object(value) is not None:
        raise NotAllowedError(f"has the text {value!r}, which is the name of a registered class or function")
    return value


def _function(module: Any, name: Any) -> dict[str, Any]:
    if module not in ("builtins", "keras.activations") or name not in _known(allowed_layers.FUNCTIONS, name):
        raise NotAllowedError(f"names the function {_shown(module, name)}, {_NOT_LISTED}")
    return {"module": "builtins", "class_name": "function", "config": name, "registered_name": name}


_NOT_LISTED = "which is not on the list of layers and functions that compute only"


def _class(module: Any, name: Any, registered: Any) -> dict[str, Any]:
    """The module, class name and registered name of an allowed class."""
    if isinstance(name, str) and (module is None or isinstance(module, str)):
        found = _SAME_CLASS.get((module, name), (module, name))
        if found == _FUNCTIONAL or _is_listed(*found):
            return {"module": found[0], "class_name": name, "registered_name": None}
        package = _package(module, registered)
        kind = _layer_of(package, module, name, registered) if package else None
        if kind is not None:
            key = keras.saving.get_registered_name(kind)
            return {
                "module": kind.__module__,
                "class_name": kind.__name__,
                "registered_name": key if ">" in key else None,
            }
    own = registered if isinstance(registered, str) and ">" in registered else _shown(module, name)
    raise NotAllowedError(f"names {own}, {_NOT_LISTED}")


def _is_listed(module: str | None, name: str) -> bool:
    """Whether a class of Keras is on the list."""
    if module == "keras.layers":
        return name in allowed_layers.LAYERS
    if module in allowed_layers.OTHER_CLASSES:
        return name in allowed_layers.OTHER_CLASSES[module]
    if module == "keras.src.ops.core":
        return name in allowed_layers.CORE_OPERATIONS
    operations = [f"keras.src.ops.{each}" for each in allowed_layers.OPERATION_MODULES]
    if module not in operations or name in allowed_layers.CALLING_OPERATIONS:
        return False
    kind = vars(importlib.import_module(module)).get(name)
    return isinstance(kind, type) and issubclass(kind, keras.Operation) and kind.__module__ == module


def _package(module: str | None, registered: Any) -> str | None:
    """The package, of those whose layers are allowed, that a class says to be from."""
    said = str(registered).partition(">")[0] if isinstance(registered, str) and ">" in registered else None
    return next((name for name in _OUR_PACKAGES if name in ((module or "").partition(".")[0], said)), None)


def _layer_of(package: str, module: str | None, name: str, registered: Any) -> type | None:
    """The layer or model that a package defines under this name, whatever the configuration says of it."""
    try:
        importlib.import_module(package)
    except ImportError:
        raise NotAllowedError(f"has layers of {package}, which is not installed") from None
    candidates = [keras.saving.get_registered_object(registered)] if isinstance(registered, str) else []
    if module in sys.modules:
        candidates.append(vars(sys.modules[module]).get(name))
    for kind in candidates:
        if isinstance(kind, type) and issubclass(kind, keras.Layer) and kind.__module__.startswith(f"{package}."):
            reads_files = any(base.__name__ == "Tokenizer" for base in kind.__mro__)
            # Ours are registered if they are meant for files; layers within a backbone of KerasHub are not registered.
            for_files = package != "keras_rcl" or ">" in keras.saving.get_registered_name(kind)
            return kind if for_files and not reads_files else None
    return None


def _known(names: frozenset[str], name: Any) -> frozenset[str]:
    """The names, or none of them for a value that is not a text."""
    return names if isinstance(name, str) else frozenset()


def _shown(module: Any, name: Any) -> str:
    """A class or function as a message names it, cut to a readable length."""
    text = f"{module}.{name}" if module else f"{name}"
    text = text.encode("unicode_escape").decode()
    return text if len(text) <= 120 else f"{text[:120]}..."
