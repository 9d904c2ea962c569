"""The engine: freezes parts, fits each phase, runs its refreshes, keeps checkpoints, writes what TensorBoard shows.

A training is a sequence of scheduled epochs, each of a phase or of one of its refreshes. Between two steps the rest of
the training depends on a `TrainingPosition`, on the network, and on the variables of the current phase's runners: these
make a snapshot.
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

from keras_rcl.data.sources import ImageData
from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.distributed import ALONE, Message, Workers
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.runtime.signals import held_signals
from keras_rcl.storage.checkpoints import Checkpoints
from keras_rcl.storage.snapshots import Snapshot, SnapshotStore
from keras_rcl.training.loss_terms import is_contrastive
from keras_rcl.training.monitor import COLLAPSED, DEAD, Monitor, overfits_catastrophically
from keras_rcl.training.phase_runner import PhaseRunner, freeze
from keras_rcl.training.tensorboard import TensorBoardWriter
from keras_rcl.vocabulary.attack import Attack
from keras_rcl.vocabulary.phase import Phase


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


def checkpoint_name(number: int, phase: Phase) -> str:
    """Of the weights at a phase's end; phases are numbered from 1."""
    return f"{number}-{phase.name.replace(' ', '-')}"


class ScheduledEpoch(NamedTuple):
    """One epoch of a phase or of one of its refreshes.

    number: of the phase, from 1. epoch: of the phase, from 1. begins: the runners that start just before.
    """

    number: int
    epoch: int
    runner: PhaseRunner
    begins: tuple[PhaseRunner, ...]
    label: str


def _legs(runners: Sequence[tuple[PhaseRunner, Sequence[PhaseRunner]]]) -> Iterator[ScheduledEpoch]:
    """A training in order, of phases with their refreshes. A phase of no epochs is left out."""
    for number, (runner, refreshes) in enumerate(runners, start=1):
        begins: tuple[PhaseRunner, ...] = (runner,)
        for epoch in range(1, runner.phase.epochs + 1):
            label = f"{number}/{len(runners)} {runner.phase.name}  epoch {epoch}/{runner.phase.epochs}"
            for inner in refreshes:
                begins += (inner,)
                for inner_epoch in range(1, inner.phase.epochs + 1):
                    inner_label = f"{label}  {inner.phase.name} {inner_epoch}/{inner.phase.epochs}"
                    yield ScheduledEpoch(number, epoch, inner, begins, inner_label)
                    begins = ()
            yield ScheduledEpoch(number, epoch, runner, begins, label)
            begins = ()


@dataclasses.dataclass
class TrainingPosition:
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
    attack_dtype: str = "float32",
    states: SnapshotStore | None = None,
    resumed: Snapshot | None = None,
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
        attack_dtype: what attacks on one output of a float32 network are computed in.
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
        InvalidInputError: if a loss or a weight is not a number, memory is short, or something cannot be written.
    """
    progress = progress or Silent()
    checkpoints, recorder = Checkpoints(folder / "checkpoints"), Recorder(folder, writer)
    monitor = Monitor(network, data, monitored_attack)
    settings = dict(
        precision=precision,
        jit=jit,
        balanced=balanced,
        micro_batch=micro_batch,
        attack_dtype=attack_dtype,
        workers=workers,
    )
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
        self.legs, self.course = list(_legs(runners)), TrainingPosition()

    def run(
        self, states: SnapshotStore | None, save_every: float, asked: Callable[[], type[BaseException] | None]
    ) -> None:
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

    def begin(self, leg: ScheduledEpoch) -> None:
        for runner in leg.begins:
            runner.begin()
        if self.host(leg) in leg.begins:
            self.course.best_monitored, self.course.warned = 0.0, []

    def finish(self, leg: ScheduledEpoch, metrics: dict[str, float]) -> bool:
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

    def ends_early(self, leg: ScheduledEpoch) -> bool:
        """Whether this epoch's validation, and those just before, let the training end before its last epoch."""
        if not (self.patience and self.course.best) or leg.runner is not self.runners[-1][0]:
            return False
        return leg.epoch < leg.runner.phase.epochs and leg.epoch - self.course.best["epoch"] >= self.patience

    def warn(self, leg: ScheduledEpoch, metrics: dict[str, float], similarity: float) -> None:
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

    def check_finite(self, step: int, states: SnapshotStore | None) -> None:
        """Stop at a step after which a loss or a weight is not a number.

        Raises:
            InvalidInputError: naming it, the step and its images, and what to do.
        """
        leg = self.legs[self.course.leg]
        trainer, batches = leg.runner.trainer, leg.runner.batches
        if trainer.finite.numpy():
            return
        broken = [name for name, mean in trainer.means.items() if not math.isfinite(float(mean.result()))]
        images = self.data.train.held.indices[batches.indices(step - 1)]
        named = f", on the training images {', '.join(map(str, images[:8]))} and {max(0, len(images) - 8)} more"
        kept = "a state before it is kept" if states and states.numbers() else "no state was saved before it"
        raise InvalidInputError(
            f"{' and '.join(broken) or 'weights'} not finite after step {step} of epoch {leg.runner.epochs_run + 1} of "
            f"{leg.runner.phase.name}{named if len(images) else ''}; {kept}; the same command ends there again: "
            f"give a smaller learning rate (now {leg.runner.learning_rate:g}), or look at those images"
        )

    def host(self, leg: ScheduledEpoch) -> PhaseRunner:
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

    def state(self) -> Snapshot:
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
        self.course = TrainingPosition(**header["course"])
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
            InvalidInputError: if a checkpoint is missing or does not fit.
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
