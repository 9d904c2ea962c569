"""Jobs in a pool of processes; the death of a process ends only its own job."""

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
    """Start TensorFlow in one of several processes that share a machine.

    Args:
        threads: The number of threads of one operation.
    """
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
    """Run jobs, `count` at a time. The next job is drawn only when a process is free.

    The other processes ignore SIGINT. An exception in this process ends them with SIGTERM and waits for them; if this
    process is killed, they receive SIGTERM too.

    Args:
        jobs: Each has a `number`, and can be pickled.
        report: Called with (number, news, None) while a job runs, and with (number, None, outcome) at its end.
        count: The number of processes.
        function: `module:name` of a function of (job, tell) that returns the outcome. Neither the outcome nor the
            argument of `tell`, which is passed to `report`, is None.
        failed: Returns the outcome of a job whose process died, given the reason.
        start: Called first in each process, before the module is imported, with its share of the cores.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // count)
    idle: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, int]] = {}

    def spawn_worker() -> _Worker:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, function, start, threads), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here)

    try:
        while True:
            while len(busy) < count and (job := next(jobs, None)) is not None:
                worker = idle.pop() if idle else spawn_worker()
                busy[worker.connection] = worker, job.number
                worker.connection.send(job)
            if not busy:
                break
            for connection in wait(list(busy)):
                worker, number = busy[connection]
                try:
                    news, outcome = connection.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    del busy[connection]
                    report(number, None, failed(_exit_reason(worker.process.exitcode)))
                    continue
                if outcome is not None:
                    del busy[connection]
                    idle.append(worker)
                report(number, news, outcome)
    finally:
        workers = [*idle, *(worker for worker, _ in busy.values())]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _exit_reason(status: int | None) -> str:
    how = f"was ended by signal {-status}" if status and status < 0 else f"ended with status {status}"
    return f"its process {how}; memory may have been short: give fewer --processes"


def _work(connection: Connection, function: str, start: Callable[[int], None], threads: int) -> None:
    """The main function of a process: run one job after another until the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(threads)
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            job = connection.recv()
            connection.send((None, call(job, lambda news: connection.send((news, None)))))


def _end_with_parent() -> None:
    """End this process when its parent has ended."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
