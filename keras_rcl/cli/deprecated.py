"""Old spellings of commands and options, which keep working."""

import click

OPTIONS = {
    "part": "split",
    "craft-dtype": "attack-dtype",
    "trust": "skip-safety-check",
    "count": "max-images",
}
"""Old option -> new option, without the leading dashes."""

COMMANDS = {"interchange": "export-vnnlib", "collect": "read-verifier-results"}
"""Old command -> new command."""


def current_name(name: str) -> str:
    """The current name of an option or command; an old name is noted on stderr.

    This is click's `token_normalize_func`: click calls it with each option, without dashes, and with each command that
    it does not know.
    """
    if name in OPTIONS:
        click.echo(f"note: --{name} is deprecated; use --{OPTIONS[name]}", err=True)
        return OPTIONS[name]
    if name in COMMANDS:
        click.echo(f"note: the command {name} is deprecated; use {COMMANDS[name]}", err=True)
        return COMMANDS[name]
    return name
