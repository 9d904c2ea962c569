"""A disk that fills while something is written: one line, and nothing that later counts as whole.

A limit on the length of files stands for the full disk, because the system refuses the write within the file, whatever
library writes it: Python, TensorFlow or HDF5.
"""

import contextlib
import os
import resource
import shutil
import sys

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from keras_rcl.data.adversarial_store import write_shard
from keras_rcl.data.splits import Split
from keras_rcl.model_io.export import export
from keras_rcl.networks.two_headed import build_network
from keras_rcl.report.figures import bars_plot
from keras_rcl.storage.atomic import CannotWrite, atomic_folder, atomic_path, disk_error
from keras_rcl.storage.checkpoints import Checkpoints
from keras_rcl.storage.snapshots import SnapshotStore
from keras_rcl.training.tensorboard import TensorBoardWriter
from keras_rcl.vocabulary.network import Network

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of files are Linux's here")


@contextlib.contextmanager
def longest_file(size: int):
    """Within this context a file cannot grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def network() -> keras.Model:
    settings = Network(projection_hidden=8, projection_dim=4)
    return build_network(settings, (8, 8, 1), 3, seed=0, mean=np.zeros(1), std=np.ones(1))


def shards(folder, network):
    examples = Split(np.zeros((300, 16, 16, 3), np.uint8), np.zeros(300, int), np.arange(300))
    with atomic_folder(folder / "examples", overwrite=True) as temporary:
        write_shard(temporary / "a.tfrecord", examples, "train")


def checkpoint(folder, network):
    Checkpoints(folder).save(network, "best")


def saved_model(folder, network):
    export(network, folder / "model", {"class_names": list("abc")}, overwrite=True)


def keras_file(folder, network):
    with atomic_path(folder / "model.keras") as path:
        network.save(path)


def figure(folder, network):
    bars_plot({str(number): {"published": 1.0} for number in range(20)}, folder / "bars.png")


def snapshot(folder, network):
    SnapshotStore(folder, print).save({}, {"weights": np.zeros(20_000)})


WRITERS = [shards, checkpoint, keras_file, figure, snapshot, pytest.param(saved_model, marks=pytest.mark.slow)]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("before", [False, True], ids=["new", "replaced"])
def test_what_is_written_is_whole_or_as_before(write, before, network, tmp_path):
    if before:
        write(tmp_path, network)
    found = contents(tmp_path)
    with longest_file(10_000), pytest.raises(CannotWrite) as refused:
        write(tmp_path, network)
    assert "file too large; make room there" in str(refused.value) and "\n" not in str(refused.value)
    assert contents(tmp_path) == found
    write(tmp_path, network)


def test_an_event_file_that_was_cut_is_noticed(tmp_path):
    """TensorFlow's writer does not report it."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, 100, 100, 3), np.uint8)

    def write(folder):
        with TensorBoardWriter(folder) as writer:
            for step, picture in enumerate(pictures):
                writer.images("training", "noise", picture, step)
                writer.flush()

    with longest_file(50_000), pytest.raises(CannotWrite, match="tensorboard: no space left on device; make room"):
        write(tmp_path / "cut")
    write(tmp_path / "whole")
    (events,) = (path for path in (tmp_path / "whole/tensorboard").rglob("*") if path.is_file())
    assert sum(1 for _ in RawEventFileLoader(str(events)).Load()) == 1 + len(pictures)


@pytest.mark.parametrize("device", ["/dev/full"])
def test_errors_of_disks_are_told_from_others(device, tmp_path):
    import tensorflow as tf

    with pytest.raises(OSError) as full, open(device, "w") as file:
        file.write("x")
        file.flush()
    assert os.strerror(disk_error(full.value)) == "No space left on device"
    assert disk_error(tf.errors.ResourceExhaustedError(None, None, "out of memory on GPU")) is None
    assert disk_error(ValueError("No space left on device")) is None
    with pytest.raises(tf.errors.OpError) as missing:
        next(iter(tf.data.TFRecordDataset(str(tmp_path / "absent"))))
    assert disk_error(missing.value) is None


@pytest.mark.slow
def test_a_small_file_system_that_is_full(tmp_path, network):
    """The same on a disk of its own, where root may mount one."""
    if os.geteuid() or shutil.which("mount") is None or os.system(f"mount -t tmpfs -o size=200k tmpfs {tmp_path}"):
        pytest.skip("cannot mount a file system")
    try:
        for write in (shards, keras_file, saved_model):
            (tmp_path / "ballast").write_bytes(bytes(150_000))
            with pytest.raises(CannotWrite, match="no space left on device; make room"):
                write(tmp_path, network)
            assert os.listdir(tmp_path) == ["ballast"]
            (tmp_path / "ballast").unlink()
    finally:
        os.system(f"umount {tmp_path}")
