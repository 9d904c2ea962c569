"""mypy is clean on the typed packages and on a user's file; the user's mistakes are errors."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_mypy_is_clean():
    """The file of a user holds mistakes with `type: ignore`; one that mypy does not find is an unused comment."""
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental"], cwd=ROOT, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
