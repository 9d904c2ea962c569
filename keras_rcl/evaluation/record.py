"""The result record: one JSON a claim, with all that it takes to check it."""

import importlib.metadata
import platform
import shlex
import sys
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from keras_rcl.evaluation.robustness import Survival
from keras_rcl.vocabulary.attack import Attack

FORMAT = 1
PACKAGES = ("keras_rcl", "tensorflow", "keras", "numpy", "tensorflow-datasets", "keras-cv")
_ATTACKS = TypeAdapter(tuple[Attack, ...])


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def command_line() -> str:
    """The command that is running, as it would be typed."""
    program = "python cli.py" if not sys.argv[0].endswith("keras-rcl") else "keras-rcl"
    return shlex.join([*program.split(), *sys.argv[1:]])


def make_record(survival: Survival, *, model: dict[str, Any], data: dict[str, Any], seed: int) -> dict[str, Any]:
    """A record of one evaluation.

    Args:
        survival: what was measured.
        model: name, hash, and whatever else names the model.
        data: data set, part, and `indices`, the positions of the N images in the data set's own split.
        seed: of the attacks.

    Returns:
        JSON values. Per-image outcomes are strings of N digits, 1 for right: `clean`, and one an attack.
    """
    return {
        "format": FORMAT,
        "command": command_line(),
        "protocol": ", ".join(dict.fromkeys(attack.protocol for attack in survival.attacks)) or "pixel",
        "model": model,
        "data": {**data, "indices": _ranges(np.asarray(data["indices"]))},
        "images": len(survival.labels),
        "seed": seed,
        "attacks": _ATTACKS.dump_python(survival.attacks, mode="json"),
        "clean_accuracy": survival.clean_accuracy,
        "rows": survival.rows(),
        "survival": {"clean": _bits(survival.clean), "attacks": [_bits(row) for row in survival.survived]},
        "versions": versions(),
    }


def _bits(outcomes: np.ndarray) -> str:
    return "".join("1" if outcome else "0" for outcome in outcomes)


def _ranges(indices: np.ndarray) -> list[list[int]]:
    """[3, 4, 5, 9] -> [[3, 5], [9, 9]]: runs of consecutive indices, first and last, in order."""
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [[int(run[0]), int(run[-1])] for run in np.split(indices, breaks) if len(run)]
