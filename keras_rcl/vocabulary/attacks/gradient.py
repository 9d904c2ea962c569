"""Attacks that climb the loss within a ball: FGSM, BIM, MI-FGSM, PGD and APGD."""

import dataclasses
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt

from keras_rcl.vocabulary.attacks.base import AttackBase, eot, times
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import PROTOCOLS, Norm, Pixels, Protocol

Surrogate = Literal["cross_entropy", "logit_margin", "dlr", "kl_to_clean"]
"""What a gradient attack maximises; `keras_rcl.attacks.surrogates` holds the functions."""


class GradientAscent(AttackBase):
    """What the attacks of the plain gradient-ascent loop share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss == "kl_to_clean" and (self.targeted or not self.random_start):
            raise ValueError("loss kl_to_clean is flat at the image and has no target; use it with a random start")

    @property
    def num_steps(self) -> int:
        return 1

    @property
    def epsilon(self) -> float:
        raise NotImplementedError

    @property
    def step_size(self) -> float | None:
        return None

    @property
    def loss(self) -> Surrogate:
        return "cross_entropy"

    @property
    def random_start(self) -> bool:
        return False

    @property
    def start_deviation(self) -> float | None:
        return None

    @property
    def momentum(self) -> float:
        return 0.0

    @property
    def eot_iter(self) -> int:
        return 1

    @property
    def min_classes(self) -> int:
        return 3 + self.targeted if self.loss == "dlr" else 2

    @property
    def resolved_step_size(self) -> float:
        """The step in the protocol's units: `step_size` if given, else a quarter of `epsilon` (2/255 at 8/255)."""
        return self.epsilon / 4 if self.step_size is None else self.step_size

    @property
    def loses_last_step(self) -> bool:
        """Whether the last step is not made, as success is recorded before it.

        Some protocols do so. An attack that does not read logits cannot see success; all its steps count.
        """
        reads_logits = self.target_output == "logits"
        return reads_logits and self.num_steps > 1 and not PROTOCOLS[self.protocol].last_step_counts

    def for_training(self) -> Self:
        return dataclasses.replace(self, num_steps=self.num_steps + 1) if self.loses_last_step else self

    @property
    def num_passes(self) -> tuple[int, int]:
        """Forward and backward passes per image in one round; some losses need a forward pass of the image itself."""
        steps = self.num_steps - self.loses_last_step
        looks = self.targeted or self.loss == "kl_to_clean"
        return steps * self.eot_iter + looks, steps * self.eot_iter

    @property
    def suffix(self) -> str:
        """The part of a label after name and steps."""
        return ("" if self.loss == "cross_entropy" else f" {self.loss}") + (" targeted" if self.targeted else "")


@spec
class FGSM(GradientAscent):
    """Fast gradient sign method: one step of length epsilon up the loss.

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        targeted: whether labels are the classes to reach, not the true ones.
        loss: what the step increases; with `targeted` the loss of the class to reach is decreased.
        protocol: the coordinates that epsilon is measured in.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.FGSM(epsilon="4/255").label
        'FGSM'

    References:
        Goodfellow, Shlens and Szegedy 2015, "Explaining and harnessing adversarial examples"; Wang 2024, eq. 6.
    """

    name: Literal["fgsm"] = "fgsm"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    targeted: bool = False
    loss: Surrogate = "cross_entropy"
    protocol: Protocol = "pixel"

    @property
    def resolved_step_size(self) -> float:
        return self.epsilon

    @property
    def label(self) -> str:
        return f"FGSM{self.suffix}"


@spec
class BIM(GradientAscent):
    """Basic iterative method: iterated FGSM from the image itself.

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        step_size: length of a step in pixel units; a quarter of `epsilon` if not given.
        num_steps: steps per image.
        targeted: whether labels are the classes to reach, not the true ones.
        loss: what the steps increase; with `targeted` the loss of the class to reach is decreased.
        protocol: the coordinates that epsilon and the step are measured in.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.BIM(num_steps=20).label
        'BIM-20'

    References:
        Kurakin, Goodfellow and Bengio 2017, "Adversarial examples in the physical world".
    """

    name: Literal["bim"] = "bim"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    targeted: bool = False
    loss: Surrogate = "cross_entropy"
    protocol: Protocol = "pixel"

    @property
    def label(self) -> str:
        return f"BIM-{self.num_steps}{self.suffix}"


