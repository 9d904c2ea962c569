"""Starts TensorFlow as this package wants it: quiet, with oneDNN, before anything else imports it; and ends a run."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


class Terminated(KeyboardInterrupt):
    """SIGTERM: to a run as an interrupt, but for the exit status."""


class WorkerLost(KeyboardInterrupt):
    """Another process of the run is gone: an interrupt to those that are left, but for the exit status."""


_RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@contextlib.contextmanager
def raised_sigterm() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` where it strikes the body, as SIGINT raises KeyboardInterrupt."""

    def terminate(number, frame):
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def held_signals(*, forget: bool = False) -> Iterator[Callable[[], type[KeyboardInterrupt] | None]]:
    """Let the body finish what it is at when SIGINT or SIGTERM comes; a second one strikes at once.

    Only in the main thread, where Python handles signals; a signal that is ignored stays so.

    Args:
        forget: raise nothing at the body's end: it was the last that there was to do.

    Yields:
        Tells which exception the body is to raise, if one came; at the body's end it is raised in any case.
    """
    came: list[type[KeyboardInterrupt]] = []

    def hold(number, frame):
        came.append(_RAISED[number])
        if len(came) > 1:
            raise came[-1]

    before = {}
    if threading.current_thread() is threading.main_thread():
        held = [number for number in _RAISED if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, hold) for number in held}
    try:
        yield lambda: came[0] if came else None
        if came and not forget:
            raise came[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_tensorflow(*, deterministic: bool = False) -> None:
    """Import TensorFlow and Keras with the settings that pay, and keep their start-up chatter off the terminal.

    oneDNN doubles the speed of input gradients on CPUs where it is off by default, and has to be chosen before the
    first import. What the libraries print while they start is shown only if they fail to.

    Args:
        deterministic: let every operation give the same bits each time, for the rest of the process.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if "tensorflow" not in sys.modules:
        with _quiet_stderr():
            import keras  # noqa: F401
            import tensorflow as tf

            tf.config.list_physical_devices()
        # float32 is to mean float32 on GPUs too, in losses and in evaluation; who wants speed chooses a mixed policy.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        tf.get_logger().setLevel("ERROR")
        logging.getLogger("absl").setLevel(logging.ERROR)
    if deterministic:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def advice(precision: str = "float32", jit: bool = False, craft_dtype: str = "float32") -> list[str]:
    """What is known to be slow on this machine, one line each; TensorFlow must have been started."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return []
    lines = []
    if precision == "mixed_bfloat16":
        lines.append(
            "bfloat16 convolutions can be tens of times slower on a CPU; --precision float32 is the fast one here"
        )
    if craft_dtype == "bfloat16" and not _multiplies_bfloat16():
        lines.append(
            "this processor has no matrix units for bfloat16 (AMX); --craft-dtype float32 is the fast one here"
        )
    if jit:
        lines.append("XLA is several times slower than TensorFlow's own kernels on most CPUs; leave out --jit here")
    return lines


def _multiplies_bfloat16() -> bool:
    """Whether the processor has matrix units for it, as far as Linux tells; elsewhere none has."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@contextlib.contextmanager
def _quiet_stderr():
    """Send what C++ and Python write to file descriptor 2 to a file; replay it if the body raises."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
