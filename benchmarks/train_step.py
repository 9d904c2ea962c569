"""What training costs: an adversarial step over a clean one, `fit` over its bare step, waiting for data, a CLAF epoch.

    python -m benchmarks.train_step --network resnet18 --images 256 --json results/benchmarks/train_step.json
    python -m benchmarks.train_step --network strided_cnn --images 1024 --claf

Random images and weights. `bare` calls the compiled step on one batch again and again; `fit` is Keras' `fit` on the
pipeline, and its overhead what passes outside its steps, the making of the iterator included; `drawn` calls the step on
batches drawn by hand, and its stall is the share of the run that passes waiting for them. Both are taken within a run:
between runs the machine's speed drifts by more than they are.

With `--claf` an epoch of the second stage of `clafs`, its inner epochs included, beside a plain compiled Algorithm 1 on
the same batches, whose weights have to end equal (under SGD), and beside the online head and warm starts.
"""

import dataclasses
import statistics
import time

import numpy as np

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from benchmarks.plain_claf import PlainCLAF  # noqa: E402
from benchmarks.side_by_side import (  # noqa: E402
    alternate,
    operations_per_image,
    options,
    random_data,
    random_network,
    rows_of,
    tell,
)
from keras_rcl.methods import AT, CLAFS, Baseline  # noqa: E402
from keras_rcl.runtime.progress import Silent  # noqa: E402
from keras_rcl.training.phase_runner import PhaseRunner  # noqa: E402
from keras_rcl.vocabulary.attacks import PGD  # noqa: E402
from keras_rcl.vocabulary.compute import ComputeSettings  # noqa: E402
from keras_rcl.vocabulary.dataset import CropFlip  # noqa: E402
from keras_rcl.vocabulary.phase import SGD, Adam  # noqa: E402

CLAF = CLAFS(
    inner_epochs=5,
    augmentation=CropFlip(),
    attack=PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=5, random_start=False),
    optimizer=Adam(learning_rate=1e-3),
)
"""Algorithm 1 without what is random in its attack."""

OPTIONS = {
    "clafs, warm start": dict(warm_steps=1),
    "clafs, online head": dict(head="online"),
    "clafs, online head, warm start": dict(head="online", warm_steps=1),
}
"""What makes the second stage faster, and is no longer Algorithm 1."""

HOW = ("bare", "fit", "drawn")
SHARES = {"fit": "fit_overhead", "drawn": "stall"}
"""Contender -> what its `shares` are of."""


class InSteps(keras.callbacks.Callback):
    """How many seconds of the last `fit` passed within its steps, the drawing of their batches included."""

    def on_train_begin(self, logs=None):
        self.seconds = 0.0

    def on_train_batch_begin(self, batch, logs=None):
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds += time.perf_counter() - self.started


class Fit:
    """An epoch by Keras' `fit`, and of each run the seconds outside its steps over those within."""

    def __init__(self, runner: PhaseRunner):
        self.runner, self.shares = runner, []

    def __call__(self) -> float:
        in_steps, started = InSteps(), time.perf_counter()
        history = self.runner.trainer.fit(self.runner.batches.dataset, shuffle=False, verbose=0, callbacks=[in_steps])
        self.shares.append((time.perf_counter() - started) / in_steps.seconds - 1)
        return history.history["loss"][-1]


class Drawn:
    """An epoch of compiled steps on batches drawn one by one, and of each run the share that was waiting for them."""

    def __init__(self, compiled, dataset: tf.data.Dataset):
        self.compiled, self.dataset, self.shares = compiled, dataset, []

    def __call__(self) -> float:
        started, waited = time.perf_counter(), 0.0
        batches = iter(self.dataset)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            loss = float(self.compiled(batch)["loss"])
        self.shares.append(waited / (time.perf_counter() - started))
        return loss


def runner_of(encoder, phase, data, **changes):
    return PhaseRunner(random_network(encoder), phase, data, epochs=1000, seed=(0,), **changes)


def steps(encoder: str, data, batch_size: int) -> tuple[dict, dict]:
    """The contenders of a clean and an adversarial step, and the number of forward passes per image of each."""
    attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=5)
    plain, adversarial = Baseline(batch_size=batch_size), AT(batch_size=batch_size, attack=attack)
    trainings = {
        "clean": (plain, "float32"),
        "PGD-5": (adversarial, "float32"),
        "PGD-5 in bfloat16": (adversarial, "bfloat16"),
    }
    contenders, passes = {}, {}
    for name, (method, dtype) in trainings.items():
        runner = runner_of(encoder, method.phases()[0], data, compute=ComputeSettings(attack_dtype=dtype))
        batch = next(iter(runner.batches.dataset))
        compiled = tf.function(runner.trainer.train_step, autograph=False)

        def bare(compiled=compiled, batch=batch, count=runner.batches.steps_per_epoch):
            for _ in range(count):
                metrics = compiled(batch)
            return float(metrics["loss"])

        runs = bare, Fit(runner), Drawn(compiled, runner.batches.dataset)
        contenders |= {f"{name}, {how}": run for how, run in zip(HOW, runs, strict=True)}
        # A step goes forward, and back to weights and activations; an attack forward, and back to the image.
        cost = 3 + (2 * attack.num_steps if method is adversarial else 0)
        passes |= {f"{name}, {how}": cost for how in HOW}
    return contenders, passes


