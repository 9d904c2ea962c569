"""The result record: one JSON file per evaluation, with all that is needed to check it."""

import dataclasses
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from keras_rcl.evaluation.robustness import Survival, corruption_summary
from keras_rcl.runtime.program import program_name
from keras_rcl.storage.kinds import RECORD, stored_attacks
from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.record import Record, VerificationRecord, index_ranges, indices_in

if TYPE_CHECKING:  # which most records are not of
    from keras_rcl.evaluation.certification import Certification
    from keras_rcl.evaluation.smoothing import Smoothed

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


def commit() -> str | None:
    """The commit of the repository that the package is in; None if there is none."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def command_line() -> str:
    """The command that is running, as it would be typed."""
    return f"{program_name()} {shlex.join(sys.argv[1:])}".rstrip()


def make_record(
    survival: Survival,
    *,
    model: dict[str, Any],
    data: dict[str, Any],
    seed: int,
    sources: dict[str, str] | None = None,
    attack_dtype: str = "float32",
) -> Record:
    """A record of one evaluation.

    Args:
        survival: what was measured.
        model: name, hash, and whatever else names the model.
        data: data set, part, and `indices`, the positions of the N images in the data set's own split.
        seed: of the attacks.
        sources: the hash of each other model that an attack looks through, by its name in the attack.
        attack_dtype: what attacks on the model's own logits were computed in.

    Returns:
        JSON values. Per-image outcomes are strings of N digits, 1 for correct: `clean`, and one per attack.
    """
    rows = survival.rows()
    summary = corruption_summary(rows)
    return {
        "format": FORMAT,
        "command": command_line(),
        "protocol": ", ".join(dict.fromkeys(attack.protocol for attack in survival.attacks)) or "pixel",
        "model": model,
        "sources": sources or {},
        "data": {**data, "indices": index_ranges(np.asarray(data["indices"]))},
        "images": len(survival.labels),
        "seed": seed,
        "attack_dtype": attack_dtype,
        "attacks": _ATTACKS.dump_python(survival.attacks, mode="json"),
        "clean_accuracy": survival.clean_accuracy,
        "rows": rows,
        **({"corruptions": summary} if summary else {}),  # type: ignore[typeddict-item]
        "survival": {"clean": _bits(survival.clean), "attacks": [_bits(row) for row in survival.survived]},
        "versions": versions(),
    }


def make_verification(
    found: "Certification", *, model: dict[str, Any], data: dict[str, Any], seed: int, **settings: Any
) -> VerificationRecord:
    """A record of a verification; arguments as of `make_record`, and whatever settings it was made with.

    Returns:
        JSON values. `outcomes` has one entry per epsilon: per image its status, what decided it, the lower bound of its
        margin if one was found, and the seconds spent on it.
    """
    return {
        "format": FORMAT,
        "command": command_line(),
        "protocol": "pixel",
        "model": model,
        "data": {**data, "indices": index_ranges(np.asarray(data["indices"]))},
        "images": len(found.labels),
        "seed": seed,
        **settings,
        "clean_accuracy": found.clean_accuracy,
        "rows": found.rows(),
        "outcomes": [
            {
                "epsilon": epsilon,
                "statuses": found.statuses[number].tolist(),
                "decided_by": found.decided_by[number].tolist(),
                "margins": [round(float(m), 6) if np.isfinite(m) else None for m in found.margins[number]],
                "seconds": found.seconds[number].round(3).tolist(),
            }
            for number, epsilon in enumerate(found.epsilons)
        ],
        "versions": versions(),
    }


def make_smoothing(smoothed: "Smoothed", *, model: dict[str, Any], data: dict[str, Any], seed: int) -> dict[str, Any]:
    """A record of certificates by smoothing; arguments as of `make_record`.

    Returns:
        JSON values. `outcomes` has the class of each image, -1 for an abstention, its certified L2 radius and how many
        noisy copies were assigned to the class that was tried.
    """
    return {
        "format": FORMAT,
        "command": command_line(),
        "protocol": "smoothing",
        "model": model,
        "data": {**data, "indices": index_ranges(np.asarray(data["indices"]))},
        "images": len(smoothed.labels),
        "seed": seed,
        **dataclasses.asdict(smoothed.smoothing),
        "abstained": smoothed.abstained,
        "average_radius": smoothed.average_radius,
        "rows": smoothed.rows(),
        "outcomes": {
            "labels": smoothed.labels.tolist(),
            "predictions": smoothed.predictions.tolist(),
            "radii": [round(float(radius), 6) for radius in smoothed.radii],
            "counts": smoothed.counts.tolist(),
        },
        "seconds": round(float(smoothed.seconds.sum()), 3),
        "versions": versions(),
    }


def read_record(path: str | Path) -> dict[str, Any]:
    """A record as `make_record` returned it, with `attacks` as specs and outcomes and indices as arrays.

    Returns:
        The record, in which `attacks` are specs, `data.indices` int64 [N], `survival.clean` bool [N] and
        `survival.attacks` bool [A, N].

    Raises:
        InvalidInputError: If there is no such file, or it is not a record: not JSON, of another format or
            inconsistent.
    """
    record: dict[str, Any] = dict(RECORD.read(path))
    record["attacks"] = stored_attacks(record, path)
    record["data"] = {**record["data"], "indices": indices_in(record["data"]["indices"])}
    survival = record["survival"]
    attacked = np.array([_outcomes(row) for row in survival["attacks"]], bool).reshape(-1, record["images"])
    record["survival"] = {"clean": _outcomes(survival["clean"]), "attacks": attacked}
    return record


def _outcomes(bits: str) -> np.ndarray:
    return np.array([bit == "1" for bit in bits], bool)


def _bits(outcomes: np.ndarray) -> str:
    return "".join("1" if outcome else "0" for outcome in outcomes)
