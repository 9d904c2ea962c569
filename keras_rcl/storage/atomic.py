"""Files that are complete or absent: written beside their place, then renamed into it.

A target or a folder that cannot be written is refused in one line with the path, the reason and a hint.
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_rcl.errors import InvalidInputError

_ELSEWHERE = "choose another folder"
_HINTS = {
    errno.EIO: f"check that disk, or {_ELSEWHERE}",
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.ENOENT: _ELSEWHERE,
    errno.ENOTDIR: _ELSEWHERE,
    errno.EISDIR: _ELSEWHERE,
    errno.EEXIST: _ELSEWHERE,
    errno.ENOTEMPTY: _ELSEWHERE,
    errno.ENAMETOOLONG: _ELSEWHERE,
    errno.ENOSPC: f"make room there or {_ELSEWHERE}",
    errno.EDQUOT: f"make room there or {_ELSEWHERE}",
    errno.EFBIG: f"make room there or {_ELSEWHERE}",
}


_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class FolderInUse(InvalidInputError):
    """The file or folder belongs to another run, which is in progress or was interrupted."""


class CannotWrite(InvalidInputError):
    """A file or folder cannot be written: the disk is full or broken, or the place is not writable."""


def disk_error(error: BaseException) -> int | None:
    """Return the errno of a failed write, also where TensorFlow or HDF5 reports it; None for any other exception."""
    if isinstance(error, OSError) and error.errno in _HINTS:
        return error.errno
    text = str(error)
    if isinstance(error, OSError) and (found := re.search(r"errno = (\d+)", text)):  # HDF5
        return int(found[1]) if int(found[1]) in _HINTS else None
    if hasattr(error, "error_code"):  # TensorFlow, whose message ends in that of the system
        return next((number for number in _OF_DISKS if os.strerror(number) in text), None)
    return None


def refusal(path: Path, error: Exception) -> Exception:
    """Return the error to raise for a failed write: one line, or the error itself if the disk is not the cause."""
    if (number := disk_error(error)) is None:
        return error
    return CannotWrite(f"cannot write to {path}: {os.strerror(number).lower()}; {_HINTS[number]}")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield (target, an unused path in the target's folder); whatever is left at the latter is deleted at the end.

    The target is `path` with its symbolic links resolved, so that a linked file is replaced and not its link. An
    OSError of the body, or what TensorFlow or HDF5 raises in its place, is refused if it concerns one of the two paths
    or an open file. It is passed on if it concerns something else, such as an input that the body reads.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(path, error) from None
    try:
        yield target, temporary
    except InvalidInputError:
        raise
    except Exception as error:
        name = getattr(error, "filename", None)
        if name is None or str(name).startswith((str(temporary), str(target))):
            raise refusal(path, error) from error
        raise
    finally:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink()


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file completely or not at all.

    Args:
        path: The file to write or replace; its folder is created if it does not exist.

    Yields:
        A path in the same folder, with the same suffixes, at which the body writes one file. On success the file is
        synced and renamed to `path`; on failure it is deleted and `path` is unchanged.

    Raises:
        InvalidInputError: If `path` is a folder or a device, or if its folder cannot be written or is full.
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise InvalidInputError(f"cannot write to {path}: it is not a file; {_ELSEWHERE}")
    with _beside(path) as (target, temporary):
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder completely or not at all.

    Args:
        path: The folder; its parents are created if they do not exist.
        overwrite: Replace an existing folder: it is moved aside, and removed once the new one is in its place.

    Yields:
        An empty folder beside `path`. On success its files are synced and it is renamed to `path`; on failure it is
        deleted and `path` is unchanged.

    Raises:
        InvalidInputError: If `path` exists and `overwrite` is False, or if its parent cannot be written or is full.
    """
    path = Path(path)
    if os.path.exists(path) and not (overwrite and os.path.isdir(path)):
        raise InvalidInputError(f"{path} already exists; {_ELSEWHERE} or give --overwrite")
    with _beside(path) as (target, temporary):
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                sync(file)
        if not target.exists():
            temporary.rename(target)
            sync(target.parent)
            return
        if not overwrite:  # another process was faster
            raise InvalidInputError(f"{path} already exists; {_ELSEWHERE} or give --overwrite")
        aside = temporary.with_name(f"{temporary.name}.old")
        target.rename(aside)
        try:
            temporary.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        sync(target.parent)
        shutil.rmtree(aside)


def json_text(value: Any, *, ensure_ascii: bool = True) -> str:
    """Return a value as JSON. NaN and infinity, which JSON cannot express, become null.

    Args:
        value: Of JSON's types.
        ensure_ascii: Write letters other than those of ASCII as escapes.
    """

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), indent=1, allow_nan=False, ensure_ascii=ensure_ascii)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON, completely or not at all; NaN and infinity become null.

    Args:
        path: The file.
        value: Of JSON's types.

    Raises:
        InvalidInputError: If the file cannot be written.
    """
    text = json_text(value, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        # File names that are not UTF-8 become JSON escapes.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def sweep(folder: str | Path, name: str = ".+") -> None:
    """Delete what a killed process left beside the files and folders that it was writing.

    Args:
        folder: Where they are; no other process may be writing there.
        name: A regular expression for the names of the targets.
    """
    left = re.compile(rf"\.[0-9a-f]{{8}}\.({name})(\.old)?")
    for path in Path(folder).glob(".*"):
        if left.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def complete_files(folder: str | Path, pattern: str) -> list[Path]:
    """Return the files below a folder that match a pattern, sorted, without those that a process writes or has left.

    Args:
        folder: A folder that other processes may be writing to; nothing is returned if it does not exist.
        pattern: As for `Path.glob`, such as `*/record.json`.
    """
    folder = Path(folder)
    found = (path for path in folder.glob(pattern) if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read_json(path: str | Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not JSON in UTF-8, holds NaN or infinity, or is nested too deeply.
    """
    return parse_json(Path(path).read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: If it is not JSON, holds NaN or infinity, or is nested too deeply.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_storable(path: str | Path) -> None:
    """Check that a path can be written into text files, such as a configuration or a record.

    Raises:
        InvalidInputError: If its bytes are not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"{os.fsencode(path)!r} is not UTF-8, so its name cannot be stored; hint: rename it, "
            "such as by `convmv -f latin1 -t utf8`"
        ) from None


def check_writable(folder: str | Path) -> None:
    """Create a folder if it does not exist, and check that a file can be created in it, before a long run.

    Raises:
        InvalidInputError: If the folder cannot be created or written, or its name is not UTF-8.
    """
    folder = Path(folder)
    check_storable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise refusal(folder, error) from None
