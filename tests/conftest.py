"""Shared by all tests: quiet, oneDNN on, a small memory footprint."""

import gc
import os
import sys

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# The same examples in every run, however slow the machine.
settings.register_profile("suite", derandomize=True, database=None, deadline=None)
settings.load_profile("suite")

# Tracing makes many objects and little garbage; a tenth of the suite's time is the collector's at Python's thresholds.
gc.set_threshold(100_000, 20, 50)


def pytest_collection_finish():
    """What was imported stays, and is left out of every later collection."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Slow tests run graphs as they were traced: to optimize them takes longer than their few steps.

    The default tests and the processes that tests start run optimized graphs, as users do.
    """
    if (tf := sys.modules.get("tensorflow")) is not None:
        traced = bool(item.get_closest_marker("slow")) and not item.get_closest_marker("optimized")
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": traced})


@pytest.fixture
def unoptimized():
    """The same for a test of the default suite."""
    import tensorflow as tf

    usual = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False, **usual})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the cases of a parametrized test after the first as slow, or those after the first n of `slow_after(n)`."""
    seen = {}
    for item in items:
        if "[" in item.nodeid:
            test, marker = item.nodeid.partition("[")[0], item.get_closest_marker("slow_after")
            seen[test] = seen.get(test, 0) + 1
            if seen[test] > (marker.args[0] if marker else 1):
                item.add_marker(pytest.mark.slow)
