"""Locks between processes; the operating system releases a lock when its process ends, however it ends."""

import contextlib
import os
from pathlib import Path

from filelock import FileLock, Timeout

from keras_rcl.storage.atomic import FolderInUse


class Lock:
    """An exclusive lock on a file of its own. The file is deleted when the lock is released.

    Args:
        path: The file; its folder must exist.
        subject: The file or folder that is locked, for the message.
        option: The option that chooses another subject, for the message.
        wait: Wait until no other process holds the lock.

    Raises:
        FolderInUse: If another process holds the lock, unless `wait`.
        OSError: If the file cannot be created.
    """

    def __init__(self, path: Path, *, subject: Path, option: str, wait: bool = False):
        self._path, self._lock = Path(path), FileLock(path, thread_local=False)
        try:
            self._acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise FolderInUse(f"{subject} is written by another run; wait for it or give another {option}") from None

    def release(self) -> None:
        """Release the lock; a lock that was released already stays so."""
        if not self._lock.is_locked:
            return
        with contextlib.suppress(OSError):  # Windows does not delete an open file
            self._path.unlink()
        self._lock.release()
        if os.name == "nt":
            with contextlib.suppress(OSError):
                self._path.unlink()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception) -> None:
        self.release()

    def _acquire(self, timeout: float) -> None:
        """Acquire the file that is at the path, not one that its last holder has deleted meanwhile."""
        self._lock.acquire(timeout=timeout)
        while not self._path.exists():
            self._lock.release()
            self._lock.acquire(timeout=timeout)
