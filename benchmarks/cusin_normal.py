"""Why Cusin and Serafini's normal network keeps more under a small attack than the one of scale cpu.

    python -m benchmarks.cusin_normal --json results/benchmarks/cusin_normal.json

Scale `cusin-code` trains the normal network as the authors' code does. Each other row changes one of its settings to
that of scale `cpu`, the last row all of them. What is measured, on all test images of CIFAR-10: the accuracy, and the
accuracy under PGD-10 at 1/255 of `cusin-repo`. Rows that the file has are not trained again.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

from keras_rcl import config  # noqa: E402
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.papers.cusin import published_attack  # noqa: E402
from keras_rcl.report.tables import markdown_table, percent  # noqa: E402
from keras_rcl.storage.atomic import read_json, write_json  # noqa: E402
from keras_rcl.workflows.fit import fit  # noqa: E402

CHANGES = {
    "normalized by mean and standard deviation": ["network.normalization=mean_std"],
    "He initialization": ["network.initialization=he_normal"],
    "cosine schedule": ["method.optimizer.schedule=cosine"],
    "50,000 training images": ["dataset.limit=null"],
}
ROWS = {"authors' code": [], **CHANGES, "all of these": [setting for change in CHANGES.values() for setting in change]}
ATTACK = published_attack(1)


def measured(settings: list[str], epochs: int | None) -> dict[str, float]:
    """The accuracies of one training."""
    shorter = [] if epochs is None else [f"method.epochs={epochs}"]
    path = Path("configs/papers/cusin/normal.yaml")
    experiment = config.load(path, scale="cusin-code", settings=["compare=[]", *settings, *shorter])
    evaluation = dataclasses.replace(experiment.evaluation, attacks=(ATTACK,))
    with tempfile.TemporaryDirectory(prefix="cusin_normal") as folder:
        experiment = dataclasses.replace(experiment, evaluation=evaluation)
        record = fit(experiment, runs=f"{folder}/runs", saved_models=f"{folder}/saved_models").record
    (row,) = record["rows"]
    return {"clean_accuracy": record["clean_accuracy"], "robust_accuracy": row["robust_accuracy"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, help="of each training; the authors' 30 by default")
    parser.add_argument("--json", type=Path, help="the file to write")
    arguments = parser.parse_args()
    file = arguments.json
    found = read_json(file)["rows"] if file and file.is_file() else {}
    for name, settings in ROWS.items():
        if name in found:
            continue
        found[name] = measured(settings, arguments.epochs)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
        if file:
            command = command_line()
            facts = {"command": command, "protocol": ATTACK.protocol, "versions": versions()}
            write_json(file, {**facts, "rows": found})
    rows = [[name, *(percent(value) for value in values.values())] for name, values in found.items()]
    print(markdown_table(["normal network", "clean", "PGD-10 at 1/255 of cusin-repo"], rows))


if __name__ == "__main__":
    main()
