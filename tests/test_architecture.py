"""Imports only go down the layers, and quick commands import nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("tensorflow", "keras", "keras_cv", "tensorflow_datasets", "sklearn", "matplotlib", "tensorboard")


def test_imports_only_go_down():
    linted = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout


def test_ruff_is_clean():
    for command in (["check"], ["format", "--check"]):
        checked = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["fit", "--help"], ["variants"], ["show"], ["report", "--help"], ["--version"]]
)
def test_quick_commands_import_nothing_heavy(arguments):
    code = f"""
import sys
from keras_rcl.cli.app import cli
try:
    cli({arguments!r})
except SystemExit as stop:
    assert not stop.code, stop.code
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    answered = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout


def test_cli_py_is_the_same_program():
    helped = subprocess.run([sys.executable, "cli.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert helped.returncode == 0
    assert all(verb in helped.stdout for verb in ("fit", "attack", "predict", "export", "variants", "show"))
