"""The folder of a run: claimed by one, resumed by the same fingerprint only, finished once."""

import dataclasses
import json
import os
import threading

import pytest

from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.signals import Terminated
from keras_rcl.storage.atomic import FolderInUse
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.run_folder import RunFolder

FINGERPRINT = Fingerprint(seed=1, settings={"method": {"epochs": 3}})


def begin(folder):
    (folder / "config.yaml").write_text("begun")


def claim(path, fingerprint=FINGERPRINT, **options):
    return RunFolder(path, fingerprint, begin, **options)


def test_begun_resumed_finished(tmp_path):
    path = tmp_path / "run"
    with claim(path) as run:
        assert not run.resumed and (path / "config.yaml").read_text() == "begun"
        (path / "config.yaml").write_text("kept")
    with claim(path) as run:
        assert run.resumed and (path / "config.yaml").read_text() == "kept"
        run.record.write_text("{}")
        (path / "training/000001.state").write_text("")
        run.finish()
    assert sorted(os.listdir(path)) == ["config.yaml", "record.json"]


def test_one_process_at_a_time(tmp_path):
    with claim(tmp_path / "run"):
        for options in ({}, {"overwrite": True}, {"fingerprint": Fingerprint(seed=2)}):
            with pytest.raises(FolderInUse, match="run is written by another run; wait for it or give another --name"):
                claim(tmp_path / "run", **options)
    claim(tmp_path / "run").release()


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_that_begin_at_once_one_is_refused(tmp_path, overwrite):
    """The second one starts while the first one writes its folder, which does not exist yet."""
    outcomes = []

    def second():
        try:
            claim(tmp_path / "run", Fingerprint(seed=2), overwrite=overwrite)
        except FolderInUse as error:
            outcomes.append(error)

    other = threading.Thread(target=second)

    def slow(folder):
        other.start()
        other.join(0.3)
        begin(folder)

    with RunFolder(tmp_path / "run", FINGERPRINT, slow) as run:
        other.join()
        assert len(outcomes) == 1 and (run.path / "config.yaml").read_text() == "begun"
    assert claim(tmp_path / "run").resumed and os.listdir(tmp_path) == ["run"]


def test_another_fingerprint_is_refused_with_what_differs(tmp_path):
    claim(tmp_path / "run").release()
    with pytest.raises(FolderInUse, match="unfinished run with other seed, jit; repeat its command .* --overwrite"):
        claim(tmp_path / "run", Fingerprint(seed=2, settings={**FINGERPRINT.settings, "jit": True}))
    (tmp_path / "run/kept").touch()
    with claim(tmp_path / "run", overwrite=True) as run:
        assert run.resumed and (tmp_path / "run/kept").exists()  # the same fingerprint resumes
    with claim(tmp_path / "run", dataclasses.replace(FINGERPRINT, seed=2), overwrite=True) as run:
        assert not run.resumed and not (tmp_path / "run/kept").exists()
    assert json.loads((tmp_path / "run/training/question.json").read_text())["seed"] == 2


def test_what_a_killed_process_left_is_swept(tmp_path):
    claim(tmp_path / "run").release()
    (tmp_path / "run/checkpoints").mkdir()
    for left in ("run/.0123abcd.record.json", "run/checkpoints/.0123abcd.best.weights.h5"):
        (tmp_path / left).touch()
    (tmp_path / "run/checkpoints/.mine").touch()
    claim(tmp_path / "run").release()
    assert os.listdir(tmp_path / "run/checkpoints") == [".mine"]
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoints", "config.yaml", "training"]


def test_a_fingerprint_that_cannot_be_read(tmp_path):
    claim(tmp_path / "run").release()
    (tmp_path / "run/training/question.json").write_text("[1]")
    with pytest.raises(InvalidInputError, match="question.json is not the fingerprint of a run.*remove the folder"):
        claim(tmp_path / "run")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Terminated])
def test_interrupted_it_says_how_to_resume(tmp_path, kind):
    with pytest.raises(kind, match="the same command resumes"), claim(tmp_path / "run"):
        raise kind
    assert claim(tmp_path / "run").resumed


def test_refused_before_anything_was_saved_it_leaves_nothing(tmp_path):
    with pytest.raises(InvalidInputError), claim(tmp_path / "run"):
        raise InvalidInputError("no")
    assert os.listdir(tmp_path) == []
    with pytest.raises(InvalidInputError), claim(tmp_path / "run"):
        (tmp_path / "run/training/000001.state").touch()
        raise InvalidInputError("no")
    assert claim(tmp_path / "run").resumed


def test_a_full_disk_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot write to .*run: no space left on device; make room"):
        with claim(tmp_path / "run"):
            raise OSError(28, "No space left on device")
