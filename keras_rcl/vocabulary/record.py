"""The JSON values of a record file, as types: what `attack`, `fit` and `verify` write and `report` reads."""

from typing import Any, NotRequired, TypedDict

from keras_rcl.vocabulary.threat import Norm


class Row(TypedDict):
    """What one attack left, or the worst case of several attacks, which has no costs: a row of `Survival.rows`.

    Accuracies and rates are shares in [0, 1]; distances are in the attack's norm and in pixel units.
    """

    attack: str
    norm: Norm
    epsilon: float
    protocol: str
    clean_accuracy: float
    adversarial_accuracy: float
    attack_success_rate: float
    attack_failure_rate: float
    robust_accuracy: float
    largest_distance: NotRequired[float | None]
    median_distance_fallen: NotRequired[float | None]
    zero_gradients: NotRequired[float]
    forwards: NotRequired[int]
    backwards: NotRequired[int]
    seconds: NotRequired[float]
    stages: NotRequired[dict[str, float]]


class Record(TypedDict):
    """The JSON values of one evaluation; what `fit` adds is not required."""

    format: int
    command: str
    protocol: str
    model: dict[str, Any]
    sources: dict[str, str]
    data: dict[str, Any]
    images: int
    seed: int
    attack_dtype: str
    attacks: list[dict[str, Any]]
    clean_accuracy: float
    rows: list[Row]
    survival: dict[str, Any]
    versions: dict[str, str]
    geometry: NotRequired[dict[str, Any] | None]
    config: NotRequired[dict[str, Any]]
    validation: NotRequired[dict[str, float]]
    losses: NotRequired[list[dict[str, Any]]]


class VerificationRow(TypedDict):
    """What is proved at one epsilon: a row of `Certification.rows`. Accuracies are shares in [0, 1]."""

    norm: Norm
    epsilon: float
    clean_accuracy: float
    attacked_accuracy: float
    verified_accuracy: float
    counts: dict[str, int]
    seconds: float


class Outcomes(TypedDict):
    """The result of each image at one epsilon."""

    epsilon: float
    statuses: list[str]
    decided_by: list[str]
    margins: list[float | None]
    seconds: list[float]


class VerificationRecord(TypedDict):
    """The JSON values of one verification; the settings are those of `verify`."""

    format: int
    command: str
    protocol: str
    model: dict[str, Any]
    data: dict[str, Any]
    images: int
    seed: int
    clean_accuracy: float
    rows: list[VerificationRow]
    outcomes: list[Outcomes]
    versions: dict[str, str]
    attacks: NotRequired[list[str]]
    method: NotRequired[str]
    timeout: NotRequired[float]
    count: NotRequired[int | None]
    dtype: NotRequired[str]
