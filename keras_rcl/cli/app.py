"""The program: its commands, and how errors and interrupts end it."""

import importlib
import io
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import NoReturn

import click

from keras_rcl.cli.deprecated import current_name
from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime import launcher
from keras_rcl.runtime.program import program_name
from keras_rcl.runtime.signals import Terminated, WorkerLost, raised_signals

INTERRUPTED, TERMINATED = 130, 143
"""Exit status after SIGINT and after SIGTERM."""

CRASHED = 70
"""Exit status after an error that is not one of the input: 1 is the verdict `falls` of `audit`."""

MODULES = {
    module.removesuffix("_weights").replace("_", "-"): module
    for module in (
        *("init", "fit", "tune", "attack", "craft_dataset", "audit", "verify", "certify", "predict"),
        *("import_weights", "export", "export_vnnlib", "read_verifier_results", "report", "variants", "show"),
    )
}
"""Name of a command -> its module in this package, which has a function of the same name as the module."""


class Commands(Mapping[str, click.Command]):
    """The commands by name. A module is imported when its command is asked for, so that no other one is waited for."""

    def __getitem__(self, name: str) -> click.Command:
        module = MODULES[name]
        return getattr(importlib.import_module(f"keras_rcl.cli.{module}"), module)

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


class OneLineErrors(click.Group):
    """A group that reports an error in one line and exits with status 2, without usage texts or tracebacks."""

    def main(self, *args, **kwargs):
        """Run a command and exit."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # for file names that are not text
        kwargs = {"prog_name": program_name(), **kwargs, "standalone_mode": False}
        try:
            status = super().main(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(2)
        except (click.ClickException, InvalidInputError) as error:
            _print_error(error.format_message() if isinstance(error, click.ClickException) else str(error))
            sys.exit(2)
        except OSError as error:
            if not error.strerror:
                _crash()
            _print_error(f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror)
            sys.exit(2)
        except (click.Abort, KeyboardInterrupt) as stop:
            raised = stop.__cause__ or stop  # click hides it behind its own Abort
            lost = isinstance(raised, WorkerLost)
            click.echo("; ".join(filter(None, ["a worker is lost" if lost else "interrupted", str(raised)])), err=True)
            terminated = TERMINATED if isinstance(raised, Terminated) else INTERRUPTED
            sys.exit(launcher.TRY_AGAIN if lost else terminated)
        except Exception:
            _crash()
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx):
        """Run a command, within the handling of interrupts by click."""
        with raised_signals(signal.SIGINT, signal.SIGTERM):
            return super().invoke(ctx)


def _crash() -> NoReturn:
    """Print the traceback of an error that is not one of the input, and exit with a status that no verdict has."""
    traceback.print_exc()
    click.echo("error: this is a fault of the program; hint: report it with the lines above", err=True)
    sys.exit(CRASHED)


def _print_error(message: str) -> None:
    """Print one line on stderr. A very long line is shortened; control characters are escaped."""
    line = " ".join(message.split())
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    click.echo(f"error: {line if len(line) <= 1000 else f'{line[:600]} ... {line[-400:]}'}", err=True)


SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "token_normalize_func": current_name,
}


@click.group(cls=OneLineErrors, commands=Commands(), context_settings=SETTINGS)
@click.version_option(package_name="keras_rcl", prog_name="keras_rcl")
def cli():
    """Robust contrastive learning in Keras: train classifiers that are robust to attacks, and measure how robust."""
