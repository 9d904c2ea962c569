"""The workflow of `verify --onnx` and `verify --instances`: networks and properties of others become answers."""

import csv
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from keras_rcl.bounds.properties import Condition
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.property_search import Answer, PropertyVerifier, structure_of
from keras_rcl.evaluation.record import command_line, versions
from keras_rcl.model_io.onnx_reader import OnnxNetwork, read_onnx
from keras_rcl.model_io.vnnlib_reader import Property, read_vnnlib
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.atomic import atomic_folder, write_json
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.output_folder import output_and_journal

ROUNDING = 1e-5
"""How far onnxruntime's float32 outputs may be from satisfying a constraint that holds in float64, relative to the
largest output or to 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class PropertyAnswer:
    """The answer to a VNN-LIB property.

    Attributes:
        answer: `sat`, `unsat` or `timeout`.
        inputs: float64 [n], the witness in the order of X_0, X_1, ...; None unless the answer is `sat`.
        outputs: float64 [m], its outputs Y_0, Y_1, ...; None unless the answer is `sat`.
        decided_by: `attack`, `input-splitting`, `branch-and-bound`, `bounds`, or nothing.
        seconds: run time, without reading the files.

    Example:
        >>> import numpy as np
        >>> import keras_rcl
        >>> answer = keras_rcl.PropertyAnswer("sat", np.array([0.5]), np.array([1.0]), "attack", 0.1)
        >>> print(answer.text(), end="")
        sat
        ((X_0 0.5)
        (Y_0 1.0))
    """

    answer: Answer
    inputs: np.ndarray | None
    outputs: np.ndarray | None
    decided_by: str
    seconds: float

    def text(self) -> str:
        """The answer as the competition's result file: one word, and the witness of `sat`."""
        if self.inputs is None or self.outputs is None:
            return f"{self.answer}\n"
        named = [("X", i, value) for i, value in enumerate(self.inputs.tolist())]
        named += [("Y", i, value) for i, value in enumerate(self.outputs.tolist())]
        lines = "\n".join(f"({letter}_{i} {np.format_float_positional(v, trim='0')})" for letter, i, v in named)
        return f"{self.answer}\n({lines})\n"

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON values."""
        seconds = round(self.seconds, 3)
        found: dict[str, Any] = {"answer": self.answer, "decided_by": self.decided_by, "seconds": seconds}
        if self.inputs is None or self.outputs is None:
            return found
        return {**found, "inputs": self.inputs.tolist(), "outputs": self.outputs.tolist()}


def verify_property(
    onnx: str | Path, vnnlib: str | Path, *, timeout: float = 180.0, float64: bool = False, seed: int = 0
) -> PropertyAnswer:
    """Decide a VNN-LIB property of an ONNX network, as in the competition VNN-COMP.

    Args:
        onnx: The network, a `.onnx` or `.onnx.gz` file.
        vnnlib: The property, a `.vnnlib` or `.vnnlib.gz` file of VNN-LIB 1.0.
        timeout: Seconds, without reading the files.
        float64: Compute the bounds of branch and bound in float64.
        seed: The seed of the attack.

    Returns:
        `sat` with a witness that satisfies the property in float64 and, up to float32 rounding, in onnxruntime;
        `unsat` if no input satisfies it; or `timeout`.

    Raises:
        InvalidInputError: If a file, or a node of the network, cannot be read, or the files do not fit each other.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.verify_property("network.onnx", "property.vnnlib").answer  # doctest: +SKIP
        'unsat'
    """
    return verifier_of_properties(float64=float64, seed=seed)(Path(onnx), Path(vnnlib), timeout)


# One keyword per option of the command, so that a call in Python reads like the command line.
def verify_instances(
    path: str | Path,
    *,
    timeout: float | None = None,
    float64: bool = False,
    seed: int = 0,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path]:
    """Decide the instances of a file as VNN-COMP has it. If the call is interrupted, the same call resumes it.

    Args:
        path: Lines `network,property,seconds`; the files are relative to its folder.
        timeout: The largest number of seconds per instance; those of the file if not given.
        float64: As of `verify_property`.
        seed: As of `verify_property`.
        output_dir: The folder for `results.csv`, `record.json` and one file per witness in `witnesses/`;
            `verifications/<name of the file>`, numbered, if not given.
        overwrite: Replace the output folder, and an interrupted verification with other settings.
        progress: Where progress is shown.

    Returns:
        The record, and the folder that holds it.

    Raises:
        InvalidInputError: If the file, a network or a property cannot be read.

    Example:
        >>> import keras_rcl
        >>> record, folder = keras_rcl.verify_instances("acasxu_instances.csv", timeout=10)  # doctest: +SKIP
    """
    path, progress = Path(path), progress or Silent()
    instances = read_instances(path)
    if timeout is not None:
        instances = [(network, asked, min(seconds, timeout)) for network, asked, seconds in instances]
    fingerprint = Fingerprint(
        seed=seed,
        versions=versions(),
        settings={"instances": _hash(path, instances), "timeout": timeout, "float64": float64},
    )
    output_dir, journal = output_and_journal(output_dir, Path("verifications") / path.stem, fingerprint, overwrite)
    decide, answers = verifier_of_properties(float64=float64, seed=seed), []
    with journal:
        if len(journal):
            progress.say(f"resuming {journal.path}: {len(journal)} instances done")
        progress.start(path.stem, len(instances))
        for number, (onnx, vnnlib, seconds) in enumerate(instances):
            run = functools.partial(_arrays, decide, path.parent / onnx, path.parent / vnnlib, seconds)
            answers.append(_answer(journal.result(f"{number} {onnx} {vnnlib}".encode(), run)))
            progress.update(number + 1, f"{onnx} {vnnlib} {answers[-1].answer}")
        progress.finish(", ".join(f"{count} {answer}" for answer, count in _counts(answers).items()))
    record = {
        "format": 1,
        "command": command_line(),
        "settings": {"timeout": timeout, "float64": float64, "seed": seed},
        "counts": _counts(answers),
        "instances": [
            {"network": onnx, "property": vnnlib, "timeout": seconds, **answer.to_json()}
            for (onnx, vnnlib, seconds), answer in zip(instances, answers, strict=True)
        ],
        "versions": versions(),
    }
    with atomic_folder(output_dir, overwrite=overwrite) as folder:
        _write(folder, path, record, answers)
    journal.discard()
    return record, output_dir


def read_instances(path: Path) -> list[tuple[str, str, float]]:
    """The lines of an instances file: network, property, seconds.

    Raises:
        InvalidInputError: If a line is not one, or a file that it names does not exist.
    """
    found = []
    try:
        rows = list(csv.reader(Path(path).read_text(encoding="utf-8").splitlines()))
    except UnicodeDecodeError:
        raise InvalidInputError(f"{path} is not an instances file: it is not text") from None
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        try:
            onnx, vnnlib, seconds = (text.strip() for text in row)
            limit = float(seconds)
        except ValueError:
            limit = math.nan
        if not 0 <= limit < math.inf:
            raise InvalidInputError(f"{path}, line {number}: {','.join(row)!r} is not network,property,seconds")
        for file in (onnx, vnnlib):
            if not (path.parent / file).is_file():
                raise InvalidInputError(f"{path}, line {number}: there is no file {path.parent / file}")
        found.append((onnx, vnnlib, limit))
    if not found:
        raise InvalidInputError(f"{path} holds no instance")
    return found


Decide = Callable[[Path, Path, float], PropertyAnswer]
"""Network, property, seconds -> the answer."""


def verifier_of_properties(*, float64: bool, seed: int) -> Decide:
    """A function that decides properties: networks stay read, and those of one structure share what was traced."""
    verifiers: dict[tuple, PropertyVerifier] = {}
    read = functools.lru_cache(maxsize=64)(read_onnx)

    def decide(onnx: Path, vnnlib: Path, seconds: float) -> PropertyAnswer:
        network, asked = read(onnx), read_vnnlib(vnnlib)
        if (asked.num_inputs, asked.num_outputs) != (len(network.inputs), len(network.outputs)):
            raise InvalidInputError(
                f"{vnnlib} is about {asked.num_inputs} inputs and {asked.num_outputs} outputs: {onnx} has "
                f"{len(network.inputs)} and {len(network.outputs)}"
            )
        structure = structure_of(network.steps)
        if structure in verifiers:
            verifiers[structure].load(network.steps)
        else:
            verifiers[structure] = PropertyVerifier(network.steps, float64=float64, seed=seed)
        conditions = [_of_steps(network, condition) for condition in asked.conditions]
        check = witness_check(network, asked)
        found = verifiers[structure](conditions, seconds=seconds, check=check)
        outputs = None if found.witness is None else network.outputs_of(found.witness[None])[0]
        return PropertyAnswer(found.answer, found.witness, outputs, found.decided_by, found.seconds)

    return decide


def _of_steps(network: OnnxNetwork, condition: Condition) -> Condition:
    """A condition of a file's inputs and outputs as one of the folded network's."""
    lower, upper = network.images(np.stack([condition.lower, condition.upper]))
    rows = np.zeros((len(condition.rows), network.steps[-1].shape[0]))
    rows[:, network.outputs] = condition.rows
    return dataclasses.replace(condition, lower=lower, upper=upper, rows=rows)


def witness_check(network: OnnxNetwork, asked: Property) -> Callable[[np.ndarray], np.ndarray | None]:
    """A function of a supposed witness, an input of the steps: ONNX inputs [n] that are one, or None.

    A witness lies in the box of a condition, exactly. Its constraints hold of its outputs in float64, exactly; and of
    those of onnxruntime, where it is installed, up to its rounding. Inputs are float32 numbers where the box has one.
    """

    def check(image: np.ndarray) -> np.ndarray | None:
        supposed = network.values(np.asarray(image, np.float64)[None])[0]
        for condition in asked.conditions:
            values = _inside(supposed, condition)
            if np.abs(values - supposed).max() > 1e-6 * max(1.0, np.abs(supposed).max()):
                continue
            if not condition.contains(values) or not condition.holds(network.outputs_of(values[None])[0]):
                continue
            served = network.onnxruntime_outputs(values[None])
            if served is None or condition.holds(served[0], ROUNDING * max(1.0, np.abs(served).max())):
                return values
        return None

    return check


def _inside(values: np.ndarray, condition: Condition) -> np.ndarray:
    """Values in a box; float32 numbers, except where the box has none."""
    clipped = np.clip(values, condition.lower, condition.upper)
    near = clipped.astype(np.float32)
    near = np.where(near > condition.upper, np.nextafter(near, np.float32(-np.inf)), near)
    near = np.where(near < condition.lower, np.nextafter(near, np.float32(np.inf)), near).astype(np.float64)
    return np.where((condition.lower <= near) & (near <= condition.upper), near, clipped)


def _arrays(decide: Decide, onnx: Path, vnnlib: Path, seconds: float) -> dict[str, np.ndarray]:
    """An answer as a journal stores it."""
    found = decide(onnx, vnnlib, seconds)
    arrays = {"text": np.array([found.answer, found.decided_by]), "seconds": np.array(found.seconds)}
    if found.inputs is None or found.outputs is None:
        return arrays
    return {**arrays, "inputs": found.inputs, "outputs": found.outputs}


def _answer(arrays: dict[str, np.ndarray]) -> PropertyAnswer:
    answer, by = (str(text) for text in arrays["text"])
    return PropertyAnswer(
        cast(Answer, answer), arrays.get("inputs"), arrays.get("outputs"), by, float(arrays["seconds"])
    )


def _counts(answers: list[PropertyAnswer]) -> dict[str, int]:
    return {name: sum(answer.answer == name for answer in answers) for name in ("sat", "unsat", "timeout")}


def _hash(path: Path, instances: list[tuple[str, str, float]]) -> str:
    """A hash of the instances and of the content of their files."""
    digest = hashlib.sha256(repr(instances).encode())
    for file in sorted({file for onnx, vnnlib, _ in instances for file in (onnx, vnnlib)}):
        digest.update(hashlib.sha256((path.parent / file).read_bytes()).digest())
    return digest.hexdigest()


def _write(folder: Path, path: Path, record: dict[str, Any], answers: list[PropertyAnswer]) -> None:
    """Write `record.json`, `results.csv` and the witnesses."""
    write_json(folder / "record.json", record)
    category, lines = path.stem.removesuffix("_instances"), []
    for number, (row, answer) in enumerate(zip(record["instances"], answers, strict=True)):
        lines.append([category, row["network"], row["property"], "0", answer.answer, f"{answer.seconds:.3f}"])
        if answer.inputs is not None:
            (folder / "witnesses").mkdir(exist_ok=True)
            (folder / "witnesses" / f"{number}.txt").write_text(answer.text(), encoding="utf-8")
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
