"""Models that try to run code, to read or write files, or to reach the network when they are loaded and called.

    python -m benchmarks.red_team --json results/robustness/red_team.json

`tests.security.harness` says what is watched. An attempt is through if something was seen of it, or if it ended
otherwise than as a loaded model or as a refusal of one line.
"""

import argparse
import collections
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.command import command_line
from tests.security import harness, keras_files, saved_models

AT_ONCE = 100
"""Attempts whose files are on disk at the same time, and that one child process loads one after another."""


def _keras(folder: Path, canary: harness.Canary) -> dict[str, Callable[[Path], Path]]:
    return keras_files.attempts(keras_files.sound_model(folder / "sound.keras"), canary)


FAMILIES: dict[str, Callable[[Path, harness.Canary], dict[str, Callable[[Path], Path]]]] = {
    "keras": _keras,
    "saved_model": saved_models.attempts,
}
"""Family -> function of an empty folder and the canary, which returns functions by name that write a model."""


def outcomes_of(family: str, only: str = "") -> list[harness.Outcome]:
    """Run the attempts of a family whose names contain a text."""
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        canary = harness.Canary(Path(temporary, "canary"))
        (sound := Path(temporary, "sound")).mkdir()
        waiting = [(name, make) for name, make in FAMILIES[family](sound, canary).items() if only in name]
        while waiting:
            now, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
            with tempfile.TemporaryDirectory() as models:
                written = []
                for number, (name, make) in enumerate(now):
                    (folder := Path(models, str(number))).mkdir()
                    written.append((name, make(folder)))
                outcomes += harness.run(written, canary)
            print(f"{family}: {len(outcomes)} attempts, {len(waiting)} left", file=sys.stderr, flush=True)
    return outcomes


def is_through(outcome: harness.Outcome) -> bool:
    """Whether an attempt did what no model may do, or was answered otherwise than with a model or one line."""
    return bool(outcome.events) or outcome.result not in ("loaded", "refused") or "\n" in outcome.message


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, action="append", help="of attempts; all by default")
    parser.add_argument("--only", default="", help="run the attempts whose names contain this text")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file")
    options = parser.parse_args()
    rows = [(family, row) for family in options.family or FAMILIES for row in outcomes_of(family, options.only)]
    through = [(family, row) for family, row in rows if is_through(row)]
    for family, row in through:
        print(family, row.name, row.result, row.message[:200], *row.events, sep="\n    ")
    counts = collections.Counter((family, row.result) for family, row in rows)
    print(f"{len(rows)} attempts, {len(through)} through;", *(f"{f} {r} {n}" for (f, r), n in counts.items()))
    if options.json:
        found = {"command": command_line(), "attempts": len(rows), "through": len(through)}
        found["counts"] = [{"family": f, "result": r, "attempts": n} for (f, r), n in counts.items()]
        found["seen"] = [{"family": family, **row._asdict()} for family, row in through]
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return bool(through)


if __name__ == "__main__":
    sys.exit(main())
