"""The folder of a run, claimed by one process: what it depends on, what it still needs, and whether it is finished."""

import shutil
from collections.abc import Callable
from pathlib import Path

from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.atomic import atomic_folder, refusal, sweep, write_json
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.kinds import FINGERPRINT
from keras_rcl.storage.lock import Lock


class RunFolder:
    """The folder of a run that begins, or that was interrupted; what the run still needs is in its `training/`.

    There, `question.json` holds the run's fingerprint. It is deleted last, so that a folder without it is of a finished
    run. The process that works on the run holds a lock. As a context, an interruption of the body says that the same
    command resumes; an `InvalidInputError` before anything was saved deletes the folder.

    Args:
        path: The folder; created if it does not exist.
        fingerprint: All that the results depend on.
        begin: Writes into the new folder what is known before the run.
        overwrite: Replace the folder, unless it is unfinished and of the same fingerprint.

    Attributes:
        path: The folder.
        resumed: Whether another process began the run.

    Raises:
        FolderInUse: If another process works on it, or it is unfinished and of another fingerprint.
        InvalidInputError: If it cannot be written.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint, begin: Callable[[Path], None], *, overwrite: bool = False):
        self.path, self.training = Path(path), Path(path) / "training"
        self._fingerprint = self.training / "question.json"
        self._lock: Lock | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_name(f".{self.path.name}.lock")  # one process at a time begins or claims the folder
            with Lock(beside, subject=self.path, option="--name", wait=True):
                self.resumed = self._begin_or_claim(fingerprint, begin, overwrite)
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
        """The journal of the final evaluation."""
        return self.training / "evaluation"

    @property
    def record(self) -> Path:
        """The record of the final evaluation."""
        return self.path / "record.json"

    def finish(self) -> None:
        """Delete what only an unfinished run needs: the run has its record."""
        for path in self.training.iterdir():
            if path not in (self._fingerprint, self._lock_path):
                path.unlink()
        self._fingerprint.unlink()
        self.release()
        self.training.rmdir()

    def release(self) -> None:
        """Release the lock; another process may work on the run."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind, error, trace) -> None:
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

    @property
    def _lock_path(self) -> Path:
        return self.training / "lock"

    def _begin_or_claim(self, fingerprint: Fingerprint, begin: Callable[[Path], None], overwrite: bool) -> bool:
        """Lock the folder, a new one if need be; return whether another process began the run."""
        if self._fingerprint.is_file():
            self._claim()
            if self._is_of(fingerprint, overwrite):
                return True
            self.release()
        with atomic_folder(self.path, overwrite=overwrite) as new:
            begin(new)
            write_json(new / "training/question.json", fingerprint.to_json())
        self._claim()
        return False

    def _claim(self) -> None:
        """Take the lock; raises if another process has it."""
        self._lock = Lock(self._lock_path, subject=self.path, option="--name")

    def _is_of(self, fingerprint: Fingerprint, overwrite: bool) -> bool:
        """Whether the unfinished run is of this fingerprint; raises if it is not and may not be replaced."""
        stored = Fingerprint.from_json(FINGERPRINT.read(self._fingerprint))
        if not overwrite:
            fingerprint.check_equal(stored, f"{self.path} holds an unfinished run", "--name")
        return stored == fingerprint
