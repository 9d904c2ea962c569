"""Every write, sync, rename and deletion of what a run saves, failing in turn, or killing the process there.

Each case runs in a child process that calls nothing but Python's own files: an audit hook counts what it
does under the folder. What is found afterwards must be whole, as before or as after, and doing it again must succeed.
"""

import errno
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.atomic import atomic_folder, atomic_path, refusal, sweep, write_json
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.journal import Journal
from keras_rcl.storage.run_folder import RunFolder
from keras_rcl.storage.snapshots import SnapshotStore

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
REFUSED, BROKEN = 3, 4
ARRAYS = {"weights": np.arange(3000, dtype=np.float32)}


# What is saved: prepare(folder), save(folder), and check(folder, done), which says what may be found there.


class State:
    @staticmethod
    def prepare(run):
        for step in (1, 2):
            State.save(run, step)

    @staticmethod
    def save(run, step=3):
        try:  # as the context of a run's folder does
            with (run / "metrics.jsonl").open("a") as file:
                file.write(f"{step}\n")
            SnapshotStore(run, print).save({"step": step}, ARRAYS)
        except OSError as error:
            raise refusal(run, error) from error

    @staticmethod
    def check(run, done):
        said = []
        header, arrays = SnapshotStore(run, said.append).rewind()
        assert header["step"] in ((3,) if done else (2, 3)) and not said
        assert arrays["weights"].tobytes() == ARRAYS["weights"].tobytes()
        assert (run / "metrics.jsonl").read_text() == "".join(f"{n + 1}\n" for n in range(header["step"]))
        if not done and header["step"] == 3:
            shutil.rmtree(run)  # what is done again below is the third state
            run.mkdir()
            State.prepare(run)
        sweep(run / "training")


class Checkpoint:
    """As `Checkpoints.save`, whose HDF5 library is not Python's: the bytes are, and where they go."""

    @staticmethod
    def prepare(run):
        (run / "best.weights.h5").write_bytes(b"old")

    @staticmethod
    def save(run):
        with atomic_path(run / "best.weights.h5") as temporary, temporary.open("wb") as file:
            file.write(b"new" * 5000)

    @staticmethod
    def check(run, done):
        assert (run / "best.weights.h5").read_bytes() in ((b"new" * 5000,) if done else (b"old", b"new" * 5000))
        sweep(run)


class Record:
    @staticmethod
    def prepare(run):
        pass

    @staticmethod
    def save(run):
        write_json(run / "record.json", list(range(3000)))

    @staticmethod
    def check(run, done):
        assert done or not (run / "record.json").exists() or json.loads((run / "record.json").read_text())
        if done:
            assert json.loads((run / "record.json").read_text()) == list(range(3000))
        sweep(run)


class Export:
    @staticmethod
    def prepare(run):
        with atomic_folder(run / "export") as folder:
            (folder / "model.json").write_text("old")

    @staticmethod
    def save(run):
        with atomic_folder(run / "export", overwrite=True) as folder:
            (folder / "variables").mkdir()
            (folder / "variables/data").write_bytes(bytes(9000))
            (folder / "model.json").write_text("new")

    @staticmethod
    def check(run, done):
        export = run / "export"
        found = {str(p.relative_to(export)): p.read_bytes() for p in export.rglob("*") if p.is_file()}
        new = {"variables/data": bytes(9000), "model.json": b"new"}
        # Killed between its two renames, the old folder is aside and the new one beside: neither is in place.
        assert found in ((new,) if done else (new, {"model.json": b"old"}, {}))
        sweep(run)


class Begun:
    """A run's folder, begun and finished."""

    @staticmethod
    def prepare(run):
        pass

    @staticmethod
    def save(run):
        def begin(folder):
            (folder / "config.yaml").write_text("whole")

        with RunFolder(run / "run", Fingerprint(seed=1), begin) as folder:
            if not folder.record.is_file():
                write_json(folder.record, {"done": True})
            folder.finish()

    @staticmethod
    def check(run, done):
        if (run / "run").exists():
            assert (run / "run/config.yaml").read_text() == "whole"
        if done:
            assert sorted(os.listdir(run / "run")) == ["config.yaml", "record.json"]
        elif (run / "run").exists() and not (run / "run/training/question.json").exists():
            assert (run / "run/record.json").is_file()  # finished, except for deleting the rest
            shutil.rmtree(run / "run")
        sweep(run)


