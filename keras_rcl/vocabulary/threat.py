"""Distances in pixels: the unit of every epsilon and step size in this package."""

import math
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator, PlainSerializer

from keras_rcl.vocabulary.word import word

Norm = Literal["linf", "l2"]
"""The geometry of the ball: `linf` bounds every pixel's change, `l2` the Euclidean length of the whole change."""

PROTOCOL = "pixel"
"""The coordinates in which an attack runs: ball and box in [0, 1], the only protocol that may be called "8/255"."""


def parse_pixels(value: object) -> float:
    """A distance in [0, 1] pixel units, written as the field writes it.

    >>> parse_pixels("8/255") == 8 / 255
    True

    Raises:
        ValueError: if the value is no number or fraction, is negative, or is not finite.
    """
    try:
        number = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{value!r} is not a distance; write it as 8/255 or 0.031") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} is not a distance; it must be finite and not negative, such as 8/255")
    return number


def format_pixels(value: float) -> str:
    """The shortest text that `parse_pixels` reads back to the same float: `8/255` where it is one, else a decimal."""
    text = f"{round(value * 255)}/255"
    if value in (0.0, 1.0):
        return f"{value:g}"
    return text if parse_pixels(text) == value else repr(value)


Pixels = Annotated[
    float,
    BeforeValidator(parse_pixels),
    PlainSerializer(format_pixels, return_type=str, when_used="json"),
]
"""A distance in pixel units, [0, 1]: accepts `8/255`, `"8/255"` and `0.031`, and prints as `8/255`."""


def check_epsilon(epsilon: float, norm: Norm) -> None:
    """Refuse an L-inf radius above the whole pixel range: the classic 0-255 mistake.

    Raises:
        ValueError: if `norm` is `linf` and `epsilon` is larger than 1.
    """
    if norm == "linf" and epsilon > 1:
        raise ValueError(
            f"epsilon {epsilon:g} is larger than the whole pixel range [0, 1]; did you mean {epsilon:g}/255?"
        )


def check_step_size(step_size: float | None, norm: Norm) -> None:
    """Refuse a step that never moves, or an L-inf step above the whole pixel range; none given is fine.

    Raises:
        ValueError: if `step_size` is 0, or `norm` is `linf` and it is larger than 1.
    """
    if step_size == 0:
        raise ValueError("step_size 0 never moves; leave it out for a quarter of epsilon")
    if step_size is not None and norm == "linf" and step_size > 1:
        raise ValueError(
            f"step_size {step_size:g} is larger than the whole pixel range [0, 1]; did you mean {step_size:g}/255?"
        )


@word
class ThreatModel:
    """What an attacker may do: move an image by at most `epsilon` in `norm`, staying in the pixel box [0, 1]."""

    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255

    def __post_init__(self):
        check_epsilon(self.epsilon, self.norm)
