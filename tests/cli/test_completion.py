"""The shell completes variants, attacks, choices and files."""

import subprocess
import sys

import pytest
from click.shell_completion import ShellComplete

from keras_rcl.cli.app import cli
from keras_rcl.methods import VARIANTS


def completed(*words: str) -> dict[str, str]:
    """Value -> its kind, of what the shell offers for the last word."""
    *before, incomplete = words
    shell = ShellComplete(cli, {}, "keras-rcl", "_KERAS_RCL_COMPLETE")
    return {item.value: item.type for item in shell.get_completions(before, incomplete)}


@pytest.mark.parametrize("option", ["--variant", "--compare"])
def test_variants(option):
    assert set(completed("fit", option, "")) == set(VARIANTS)
    assert set(completed("fit", option, "tra")) == {"trades", "trades_scl"}


@pytest.mark.parametrize("command", ["show", "tune"])
def test_variants_of_other_commands(command):
    assert set(completed(command, "--variant", "claf")) == {"clafs"}


@pytest.mark.parametrize(
    "words",
    [
        ("attack", "model", "--attack"),
        ("craft-dataset", "model", "--attack"),
        ("export-vnnlib", "model", "--attack"),
        ("tune", "--attack"),
        ("audit", "model", "--verifier"),
    ],
    ids=lambda words: words[0],
)
def test_attacks(words):
    assert set(completed(*words, "a")) == {"apgd", "autoattack"}
    assert {"fgsm", "pgd", "square", "cw-inf"} <= set(completed(*words, ""))
    assert "stored" not in completed(*words, "")  # trained on, not run


@pytest.mark.parametrize(
    "words",
    [
        ("attack", "sav"),
        ("audit", "sav"),
        ("predict", "model", "sav"),
        ("verify", "sav"),
        ("fit", "--config", "sav"),
        ("fit", "--reuse", "sav"),
        ("attack", "model", "--folder", "sav"),
        ("attack", "model", "--data-dir", "sav"),
        ("attack", "model", "--transfer-from", "sav"),
    ],
    ids=" ".join,
)
def test_files(words):
    (kind,) = set(completed(*words).values())
    assert kind in ("file", "dir")


def test_choices_commands_and_options():
    assert set(completed("report", "--paper", "c")) == {"claf", "contrast", "cusin"}
    assert set(completed("cra")) == {"craft-dataset"}
    assert "--variant" in completed("fit", "--var")


def test_bash_gets_them_without_tensorflow(tmp_path):
    """As the line of the documentation asks for them."""
    code = "import sys; from keras_rcl.cli.app import cli\ntry: cli()\nfinally: assert 'tensorflow' not in sys.modules"
    environment = {
        "_KERAS_RCL_COMPLETE": "bash_complete",
        "COMP_WORDS": "keras-rcl fit --variant tra",
        "COMP_CWORD": "3",
    }
    program = tmp_path / "keras-rcl"
    program.write_text(code)
    done = subprocess.run([sys.executable, program], env=environment, cwd="/", capture_output=True, text=True)
    assert done.stdout.split() == ["plain,trades", "plain,trades_scl"] and not done.stderr


def test_a_command_imports_no_other_command_and_no_recipes():
    code = "import sys; from keras_rcl.cli.app import cli; cli.commands['attack']; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "keras_rcl.cli.attack" in found
    assert {"keras_rcl.cli.fit", "keras_rcl.cli.report", "keras_rcl.methods", "keras_rcl.papers"}.isdisjoint(found)
