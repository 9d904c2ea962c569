"""Attacks that need no gradient: Square, RayS, HopSkipJump and random noise."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks.base import AttackBase, times
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import Norm, Pixels


@spec
class Square(AttackBase):
    """Square: random search with square patches, on scores only.

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        num_queries: forward passes per image and restart.
        num_restarts: runs per image.
        p_init: share of the pixels that the first patches cover.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Square(num_queries=1000).label
        'Square-1000'

    References:
        Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random search".
    """

    name: Literal["square"] = "square"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_queries: PositiveInt = 5000
    num_restarts: PositiveInt = 1
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8

    steps_field = "num_queries"

    @property
    def num_passes(self) -> tuple[int, int]:
        return self.num_queries, 0

    @property
    def label(self) -> str:
        return f"Square-{self.num_queries}{times(self.num_restarts)}"


@spec
class RayS(AttackBase):
    """RayS: search among rays of sign vectors, on the predicted class only.

    The attack succeeds on an image if the adversarial image that it finds lies within `epsilon`. It is deterministic.

    Attributes:
        norm: `linf`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        num_queries: forward passes per image.
        tolerance: L2 length of the interval at which the search along a ray ends, as in the published code.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.RayS(num_queries=500).label
        'RayS-500'

    References:
        Chen and Gu 2020, "RayS: a ray searching method for hard-label adversarial attack".
    """

    name: Literal["rays"] = "rays"
    norm: Literal["linf"] = "linf"
    epsilon: Pixels = 8 / 255
    num_queries: PositiveInt = 10_000
    tolerance: PositiveFloat = 1e-3

    minimal = stops_within = True
    steps_field = "num_queries"

    @property
    def num_passes(self) -> tuple[int, int]:
        return self.num_queries, 0

    @property
    def label(self) -> str:
        return f"RayS-{self.num_queries}"


@spec
class HopSkipJump(AttackBase):
    """HopSkipJump: a walk along the decision border toward the image, on the predicted class only.

    The attack succeeds on an image if the adversarial image that it finds lies within `epsilon`.

    Attributes:
        norm: the distance, `linf` or `l2`.
        epsilon: radius of the ball in pixel units, such as "128/255".
        num_queries: forward passes per image, at least 100.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.HopSkipJump(num_queries=5000).label
        'HopSkipJump-5000'

    References:
        Chen, Jordan and Wainwright 2020, "HopSkipJumpAttack: a query-efficient decision-based attack".
    """

    name: Literal["hopskipjump"] = "hopskipjump"
    norm: Literal["linf", "l2"] = "l2"
    epsilon: Pixels = 128 / 255
    num_queries: Annotated[int, Field(ge=100)] = 10_000

    minimal = stops_within = True
    steps_field = "num_queries"

    @property
    def num_passes(self) -> tuple[int, int]:
        return self.num_queries, 0

    @property
    def label(self) -> str:
        return f"HopSkipJump-{self.num_queries}"


@spec
class Noise(AttackBase):
    """Random noise within the ball: the control that an attack has to beat.

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        kind: `uniform` in the ball; `gaussian` of standard deviation epsilon / sqrt(3), clipped to the ball (linf) or
            scaled to length epsilon (l2, l1); or `salt_and_pepper`, a random share of the pixels pushed to white or
            black as far as the ball allows.
        num_restarts: draws per image.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Noise(kind="gaussian", num_restarts=10).label
        'noise gaussian x10'
    """

    name: Literal["noise"] = "noise"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    kind: Literal["uniform", "gaussian", "salt_and_pepper"] = "uniform"
    num_restarts: PositiveInt = 1

    @property
    def num_passes(self) -> tuple[int, int]:
        return 0, 0

    @property
    def label(self) -> str:
        return f"noise {self.kind} {times(self.num_restarts)}".rstrip()
