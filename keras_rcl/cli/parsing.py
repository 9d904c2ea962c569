"""What texts on the command line mean: attacks, claims, radii, settings."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import Transfer, parse_attack
from keras_rcl.vocabulary.claim import Claim
from keras_rcl.vocabulary.threat import PROTOCOLS, Norm, ThreatModel, format_epsilon, format_pixels, parse_pixels

SHORTCUTS = {
    "seed": "seed",
    "precision": "precision",
    "attack_dtype": "attack_dtype",
    "jit": "jit",
    "micro_batch": "micro_batch",
    "dataset": "dataset.name",
    "folder": "dataset.folder",
    "data": "dataset.data",
    "image_size": "dataset.image_size",
    "limit": "dataset.limit",
    "data_dir": "dataset.data_dir",
}
"""Option -> the setting of an experiment that it is short for."""


def pop_settings(options: dict[str, Any], *names: str) -> list[str]:
    """Take the options of these names out of `options` and return those that were given as `a.b=value` settings."""
    given = {SHORTCUTS[name]: options.pop(name) for name in names}
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None and value is not False]


def pop_data_settings(options: dict[str, Any]) -> list[str]:
    """Take the options that choose training data out of `options` and return them as `a.b=value` settings.

    `--data` without `--dataset` means arrays, and `--folder` a folder.
    """
    for option, name in (("data", "arrays"), ("folder", "folder")):
        if options[option] is not None and options["dataset"] is None:
            options["dataset"] = name
        if options[option] is not None and options["dataset"] != name:
            raise InvalidInputError(
                f"--{option} {options[option]} is not read for --dataset {options['dataset']}; leave out one"
            )
    return pop_settings(options, "dataset", "folder", "data", "data_dir", "image_size", "limit")


def stored_setting(folder: Path, attack) -> str:
    """The setting by which a training reads the examples that an attack left in a folder."""
    epsilon = format_epsilon(attack.epsilon, attack.norm)
    return f"{{name: stored, folder: {folder}, norm: {attack.norm}, epsilon: {epsilon}}}"


def parse_attacks(
    texts: Sequence[str],
    transfers: Sequence[str] = (),
    epsilons: str | None = None,
    restarts: int | None = None,
    protocol: str | None = None,
) -> list:
    """The attacks that the options of `attack` ask for.

    Args:
        texts: attacks as `parse_attack` reads them.
        transfers: models that the attacks are also crafted on.
        epsilons: a list such as `1/255,2/255`; each attack runs at each.
        restarts: the number of random restarts of attacks that have restarts.
        protocol: the protocol of all attacks; `all` runs each attack under each.

    Raises:
        InvalidInputError: if a text cannot be read, or an attack does not take what is asked of it.
    """
    for field, value in {"epsilon": epsilons, "num_restarts": restarts, "protocol": protocol}.items():
        if value is not None:
            check_not_in(texts, field, f"--{field.removeprefix('num_')} {value}")
    attacks = [parse_attack(text) for text in texts]
    attacks += [_through(source, attack) for source in transfers for attack in attacks]
    if restarts:
        repeated = [_with_restarts(attack, restarts) for attack in attacks]
        if restarts > 1 and repeated == attacks:
            raise InvalidInputError(
                f"--restarts {restarts}: {attacks[0].label} has no restarts to set; leave it out, or add pgd or apgd"
            )
        attacks = repeated
    try:
        if epsilons:
            attacks = [
                attack.with_epsilon(parse_pixels(epsilon)) for attack in attacks for epsilon in epsilons.split(",")
            ]
    except ValueError as error:
        raise InvalidInputError(f"--epsilon {epsilons}: {error}") from None
    if protocol == "all":
        return [a.with_protocol(name) for a in attacks for name in (PROTOCOLS if a.takes_protocol else ["pixel"])]
    return [attack.with_protocol(protocol) for attack in attacks] if protocol else attacks


def check_not_in(texts: Sequence[str], field: str, option: str) -> None:
    """Refuse an option that sets a field which the text of an attack sets as well.

    Raises:
        InvalidInputError: if a text sets it.
    """
    for text in texts:
        if field in (item.partition("=")[0].strip() for item in text.partition(":")[2].split(",")):
            raise InvalidInputError(f"{option}: attack {text!r} sets {field} as well; give one of the two")


def _through(source: str, attack) -> Transfer:
    """The attack, crafted on another model."""
    try:
        return Transfer(source=source, attack=attack)
    except InvalidInputError as error:
        raise InvalidInputError(f"--transfer-from {source}: {error}") from None


def _with_restarts(attack, restarts: int):
    """The attack with this number of random restarts if it has restarts, else the attack as it is."""
    if isinstance(attack, Transfer):
        return dataclasses.replace(attack, attack=_with_restarts(attack.attack, restarts))
    fields = {field.name for field in dataclasses.fields(attack)}
    return dataclasses.replace(attack, num_restarts=restarts) if "num_restarts" in fields else attack


def parse_claim(share: str, norm: str | None, epsilon: float | None) -> Claim:
    """The claim of a robust accuracy, at linf 8/255 unless norm or epsilon is given."""
    radius = 8 / 255 if epsilon is None else epsilon
    accuracy = parse_share(share)
    try:
        return Claim(robust_accuracy=accuracy, norm=norm or "linf", epsilon=radius)
    except InvalidInputError as error:
        raise InvalidInputError(f"--epsilon {format_pixels(radius)}: {error}") from None


def parse_share(text: str) -> float:
    """A share of images: `60.4%`, `0.604`, or `60.4`, which can only mean percent."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise InvalidInputError(f"--claim {text} is not a share of images; write it as 60.4% or 0.604") from None
    number = number / 100 if text.endswith("%") or number > 1 else number
    if not 0 <= number <= 1:
        raise InvalidInputError(f"--claim {text} is not between 0% and 100%; give a share of the images")
    return number


def parse_epsilon(text: str) -> float:
    """One epsilon, such as `8/255`, in pixels."""
    try:
        return parse_pixels(text)
    except ValueError as error:
        raise InvalidInputError(f"--epsilon {text}: {error}") from None


def parse_radii(text: str, norm: Norm = "linf") -> list[float]:
    """A list of radii, such as `1/255,2/255`, in pixels."""
    radii = []
    for radius in text.split(","):
        try:
            radii.append(ThreatModel(norm=norm, epsilon=radius).epsilon)
        except InvalidInputError as error:
            raise InvalidInputError(f"--epsilon {radius}: {error}") from None
    return radii
