"""The error that bad input raises, and how its one line is written."""

import difflib
from collections.abc import Iterable

from pydantic import ValidationError


class InvalidInputError(ValueError):
    """Input that cannot be used.

    The message is one line: the value that was given, why it cannot be used, and a hint. The command line prints it
    and exits with status 2.

    Example:
        >>> import keras_rcl
        >>> try:
        ...     keras_rcl.Square().with_protocol("claf-repo")
        ... except keras_rcl.InvalidInputError as error:
        ...     print(str(error).partition(";")[0])
        Square-5000 runs in pixels only, not under claf-repo
    """

    def __init__(self, message: str):
        # Names that a file or a user gave must not break the line, nor control the terminal.
        shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(message))
        super().__init__("".join(shown))


def format_error(error: ValueError, known: Iterable[str] = ()) -> str:
    """All that is wrong, in one line: `path: what (got value)` for what pydantic found, else the error's own text.

    Args:
        error: The error.
        known: The fields, one of which an unknown field may stand for.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    found = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        message, close = item["msg"].removeprefix("Value error, "), ""
        if item["type"] == "unexpected_keyword_argument":
            message, close = "no such field", did_you_mean(path, known)
        if item["type"] == "union_tag_invalid":
            tag, tags = (item["ctx"][key] for key in ("tag", "expected_tags"))
            message = f"{tag!r} is not one of {tags}"
        got = item.get("input")
        shown = f" (got {got!r})" if isinstance(got, (str, int, float, bool)) and repr(got) not in message else ""
        found.append(f"{path}: {message}{shown}{close}" if path else f"{message}{shown}")
    return "; ".join(found)


def named(value: object) -> str:
    """What a value is, for a message that refuses it: `the class PGD`, `3`, `a Sequential`."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'clafs'?` where a known name is close, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
