"""The name that this program was started by."""

import sys
from pathlib import Path


def program_name() -> str:
    """The command that starts this program as it was started now, for hints: `keras-rcl`, `python cli.py`, or
    `python -m keras_rcl`, which is also the answer in a program that imports the package.
    """
    started = Path(sys.argv[0]).name
    if started == "cli.py":
        return "python cli.py"
    return "keras-rcl" if started.startswith("keras-rcl") else "python -m keras_rcl"
