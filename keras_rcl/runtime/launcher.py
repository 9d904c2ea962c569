"""Starts the workers of one machine, each of which runs this command with its `TF_CONFIG`, and ends them together."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import click

from keras_rcl.runtime import private_network

TRY_AGAIN = 75
"""The exit status of a run that lost a worker; EX_TEMPFAIL of sysexits.h."""
GRACE = 20.0
"""Seconds that the other workers have to end after one has failed."""
_PARENT = "KERAS_RCL_LAUNCHER"
_PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that this process receives when its parent ends."""


def run(count: int, say: Callable[[str], None] = lambda line: None) -> int:
    """Run this command as several workers in a network of their own, or on loopback if the system does not allow one.

    Only the chief writes to the terminal. If another worker fails first, its last line is shown. SIGINT and SIGTERM are
    passed to all workers, which save and end as a single process would.

    Args:
        count: The number of workers.
        say: Called with a line of text if other users of the machine can reach the workers.

    Returns:
        The exit status.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count - 1)]
        workers = _start(count, logs, say)

        def forward(number, frame):
            received.append(number)
            _signal(workers, number)

        try:
            for number in before:
                signal.signal(number, forward)
            while all(worker.poll() is None for worker in workers):
                time.sleep(0.05)
            return _end(workers, logs, received)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            _signal(workers, signal.SIGKILL)


def is_launched() -> bool:
    """Whether this process is a worker that `run` has started."""
    return _PARENT in os.environ


def end_with_parent() -> None:
    """In a worker: end this process when the launcher has ended."""
    parent = os.environ.get(_PARENT)
    if parent is None:
        return
    if sys.platform == "linux":  # also while TensorFlow waits for other workers, when no thread of Python runs
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch():
        while os.getppid() == int(parent):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _start(count: int, logs: list, say: Callable[[str], None]) -> list[subprocess.Popen]:
    """Start the workers, each in a session of its own, so that a terminal's Ctrl-C reaches them only once."""
    cluster = {"worker": [f"localhost:{port}" for port in _free_ports(count)]}
    workers = []
    for index in range(count):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        environment = {**os.environ, "TF_CONFIG": config, _PARENT: str(os.getpid())}
        streams = dict(stdout=subprocess.DEVNULL, stderr=logs[index - 1]) if index else {}
        command = [sys.executable, *sys.orig_argv[1:]]
        isolate = private_network.enter(workers[0].pid if workers else None) if sys.platform == "linux" else None
        workers.append(
            subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=isolate, **streams)
        )
    if not private_network.is_elsewhere(workers[0].pid):
        say(
            "warning: this system gives the workers no network of their own (user namespaces), so other users of this "
            "machine can connect to them and run code as you"
        )
    return workers


def _end(workers: list[subprocess.Popen], logs: list, received: list[int]) -> int:
    """Wait for all workers after one has ended; returns the exit status.

    Unless that worker failed, the others have as much time as they need.
    """

    def broken(worker: subprocess.Popen) -> bool:
        return worker.returncode is not None and (worker.returncode < 0 or (worker.returncode > 0 and not received))

    while any(worker.poll() is None for worker in workers) and not any(map(broken, workers)):
        time.sleep(0.05)
    failed = next((index for index, worker in enumerate(workers) if worker.returncode), None)
    if failed is None:
        return 0
    status = workers[failed].returncode
    _signal(workers, signal.SIGTERM)
    until = time.monotonic() + GRACE
    while any(worker.poll() is None for worker in workers) and time.monotonic() < until:
        time.sleep(0.05)
    _signal(workers, signal.SIGKILL)
    chief = workers[0].wait()
    if chief > 0 and (received or failed == 0):  # it has reported why
        return chief
    if status < 0:
        click.echo(f"worker {failed} was ended by signal {-status}; the same command resumes", err=True)
        return TRY_AGAIN
    logs[failed - 1].seek(0)
    lines = logs[failed - 1].read().decode(errors="replace").strip().splitlines()
    click.echo(f"worker {failed}: {lines[-1] if lines else f'exit status {status}'}", err=True)
    return status


def _signal(workers: list[subprocess.Popen], number: int) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)


def _free_ports(count: int) -> list[int]:
    """Free ports of loopback."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]
