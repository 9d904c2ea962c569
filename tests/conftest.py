"""Shared by all tests: quiet, oneDNN on, a small memory footprint."""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "agg")

from hypothesis import settings  # noqa: E402

# The same examples in every run, however slow the machine.
settings.register_profile("suite", derandomize=True, database=None, deadline=None)
settings.load_profile("suite")
