"""What a shell completes: the values of options that are names. Files and choices are completed by click."""

from collections.abc import Mapping

import click
from click.shell_completion import CompletionItem

from keras_rcl.methods import VARIANTS
from keras_rcl.vocabulary.attacks import ALIASES, ATTACKS


def complete_variant(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The variants that begin with a text, each with what it is."""
    return _beginning(incomplete, VARIANTS)


def complete_attack(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The attacks on a trained model that begin with a text, each with what it is."""
    usable = {name: attack for name, attack in ATTACKS.items() if not attack.training_only}
    return _beginning(incomplete, {**usable, **{alias: ATTACKS[of["name"]] for alias, of in ALIASES.items()}})


def _beginning(incomplete: str, known: Mapping[str, type]) -> list[CompletionItem]:
    """The names that begin with a text, with the first line of the docstring of their class."""
    return [
        CompletionItem(name, help=(cls.__doc__ or "").partition("\n")[0])
        for name, cls in known.items()
        if name.startswith(incomplete)
    ]
