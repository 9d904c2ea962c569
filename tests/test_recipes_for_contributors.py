"""The recipes of CONTRIBUTING.md: a forgotten step fails here."""

import configparser
import re
from pathlib import Path
from typing import get_args

import pytest

import keras_rcl
from keras_rcl.methods import VARIANTS
from keras_rcl.vocabulary.attacks import ATTACKS
from keras_rcl.vocabulary.network import Encoder
from keras_rcl.vocabulary.phase import Term

pytestmark = pytest.mark.slow_after(1000)  # a forgotten row is seen at once

ROOT = Path(__file__).parent.parent
WITHOUT_A_RUNNER = {"autoattack": "its members run", "stored": "read from disk", "refreshed": "crafted by training"}
REGULARIZERS = {"interval_tightness", "relu_balance"}
"""Terms of bounds, not of outputs: they have no function of their own in `objectives`."""
FUNCTIONS = {"supcon": "supervised_contrastive"}
"""Terms whose loss function has another name."""


def text_of(path: str) -> str:
    return (ROOT / path).read_text()


def test_the_layers_in_contributing_are_those_of_the_import_contract():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    contract = config["importlinter:contract:floors"]["layers"].split("\n")
    layers = [{name.strip() for name in layer.split("|")} for layer in contract if layer.strip()]
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", text_of("CONTRIBUTING.md"), flags=re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", names)) for _, names in rows] == layers[1:]
    assert [int(number) for number, _ in rows] == list(range(len(rows), 0, -1))
    assert layers[0] == {"__main__"}


def test_files_that_contributing_names_exist():
    named = re.findall(r"`((?:keras_rcl|tests|docs)/[\w./]+)`", text_of("CONTRIBUTING.md"))
    assert named and not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_run_and_documented(name):
    from keras_rcl.attacks.craft import RUNNERS

    assert (name in RUNNERS) != (name in WITHOUT_A_RUNNER)
    assert ATTACKS[name].__name__ in keras_rcl.__all__
    assert f"| `{name}` |" in text_of("docs/attacks.md")
    assert f"`{name}`" in text_of("docs/cli.md") or ATTACKS[name].training_only or name in text_of("docs/cli.md")


@pytest.mark.parametrize("cls", get_args(get_args(Term)[0]), ids=lambda cls: cls.term)
def test_a_term_is_computed_and_has_a_reference(cls):
    from keras_rcl import objectives
    from keras_rcl.training.loss_terms import TERMS
    from tests.reference import objectives as reference

    assert cls.term in TERMS
    if cls.term not in REGULARIZERS:
        function = FUNCTIONS.get(cls.term, cls.term)
        assert function in keras_rcl.__all__ and hasattr(objectives, function)
        assert f"`{function}`" in text_of("docs/losses.md")
        assert any(hasattr(reference, name) for name in (cls.term, cls.term.removesuffix("_contrastive"), "kl"))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_method_is_public_and_has_its_phases_as_text(name):
    assert VARIANTS[name].__name__ in keras_rcl.__all__
    assert f"| `{name}` |" in text_of("docs/methods.md")
    assert f'"{name}"' in text_of("tests/methods/test_recipes.py")


def test_every_encoder_is_built_documented_and_tested():
    from keras_rcl.networks import backbones

    assert set(get_args(Encoder)) == set(backbones.ENCODERS)
    tests = text_of("tests/networks/test_backbones.py")
    assert [name for name in backbones.ENCODERS if f'"{name}"' not in tests and "ENCODERS" not in tests] == []


def test_every_data_source_is_documented_and_tested():
    (table,) = re.findall(r"source = (\{.*?\})\.get", text_of("keras_rcl/data/sources.py"))
    names = re.findall(r'"(\w+)":', table)
    assert names
    for name in names:
        assert f"`{name}`" in keras_rcl.Dataset.__doc__
        assert name in text_of("docs/data.md") and name in text_of("tests/data/test_sources.py")


def test_every_audit_check_is_documented():
    from keras_rcl.evaluation.checks import CHECKS

    listed = re.findall(r"^\| ([a-z0-9 ]+?)(?: \*)? \|", text_of("docs/auditing.md"), flags=re.MULTILINE)
    assert [name for name in CHECKS if name not in listed] == []


def test_every_command_is_documented():
    from keras_rcl.cli.app import cli

    page = text_of("docs/cli.md")
    assert [name for name in cli.commands if name not in page] == []
    assert {name: command.name for name, command in cli.commands.items()} == {name: name for name in cli.commands}
