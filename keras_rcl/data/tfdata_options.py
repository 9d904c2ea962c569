"""tf.data without autotuning, and fixed values in its place."""

import os
from collections.abc import Callable

import tensorflow as tf

PARALLEL = min(8, os.cpu_count() or 1)
"""Number of parallel calls of a map: batches of views, or decoded images. Each batch is held in memory."""

PREFETCHED = 2
"""Number of batches that wait for a step."""


def untuned() -> tf.data.Options:
    """Options that turn autotuning off, for every data set that is iterated.

    Its thread looks at a data set after 10 ms, 20 ms, 40 ms and so on up to a minute, and an iterator that ends often
    waits for its next look (TensorFlow 2.21): an epoch of 24 s then takes 41.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def as_written(function: Callable) -> Callable:
    """Return a function that a data set traces as it is: to look for Python's `if` and `for` takes longer than that."""
    return tf.autograph.experimental.do_not_convert(function)
