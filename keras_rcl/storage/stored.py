"""Stored files read back: every kind of file has one type that its content is checked against before it is used.

A file that was edited, cut or moved raises one line with the file, the key, the value and a hint.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.atomic import parse_json, read_json

T = TypeVar("T")

_LONGEST = 60
"""The largest number of characters of a value that a message shows."""


@dataclasses.dataclass(frozen=True)
class FileKind(Generic[T]):
    """A kind of JSON file: the type of its content, and how a message describes it.

    Args:
        what: The kind in words, such as `a record`.
        values: The type of the content, for pydantic.
        hint: What to do if a file is not of this kind.
        check: Raises ValueError if values that are valid one by one do not fit together.
        format: The value of the key `format` that this version reads. None: the content has no such key.

    Example:
        >>> pairs = FileKind("a table of pairs", dict[str, list[int]], "write it again")
        >>> pairs.validate({"a": [1, 2]}, "pairs.json")
        {'a': [1, 2]}
        >>> try:
        ...     pairs.validate({"a": [1, None]}, "pairs.json")
        ... except InvalidInputError as error:
        ...     print(error)
        pairs.json is not a table of pairs: a.1: input should be a valid integer (got null); hint: write it again
    """

    what: str
    values: Any
    hint: str
    check: Callable[[T], None] | None = None
    format: int | None = None

    @functools.cached_property
    def _adapter(self) -> TypeAdapter:
        return TypeAdapter(self.values)

    def read(self, path: str | Path) -> T:
        """Return the content of a JSON file.

        Raises:
            InvalidInputError: If there is no such file, or it is not JSON or not of this kind.
        """
        try:
            value = read_json(path)
        except (OSError, ValueError) as error:
            raise self._unreadable(path, error) from None
        return self.validate(value, path)

    def read_lines(self, path: str | Path) -> list[T]:
        """Return the content of a file with one JSON value per line, each of this kind.

        Raises:
            InvalidInputError: If there is no such file, or a line is not JSON or not of this kind.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise self._unreadable(path, error) from None
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                value = parse_json(line)
            except ValueError as error:
                raise self._unreadable(f"{path}, line {number}", error) from None
            found.append(self.validate(value, f"{path}, line {number}"))
        return found

    def validate(self, value: Any, source: str | Path) -> T:
        """Return a JSON value that was read from `source`, after checking it.

        Raises:
            InvalidInputError: If it is not of this kind.
        """
        try:
            if self.format is not None and isinstance(value, dict) and value.get("format", self.format) != self.format:
                raise ValueError(f"format {shown(value['format'])}, and this version reads {self.format}")
            found = self._adapter.validate_python(value)
            if self.check is not None:
                self.check(found)
        except ValidationError as error:
            raise InvalidInputError(f"{source} is not {self.what}: {_problem(error)}; hint: {self.hint}") from None
        except ValueError as error:
            raise InvalidInputError(f"{source} is not {self.what}: {error}; hint: {self.hint}") from None
        return found

    def _unreadable(self, source: str | Path, error: Exception) -> InvalidInputError:
        reason = getattr(error, "strerror", None) or str(error)
        return InvalidInputError(f"{source} cannot be read as {self.what}: {reason}; hint: {self.hint}")


def read_arrays(path: str | Path, arrays: Mapping[str, tuple[str, int]], hint: str) -> dict[str, np.ndarray]:
    """Return arrays of an `.npz` file.

    Args:
        path: The file.
        arrays: Name -> the kinds of NumPy's `dtype.kind` that the array may have, and its number of dimensions.
        hint: What to do if the file is damaged.

    Raises:
        InvalidInputError: If there is no such file, it is damaged, or an array is missing or another one.
    """
    try:
        # NumPy leaves a file open that it cannot read.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in arrays}
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror or error}; hint: {hint}") from None
    except KeyError as error:
        raise InvalidInputError(f"{path}: the array {error.args[0]} is missing; hint: {hint}") from None
    except Exception as error:  # NumPy and zipfile raise many kinds for damaged bytes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInputError(f"{path} cannot be read: {reason}; hint: {hint}") from None
    for name, (kinds, dimensions) in arrays.items():
        array = found[name]
        if array.dtype.kind not in kinds or array.ndim != dimensions:
            raise InvalidInputError(
                f"{path}: the array {name} is {array.dtype} of shape {list(array.shape)}, which was not stored there; "
                f"hint: {hint}"
            )
    return found


def shown(value: Any) -> str:
    """A JSON value as a message shows it, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _problem(error: ValidationError) -> str:
    """The first thing that is wrong, with its key and its value, and how many others there are."""
    first, *others = error.errors(include_url=False)
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        said = f"{key} is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        said = f"{key}: {message}" if key else message
        said += f" (got {shown(first['input'])})"
    return said + (f", and {len(others)} more" if others else "")
