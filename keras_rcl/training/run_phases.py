"""The engine: freezes parts, fits each phase, runs its refreshes, keeps checkpoints, writes what TensorBoard shows.

A training is a sequence of legs, each an epoch of a phase or of one of its refreshes. Between two steps all that the
rest of it depends on is a `Course`, the network, and the variables of the current phase's runners: that is a state.
"""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.attacks import craft_and_count
from keras_rcl.data.parts import StreamedPart
from keras_rcl.data.pipeline import Batches
from keras_rcl.data.sources import ImageData
from keras_rcl.networks.two_headed import initialize_for_intervals, parts, reinitialize
from keras_rcl.objectives.geometry import POINTS, clean_to_adversarial_distance, geometry
from keras_rcl.progress import Progress, Silent
from keras_rcl.runtime import held_signals
from keras_rcl.training.checkpoints import Checkpoints
from keras_rcl.training.fixed_features import FixedFeatures
from keras_rcl.training.loss_terms import is_contrastive, phase_collapse_value
from keras_rcl.training.refreshed_examples import RefreshedExamples
from keras_rcl.training.replicated_step import ReplicatedStep
from keras_rcl.training.robust_trainer import RobustTrainer
from keras_rcl.training.states import State, States
from keras_rcl.training.tensorboard import TensorBoardWriter, picture_grid
from keras_rcl.training.warm_starts import WarmStarts
from keras_rcl.vocabulary.attack import Attack
from keras_rcl.vocabulary.phase import Optimizer, Phase
from keras_rcl.vocabulary.word import Refused
from keras_rcl.workers import ALONE, Message, Workers

MONITORED_IMAGES = 32
DEAD = 0.5
"""The share of zero pixel gradients from which on an attack is called dead."""
COLLAPSED = 0.999
"""The mean cosine between projections from which on they are called collapsed."""


