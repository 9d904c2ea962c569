"""The folder of a run, claimed by one process: what is to be done in it, and whether that is done."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.atomic import FolderInUse, atomic_folder, refusal, sweep, write_json


class RunFolder:
    """A run that goes on, is begun, or was broken off; what it still needs lies in its `training/`.

    There `question.json` says what the run is to answer, and is locked by the process that is at it. It is deleted
    last of all, so that a folder without it is of a finished run. As a context, where the body is broken off, it says
    that the same command resumes; what is `InvalidInputError` before anything was saved leaves no folder.

    Args:
        path: the folder, made when absent.
        question: JSON values, all that the results depend on.
        begin: writes into the new folder what is known beforehand.
        overwrite: replace the folder, unless it is of this question and not finished.

    Attributes:
        path: of the folder.
        resumed: whether another process began it.

    Raises:
        FolderInUse: if another process is at it, or it was broken off and is of another question.
        InvalidInputError: if it cannot be written.
    """

    def __init__(self, path: Path, question: dict[str, Any], begin: Callable[[Path], None], *, overwrite: bool = False):
        self.path, self.training = Path(path), Path(path) / "training"
        self._question, self._lock = self.training / "question.json", None
        self.resumed = self._question.is_file()
        try:
            if self.resumed:
                self._claim()
                self.resumed = self._is_of(question, overwrite)
            if not self.resumed:
                with atomic_folder(self.path, overwrite=overwrite) as new:
                    begin(new)
                    write_json(new / "training/question.json", question)
                self._claim()
        except OSError as error:
            self.release()
            raise refusal(self.path, error) from None
        except InvalidInputError:
            self.release()
            raise
        for folder in (self.path, *(inner for inner in self.path.rglob("*") if inner.is_dir())):
            sweep(folder)

    @property
    def evaluation(self) -> Path:
        """Where the journal of the final evaluation is."""
        return self.training / "evaluation"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    def finish(self) -> None:
        """Let the run be finished: it holds its record, and needs nothing else."""
        for path in self.training.iterdir():
            if path != self._question:
                path.unlink()
        self._question.unlink()
        self.training.rmdir()
        self.release()

    def release(self) -> None:
        """Leave it to another process."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None and issubclass(kind, InvalidInputError):
            if self.record.is_file():
                self.finish()
            elif not any(self.training.glob("*.state")):
                shutil.rmtree(self.path)
        self.release()
        if kind is not None and issubclass(kind, OSError):
            raise refusal(self.path, error) from error
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            raise kind("the same command resumes") from None

    def _claim(self) -> None:
        """Lock the question, or see that another process has."""
        self._lock = os.open(self._question, os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(f"{self.path} is written by another run; wait for it or give another --name") from None

    def _is_of(self, question: dict[str, Any], overwrite: bool) -> bool:
        """Whether what was begun in the folder is this question; if not, it must be allowed to be replaced."""
        try:
            with open(self._lock, encoding="utf-8", closefd=False) as file:
                found = dict(json.load(file))
        except (ValueError, TypeError):
            raise InvalidInputError(f"{self._question} cannot be read; remove {self.path}") from None
        if found == question:
            return True
        if not overwrite:
            other = ", ".join(key for key in {**question, **found} if found.get(key) != question.get(key))
            raise FolderInUse(
                f"{self.path} holds an unfinished run with other {other}; "
                "repeat its command to resume it, or give --overwrite or another --name"
            )
        self.release()
        return False
