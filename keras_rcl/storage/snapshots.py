"""Training snapshots on disk: all that the rest of a run depends on, so that it resumes to the same results."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_rcl.storage.atomic import atomic_path, parse_json, sync
from keras_rcl.storage.kinds import SNAPSHOT

FORMAT = 1
KEPT = 2

Snapshot = tuple[dict[str, Any], dict[str, np.ndarray]]


class SnapshotStore:
    """The last snapshots of one run, each a file `<number>.state`: the SHA-256 of its content, then an npz archive.

    A snapshot holds the lengths that the run's growing files (`metrics.jsonl` and TensorBoard's) had on the disk when
    it was saved. Resuming from it cuts them to these lengths.

    Args:
        run: The folder of the run; the snapshots are in its `training/`.
        say: Called with a line of text if a snapshot is damaged.

    Attributes:
        seconds: Spent on the run by all processes so far.
    """

    def __init__(self, run: Path, say: Callable[[str], None]):
        self.run, self.folder = Path(run), Path(run) / "training"
        self._say = say
        self._before, self._started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def save(self, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Write a snapshot, and delete all but the last two.

        Args:
            header: JSON values.
            arrays: By name; none of them of objects.

        Raises:
            InvalidInputError: If it cannot be written; the earlier snapshots are unchanged.
        """
        for log in self._logs():
            sync(log)
        lengths = {str(log.relative_to(self.run)): log.stat().st_size for log in self._logs()}
        stored = {"format": FORMAT, "seconds": self.seconds, "logs": lengths, **header}
        stream = io.BytesIO()
        np.savez(stream, header=np.frombuffer(json.dumps(stored).encode(), np.uint8), **arrays)
        content, number = stream.getbuffer(), max(self.numbers(), default=0) + 1
        with atomic_path(self._path(number)) as temporary, temporary.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
        for number in self.numbers()[:-KEPT]:
            self._path(number).unlink(missing_ok=True)

    def rewind(self) -> Snapshot | None:
        """Return the last snapshot that is intact, with the run's files cut back to it; None if there is none.

        Everything newer than the snapshot is deleted.
        """
        for number in reversed(self.numbers()):
            try:
                header, arrays = self.read(number)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                self._say(f"{self._path(number)} is damaged ({error}); skipped for the snapshot before it")
                self._path(number).unlink(missing_ok=True)
                continue
            self._before, self._started = header["seconds"], time.perf_counter()
            self._cut(header["logs"])
            return header, arrays
        self._cut({})
        return None

    def read(self, number: int) -> Snapshot:
        """Return a snapshot after checking it.

        Raises:
            OSError, ValueError, KeyError, EOFError, BadZipFile: If it is damaged, or was saved by another version. The
            error of a header that was edited is an `InvalidInputError`, which is a ValueError.
        """
        content = self._path(number).read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError("its checksum does not match")
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as archive:
            arrays = dict(archive)
        header = dict(SNAPSHOT.validate(parse_json(arrays.pop("header").tobytes().decode()), "its header"))
        for name, length in header["logs"].items():
            if os.path.getsize(self.run / name) < length:
                raise ValueError(f"{name} is shorter than it was")
        return header, arrays

    def discard(self) -> None:
        """Delete all snapshots: the run is complete."""
        for number in self.numbers():
            self._path(number).unlink()

    def numbers(self) -> list[int]:
        """Return the numbers of the snapshots that exist, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.state") if re.fullmatch("[0-9]+", path.stem))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.state"

    def _logs(self) -> Iterator[Path]:
        """The files that grow during the run."""
        metrics, board = self.run / "metrics.jsonl", self.run / "tensorboard"
        yield from ([metrics] if metrics.is_file() else [])
        yield from (sorted(path for path in board.rglob("*") if path.is_file()) if board.is_dir() else [])

    def _cut(self, lengths: dict[str, int]) -> None:
        """Cut the growing files to these lengths; a file without one is deleted."""
        for log in list(self._logs()):
            length = lengths.get(str(log.relative_to(self.run)))
            if length is None:
                log.unlink()
            else:
                os.truncate(log, length)
        if not lengths:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.run / "tensorboard")
