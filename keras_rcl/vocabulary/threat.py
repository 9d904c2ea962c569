"""Distances in pixel units, in which every epsilon and step size of this package is given."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.spec import spec

Norm = Literal["linf", "l2", "l1"]
"""The geometry of the ball: `linf` bounds every pixel's change, `l2` the Euclidean length of the whole change, `l1` the
sum of all changes."""

Protocol = Literal["pixel", "claf-repo", "cusin-repo", "wang-minus1to1", "wang-meanstd"]
"""The coordinates in which an attack runs; `PROTOCOLS` says what each one is."""


def parse_fraction(text: str) -> float:
    """The number that a text gives as a decimal or as a fraction of decimals.

    >>> parse_fraction("8/255") == 8 / 255, parse_fraction("0.5 / 255") == 0.5 / 255
    (True, True)

    Raises:
        ValueError: If the text is neither.
        ZeroDivisionError: If the denominator is 0.
        OverflowError: If the number is beyond the largest float.
    """
    if re.search(r"e[+-]?\d{4}", text, re.IGNORECASE):
        raise ValueError  # a fraction with such an exponent takes minutes
    above, *below = (Fraction(part.strip()) for part in text.split("/"))
    if len(below) > 1:
        raise ValueError
    return float(above / below[0] if below else above)


def parse_pixels(value: Any) -> float:
    """A distance in [0, 1] pixel units, written as the field writes it.

    >>> parse_pixels("8/255") == 8 / 255
    True

    Raises:
        ValueError: if the value is not a number or fraction, is negative, or is not finite.
    """
    try:
        number = parse_fraction(value) if isinstance(value, str) else float(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{value!r} is not a distance; write it as 8/255 or 0.031") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} is not a distance; it must be finite and not negative, such as 8/255")
    return number


def format_pixels(value: float) -> str:
    """The shortest text that `parse_pixels` reads back to the same float, and `n/255` for every multiple of 1/255.

    >>> format_pixels(8 / 255), format_pixels(0.5 / 255), format_pixels(0.031)
    ('8/255', '0.5/255', '0.031')
    """
    if value in (0.0, 1.0):
        return f"{value:g}"
    if parse_pixels(text := f"{round(value * 255)}/255") == value:
        return text
    text = f"{round(value * 255, 3):g}/255"
    return text if len(text) < len(repr(value)) and parse_pixels(text) == value else repr(value)


if TYPE_CHECKING:
    Pixels = Any  # A field that a user sets by a number or a text, and that is read as a float.
else:
    Pixels = Annotated[
        float,
        BeforeValidator(parse_pixels),
        PlainSerializer(format_pixels, return_type=str, when_used="json"),
    ]
"""A distance in pixel units, [0, 1]: accepts `8/255`, `"8/255"` and `0.031`, and prints as `8/255`."""

Sigma = Annotated[float, Field(gt=0, le=100)]
"""The standard deviation of Gaussian noise, in pixel units."""


def format_epsilon(value: float, norm: Norm) -> str:
    """A radius as the field writes it: `8/255` for linf and l2, where it is such a fraction; `12` for l1."""
    return format_pixels(value) if norm != "l1" else repr(value).removesuffix(".0")


LARGEST_LENGTH: dict[Norm, float] = {"linf": 1.0, "l2": 100.0, "l1": 10_000.0}
"""The largest distance of each norm that a setting accepts; a larger one was probably given in units of 0 to 255.

No two images differ by more than 1 in `linf`. They differ by at most sqrt(H W C) in `l2` and H W C in `l1`, which
`check_ball` compares with where the images are known; 100 and 10,000 are above that for images of up to 57 x 57 x 3,
and far above every radius in use.
"""


def length_of_ones(count: int, norm: Norm) -> float:
    """The length of a change of 1 in each of `count` entries: the largest distance of two images of that size."""
    return {"linf": 1.0, "l2": math.sqrt(count), "l1": float(count)}[norm]


def check_epsilon(epsilon: float, norm: Norm) -> None:
    """Reject a radius that no image in [0, 1] needs: epsilon was probably given in 0-255.

    Raises:
        ValueError: if `epsilon` is larger than `LARGEST_LENGTH` of the norm.
    """
    _check_length("epsilon", epsilon, norm)


def check_step_size(step_size: float | None, norm: Norm) -> None:
    """Reject a step of length 0 and one that is longer than any radius; None is valid.

    Raises:
        ValueError: if `step_size` is 0, or larger than `LARGEST_LENGTH` of the norm.
    """
    if step_size == 0:
        raise ValueError("step_size 0 never moves; leave it out for a quarter of epsilon")
    if step_size is not None:
        _check_length("step_size", step_size, norm)


def check_ball(epsilon: float, norm: Norm, image_shape: Sequence[int | None], name: str = "epsilon") -> None:
    """Reject a distance that is longer than the diagonal of the pixel box of these images, and an l1 radius in 1/255.

    Args:
        epsilon: the distance.
        norm: `linf`, `l2` or `l1`.
        image_shape: (H, W, C). A shape with None is not checked.
        name: the name of the distance in the message.

    Raises:
        InvalidInputError: if no two images in [0, 1] of this shape are as far apart; or if the distance is a radius in
            l1 that was written as a fraction of 255, which is less than one pixel's range.
    """
    fraction = format_pixels(epsilon)
    if norm == "l1" and name == "epsilon" and 0 < epsilon < 1 and len(fraction) < len(repr(epsilon)):
        raise InvalidInputError(
            f"{name} {fraction} in l1 is less than the range of one pixel; hint: an l1 radius is the sum of all "
            f"changes in units of [0, 1], such as {name}={fraction.removesuffix('/255')}"
        )
    if norm == "linf" or None in image_shape:
        return
    diagonal = length_of_ones(math.prod(size for size in image_shape if size is not None), norm)
    if epsilon > diagonal * (1 + 1e-6):
        shape = "x".join(map(str, image_shape))
        raise InvalidInputError(
            f"{name} {epsilon:g} in {norm} is larger than {diagonal:g}, the largest distance of two {shape} images in "
            f"[0, 1]; {_in_unit_range(epsilon, norm)}"
        )


def _check_length(name: str, length: float, norm: Norm) -> None:
    if length <= LARGEST_LENGTH[norm]:
        return
    if norm == "linf":
        why = f"{name} {length:g} is larger than the whole pixel range [0, 1]"
    else:
        why = f"{name} {length:g} in {norm} is larger than {LARGEST_LENGTH[norm]:g}; pixels are in [0, 1]"
    raise ValueError(f"{why}; {_in_unit_range(length, norm)}")


def _in_unit_range(length: float, norm: Norm) -> str:
    """What a distance was probably meant to be that was given in units of 0 to 255."""
    return f"did you mean {length / 255:g}?" if norm == "l1" else f"did you mean {length:g}/255?"


@spec
class ThreatModel:
    """What an attacker may do: move an image by at most `epsilon` in `norm`, within the pixel box [0, 1].

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
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
        last_step_counts: False if success is recorded before each step, so that the result of the last one is lost in
            an evaluation; examples to train on have all steps.
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
- `cusin-repo` (Cusin 2026): epsilon in [-1, 1], so 8/255 is 4/255 in pixels; success is recorded before each step
  and replaces what was recorded, so that of several steps the last one never counts.
- `wang-minus1to1`, `wang-meanstd` (Wang 2024): "[-1, 1] using mean and std", either way that it can be read.

A grey image takes the mean of the three channels' numbers.
"""