def make_optimizer(word: Optimizer, decay_steps: int) -> keras.optimizers.Optimizer:
    """The Keras optimizer that a word describes; its schedule spans `decay_steps`."""
    rate = word.learning_rate
    if word.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, max(1, decay_steps))
    if word.schedule == "steps":
        ends = [decay_steps * sevenths // 7 for sevenths in (5, 6)]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(ends, [rate, rate / 5, rate / 25])
    decay = word.weight_decay or None
    if word.name == "adam":
        return keras.optimizers.Adam(rate, weight_decay=decay, global_clipnorm=word.clip_norm)
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

    def __init__(
        self,
        network,
        phase: Phase,
        data: ImageData,
        *,
        epochs: int,
        seed: tuple[int, ...],
        workers: Workers = ALONE,
        **settings,
    ):
        """`epochs` is how many the optimizer's schedule spans."""
        self.network, self.phase, self.seed = network, phase, seed
        streamed = isinstance(data.train, StreamedPart)
        if streamed and phase.warm_views:
            raise Refused(
                "warm_steps keep every image's last attack in memory, and dataset.streamed no image; leave out one"
            )
        fixed = phase.reads_fixed_features and not streamed and workers.replicas == 1
        self.features = FixedFeatures(network, data.train) if fixed else None
        self.warm_starts = {
            place: WarmStarts(len(data.train.labels), data.image_shape, phase.views[place].attack.epsilon)
            for place in phase.warm_views
        }
        self.batches = Batches(
            data.train,
            () if self.features else phase.views,
            phase.batch_size,
            seed,
            augmentation=phase.augmentation,
            balanced=settings["balanced"],
            indexed=bool(self.features or self.warm_starts),
            share=(workers.index, workers.count),
        )
        self.trainer = RobustTrainer(
            network,
            phase,
            settings["precision"],
            steps_per_epoch=self.batches.steps_per_epoch,
            micro_batch=None if self.features else _fitting(settings["micro_batch"], self.batches.batch_size, phase),
            warm_starts=self.warm_starts,
            features=self.features and self.features.values,
        )
        self.average, self.branch = self.trainer.average, self.trainer.branch
        size = self.trainer.micro_batch or self.batches.batch_size
        self.refreshed = [
            RefreshedExamples(network, attack, kept, data.train, size, seed=_entropy(*seed) % 2**31)
            for attack, kept in self.batches.refreshed.items()
        ]
        freeze(network, phase)
        with workers.scope():
            optimizer = make_optimizer(phase.optimizer, epochs * self.batches.steps_per_epoch)
        self.trainer.compile(optimizer=optimizer, jit_compile=settings["jit"])
        self.optimizer = self.trainer.optimizer  # Keras wraps it where the loss is to be scaled
        with workers.scope():
            self.optimizer.build(self.trainer.trainable_variables)
        self.replicated = None
        if workers.replicas > 1:
            _check_replicas(workers.replicas, self.batches.batch_size, phase, settings)
            self.replicated = ReplicatedStep(self.trainer, workers)
        self._fresh = [tf.identity(variable.value) for variable in self.optimizer.variables]
        self.epochs_run = 0

    def begin(self) -> None:
        """What happens each time that the phase starts: parts drawn anew, the optimizer as new where asked for."""
        for part in self.phase.reinitialize:
            reinitialize(parts(self.network)[part], seed=_entropy(*self.seed, self.epochs_run))
        for part in self.phase.trains if self.phase.interval_initialization else ():
            initialize_for_intervals(parts(self.network)[part], seed=_entropy(*self.seed, self.epochs_run))
        for starts in self.warm_starts.values():
            starts.warm.assign(False)
        if self.features:
            self.features.clear()
        if self.phase.fresh_optimizer:
            for variable, value in zip(self.optimizer.variables, self._fresh, strict=True):
                variable.assign(value)
        for kept in filter(None, (self.average, self.branch)):
            kept.begin()

    def run_epoch(
        self, progress: Progress, label: str, *, resumed: int = 0, after_step: Callable[[int], None] | None = None
    ) -> dict[str, float]:
        """One pass over the training images, which leaves the average where one is kept; returns the metrics' means.

        Args:
            progress: where progress is shown.
            label: of its bar.
            resumed: how many steps of it are done; the variables, metrics included, are as after the last of them.
            after_step: called with the number of steps done.
        """
        freeze(self.network, self.phase)
        if self.average:
            self.average.show(False)
        if self.features:
            self.features.fill()
        total, done = self.batches.steps_per_epoch, resumed
        started = time.perf_counter()
        try:
            while done < total:
                step = self.epochs_run * total + done
                made = [kept.provide(step, progress, label) for kept in self.refreshed]
                if any(made) or done == resumed:
                    progress.start(label, total, work=self.work_per_epoch)
                end = min([total, *(done + kept.steps_left(step) for kept in self.refreshed)])
                self.batches.start_epoch(self.epochs_run, done)
                metrics = self._run_steps(end - done, done, progress, after_step)
                done = end
        except tf.errors.ResourceExhaustedError:
            size = self.batches.batch_size
            cure = f"--micro-batch {_divisor(size, (self.trainer.micro_batch or size) // 2)}"
            raise Refused(
                f"out of memory in {self.phase.name}: batches of {size} images, each in {len(self.phase.views)} views; "
                f"give {'a smaller batch_size' if self.replicated else cure}"
            ) from None
        seconds = time.perf_counter() - started
        if self.average:
            self.average.show(True)
        self.epochs_run += 1
        for starts in self.warm_starts.values():
            starts.warm.assign(True)
        images = (total - resumed) * self.batches.batch_size
        for kept in self.refreshed:
            metrics["zero_gradients"] = kept.zero_gradients
        metrics["learning_rate"] = self.learning_rate
        metrics["images_per_second"] = images / seconds
        collapse = phase_collapse_value(self.phase, self.batches.batch_size)
        if not math.isnan(collapse):
            metrics["collapse_value"] = collapse
        progress.finish(f"loss {metrics['loss']:.3f}")
        return metrics

    def _run_steps(self, steps: int, resumed: int, progress: Progress, after_step) -> dict[str, float]:
        """The steps of an epoch that are left; returns the metrics' means."""
        if self.replicated:

            def stepped(done: int) -> None:
                progress.update(done)
                if after_step:
                    after_step(done)

            return self.replicated.run_epoch(self.batches.dataset, resumed, stepped)
        history = self.trainer.fit(
            self.batches.dataset,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
            callbacks=[_Steps(progress, resumed, after_step)],
        )
        return {name: float(values[-1]) for name, values in history.history.items()}

    def variables(self) -> list:
        """All that changes while the phase runs, but for the network and `epochs_run`."""
        kept = [one.variables for one in (self.average, self.branch, *self.warm_starts.values()) if one]
        kept += [one.weights for one in self.refreshed]
        return [*self.optimizer.variables, *self.trainer.metrics_variables, *itertools.chain(*kept)]

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(tf.convert_to_tensor(self.optimizer.learning_rate))

    @property
    def work_per_epoch(self) -> float:
        steps = self.batches.steps_per_epoch
        return steps * (work_per_batch(self.phase) + sum(kept.work / kept.attack.every for kept in self.refreshed))


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


def mean_cosine(projection: tf.Tensor) -> tf.Tensor:
    """Of all pairs of two different rows of unit length [N, D]: (|sum of rows|^2 - N) / (N (N - 1)); 0 for one row."""
    count = projection.shape[0]
    total = tf.reduce_sum(tf.square(tf.reduce_sum(projection, axis=0)))
    return (total - count) / max(1, count * (count - 1))


def work_per_batch(phase: Phase) -> float:
    """Forward passes that a batch costs, roughly."""
    return phase.batch_size * phase.work


def _fitting(micro_batch: int | None, batch_size: int, phase: Phase) -> int | None:
    """The micro-batch, where it is smaller than the batch.

    Raises:
        Refused: if it does not divide the batch, or the phase needs the whole batch at once.
    """
    if micro_batch is None or micro_batch >= batch_size:
        return None
    if batch_size % micro_batch:
        raise Refused(
            f"micro-batches of {micro_batch} images do not fill {phase.name}'s batches of {batch_size}; "
            f"give --micro-batch {_divisor(batch_size, micro_batch)}"
        )
    for needs in phase.of_whole_batch:
        raise Refused(f"{phase.name} takes its {needs} of the whole batch; leave out --micro-batch, or {needs}")
    return micro_batch


def _check_replicas(replicas: int, batch_size: int, phase: Phase, settings: dict) -> None:
    """See that a phase can be trained on several replicas.

    Raises:
        Refused: if its batches do not divide among them, or it needs a whole batch in one place.
    """
    if batch_size % replicas:
        fitting = batch_size // replicas * replicas
        cure = f"--set method.batch_size={fitting}" if fitting else "fewer of them"
        raise Refused(f"{phase.name}'s batches of {batch_size} do not divide among {replicas} replicas; give {cure}")
    needs = [
        *phase.of_whole_batch,
        phase.warm_views and "warm_steps",
        any(getattr(view, "attack", None) and view.attack.name == "refreshed" for view in phase.views) and "refreshed",
        settings["micro_batch"] and "--micro-batch",
        settings["jit"] and "--jit",
    ]
    for what in filter(None, needs):
        raise Refused(f"{phase.name} has {what}, which is for one replica, and there are {replicas}; leave out either")


def _divisor(number: int, largest: int) -> int:
    """The largest divisor that is not above `largest`; 1 where that is 0."""
    return max(size for size in range(1, max(1, largest) + 1) if number % size == 0)


class _Steps(keras.callbacks.Callback):
    """Passes steps on, and puts back the metrics of those that were done before, which Keras resets."""

    def __init__(self, progress: Progress, resumed: int, after_step: Callable[[int], None] | None):
        super().__init__()
        self._progress, self._resumed, self._after_step = progress, resumed, after_step

    def on_train_begin(self, logs=None):
        self._metrics = [variable.numpy() for variable in self.model.metrics_variables]

    def on_epoch_begin(self, epoch, logs=None):
        if self._resumed:
            for variable, value in zip(self.model.metrics_variables, self._metrics, strict=True):
                variable.assign(value)

    def on_train_batch_end(self, batch, logs=None):
        done = self._resumed + batch + 1
        self._progress.update(done)
        if self._after_step:
            self._after_step(done)


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

    def pictures(self, phase: str, grid: np.ndarray) -> None:
        self.writer.images(phase, "clean, adversarial, perturbation", grid, self.step)

    def flush(self) -> None:
        """Hand what is held back to the operating system."""
        self.writer.flush()


class Monitor:
    """A fixed batch of training images, attacked once an epoch: the clean and adversarial accuracy that every phase
    can be compared by, pictures of what the attack does, and the geometry of embeddings.

    That is of `POINTS` images, but for the distance to adversarial ones, which is of the batch."""

    def __init__(self, network: keras.Model, data: ImageData, attack: Attack):
        held = data.train.held
        self.images = tf.constant(held.images[:MONITORED_IMAGES], tf.float32) / 255
        self.labels = tf.constant(held.labels[:MONITORED_IMAGES], tf.int32)
        self.shown = held.limited(POINTS)

        @tf.function(autograph=False)
        def embedded(x):
            outputs = network(x, training=False)
            return {space: tf.cast(outputs[space], tf.float32) for space in ("embedding", "projection")}

        self._embedded = embedded

        @tf.function(autograph=False)
        def attacked():
            def logits_fn(x):
                return network(x, training=False)["logits"]

            crafted = craft_and_count(attack, logits_fn, self.images, self.labels)
            outputs = [network(x, training=False) for x in (self.images, crafted.images)]
            predictions = [tf.argmax(output["logits"], axis=1, output_type=tf.int32) for output in outputs]
            hits = [tf.reduce_mean(tf.cast(p == self.labels, tf.float32)) for p in predictions]
            similarity = mean_cosine(tf.cast(outputs[0]["projection"], tf.float32))
            return crafted.images, hits, tf.reduce_mean(crafted.zero_gradients), similarity

        self._attacked = attacked

    def __call__(self) -> tuple[dict[str, float], float, object]:
        """The metrics, the mean cosine of projections, and the grid of clean, adversarial and perturbation."""
        adversarial, (clean_hits, adversarial_hits), zeros, similarity = self._attacked()
        metrics = {
            "monitor_clean_accuracy": float(clean_hits),
            "monitor_adversarial_accuracy": float(adversarial_hits),
            "monitor_zero_gradients": float(zeros),
            **self.geometry(adversarial),
        }
        return metrics, float(similarity), picture_grid(self.images.numpy()[:8], adversarial.numpy()[:8])

    def geometry(self, adversarial: tf.Tensor) -> dict[str, float]:
        """`<space>_<measure>` of the embeddings as they are now; what has no pair of images to measure is left out."""
        starts = range(0, len(self.shown.labels), MONITORED_IMAGES)
        batches = [self.shown.images[start : start + MONITORED_IMAGES] for start in starts]
        found = [self._embedded(tf.constant(images, tf.float32) / 255) for images in batches]
        before, after = self._embedded(self.images), self._embedded(adversarial)
        metrics = {}
        for space in before:
            measured = geometry(self.shown.labels, np.concatenate([outputs[space] for outputs in found]))
            measured["clean_to_adversarial_distance"] = clean_to_adversarial_distance(before[space], after[space])
            metrics |= {f"{space}_{name}": value for name, value in measured.items() if value is not None}
        return metrics


def checkpoint_name(number: int, phase: Phase) -> str:
    """Of the weights at a phase's end; phases are numbered from 1."""
    return f"{number}-{phase.name.replace(' ', '-')}"


class Leg(NamedTuple):
    """One epoch of a phase or of one of its refreshes.

    number: of the phase, from 1. epoch: of the phase, from 1. begins: the runners that start just before.
    """

    number: int
    epoch: int
    runner: PhaseRunner
    begins: tuple[PhaseRunner, ...]
    label: str


def _legs(runners: Sequence[tuple[PhaseRunner, Sequence[PhaseRunner]]]) -> Iterator[Leg]:
    """A training in order, of phases with their refreshes. A phase of no epochs is left out."""
    for number, (runner, refreshes) in enumerate(runners, start=1):
        begins: tuple[PhaseRunner, ...] = (runner,)
        for epoch in range(1, runner.phase.epochs + 1):
            label = f"{number}/{len(runners)} {runner.phase.name}  epoch {epoch}/{runner.phase.epochs}"
            for inner in refreshes:
                begins += (inner,)
                for inner_epoch in range(1, inner.phase.epochs + 1):
                    inner_label = f"{label}  {inner.phase.name} {inner_epoch}/{inner.phase.epochs}"
                    yield Leg(number, epoch, inner, begins, inner_label)
                    begins = ()
            yield Leg(number, epoch, runner, begins, label)
            begins = ()


@dataclasses.dataclass
class Course:
    """How far a training is, and what it has seen, besides variables; JSON values.

    leg: how many are done. step: of the next, how many are done. recorded: lines of metrics. best: the validation of
    the best epoch so far. best_monitored: the highest accuracy under the monitored attack, in the phase. warned: of
    what, in the phase.
    """

    leg: int = 0
    step: int = 0
    recorded: int = 0
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    best_monitored: float = 0.0
    warned: list[str] = dataclasses.field(default_factory=list)


def run_phases(
    network: keras.Model,
    phases: tuple[Phase, ...],
    data: ImageData,
    folder: Path,
    *,
    writer: TensorBoardWriter,
    monitored_attack: Attack,
    validate: Callable[[], dict[str, float]] | None = None,
    patience: int | None = None,
    seed: int = 0,
    precision: str = "float32",
    jit: bool = False,
    balanced: bool = False,
    micro_batch: int | None = None,
    states: States | None = None,
    resumed: State | None = None,
    reused: tuple[Path, int] | None = None,
    save_every: float = 60.0,
    progress: Progress | None = None,
    workers: Workers = ALONE,
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
        patience: ends the last phase after so many epochs in a row that were not better than the best before them.
        seed: of batches, augmentations, attacks and reinitialised parts.
        precision: the dtype policy under which the network was built; decides loss scaling.
        jit: compile the step with XLA.
        balanced: every class equally often in each batch.
        micro_batch: so many images pass through the network at once, the losses being of the whole batch.
        states: where the training is saved, to be resumed from; nowhere where not given.
        resumed: what `states` had of this very training.
        reused: the folder of another training and how many of its first phases are also this one's, at the same seed
            and on the same data; where nothing is resumed, this one begins with what they left.
        save_every: seconds between two states. The end is saved, and where SIGINT or SIGTERM asks to stop.
        progress: where progress is shown.
        workers: all of which call this with the same, but for `folder`, which only the chief keeps, and `states` and
            `resumed`, which are the chief's. The network's variables were made in their scope; only the chief's ends
            with the best weights.

    Returns:
        The validation metrics of the chosen weights (empty without `validate`).

    Raises:
        KeyboardInterrupt: `Terminated` for SIGTERM: once the step is done and saved; `WorkerLost` without saving.
        Refused: if a loss or a weight is not a number, memory is short, or something cannot be written.
    """
    progress = progress or Silent()
    checkpoints, recorder = Checkpoints(folder / "checkpoints"), Recorder(folder, writer)
    monitor = Monitor(network, data, monitored_attack)
    settings = dict(precision=precision, jit=jit, balanced=balanced, micro_batch=micro_batch, workers=workers)
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
    training = _Training(network, runners, data, checkpoints, recorder, monitor, validate, patience, progress)
    resumed = tuple(workers.of_chief(Message(*resumed or ())))
    if resumed[0]:
        training.restore(*resumed)
    elif reused:
        training.reuse(*reused)
    progress.plan(sum(leg.runner.work_per_epoch for leg in training.legs[training.course.leg :]))
    with held_signals() as asked:
        training.run(states, save_every, workers.agreed(asked))
    if training.course.best and workers.chief:
        checkpoints.load(network, "best")
    freeze(network, phases[-1])
    return training.course.best


class _Training:
    """A training that is going on."""

    def __init__(self, network, runners, data: ImageData, checkpoints, recorder, monitor, validate, patience, progress):
        self.network, self.runners, self.data = network, runners, data
        self.checkpoints, self.recorder, self.monitor = checkpoints, recorder, monitor
        self.validate, self.patience, self.progress = validate, patience, progress
        self.legs, self.course = list(_legs(runners)), Course()

    def run(self, states: States | None, save_every: float, asked: Callable[[], type[BaseException] | None]) -> None:
        """All legs that are left; ends with the last weights in the network."""
        saved_at = time.monotonic()

        def between_steps(*, due: bool = False) -> None:
            nonlocal saved_at
            stop = asked()
            if states and (due or stop or time.monotonic() - saved_at >= save_every):
                states.save(*self.state())
                saved_at = time.monotonic()
            if stop:
                raise stop

        def after_step(done: int) -> None:
            self.check_finite(done, states)
            self.course.step = done
            if done < leg.runner.batches.steps_per_epoch:
                between_steps()

        for leg in self.legs[self.course.leg :]:
            if not self.course.step:
                self.begin(leg)
            metrics = leg.runner.run_epoch(self.progress, leg.label, resumed=self.course.step, after_step=after_step)
            better = self.finish(leg, metrics)
            ends = self.ends_early(leg) or leg is self.legs[-1]
            self.course.leg, self.course.step = len(self.legs) if ends else self.course.leg + 1, 0
            between_steps(due=better or ends)
            if ends:
                break
        self.checkpoints.save(self.network, "last")

    def begin(self, leg: Leg) -> None:
        for runner in leg.begins:
            runner.begin()
        if self.host(leg) in leg.begins:
            self.course.best_monitored, self.course.warned = 0.0, []

    def finish(self, leg: Leg, metrics: dict[str, float]) -> bool:
        """What follows an epoch: monitor, warnings, validation, records; whether it was the best so far."""
        host, phase, better = self.host(leg), leg.runner.phase, False
        if leg.runner is not host:
            self.recorder.epoch(phase.name, leg.runner.epochs_run, metrics)
            return False
        monitored, similarity, grid = self.monitor()
        metrics.update(monitored)
        self.warn(leg, metrics, similarity)
        if self.validate and host is self.runners[-1][0]:
            validation = self.validate()
            metrics.update({f"validation_{name}": value for name, value in validation.items()})
            best = self.course.best
            better = not best or validation["robust_accuracy"] > best["robust_accuracy"]
            if better:
                self.course.best = {**validation, "epoch": leg.epoch}
                self.checkpoints.save(self.network, "best")
        self.recorder.epoch(phase.name, leg.epoch, metrics)
        self.recorder.pictures(phase.name, grid)
        if self.ends_early(leg):
            self.progress.say(
                f"early stopping after epoch {leg.epoch} of {phase.name}: none in {self.patience} was more robust than "
                f"epoch {self.course.best['epoch']}"
            )
        if leg.epoch == phase.epochs or self.ends_early(leg):
            self.checkpoints.save(self.network, checkpoint_name(leg.number, phase))
        return better

    def ends_early(self, leg: Leg) -> bool:
        """Whether this epoch's validation, and those just before, let the training end before its last epoch."""
        if not (self.patience and self.course.best) or leg.runner is not self.runners[-1][0]:
            return False
        return leg.epoch < leg.runner.phase.epochs and leg.epoch - self.course.best["epoch"] >= self.patience

    def warn(self, leg: Leg, metrics: dict[str, float], similarity: float) -> None:
        """Say what has gone wrong with the phase, each of it once."""
        best, attacked = self.course.best_monitored, metrics.get("zero_gradients", 0.0)
        self.course.best_monitored = max(best, metrics["monitor_adversarial_accuracy"])
        raised = {}
        if overfits_catastrophically(metrics, best):
            raised["catastrophic overfitting"] = (
                f"{metrics['accuracy_adversarial']:.0%} under the training's attack, "
                f"{metrics['monitor_adversarial_accuracy']:.0%} under the monitored one, which left {best:.0%} before; "
                "take more steps, smaller ones, or fewer epochs"
            )
        if attacked > DEAD:
            raised["dead attack"] = (
                f"{attacked:.0%} of the pixel gradients that it met are zero, so it moves little; choose another loss "
                "of the attack, such as logit_margin, or a smaller learning rate"
            )
        if is_contrastive(leg.runner.phase) and similarity > COLLAPSED:
            raised["collapsed embeddings"] = (
                f"the projections of the monitored images have a mean cosine of {similarity:.4f}; take a smaller "
                "learning rate, another temperature, or larger batches"
            )
        for name, text in raised.items():
            if name not in self.course.warned:
                self.course.warned.append(name)
                self.progress.say(f"{name} in epoch {leg.epoch} of {leg.runner.phase.name}: {text}")

    def check_finite(self, step: int, states: States | None) -> None:
        """Stop at a step after which a loss or a weight is not a number.

        Raises:
            Refused: naming it, the step and its images, and what to do.
        """
        leg = self.legs[self.course.leg]
        trainer, batches = leg.runner.trainer, leg.runner.batches
        if trainer.finite.numpy():
            return
        broken = [name for name, mean in trainer.means.items() if not math.isfinite(float(mean.result()))]
        images = self.data.train.held.indices[batches.indices(step - 1)]
        named = f", on the training images {', '.join(map(str, images[:8]))} and {max(0, len(images) - 8)} more"
        kept = "a state before it is kept" if states and states.numbers() else "no state was saved before it"
        raise Refused(
            f"{' and '.join(broken) or 'weights'} not finite after step {step} of epoch {leg.runner.epochs_run + 1} of "
            f"{leg.runner.phase.name}{named if len(images) else ''}; {kept}; the same command ends there again: "
            f"give a smaller learning rate (now {leg.runner.learning_rate:g}), or look at those images"
        )

    def host(self, leg: Leg) -> PhaseRunner:
        """The runner of the leg's phase, which a refresh refreshes."""
        return self.runners[leg.number - 1][0]

    def variables(self) -> dict[str, object]:
        """By name: of the network, and of the current phase's runners."""
        named = {f"network {index}": variable for index, variable in enumerate(self.network.variables)}
        for number, runner in enumerate(self.current()):
            named |= {f"runner {number} {index}": variable for index, variable in enumerate(runner.variables())}
        return named

    def current(self) -> list[PhaseRunner]:
        """The runners of the phase of the next leg, and of its refreshes; none at the end."""
        for leg in self.legs[self.course.leg : self.course.leg + 1]:
            runner, refreshes = self.runners[leg.number - 1]
            return [runner, *refreshes]
        return []

    def state(self) -> State:
        """All that the rest of the training depends on."""
        self.course.recorded = self.recorder.step
        self.recorder.flush()
        runners = [
            {"epochs run": runner.epochs_run, "average shown": bool(runner.average and runner.average.shown)}
            for runner in self.current()
        ]
        arrays = {name: variable.numpy() for name, variable in self.variables().items()}
        return {"where": self.where(), "course": dataclasses.asdict(self.course), "runners": runners}, arrays

    def restore(self, header: dict, arrays: dict[str, np.ndarray]) -> None:
        """Go on from a state."""
        self.course = Course(**header["course"])
        self.recorder.step = self.course.recorded
        for runner, told in zip(self.current(), header["runners"], strict=True):
            runner.epochs_run = told["epochs run"]
            if runner.average:
                runner.average.shown = told["average shown"]
        variables = self.variables()
        for name in variables.keys() | arrays.keys():
            variables[name].assign(arrays[name])
        self.progress.say(f"resuming {self.where()}")

    def reuse(self, run: Path, phases: int) -> None:
        """Begin where another run had ended so many phases: with its weights, and its metrics as far as that.

        Raises:
            Refused: if a checkpoint is missing or does not fit.
        """
        done = [leg for leg in self.legs if leg.number <= phases]
        checkpoints = Checkpoints(run / "checkpoints")
        for leg in done:
            if leg.runner is self.host(leg) and leg.epoch == leg.runner.phase.epochs:
                name = checkpoint_name(leg.number, leg.runner.phase)
                checkpoints.load(self.network, name)
                self.checkpoints.save(self.network, name)
        with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
            for line in itertools.islice(lines, len(done)):
                told = {name: math.nan if value is None else value for name, value in json.loads(line).items()}
                told.pop("step")
                self.recorder.epoch(told.pop("phase"), told.pop("epoch"), told)
        self.course.leg = len(done)
        self.progress.say(f"up to {done[-1].label} as in {run}")

    def where(self) -> str:
        """The position in words."""
        if self.course.leg == len(self.legs):
            return "after the last epoch"
        return f"{self.legs[self.course.leg].label}, step {self.course.step}"
