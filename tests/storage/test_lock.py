"""Locks: one holder at a time, released at the latest when the holder's process ends."""

import os
import signal
import subprocess
import sys

import pytest

from keras_rcl.storage.atomic import FolderInUse
from keras_rcl.storage.lock import Lock

HOLDER = """
import sys, time
from pathlib import Path
from keras_rcl.storage.lock import Lock
lock = Lock(Path(sys.argv[1]), subject=Path("run"), option="--name")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
lock.release()
"""


def lock(path, **options):
    return Lock(path, subject=path.parent, option="--name", **options)


def start_holder(path, seconds):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, path, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_one_holder_at_a_time(tmp_path):
    with lock(tmp_path / "lock"):
        with pytest.raises(FolderInUse, match="is written by another run; wait for it or give another --name"):
            lock(tmp_path / "lock")
    assert os.listdir(tmp_path) == []
    lock(tmp_path / "lock").release()


def test_it_ends_with_a_killed_process(tmp_path):
    holder = start_holder(tmp_path / "lock", 60)
    with pytest.raises(FolderInUse):
        lock(tmp_path / "lock")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    lock(tmp_path / "lock").release()
    assert os.listdir(tmp_path) == []


def test_waiting_for_another_process(tmp_path):
    holder = start_holder(tmp_path / "lock", 0.5)
    with lock(tmp_path / "lock", wait=True):
        assert holder.communicate() and holder.returncode == 0 and (tmp_path / "lock").exists()
    assert os.listdir(tmp_path) == []
