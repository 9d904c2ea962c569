"""What `--deterministic` costs: the same short training with it and without, in turn, and whether the bits agree.

    python -m benchmarks.determinism --json results/robustness/determinism.json

Adversarial training of Cusin's CNN on 1,000 CIFAR-10 images (give --data-dir, or TFDS_DATA_DIR), each time in a process
of its own: seconds of training as the record has them, and the hash of the weights that came out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.command import command_line

FIT = ("fit", "--config", "configs/cifar10_cpu.yaml", "--variant", "at", "--no-compare", "--json", "--limit", "1000")
SHORT = ("--set", "method.epochs=3", "--set", "evaluation.limit=10")


def fit(folder: str, number: int, *more: str) -> dict:
    """The record of one training."""
    folders = ("--runs", f"{folder}/runs", "--saved-models", f"{folder}/saved", "--name", f"run{number}")
    command = [sys.executable, "cli.py", *FIT, *SHORT, *folders, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)[0]["model"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = ["--data-dir", options.data_dir] if options.data_dir else []
    found = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.repeats):
            found["without"].append(fit(folder, 2 * number, *data))
            found["with"].append(fit(folder, 2 * number + 1, *data, "--deterministic"))
            print({name: models[-1]["training_seconds"] for name, models in found.items()}, file=sys.stderr, flush=True)
    seconds = {name: [model["training_seconds"] for model in models] for name, models in found.items()}
    ratios = [a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    result = {
        "command": command_line(),
        "threads": os.cpu_count(),
        "seconds": seconds,
        "ratio": {"median": round(statistics.median(ratios), 3), "least": min(ratios), "most": max(ratios)},
        "different_weights": {name: len({model["hash"] for model in models}) for name, models in found.items()},
    }
    text = json.dumps(result, indent=1)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