class ClafEpoch:
    """An epoch of the second stage by our engine, inner epochs included."""

    def __init__(self, encoder: str, recipe: CLAFS, data):
        phase = recipe.phases()[1]
        self.network = random_network(encoder)
        self.inner = [PhaseRunner(self.network, inner, data, epochs=1000, seed=(0, 1)) for inner in phase.refresh]
        self.outer = PhaseRunner(self.network, phase, data, epochs=1000, seed=(0, 0))

    def __call__(self) -> float:
        for runner in self.inner:
            runner.begin()
            for _ in range(runner.phase.epochs):
                runner.run_epoch(Silent(), "")
        return self.outer.run_epoch(Silent(), "")["loss"]


class PlainClafEpoch:
    """The same by `PlainCLAF`, from the same pipeline."""

    def __init__(self, encoder: str, recipe: CLAFS, data):
        self.network = random_network(encoder)
        self.plain = PlainCLAF(self.network, recipe)
        reads = ClafEpoch(encoder, recipe, data)
        self.inner, self.outer, self.epochs_run = reads.inner[0].batches, reads.outer.batches, 0
        self.inner_epochs = recipe.inner_epochs

    def head_epochs(self):
        for number in range(self.inner_epochs):
            self.inner.start_epoch(self.epochs_run * self.inner_epochs + number)
            yield ((views[0], labels) for views, labels, _ in self.inner.dataset)

    def __call__(self) -> float:
        self.outer.start_epoch(self.epochs_run)
        batches = ((*tf.unstack(views, 3), labels) for views, labels, _ in self.outer.dataset)
        loss = self.plain.epoch(self.head_epochs(), batches)
        self.epochs_run += 1
        return loss


def weights_apart(first: keras.Model, second: keras.Model) -> float:
    """The largest difference between two networks' weights, over the largest weight."""
    pairs = list(zip(first.get_weights(), second.get_weights(), strict=True))
    return max(np.abs(a - b).max() for a, b in pairs) / max(np.abs(a).max() for a, _ in pairs)


def claf_weights_apart(encoder: str, recipe: CLAFS, data) -> float:
    """How far both implementations' weights are apart after an epoch, both learning by SGD.

    Its steps are proportional to the gradient; Adam's first ones are its signs, which rounding turns round.
    """
    by_sgd = dataclasses.replace(recipe, optimizer=SGD(learning_rate=0.01), inner_optimizer=SGD(learning_rate=0.01))
    ours, plain = (make(encoder, by_sgd, data) for make in (ClafEpoch, PlainClafEpoch))
    before = ours.network.get_weights()
    assert weights_apart(ours.network, plain.network) == 0
    ours(), plain()
    moved = max(np.abs(a - b).max() for a, b in zip(before, ours.network.get_weights(), strict=True))
    print(f"largest change of a weight: {moved:.3g}")
    return float(weights_apart(ours.network, plain.network))


def main() -> None:
    parser = options(__doc__, images=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--claf", action="store_true", help="time CLAF's epochs, and not steps")
    arguments = parser.parse_args()
    data, facts = random_data(arguments.images), {}
    per_image = operations_per_image(random_network(arguments.network))
    if arguments.claf:
        recipe = dataclasses.replace(CLAF, batch_size=arguments.batch_size)
        facts["weights_apart_after_an_epoch"] = claf_weights_apart(arguments.network, recipe, data)
        contenders = {
            "clafs": ClafEpoch(arguments.network, recipe, data),
            "plain Algorithm 1": PlainClafEpoch(arguments.network, recipe, data),
        }
        # Of an image: forward and back to it; forward and back to the weights, in three views; the head's forward pass.
        attack, learn, warm = 2 * recipe.attack.num_steps, 3 * 3, 2
        passes = dict.fromkeys(contenders, recipe.inner_epochs * (attack + 1) + attack + learn)
        passes |= {
            "clafs, warm start": recipe.inner_epochs + attack + (recipe.inner_epochs - 1) * warm + attack + learn,
            "clafs, online head": attack + learn,
            "clafs, online head, warm start": warm + learn,
        }
        for name, changes in OPTIONS.items():
            contenders[name] = ClafEpoch(arguments.network, dataclasses.replace(recipe, **changes), data)
    else:
        contenders, passes = steps(arguments.network, data, arguments.batch_size)
    seconds, given = alternate(contenders, arguments.repeats, arguments.only)
    images = len(data.train.labels) // arguments.batch_size * arguments.batch_size
    operations = {name: passes[name] * per_image * images for name in given}
    rows = rows_of(seconds, dict.fromkeys(given, images), operations)
    if not arguments.claf:
        for name in given:
            (training, how), run = name.rsplit(", ", 1), contenders[name]
            if how in SHARES:
                # The first run compiles.
                facts[f"{training}_{SHARES[how]}"] = statistics.median(run.shares[-max(arguments.repeats, 1) :])
        if {"clean, bare", "PGD-5, bare"} <= set(given):
            facts["adversarial_over_clean"] = rows["PGD-5, bare"]["seconds"] / rows["clean, bare"]["seconds"]
    tell(arguments, rows, network=arguments.network, batch_size=arguments.batch_size, **facts)
    print()
    for name, value in facts.items():
        print(f"{name.replace('_', ' ')}: {value:.4g}")


if __name__ == "__main__":
    main()
