"""The results of a long computation's steps, stored as they are computed, so that it can be resumed after a kill."""

import contextlib
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.atomic import CannotWrite, check_writable, refusal
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.lock import Lock

_FRAME = struct.Struct("<QI")
"""Precedes each result: its length, and the CRC-32 of its name and bytes."""

Result = dict[str, np.ndarray]


class Journal:
    """The results of a long computation's steps in one file, appended one by one as they are computed.

    The file begins with the fingerprint, as one line of JSON. A result whose bytes are incomplete or damaged ends the
    journal and is computed again. The file is locked while it is open, so that two runs of one command do not share it.
    As a context, the journal stays on disk if its body is interrupted or cannot write; after another
    `InvalidInputError`, which resuming would meet again, it is deleted.

    Args:
        path: The file; created if it does not exist.
        fingerprint: All that the results depend on.
        discard_existing: Delete the content of a file of another fingerprint.

    Raises:
        FolderInUse: If the file is open in another run, or of another fingerprint.
        InvalidInputError: If the file cannot be written, or is not a journal.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint, *, discard_existing: bool = False):
        self.path = path
        check_writable(path.parent)
        try:
            with contextlib.ExitStack() as stack:
                self._lock = Lock(path.with_name(f"{path.name}.lock"), subject=path, option="--output-dir")
                stack.callback(self._lock.release)
                self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
                stack.callback(self._close_file)
                self._start = self._begin(fingerprint, discard_existing)
                stack.pop_all()
        except OSError as error:
            raise refusal(path, error) from None

    def result(self, name: bytes, compute: Callable[[], Result]) -> Result:
        """Return the next result: read if it is stored, else computed and stored.

        Args:
            name: Identifies the result, so that it is not confused with another one.
            compute: Returns its arrays, none of them of objects.
        """
        result = self.stored(name)
        if result is None:
            result = compute()
            self.add(name, result)
        return result

    def stored(self, name: bytes) -> Result | None:
        """Return the next result if it is stored under this name; else None, and the rest of the file is discarded."""
        start = self._file.tell()
        frame = self._file.read(_FRAME.size)
        if len(frame) == _FRAME.size:
            length, checksum = _FRAME.unpack(frame)
            content = self._file.read(min(length, self._size()))
            if len(content) == length and zlib.crc32(content, zlib.crc32(name)) == checksum:
                with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                    return dict(arrays)
        self._cut(start)
        return None

    def add(self, name: bytes, result: Result) -> None:
        """Store the next result."""
        stream = io.BytesIO()
        np.savez(stream, **result)
        content = stream.getvalue()
        self._append(_FRAME.pack(len(content), zlib.crc32(content, zlib.crc32(name))) + content)

    def __len__(self) -> int:
        """The number of results, by their lengths; the last one may turn out to be damaged."""
        here, end, count = self._file.tell(), self._size(), 0
        position = self._start
        while position + _FRAME.size <= end:
            self._file.seek(position)
            position += _FRAME.size + _FRAME.unpack(self._file.read(_FRAME.size))[0]
            count += position <= end
        self._file.seek(here)
        return count

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            return
        if issubclass(kind, InvalidInputError) and not issubclass(kind, CannotWrite):
            self.discard()
        self.close()
        if issubclass(kind, OSError):
            raise refusal(self.path, error) from error
        if issubclass(kind, KeyboardInterrupt):
            raise kind("the same command resumes") from None

    def discard(self) -> None:
        """Delete the file, which is not needed any more."""
        with contextlib.suppress(OSError):  # Windows does not delete an open file
            self.path.unlink()
        self._close_file()
        self.path.unlink(missing_ok=True)
        self._lock.release()

    def close(self) -> None:
        """Close the file; another run may open it."""
        self._close_file()
        self._lock.release()

    def _close_file(self) -> None:
        with contextlib.suppress(OSError):  # of a full disk, which was reported already
            self._file.close()

    def _begin(self, fingerprint: Fingerprint, discard_existing: bool) -> int:
        """Write the first line, unless it is there; returns its length in bytes."""
        line = json.dumps(fingerprint.to_json(), sort_keys=True).encode() + b"\n"
        stored = self._file.readline()
        if not line.startswith(stored):  # neither equal nor interrupted while it was written
            if self._is_of(fingerprint, stored, discard_existing):
                return len(stored)
        elif stored == line:
            return len(line)
        self._cut(0)
        self._append(line)
        return len(line)

    def _is_of(self, fingerprint: Fingerprint, line: bytes, discard_existing: bool) -> bool:
        """Whether a journal's first line is of this fingerprint; raises if it is not and may not be deleted."""
        try:
            stored = Fingerprint.from_json(json.loads(line))
        except (ValueError, RecursionError):
            raise InvalidInputError(f"{self.path} is not a journal of an evaluation; remove it") from None
        if not discard_existing:
            fingerprint.check_equal(stored, f"{self.path} holds an interrupted evaluation", "--output-dir")
        return stored == fingerprint

    def _cut(self, end: int) -> None:
        self._file.seek(end)
        self._file.truncate()

    def _append(self, content: bytes) -> None:
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size
