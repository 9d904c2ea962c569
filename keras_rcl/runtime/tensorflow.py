"""Start TensorFlow with the settings that this package needs, before anything else imports it."""

import atexit
import contextlib
import gc
import logging
import os
import sys
import tempfile
from pathlib import Path

from keras_rcl.errors import InvalidInputError


def start_tensorflow(*, deterministic: bool = False, program: bool = True) -> None:
    """Import TensorFlow and Keras with fast settings, and keep their start-up messages off the terminal.

    oneDNN doubles the speed of input gradients on CPUs where it is off by default, and must be chosen before the first
    import. The messages of the libraries are shown only if the import fails.

    Args:
        deterministic: Every operation gives the same bits each time, for the rest of the process.
        program: Whether the process is one of this package's programs, which then keeps the objects of the libraries
            from the garbage collector. False leaves the collector of a user's process as it is.

    Raises:
        InvalidInputError: If another backend of Keras runs or was chosen.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _choose_backend()
    if "tensorflow" not in sys.modules:
        with _quiet_stderr(), _no_garbage_collection():
            import keras  # noqa: F401
            import tensorflow as tf

            tf.config.list_physical_devices()
        if program:
            # Half a million objects: each later collection would look at all of them, and those at Python's end at
            # everything.
            gc.freeze()
            atexit.register(gc.freeze)
        # float32 means float32 on GPUs too, in losses and in evaluation; a mixed policy is the way to more speed.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        tf.get_logger().setLevel("ERROR")
        logging.getLogger("absl").setLevel(logging.ERROR)
    if deterministic:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


def _choose_backend() -> None:
    """Let Keras run on TensorFlow; check that no other backend was chosen before."""
    if "keras" in sys.modules:
        import keras

        chosen, hint = keras.config.backend(), "set KERAS_BACKEND=tensorflow before keras is imported"
    else:
        os.environ["KERAS_BACKEND"] = chosen = os.environ.get("KERAS_BACKEND") or "tensorflow"
        hint = "unset KERAS_BACKEND, or set it to tensorflow"
    if chosen != "tensorflow":
        raise InvalidInputError(f"the Keras backend is {chosen}: keras_rcl computes with TensorFlow; hint: {hint}")


def advice(precision: str = "float32", jit: bool = False, attack_dtype: str = "float32") -> list[str]:
    """Return one line per setting that is known to be slow on this machine; TensorFlow must have been started.

    Args:
        precision: The Keras policy of the training.
        jit: Whether functions are compiled with XLA.
        attack_dtype: The dtype that attacks are computed in.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return []
    lines = []
    if precision == "mixed_bfloat16":
        lines.append(
            "bfloat16 convolutions can be tens of times slower on a CPU; --precision float32 is the fast one here"
        )
    if attack_dtype == "bfloat16" and not _multiplies_bfloat16():
        lines.append(
            "this processor has no matrix units for bfloat16 (AMX); --attack-dtype float32 is the fast one here"
        )
    if jit:
        lines.append("XLA is several times slower than TensorFlow's own kernels on most CPUs; leave out --jit here")
    return lines


def _multiplies_bfloat16() -> bool:
    """Whether the processor has matrix units for bfloat16, according to Linux; False on other systems."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@contextlib.contextmanager
def _no_garbage_collection():
    """Pause Python's garbage collector, which takes a sixth of the time of importing TensorFlow."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
