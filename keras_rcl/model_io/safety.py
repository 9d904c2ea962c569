"""Whether a model may be loaded: what its files say that they would run, checked before any of it runs.

A TensorFlow graph is a program, and so is the configuration of a `.keras` file. What is let through is known to compute
and to do nothing else; all else is refused, known to be harmful or not. `docs/security.md` says what that promises.
"""

import json
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from keras_rcl.errors import InvalidInputError

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
