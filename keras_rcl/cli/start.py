"""What a command does before its work: start TensorFlow, join the other workers, print advice."""

import contextlib
import os
import sys
from contextlib import AbstractContextManager

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
        sys.exit(launcher.run(count))
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
