"""Attacks as values: their hyper-parameters under the field's names. `keras_rcl.attacks.craft` runs them."""

import dataclasses
from typing import Annotated, Literal, Union, get_args

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from keras_rcl.vocabulary.threat import Norm, Pixels, ThreatModel, check_epsilon, check_step_size, format_pixels
from keras_rcl.vocabulary.word import Refused, first_line, word

Surrogate = Literal["cross_entropy", "logit_margin"]
"""What a gradient attack maximises; `keras_rcl.attacks.surrogates` holds the functions."""


class _Attack:
    """What every attack can say of itself."""

    targeted = False
    num_restarts = 1
    fewest_classes = 2

    def __post_init__(self):
        check_epsilon(self.epsilon, self.norm)
        check_step_size(getattr(self, "step_size", None), self.norm)

    @property
    def threat_model(self) -> ThreatModel:
        return ThreatModel(norm=self.norm, epsilon=self.epsilon)

    @property
    def num_rounds(self) -> int:
        """How often it runs, each time on what survived so far: restarts, times target classes where it has several."""
        return self.num_restarts

    @property
    def members(self) -> tuple["Attack", ...]:
        """The attacks that it consists of, in order: itself, but for an ensemble."""
        return (self,)

    @property
    def work(self) -> int:
        """Forward and backward passes of all rounds of all members, an image that survives them."""
        return sum(member.num_rounds * sum(member.passes) for member in self.members)

    def at(self, epsilon: float) -> "Attack":
        """The same attack with another radius."""
        return dataclasses.replace(self, epsilon=epsilon)

    def fitted(self, num_classes: int) -> "Attack":
        """The same attack on a classifier of K classes: with at most K - 1 target classes.

        Raises:
            Refused: if it is not defined for so few classes.
        """
        if num_classes < self.fewest_classes:
            raise Refused(
                f"{self.label} needs at least {self.fewest_classes} classes and the model has {num_classes}; "
                "use pgd, apgd with cross_entropy, fab or square"
            )
        targets = getattr(self, "num_targets", 0)
        return dataclasses.replace(self, num_targets=num_classes - 1) if targets >= num_classes else self


