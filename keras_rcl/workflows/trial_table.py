"""A search for hyper-parameters on disk: its fingerprint and the table of its trials."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from keras_rcl import config
from keras_rcl.config import Experiment
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.record import command_line
from keras_rcl.storage import kinds
from keras_rcl.storage.atomic import check_writable, sweep, write_json
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.lock import Lock
from keras_rcl.vocabulary.attacks import Attack, describe
from keras_rcl.workflows.proposals import HISTORY, IMPORTANCE, Proposals

FORMAT = 1
STUDY, BEST = "study.json", "best.yaml"
"""What the folder holds: the fingerprint with the table of trials, and the experiment of the best of them."""


def lock_folder(folder: Path, *, wait: bool = False) -> Lock:
    """Lock the folder of a study or of a trial, see `Lock`."""
    return Lock(folder / ".lock", subject=folder, option="--output-dir", wait=wait)


def read_study(folder: Path) -> kinds.StudyTable:
    """Read the table of another command.

    Raises:
        InvalidInputError: If there is none.
    """
    if not (folder / STUDY).is_file():
        raise InvalidInputError(f"{folder} has no {STUDY}; give the folder that tune wrote")
    return kinds.STUDY.read(folder / STUDY)


class Study:
    """The table of trials on disk, written again whenever a trial begins or ends.

    As a context it holds the lock of the folder.

    Args:
        folder: Of the study.
        fingerprint: What the table depends on.
        proposals: Where its trials come from.
        overwrite: Replace another study.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: Fingerprint,
        proposals: Proposals,
        overwrite: bool,
    ):
        self.folder, self.fingerprint, self.proposals = Path(folder), fingerprint, proposals
        self._overwrite = overwrite
        self.table: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> "Study":
        if self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            if not (self.folder / STUDY).is_file():
                raise InvalidInputError(
                    f"{self.folder} has no {STUDY}, so it is not ours to write; choose another --output-dir"
                )
        check_writable(self.folder)
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_folder(self.folder))
            sweep(self.folder)
            self._read()
            try:
                self.proposals.restore(self.table)
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInputError(
                    f"{self.folder / STUDY} is not a study: {error}; remove {self.folder}"
                ) from None
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def _read(self) -> None:
        """Read the table, if there is one that is not to be replaced."""
        path = self.folder / STUDY
        if not path.is_file():
            return
        found = kinds.STUDY.read(path)
        stored = Fingerprint.from_json(self._completed(found["question"]))
        table: dict[int, dict[str, Any]] = {trial["number"]: dict(trial) for trial in found["trials"]}
        if stored == self.fingerprint:
            self.table = table
            return
        if not self._overwrite:
            self.fingerprint.check_equal(stored, f"{self.folder} holds a study", "--output-dir")
        for inner in ("trials", BEST, STUDY, HISTORY, IMPORTANCE):
            target = self.folder / inner
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)

    def _completed(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """A stored fingerprint with the defaults of the settings that this version added."""
        names = (field.name for field in dataclasses.fields(Experiment))
        stored = {name: question[name] for name in names if name in question}
        try:
            full = config.to_dict(config.parse(stored, str(self.folder / STUDY)))
        except InvalidInputError:  # settings that this version does not know differ in any case
            return dict(question)
        return {**question, **{name: full[name] for name in stored}}

    def numbers(self, count: int) -> Iterator[int]:
        """The numbers of the trials to run, up to `count` trials in all: first those that were interrupted."""
        yield from [number for number, trial in sorted(self.table.items()) if trial["state"] == "running"]
        while len(self.table) < count:
            number = len(self.table)
            self.table[number] = {"number": number, **self.proposals.propose(number), "state": "running"}
            self._write()
            yield number

    def settings(self, number: int) -> dict[str, str]:
        return self.table[number]["settings"]

    def end(self, number: int, outcome: Mapping[str, Any]) -> None:
        """Store the outcome of a trial."""
        self.table[number] = {**self.table[number], **outcome}
        self.proposals.ended(self.table[number])
        self._write()

    def ended(self) -> list[dict[str, Any]]:
        return [trial for trial in self.table.values() if trial["state"] != "running"]

    def best(self) -> Mapping[str, Any] | None:
        """`number`, `objective` and `settings` of the best trial; None if none was measured."""
        return self.proposals.best(self.table)

    def draw(self) -> None:
        """Write the pictures of the study."""
        self.proposals.draw(self.folder, self.fingerprint.settings["objective"])

    def to_json(self) -> dict[str, Any]:
        """The study as it is stored, with the command that continued it last."""
        best = self.best()
        trials = [trial for _, trial in sorted(self.table.items())]
        return {
            "format": FORMAT,
            "command": command_line(),
            "question": self.fingerprint.to_json(),
            "objective": self.fingerprint.settings["objective"],
            "attack": describe(TypeAdapter(Attack).validate_python(self.fingerprint.settings["attack"])),
            "best": best and best["number"],
            "trials": trials,
        }

    def _write(self) -> None:
        write_json(self.folder / STUDY, self.to_json())
