"""`@spec`: a frozen, hashable, keyword-only dataclass that rejects unknown fields and invalid values.

The same class reads YAML, serves Python users and is used in tests, with one validation. Because specs are hashable,
they can be static arguments of a traced function.
"""

import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Annotated, Any, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from ..errors import InvalidInputError, format_error, named

STORED = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
"""How the types of stored JSON values are checked: exact types, finite numbers, and further keys are kept."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def spec(cls):
    """Turn a class of annotated fields into a spec: a frozen, hashable dataclass with validated fields. A decorator.

    Args:
        cls: A class with annotated fields; a default value makes a field optional. Arguments are given by keyword.

    Returns:
        The dataclass. An unknown field or an invalid value raises InvalidInputError in a call.

    Example:
        >>> import keras_rcl
        >>> @keras_rcl.spec
        ... class Pair:
        ...     first: int = 1
        ...     second: int = 2
        >>> Pair(second="7")
        Pair(first=1, second=7)
    """
    made = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(cls)
    validate = made.__init__

    known = [field.name for field in dataclasses.fields(made)]

    @functools.wraps(validate)
    def init(self, *args, **fields):
        if args:
            names = ", ".join(name for name in known if name != "name")
            raise InvalidInputError(f"{named(args[0])} is given to {cls.__name__} without a name; hint: one of {names}")
        try:
            validate(self, **fields)
        except ValidationError as error:
            raise InvalidInputError(format_error(error, known)) from None

    made.__init__ = init  # type: ignore[method-assign]
    return made


if TYPE_CHECKING:
    PathText = Any  # A field that a user sets by a text or a path, and that is read as a text.
else:
    PathText = Annotated[
        str, BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)
    ]
"""The text of a path."""
