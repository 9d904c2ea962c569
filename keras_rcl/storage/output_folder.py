"""Where a command stores its results: a folder that is free or may be replaced, and the journal beside it."""

import contextlib
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.progress import Progress
from keras_rcl.storage.atomic import FolderInUse, check_storable, check_writable, sweep
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.journal import Journal


def free_name(default: str, folders: Sequence[Path], overwrite: bool) -> str:
    """Return the default name, numbered if it is taken in one of the folders and must not be overwritten."""
    number, candidate = 1, default
    while not overwrite and any((folder / candidate).exists() for folder in folders):
        number += 1
        candidate = f"{default}-{number}"
    return candidate


def check_name(name: str) -> None:
    """Raise InvalidInputError for a name that is a path, or is not UTF-8."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise InvalidInputError(f"name {name!r} must be one plain word; folders go to --runs and --saved-models")
    check_storable(name)


def check_replaceable(folder: Path, marker: str, overwrite: bool) -> None:
    """Raise InvalidInputError for a folder that exists, unless `overwrite` is set and it holds the file `marker`."""
    if not folder.exists():
        return
    if not overwrite:
        raise InvalidInputError(f"{folder} already exists; choose another name or give --overwrite")
    if not (folder / marker).is_file():
        raise InvalidInputError(f"{folder} has no {marker}, so it is not ours to overwrite; choose another name")


def output_and_journal(
    output_dir: str | Path | None, default: Path, fingerprint: Fingerprint, overwrite: bool, marker: str = "record.json"
) -> tuple[Path, Journal]:
    """Return the folder for the results, of which `marker` is one, and the journal beside it.

    Without `output_dir`, it is the folder of an interrupted evaluation with the same fingerprint; if there is none, the
    default, numbered if results or another evaluation are there.
    """

    def journal_of(folder: Path) -> Journal:
        journal = Journal(folder.with_name(f".{folder.name}.partial"), fingerprint, discard_existing=overwrite)
        sweep(folder.parent, re.escape(folder.name))
        return journal

    if output_dir or overwrite:
        output_dir = Path(output_dir or default)
        check_replaceable(output_dir, marker, overwrite)
        return output_dir, journal_of(output_dir)
    check_writable(default.parent)
    partial = re.compile(rf"\.({re.escape(default.name)}(-\d+)?)\.partial")
    interrupted = [found[1] for found in map(partial.fullmatch, sorted(os.listdir(default.parent))) if found]
    numbered = (default.name if number == 1 else f"{default.name}-{number}" for number in itertools.count(1))
    for name in itertools.chain(interrupted, numbered):
        output_dir = default.parent / name
        if not output_dir.exists():
            with contextlib.suppress(FolderInUse):
                return output_dir, journal_of(output_dir)


def report_resumed(journal: Journal, progress: Progress) -> None:
    """Show how many batches of an interrupted evaluation are done."""
    if (done := len(journal) - 1) > 0:  # without the clean predictions
        progress.say(f"resuming {journal.path}: {done} batches done")
