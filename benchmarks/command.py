"""The command of a benchmark, for its record."""

import shlex
import sys
from pathlib import Path


def command_line() -> str:
    """The benchmark that is running, as it would be typed."""
    return shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
