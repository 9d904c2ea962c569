"""The records of a project, found by their experiment."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from keras_rcl import config
from keras_rcl.config import CONFIGS, Experiment
from keras_rcl.errors import InvalidInputError
from keras_rcl.report.paper_tables import Lookup, Setup
from keras_rcl.report.verdicts import Measured, Outcomes
from keras_rcl.runtime.program import program_name
from keras_rcl.storage.atomic import complete_files, read_json
from keras_rcl.storage.kinds import RECORD, VERIFICATION, AnotherVersion, stored_attacks
from keras_rcl.vocabulary.attacks import to_cli
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.paper import Measure, Paper
from keras_rcl.vocabulary.record import Record, VerificationRecord
from keras_rcl.vocabulary.threat import format_pixels

VERIFIED_IMAGES, VERIFIED_COUNT = 1000, 20
"""A missing verification attacks the first number of images and bounds the second number of those that survive, as
Cusin did."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A training, with all records of the network that it trained.

    Attributes:
        record: the record of the training.
        measured: records of that network, of attacks and of verifications; the training's own record is the first.
    """

    record: Record
    measured: tuple[Record | VerificationRecord, ...]

    @property
    def name(self) -> str:
        return self.record["model"]["name"]

    @property
    def model_hash(self) -> str:
        return self.record["model"]["hash"]

    def measure(self, measure: Measure) -> "Found | None":
        """The measured value. Of several records the one with the most images counts; None if there is no record."""
        found = [
            one
            for record in self.measured
            if record["data"]["part"] == "test" and record["data"]["name"] == self.record["data"]["name"]
            for one in _values(record, measure)
        ]
        return max(found, key=lambda one: one.images, default=None)


class Found(NamedTuple):
    """One measure of one network.

    Attributes:
        value: the percentage, or the number of images of each status.
        images: the number of test images.
        outcomes: the result of each image; None for measures that are not an accuracy.
    """

    value: float | dict[str, int]
    images: int
    outcomes: Outcomes | None = None


def _values(record: Any, measure: Measure) -> Iterable[Found]:
    """The values of a measure in a record: none or one."""
    images = record["images"]
    if measure.kind == "clean":
        yield Found(100 * record["clean_accuracy"], images, _outcomes(record, record.get("survival", {}).get("clean")))
    elif measure.kind in ("robust", "success") and "survival" in record:
        attacked = zip(record["attacks"], record["rows"], record["survival"]["attacks"], strict=False)
        for attack, row, correct in attacked:  # the worst cases come after
            if attack == measure.attack and measure.kind == "robust":
                yield Found(100 * row["robust_accuracy"], images, _outcomes(record, correct))
            elif attack == measure.attack:
                yield Found(100 * row["attack_success_rate"], images)
    elif measure.kind == "verified" and "outcomes" in record:
        for outcome, row in zip(record["outcomes"], record["rows"], strict=True):
            if row["norm"] == "linf" and math.isclose(outcome["epsilon"], measure.epsilon):
                pairs = zip(outcome["statuses"], outcome["decided_by"], strict=True)
                bounded = [status for status, by in pairs if status != "misclassified" and by != "attack"]
                names = ("timeout", "safe", "safe-incomplete", "unsafe", "unknown")
                bounded = bounded[: record.get("count")]
                yield Found({name: bounded.count(name) for name in names}, images)


def _outcomes(record: Any, correct: str | None) -> Outcomes | None:
    """The results of a record's images, if there is one digit for each of them."""
    if correct is None or len(correct) != record["images"]:
        return None
    return Outcomes(tuple((first, last) for first, last in record["data"]["indices"]), correct)


class Results:
    """All records below some folders.

    Args:
        results: the folder of committed records: one JSON file per record, at any depth.
        work: output folders of commands, such as `attacks`; a record is the `record.json` of a folder in them.
    """

    def __init__(self, results: Path = Path("results"), work: Iterable[Path] = ()):
        records = [path for folder in work for path in complete_files(folder, "*/record.json")]
        self.paths = complete_files(results, "**/*.json") + records

    @cached_property
    def _records(self) -> list[Any]:
        return [record for path in self.paths if (record := read_result(path)) is not None]

    @cached_property
    def _runs(self) -> dict[Experiment, dict[int, Run]]:
        """The part of an experiment that its training depends on -> seed -> the run of the first such record."""
        found: dict[Experiment, dict[int, Run]] = {}
        for record in self._records:
            if (trained := _training(record)) is not None:
                model_hash = record["model"]["hash"]
                others = (one for one in self._records if one is not record and one["model"]["hash"] == model_hash)
                seeds = found.setdefault(config.training_of(trained), {})
                seeds.setdefault(trained.seed, Run(record, (record, *others)))
        return found

    def runs(self, experiment: Experiment, seeds: int | None = None) -> dict[int, Run]:
        """Seed -> the run of that experiment, under any name. With `seeds`, only seeds below it count."""
        found = self._runs.get(config.training_of(experiment), {})
        return {seed: found[seed] for seed in sorted(found) if seeds is None or seed < seeds}

    def lookup(self, rows: Mapping[str, Experiment], seeds: int | None = None) -> Lookup:
        """Return (key of a row, measure) -> the measured values, or None; `rows` has the experiment of each config."""

        def measured(key: str, measure: Measure) -> Measured | None:
            return self.measured(rows[key], measure, seeds) if key in rows else self.measured_weights(key, measure)

        return measured

    def measured_weights(self, weights: str, measure: Measure) -> Measured | None:
        """One measure of imported weights, by the SHA-256 of their file; None if no record has it."""
        records = tuple(one for one in self._records if one["model"].get("weights") == weights)
        found = Run(records[0], records).measure(measure) if records else None
        return None if found is None else _measured({0: found})

    def measured(self, experiment: Experiment, measure: Measure, seeds: int | None = None) -> Measured | None:
        """One measure of an experiment over its seeds; None if no seed has it."""
        measured = {seed: run.measure(measure) for seed, run in self.runs(experiment, seeds).items()}
        found = {seed: one for seed, one in measured.items() if one is not None}
        return _measured(found) if found else None

    def setup(self, experiment: Experiment, seeds: int | None = None) -> Setup | None:
        """How the networks of an experiment were trained; None if there is no run."""
        runs = self.runs(experiment, seeds)
        records = [run.record for run in runs.values()]
        if not records:
            return None
        trained = [record["model"].get("training_images", experiment.dataset.limit) for record in records]
        return Setup(
            network=experiment.network.encoder,
            epochs=sum(phase.epochs for phase in experiment.method.phases()),
            data=experiment.dataset.name,
            images=None if None in trained else min(trained),
            versions=tuple(dict.fromkeys(record["versions"]["keras_rcl"] for record in records)),
            protocols=config.training_protocols(experiment.method.phases()),
            seeds=tuple(runs),
        )


