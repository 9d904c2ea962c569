"""Training states on disk: all that the rest of a run depends on, so that after a kill it goes on to the same end."""

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

from keras_rcl.storage.atomic import atomic_path, sync

FORMAT = 1
KEPT = 2

Snapshot = tuple[dict[str, Any], dict[str, np.ndarray]]


class SnapshotStore:
    """The last states of one run, each a file `<number>.state`: the SHA-256 of its content, then an npz archive.

    A state knows how long the run's growing files were when it was saved (`metrics.jsonl` and TensorBoard's), and that
    they were on the disk. To go on from it is to cut them to that length.

    Args:
        run: the folder of the run; the states are in its `training/`.
        say: takes the line that tells of a damaged state.

    Attributes:
        seconds: spent on the run by all processes so far.
    """

    def __init__(self, run: Path, say: Callable[[str], None]):
        self.run, self.folder = Path(run), Path(run) / "training"
        self._say = say
        self._before, self._started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def save(self, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Write a state, and delete those before the last two.

        Args:
            header: JSON values.
            arrays: none of them of objects.

        Raises:
            InvalidInputError: if it cannot be written; then the states before are as they were.
        """
        for log in self._logs():
            sync(log)
        lengths = {str(log.relative_to(self.run)): log.stat().st_size for log in self._logs()}
        told = {"format": FORMAT, "seconds": self.seconds, "logs": lengths, **header}
        stream = io.BytesIO()
        np.savez(stream, header=np.frombuffer(json.dumps(told).encode(), np.uint8), **arrays)
        content, number = stream.getbuffer(), max(self.numbers(), default=0) + 1
        with atomic_path(self._path(number)) as temporary, temporary.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
        for number in self.numbers()[:-KEPT]:
            self._path(number).unlink(missing_ok=True)

    def rewind(self) -> Snapshot | None:
        """The last state that is whole, with the run's files as they were when it was saved; None where there is none.

        What is newer than the state is deleted.
        """
        for number in reversed(self.numbers()):
            try:
                header, arrays = self.read(number)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                self._say(f"{self._path(number)} is damaged ({error}); skipped for the state before it")
                self._path(number).unlink(missing_ok=True)
                continue
            self._before, self._started = header["seconds"], time.perf_counter()
            self._cut(header["logs"])
            return header, arrays
        self._cut({})
        return None

    def read(self, number: int) -> Snapshot:
        """A state, checked.

        Raises:
            OSError, ValueError, KeyError, EOFError, BadZipFile: if it is not whole, or was made by another version.
        """
        content = self._path(number).read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError("its checksum is another")
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as archive:
            arrays = dict(archive)
        header = json.loads(arrays.pop("header").tobytes())
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, and this version reads {FORMAT}")
        for name, length in header["logs"].items():
            if os.path.getsize(self.run / name) < length:
                raise ValueError(f"{name} is shorter than it was")
        return header, arrays

    def discard(self) -> None:
        """Delete all states: the run is done."""
        for number in self.numbers():
            self._path(number).unlink()

    def numbers(self) -> list[int]:
        """Of the states that there are, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.state") if re.fullmatch("[0-9]+", path.stem))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.state"

    def _logs(self) -> Iterator[Path]:
        """The files that grow while the run goes on."""
        metrics, board = self.run / "metrics.jsonl", self.run / "tensorboard"
        yield from ([metrics] if metrics.is_file() else [])
        yield from (sorted(path for path in board.rglob("*") if path.is_file()) if board.is_dir() else [])

    def _cut(self, lengths: dict[str, int]) -> None:
        """Bring the growing files back to these lengths; one that has none is deleted."""
        for log in list(self._logs()):
            length = lengths.get(str(log.relative_to(self.run)))
            if length is None:
                log.unlink()
            else:
                os.truncate(log, length)
        if not lengths:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.run / "tensorboard")
