"""Shared by all tests: quiet, oneDNN on, a small memory footprint."""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# The same examples in every run, however slow the machine.
settings.register_profile("suite", derandomize=True, database=None, deadline=None)
settings.load_profile("suite")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the cases of a test after the first n as slow, if the test is marked `slow_after(n)`."""
    seen = {}
    for item in items:
        if (marker := item.get_closest_marker("slow_after")) is not None:
            test = item.nodeid.partition("[")[0]
            seen[test] = seen.get(test, 0) + 1
            if seen[test] > marker.args[0]:
                item.add_marker(pytest.mark.slow)
