"""The engine: freezes parts, fits each phase, runs its refreshes, keeps checkpoints, writes what TensorBoard shows."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.attacks import craft_and_count
from keras_rcl.data.pipeline import Batches
from keras_rcl.data.sources import ImageData
from keras_rcl.networks.two_headed import parts, reinitialize
from keras_rcl.progress import Progress, Silent
from keras_rcl.training.checkpoints import Checkpoints
from keras_rcl.training.loss_terms import phase_collapse_value
from keras_rcl.training.robust_trainer import RobustTrainer
from keras_rcl.training.tensorboard import TensorBoardWriter, picture_grid
from keras_rcl.vocabulary.attack import Attack
from keras_rcl.vocabulary.phase import Adversarial, Optimizer, Phase

MONITORED_IMAGES = 32


def make_optimizer(word: Optimizer, decay_steps: int) -> keras.optimizers.Optimizer:
    """The Keras optimizer that a word describes; a cosine schedule reaches 0 after `decay_steps`."""
    rate = word.learning_rate
    if word.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, max(1, decay_steps))
    decay = word.weight_decay or None
    if word.name == "adam":
        return keras.optimizers.Adam(rate, weight_decay=decay)
    # The field adds weight_decay * w to the gradient, so momentum multiplies it by 1 / (1 - momentum) in the long run;
    # Keras subtracts it from the weight directly.
    return keras.optimizers.SGD(rate, momentum=word.momentum, weight_decay=decay and decay / (1 - word.momentum))


def freeze(network: keras.Model, phase: Phase) -> None:
    """Let only the parts that the phase trains move; BatchNorm statistics of others stand still unless asked for."""
    for name, part in parts(network).items():
        for layer in (part, *part.layers):
            layer.trainable = False  # or else Keras skips a value that is the old one, and the variables with it
            layer.trainable = name in phase.trains
            normalizes = isinstance(layer, keras.layers.BatchNormalization)
            if normalizes and name not in phase.trains and not phase.frozen_statistics:
                layer.trainable = True
                layer.gamma.trainable = layer.beta.trainable = False


class PhaseRunner:
    """One phase, compiled once: its trainer, optimizer and batches."""

    def __init__(self, network, phase: Phase, data: ImageData, *, epochs: int, seed: tuple[int, ...], **settings):
        """`epochs` is how many the optimizer's schedule spans."""
        self.network, self.phase, self.seed = network, phase, seed
        self.batches = Batches(
            data.train,
            phase.views,
            phase.batch_size,
            seed,
            augmentation=phase.augmentation,
            balanced=settings["balanced"],
        )
        self.trainer = RobustTrainer(network, phase, settings["precision"])
        self.average = self.trainer.average
        self.optimizer = make_optimizer(phase.optimizer, epochs * self.batches.steps_per_epoch)
        freeze(network, phase)
        self.trainer.compile(optimizer=self.optimizer, jit_compile=settings["jit"])
        self.optimizer = self.trainer.optimizer  # Keras wraps it where the loss is to be scaled
        self.optimizer.build(self.trainer.trainable_variables)
        self._fresh = [tf.identity(variable.value) for variable in self.optimizer.variables]
        self.epochs_run = 0

    def begin(self) -> None:
        """What happens each time that the phase starts: parts drawn anew, the optimizer as new where asked for."""
        for part in self.phase.reinitialize:
            reinitialize(parts(self.network)[part], seed=_entropy(*self.seed, self.epochs_run))
        if self.phase.fresh_optimizer:
            for variable, value in zip(self.optimizer.variables, self._fresh, strict=True):
                variable.assign(value)
        if self.average:
            self.average.begin()

    def run_epoch(self, progress: Progress, label: str) -> dict[str, float]:
        """One pass over the training images, which leaves the average where one is kept; returns the metrics' means."""
        freeze(self.network, self.phase)
        if self.average:
            self.average.show(False)
        self.batches.start_epoch(self.epochs_run)
        progress.start(label, self.batches.steps_per_epoch, work=self.work_per_epoch)
        started = time.perf_counter()
        history = self.trainer.fit(self.batches.dataset, shuffle=False, verbose=0, callbacks=[_Report(progress)])
        seconds = time.perf_counter() - started
        if self.average:
            self.average.show(True)
        self.epochs_run += 1
        metrics = {name: float(values[-1]) for name, values in history.history.items()}
        images = self.batches.steps_per_epoch * self.batches.batch_size
        metrics["learning_rate"] = float(self.optimizer.learning_rate)
        metrics["images_per_second"] = images / seconds
        collapse = phase_collapse_value(self.phase, self.batches.batch_size)
        if not math.isnan(collapse):
            metrics["collapse_value"] = collapse
        progress.finish(f"loss {metrics['loss']:.3f}")
        return metrics

    @property
    def work_per_epoch(self) -> float:
        return self.batches.steps_per_epoch * work_per_batch(self.phase)


