"""Processes that are forked from a server, where a new process would spend ten seconds on importing TensorFlow.

The server is started once per test process. It has imported the libraries and nothing of this package, has one thread,
and has called nothing of TensorFlow, so that a process that is forked from it does what a new one does.
"""

import atexit
import functools
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_NAMES = ("keras", "keras_cv", "tensorflow", "tensorboard.backend.event_processing.event_accumulator")
_NAMES += ("h5py", "matplotlib.pyplot", "sklearn.datasets", "tensorflow_datasets", "click", "pydantic", "yaml")


class Forked:
    """A process of the server. Signals are sent to its `pid` as to any other.

    Attributes:
        pid: The process.
        returncode: Its exit status, negative if a signal ended it; None until `poll` or `wait` has seen its end.
    """

    def __init__(self, pid: int):
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        """The exit status; None if the process runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        """Wait for the end of the process; returns its exit status."""
        return self._wait(0)

    def _wait(self, flags: int) -> int | None:
        if self.returncode is None:
            self.returncode = _ask({"wait": self.pid, "flags": flags})
        return self.returncode


def start(
    *arguments: object,
    stdin: IO | int = subprocess.DEVNULL,
    stdout: IO | int = 1,
    stderr: IO | int = 2,
    cwd: Path | None = None,
    env: Mapping[str, object] = os.environ,
) -> Forked:
    """Start a process.

    Args:
        arguments: Those of `python`: `-m` and a module, or a file, and what the program is given.
        stdin: The file that it reads; by default nothing.
        stdout: The file that it writes to, by default that of this process.
        stderr: As above.
        cwd: Its folder, by default that of this process.
        env: Its environment, by default that of this process.
    """
    command, environment = [str(argument) for argument in arguments], {name: str(env[name]) for name in env}
    request = {"arguments": command, "cwd": str(cwd or Path.cwd()), "env": environment}
    with open(os.devnull) as nothing:
        files = (nothing if stdin == subprocess.DEVNULL else stdin, stdout, stderr)
        return Forked(_ask(request, [file if isinstance(file, int) else file.fileno() for file in files]))


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run a process to its end; returns its exit status and what it wrote, as text. For arguments see `start`."""
    descriptors = [os.memfd_create(name) for name in ("stdout", "stderr")]
    with open(descriptors[0], "r+") as stdout, open(descriptors[1], "r+") as stderr:
        status = start(*arguments, stdout=stdout, stderr=stderr, **options).wait()
        stdout.seek(0), stderr.seek(0)
        return subprocess.CompletedProcess(arguments, status, stdout.read(), stderr.read())


@functools.cache
def _server() -> socket.socket:
    """Start the server; it ends with this process."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, __file__, str(there.fileno())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    server = subprocess.Popen(command, env=environment, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL)
    there.close()

    @atexit.register
    def end() -> None:
        here.close()
        server.wait()

    return here


def _ask(request: dict, files: Sequence[int] = ()) -> int | None:
    connection = _server()
    socket.send_fds(connection, [json.dumps(request).encode()], files)
    return json.loads(connection.recv(100))


def _serve(connection: socket.socket) -> tuple[dict, list[int]] | None:
    """Fork processes; in each of them returns the request and its files."""
    while True:
        message, files, _, _ = socket.recv_fds(connection, 2**20, 3)
        if not message:
            return None
        request = json.loads(message)
        if "wait" in request:
            child, status = os.waitpid(request["wait"], request["flags"])
            connection.send(json.dumps(os.waitstatus_to_exitcode(status) if child else None).encode())
            continue
        if not (child := os.fork()):
            connection.close()
            return request, files
        for file in files:
            os.close(file)
        connection.send(json.dumps(child).encode())


def _become(request: dict, files: list[int]) -> None:
    """Run the program as `python` runs it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server of a background job ignores it
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.dont_write_bytecode, tempfile.tempdir = "PYTHONDONTWRITEBYTECODE" in os.environ, None
    first, *others = request["arguments"]
    paths = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    if first == "-m":
        sys.argv, sys.path[:1] = others, [request["cwd"], *paths]
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:1] = [first, *others], [str(Path(first).parent), *paths]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for name in _NAMES:
        __import__(name)
    gc.collect()
    gc.freeze()
    if asked := _serve(socket.socket(fileno=int(sys.argv[1]))):
        _become(*asked)
