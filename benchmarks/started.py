"""Imported by `benchmarks.crash`, which forks its runs: all that a run imports, and nothing called."""

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import sklearn.datasets  # noqa: E402, F401

import keras_rcl.workflows.attack  # noqa: E402, F401
import keras_rcl.workflows.audit  # noqa: E402, F401
import keras_rcl.workflows.craft_dataset  # noqa: E402, F401
import keras_rcl.workflows.fit  # noqa: E402, F401
import keras_rcl.workflows.report  # noqa: E402, F401
import keras_rcl.workflows.tune  # noqa: E402, F401
import keras_rcl.workflows.verify  # noqa: E402, F401
