"""The public names of `keras_rcl`: one list in the lazy table, in the stub and in `__all__`."""

import ast
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import keras_rcl

ROOT = Path(__file__).parent.parent
NOT_CALLABLE = {"VARIANTS"}


def test_the_stub_the_lazy_table_and_all_name_the_same():
    stub = ast.parse((ROOT / "keras_rcl" / "__init__.pyi").read_text())
    imported = {
        (node.module, alias.name) for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    table = {(module, name) for module, names in keras_rcl._MODULES.items() for name in names}
    assert imported == table
    assert listed == keras_rcl.__all__ == sorted(name for _, name in table) == dir(keras_rcl)


@pytest.mark.slow
def test_every_name_is_the_same_object_when_it_is_fetched_again():
    code = f"""
import sys, types
import keras_rcl
heavy = ("tensorflow", "keras", "keras_cv", "tensorflow_datasets", "sklearn", "matplotlib", "tensorboard")
assert not [name for name in heavy if name in sys.modules]
first = {{name: getattr(keras_rcl, name) for name in keras_rcl.__all__}}
for name, value in first.items():
    assert getattr(keras_rcl, name) is value, name
    assert not isinstance(value, types.ModuleType), name
    assert callable(value) or name in {NOT_CALLABLE!r}, name
    assert name in {NOT_CALLABLE!r} or value.__name__ == name, name
"""
    imported = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert imported.returncode == 0, imported.stderr
    assert imported.stderr == "", "starting TensorFlow must not write to the terminal"


def test_every_method_and_every_attack_is_public():
    from keras_rcl.methods import VARIANTS
    from keras_rcl.vocabulary.attacks import ATTACKS

    assert {cls.__name__ for cls in [*VARIANTS.values(), *ATTACKS.values()]} <= set(keras_rcl.__all__)


def test_no_root_module_has_a_public_name():
    """A submodule `keras_rcl.fit` would replace the function `keras_rcl.fit` when it is imported."""
    root = {path.stem for path in (ROOT / "keras_rcl").iterdir()}
    assert not root & set(keras_rcl.__all__)


def test_the_package_is_marked_as_typed():
    assert resources.files("keras_rcl").joinpath("py.typed").is_file()
