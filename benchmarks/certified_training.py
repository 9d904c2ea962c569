"""Certified training beside CTRAIN: the same network, images, epochs, ramp and verifier, one core each.

    python -m venv ctrain && ctrain/bin/pip install ctrain onnx2pytorch   # and auto_LiRPA 0.7.1 from its repository
    python -m benchmarks.certified_training --ctrain ctrain/bin/python --json results/benchmarks/certified_training.json

MNIST (TFDS, found by TFDS_DATA_DIR), the small network of Wong and Kolter. Each training is a process of its own on one
core. For each seed and method the two libraries train in turn; which one is first alternates. The weights of both
become one Keras network, whose verified accuracy `worst_case_margins` gives. The first epoch, in which graphs are
traced, does not count for the time. Without `--ctrain`, ours are trained alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from keras_rcl.bounds import worst_case_margins  # noqa: E402
from keras_rcl.data.sources import ImageData, Split, load  # noqa: E402
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.methods import MTLIBP, SABR, Certified  # noqa: E402
from keras_rcl.networks import build_network, parts  # noqa: E402
from keras_rcl.report.tables import markdown_table, percent  # noqa: E402
from keras_rcl.runtime.progress import Silent  # noqa: E402
from keras_rcl.training.phase_runner import PhaseRunner  # noqa: E402
from keras_rcl.vocabulary.attacks import PGD  # noqa: E402
from keras_rcl.vocabulary.dataset import Dataset  # noqa: E402
from keras_rcl.vocabulary.network import Network  # noqa: E402
from keras_rcl.vocabulary.phase import Adam  # noqa: E402

OURS, THEIRS = "keras_rcl", "CTRAIN"
METHODS = ("IBP", "CROWN-IBP", "MTL-IBP", "SABR")
MEAN, STD, CLASSES = 0.1307, 0.3081, 10
SHARED = dict(mean=MEAN, std=STD, batch_size=128, learning_rate=1e-3, clip_norm=8.0, alpha=0.25, box_share=0.4)
ATTACKS = {"MTL-IBP": dict(num_steps=2, step_share=0.67), "SABR": dict(num_steps=8, step_share=0.5)}
"""Steps of PGD, and their length as a share of the radius."""


def small_network(seed: int = 0) -> keras.Model:
    """The network that both train, with its normalization."""
    plain = dict(projection_hidden=None, projection_dim=None, initialization="pytorch")
    word = Network(encoder="convex_small", **plain)
    return build_network(word, (28, 28, 1), CLASSES, mean=[MEAN], std=[STD], seed=seed)


def phase_of(task: dict):
    """The phase of a task, by our method."""
    names = ("epsilon", "epochs", "ramp_epochs", "batch_size")
    optimizer = Adam(learning_rate=task["learning_rate"], schedule="steps", clip_norm=task["clip_norm"], epsilon=1e-8)
    shared = {name: task[name] for name in names} | dict(start_epochs=0, optimizer=optimizer, augmentation="none")
    if task["method"] == "MTL-IBP":
        epsilon, steps = task["epsilon"], task["num_steps"]
        attack = PGD(epsilon=epsilon, step_size=task["step_share"] * epsilon, num_steps=steps)
        method = MTLIBP(**shared, alpha=task["alpha"], attack=attack)
    elif task["method"] == "SABR":
        method = SABR(**shared, box_share=task["box_share"], num_steps=task["num_steps"])
    else:
        method = Certified(**shared, bound={"IBP": "ibp", "CROWN-IBP": "crown-ibp-fused"}[task["method"]])
    (phase,) = method.phases()
    return phase


def train(task_file: Path, images_file: Path, result: Path) -> None:
    """Train by keras_rcl what `benchmarks/ctrain_training.py` trains by CTRAIN."""
    task = json.loads(task_file.read_text())
    with np.load(images_file) as data:
        split = Split(data["images"], data["labels"], np.arange(len(data["labels"])))
    none = split.at(np.arange(0))
    data = ImageData("mnist", tuple(map(str, range(CLASSES))), split, none, none)
    network, phase = small_network(task["seed"]), phase_of(task)
    runner = PhaseRunner(network, phase, data, epochs=phase.epochs, seed=(task["seed"],))
    runner.begin()
    times = [(time.perf_counter(), time.process_time())]
    for _ in range(phase.epochs):
        runner.run_epoch(Silent(), "")
        times.append((time.perf_counter(), time.process_time()))
    weights = {f"weight_{number}": value for number, value in enumerate(trained_weights(network))}
    np.savez(result, times=np.diff(times, axis=0), **weights)


def trained_weights(network: keras.Model) -> list[np.ndarray]:
    """Kernels and biases in the order of the layers."""
    return [*parts(network)["encoder"].get_weights(), *parts(network)["classifier"].get_weights()]


def keras_weights(weights: list[np.ndarray]) -> list[np.ndarray]:
    """PyTorch's weights in Keras' layouts; the first dense layer reads its map in another order there."""
    found = [value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T for value in weights]
    filters = weights[2].shape[0]
    side = int((found[4].shape[0] / filters) ** 0.5)
    found[4] = found[4].reshape(filters, side, side, -1).transpose(1, 2, 0, 3).reshape(found[4].shape)
    return found


def judged(weights: list[np.ndarray], images: np.ndarray, labels: np.ndarray, epsilon: float) -> dict[str, float]:
    """Natural accuracy, and the accuracy that intervals and CROWN verify."""
    network = small_network()
    encoder = parts(network)["encoder"]
    encoder.set_weights(weights[: len(encoder.weights)])
    parts(network)["classifier"].set_weights(weights[len(encoder.weights) :])
    own = tf.one_hot(labels, CLASSES, True, False, dtype=tf.bool).numpy()

    def verified(method: str) -> float:
        bound = tf.function(lambda x, y: worst_case_margins(network, x, y, epsilon, method), autograph=False)
        size = 100
        margins = [bound(images[i : i + size], labels[i : i + size]).numpy() for i in range(0, len(labels), size)]
        return float(np.mean(np.all((np.concatenate(margins) > 0) | own, axis=1)))

    predicted = network(images, training=False)["logits"].numpy().argmax(1)
    natural = float(np.mean(predicted == labels))
    return {"natural": natural, "verified_by_ibp": verified("ibp"), "verified_by_crown": verified("crown")}


def run(library: str, task: dict, folder: Path, arguments: argparse.Namespace) -> tuple[np.ndarray, list[np.ndarray]]:
    """Train in a process on one core; returns the seconds of its epochs [E, 2], wall and processor, and the weights."""
    files = [folder / name for name in ("task.json", "images.npz", "result.npz")]
    files[0].write_text(json.dumps(task))
    ours = [sys.executable, "-m", "benchmarks.certified_training", "--task"]
    command = ours if library == OURS else [arguments.ctrain, "-I", str(Path(__file__).with_name("ctrain_training.py"))]
    said = subprocess.run(
        [*command, *map(str, files)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {arguments.core}),
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr[-2000:]
    with np.load(files[2]) as found:
        weights = [found[f"weight_{number}"] for number in range(len(found.files) - 1)]
        return found["times"], weights if library == OURS else keras_weights(weights)


def peer_versions(python: str | None) -> dict[str, str]:
    """The versions of CTRAIN and of what it computes with."""
    if not python:
        return {}
    code = "import json, auto_LiRPA, torch; from importlib.metadata import version; print(json.dumps({'ctrain': "
    code += "version('ctrain'), 'auto_LiRPA': auto_LiRPA.__version__, 'torch': torch.__version__}))"
    said = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(said.stdout.splitlines()[-1])


def compared(arguments: argparse.Namespace, test: tuple, folder: Path) -> list[dict]:
    """One row per training, in the order in which they ran."""
    rows = []
    for seed in range(arguments.seeds):
        for number, method in enumerate(arguments.methods):
            task = dict(SHARED, method=method, seed=seed, **ATTACKS.get(method, dict(num_steps=0, step_share=0)))
            task |= {name: getattr(arguments, name) for name in ("epsilon", "epochs", "ramp_epochs")}
            libraries = (OURS, THEIRS) if arguments.ctrain else (OURS,)
            for library in sorted(libraries, reverse=bool((seed + number) % 2)):
                times, weights = run(library, task, folder, arguments)
                row = {"library": library, "method": method, "seed": seed, **judged(weights, *test, arguments.epsilon)}
                row |= {
                    "seconds": times[:, 0].tolist(),
                    "cpu_seconds": times[:, 1].tolist(),
                    "load": os.getloadavg()[0],
                }
                rows.append(row)
                print(
                    {name: value for name, value in row.items() if name != "cpu_seconds"}, file=sys.stderr, flush=True
                )
    return rows


def table(rows: list[dict]) -> str:
    """One row per method and library, over the seeds."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        for library in (OURS, THEIRS):
            runs = [row for row in rows if (row["method"], row["library"]) == (method, library)]
            if not runs:
                continue
            accuracies = (
                percent(statistics.mean(run[name] for run in runs))
                for name in ("natural", "verified_by_ibp", "verified_by_crown")
            )
            seconds = (
                statistics.median(second for run in runs for second in run[name][1:])
                for name in ("seconds", "cpu_seconds")
            )
            found.append([method, library, *accuracies, *(f"{value:.2f}" for value in seconds)])
    header = ["method", "library", "natural", "verified by IBP", "by CROWN", "s per epoch", "CPU s per epoch"]
    return markdown_table(header, found, right=range(2, 7))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ctrain", help="the python of an environment with CTRAIN")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--images", type=int, default=10_000, help="of the training split, the first ones")
    parser.add_argument("--test", type=int, default=1000, help="of the test split, the first ones")
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--ramp-epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0, help="the core that all run on")
    parser.add_argument("--json", type=Path, help="the file to write")
    parser.add_argument("--task", nargs=3, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        train(*arguments.task)
        return
    data = load(Dataset(name="mnist", validation_fraction=0))
    test = data.test.at(np.arange(arguments.test))
    with tempfile.TemporaryDirectory() as folder:
        shown = data.train.at(np.arange(arguments.images))
        np.savez(Path(folder) / "images.npz", images=shown.images, labels=shown.labels)
        pixels = test.images.astype(np.float32) / 255
        rows = compared(arguments, (pixels, test.labels.astype(np.int32)), Path(folder))
    print(table(rows))
    if arguments.json:
        names = ("images", "test", "epsilon", "epochs", "ramp_epochs")
        record = {
            "command": command_line(),
            "versions": versions() | peer_versions(arguments.ctrain),
            "protocol": "pixel",
            **{name: getattr(arguments, name) for name in names},
            "settings": SHARED | {"attacks": ATTACKS},
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
