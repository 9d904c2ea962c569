"""Watch what happens while models from elsewhere are loaded and used.

An attempt is a file or a folder that somebody could hand over as a model. `run` gives attempts to a child process,
which loads and calls each one as a user would. Three things are watched:

- Python's audit events: files that are opened for writing, or outside the model and the installed libraries; sockets,
  processes, and changes of the file system.
- A `Canary`: a folder of files that no model may open, watched by the kernel (inotify), because TensorFlow opens files
  without Python; and a socket on the loopback interface that no model may connect to.
- The files of the model, the working folder, the home folder and the folder for temporary files: all are the same
  afterwards.

An attempt got through if any of them saw something. It did not if it was refused, or loaded and only computed.
"""

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from tests import forked

_REPOSITORY = Path(__file__).parents[2]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = (
    *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.putenv", "os.remove", "os.rename", "os.rmdir", "os.setxattr"),
    *("os.symlink", "os.truncate", "os.utime", "shutil.", "tempfile."),
)
_NEVER = (
    *("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "pty."),
    *("urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "pickle.find_class", "ctypes.dlopen"),
)
_READABLE = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/etc/localtime", "/usr/share/zoneinfo")

_IN_ACCESS, _IN_MODIFY, _IN_OPEN, _IN_MOVED, _IN_CREATE, _IN_DELETE = 0x1, 0x2, 0x20, 0xC0, 0x100, 0x200
_SEEN = {_IN_ACCESS: "read", _IN_MODIFY: "written", _IN_OPEN: "opened", _IN_CREATE: "created", _IN_DELETE: "deleted"}


class Outcome(NamedTuple):
    """What one attempt did.

    Attributes:
        name: of the attempt.
        result: `refused` (InvalidInputError), `loaded`, `failed` (any other exception), `died` (the process) or `hung`.
        message: of the refusal or the exception.
        events: what was seen of it that no model may do.
    """

    name: str
    result: str
    message: str
    events: list[str]


class Canary:
    """Files that no model may open, a path where no file may appear, and a socket that no model may connect to.

    Attributes:
        folder: of the files.
        secret: a text file.
        planted: a path in the folder where there is no file.
        address: host and port of the socket.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.secret, self.planted = folder, folder / "secret.txt", folder / "planted"
        self.secret.write_text("secret 1\n")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> "Canary":
        return self

    def __exit__(self, *_) -> None:
        self._socket.close()

    def connected(self) -> list[str]:
        """Who connected to the socket since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()
                found.append("canary socket connected to")
        return found


class _Watch:
    """What the kernel says of the files in some folders."""

    def __init__(self, *folders: Path):
        c = ctypes.CDLL(None, use_errno=True)
        self._stream = c.inotify_init1(os.O_NONBLOCK)
        self._names = {}
        for folder in folders:
            number = c.inotify_add_watch(self._stream, os.fsencode(folder), _IN_MOVED | sum(_SEEN))
            if number < 0:
                raise OSError(ctypes.get_errno(), f"{folder} cannot be watched")
            self._names[number] = folder.name

    def events(self) -> list[str]:
        """What was seen since the last call."""
        found = []
        while select.select([self._stream], [], [], 0)[0]:
            content = os.read(self._stream, 2**16)
            while content:
                number, mask, _, length = struct.unpack_from("iIII", content)
                name = os.fsdecode(content[16 : 16 + length].rstrip(b"\0"))
                content = content[16 + length :]
                words = [word for bit, word in _SEEN.items() if mask & bit] or ["moved"]
                found += [f"{word} {self._names.get(number)}/{name}" for word in words]
        return list(dict.fromkeys(found))


class _Hook:
    """The audit hook of the child. There is one, as a hook cannot be removed."""

    def __init__(self):
        self.readable: tuple[str, ...] | None = None
        self.writable: tuple[str, ...] = ()
        self.found: list[str] = []
        sys.addaudithook(self)

    def start(self, readable: tuple[str, ...], writable: tuple[str, ...]) -> None:
        """Collect events from now on, except of these paths and what is below them."""
        self.found, self.writable, self.readable = [], writable, readable

    def stop(self) -> list[str]:
        """What was seen."""
        self.readable = None
        return list(dict.fromkeys(self.found))

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.readable is None:
            return
        readable, self.readable = self.readable, None  # what this function itself does is not of interest
        try:
            seen = self._describe(event, arguments, readable)
            if seen:
                self.found.append(seen)
        finally:
            self.readable = readable

    def _describe(self, event: str, arguments: tuple, readable: tuple[str, ...]) -> str | None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int):
                return None
            path = os.path.realpath(os.fsdecode(path))
            if flags & _WRITES:
                return None if path == "/dev/null" or path.startswith(self.writable) else f"open {path} for writing"
            return None if path.startswith(readable) or path.startswith(self.writable) else f"open {path}"
        if event == "ctypes.dlopen" and (arguments[0] is None or str(arguments[0]).startswith(readable)):
            return None
        if event.startswith(_CHANGES):
            paths = [os.path.realpath(os.fsdecode(a)) for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
            inside = self.writable and paths and all(path.startswith(self.writable) for path in paths)
            return None if inside else f"{event} {' '.join(paths)}"
        return f"{event} {arguments}"[:200] if event.startswith(_NEVER) else None


def use(path: Path, trust: bool) -> None:
    """Load a model, and call what it has, as `attack` does: logits, gradients, inner outputs, and as an encoder."""
    import numpy as np
    import tensorflow as tf

    from keras_rcl.model_io.classifier import load_classifier
    from keras_rcl.model_io.encoder import load_encoder

    classifier = load_classifier(path, trust=trust)
    shape = [size or 8 for size in classifier.image_shape]
    images = tf.constant(np.random.default_rng(0).random((2, *shape)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = classifier.logits(images)
    tape.gradient(logits, images)
    classifier.gradient_fn(images.numpy())
    for output in ("embedding", "projection"):
        if (call := classifier.outputs(output)) is not None:
            call(images)
    load_encoder(path, shape, trust=trust).embedding(images)


def run(
    attempts: Iterable[tuple[str, Path]], canary: Canary, *, trust: bool = False, seconds: float = 120
) -> list[Outcome]:
    """Try models in a child process, and in a new one if it dies or hangs.

    Args:
        attempts: the name of each attempt, and the path of its model.
        canary: what the models must not touch.
        trust: load the models without a check, to see which attempts would do harm.
        seconds: how long one attempt may take.

    Returns:
        An outcome per attempt, in order.
    """
    waiting, outcomes = list(attempts), []
    while waiting:
        with _child(canary, trust) as child:
            while waiting:
                name, path = waiting.pop(0)
                outcome = _ask(child, name, path, seconds)
                outcomes.append(outcome._replace(events=outcome.events + canary.connected()))
                if outcome.result in ("died", "hung"):
                    break
        outcomes[-1].events.extend(canary.connected())  # until the child had ended
    return outcomes


class _Child(NamedTuple):
    process: forked.Forked
    stdin: TextIO
    stdout: TextIO


@contextlib.contextmanager
def _child(canary: Canary, trust: bool) -> Iterator[_Child]:
    with tempfile.TemporaryDirectory(prefix="red_team_") as root:
        places = {"HOME": Path(root, "home"), "TMPDIR": Path(root, "temporary")}
        for folder in (*places.values(), work := Path(root, "work")):
            folder.mkdir()
        environment = dict(os.environ, PYTHONPATH=str(_REPOSITORY), PYTHONDONTWRITEBYTECODE="1", **places)
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        command = ["-m", "tests.security.harness", str(canary.folder), *["--trust"] * trust]
        (its_stdin, stdin), (stdout, its_stdout) = os.pipe(), os.pipe()
        process = forked.start(*command, env=environment, cwd=work, stdin=its_stdin, stdout=its_stdout)
        os.close(its_stdin), os.close(its_stdout)
        with open(stdin, "w") as stdin, open(stdout) as stdout:
            try:
                stdout.readline()  # it is ready
                yield _Child(process, stdin, stdout)
            finally:
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGKILL)
                process.wait()


def _ask(child: _Child, name: str, path: Path, seconds: float) -> Outcome:
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps([name, str(path)]) + "\n")
        child.stdin.flush()
    if not select.select([child.stdout], [], [], seconds)[0]:
        return Outcome(name, "hung", f"{seconds} seconds", [])
    line = child.stdout.readline()
    return Outcome(**json.loads(line)) if line else Outcome(name, "died", f"status {child.process.wait()}", [])


def _listing(path: Path) -> dict[str, tuple]:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return {str(file): (s.st_size, s.st_mtime_ns, s.st_mode) for file in files for s in [file.lstat()]}


def _warm_up() -> None:
    """Use models of our own, so that everything is imported and every cache is written before anything is watched."""
    from keras_rcl.runtime.tensorflow import start_tensorflow

    start_tensorflow()
    import keras

    layers = [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    with tempfile.TemporaryDirectory() as folder:
        model = keras.Sequential(layers)
        model.save(file := Path(folder, "model.keras"))
        model.export(exported := Path(folder, "exported"), verbose=False)
        use(file, trust=False)
        use(exported, trust=False)


def _serve(answers: TextIO, canary: Path, trust: bool) -> None:
    """Try each model that a line of stdin names."""
    from keras_rcl.errors import InvalidInputError

    hook = _Hook()
    _warm_up()
    folders = [Path(os.environ["HOME"]), Path(os.environ["TMPDIR"]), Path.cwd()]
    watch = _Watch(canary, folders[0], folders[2])
    libraries = {sys.prefix, sys.base_prefix, str(_REPOSITORY / "keras_rcl"), *(p for p in sys.path if "packages" in p)}
    readable = (*_READABLE, *(os.path.realpath(folder) + "/" for folder in libraries))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        name, path = json.loads(line)
        watched = [Path(path), *folders]
        before = [_listing(place) for place in watched]
        watch.events()
        result, message = "loaded", ""
        hook.start((*readable, os.path.realpath(path)), (str(folders[1]) + "/",))
        try:
            use(Path(path), trust)
        except InvalidInputError as error:
            result, message = "refused", str(error)
        except Exception as error:
            result, message = "failed", f"{type(error).__name__}: {error}"
        events = hook.stop() + watch.events()
        events += [f"changed {place}" for place, old in zip(watched, before, strict=True) if _listing(place) != old]
        print(json.dumps(Outcome(name, result, message, events)._asdict()), file=answers, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("canary", type=Path)
    parser.add_argument("--trust", action="store_true")
    options = parser.parse_args()
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a model prints is not an answer
    _serve(stdout, options.canary, options.trust)
