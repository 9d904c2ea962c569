"""`@word`: a frozen, hashable, keyword-only dataclass that refuses unknown fields and wrong values.

The same value serves YAML, Python and tests, and is checked in all three. Being hashable, a word can be a static
argument of a traced function.
"""

import difflib
from collections.abc import Iterable
from typing import dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass


class Refused(ValueError):
    """Bad input, said in one line that names the offending value and the cure. The command line exits with status 2."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def word(cls):
    """Turn a class of annotated fields into a word."""
    return dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(cls)


def first_line(error: ValueError) -> str:
    """All that is wrong, in one line: `path: what (got value)` for what pydantic found, else the error's own text."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "unexpected_keyword_argument":
            message = "no such field"
        got = item.get("input")
        shown = f" (got {got!r})" if isinstance(got, (str, int, float, bool)) and repr(got) not in message else ""
        found.append(f"{path}: {message}{shown}" if path else f"{message}{shown}")
    return "; ".join(found)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'clafs'?` where a known name is close, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
