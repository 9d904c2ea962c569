"""The examples of the docstrings run, and every public name has one."""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import keras_rcl

ROOT = Path(__file__).parent.parent
NOT_RUN = {
    "attack": "README.md",
    "audit": "docs/tutorials/audit-a-claim.md",
    "Audit": "docs/tutorials/audit-a-claim.md",
    "audit_model": "tests/workflows/test_loads.py",
    "certify_model": "tests/workflows/test_certify.py",
    "craft_dataset": "tests/workflows/test_craft_dataset.py",
    "export": "tests/model_io/test_export.py",
    "fit": "tests/workflows/test_variants.py",
    "import_weights": "tests/workflows/test_import_weights.py",
    "suggest_config": "tests/workflows/test_suggest_config.py",
    "train": "tests/workflows/test_train.py",
    "verify_model": "tests/workflows/test_loads.py",
    "verify_property": "tests/workflows/test_verify_properties.py",
    "verify_instances": "tests/workflows/test_verify_properties.py",
}
"""Public names whose example is too expensive for a doctest, and the file whose code the suite runs instead."""
DATA = {"VARIANTS"}
"""Public names that are not a function or class, and so have no docstring of their own."""


def _modules_with_examples():
    found = []
    for path in sorted((ROOT / "keras_rcl").rglob("*.py")):
        tree = ast.parse(path.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        if any(">>>" in (ast.get_docstring(node) or "") for node in ast.walk(tree) if isinstance(node, documented)):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


@pytest.mark.parametrize("module", _modules_with_examples())
def test_the_examples_of_a_module_run(module):
    from keras_rcl.runtime.tensorflow import start_tensorflow

    start_tensorflow()
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed, f"{result.failed} of {result.attempted} examples failed, see stdout"


@pytest.mark.parametrize("name", sorted({*keras_rcl.__all__} - DATA))
def test_every_public_name_has_an_example(name):
    example = inspect.getdoc(getattr(keras_rcl, name)).partition("Example:")[2]
    assert ">>>" in example
    assert ("+SKIP" in example) == (name in NOT_RUN)


@pytest.mark.parametrize(("name", "file"), NOT_RUN.items())
def test_an_example_that_is_not_run_is_covered_elsewhere(name, file):
    text = (ROOT / file).read_text()
    assert f"{name}(" in text or f'"{name.replace("_", "-")}"' in text or name == "Audit"