def _entropy(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def overfits_catastrophically(metrics: dict[str, float], best: float) -> bool:
    """Whether a single-step attack has been learnt by heart (Wong et al. 2020, "catastrophic overfitting").

    The training's own attack fails more than ever, while the monitored one takes more than half of what it once left.

    Args:
        metrics: of an epoch.
        best: the highest accuracy under the monitored attack so far in the phase.
    """
    return metrics["monitor_adversarial_accuracy"] < best / 2 <= best <= metrics.get("accuracy_adversarial", 0.0)


def work_per_batch(phase: Phase) -> float:
    """Forward passes that a batch costs, roughly: one forward, two for a backward, two for an attack's step."""
    learned = 3 if "encoder" in phase.trains else 1
    attacks = [view.attack for view in phase.views if isinstance(view, Adversarial)]
    images = len(phase.views) * learned + sum(attack.work for attack in attacks)
    return phase.batch_size * images


class _Report(keras.callbacks.Callback):
    """Passes steps on to a progress bar."""

    def __init__(self, progress: Progress):
        super().__init__()
        self.progress = progress

    def on_train_batch_end(self, batch, logs=None):
        self.progress.update(batch + 1)


class Recorder:
    """Where a run's numbers go: `metrics.jsonl`, a line an epoch, and TensorBoard."""

    def __init__(self, folder: Path, writer: TensorBoardWriter):
        self.path, self.writer = Path(folder) / "metrics.jsonl", writer
        self.step = 0

    def epoch(self, phase: str, epoch: int, metrics: dict[str, float]) -> None:
        self.step += 1
        line = {"step": self.step, "phase": phase, "epoch": epoch, **metrics}
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in line.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")
        self.writer.scalars(phase, metrics, self.step)


class Monitor:
    """A fixed batch of training images, attacked once an epoch: the clean and adversarial accuracy that every phase
    can be compared by, and pictures of what the attack does."""

    def __init__(self, network: keras.Model, data: ImageData, attack: Attack):
        count = min(MONITORED_IMAGES, len(data.train.labels))
        self.images = tf.constant(data.train.images[:count], tf.float32) / 255
        self.labels = tf.constant(data.train.labels[:count], tf.int32)

        @tf.function(autograph=False)
        def attacked():
            def logits_fn(x):
                return network(x, training=False)["logits"]

            crafted = craft_and_count(attack, logits_fn, self.images, self.labels)
            predictions = [tf.argmax(logits_fn(x), axis=1, output_type=tf.int32) for x in (self.images, crafted.images)]
            hits = [tf.reduce_mean(tf.cast(p == self.labels, tf.float32)) for p in predictions]
            return crafted.images, hits, tf.reduce_mean(crafted.zero_gradients)

        self._attacked = attacked

    def __call__(self) -> tuple[dict[str, float], object]:
        """The metrics, and the grid of clean, adversarial and perturbation."""
        adversarial, (clean_hits, adversarial_hits), zeros = self._attacked()
        metrics = {
            "monitor_clean_accuracy": float(clean_hits),
            "monitor_adversarial_accuracy": float(adversarial_hits),
            "monitor_zero_gradients": float(zeros),
        }
        return metrics, picture_grid(self.images.numpy()[:8], adversarial.numpy()[:8])


def run_phases(
    network: keras.Model,
    phases: tuple[Phase, ...],
    data: ImageData,
    folder: Path,
    *,
    writer: TensorBoardWriter,
    monitored_attack: Attack,
    validate: Callable[[], dict[str, float]] | None = None,
    seed: int = 0,
    precision: str = "float32",
    jit: bool = False,
    balanced: bool = False,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train a network by a method's phases.

    Args:
        network: the two-headed network, which is trained in place and ends with the chosen weights: the best where
            `validate` is given, else the last.
        phases: in order; each one's refreshes run before each of its epochs.
        data: trained on its train part.
        folder: receives `metrics.jsonl` and `checkpoints/`.
        writer: TensorBoard.
        monitored_attack: attacks a fixed training batch once an epoch, for logs and pictures.
        validate: called after each epoch of the last phase; its `robust_accuracy` chooses the best checkpoint.
        seed: of batches, augmentations, attacks and reinitialised parts.
        precision: the dtype policy under which the network was built; decides loss scaling.
        jit: compile the step with XLA.
        balanced: every class equally often in each batch.
        progress: where progress is shown.

    Returns:
        The validation metrics of the chosen weights (empty without `validate`).
    """
    progress = progress or Silent()
    checkpoints, recorder = Checkpoints(folder / "checkpoints"), Recorder(folder, writer)
    monitor = Monitor(network, data, monitored_attack)
    settings = dict(precision=precision, jit=jit, balanced=balanced)
    runners = []
    for index, phase in enumerate(phases):
        refreshes = [
            PhaseRunner(
                network,
                inner,
                data,
                epochs=inner.epochs * (1 if inner.fresh_optimizer else phase.epochs),
                seed=(seed, index, 1 + number),
                **settings,
            )
            for number, inner in enumerate(phase.refresh)
        ]
        runners.append(
            (PhaseRunner(network, phase, data, epochs=phase.epochs, seed=(seed, index, 0), **settings), refreshes)
        )
    progress.plan(
        sum(
            runner.phase.epochs * (runner.work_per_epoch + sum(r.phase.epochs * r.work_per_epoch for r in refreshes))
            for runner, refreshes in runners
        )
    )
    best: dict[str, float] = {}
    for number, (runner, refreshes) in enumerate(runners, start=1):
        phase, last_phase = runner.phase, number == len(runners)
        runner.begin()
        best_monitored, warned = 0.0, False
        for epoch in range(1, phase.epochs + 1):
            label = f"{number}/{len(runners)} {phase.name}  epoch {epoch}/{phase.epochs}"
            for inner in refreshes:
                inner.begin()
                for inner_epoch in range(1, inner.phase.epochs + 1):
                    inner_label = f"{label}  {inner.phase.name} {inner_epoch}/{inner.phase.epochs}"
                    metrics = inner.run_epoch(progress, inner_label)
                    recorder.epoch(inner.phase.name, inner.epochs_run, metrics)
            metrics = runner.run_epoch(progress, label)
            monitored, grid = monitor()
            metrics.update(monitored)
            if overfits_catastrophically(metrics, best_monitored) and not warned:
                warned = True
                progress.say(
                    f"catastrophic overfitting in epoch {epoch} of {phase.name}: {metrics['accuracy_adversarial']:.0%} "
                    f"under the training's attack, {metrics['monitor_adversarial_accuracy']:.0%} under the monitored "
                    f"one, which left {best_monitored:.0%} before; take more steps, smaller ones, or fewer epochs"
                )
            best_monitored = max(best_monitored, metrics["monitor_adversarial_accuracy"])
            if last_phase and validate:
                validation = validate()
                metrics.update({f"validation_{name}": value for name, value in validation.items()})
                if not best or validation["robust_accuracy"] > best["robust_accuracy"]:
                    best = {**validation, "epoch": epoch}
                    checkpoints.save(network, "best")
            recorder.epoch(phase.name, epoch, metrics)
            writer.images(phase.name, "clean, adversarial, perturbation", grid, recorder.step)
        checkpoints.save(network, f"{number}-{phase.name.replace(' ', '-')}")
    checkpoints.save(network, "last")
    if best:
        checkpoints.load(network, "best")
    freeze(network, phases[-1])
    return best
