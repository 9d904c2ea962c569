"""`attack` interrupted on the command line: the same command resumes it, and another command is refused."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from keras_rcl.cli.app import cli
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.model_io.export import export
from keras_rcl.networks.two_headed import build_network
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.output_folder import output_and_journal
from keras_rcl.vocabulary.network import Network
from tests import forked

ATTACKS = ("--attack", "pgd-3:epsilon=1/255,num_restarts=2", "--attack", "fgsm:epsilon=1/255")
COMMAND = ("attack", "model", "--dataset", "digits", "--limit", "50", "--batch-size", "1", *ATTACKS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with an untrained model."""
    folder = tmp_path_factory.mktemp("resume")
    network = build_network(Network(encoder="small_cnn"), (8, 8, 1), 10, mean=[0.3], std=[0.4])
    export(network, folder / "model", {"class_names": list("0123456789")})
    return folder


@pytest.fixture(scope="module")
def folder(model):
    """That folder, with the record of an uninterrupted attack on the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(model)
        assert run(*COMMAND, "--save-images", "--output-dir", "whole").exit_code == 0
    return model


@pytest.fixture
def here(model, tmp_path, monkeypatch):
    """In a folder with the model alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model / "model")
    return tmp_path


@pytest.fixture(autouse=True)
def interruptible():
    """As in a terminal: a shell's background job, and so its tests, would ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def interrupt_after(monkeypatch, batches, *arguments, by=signal.SIGINT):
    """Run a command that receives a signal within a batch, after a number of completed batches."""
    whole, done = Evaluator._run, []

    def signalled(*args):
        if len(done) == batches:
            os.kill(os.getpid(), by)
        done.append(1)
        return whole(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "_run", signalled)
        return run(*arguments)


def assert_same(folder, other):
    """Records equal except for seconds and command; adversarial images and pictures equal to the bit."""
    records = [json.loads((path / "record.json").read_text()) for path in (folder, other)]
    for record in records:
        record.pop("command")
        assert all(row.pop("seconds") > 0 for row in record["rows"] if row["attack"] != "worst case")
    assert records[0] == records[1]
    assert 0.05 < records[0]["clean_accuracy"] and records[0]["rows"][0]["robust_accuracy"] > 0
    assert sorted(os.listdir(folder)) == sorted(os.listdir(other))
    for name in os.listdir(folder):
        if name.endswith(".png"):
            assert (folder / name).read_bytes() == (other / name).read_bytes()
    if (folder / "adversarial.npz").exists():
        with np.load(folder / "adversarial.npz") as ours, np.load(other / "adversarial.npz") as theirs:
            assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours.files)


@pytest.mark.slow
def test_killed_at_any_instant(folder, here, tmp_path):
    """SIGKILL in a process of its own as soon as the journal has some size; then to the end."""
    arguments = *COMMAND, "--save-images", "--output-dir", "out"
    journal, size = here / ".out.partial", np.random.default_rng(0).integers(1, 8_000)
    with (tmp_path / "said").open("w") as said:
        process = forked.start("-m", "keras_rcl", *arguments, stdout=said, stderr=said)
    while process.poll() is None and (not journal.exists() or journal.stat().st_size < size):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (here / "out").exists(), (tmp_path / "said").read_text()
    (tmp_path / "said").unlink()
    assert journal.stat().st_size >= size
    result = run(*arguments)
    assert result.exit_code == 0 and "resuming .out.partial: " in result.stderr, result.output
    assert_same(here / "out", folder / "whole")
    assert sorted(os.listdir(here)) == ["model", "out"]


@pytest.mark.slow
def test_interrupted(folder, here, monkeypatch):
    """Exit status 130 and one line; the folder to replace stays until its replacement is complete."""
    (here / "out").mkdir()
    (here / "out/record.json").write_text("before")
    arguments = *COMMAND, "--save-images", "--output-dir", "out", "--overwrite"
    first = interrupt_after(monkeypatch, 5, *arguments)
    assert first.exit_code == 130 and first.stderr.splitlines()[-1] == "interrupted; the same command resumes"
    assert "Traceback" not in first.output and (here / "out/record.json").read_text() == "before"
    result = run(*arguments)
    assert result.exit_code == 0 and "resuming .out.partial: 5 batches done" in result.stderr.splitlines()
    assert_same(here / "out", folder / "whole")
    assert sorted(os.listdir()) == ["model", "out"]


@pytest.mark.slow
def test_another_command_is_refused_or_starts_from_scratch(here, monkeypatch):
    terminated = interrupt_after(monkeypatch, 4, *COMMAND, "--output-dir", "out", by=signal.SIGTERM)
    assert terminated.exit_code == 143 and terminated.stderr.endswith("\ninterrupted; the same command resumes\n")
    content = Path(".out.partial").read_bytes()
    for change, named in ((("--seed", "1"), "seed"), (("--limit", "9"), "images"), (("--attack", "bim"), "attacks")):
        refused = run(*COMMAND, "--output-dir", "out", *change)
        (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error:")]
        assert refused.exit_code == 2 and named in line and ".out.partial" in line and "--overwrite" in line
        assert Path(".out.partial").read_bytes() == content
    replaced = run(*COMMAND, "--output-dir", "out", "--seed", "1", "--overwrite")
    assert replaced.exit_code == 0 and "resuming" not in replaced.stderr
    assert sorted(os.listdir()) == ["model", "out"]


def test_a_refused_attack_leaves_no_journal(here, monkeypatch):
    def refuse(*arguments):
        raise InvalidInputError("no gradient reaches the pixels")

    monkeypatch.setattr(Evaluator, "_run", refuse)
    assert run(*COMMAND, "--output-dir", "out").exit_code == 2
    assert os.listdir() == ["model"]


def test_default_names(tmp_path, monkeypatch):
    """The same fingerprint finds its own journal wherever it lies; others, and records, are passed by."""
    monkeypatch.chdir(tmp_path)

    def begin(seed, overwrite=False):
        output_dir, journal = output_and_journal(None, Path("attacks/m.1"), Fingerprint(seed=seed), overwrite)
        journal.close()
        assert journal.path == output_dir.with_name(f".{output_dir.name}.partial")
        return output_dir.name

    assert [begin(1), begin(2), begin(1), begin(3)] == ["m.1", "m.1-2", "m.1", "m.1-3"]
    for other in ("m_1", "m.1-x", "m.1-2-2"):
        (tmp_path / f"attacks/.{other}.partial").write_bytes((tmp_path / "attacks/.m.1.partial").read_bytes())
    (tmp_path / "attacks/.m.1.partial").unlink()
    (tmp_path / "attacks/m.1").mkdir()
    assert [begin(2), begin(4)] == ["m.1-2", "m.1-4"]
    (tmp_path / "attacks/m.1").rmdir()
    assert [begin(3), begin(5)] == ["m.1-3", "m.1"]
    # A record that was finished, and whose journal was not yet deleted.
    (tmp_path / "attacks/m.1-3").mkdir()
    assert begin(3) == "m.1-5"
    assert begin(6, overwrite=True) == "m.1"
