"""Hints name the program as the user started it."""

import pytest

from keras_rcl.runtime.program import program_name


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("cli.py", "python cli.py"),
        ("/home/me/keras_rcl/cli.py", "python cli.py"),
        ("/home/me/.venv/bin/keras-rcl", "keras-rcl"),
        ("/usr/lib/python3/site-packages/keras_rcl/__main__.py", "python -m keras_rcl"),
        ("my_program.py", "python -m keras_rcl"),
        ("", "python -m keras_rcl"),
    ],
)
def test_the_name_is_that_of_the_started_file(monkeypatch, started, name):
    monkeypatch.setattr("sys.argv", [started, "fit"])
    assert program_name() == name
