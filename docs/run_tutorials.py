"""Runs the Python blocks of the tutorials and writes what each prints below it.

`python docs/run_tutorials.py`, or the names of pages behind it. The blocks of a page share one namespace and run in a
new folder. What a block prints stands in a `text` block below it.
"""

import contextlib
import io
import itertools
import math
import os
import re
import sys
import tempfile
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parent / "tutorials"
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```\n)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
TOLERANCE = 0.1
"""A printed number may differ from the page by this share of it, or by half of this: processors round differently."""


def run(text: str, name: str) -> list[str]:
    """Run the Python blocks of a page in the current folder. Returns what each prints."""
    namespace, printed = {}, []
    for block in BLOCK.finditer(text):
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile(block["code"], name, "exec"), namespace)
        printed.append(re.sub(r"[ \t]+$", "", stream.getvalue(), flags=re.MULTILINE))
    return printed


def filled(text: str, printed: list[str]) -> str:
    """The text of a page with the output of each block below it."""
    outputs = iter(printed)

    def fill(block: re.Match) -> str:
        output = next(outputs)
        return f"```python\n{block['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return BLOCK.sub(fill, text)


def differences(text: str, printed: list[str]) -> list[str]:
    """The lines that a page shows otherwise than they were printed: other words, or numbers beyond `TOLERANCE`."""
    found = []
    for block, output in zip(BLOCK.finditer(text), printed, strict=True):
        for shown, line in itertools.zip_longest((block["shown"] or "").splitlines(), output.splitlines()):
            if shown is None or line is None or not _alike(shown, line):
                found.append(f"the page shows {shown!r}, and {line!r} was printed")
    return found


def _alike(shown: str, printed: str) -> bool:
    if " ".join(NUMBER.sub("#", shown).split()) != " ".join(NUMBER.sub("#", printed).split()):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=TOLERANCE, abs_tol=TOLERANCE / 2) for a, b in pairs)


def main(names: list[str]) -> None:
    for page in [TUTORIALS / name for name in names] or sorted(TUTORIALS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            page.write_text(filled(text, run(text, page.name)), encoding="utf-8")
        print(page.name)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    main(sys.argv[1:])
