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
    tf.get_logger().setLevel("ERROR")
    logging.getLogger("absl").setLevel(logging.ERROR)


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
