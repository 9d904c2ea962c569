"""`fit` in processes of its own: killed at random instants, terminated within an epoch, run twice at once."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from keras_rcl.cli.app import cli
from tests import forked

ROOT = Path(__file__).resolve().parent.parent
FIT = ("fit", "--variant", "baseline", "--no-compare", "--name", "run", "--limit", "300", "--save-every", "0")
LONG = ("--set", "method.epochs=100000")


@pytest.mark.slow
def test_kills_at_random_instants_change_no_bit(tmp_path):
    """A short form of the recorded run of results/robustness/crash.json: two kills in two phases, with its own seed."""
    command = ["-m", "benchmarks.crash", "--subjects", "supcon_linear", "--kills", "2", "--seed", "20"]
    done = forked.run(*command, "--json", tmp_path / "crash.json", "--keep", tmp_path / "runs", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "crash.json").read_text())
    assert found["kills"] == 2 and found["differences"] == found["unreadable_states"] == 0
    assert len(list((tmp_path / "runs/supcon_linear/whole").glob("runs/*/record.json"))) == 1


@pytest.mark.slow
def test_terminated_within_an_epoch_and_run_twice_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    states, environment = tmp_path / "runs/run/training", {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "printed").open("w") as printed, (tmp_path / "said").open("w") as said:
        first = forked.start("-m", "keras_rcl", *FIT, *LONG, env=environment, stdout=printed, stderr=said)
    try:
        while not list(states.glob("*.state")):
            assert first.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
        second = CliRunner().invoke(cli, [*FIT, *LONG])
        assert second.exit_code == 2 and "runs/run is written by another run" in second.stderr.splitlines()[-1]
    finally:
        os.kill(first.pid, signal.SIGTERM)
    status, said = first.wait(), (tmp_path / "said").read_text()
    assert status == 143, said
    assert said.splitlines()[-1] == "interrupted; the same command resumes" and "Traceback" not in said
    assert list(states.glob("*.state")) and not (tmp_path / "saved_models/run").exists()
