"""Attacks that look for the nearest adversarial image: FAB, Carlini-Wagner, DeepFool, DDN and FMN."""

import dataclasses
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks.base import AttackBase, times
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import Norm, Pixels


@spec
class FAB(AttackBase):
    """FAB: the nearest adversarial image, by projections onto the linearised decision border.

    The attack succeeds on an image if the adversarial image that it finds lies within `epsilon`.

    Attributes:
        norm: the distance, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        num_steps: steps per round.
        num_restarts: runs per image (and per target class), each from another random start.
        multi_targeted: FAB-T: one round per target class. False is FAB as first published: each step moves toward the
            class whose border is nearest, at one backward pass per class.
        num_targets: target classes of FAB-T: the likeliest ones after the true class.
        alpha_max: largest weight of the bias toward the original image.
        eta: overshoot, a factor of each projection step.
        beta: weight of the backward step toward the original image, after each success.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.FAB(norm="l2", epsilon=0.5).label
        'FAB-T'

    References:
        Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack".
    """

    name: Literal["fab"] = "fab"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_steps: PositiveInt = 100
    num_restarts: PositiveInt = 1
    multi_targeted: bool = True
    num_targets: PositiveInt = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    @property
    def num_rounds(self) -> int:
        return self.num_restarts * (self.num_targets if self.multi_targeted else 1)

    @property
    def num_passes(self) -> tuple[int, int]:
        return 2 * self.num_steps + 1, self.num_steps * (1 if self.multi_targeted else self.num_targets + 1)

    def for_classes(self, num_classes: int) -> Self:
        """The same attack on a classifier of K classes: with at most K - 1 target classes, or all of them."""
        targets = min(self.num_targets, num_classes - 1) if self.multi_targeted else num_classes - 1
        return dataclasses.replace(self, num_targets=targets)

    @property
    def label(self) -> str:
        return f"FAB{'-T' if self.multi_targeted else ''}{times(self.num_restarts)}"


@spec
class CarliniWagner(AttackBase):
    """CW (L2, untargeted, f_6): the nearest adversarial image, by gradient descent.

    Minimises ||x' - x||^2 + c max(z_y - max_{j != y} z_j, -confidence) with Adam, for several constants c. The attack
    succeeds on an image if the adversarial image that it finds lies within `epsilon`. Defaults are those of the
    authors' code and of Foolbox, with 1,000 steps in place of 10,000, as in CleverHans.

    What papers call CW-inf is PGD on `logit_margin`: `cw-inf-40` on the command line.

    Attributes:
        norm: `l2`.
        epsilon: radius of the ball in pixel units, such as "128/255".
        num_steps: steps of Adam per constant c.
        binary_search_steps: constants c that are tried per image.
        initial_const: the first c.
        learning_rate: Adam's step size, in the variable w of x' = (tanh(w) + 1) / 2.
        confidence: the margin of logits that an adversarial image must reach.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.CarliniWagner(num_steps=100, binary_search_steps=5).num_passes
        (501, 500)

    References:
        Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks".
    """

    name: Literal["cw"] = "cw"
    norm: Literal["l2"] = "l2"
    epsilon: Pixels = 128 / 255
    num_steps: PositiveInt = 1000
    binary_search_steps: PositiveInt = 9
    initial_const: PositiveFloat = 1e-3
    learning_rate: PositiveFloat = 1e-2
    confidence: Annotated[float, Field(ge=0)] = 0.0

    minimal = True

    @property
    def num_passes(self) -> tuple[int, int]:
        steps = self.binary_search_steps * self.num_steps
        return steps + 1, steps

    @property
    def label(self) -> str:
        return f"CW-{self.num_steps}"


@spec
class DeepFool(AttackBase):
    """DeepFool: steps to the nearest border of the linearised classifier, until the image is adversarial.

    The attack succeeds on an image if the adversarial image that it finds lies within `epsilon`.

    Attributes:
        norm: the distance, `linf` or `l2`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        num_steps: steps per image.
        num_targets: classes whose borders are compared: the likeliest wrong classes of the clean image. Each costs one
            backward pass per step.
        overshoot: the perturbation is made longer by this factor, so that it crosses the border.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.DeepFool(norm="l2", epsilon="128/255").num_passes
        (102, 450)

    References:
        Moosavi-Dezfooli, Fawzi and Frossard 2016, "DeepFool: a simple and accurate method to fool deep neural
        networks".
    """

    name: Literal["deepfool"] = "deepfool"
    norm: Literal["linf", "l2"] = "l2"
    epsilon: Pixels = 128 / 255
    num_steps: PositiveInt = 50
    num_targets: PositiveInt = 9
    overshoot: Annotated[float, Field(ge=0)] = 0.02

    minimal = True

    @property
    def num_passes(self) -> tuple[int, int]:
        return 2 * self.num_steps + 2, self.num_steps * self.num_targets

    @property
    def label(self) -> str:
        return "DeepFool"


@spec
class DDN(AttackBase):
    """DDN: steps of cross-entropy on an L2 sphere that shrinks while the image is adversarial.

    The attack succeeds on an image if the adversarial image that it finds lies within `epsilon`.

    Attributes:
        norm: `l2`.
        epsilon: radius of the ball in pixel units, such as "128/255".
        num_steps: steps per image.
        initial_epsilon: radius of the first sphere, in pixel units.
        gamma: the share by which the sphere shrinks or grows per step.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.DDN(num_steps=300).label
        'DDN-300'

    References:
        Rony et al. 2019, "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and
        defenses".
    """

    name: Literal["ddn"] = "ddn"
    norm: Literal["l2"] = "l2"
    epsilon: Pixels = 128 / 255
    num_steps: PositiveInt = 100
    initial_epsilon: PositiveFloat = 1.0
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05

    minimal = True

    @property
    def num_passes(self) -> tuple[int, int]:
        return self.num_steps + 2, self.num_steps

    @property
    def label(self) -> str:
        return f"DDN-{self.num_steps}"


@spec
class FMN(AttackBase):
    """FMN: steps of the logit margin in a ball whose radius follows the distance to the decision border.

    The attack succeeds on an image if the adversarial image that it finds lies within `epsilon`.

    Attributes:
        norm: the distance, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        num_steps: steps per image.
        gamma: the share by which the ball shrinks or grows in the first step; it falls to 0.001 in the last one.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.FMN(norm="l2", epsilon="128/255").label
        'FMN-100'

    References:
        Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints".
    """

    name: Literal["fmn"] = "fmn"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_steps: PositiveInt = 100
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05

    minimal = True

    @property
    def num_passes(self) -> tuple[int, int]:
        return self.num_steps + 2, self.num_steps

    @property
    def label(self) -> str:
        return f"FMN-{self.num_steps}"
