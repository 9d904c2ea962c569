"""The kinds of JSON files that are read back, each with the type of its content."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from keras_rcl.errors import InvalidInputError, format_error
from keras_rcl.storage.stored import FileKind, shown
from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.record import (
    AuditRecord,
    Count,
    Length,
    Record,
    Share,
    VerificationRecord,
)
from keras_rcl.vocabulary.spec import STORED
from keras_rcl.vocabulary.threat import Norm

Text = Annotated[str, Field(min_length=1)]

# Records


def _check_numbers(line: Mapping[str, Any], before: str = "") -> None:
    """Raise ValueError if a value of the metrics of an epoch is not a number."""
    for name, value in line.items():
        number = type(value) is float or (type(value) is int and abs(value) < 2**63)
        if name != "phase" and value is not None and not number:
            raise ValueError(f"{before}{name}: it must be a number or null (got {shown(value)})")


def _check_record(record: Record) -> None:
    """Raise ValueError if the parts of a record are not of the same images and attacks."""
    count, survival = record["images"], record["survival"]
    for first, last in record["data"]["indices"]:
        if last < first:
            raise ValueError(f"data.indices: {[first, last]} ends before it begins")
    indexed = sum(last - first + 1 for first, last in record["data"]["indices"])
    if indexed != count:
        raise ValueError(f"its indices are of {indexed} images, and it is of {count}")
    counts = {count, len(survival["clean"]), *map(len, survival["attacks"])}
    if len(counts) != 1 or len(survival["attacks"]) != len(record["attacks"]):
        raise ValueError(
            f"its outcomes are of {sorted(counts)} images and {len(survival['attacks'])} attacks, and it names "
            f"{len(record['attacks'])} attacks"
        )
    if len(record["rows"]) < len(record["attacks"]):
        raise ValueError(f"it has {len(record['rows'])} rows of {len(record['attacks'])} attacks")
    for number, line in enumerate(record.get("losses", ())):
        _check_numbers(line, f"losses.{number}.")


def _check_verification(record: VerificationRecord) -> None:
    """Raise ValueError if the parts of a verification are not of the same images."""
    for outcome in record["outcomes"]:
        counts = {record["images"], len(outcome["statuses"]), len(outcome["decided_by"])}
        if len(counts) != 1:
            raise ValueError(f"its outcomes are of {sorted(counts)} images")


RECORD = FileKind[Record](
    "a record", Record, "give the record.json of an attack or a run as it was written", _check_record, 1
)
VERIFICATION = FileKind[VerificationRecord](
    "a record of a verification",
    VerificationRecord,
    "give the record.json of `verify` as it was written",
    _check_verification,
    1,
)
AUDIT = FileKind[AuditRecord](
    "the result of an audit", AuditRecord, "give the audit.json of `audit` as it was written", format=1
)


_ATTACKS = TypeAdapter(tuple[Attack, ...])


class AnotherVersion(InvalidInputError):
    """A record names an attack, or a field of one, that this version does not have."""


def stored_attacks(record: Mapping[str, Any], path: str | Path) -> tuple[Attack, ...]:
    """Return the attacks of a record that was read from `path`.

    Raises:
        AnotherVersion: If one is not an attack of this version.
        InvalidInputError: If one is invalid.
    """
    try:
        return _ATTACKS.validate_python(record["attacks"])
    except ValidationError as error:
        unknown = {item["type"] for item in error.errors()} <= {"union_tag_invalid", "unexpected_keyword_argument"}
        raise (AnotherVersion if unknown else InvalidInputError)(
            f"{path} is not a record: attacks: {format_error(error)}; hint: {RECORD.hint}"
        ) from None


# Models


@with_config(STORED)
class _ExportConfig(TypedDict):
    dataset: dict[str, Any]


@with_config(STORED)
class _Imported(TypedDict):
    weights: Text


@with_config(STORED)
class Contract(TypedDict):
    """`model.json` of an export, as far as it is read."""

    format: int
    model_hash: Text
    name: NotRequired[str]
    variant: NotRequired[str | None]
    class_names: NotRequired[list[str]]
    config: NotRequired[_ExportConfig]
    imported: NotRequired[_Imported]


CONTRACT = FileKind[Contract]("the model.json of an export", Contract, "export the model again", format=1)


# Runs


@with_config(STORED)
class Environment(TypedDict):
    """`environment.json` of a run, as far as it is read."""

    given: NotRequired[dict[str, Any]]
    class_names: NotRequired[list[str]]


@with_config(STORED)
class Metrics(TypedDict):
    """One line of `metrics.jsonl`: the metrics of one epoch; null is a number that is not finite."""

    step: int
    phase: str
    epoch: int


ENVIRONMENT = FileKind[Environment]("the environment of a run", Environment, "choose another run")
METRICS = FileKind[Metrics]("the metrics of a run", Metrics, "repeat the run", _check_numbers)
FINGERPRINT = FileKind[dict[str, Any]]("the fingerprint of a run", dict[str, Any], "remove the folder of the run")


@with_config(STORED)
class Position(TypedDict):
    """The position of a training, see `TrainingPosition`."""

    leg: Count
    step: Count
    recorded: Count
    best: dict[str, float]
    best_monitored: float
    warned: list[str]


@with_config(STORED)
class SnapshotHeader(TypedDict):
    """The JSON values of a snapshot."""

    format: int
    seconds: Length
    logs: dict[str, Count]
    course: NotRequired[Position]
    runners: NotRequired[list[dict[str, Any]]]
    where: NotRequired[str]


SNAPSHOT = FileKind[SnapshotHeader]("the header of a snapshot", SnapshotHeader, "remove the snapshot", format=1)


@with_config(STORED)
class Trial(TypedDict):
    """One trial of a study; an ended one has its results, or the reason why it failed or was stopped.

    `repeats` is the number of the trial that it repeats, in another study.
    """

    number: Count
    repeats: NotRequired[Count]
    settings: dict[str, str]
    state: Literal["running", "done", "failed", "pruned"]
    objective: NotRequired[float]
    clean_accuracy: NotRequired[Share]
    robust_accuracy: NotRequired[Share]
    reason: NotRequired[str]
    curve: NotRequired[list[list[float]]]


@with_config(STORED)
class StudyTable(TypedDict):
    """`study.json`: the fingerprint of a search or of repeated trials, and its trials."""

    format: int
    question: dict[str, Any]
    trials: list[Trial]


def _check_study(study: StudyTable) -> None:
    """Raise ValueError if a trial is missing, or one that is done has no objective."""
    if sorted(trial["number"] for trial in study["trials"]) != list(range(len(study["trials"]))):
        raise ValueError("its trials are incomplete")
    for trial in study["trials"]:
        if trial["state"] == "done" and "objective" not in trial:
            raise ValueError(f"trials.{trial['number']}.objective is missing")


STUDY = FileKind[StudyTable](
    "a study", StudyTable, "remove the folder, or choose another --output-dir", _check_study, format=1
)


# Data and verifiers


@with_config(STORED)
class _Examples(TypedDict):
    """What stored examples are of."""

    name: str
    part: Literal["train", "validation", "test"]


@with_config(STORED)
class _Ball(TypedDict):
    """The attack of stored examples, as far as it is read."""

    norm: Norm
    epsilon: str | float


@with_config(STORED)
class _Streamed(TypedDict):
    """Which records of which files stored examples belong to; one shard per file, in the order of its records."""

    identity: str
    image_shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    sizes: list[Count]


@with_config(STORED)
class ExamplesTable(TypedDict):
    """`examples.json`: the attack, the data and the shards of stored adversarial examples.

    `streamed` is there for examples of a split that is read from its files; `sizes` are those of the shards in bytes.
    """

    format: int
    attack: _Ball
    data: _Examples
    shards: Annotated[list[Annotated[str, Field(pattern=r"^[^/\\]+\.tfrecord$")]], Field(min_length=1)]
    streamed: NotRequired[_Streamed]


@with_config(STORED)
class _Property(TypedDict):
    """One image and radius that a verifier is asked about."""

    index: Count
    label: Count
    epsilon: Length


@with_config(STORED)
class _LeftOut(TypedDict):
    """A radius, and how many images were left out of it."""

    epsilon: Length
    left_out: Count


@with_config(STORED)
class _Named(TypedDict):
    name: str


@with_config(STORED)
class Instances(TypedDict):
    """`instances.json`: what `export-vnnlib` wrote."""

    format: int
    model: _Named
    epsilons: Annotated[list[_LeftOut], Field(min_length=1)]
    instances: Annotated[list[_Property], Field(min_length=1)]


def _check_instances(table: Instances) -> None:
    """Raise ValueError if an instance is of another radius than those that are listed."""
    radii = {row["epsilon"] for row in table["epsilons"]}
    for number, instance in enumerate(table["instances"]):
        if instance["epsilon"] not in radii:
            raise ValueError(f"instances.{number}.epsilon: {instance['epsilon']} is not one of its epsilons")


EXAMPLES = FileKind[ExamplesTable](
    "a record of adversarial examples", ExamplesTable, "make them again with `craft-dataset`", format=1
)
INSTANCES = FileKind[Instances](
    "a list of instances",
    Instances,
    "give a folder that export-vnnlib wrote, as it was written",
    _check_instances,
    format=1,
)
