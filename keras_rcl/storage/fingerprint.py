"""What results depend on, so that a run is resumed only by a command that would compute the same results."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_rcl.storage.atomic import FolderInUse
from keras_rcl.vocabulary.threat import parse_fraction

_PARTS = ("model", "sources", "images", "attacks", "seed", "versions")
_RENAMED = {"craft_dtype": "attack_dtype"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """All that the results of a run or of an evaluation depend on, as JSON values.

    Two fingerprints are equal if their JSON values are: a tuple equals the list that it is stored as. In attacks and
    settings a text equals another one of the same number: earlier versions wrote 0.00196078431372549 for 0.5/255. A
    part that is None is not part of the fingerprint.

    Attributes:
        model: The hash of the model, or a mapping with its hash and how it is loaded. None: it is trained.
        sources: The hash of each model that attacks look through, by name.
        images: A hash of all images and labels, see `hash_arrays`.
        attacks: The fields of each attack.
        seed: Of all random draws.
        versions: Of the libraries.
        settings: Everything else, by name.

    Example:
        >>> stored = Fingerprint(seed=3, settings={"batch_size": 32})
        >>> Fingerprint(seed=4, settings={"batch_size": 32}).diff(stored)
        ['seed']
    """

    model: str | Mapping[str, Any] | None = None
    sources: Mapping[str, Any] | None = None
    images: str | None = None
    attacks: Sequence[Mapping[str, Any]] | None = None
    seed: int | None = None
    versions: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, json.loads(json.dumps(getattr(self, field.name))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and not self.diff(other)

    def to_json(self) -> dict[str, Any]:
        """Return the fingerprint as it is stored: one level, with the settings beside the other parts."""
        parts = {name: getattr(self, name) for name in _PARTS}
        return {name: part for name, part in parts.items() if part is not None} | dict(self.settings)

    @classmethod
    def from_json(cls, stored: Any) -> "Fingerprint":
        """Return the fingerprint that was stored as JSON.

        Earlier versions wrote "batch size" for "batch_size", and "craft_dtype" for "attack_dtype".

        Raises:
            ValueError: If `stored` is not a mapping.
        """
        if not isinstance(stored, dict):
            raise ValueError("it is not a mapping")
        values = {key.replace(" ", "_"): value for key, value in stored.items()}
        values = {_RENAMED.get(key, key): value for key, value in values.items()}
        parts = {name: values.pop(name) for name in _PARTS if name in values}
        return cls(**parts, settings=values)

    def diff(self, other: "Fingerprint") -> list[str]:
        """Return the names of the parts and settings that differ."""
        mine, others = self._compared(), other._compared()
        return [name for name in {**mine, **others} if mine.get(name) != others.get(name)]

    def _compared(self) -> dict[str, Any]:
        """What is compared: numbers in place of their texts, except in hashes and versions, where 3.10 is not 3.1."""
        exact = set(_PARTS) - {"attacks"}
        return {name: value if name in exact else _read(value) for name, value in self.to_json().items()}

    def check_equal(self, stored: "Fingerprint", what: str, option: str) -> None:
        """Refuse to resume what was begun with another fingerprint.

        Args:
            stored: The fingerprint that was found.
            what: The path where it was found and what it is of, for the message.
            option: The option that chooses another place.

        Raises:
            FolderInUse: If the fingerprints differ, naming the parts that do.
        """
        if different := self.diff(stored):
            raise FolderInUse(
                f"{what} with other {', '.join(different)}; "
                f"repeat its command to resume it, or give --overwrite or another {option}"
            )


def _read(value: Any) -> Any:
    """A JSON value with the number in place of each text of a number or fraction."""
    if isinstance(value, dict):
        return {key: _read(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read(item) for item in value]
    if isinstance(value, str):
        try:
            return parse_fraction(value)
        except (ValueError, ZeroDivisionError, OverflowError):
            return value
    return value


def hash_arrays(*arrays: np.ndarray) -> str:
    """Return the SHA-256 of the arrays' bytes, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
