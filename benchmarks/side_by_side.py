"""Contenders timed in turn, and reported as a table: what the benchmarks share.

A machine's speed drifts by tens of percent from minute to minute, so nothing is compared across runs: in each round
every contender runs once, NumPy's float32 matrix product among them, and medians are reported with their spread.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks.command import command_line
from keras_rcl.data.sources import ImageData, Split
from keras_rcl.evaluation.record import versions
from keras_rcl.folding import fold
from keras_rcl.folding.fold import Conv, Dense
from keras_rcl.networks import build_network
from keras_rcl.report.tables import markdown_table
from keras_rcl.vocabulary.network import Network

PEERS = {
    "art": "adversarial-robustness-toolbox",
    "foolbox": "foolbox",
    "cleverhans": "cleverhans",
    "torch": "torch",
    "torchattacks": "torchattacks",
    "pyautoattack": "pyautoattack",
    "adv_lib": "adv-lib",
}
"""Module -> package, of the extra `peers`."""

MATRIX = "NumPy matrix product"
MATRIX_SIZE = 4096
CLASSES = 10


def options(description: str, *, images: int, repeats: int = 5, network: bool = True) -> argparse.ArgumentParser:
    """The options that all benchmarks have; `--network` where they make one."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    if network:
        parser.add_argument("--network", choices=["resnet18", "strided_cnn"], default="resnet18")
    parser.add_argument("--images", type=int, default=images, help=f"of a run; {images} by default")
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"rounds; {repeats} by default; 0 counts first runs, compiling too"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="the contenders to run; all by default")
    parser.add_argument("--json", type=Path, help="the file to write")
    return parser


def random_network(encoder: str) -> keras.Model:
    """A network of random weights for 32x32 images of ten classes."""
    return build_network(Network(encoder=encoder), (32, 32, 3), CLASSES, mean=[0.5] * 3, std=[0.25] * 3)


def random_data(count: int) -> ImageData:
    """As many random training images, and none to test on."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    train = Split(images, rng.integers(0, CLASSES, count), np.arange(count))
    none = Split(images[:0], train.labels[:0], train.indices[:0])
    return ImageData("random", tuple(map(str, range(CLASSES))), train, none, none)


def installed(*modules: str) -> set[str]:
    """Those of the peers that are there; the others are named."""
    found = {module for module in modules if util.find_spec(module)}
    for module in sorted(set(modules) - found):
        package = PEERS.get(module, module)
        print(f"left out: {module}, which is not installed (pip install {package})", file=sys.stderr)
    return found


def operations_per_image(network: keras.Model) -> int:
    """Multiplications and additions of a forward pass to the logits, those of convolutions and dense layers alone.

    A gradient with respect to the image costs as many again, and so does one with respect to the weights.
    """
    total = 0
    for step in fold(network):
        if isinstance(step.operation, Conv):
            total += 2 * int(np.prod(step.operation.kernel.shape)) * int(np.prod(step.shape[:2]))
        elif isinstance(step.operation, Dense):
            total += 2 * int(np.prod(step.operation.kernel.shape))
    return total


def alternate(
    contenders: Mapping[str, Callable[[], Any]],
    repeats: int,
    only: Sequence[str] | None = None,
    after_round: Callable[[], Any] = lambda: None,
) -> tuple[dict[str, list[float]], dict]:
    """Seconds of every run by contender, `MATRIX` included, and what each gave when it first ran.

    Each gives something only when it is done: NumPy arrays, not promises. First runs, which compile, are not counted
    unless they are all that there is.

    Args:
        contenders: by name.
        repeats: rounds after the first.
        only: names of those to run; all where not given.
        after_round: called after each round, for what else is measured in turn.
    """
    unknown = sorted(set(only or ()) - set(contenders))
    assert not unknown, f"no contender {', '.join(unknown)}; choose from {', '.join(contenders)}"
    contenders = {name: run for name, run in contenders.items() if not only or name in only}
    matrix = np.random.default_rng(0).random((MATRIX_SIZE, MATRIX_SIZE), np.float32)
    contenders = {**contenders, MATRIX: lambda: matrix @ matrix}
    given, seconds = {}, {name: [] for name in contenders}
    for name, run in contenders.items():
        started = time.perf_counter()
        given[name] = run()
        taken = time.perf_counter() - started
        print(f"first run: {name} {taken:.1f} s", file=sys.stderr, flush=True)
        if not repeats:
            seconds[name].append(taken)
    del given[MATRIX]
    for number in range(repeats):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
        after_round()
        print(f"round {number + 1}/{repeats}", file=sys.stderr, flush=True)
    return seconds, given


def rows_of(
    seconds: Mapping[str, Sequence[float]], images: Mapping[str, float], operations: Mapping[str, float]
) -> dict[str, dict]:
    """By contender: its median and spread, images a second, operations, their rate, and its share of the matrix rate.

    Args:
        seconds: By contender, `MATRIX` included.
        images: Images per run, by contender.
        operations: Operations per run, by contender, where they are known.
    """
    operations = {**dict.fromkeys(seconds, 0), **operations, MATRIX: 2 * MATRIX_SIZE**3}
    matrix_rate = operations[MATRIX] / statistics.median(seconds[MATRIX])
    rows = {}
    for name, runs in seconds.items():
        median = statistics.median(runs)
        rows[name] = {
            "seconds": median,
            "fastest": min(runs),
            "slowest": max(runs),
            "images_per_second": images.get(name, 0) / median,
            "operations": operations[name],
            "operations_per_second": operations[name] / median,
            "share_of_matrix_rate": operations[name] / median / matrix_rate,
            "runs": list(runs),
        }
    return rows


def tell(arguments: argparse.Namespace, rows: dict[str, dict], more: Sequence[str] = (), **facts) -> None:
    """Print the rows as Markdown, and write them as JSON where asked for.

    Args:
        arguments: of `options`.
        rows: of `rows_of`; the first is the one that the others are compared with.
        more: keys of further columns.
        facts: what else the JSON says.
    """
    first = next(iter(rows.values()))["seconds"]
    header = [
        "contender",
        "seconds",
        "fastest - slowest",
        "times the first",
        "images/s",
        "GFLOP",
        "GFLOP/s",
        "of matrix",
    ]
    table = []
    for name, row in rows.items():
        cells = [
            f"{row['seconds']:.3f}",
            f"{row['fastest']:.3f} - {row['slowest']:.3f}",
            f"{row['seconds'] / first:.2f}" if name != MATRIX else "",
            f"{row['images_per_second']:.1f}" if row["images_per_second"] else "",
            *(f"{row[key] / 1e9:.1f}" if row[key] else "" for key in ("operations", "operations_per_second")),
            f"{row['share_of_matrix_rate']:.0%}" if row["operations"] else "",
        ]
        table.append([name, *cells, *(_cell(row.get(key)) for key in more)])
    print(markdown_table([*header, *(key.replace("_", " ") for key in more)], table))
    if arguments.json:
        record = {
            "command": command_line(),
            "cores": len(os.sched_getaffinity(0)),
            "versions": {**versions(), **_peer_versions()},
            **facts,
            "rows": rows,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def _cell(value) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value:.4g}"


def _peer_versions() -> dict[str, str]:
    return {package: metadata.version(package) for module, package in PEERS.items() if util.find_spec(module)}
