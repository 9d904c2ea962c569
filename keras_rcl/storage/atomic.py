"""Files that are whole or absent: written beside their place, then renamed into it.

A target, or a folder, that cannot be written is refused in one line that names the path, the reason and the cure.
"""

import contextlib
import errno
import json
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
_CURES = {
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


class FolderInUse(InvalidInputError):
    """The file or folder is another run's, which is going on or was interrupted."""


def refusal(path: Path, error: OSError) -> Exception:
    """The one line for a write that failed, or the error itself where the disk is not to blame."""
    if error.errno not in _CURES:
        return error
    return InvalidInputError(f"cannot write to {path}: {os.strerror(error.errno).lower()}; {_CURES[error.errno]}")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yields (target, an unused path in the target's folder); what is left at the latter is deleted at the end.

    The target is `path` with its symbolic links followed, so that a linked file is replaced and not its link. An
    OSError of the body is refused when it concerns either path or an open file, and passed on when it concerns
    something else, such as an input that the body reads.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(path, error) from None
    try:
        yield target, temporary
    except OSError as error:
        if error.filename is None or str(error.filename).startswith((str(temporary), str(target))):
            raise refusal(path, error) from error
        raise
    finally:
        if os.path.isdir(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink()


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file whole or not at all.

    Args:
        path: the file to write or replace; its folder is made when absent.

    Yields:
        A path in the same folder, with the same suffixes, at which the body writes one file. On success the file is
        synced and renamed to `path`; on failure it is deleted and `path` is as it was.

    Raises:
        InvalidInputError: if `path` is a folder or a device, or if its folder cannot be written or is full.
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
    """Write a folder whole or not at all.

    Args:
        path: the folder to make; its parents are made when absent.
        overwrite: replace an existing folder: it is moved aside, and removed once the new one is in its place.

    Yields:
        An empty folder beside `path`. On success its files are synced and it is renamed to `path`; on failure it is
        deleted and `path` is as it was.

    Raises:
        InvalidInputError: if `path` exists and is not to be overwritten, or if its parent cannot be written or is full.
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
        aside = temporary.with_name(f"{temporary.name}.old")
        target.rename(aside)
        try:
            temporary.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        sync(target.parent)
        shutil.rmtree(aside)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all.

    Raises:
        InvalidInputError: if the file cannot be written.
        ValueError: if the value holds NaN or infinity, which JSON has no word for.
    """
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        # What UTF-8 cannot say, of names of files, becomes JSON's own escapes.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def sweep(folder: str | Path, name: str = ".+") -> None:
    """Delete what a killed process left beside the files and folders that it was writing.

    Args:
        folder: where; nobody else may be writing there.
        name: of the targets, as a regular expression.
    """
    left = re.compile(rf"\.[0-9a-f]{{8}}\.({name})(\.old)?")
    for path in Path(folder).glob(".*"):
        if left.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not JSON in UTF-8, holds NaN or infinity, or is nested too deeply.
    """

    def no_json(word):
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=no_json)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_writable(folder: str | Path) -> None:
    """Make a folder when absent, and see that a file can be made in it: for before a long run, not after it.

    Raises:
        InvalidInputError: if the folder cannot be made or written, naming it, the reason and the cure.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise refusal(folder, error) from None
