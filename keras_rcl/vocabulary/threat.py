"""Distances in pixel units, in which every epsilon and step size of this package is given."""

import math
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer

from keras_rcl.vocabulary.spec import spec

Norm = Literal["linf", "l2"]
"""The geometry of the ball: `linf` bounds every pixel's change, `l2` the Euclidean length of the whole change."""

Protocol = Literal["pixel", "claf-repo", "cusin-repo", "wang-minus1to1", "wang-meanstd"]
"""The coordinates in which an attack runs; `PROTOCOLS` says what each one is."""


def parse_pixels(value: Any) -> float:
    """A distance in [0, 1] pixel units, written as the field writes it.

    >>> parse_pixels("8/255") == 8 / 255
    True

    Raises:
        ValueError: if the value is not a number or fraction, is negative, or is not finite.
    """
    try:
        if isinstance(value, str) and re.search(r"e[+-]?\d{4}", value, re.IGNORECASE):
            raise ValueError  # a fraction of so many digits takes minutes
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


if TYPE_CHECKING:
    Pixels = Any  # A field that a user sets by a number or a text, and that is read as a float.
else:
    Pixels = Annotated[
        float,
        BeforeValidator(parse_pixels),
        PlainSerializer(format_pixels, return_type=str, when_used="json"),
    ]
"""A distance in pixel units, [0, 1]: accepts `8/255`, `"8/255"` and `0.031`, and prints as `8/255`."""


def check_epsilon(epsilon: float, norm: Norm) -> None:
    """Reject an L-inf radius above the whole pixel range: epsilon was probably given in 0-255.

    Raises:
        ValueError: if `norm` is `linf` and `epsilon` is larger than 1.
    """
    if norm == "linf" and epsilon > 1:
        raise ValueError(
            f"epsilon {epsilon:g} is larger than the whole pixel range [0, 1]; did you mean {epsilon:g}/255?"
        )


def check_step_size(step_size: float | None, norm: Norm) -> None:
    """Reject a step of length 0 and an L-inf step above the whole pixel range; None is valid.

    Raises:
        ValueError: if `step_size` is 0, or `norm` is `linf` and it is larger than 1.
    """
    if step_size == 0:
        raise ValueError("step_size 0 never moves; leave it out for a quarter of epsilon")
    if step_size is not None and norm == "linf" and step_size > 1:
        raise ValueError(
            f"step_size {step_size:g} is larger than the whole pixel range [0, 1]; did you mean {step_size:g}/255?"
        )


@spec
class ThreatModel:
    """What an attacker may do: move an image by at most `epsilon` in `norm`, within the pixel box [0, 1].

    Attributes:
        norm: the ball, `linf` or `l2`.
        epsilon: radius of the ball, such as "8/255", in pixel units if `protocol` is `pixel`.
        protocol: the coordinates in which ball and box are given.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.ThreatModel(epsilon="8/255") == keras_rcl.PGD(epsilon=8 / 255).threat_model
        True
    """

    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    protocol: Protocol = "pixel"

    def __post_init__(self):
        check_epsilon(self.epsilon, self.norm)


@spec
class Coordinates:
    """The coordinates of a protocol: u = (x - shift) / scale, one number per channel, for pixels x in [0, 1].

    Attributes:
        shift: of the red, green and blue channel.
        scale: of the red, green and blue channel.
        box: what u is clamped to, the same in every channel; if not given, the image of the pixel box.
        last_step_counts: False if success is recorded before each step, so that the result of the last one is lost.
    """

    shift: tuple[float, ...] = (0.0, 0.0, 0.0)
    scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    box: tuple[float, float] | None = None
    last_step_counts: bool = True


_CIFAR10: dict[str, Any] = dict(shift=(0.4914, 0.4822, 0.4465), scale=(0.2023, 0.1994, 0.2010))
_CIFAR100: dict[str, Any] = dict(shift=(0.5071, 0.4867, 0.4408), scale=(0.2675, 0.2565, 0.2761))
_MINUS1TO1: dict[str, Any] = dict(shift=(0.5, 0.5, 0.5), scale=(0.5, 0.5, 0.5))

PROTOCOLS: dict[str, Coordinates] = {
    "pixel": Coordinates(),
    "claf-repo": Coordinates(**_CIFAR10, box=(0.0, 1.0)),
    "cusin-repo": Coordinates(**_MINUS1TO1, last_step_counts=False),
    "wang-minus1to1": Coordinates(**_MINUS1TO1),
    "wang-meanstd": Coordinates(**_CIFAR100),
}
"""The coordinates of each protocol.

`pixel` is the only one whose 8/255 may be called "8/255". The others are what the papers' published code did, or what a
paper's words allow, with the constants of the CIFAR data set that it was run on:

- `claf-repo` (Rahamim and Naeh 2022): epsilon in units of the channel's standard deviation, so 8/255 is 1.6/255 in
  pixels; clamped to [0, 1] in those units, which are the pixels from about 125 to 177 of red: even epsilon 0 changes
  an image.
- `cusin-repo` (Cusin 2026): epsilon in [-1, 1], so 8/255 is 4/255 in pixels; the last step of several never counts.
- `wang-minus1to1`, `wang-meanstd` (Wang 2024): "[-1, 1] using mean and std", either way that it can be read.

A grey image takes the mean of the three channels' numbers.
"""
