"""What deciding a claim early saves: audits of all images, and audits that end when the verdict is decided.

    python -m benchmarks.early_audits --json results/benchmarks/early_audits.json

Four small CNNs of MNIST are audited with five claims each: 10 and 20 points below and above the robust accuracy that
the audit of all images measures, and 4 points above or below it, by turns. What is compared: the verdicts
of both audits, the seconds of their attacks, and the passes of single images through the network. The verifier is the
targeted APGD with 50 steps, and the checks have 50 images. Audits of one network share the attacks that they have in
common, so that each is timed once; tracing is not timed.
"""

import argparse
import dataclasses
import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

from keras_rcl.attacks import craft  # noqa: E402
from keras_rcl.data import sources  # noqa: E402
from keras_rcl.evaluation.audit import Audit, Subject, conclude  # noqa: E402
from keras_rcl.evaluation.checks import Context  # noqa: E402
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.evaluation.robustness import Evaluator, Survival  # noqa: E402
from keras_rcl.runtime.progress import Silent  # noqa: E402
from keras_rcl.storage.fingerprint import hash_arrays  # noqa: E402
from keras_rcl.vocabulary.attacks import PGD, AutoPGD, describe  # noqa: E402
from keras_rcl.vocabulary.claim import AuditBudget, Claim  # noqa: E402
from keras_rcl.vocabulary.dataset import Dataset  # noqa: E402

EPSILON = 0.1
TRAINED, TESTED = 5000, 3000
BATCH_SIZE = 100
VERIFIER = AutoPGD(epsilon=EPSILON, num_steps=50, loss="dlr_targeted")
BUDGET = AuditBudget(num_images=50, num_queries=200, verifier=VERIFIER)
CONFIDENCE = 0.99
AWAY = (-0.2, -0.1, 0.1, 0.2)
NEAR = 0.04


@functools.cache
def data(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The first images of `train` or `test`, float32 [N, 28, 28, 1] in [0, 1], and their labels."""
    part = getattr(sources.load(Dataset(name="mnist")), split).limited({"train": TRAINED, "test": TESTED}[split])
    return part.images.astype("float32") / 255, part.labels.astype("int32")


def network(seed: int, trained_epsilon: float, epochs: int = 8) -> keras.Model:
    """A CNN of two layers, trained on PGD examples."""
    keras.utils.set_random_seed(seed)
    images, labels = data("train")
    layers = [keras.layers.Conv2D(8, 5, 2, "same", activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers, keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    attack = PGD(epsilon=trained_epsilon, num_steps=5)
    crafted = tf.function(lambda x, y: craft(attack, model, x, y), autograph=False)
    for _ in range(epochs):
        batches = [crafted(*batch) for batch in zip(np.split(images, 5), np.split(labels, 5), strict=True)]
        model.fit(np.concatenate(batches), labels, batch_size=32, epochs=1, verbose=0)
    return model


def models() -> dict[str, Callable]:
    """Name -> the function of images that is audited."""
    shares = {"AT": 1.0, "AT at half epsilon": 0.5}
    return {f"{name}, seed {seed}": network(seed, share * EPSILON) for seed in (0, 1) for name, share in shares.items()}


class Timed(Context):
    """An audit that remembers which attacks it ran, and reads those that another one ran on the same images."""

    def evaluate(self, attacks: tuple, chosen, seed: int | None = None) -> Survival:
        key = (attacks, hash_arrays(self.images[chosen]), seed)
        held = vars(self)["held"]
        if key not in held:
            held[key] = super().evaluate(attacks, chosen, seed)
        vars(self)["run"].append(held[key])
        return held[key]


class Audited:
    """The audits of one model, which share graphs and attacks."""

    def __init__(self, logits: Callable):
        self._subject, self._held = Subject(logits=logits), {}
        self._evaluator: Evaluator | None = None

    def __call__(self, claimed: float, confidence: float | None = None, count: int | None = None):
        """The audit, the seconds of its attacks, and its passes."""
        images, labels = (array[:count] for array in data("test"))
        claim = Claim(robust_accuracy=float(np.clip(claimed, 0, 1)), epsilon=EPSILON)
        budget = dataclasses.replace(BUDGET, verdict_confidence=confidence)
        context = Timed(self._subject, images, labels, claim, None, budget, BATCH_SIZE, 0, Silent())
        run: list[Survival] = []
        vars(context).update(held=self._held, run=run)
        if self._evaluator is not None:
            vars(context)["evaluator"] = self._evaluator
        result = conclude(context)
        self._evaluator = context.evaluator
        seconds = sum(float(table.seconds.sum()) for table in run)
        passes = sum(int(table.forwards.sum() + table.backwards.sum()) for table in run)
        return result, seconds, passes


def rows_of(name: str, logits: Callable, near: float) -> list[dict]:
    """Audit one model at five claims, both ways."""
    audited = Audited(logits)
    audited(0.5, count=10)  # traces
    measured, *_ = audited(0.5)
    rows = []
    for away in sorted((*AWAY, near)):
        claimed = measured.robust_accuracy + away
        whole, seconds, passes = audited(claimed)
        early, early_seconds, early_passes = audited(claimed, CONFIDENCE)
        rows.append(
            {
                "model": name,
                "robust_accuracy": measured.robust_accuracy,
                "points": round(100 * away),
                "claimed": float(np.clip(claimed, 0, 1)),
                **_outcome("all", whole, seconds, passes),
                **_outcome("early", early, early_seconds, early_passes),
                "share_of_seconds": early_seconds / seconds,
                "share_of_passes": early_passes / passes,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _outcome(kind: str, result: Audit, seconds: float, passes: int) -> dict:
    return {
        kind: {
            "verdict": result.verdict,
            "attacked": len(result.attacked),
            "interval": list(result.interval),
            "seconds": round(seconds, 2),
            "passes": passes,
        }
    }


def summary(rows: list[dict], path: Path | None) -> dict:
    """What the file holds."""
    return {
        "command": f"python -m benchmarks.early_audits --json {path}",
        "protocol": "pixel",
        "images": TESTED,
        "confidence": CONFIDENCE,
        "epsilon": EPSILON,
        "verifier": describe(VERIFIER),
        "check_images": BUDGET.num_images,
        "same_verdicts": sum(row["all"]["verdict"] == row["early"]["verdict"] for row in rows),
        "median_share_of_seconds": statistics.median(row["share_of_seconds"] for row in rows),
        "median_share_of_passes": statistics.median(row["share_of_passes"] for row in rows),
        "versions": versions(),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="the file to write, after each model")
    arguments = parser.parse_args()
    rows = []
    for number, (name, logits) in enumerate(models().items()):
        rows += rows_of(name, logits, NEAR if number % 2 else -NEAR)
        if arguments.json:
            arguments.json.write_text(json.dumps(summary(rows, arguments.json), indent=1) + "\n")
    found = summary(rows, arguments.json)
    print({name: value for name, value in found.items() if name not in ("rows", "versions")})


if __name__ == "__main__":
    main()
