"""SavedModels that must load: what this package and TensorFlow's own loader make of each.

    python -m benchmarks.exports FOLDER keras3 tf1 modules
    python -m benchmarks.sound_models FOLDER [FOLDER ...] --json results/robustness/sound_models.json

Each SavedModel below the folders is loaded by `PrunedSavedModel`, which runs nothing but the signature's graph, and by
`tf.saved_model.load`, in turn. The table has the largest difference of the logits, relative to the largest logit; that
of the gradient of their squares; and the seconds that loading takes, medians of `--repeats`. A model that is refused,
differs by more than 1e-6, or has no gradient although the ordinary loader gives one, is a finding, and so is a model
that takes more than 1.5 times as long to load.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import tensorflow as tf  # noqa: E402

from keras_rcl.errors import InvalidInputError  # noqa: E402
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.model_io.pruned_graph import PrunedSavedModel  # noqa: E402

TOLERANCE, SLOWEST = 1e-6, 1.5


def signature_of(model: PrunedSavedModel) -> str:
    """The signature that a command would choose."""
    return next((name for name in ("serve", "serving_default") if name in model.signatures), "")


def ours(path: Path) -> Callable:
    """Load by this package."""
    model = PrunedSavedModel(path)
    return model.load(signature_of(model))


def ordinary(path: Path) -> Callable:
    """Load by TensorFlow's loader."""
    model = tf.saved_model.load(str(path))
    signature = model.signatures[next(name for name in ("serve", "serving_default") if name in model.signatures)]
    ((name, _),) = signature.structured_input_signature[1].items()
    return lambda images: (model, signature(**{name: images}))[1]


def numbers(outputs: dict) -> dict:
    """The outputs that are numbers, by name; one output has one name, whatever the file calls it."""
    found = {name: value for name, value in outputs.items() if value.dtype != tf.string}
    return {"": next(iter(found.values()))} if len(found) == 1 else found


def gradient_of(call: Callable, images: tf.Tensor) -> tf.Tensor | None:
    """The gradient of the sum of the squares of the outputs of some images; None if it is not connected to them."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = numbers(call(images)).values()
        total = tf.add_n([tf.reduce_sum(tf.cast(x, tf.float32) ** 2) for x in outputs if x.dtype.is_floating])
    return tape.gradient(total, images)


def outcome(call: Callable, images: tf.Tensor) -> tuple[dict, tf.Tensor | None]:
    """The outputs of some images, and the gradient; None if TensorFlow has none for the operations of the model."""
    errors = (LookupError, NotImplementedError, ValueError, AttributeError, TypeError, tf.errors.OpError)
    try:
        gradient = gradient_of(call, images)
    except (InvalidInputError, *errors):
        gradient = None
    return numbers(call(images)), gradient


def difference(found, expected) -> float:
    """The largest difference, relative to the largest value if that is above 1."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def seconds_of(load: Callable, path: Path) -> tuple[float, Callable]:
    start = time.perf_counter()
    call = load(path)
    return time.perf_counter() - start, call


def compare(path: Path, repeats: int) -> dict:
    """One row of the table."""
    row = {"model": f"{path.parent.name}: {path.name}", "findings": []}
    seconds: dict[Callable, list[float]] = {ours: [], ordinary: []}
    calls = {}
    try:
        for repeat in range(repeats):
            for load in (ours, ordinary) if repeat % 2 else (ordinary, ours):
                spent, calls[load] = seconds_of(load, path)
                seconds[load].append(spent)
    except InvalidInputError as error:
        row["findings"].append(str(error))
        return row
    model = PrunedSavedModel(path)
    ((_, spec),) = model.signatures[signature_of(model)].inputs.items()
    shape = [size or default for size, default in zip(spec.shape, (4, 16, 16, 3), strict=True)]
    images = tf.constant(np.random.default_rng(0).random(shape), spec.dtype)
    (found, gradient), (expected, wanted) = outcome(calls[ours], images), outcome(calls[ordinary], images)
    row["outputs"] = max(difference(found[name], expected[name]) for name in expected)
    if gradient is not None and wanted is not None:
        row["gradient"] = difference(gradient, wanted)
    else:
        row["gradient"] = "only ours" if wanted is None and gradient is not None else "none"
    row["seconds"], row["ordinary_seconds"] = (statistics.median(seconds[load]) for load in (ours, ordinary))
    row["times"] = row["seconds"] / row["ordinary_seconds"]
    if found.keys() != expected.keys() or row["outputs"] > TOLERANCE:
        row["findings"].append("other outputs")
    if wanted is not None and (gradient is None or row["gradient"] > TOLERANCE):
        row["findings"].append("other gradient")
    if row["times"] > SLOWEST:
        row["findings"].append("slow")
    return row


def shown(value: float | str) -> str:
    """A cell of the table."""
    return value if isinstance(value, str) else "0" if value == 0 else f"{value:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="A regular expression: a part of the path.")
    parser.add_argument("--json", type=Path, help="The file to write; the rows of models that are not loaded are kept.")
    arguments = parser.parse_args()
    files = (file for folder in arguments.folders for file in folder.rglob("saved_model.pb"))
    paths = sorted(file.parent for file in files if re.search(arguments.only, str(file.parent)))
    record = {"commands": [], "rows": []}
    if arguments.json and arguments.json.exists():
        record = json.loads(arguments.json.read_text())
    record["commands"].append(command_line())
    rows = []
    print("| model | outputs | gradient | seconds | TensorFlow's | times |\n|---|---:|---:|---:|---:|---:|")
    for path in paths:
        row = compare(path, arguments.repeats)
        rows.append(row)
        if arguments.json:  # after each model, so that an interrupted benchmark leaves what it has
            others = [other for other in record["rows"] if other["model"] != row["model"]]
            record |= {"versions": versions(), "rows": sorted([*others, row], key=lambda one: one["model"])}
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")
        if "times" in row:
            cells = [shown(row["outputs"]), shown(row["gradient"]), f"{row['seconds']:.2f}"]
            cells += [f"{row['ordinary_seconds']:.2f}", f"{row['times']:.2f}"]
            print(f"| {row['model']} | {' | '.join(cells)} |", flush=True)
        for finding in row["findings"]:
            print(f"FINDING {row['model']}: {finding}", flush=True)
        tf.keras.backend.clear_session()
    rows = record["rows"] if arguments.json else rows
    findings = sum(bool(row["findings"]) for row in rows)
    print(f"\n{len(rows)} models, {findings} with findings")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
