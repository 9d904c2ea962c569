"""What a shell completes: the values of options that are names. Files and choices are completed by click."""

from collections.abc import Callable, Mapping

import click
from click.shell_completion import CompletionItem

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import ALIASES, ATTACKS, known_attacks


def complete_variant(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The variants that begin with a text, each with what it is."""
    from keras_rcl.methods import VARIANTS, known_variants

    return _beginning(incomplete, _or_built_in(known_variants, VARIANTS))


def complete_attack(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The attacks on a trained model that begin with a text, each with what it is."""
    known = _or_built_in(known_attacks, ATTACKS)
    usable = {name: attack for name, attack in known.items() if not attack.training_only}
    return _beginning(incomplete, {**usable, **{alias: ATTACKS[of["name"]] for alias, of in ALIASES.items()}})


def _or_built_in(all_known: Callable[[], Mapping[str, type]], built_in: Mapping[str, type]) -> Mapping[str, type]:
    """All names, or those that are built in if a plugin fails, which a shell would show as a value."""
    try:
        return all_known()
    except InvalidInputError:
        return built_in


def _beginning(incomplete: str, known: Mapping[str, type]) -> list[CompletionItem]:
    """The names that begin with a text, with the first line of the docstring of their class."""
    return [
        CompletionItem(name, help=(cls.__doc__ or "").partition("\n")[0])
        for name, cls in known.items()
        if name.startswith(incomplete)
    ]
