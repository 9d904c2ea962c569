"""The finished pieces of a long computation, on disk as they come: after a kill it goes on where it was."""

import contextlib
import fcntl
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.atomic import FolderInUse, check_writable, refusal

_FRAME = struct.Struct("<QI")
"""Before each piece: its length, and the CRC-32 of its name and bytes."""

Result = dict[str, np.ndarray]


class Journal:
    """One file: the question as a line of JSON, then the pieces, appended one by one in the order of the computation.

    A piece whose bytes are not all there, or not those that were written, ends the journal and is computed again. The
    file is locked while it is open, so that two runs of one command do not share it. As a context it stays on disk
    where its body is broken off, but for what is `InvalidInputError`, which no resuming would help.

    Args:
        path: the file; made when absent.
        question: JSON values, all that the pieces depend on.
        anew: throw away what a file of another question holds.

    Raises:
        FolderInUse: if the file is open in another run, or of another question.
        InvalidInputError: if it cannot be written, or is no journal.
    """

    def __init__(self, path: Path, question: dict[str, Any], *, anew: bool = False):
        self.path = path
        line = json.dumps(question, sort_keys=True).encode() + b"\n"
        check_writable(path.parent)
        try:
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            with contextlib.ExitStack() as stack:
                stack.callback(self.close)
                self._begin(line, question, anew)
                stack.pop_all()
        except OSError as error:
            raise refusal(path, error) from None
        self._start = len(line)

    def result(self, name: bytes, compute: Callable[[], Result]) -> Result:
        """The next piece: read where it was finished before, else computed and written.

        Args:
            name: what the piece is, so that none is taken for another.
            compute: gives its arrays, none of them of objects.
        """
        found = self.stored(name)
        if found is None:
            found = compute()
            self.add(name, found)
        return found

    def stored(self, name: bytes) -> Result | None:
        """The next piece, if it was finished before and is this one; else None, and whatever follows is thrown away."""
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

    def add(self, name: bytes, found: Result) -> None:
        """Write the next piece."""
        stream = io.BytesIO()
        np.savez(stream, **found)
        content = stream.getvalue()
        self._append(_FRAME.pack(len(content), zlib.crc32(content, zlib.crc32(name))) + content)

    def __len__(self) -> int:
        """How many pieces it holds, by their lengths; the last may turn out torn."""
        here, end, count = self._file.tell(), self._size(), 0
        position = self._start
        while position + _FRAME.size <= end:
            self._file.seek(position)
            position += _FRAME.size + _FRAME.unpack(self._file.read(_FRAME.size))[0]
            count += position <= end
        self._file.seek(here)
        return count

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            return
        if issubclass(kind, InvalidInputError):
            self.discard()
        self.close()
        if issubclass(kind, OSError):
            raise refusal(self.path, error) from error
        if issubclass(kind, KeyboardInterrupt):
            raise kind("the same command resumes") from None

    def discard(self) -> None:
        """Delete it: what it served is done."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave it to another run."""
        with contextlib.suppress(OSError):  # of a full disk, which was told already
            self._file.close()

    def _begin(self, line: bytes, question: dict[str, Any], anew: bool) -> None:
        """Lock the file and see that its first line is this one."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(
                f"{self.path} is written by another run; wait for it or give another --output-dir"
            ) from None
        found = self._file.readline()
        if found == line:
            return
        if not line.startswith(found):  # nor broken off while it was written
            self._check_ours(found, question, anew)
        self._cut(0)
        self._append(line)

    def _check_ours(self, line: bytes, question: dict[str, Any], anew: bool) -> None:
        """Refuse the file of another question, unless it may be thrown away, and what is no journal."""
        try:
            found = dict(json.loads(line))
        except (ValueError, TypeError, RecursionError):
            raise InvalidInputError(f"{self.path} is no journal of an evaluation; remove it") from None
        if not anew:
            other = ", ".join(key for key in {**question, **found} if found.get(key) != question.get(key))
            raise FolderInUse(
                f"{self.path} holds an interrupted evaluation with other {other}; "
                "repeat its command to resume it, or give --overwrite or another --output-dir"
            )

    def _cut(self, end: int) -> None:
        self._file.seek(end)
        self._file.truncate()

    def _append(self, content: bytes) -> None:
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size
