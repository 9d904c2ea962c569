"""Starts TensorFlow as this package wants it: quiet, with oneDNN, before anything else imports it."""

import contextlib
import logging
import os
import sys
import tempfile


def start_tensorflow() -> None:
    """Import TensorFlow and Keras with the settings that pay, and keep their start-up chatter off the terminal.

    oneDNN doubles the speed of input gradients on CPUs where it is off by default, and has to be chosen before the
    first import. What the libraries print while they start is shown only if they fail to.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if "tensorflow" in sys.modules:
        return
    with _quiet_stderr():
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()
    # float32 is to mean float32 on GPUs too, in losses and in evaluation; who wants speed chooses a mixed policy.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    tf.get_logger().setLevel("ERROR")
    logging.getLogger("absl").setLevel(logging.ERROR)


def advice(precision: str, jit: bool) -> list[str]:
    """What is known to be slow on this machine, one line each; TensorFlow must have been started."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return []
    lines = []
    if precision == "mixed_bfloat16":
        lines.append(
            "bfloat16 convolutions can be tens of times slower on a CPU; --precision float32 is the fast one here"
        )
    if jit:
        lines.append("XLA is several times slower than TensorFlow's own kernels on most CPUs; leave out --jit here")
    return lines


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
