"""The table of attacks, and attacks as they are written on the command line."""

import dataclasses
from typing import Annotated, Any, Union, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from keras_rcl.errors import InvalidInputError, format_error, named
from keras_rcl.vocabulary.attacks.base import AttackBase
from keras_rcl.vocabulary.attacks.black_box import HopSkipJump, Noise, RayS, Square
from keras_rcl.vocabulary.attacks.ensemble import AutoAttack
from keras_rcl.vocabulary.attacks.gradient import BIM, FGSM, MIFGSM, PGD, AutoPGD
from keras_rcl.vocabulary.attacks.minimal import DDN, FAB, FMN, CarliniWagner, DeepFool
from keras_rcl.vocabulary.attacks.representation import Embedding, JointAttack, SupConAttack
from keras_rcl.vocabulary.attacks.transformations import Corruptions, Spatial
from keras_rcl.vocabulary.attacks.wrappers import Refreshed, SmoothedAttack, Stored, Transfer
from keras_rcl.vocabulary.registry import OpenUnion, added, find, reserve
from keras_rcl.vocabulary.threat import format_epsilon

Attack = Annotated[
    Union[
        FGSM,
        BIM,
        MIFGSM,
        PGD,
        Embedding,
        SupConAttack,
        JointAttack,
        AutoPGD,
        FAB,
        CarliniWagner,
        DeepFool,
        DDN,
        FMN,
        Square,
        RayS,
        HopSkipJump,
        Noise,
        Spatial,
        Corruptions,
        Transfer,
        Stored,
        Refreshed,
        SmoothedAttack,
        AutoAttack,
    ],
    Field(discriminator="name"),
    OpenUnion("attack"),
    BeforeValidator(lambda value: parse_attack(value) if isinstance(value, str) else value),
]
"""Any attack; the field `name` says which. A field of this type also takes the text that `parse_attack` reads."""

ATTACKS: dict[str, Any] = {cls.name: cls for cls in get_args(get_args(Attack)[0])}
"""Name -> class, of the attacks that are built in."""

reserve("attack", ATTACKS)

ALIASES = {"cw-inf": {"name": "pgd", "loss": "logit_margin"}}
"""Other spellings on the command line: CW-inf, as papers call it, is PGD on CW's margin, and is labelled as that."""


def known_attacks() -> dict[str, Any]:
    """Name -> class, of the attacks that are built in and of those that are registered."""
    return {**ATTACKS, **{name: entry.settings for name, entry in added("attack").items()}}


def describe(attack: Attack) -> str:
    """One line for tables: `PGD-40 linf 8/255`, and the protocol if it is not `pixel`; the label if it has no ball."""
    if attack.norm is None or attack.epsilon is None:
        return attack.label
    protocol = "" if attack.protocol == "pixel" else f" {attack.protocol}"
    return f"{attack.label} {attack.norm} {format_epsilon(attack.epsilon, attack.norm)}{protocol}"


def parse_attack(text: str) -> Attack:
    """An attack as it is written on the command line: `pgd`, `pgd-40`, `pgd-40:num_restarts=5,norm=l2`.

    A number after the name sets the attack's `steps_field`: `num_steps`, or `num_queries` of a black-box attack. The
    attack's fields follow the colon. `cw-inf` is one of the `ALIASES`.

    Raises:
        InvalidInputError: if the attack, a field or a value is unknown; the message names it.

    Example:
        >>> parse_attack("pgd-40:epsilon=4/255") == PGD(num_steps=40, epsilon=4 / 255)
        True
    """
    head, _, tail = text.partition(":")
    alias = next((alias for alias in ALIASES if f"{head}-".startswith(f"{alias}-")), None)
    name = alias or head.partition("-")[0]
    registered = find("attack", name)
    if name not in ATTACKS and not alias and registered is None:
        raise InvalidInputError(f"unknown attack {name!r}; choose from {', '.join([*known_attacks(), *ALIASES])}")
    fields = dict(ALIASES[alias]) if alias else {"name": name}
    if steps := head[len(name) + 1 :]:
        cls = ATTACKS[fields["name"]] if registered is None else registered.settings
        fields[cls.steps_field] = steps
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise InvalidInputError(f"attack {text!r}: {item!r} is not key=value")
        fields[key.strip()] = value.strip()
    try:
        return TypeAdapter[Attack](Attack).validate_python(fields)
    except ValidationError as error:
        raise InvalidInputError(f"attack {text!r}: {format_error(error)}") from None


def as_attack(attack: object) -> Attack:
    """An attack as it is, or the one that a text names as `parse_attack` reads it.

    Raises:
        InvalidInputError: if it is neither.

    Example:
        >>> as_attack("pgd-40") == as_attack(PGD(num_steps=40))
        True
    """
    if isinstance(attack, str):
        return parse_attack(attack)
    if not isinstance(attack, AttackBase):
        raise InvalidInputError(
            f"{named(attack)} is not an attack; hint: give one, such as keras_rcl.PGD(num_steps=20), or its text, such "
            "as 'pgd-20'"
        )
    return attack  # type: ignore[return-value]  # one of the union, or registered


def as_attacks(attacks: object) -> list[Attack]:
    """One attack or several, each as of `as_attack`.

    Raises:
        InvalidInputError: if one of them is not an attack.
    """
    return [as_attack(one) for one in (attacks if isinstance(attacks, (list, tuple)) else [attacks])]


def to_cli(attack: Attack) -> str:
    """An attack as `parse_attack` reads it, with the fields that differ from the defaults: `pgd:epsilon=16/255`."""
    given = TypeAdapter(Attack).dump_python(attack, mode="json")
    fields = [
        f"{field.name}={given[field.name]}"
        for field in dataclasses.fields(attack)
        if getattr(attack, field.name) != field.default
    ]
    return ":".join([attack.name, *([",".join(fields)] if fields else [])])
