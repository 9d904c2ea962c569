"""Certified accuracy of smoothed classifiers, and AutoAttack on what was certified.

    python cli.py fit --config configs/cifar10_cpu.yaml --variant smoothed --name cifar10-smoothed
    python -m benchmarks.smoothing saved_models/cifar10-smoothed --json results/benchmarks/smoothing.json

Test images are certified by randomised smoothing. Those that are right and certified are then attacked in L2, in groups
of images with similar radii, at the smallest certified radius of the group. The attacks are those of AutoAttack, with
all of their rounds, on the mean softmax over a few fixed draws of noise, which has a gradient. Of the images that the
rounds find, the one with the lowest probability of its class on many fresh draws is judged by the vote: it is certified
as the clean image was. It is broken if the vote gives another class, which a certificate excludes with probability 1 -
alpha.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import tensorflow as tf  # noqa: E402

from keras_rcl.attacks.craft import craft_round  # noqa: E402
from keras_rcl.attacks.gradient_ascent import Numbers  # noqa: E402
from keras_rcl.attacks.smoothed import smoothed  # noqa: E402
from keras_rcl.evaluation.smoothing import ABSTAINED, Smoother, Smoothing  # noqa: E402
from keras_rcl.model_io.classifier import load_classifier  # noqa: E402
from keras_rcl.report.tables import markdown_table, percent  # noqa: E402
from keras_rcl.vocabulary.attacks import AutoAttack  # noqa: E402
from keras_rcl.workflows.inputs import data_for, pixels, split_of  # noqa: E402

RADII = (0.0, 0.25, 0.5)
FRESH = 200
"""Draws of noise that choose among the images that the rounds of the attacks find."""


class Attacker:
    """AutoAttack on the mean softmax over fixed draws of noise.

    Args:
        logits_fn: Of the base classifier.
        shape: Of an image.
        num_classes: K.
        sigma: Of the noise.
        draws: Of the mean softmax that is attacked.
        at_once: Images attacked at once, with one radius.
    """

    def __init__(self, logits_fn: Callable, shape: tuple, num_classes: int, sigma: float, draws: int, at_once: int):
        # Radii are given with each call; this one only has to be valid.
        self._members = AutoAttack(norm="l2", epsilon=sigma).for_classes(num_classes).members
        self._members = [member.for_classes(num_classes) for member in self._members]
        noise, fresh = (
            sigma * tf.random.stateless_normal([count, 1, *shape], [seed, 0], alg="philox")
            for seed, count in ((1, draws), (2, FRESH))
        )
        signature = (
            tf.TensorSpec([at_once, *shape], tf.float32),
            tf.TensorSpec([at_once], tf.int32),
            tf.TensorSpec([], tf.int32),
            tf.TensorSpec([], tf.float32),
        )

        def attack_of(member):
            def one_round(x, labels, number, epsilon):
                mean = smoothed(logits_fn, noise)
                return craft_round(member, mean, x, labels, round=number, numbers=Numbers(epsilon)).images

            return tf.function(one_round, signature, autograph=False)

        def probability(x, labels):
            """Of the label, on fresh draws, one draw at a time."""
            logits = tf.map_fn(lambda draw: logits_fn(x + draw), fresh, fn_output_signature=tf.float32)
            return tf.gather(tf.reduce_mean(tf.nn.softmax(logits), axis=0), labels, batch_dims=1)

        self._rounds = [(member.num_rounds, attack_of(member)) for member in self._members]
        self._probability = tf.function(probability, signature[:2], autograph=False)

    @property
    def labels(self) -> list[str]:
        """Of the attacks."""
        return [member.label for member in self._members]

    def __call__(self, images: np.ndarray, classes: np.ndarray, epsilon: float) -> np.ndarray:
        """The images [N, H, W, C] within epsilon of `images` for which the class is the least probable; N = at_once."""
        x, labels = tf.constant(images), tf.constant(classes, tf.int32)
        best, lowest = images, self._probability(x, labels).numpy()
        for rounds, attack in self._rounds:
            for number in range(rounds):
                crafted = attack(x, labels, tf.constant(number), tf.constant(epsilon, tf.float32))
                probability = self._probability(crafted, labels).numpy()
                better = probability < lowest
                best = np.where(better[:, None, None, None], crafted.numpy(), best)
                lowest = np.where(better, probability, lowest)
        return best


def measured(path: Path, arguments: argparse.Namespace) -> dict:
    """The row of one model."""
    classifier = load_classifier(path)
    data = data_for(classifier, {"limit": arguments.limit}, "test")
    split = split_of(data, "test")
    images, labels = pixels(split.images), split.labels
    smoothing = Smoothing(arguments.sigma, n=arguments.n)
    smoother = Smoother(classifier.logits, smoothing)
    started = time.perf_counter()
    certified = smoother(images, labels)
    seconds = time.perf_counter() - started
    print(f"{path.name}: certified in {seconds:.0f} s", file=sys.stderr, flush=True)

    started, adversarial, epsilons = time.perf_counter(), images.copy(), np.zeros(len(images))
    shape, at_once = images.shape[1:], arguments.at_once
    attacker = Attacker(classifier.logits, shape, data.num_classes, arguments.sigma, arguments.draws, at_once)
    attacked = np.flatnonzero(certified.correct_radii > 0)[: arguments.attacked]
    ordered = attacked[np.argsort(certified.radii[attacked])]
    for rows in (ordered[start : start + at_once] for start in range(0, len(ordered), at_once)):
        # A little below the smallest radius, so that rounding does not take an image out of its ball.
        epsilons[rows] = epsilon = float(certified.radii[rows].min() * (1 - 1e-6))
        filled = np.resize(rows, at_once)
        adversarial[rows] = attacker(images[filled], labels[filled], epsilon)[: len(rows)]
        print(f"{path.name}: {len(rows)} images at {epsilon:.3f}", file=sys.stderr, flush=True)
    distances = np.linalg.norm((adversarial - images).reshape(len(images), -1)[attacked].astype(np.float64), axis=1)
    assert (distances <= certified.radii[attacked]).all(), "an image was attacked outside of its certified ball"
    judged = smoother(adversarial[attacked], labels[attacked])
    config = classifier.contract.get("config", {})
    return {
        "command": command_line(),
        "variant": classifier.contract.get("variant"),
        "method": config.get("method"),
        "protocol": "pixel",
        "sigma": smoothing.sigma,
        "n": smoothing.n,
        "alpha": smoothing.alpha,
        "images": len(images),
        "certified_accuracy": {f"{radius:g}": certified.certified_accuracy(radius) for radius in RADII},
        "average_radius": certified.average_radius,
        "abstained": certified.abstained,
        "attacks": attacker.labels,
        "draws": arguments.draws,
        "attacked": len(attacked),
        "median_epsilon": float(np.median(epsilons[attacked])),
        "broken": int(np.sum((judged.predictions != labels[attacked]) & (judged.predictions != ABSTAINED))),
        "abstained_under_attack": int(np.sum(judged.predictions == ABSTAINED)),
        "median_probability": [
            float(np.median(row.counts[mask]) / smoothing.n)
            for row, mask in ((certified, attacked), (judged, slice(None)))
        ],
        "seconds": {"certify": round(seconds), "attack": round(time.perf_counter() - started)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="SavedModels that were exported here")
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--n", type=int, default=10_000, help="noisy copies that bound the probability of a class")
    parser.add_argument("--limit", type=int, default=200, help="test images")
    parser.add_argument("--attacked", type=int, help="at most this number of the certified images are attacked")
    parser.add_argument("--draws", type=int, default=8, help="draws of the mean softmax that is attacked")
    parser.add_argument("--at-once", type=int, default=10, help="images attacked at once")
    parser.add_argument("--json", type=Path, help="the file to write; the rows of other models in it are kept")
    arguments = parser.parse_args()
    record = {"models": {}}
    if arguments.json and arguments.json.is_file():
        record = json.loads(arguments.json.read_text())
    for path in arguments.models:
        row = record["models"][path.name] = measured(path, arguments)
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")
        cells = [percent(value) for value in row["certified_accuracy"].values()]
        header = ["model", *(f"at {radius:g}" for radius in RADII), "attacked", "broken"]
        print(markdown_table(header, [[path.name, *cells, str(row["attacked"]), str(row["broken"])]]))


if __name__ == "__main__":
    main()
