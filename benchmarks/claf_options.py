"""How the options that make CLAF's second stage faster change robustness: on digits, over seeds, beside Algorithm 1.

    python -m benchmarks.claf_options --seeds 2 --json results/benchmarks/claf_options-digits.json

Each is trained as `fit` does it, with `configs/digits.yaml` except for five inner epochs, which are Algorithm 1's.
`benchmarks.train_step --claf` measures the speed of their epochs.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

from keras_rcl import config  # noqa: E402
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.report.tables import markdown_table, percent  # noqa: E402
from keras_rcl.storage.atomic import write_json  # noqa: E402
from keras_rcl.workflows.fit import fit  # noqa: E402

OPTIONS = {
    "Algorithm 1": [],
    "warm start": ["method.warm_steps=1"],
    "online head": ["method.head=online"],
    "online head, warm start": ["method.head=online", "method.warm_steps=1"],
}


def measured(settings: list[str]) -> dict[str, float]:
    """The accuracies of one training, and its seconds."""
    with tempfile.TemporaryDirectory(prefix="claf_options") as folder:
        experiment = config.load(variant="clafs", settings=settings)
        record = fit(experiment, runs=f"{folder}/runs", saved_models=f"{folder}/saved_models").record
    (strongest,) = (row for row in record["rows"] if row["attack"] == "worst case")
    return {
        "clean_accuracy": record["clean_accuracy"],
        "robust_accuracy": strongest["robust_accuracy"],
        "training_seconds": record["model"]["training_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="how many seeds; 2 by default")
    parser.add_argument("--epochs", type=int, help="of the second stage; those of configs/digits.yaml by default")
    parser.add_argument("--json", type=Path, help="the file to write")
    arguments = parser.parse_args()
    common = ["method.inner_epochs=5", *([f"method.adversarial_epochs={arguments.epochs}"] if arguments.epochs else [])]
    found: dict[str, list[dict]] = {name: [] for name in OPTIONS}
    for seed in range(arguments.seeds):
        for name, settings in OPTIONS.items():
            found[name].append(measured([*common, f"seed={seed}", *settings]))
            print(f"seed {seed}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    keys = ("clean_accuracy", "robust_accuracy")
    rows = [
        [name, *(" / ".join(percent(run[key]) for run in runs) for key in keys)]
        + [percent(statistics.mean(run["robust_accuracy"] for run in runs))]
        for name, runs in found.items()
    ]
    print(markdown_table(["second stage", "clean, by seed", "robust, by seed", "robust, mean"], rows))
    if arguments.json:
        command = command_line()
        write_json(arguments.json, {"command": command, "versions": versions(), "runs": found})


if __name__ == "__main__":
    main()
