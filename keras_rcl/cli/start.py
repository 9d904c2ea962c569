"""What a command does before its work: start TensorFlow, join the other workers, print advice."""

import contextlib
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import click

from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime import launcher
from keras_rcl.runtime.distributed import Workers, start_workers, task_of
from keras_rcl.runtime.progress import Progress, Silent, StderrProgress
from keras_rcl.runtime.tensorflow import advice, start_tensorflow


def join_workers(count: int | None, replicas: int | None = None) -> Workers:
    """Start TensorFlow and return this process's place among the workers.

    With a `count` above 1 and no TF_CONFIG, the workers are launched, and this process exits with their status.
    """
    task = task_of(os.environ.get("TF_CONFIG"))
    if task is None and (count or 1) > 1:
        if replicas:
            raise InvalidInputError(
                f"--replicas {replicas} is for one process, and --workers {count} starts several; give one"
            )
        sys.exit(launcher.run(count, say=lambda line: click.echo(line, err=True)))
    if task and count and count != len(task.addresses):
        raise InvalidInputError(f"--workers {count}, and TF_CONFIG names {len(task.addresses)}; leave out --workers")
    launcher.end_with_parent()
    start_tensorflow()
    return start_workers(replicas, say=lambda line: click.echo(line, err=True))


def progress_of(workers: Workers) -> AbstractContextManager[Progress]:
    """The progress display: on stderr for the chief, silent for other workers."""
    return StderrProgress() if workers.chief else contextlib.nullcontext(Silent())


def print_advice(*args, **kwargs) -> None:
    """Print what `advice` says of the chosen dtype and compiler as notes on stderr."""
    for line in advice(*args, **kwargs):
        click.echo(f"note: {line}", err=True)


def print_model_notes(model: Mapping[str, Any]) -> None:
    """Print on stderr what a record says was assumed of its model, and what says that the model is misread."""
    if model.get("note"):
        click.echo(f"note: {model['note']}", err=True)
    if input_range := model.get("input_range"):
        click.echo(f"note: {range_text(input_range)}", err=True)
        for doubt in input_range["doubts"]:
            click.echo(f"warning: {doubt}", err=True)


def range_text(input_range: Mapping[str, Any]) -> str:
    """The range that a model is read in, and why, in one line."""
    return f"the model reads images in {input_range['name']} ({input_range['reason']})"