def _measured(found: Mapping[int, Found]) -> Measured:
    """One measure over seeds."""
    return Measured(
        values={seed: one.value for seed, one in found.items()},
        images=min(one.images for one in found.values()),
        outcomes={seed: one.outcomes for seed, one in found.items() if one.outcomes},
    )


def read_result(path: Path) -> dict[str, Any] | None:
    """Return a record of a network, its attacks as specs; None if the file is another one, such as that of a benchmark.

    Raises:
        InvalidInputError: if it cannot be read, or is a record that was not written so.
    """
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read as JSON: {error}; hint: fix it or move it away") from None
    if not isinstance(value, dict):
        return None
    if "outcomes" in value:
        return dict(VERIFICATION.validate(value, path))
    if "survival" not in value:
        return None
    record: dict[str, Any] = dict(RECORD.validate(value, path))
    try:
        return {**record, "attacks": stored_attacks(record, path)}
    except AnotherVersion:
        return None


def _training(record: dict[str, Any]) -> Experiment | None:
    """The experiment of a record; None if it is not a training's or has unknown fields."""
    if "config" not in record:
        return None
    try:
        return config.parse(record["config"], "")
    except InvalidInputError:
        return None


# The rows of a paper


def config_path(row: str) -> Path:
    """The file of a row, `<paper>/<config>`."""
    return CONFIGS / "papers" / f"{row}.yaml"


def experiment(row: str, scale: str, settings: Sequence[str] = ()) -> Experiment:
    """The experiment of a row, `<paper>/<config>`, at a scale."""
    return config.load(config_path(row), None, settings, scale)


def experiments(paper: Paper, scale: str, settings: Sequence[str] = ()) -> dict[str, Experiment]:
    """Config of a row -> its experiment, for all rows of a paper."""
    return {row: experiment(f"{paper.name}/{row}", scale, settings) for row in paper.configs}


def missing(
    paper: Paper,
    scale: str,
    results: Results,
    seeds: int | None,
    settings: Sequence[str] = (),
    program: str | None = None,
) -> list[dict[str, Any]]:
    """The rows and seeds of a paper's tables that are not measured, each with the command that measures it.

    Args:
        paper: the paper.
        scale: the scale of its rows' configurations.
        results: the records.
        seeds: the number of seeds that every row needs; None asks for one seed, whichever it is.
        settings: `a.b=value` texts for every row.
        program: how a command starts; as this program was started, by default.
    """
    found, program = [], program or program_name()
    for row, experiment in experiments(paper, scale, settings).items():
        runs = results.runs(experiment, seeds)
        for seed in sorted({*runs, *range(seeds or 0)} or {0}):
            missed = {"row": row if seed == 0 else f"{row}, seed {seed}", "config": row, "seed": seed}
            if seed not in runs:
                given = "".join(f" --set {setting}" for setting in settings) + (f" --seed {seed}" if seed else "")
                path = f"configs/papers/{paper.name}/{row}.yaml"
                found.append({**missed, "command": f"{program} fit --config {path} --scale {scale}{given}"})
                continue
            lacking = [measure for measure in paper.measures(row) if runs[seed].measure(measure) is None]
            commands = [f"{program} {rest}" for rest in _commands(runs[seed].name, lacking, experiment.dataset)]
            found += [{**missed, "command": command} for command in commands]
    return found


def fewest(images: int | None, data: Dataset) -> int | None:
    """The number of images of a measure: the smaller of its own limit and the data set's; None means all images."""
    return min((limit for limit in (images, data.limit) if limit), default=None)


def _commands(name: str, lacking: Sequence[Measure], data: Dataset) -> list[str]:
    """The commands of the missing measures: one per number of attacked images, and one for all radii."""
    commands = []
    for limit in dict.fromkeys(m.limit for m in lacking if m.kind == "robust"):
        attacks = [to_cli(m.attack) for m in lacking if m.kind == "robust" and m.limit == limit]
        options = "".join(f" --attack {attack}" for attack in attacks)
        options += f" --limit {fewest(limit, data)}" if limit else ""
        commands.append(f"attack saved_models/{name}{options}")
    if radii := [format_pixels(m.epsilon) for m in lacking if m.kind == "verified"]:
        options = f"--epsilon {','.join(radii)} --limit {fewest(VERIFIED_IMAGES, data)} --max-images {VERIFIED_COUNT}"
        commands.append(f"verify saved_models/{name} {options}")
    return commands
