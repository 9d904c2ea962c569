"""Attacks as values: their hyper-parameters under the field's names. `keras_rcl.attacks.craft` runs them."""

import dataclasses
from typing import Annotated, Literal, Union, get_args

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from keras_rcl.vocabulary.threat import Norm, Pixels, ThreatModel, check_epsilon, check_step_size, format_pixels
from keras_rcl.vocabulary.word import Refused, first_line, word

Surrogate = Literal["cross_entropy", "logit_margin"]
"""What a gradient attack maximises; `keras_rcl.attacks.surrogates` holds the functions."""


class _Ascent:
    """What every gradient-ascent attack can say of itself."""

    def __post_init__(self):
        check_epsilon(self.epsilon, self.norm)
        check_step_size(getattr(self, "step_size", None), self.norm)

    @property
    def threat_model(self) -> ThreatModel:
        return ThreatModel(norm=self.norm, epsilon=self.epsilon)

    @property
    def resolved_step_size(self) -> float:
        """The step in pixels: `step_size` where it is given, else a quarter of `epsilon` (2/255 at 8/255)."""
        return self.epsilon / 4 if self.step_size is None else self.step_size

    def at(self, epsilon: float) -> "Attack":
        """The same attack with another radius."""
        return dataclasses.replace(self, epsilon=epsilon)


@word
class FGSM(_Ascent):
    """Fast gradient sign method (Goodfellow et al. 2015; Wang eq. 6): one step of size epsilon up the loss."""

    name: Literal["fgsm"] = "fgsm"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    targeted: bool = False
    loss: Surrogate = "cross_entropy"

    num_steps = 1
    num_restarts = 1
    random_start = False

    @property
    def resolved_step_size(self) -> float:
        return self.epsilon

    @property
    def label(self) -> str:
        return "FGSM"


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

    num_restarts = 1
    random_start = False

    @property
    def label(self) -> str:
        return f"BIM-{self.num_steps}"


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
        restarts = f"x{self.num_restarts}" if self.num_restarts > 1 else ""
        return f"PGD-{self.num_steps}{restarts}"


Attack = Annotated[Union[FGSM, BIM, PGD], Field(discriminator="name")]
"""Any attack; the field `name` says which."""

ATTACKS = {cls.name: cls for cls in get_args(get_args(Attack)[0])}


def describe(attack: Attack) -> str:
    """One line for tables: `PGD-40 linf 8/255`."""
    target = " targeted" if attack.targeted else ""
    loss = "" if attack.loss == "cross_entropy" else f" {attack.loss}"
    return f"{attack.label}{loss}{target} {attack.norm} {format_pixels(attack.epsilon)}"


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
