"""Imported by the server that `benchmarks.crash` forks its runs off: all that a run imports, and nothing called."""

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import sklearn.datasets  # noqa: E402, F401

import keras_rcl.workflows.fit  # noqa: E402, F401
