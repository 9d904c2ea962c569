"""Imports only go down the layers, and quick commands import nothing heavy."""

import re
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


READERS = {
    "config.py": "YAML, which `Experiment` validates",
    "data/array_files.py": "arrays of images and labels, which `to_pixels` and `class_labels` validate",
    "data/images.py": "arrays of images, which `check_images` validates",
    "model_io/loading.py": "model.json, which `CONTRACT` validates if it is an export's",
    "model_io/torch_checkpoints.py": "the header of a safetensors file, which it checks itself",
    "report/records.py": "records, which `RECORD` and `VERIFICATION` validate, among other JSON files",
    "runtime/distributed.py": "what workers send each other, and TF_CONFIG",
    "storage/atomic.py": "defines `parse_json`",
    "storage/fingerprint.py": "copies JSON values",
    "storage/journal.py": "a fingerprint and arrays with checksums",
    "storage/keras_archive.py": "the configuration of a `.keras` file, which an allow list validates",
    "storage/snapshots.py": "arrays with a checksum",
    "storage/stored.py": "defines `FileKind`",
}
"""Module -> what it reads without a kind of file in `storage/kinds.py`, and what validates it."""


def test_stored_files_are_read_by_their_kind():
    """A module that parses files itself is in the table above; others read them by `storage/kinds.py`."""
    parses = re.compile(r"\b(json\.loads?|read_json|yaml\.(safe_)?load|np\.load|pickle\.loads?)\(")
    package = ROOT / "keras_rcl"
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if parses.search(path.read_text())}
    assert found == READERS.keys()
