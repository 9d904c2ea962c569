"""The JSON values of records, as types: what `attack`, `fit`, `verify` and `audit` write and other commands read.

The types are also what files are checked against when they are read back, so they say which keys every file has.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic takes that of `typing` from Python 3.12 on

from keras_rcl.vocabulary.spec import STORED
from keras_rcl.vocabulary.threat import Norm

Share = Annotated[float, Field(ge=0, le=1)]
Length = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Outcomes = Annotated[str, Field(pattern="^[01]*$")]
"""One digit per image: 1 where the model was correct."""
IndexRange = Annotated[list[Count], Field(min_length=2, max_length=2)]
"""The first and the last of consecutive positions in a data set's own split."""


def index_ranges(indices: np.ndarray) -> list[list[int]]:
    """[3, 4, 5, 9] -> [[3, 5], [9, 9]]: runs of consecutive indices, first and last, in order."""
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [[int(run[0]), int(run[-1])] for run in np.split(indices, breaks) if len(run)]


def indices_in(ranges: Iterable[Sequence[int]]) -> np.ndarray:
    """The inverse of `index_ranges`: int64 [N]."""
    runs = (np.arange(first, last + 1, dtype=np.int64) for first, last in ranges)
    return np.concatenate([np.zeros(0, np.int64), *runs])


@with_config(STORED)
class ModelIdentity(TypedDict):
    """What a record says of the model."""

    name: str
    hash: str
    variant: NotRequired[str | None]
    weights: NotRequired[str]
    note: NotRequired[str]
    input_range: NotRequired[dict[str, Any]]


@with_config(STORED)
class DataIdentity(TypedDict):
    """The images of a record."""

    name: str
    part: Literal["train", "validation", "test"]
    indices: list[IndexRange]


@with_config(STORED)
class Row(TypedDict):
    """What one attack left, or the worst case of several attacks, which has no costs: a row of `Survival.rows`.

    Accuracies and rates are shares in [0, 1]; distances are in the attack's norm and in pixel units. An attack that no
    ball bounds has neither norm nor epsilon; a corruption has its kind and severity.
    """

    attack: str
    norm: Norm | None
    epsilon: Length | None
    protocol: NotRequired[str]
    kind: NotRequired[str]
    severity: NotRequired[int]
    clean_accuracy: Share
    adversarial_accuracy: Share
    attack_success_rate: Share
    attack_failure_rate: Share
    robust_accuracy: Share
    largest_distance: NotRequired[Length | None]
    median_distance_fallen: NotRequired[Length | None]
    median_distance: NotRequired[Length | None]
    zero_gradients: NotRequired[Share]
    not_finite: NotRequired[int]
    forwards: NotRequired[int]
    backwards: NotRequired[int]
    seconds: NotRequired[float]
    stages: NotRequired[dict[str, Share]]


@with_config(STORED)
class CorruptionSummary(TypedDict):
    """The mean accuracy on corrupted images: over the kinds, and of each kind over its severities."""

    mean_accuracy: Share
    kinds: dict[str, Share]


@with_config(STORED)
class SurvivalBits(TypedDict):
    """The outcome of every image: before any attack, and under each attack."""

    clean: Outcomes
    attacks: list[Outcomes]


@with_config(STORED)
class Losses(TypedDict):
    """The losses of one epoch; further keys are its terms."""

    phase: str
    epoch: int
    loss: NotRequired[float | None]


@with_config(STORED)
class Record(TypedDict):
    """The JSON values of one evaluation; what `fit` adds is not required."""

    format: int
    command: str
    protocol: str
    model: ModelIdentity
    sources: NotRequired[dict[str, str]]
    data: DataIdentity
    images: Count
    seed: int
    attack_dtype: NotRequired[str]
    attacks: list[dict[str, Any]]
    clean_accuracy: Share
    rows: list[Row]
    survival: SurvivalBits
    corruptions: NotRequired[CorruptionSummary]
    versions: dict[str, str]
    warnings: NotRequired[list[str]]
    geometry: NotRequired[dict[str, Any] | None]
    config: NotRequired[dict[str, Any]]
    validation: NotRequired[dict[str, float]]
    losses: NotRequired[list[Losses]]


@with_config(STORED)
class VerificationRow(TypedDict):
    """What is proved at one epsilon: a row of `Certification.rows`. Accuracies are shares in [0, 1]."""

    norm: Norm
    epsilon: Length
    clean_accuracy: Share
    attacked_accuracy: Share
    verified_accuracy: Share
    counts: dict[str, int]
    seconds: float


@with_config(STORED)
class VerifiedImages(TypedDict):
    """The result of each image at one epsilon."""

    epsilon: Length
    statuses: list[str]
    decided_by: list[str]
    margins: NotRequired[list[float | None]]
    seconds: NotRequired[list[float]]


@with_config(STORED)
class VerificationRecord(TypedDict):
    """The JSON values of one verification; the settings are those of `verify`."""

    format: int
    command: str
    protocol: str
    model: ModelIdentity
    data: DataIdentity
    images: Annotated[int, Field(gt=0, lt=2**63)]
    seed: int
    clean_accuracy: Share
    rows: list[VerificationRow]
    outcomes: list[VerifiedImages]
    versions: dict[str, str]
    attacks: NotRequired[list[str]]
    method: NotRequired[str]
    timeout: NotRequired[float]
    count: NotRequired[Count | None]
    survivors_of: NotRequired[list[str]]
    dtype: NotRequired[str]
    sound: NotRequired[bool]


@with_config(STORED)
class Finding(TypedDict):
    """What one check of an audit found."""

    check: str
    status: str
    because: str


@with_config(STORED)
class AuditRecord(TypedDict):
    """The JSON values of one audit, as far as they are read back."""

    format: int
    command: str
    verdict: str
    reason: str
    findings: list[Finding]
    images: Count
    clean_accuracy: Share
    measured: list[Row]
