"""`fit` in processes of its own: killed at random instants, terminated within an epoch, run twice at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from keras_rcl.cli.app import cli

ROOT = Path(__file__).resolve().parent.parent
FIT = ("fit", "--variant", "baseline", "--no-compare", "--name", "run", "--limit", "300", "--save-every", "0")
LONG = ("--set", "method.epochs=100000")


def keras_rcl(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "keras_rcl", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_kills_at_random_instants_change_no_bit(tmp_path):
    """A short form of the recorded run of results/robustness/crash.json: two kills in two phases, with its own seed."""
    command = [sys.executable, "-m", "benchmarks.crash", "--subjects", "supcon_linear", "--kills", "2", "--seed", "20"]
    done = subprocess.run(
        [*command, "--json", tmp_path / "crash.json", "--keep", tmp_path / "runs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "crash.json").read_text())
    assert found["kills"] == 2 and found["differences"] == found["unreadable_states"] == 0
    assert len(list((tmp_path / "runs/supcon_linear/whole").glob("runs/*/record.json"))) == 1


@pytest.mark.slow
def test_terminated_within_an_epoch_and_run_twice_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = keras_rcl(tmp_path, *FIT, *LONG)
    try:
        states = tmp_path / "runs/run/training"
        while first.poll() is None and not list(states.glob("*.state")):
            time.sleep(0.05)
        second = CliRunner().invoke(cli, [*FIT, *LONG])
        assert second.exit_code == 2 and "runs/run is written by another run" in second.stderr.splitlines()[-1]
    finally:
        first.send_signal(signal.SIGTERM)
    said = first.communicate()[1]
    assert first.returncode == 143, said
    assert said.splitlines()[-1] == "interrupted; the same command resumes" and "Traceback" not in said
    assert list(states.glob("*.state")) and not (tmp_path / "saved_models/run").exists()
