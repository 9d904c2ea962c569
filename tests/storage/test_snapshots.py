"""Training snapshots: a run resumes from the last intact one, with its files as they were then."""

import json
import os

import numpy as np
import pytest

from keras_rcl.storage.snapshots import SnapshotStore

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.int64), "c": np.zeros(0, np.float16)}


@pytest.fixture
def said():
    return []


@pytest.fixture
def states(tmp_path, said):
    return SnapshotStore(tmp_path, said.append)


def log(run, line):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")


def test_a_saved_snapshot_is_read_back(states, said):
    assert states.rewind() is None
    states.save({"step": 3, "best": {"x": 0.1}}, ARRAYS)
    header, arrays = states.rewind()
    assert header["step"] == 3 and header["best"] == {"x": 0.1}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].tobytes() == array.tobytes()
    assert not said


def test_the_last_two_are_kept(states, tmp_path):
    for step in range(5):
        states.save({"step": step}, ARRAYS)
    assert sorted(os.listdir(tmp_path / "training")) == ["000004.state", "000005.state"]
    assert states.rewind()[0]["step"] == 4
    states.discard()
    assert os.listdir(tmp_path / "training") == []


def test_seconds_add_up_over_processes(states, tmp_path):
    states._before = 100.0
    states.save({}, {})
    later = SnapshotStore(tmp_path, print)
    later.rewind()
    assert 100 < later.seconds < 200


def test_a_damaged_snapshot_is_skipped_for_the_one_before(states, said, tmp_path):
    """Cut at any of many lengths, or one byte changed in any of many places."""
    states.save({"step": 1}, ARRAYS)
    states.save({"step": 2}, ARRAYS)
    path = tmp_path / "training/000002.state"
    whole = path.read_bytes()
    places = np.unique(np.linspace(0, len(whole) - 1, 60).astype(int))
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    for content in (*(whole[:at] for at in places), *flipped):
        path.write_bytes(content)
        assert states.rewind()[0]["step"] == 1
        (line,) = said
        assert line == f"{path} is damaged (its checksum does not match); skipped for the snapshot before it"
        assert not path.exists()
        said.clear()


def test_nothing_is_resumed_if_all_are_damaged(states, said, tmp_path):
    log(tmp_path, "1")
    states.save({}, {})
    (tmp_path / "training/000001.state").write_bytes(b"")
    assert states.rewind() is None and len(said) == 1
    assert not (tmp_path / "metrics.jsonl").exists()


def test_growing_files_are_cut_back(states, tmp_path):
    board = tmp_path / "tensorboard"
    board.mkdir()
    (board / "events.1").write_bytes(b"1234")
    log(tmp_path, "first")
    states.save({}, {})
    log(tmp_path, "second")
    with (board / "events.1").open("ab") as file:
        file.write(b"56")
    (board / "events.2").write_bytes(b"789")
    states.rewind()
    assert (tmp_path / "metrics.jsonl").read_text() == "first\n"
    assert {path.name: path.read_bytes() for path in board.iterdir()} == {"events.1": b"1234"}


def test_a_snapshot_whose_files_were_lost_is_skipped(states, said, tmp_path):
    """As where the power went before they were on the disk."""
    log(tmp_path, "1")
    states.save({"step": 1}, {})
    log(tmp_path, "2")
    states.save({"step": 2}, {})
    os.truncate(tmp_path / "metrics.jsonl", 3)
    assert states.rewind()[0]["step"] == 1
    assert "metrics.jsonl is shorter than it was" in said[0]
    (tmp_path / "metrics.jsonl").unlink()
    assert states.rewind() is None


def test_no_pickle_is_read(states, said, tmp_path):
    """A checksum can be made by anybody; what it protects is data all the same."""
    import hashlib
    import io

    stream = io.BytesIO()
    header = np.frombuffer(json.dumps({"format": 1, "seconds": 0, "logs": {}}).encode(), np.uint8)
    np.savez(stream, header=header, evil=np.array([print], object))
    (tmp_path / "training").mkdir()
    content = stream.getvalue()
    (tmp_path / "training/000001.state").write_bytes(hashlib.sha256(content).digest() + content)
    assert states.rewind() is None and "allow_pickle=False" in said[0]