@spec
class MIFGSM(GradientAscent):
    """Momentum iterative FGSM: BIM along a decaying sum of gradients, each of unit L1 length.

    g_{t+1} = momentum * g_t + grad / ||grad||_1

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        step_size: length of a step in pixel units; `epsilon / num_steps` if not given.
        num_steps: steps per image.
        momentum: the factor of the sum of earlier gradients, above 0.
        targeted: whether labels are the classes to reach, not the true ones.
        loss: what the steps increase; with `targeted` the loss of the class to reach is decreased.
        protocol: the coordinates that epsilon and the step are measured in.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.MIFGSM(epsilon="10/255").resolved_step_size == 1 / 255
        True

    References:
        Dong et al. 2018, "Boosting adversarial attacks with momentum".
    """

    name: Literal["mifgsm"] = "mifgsm"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    momentum: Annotated[float, Field(gt=0)] = 1.0
    targeted: bool = False
    loss: Surrogate = "cross_entropy"
    protocol: Protocol = "pixel"

    @property
    def resolved_step_size(self) -> float:
        return self.epsilon / self.num_steps if self.step_size is None else self.step_size

    @property
    def label(self) -> str:
        return f"MI-FGSM-{self.num_steps}{self.suffix}"


@spec
class PGD(GradientAscent):
    """Projected gradient descent: random start in the ball, steps up the loss, projection onto the ball.

    With several restarts each image keeps the result that is misclassified, and among equals the one of highest loss.

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        step_size: length of a step in pixel units; a quarter of `epsilon` if not given.
        num_steps: steps per restart.
        num_restarts: runs per image, each from another random start; an evaluation repeats only robust images.
        random_start: start at a random point of the ball; False starts at the image.
        start_deviation: standard deviation, in pixel units, of a random start from a normal distribution around the
            image; TRADES' code has 0.001. Not given: the start is uniform in the ball.
        targeted: whether labels are the classes to reach, not the true ones.
        loss: what the steps increase; with `targeted` the loss of the class to reach is decreased (`dlr` is then the
            targeted DLR, which needs four classes). `kl_to_clean` needs a random start and has no target.
        eot_iter: passes that each gradient is the mean of, for a randomised classifier (expectation over
            transformation, Athalye et al. 2018).
        protocol: the coordinates that epsilon and the step are measured in.

    Example:
        >>> import keras_rcl
        >>> attack = keras_rcl.PGD(epsilon="8/255", num_steps=40, num_restarts=5)
        >>> attack.label, attack.resolved_step_size == 2 / 255
        ('PGD-40x5', True)

    References:
        Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks".
    """

    name: Literal["pgd"] = "pgd"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    num_restarts: PositiveInt = 1
    random_start: bool = True
    start_deviation: Pixels | None = None
    targeted: bool = False
    loss: Surrogate = "cross_entropy"
    eot_iter: PositiveInt = 1
    protocol: Protocol = "pixel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_deviation is not None and not (self.random_start and self.start_deviation > 0):
            raise ValueError(
                f"start_deviation {self.start_deviation:g} needs a random start and a number above 0; leave it out"
            )

    @property
    def label(self) -> str:
        return f"PGD-{self.num_steps}{times(self.num_restarts)}{self.suffix}{eot(self.eot_iter)}"


@spec
class AutoPGD(AttackBase):
    """APGD: PGD with momentum that chooses its own step size; for l1 with steps that change few pixels.

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        num_steps: steps per round.
        num_restarts: runs per image (and per target class), each from another random start.
        loss: `cross_entropy`; the scale-free `dlr`; or `dlr_targeted`, one round per target class.
        num_targets: target classes of `dlr_targeted`: the likeliest ones after the true class.
        rho: the step is halved if a smaller share of the steps than this increased the loss; not used for l1.
        eot_iter: passes that each gradient is the mean of, for a randomised classifier.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.AutoPGD(loss="dlr_targeted").num_rounds
        9

    References:
        Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", Algorithm 1; 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image
        classifiers".
    """

    name: Literal["apgd"] = "apgd"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_steps: PositiveInt = 100
    num_restarts: PositiveInt = 1
    loss: Literal["cross_entropy", "dlr", "dlr_targeted"] = "cross_entropy"
    num_targets: PositiveInt = 9
    rho: Annotated[float, Field(ge=0, le=1)] = 0.75
    eot_iter: PositiveInt = 1

    @property
    def min_classes(self) -> int:
        return {"cross_entropy": 2, "dlr": 3, "dlr_targeted": 4}[self.loss]

    @property
    def num_rounds(self) -> int:
        return self.num_restarts * (self.num_targets if self.loss == "dlr_targeted" else 1)

    @property
    def stages(self) -> tuple[tuple[float, int], ...]:
        """The radii of the balls, as multiples of epsilon, and the number of steps in each; for l1 there are three."""
        first = 3 * self.num_steps // 10 if self.norm == "l1" else 0
        return (*(((3.0, first), (2.0, first)) if first else ()), (1.0, self.num_steps - 2 * first))

    @property
    def num_passes(self) -> tuple[int, int]:
        gradients = (self.num_steps + len(self.stages)) * self.eot_iter
        return gradients + (self.loss == "dlr_targeted"), gradients

    @property
    def label(self) -> str:
        kind = {"cross_entropy": "CE", "dlr": "DLR", "dlr_targeted": "T"}[self.loss]
        return f"APGD-{kind}{times(self.num_restarts)}{eot(self.eot_iter)}"