class _Ascent(_Attack):
    """What every attack of the plain gradient-ascent loop can say of itself."""

    @property
    def resolved_step_size(self) -> float:
        """The step in pixels: `step_size` where it is given, else a quarter of `epsilon` (2/255 at 8/255)."""
        return self.epsilon / 4 if self.step_size is None else self.step_size

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of one round, an image; a targeted one first looks where to go."""
        return self.num_steps + self.targeted, self.num_steps

    @property
    def suffix(self) -> str:
        """What its label says beside name and steps."""
        return ("" if self.loss == "cross_entropy" else f" {self.loss}") + (" targeted" if self.targeted else "")


@word
class FGSM(_Ascent):
    """Fast gradient sign method (Goodfellow et al. 2015; Wang eq. 6): one step of size epsilon up the loss."""

    name: Literal["fgsm"] = "fgsm"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    targeted: bool = False
    loss: Surrogate = "cross_entropy"

    num_steps = 1
    random_start = False

    @property
    def resolved_step_size(self) -> float:
        return self.epsilon

    @property
    def label(self) -> str:
        return f"FGSM{self.suffix}"


@word
class BIM(_Ascent):
    """Basic iterative method (Kurakin et al. 2017): iterated FGSM from the image itself."""

    name: Literal["bim"] = "bim"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    targeted: bool = False
    loss: Surrogate = "cross_entropy"

    random_start = False

    @property
    def label(self) -> str:
        return f"BIM-{self.num_steps}{self.suffix}"


@word
class PGD(_Ascent):
    """Projected gradient descent (Madry et al. 2018): random start in the ball, steps up the loss, projection.

    `step_size` is a quarter of `epsilon` unless given. Of several restarts each image keeps the one that fools the
    classifier, and among equals the one with the highest loss.
    """

    name: Literal["pgd"] = "pgd"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    num_restarts: PositiveInt = 1
    random_start: bool = True
    targeted: bool = False
    loss: Surrogate = "cross_entropy"

    @property
    def label(self) -> str:
        return f"PGD-{self.num_steps}{_times(self.num_restarts)}{self.suffix}"


@word
class AutoPGD(_Attack):
    """APGD (Croce and Hein 2020, Algorithm 1): PGD with momentum that chooses its own step size.

    `loss` is `cross_entropy`, the scale-free `dlr`, or `dlr_targeted`, which goes round by round for the `num_targets`
    classes that are likeliest after the true one. The step is halved where less than `rho` of the steps paid.
    """

    name: Literal["apgd"] = "apgd"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_steps: PositiveInt = 100
    num_restarts: PositiveInt = 1
    loss: Literal["cross_entropy", "dlr", "dlr_targeted"] = "cross_entropy"
    num_targets: PositiveInt = 9
    rho: Annotated[float, Field(ge=0, le=1)] = 0.75

    @property
    def fewest_classes(self) -> int:
        return {"cross_entropy": 2, "dlr": 3, "dlr_targeted": 4}[self.loss]

    @property
    def num_rounds(self) -> int:
        return self.num_restarts * (self.num_targets if self.loss == "dlr_targeted" else 1)

    @property
    def passes(self) -> tuple[int, int]:
        return self.num_steps + 1 + (self.loss == "dlr_targeted"), self.num_steps + 1

    @property
    def label(self) -> str:
        kind = {"cross_entropy": "CE", "dlr": "DLR", "dlr_targeted": "T"}[self.loss]
        return f"APGD-{kind}{_times(self.num_restarts)}"


@word
class FAB(_Attack):
    """FAB-T (Croce and Hein 2020, "Minimally distorted adversarial examples"): the nearest adversarial image.

    Goes round by round for the `num_targets` classes that are likeliest after the true one; what it finds counts
    where it lies within `epsilon`. `alpha_max`, `eta` and `beta` are the paper's: bias toward the original,
    overshoot, backward step.
    """

    name: Literal["fab"] = "fab"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_steps: PositiveInt = 100
    num_restarts: PositiveInt = 1
    num_targets: PositiveInt = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    @property
    def num_rounds(self) -> int:
        return self.num_restarts * self.num_targets

    @property
    def passes(self) -> tuple[int, int]:
        return 2 * self.num_steps + 1, self.num_steps

    @property
    def label(self) -> str:
        return f"FAB-T{_times(self.num_restarts)}"


@word
class Square(_Attack):
    """Square (Andriushchenko et al. 2020): random search with square patches; needs no gradient.

    `num_queries` is its budget an image, `p_init` the share of pixels that the first patches cover.
    """

    name: Literal["square"] = "square"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_queries: PositiveInt = 5000
    num_restarts: PositiveInt = 1
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8

    @property
    def passes(self) -> tuple[int, int]:
        return self.num_queries, 0

    @property
    def label(self) -> str:
        return f"Square-{self.num_queries}{_times(self.num_restarts)}"


@word
class AutoAttack(_Attack):
    """AutoAttack, standard version (Croce and Hein 2020): APGD-CE, APGD-T, FAB-T and Square, each on what survived."""

    name: Literal["autoattack"] = "autoattack"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255

    fewest_classes = 4

    @property
    def members(self) -> tuple["Attack", ...]:
        ball = dict(norm=self.norm, epsilon=self.epsilon)
        return (AutoPGD(**ball), AutoPGD(loss="dlr_targeted", **ball), FAB(**ball), Square(**ball))

    @property
    def label(self) -> str:
        return "AutoAttack"


def _times(restarts: int) -> str:
    return f"x{restarts}" if restarts > 1 else ""


Attack = Annotated[Union[FGSM, BIM, PGD, AutoPGD, FAB, Square, AutoAttack], Field(discriminator="name")]
"""Any attack; the field `name` says which."""

ATTACKS = {cls.name: cls for cls in get_args(get_args(Attack)[0])}


def describe(attack: Attack) -> str:
    """One line for tables: `PGD-40 linf 8/255`."""
    return f"{attack.label} {attack.norm} {format_pixels(attack.epsilon)}"


def parse_attack(text: str) -> Attack:
    """An attack written on the command line: `pgd`, `pgd-40`, `pgd-40:num_restarts=5,norm=l2,epsilon=128/255`.

    A number after the name is `num_steps`; what follows the colon are the attack's fields.

    Raises:
        Refused: if the attack, a field or a value is unknown, naming it.
    """
    head, _, tail = text.partition(":")
    name, _, steps = head.partition("-")
    if name not in ATTACKS:
        raise Refused(f"unknown attack {name!r}; choose from {', '.join(ATTACKS)}")
    fields = {"name": name}
    if steps:
        fields["num_steps"] = steps
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise Refused(f"attack {text!r}: {item!r} is not key=value")
        fields[key.strip()] = value.strip()
    try:
        return TypeAdapter(Attack).validate_python(fields)
    except ValidationError as error:
        raise Refused(f"attack {text!r}: {first_line(error)}") from None
