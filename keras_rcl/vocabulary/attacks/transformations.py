"""What changes an image by more than a norm can bound: rotations and translations, and common corruptions."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks.base import AttackBase
from keras_rcl.vocabulary.spec import spec

CorruptionKind = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
"""The 15 kinds of Hendrycks and Dietterich, under the names of the files of CIFAR-10-C and ImageNet-C."""

CORRUPTION_KINDS: tuple[CorruptionKind, ...] = get_args(CorruptionKind)
SEVERITIES = (1, 2, 3, 4, 5)

SMALLEST_SIDE = 8
"""The least height and width of an image that is corrupted; eight pixels are one block of JPEG."""


class WithoutBall(AttackBase):
    """An attack whose images no norm bounds: it has no epsilon."""

    @property
    def norm(self) -> None:
        return None

    @property
    def epsilon(self) -> None:
        return None


@spec
class Spatial(WithoutBall):
    """Rotation and translation: the worst of a grid, or of random ones.

    The image is rotated about its center and then moved, with bilinear interpolation. The unchanged image is tried
    first. Of the transformations that do not fool the classifier, the one of the smallest margin is kept.

    Attributes:
        max_rotation: largest angle in degrees, either way, at most 180.
        max_translation: largest shift as a share of the height (down) and of the width (right), either way, at most 1;
            0.1 is 3.2 pixels of 32.
        num_rotations: angles of the grid, evenly spaced from -max_rotation to max_rotation; one is the angle 0. At most
            1000.
        num_translations: shifts of the grid in each direction, spaced in the same way, at most 100.
        num_random: the number of random transformations per image in place of the grid (worst-of-k), at most 100,000;
            the grid if not given.
        padding: what is outside the image: `zeros`, or `reflect`, the image mirrored at its outermost pixels.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Spatial(num_rotations=5, num_translations=3).label
        'spatial 5x3x3'
        >>> keras_rcl.Spatial(num_random=10).label
        'spatial worst-of-10'

    References:
        Engstrom et al. 2019, "Exploring the landscape of spatial robustness".
    """

    name: Literal["spatial"] = "spatial"
    max_rotation: Annotated[float, Field(ge=0, le=180)] = 30.0
    max_translation: Annotated[float, Field(ge=0, le=1)] = 0.1
    num_rotations: Annotated[int, Field(ge=1, le=1000)] = 31
    num_translations: Annotated[int, Field(ge=1, le=100)] = 5
    num_random: Annotated[int, Field(ge=1, le=100_000)] | None = None
    padding: Literal["zeros", "reflect"] = "zeros"

    steps_field = "num_random"

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = self.num_rotations, self.num_translations
        if self.num_random is not None and counts != (Spatial.num_rotations, Spatial.num_translations):
            raise ValueError("num_random is in place of the grid; leave out num_rotations and num_translations, or it")

    @property
    def num_transformations(self) -> int:
        """How many transformations are tried, without the unchanged image."""
        return self.num_random or self.num_rotations * self.num_translations**2

    @property
    def num_passes(self) -> tuple[int, int]:
        return self.num_transformations + 1, 0

    @property
    def label(self) -> str:
        if self.num_random:
            tried = f"worst-of-{self.num_random}"
        else:
            tried = f"{self.num_rotations}x{self.num_translations}x{self.num_translations}"
        limits = [name for name in ("max_rotation", "max_translation") if getattr(self, name) != getattr(Spatial, name)]
        other = [f"{name}={getattr(self, name):g}" for name in limits]
        return " ".join(["spatial", tried, *other, *([self.padding] if self.padding != "zeros" else [])])


@spec
class Corruptions(WithoutBall):
    """Common corruptions: 15 kinds of noise, blur, weather and digital faults, each in 5 severities.

    They ask the classifier nothing. Every image is corrupted, also one that is misclassified, and the accuracy on the
    corrupted images is reported.

    Attributes:
        kind: one of the 15 kinds; all of them if not given.
        severity: 1 to 5; all of them if not given.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Corruptions(kind="fog", severity=3).label
        'corruption fog 3'
        >>> len(keras_rcl.Corruptions().variations)
        75

    References:
        Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
        perturbations".
    """

    name: Literal["corruptions"] = "corruptions"
    kind: CorruptionKind | None = None
    severity: Annotated[int, Field(ge=1, le=5)] | None = None

    steps_field = "severity"
    every_image = True

    @property
    def variations(self) -> tuple["Corruptions", ...]:
        kinds = CORRUPTION_KINDS if self.kind is None else (self.kind,)
        severities = SEVERITIES if self.severity is None else (self.severity,)
        return tuple(dataclasses.replace(self, kind=kind, severity=number) for kind in kinds for number in severities)

    @property
    def num_passes(self) -> tuple[int, int]:
        return 0, 0

    @property
    def label(self) -> str:
        return " ".join(["corruption", self.kind or "of all kinds", str(self.severity or "")]).rstrip()

    def check_images(self, image_shape: Sequence[int | None]) -> None:
        """Check that images of this shape (H, W, C) can be corrupted.

        Raises:
            InvalidInputError: if a side is shorter than 8 pixels, or there are neither 1 nor 3 channels.
        """
        shape = "x".join(map(str, image_shape))
        if any(side is not None and side < SMALLEST_SIDE for side in image_shape[:2]):
            raise InvalidInputError(
                f"images of {shape} are too small for corruptions, which need {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels; "
                "hint: leave corruptions out"
            )
        if image_shape[2] not in (1, 3, None):
            raise InvalidInputError(
                f"images of {shape} have {image_shape[2]} channels, and corruptions are of 1 or 3; hint: leave "
                "corruptions out"
            )
