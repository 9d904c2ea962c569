"""Jobs in processes of their own, each of which may die without the others."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from keras_rcl.runtime.tensorflow import start_tensorflow


class _Worker(NamedTuple):
    process: multiprocessing.Process
    connection: Connection


def start_with(threads: int) -> None:
    """Start TensorFlow in one of several processes that share a machine."""
    start_tensorflow()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, True)


def in_processes(
    jobs: Iterator,
    report: Callable[[int, Any, Any], None],
    count: int,
    *,
    function: str,
    failed: Callable[[str], Any],
    start: Callable[[int], None] = start_with,
) -> None:
    """Run jobs, `count` at once; each next one is asked for only when a process is free for it.

    SIGINT is left to this process alone; what raises here ends the others with SIGTERM, and waits for them. Where this
    one is killed, they get SIGTERM too.

    Args:
        jobs: each with a `number`, and picklable.
        report: called with (number, what is told, None) as a job goes on, and (number, None, outcome) at its end.
        count: of processes.
        function: `module:name` of (job, tell) -> outcome, which is not None, nor is what tell takes.
        failed: how a process died -> the outcome of its job.
        start: called first in each process, before the module is imported, with its share of the cores.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // count)
    idle: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, int]] = {}

    def hired() -> _Worker:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, function, start, threads), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here)

    try:
        while True:
            while len(busy) < count and (job := next(jobs, None)) is not None:
                worker = idle.pop() if idle else hired()
                busy[worker.connection] = worker, job.number
                worker.connection.send(job)
            if not busy:
                break
            for connection in wait(list(busy)):
                worker, number = busy[connection]
                try:
                    told, outcome = connection.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    del busy[connection]
                    report(number, None, failed(_how_it_ended(worker.process.exitcode)))
                    continue
                if outcome is not None:
                    del busy[connection]
                    idle.append(worker)
                report(number, told, outcome)
    finally:
        workers = [*idle, *(worker for worker, _ in busy.values())]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _how_it_ended(status: int | None) -> str:
    how = f"was ended by signal {-status}" if status and status < 0 else f"ended with status {status}"
    return f"its process {how}; memory may have been short: give fewer --processes"


def _work(connection: Connection, function: str, start: Callable[[int], None], threads: int) -> None:
    """A process: one job after another, until there is nobody to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(threads)
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            job = connection.recv()
            connection.send((None, call(job, lambda told: connection.send((told, None)))))


def _end_with_parent() -> None:
    """Ask this process to end when the one that made it is gone, however it went."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
