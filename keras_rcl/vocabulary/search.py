"""Ranges of a hyper-parameter search, and the default ranges of a method."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from pydantic import Field

from keras_rcl.errors import InvalidInputError, did_you_mean
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import parse_fraction

OBJECTIVES = ("robust_accuracy", "clean_accuracy", "mean", "harmonic_mean")
"""What a search maximises: one of two accuracies or a mean of both."""

BATCH_SIZES = ("64", "128", "256")


@spec
class Interval:
    """Numbers from `low` to `high`: `uniform`, `log` (uniform in the logarithm), or whole ones, `int`."""

    name: Literal["uniform", "log", "int"]
    low: float
    high: float

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"{self} is empty; give the lower end first")
        if self.name == "log" and self.low <= 0:
            raise ValueError(f"{self} starts at {self.low:g}, which has no logarithm; start above 0")
        if self.name == "int" and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"{self} needs whole numbers as ends; round them")

    @property
    def ends(self) -> tuple[str, ...]:
        """Its extreme values, as `--set` takes them."""
        return tuple(self.text(end) for end in (self.low, self.high))

    def text(self, value: float) -> str:
        """A value, as `--set` takes it."""
        return str(int(value)) if self.name == "int" else repr(float(value))

    @property
    def all_values(self) -> Sequence[int] | None:
        """Its values in order; None if they are not whole numbers."""
        return range(int(self.low), int(self.high) + 1) if self.name == "int" else None

    def __str__(self) -> str:
        return f"{self.name}({self.low:g}, {self.high:g})"


@spec
class Choice:
    """One of several values, each as `--set` takes it."""

    name: Literal["choice"] = "choice"
    values: Annotated[tuple[str, ...], Field(min_length=2)]

    def __post_init__(self):
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"{self} has a value twice")

    @property
    def ends(self) -> tuple[str, ...]:
        return self.values

    def text(self, value: str) -> str:
        return value

    @property
    def all_values(self) -> Sequence[str]:
        return self.values

    def __str__(self) -> str:
        return f"choice({', '.join(self.values)})"


Range = Annotated[Union[Interval, Choice], Field(discriminator="name")]

RANGES = ("log", "uniform", "int", "choice")


def parse_range(text: str) -> Range:
    """A range as it is written: `log(1e-4, 1e-2)`, `uniform(0, 1)`, `int(2, 20)`, `choice(64, 128, 256)`.

    Numbers may be fractions, such as 8/255.

    Raises:
        InvalidInputError: if the text is not a range; the message names it.
    """
    example = "write log(1e-4, 1e-2), uniform(0, 1), int(2, 20) or choice(64, 128)"
    found = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text) if isinstance(text, str) else None
    if not found:
        raise InvalidInputError(f"{text!r} is not a range; {example}")
    name: Any
    name, inner = found.groups()
    if name not in RANGES:
        raise InvalidInputError(f"{text!r}: there is no range {name!r}{did_you_mean(name, RANGES)}; {example}")
    values = tuple(value.strip() for value in _split(inner))
    try:
        if name == "choice":
            return Choice(values=values)
        if len(values) != 2:
            raise InvalidInputError(f"{text!r} has {len(values)} ends; {example}")
        low, high = map(parse_fraction, values)
        return Interval(name=name, low=low, high=high)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{text!r}: its ends must be numbers; {example}") from None


def count_combinations(space: Mapping[str, Range]) -> float:
    """The number of combinations of values of the settings; infinite if a range holds more than whole numbers."""
    return math.prod(math.inf if (found := values.all_values) is None else len(found) for values in space.values())


def parse_search(text: str) -> tuple[str, Range]:
    """A setting and its range: `method.temperature=log(0.05, 0.5)`."""
    path, equals, tail = text.partition("=")
    if not equals or not path.strip():
        raise InvalidInputError(f"--search {text!r} is not SETTING=RANGE, such as 'method.temperature=log(0.05, 0.5)'")
    return path.strip(), parse_range(tail)


def default_search(method: Mapping[str, Any]) -> dict[str, Range]:
    """Ranges around a method's current values, for the settings that the papers tuned.

    Learning rates vary by a factor of 10 to either side, temperatures by a factor of 4, weights (alpha, beta) from 0.05
    to 0.95 if they lie there and by a factor of 4 otherwise; Wang's margins and the batch size vary too. Attacks and
    augmentations do not.

    Args:
        method: its fields as plain values, as `config.to_dict` gives them.
    """
    found: dict[str, Range] = {}

    def visit(fields: Mapping[str, Any], path: str) -> None:
        for name, value in fields.items():
            place = f"{path}.{name}"
            if isinstance(value, Mapping):
                if "term" in value or name.endswith("optimizer"):
                    visit(value, place)
            elif (chosen := _default_range(name, value)) is not None:
                found[place] = chosen

    visit(method, "method")
    return found


def _default_range(name: str, value: Any) -> Range | None:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if name == "batch_size":
        return Choice(values=tuple(dict.fromkeys([*BATCH_SIZES, str(value)])))
    if name == "positive_margin":
        return Interval(name="uniform", low=0.2, high=0.9)
    if name == "negative_margin":
        return Interval(name="uniform", low=-0.2, high=0.4)
    if not number or number < 0:
        return None
    if name == "learning_rate":
        return Interval(name="log", low=number / 10, high=number * 10)
    if name.endswith("temperature"):
        return Interval(name="log", low=number / 4, high=number * 4)
    if name in ("alpha", "beta", "weight"):
        if 0.05 <= number <= 0.95:
            return Interval(name="uniform", low=0.05, high=0.95)
        return Interval(name="log", low=number / 4, high=number * 4)
    return None


def _split(text: str) -> list[str]:
    """Split a text at the commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