class Evaluation:
    @staticmethod
    def prepare(run):
        pass

    @staticmethod
    def save(run):
        with Journal(run / "evaluation", Fingerprint(seed=1)) as journal:
            for number in range(3):
                found = journal.result(b"%d" % number, lambda number=number: {"a": np.full(500, number)})
                assert (found["a"] == number).all()
        journal.close()

    @staticmethod
    def check(run, done):
        if (run / "evaluation").exists():
            Evaluation.save(run)


SAVED = [State, Checkpoint, Record, Export, Begun, Evaluation]


LEAN = multiprocessing.get_context("forkserver")
"""Forks from a process that holds nothing but these modules, ten times as fast as from one with TensorFlow."""
LEAN.set_forkserver_preload(["pytest", "keras_rcl.storage.journal", "keras_rcl.storage.snapshots"])


def in_child(folder, save, **fault):
    """Run `save(folder)` in a process of its own; its exit status, and how many changes it made: 0 where it is killed.

    At change number `fail_at` it fails with the errno `how`, or is killed; a file longer than `limit` bytes is cut
    there, which fails, or kills where `fatal`.
    """
    receive, send = LEAN.Pipe(duplex=False)
    process = LEAN.Process(target=child, args=(send, folder, save), kwargs=fault)
    process.start()
    send.close()
    try:
        changes = receive.recv()
    except EOFError:
        changes = 0
    process.join()
    return process.exitcode, changes


def child(send, folder, save, *, fail_at=None, how="count", limit=None, fatal=False):
    status, count = BROKEN, 0

    def change():
        nonlocal count
        count += 1
        if count == fail_at:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(how, os.strerror(how))

    def hook(event, arguments):
        path = next((a for a in arguments if isinstance(a, (str, Path))), None)
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in CHANGES or writes) and path is not None and str(path).startswith(str(folder)):
            change()

    try:
        sys.addaudithook(hook)
        os.fsync = lambda descriptor: change()
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fatal else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            save(folder)
        status = 0
    except InvalidInputError:
        status = REFUSED
    except BaseException:
        with open("/dev/stderr", "w") as shown, io.StringIO() as text:
            traceback.print_exc(file=text)
            shown.write(text.getvalue())
    finally:
        send.send(count)
        os._exit(status)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """No power is cut here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def attempt(saved, folder, expected, **fault):
    """Prepare, save with the fault, check, save again, check."""
    folder.mkdir()
    saved.prepare(folder)
    status, _ = in_child(folder, saved.save, **fault)
    assert status in expected, (saved.__name__, fault, status)
    saved.check(folder, done=False)
    assert in_child(folder, saved.save)[0] == 0
    saved.check(folder, done=True)
    left = [path for path in folder.rglob(".*")]
    assert not left, (saved.__name__, fault, left)
    shutil.rmtree(folder)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("saved", SAVED, ids=lambda saved: saved.__name__.lower())
def test_at_every_change(saved, tmp_path):
    counted = tmp_path / "counted"
    counted.mkdir()
    saved.prepare(counted)
    status, changes = in_child(counted, saved.save)
    assert status == 0 and changes >= 4
    for number in range(1, changes + 1):
        for how in (errno.ENOSPC, errno.EIO):
            attempt(saved, tmp_path / "run", (REFUSED, 0), fail_at=number, how=how)
        attempt(saved, tmp_path / "run", (-signal.SIGKILL,), fail_at=number, how="kill")


@pytest.mark.parametrize("saved", SAVED, ids=lambda saved: saved.__name__.lower())
def test_at_every_length(saved, tmp_path):
    """A write that stops at a byte, as on a full disk; and a process that dies there."""
    for limit in (0, 1, 20, 100, 1000, 4096, 8999):
        attempt(saved, tmp_path / "run", (REFUSED, 0), limit=limit)
        attempt(saved, tmp_path / "run", (-signal.SIGXFSZ, 0), limit=limit, fatal=True)
