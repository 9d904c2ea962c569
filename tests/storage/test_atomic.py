"""Files are whole or absent, and what cannot be written is refused in one line."""

import errno
import json
import os
from pathlib import Path

import pytest

from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.atomic import atomic_folder, atomic_path, check_writable, complete_files, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_with_its_suffixes_and_folders(tmp_path):
    target = tmp_path / "deep" / "model.weights.h5"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.name.endswith(".weights.h5")
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == ["model.weights.h5"]


@pytest.mark.parametrize("error", [RuntimeError("half way"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["result.json"]


def test_a_linked_file_is_replaced_and_the_link_kept(tmp_path):
    target, link = tmp_path / "real.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    write_json(link, 1)
    assert link.is_symlink() and target.read_text() == "1\n"


def test_devices_and_folders_are_no_files(tmp_path):
    for path in (Path(os.devnull), tmp_path):
        with pytest.raises(InvalidInputError, match="it is not a file; choose another folder"), atomic_path(path):
            pass
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize("writer", [atomic_path, atomic_folder])
def test_a_file_in_place_of_a_folder_is_refused(tmp_path, writer):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y"):
        with (
            pytest.raises(InvalidInputError, match=r"cannot write to .*file.*; choose another folder$"),
            writer(target),
        ):
            pass
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EACCES, "permission denied; choose another folder"),
        (errno.EROFS, "read-only file system; choose another folder"),
        (errno.ENOSPC, "no space left on device; make room there or choose another folder"),
    ],
)
def test_what_the_disk_says_is_refused_in_one_line(tmp_path, monkeypatch, number, text):
    def fails(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    target = tmp_path / "result.json"
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(InvalidInputError) as caught:
        write_json(target, {})
    assert str(caught.value) == f"cannot write to {target}: {text}"
    assert names(tmp_path) == []

    monkeypatch.setattr("tempfile.TemporaryFile", fails)
    with pytest.raises(InvalidInputError, match=f"cannot write to {tmp_path}: {text}"):
        check_writable(tmp_path)


def test_an_input_that_cannot_be_read_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "copy"):
        (tmp_path / "absent").read_text()


def test_an_error_that_is_not_the_disks_passes(tmp_path):
    with pytest.raises(ConnectionRefusedError), atomic_path(tmp_path / "download"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "connection refused")


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "model"
    with atomic_folder(target) as temporary:
        (temporary / "variables").mkdir()
        (temporary / "variables" / "data").write_text("whole")
        assert not target.exists()
    assert (target / "variables" / "data").read_text() == "whole"
    assert names(target.parent) == ["model"]


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    with pytest.raises(InvalidInputError, match=r"model already exists; choose another folder or give --overwrite$"):
        with atomic_folder(target):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="already exists"), atomic_folder(tmp_path / "file", overwrite=True):
        pass
    assert names(tmp_path) == ["file", "model"]


def test_a_folder_that_another_process_wrote_meanwhile_is_kept(tmp_path):
    target = tmp_path / "model"
    with pytest.raises(InvalidInputError, match="model already exists"), atomic_folder(target) as temporary:
        (temporary / "ours").touch()
        target.mkdir()
        (target / "theirs").touch()
    assert names(target) == ["theirs"] and names(tmp_path) == ["model"]


def test_overwriting_replaces_the_folder_only_on_success(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("")
    with pytest.raises(RuntimeError), atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_text("")
        raise RuntimeError
    assert names(target) == ["old"] and names(tmp_path) == ["model"]
    with atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_text("")
    assert names(target) == ["new"] and names(tmp_path) == ["model"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("")
    rename = Path.rename

    def fails_into_place(self, to):
        if to == target and not self.name.endswith(".old"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails_into_place)
    with pytest.raises(InvalidInputError, match="permission denied"), atomic_folder(target, overwrite=True):
        pass
    assert names(target) == ["old"] and names(tmp_path) == ["model"]


def test_json_is_indented_ends_in_a_newline_and_has_no_nan(tmp_path):
    target = tmp_path / "result.json"
    write_json(target, {"classes": ["naïve"], "accuracy": 0.5})
    assert target.read_text("utf-8") == '{\n "classes": [\n  "naïve"\n ],\n "accuracy": 0.5\n}\n'
    write_json(target, {"loss": float("nan"), "rows": [float("inf"), 1.0]})
    assert json.loads(target.read_text("utf-8")) == {"loss": None, "rows": [None, 1.0]}


def test_check_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    check_writable(tmp_path / "runs" / "a")
    assert names(tmp_path / "runs" / "a") == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "x", Path(os.devnull) / "x"):
        with pytest.raises(InvalidInputError, match=r"^cannot write to .*; choose another folder$"):
            check_writable(folder)


def test_files_that_are_being_written_are_not_found(tmp_path):
    with atomic_folder(tmp_path / "attack") as temporary:
        (temporary / "record.json").write_text("{}")
        assert not complete_files(tmp_path, "*/record.json") and not complete_files(tmp_path, "**/*.json")
    for pattern in ("*/record.json", "**/*.json"):
        assert complete_files(tmp_path, pattern) == [tmp_path / "attack/record.json"]
    assert complete_files(tmp_path / "attack", "*.json") == [tmp_path / "attack/record.json"]
    assert complete_files(tmp_path / "nowhere", "*/record.json") == []
