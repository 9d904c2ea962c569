"""Keras is started on TensorFlow, or not at all."""

import os
import subprocess
import sys

import pytest

from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.tensorflow import start_tensorflow


@pytest.mark.parametrize("backend", ["torch", "jax", "numpy", "theano"])
def test_another_backend_in_the_environment_raises(monkeypatch, backend):
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    with pytest.raises(InvalidInputError, match=f"the Keras backend is {backend}: .*; hint: unset KERAS_BACKEND"):
        start_tensorflow()


def test_keras_that_runs_on_another_backend_raises(monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(InvalidInputError, match="the Keras backend is jax: .*before keras is imported"):
        start_tensorflow()


def test_a_command_ends_in_one_line(tmp_path):
    """TensorFlow is not imported for it."""
    command = [sys.executable, "-m", "keras_rcl", "export", "nothing"]
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: the Keras backend is torch: keras_rcl computes with TensorFlow; hint: unset KERAS_BACKEND, or set it "
        "to tensorflow\n"
    )
