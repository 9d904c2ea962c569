"""What `RobustModel` costs and gives beside a plain loop, and beside the same written with ART and with foolbox.

    python -m benchmarks.robust_model --json results/benchmarks/robust_model.json
    python -m benchmarks.robust_model --peers --json results/benchmarks/robust_model_peers.json

CIFAR-10 (TFDS, found by TFDS_DATA_DIR), a small CNN of plain Keras layers, PGD-5 at 8/255. Without `--peers`: epochs
of both in turn, over seeds, from the same weights and on the same batches; robust accuracy under PGD-20 after the last.
The first epoch of each, in which graphs are traced, counts for the accuracy and not for the time. With `--peers`: the
programs of `benchmarks.adversarial_training`, one after the other.
"""

import argparse
import inspect
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from benchmarks import adversarial_training, plain_at  # noqa: E402
from keras_rcl.data.sources import load  # noqa: E402
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.evaluation.robustness import Evaluator  # noqa: E402
from keras_rcl.methods import AT  # noqa: E402
from keras_rcl.report.tables import markdown_table, percent  # noqa: E402
from keras_rcl.vocabulary.attacks import PGD  # noqa: E402
from keras_rcl.vocabulary.dataset import Dataset  # noqa: E402
from keras_rcl.workflows.robust_model import RobustModel  # noqa: E402

EPSILON, STEP_SIZE, NUM_STEPS, LEARNING_RATE, BATCH = 8 / 255, 2 / 255, 5, 1e-3, 128
EVALUATION = PGD(epsilon=EPSILON, step_size=STEP_SIZE, num_steps=20)


def images_of_cifar10(train: int, test: int) -> tuple[tuple, tuple]:
    """Images float32 in [0, 1] and labels, of the training and of the test split."""
    data = load(Dataset(name="cifar10", validation_fraction=0))
    splits = data.train.limited(train), data.test.limited(test)
    return tuple((split.images.astype(np.float32) / 255, split.labels.astype(np.int32)) for split in splits)


def robust_accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Under PGD-20, by the same evaluator for all."""
    evaluator = Evaluator(lambda x: model(x, training=False), (EVALUATION,))
    return float(evaluator(images, labels).survived[0].mean())


def compared(train: tuple, test: tuple, seeds: int, epochs: int) -> Iterator[tuple[dict, dict]]:
    """The seconds of each epoch and the robust accuracy of each seed, after each seed."""
    seconds = {"RobustModel": [], "plain loop": []}
    accuracy = {name: [] for name in seconds}
    method = AT(attack=PGD(epsilon=EPSILON, step_size=STEP_SIZE, num_steps=NUM_STEPS), augmentation="none")
    for seed in range(seeds):
        keras.utils.set_random_seed(seed)
        models = {name: adversarial_training.small_cnn() for name in seconds}
        models["plain loop"].set_weights(models["RobustModel"].get_weights())
        robust = RobustModel(models["RobustModel"], method, seed=seed)
        robust.compile(keras.optimizers.Adam(LEARNING_RATE))
        plain = plain_at.PlainAT(models["plain loop"], EPSILON, STEP_SIZE, NUM_STEPS, LEARNING_RATE)
        dataset = tf.data.Dataset.from_tensor_slices(train)
        for epoch in range(epochs):
            batches = dataset.shuffle(len(train[0]), seed=1000 * seed + epoch)
            batches = batches.batch(min(BATCH, len(train[0])), drop_remainder=True).prefetch(2)
            runs = {
                "RobustModel": lambda: robust.fit(batches, verbose=0),  # noqa: B023
                "plain loop": lambda: plain.epoch(batches),  # noqa: B023
            }
            for name in sorted(runs, reverse=bool(epoch % 2)):
                started = time.perf_counter()
                runs[name]()
                taken = time.perf_counter() - started
                if epoch:
                    seconds[name].append(taken)
                print(f"seed {seed}, epoch {epoch + 1}, {name}: {taken:.1f} s", file=sys.stderr, flush=True)
        for name, model in models.items():
            accuracy[name].append(robust_accuracy(model, *test))
            print(f"seed {seed}, {name}: {accuracy[name][-1]:.3f}", file=sys.stderr, flush=True)
        yield seconds, accuracy


def peers(train: tuple, test: tuple, epochs: int) -> dict[str, dict]:
    """Lines, seconds and robust accuracy of each program."""
    found = {}
    for name, (prepare, program) in adversarial_training.PROGRAMS.items():
        keras.utils.set_random_seed(0)
        model = adversarial_training.small_cnn()
        if not prepare():
            print(f"left out: {name}, which is not installed", file=sys.stderr)
            continue
        started = time.perf_counter()
        own = program(model, *train, *test, epochs)
        taken = time.perf_counter() - started
        found[name] = {
            "lines": len([line for line in inspect.getsource(program).splitlines() if line.strip()]) - 1,
            "seconds": taken,
            "robust_accuracy": own,
            "robust_accuracy_by_our_evaluator": robust_accuracy(model, *test),
        }
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, help="training images; 10,000 by default, 2,000 with --peers")
    parser.add_argument("--test", type=int, default=500, help="test images under attack; 500 by default")
    parser.add_argument("--epochs", type=int, help="5 by default, 2 with --peers")
    parser.add_argument("--seeds", type=int, default=3, help="3 by default")
    parser.add_argument("--peers", action="store_true", help="compare programs written with ART and foolbox")
    parser.add_argument("--json", type=Path, help="the file to write")
    arguments = parser.parse_args()
    images = arguments.images or (2000 if arguments.peers else 10_000)
    epochs = arguments.epochs or (2 if arguments.peers else 5)
    if not arguments.peers and epochs < 2:
        parser.error("--epochs must be at least 2: the first epoch, in which graphs are traced, is not timed")
    train, test = images_of_cifar10(images, arguments.test)
    result = {"command": command_line(), "versions": versions()}
    result |= {"images": images, "test_images": arguments.test, "epochs": epochs}
    if arguments.peers:
        result["programs"] = found = peers(train, test, epochs)
        rows = [
            [name, str(row["lines"]), f"{row['seconds']:.0f}", percent(row["robust_accuracy"])]
            + [percent(row["robust_accuracy_by_our_evaluator"])]
            for name, row in found.items()
        ]
        table = markdown_table(["program", "lines", "seconds", "robust, its own", "robust, our evaluator"], rows)
    else:
        for seconds, accuracy in compared(train, test, arguments.seeds, epochs):
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            pairs = [ours / plain for ours, plain in zip(*seconds.values(), strict=True)]
            result |= {"seconds": seconds, "robust_accuracy": accuracy}
            result |= {"overhead": medians["RobustModel"] / medians["plain loop"] - 1}
            result |= {"median_of_ratios": statistics.median(pairs)}
            write(arguments.json, result)
        rows = [
            [name, f"{medians[name]:.2f}", f"{min(seconds[name]):.2f}", " / ".join(map(percent, accuracy[name]))]
            for name in seconds
        ]
        table = markdown_table(["training", "median s per epoch", "fastest", "robust accuracy, by seed"], rows)
        print(f"overhead {result['overhead']:.1%}, median of ratios {result['median_of_ratios']:.3f}\n")
    print(table)
    write(arguments.json, result)


def write(file: Path | None, result: dict) -> None:
    """Write a result to a file, if one is given."""
    if file:
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
