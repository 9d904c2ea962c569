"""Train a network by a method's phases: freezing, refreshes, validation, checkpoints, snapshots and records.

A training is a sequence of scheduled epochs, each of a phase or of one of its refreshes. Between two steps the rest of
the training depends on a `TrainingPosition`, on the network, and on the variables of the current phase's runners: these
make a snapshot.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_rcl.data.sources import ImageData
from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.distributed import Message
from keras_rcl.runtime.signals import held_signals
from keras_rcl.storage.checkpoints import Checkpoints
from keras_rcl.storage.kinds import METRICS
from keras_rcl.storage.snapshots import Snapshot
from keras_rcl.training.monitor import Monitor, epoch_warnings
from keras_rcl.training.phase_runner import PhaseRunner, freeze
from keras_rcl.training.recorder import Recorder
from keras_rcl.training.run_context import RunContext, Validation
from keras_rcl.training.schedule import PhaseWithRefreshes, ScheduledEpoch, TrainingPosition, schedule
from keras_rcl.vocabulary.compute import DEFAULT_COMPUTE, ComputeSettings
from keras_rcl.vocabulary.phase import Phase


def checkpoint_name(number: int, phase: Phase) -> str:
    """The name of the checkpoint at the end of a phase; phases are numbered from 1."""
    return f"{number}-{phase.name.replace(' ', '-')}"


def run_phases(
    network: keras.Model,
    phases: Sequence[Phase],
    data: ImageData,
    context: RunContext,
    validation: Validation,
    *,
    seed: int = 0,
    compute: ComputeSettings = DEFAULT_COMPUTE,
    balanced: bool = False,
) -> dict[str, float]:
    """Train a network by a method's phases.

    Args:
        network: The two-headed network. It is trained in place and ends with the chosen weights: those of the best
            epoch if `validation` evaluates it, else the last. Its variables were created in the scope of the workers;
            with several workers only the network of the chief ends with the best weights.
        phases: Run in order; the refreshes of a phase run before each of its epochs.
        data: The network is trained on its training split.
        context: Where the training runs.
        validation: How the network is measured after each epoch.
        seed: Of batches, augmentations, attacks and reinitialized parts.
        compute: Precision, compilation and memory.
        balanced: Every class appears equally often in each batch.

    Returns:
        The validation metrics of the chosen weights (empty without an evaluation).

    Raises:
        KeyboardInterrupt: `Terminated` if SIGTERM arrived, once the step is done and stored; `WorkerLost` without
            storing.
        InvalidInputError: If a loss or a weight is not finite, memory does not suffice, or a file cannot be written.
    """
    runners = []
    for index, phase in enumerate(phases):
        settings: dict[str, Any] = dict(compute=compute, balanced=balanced, workers=context.workers)
        refreshes = tuple(
            PhaseRunner(
                network,
                inner,
                data,
                epochs=inner.epochs * (1 if inner.fresh_optimizer else phase.epochs),
                seed=(seed, index, 1 + number),
                **settings,
            )
            for number, inner in enumerate(phase.refresh)
        )
        runner = PhaseRunner(network, phase, data, epochs=phase.epochs, seed=(seed, index, 0), **settings)
        runners.append(PhaseWithRefreshes(runner, refreshes))
    return _Training(network, runners, data, context, validation).run()


class _Training:
    """One training: its schedule, its position, and what follows each step and each epoch."""

    def __init__(
        self,
        network: keras.Model,
        phases: Sequence[PhaseWithRefreshes],
        data: ImageData,
        context: RunContext,
        validation: Validation,
    ):
        self.network, self.phases, self.data = network, phases, data
        self.context, self.validation = context, validation
        self.checkpoints = Checkpoints(context.folder / "checkpoints")
        self.recorder = Recorder(context.folder, context.writer)
        self.monitor = Monitor(network, data, validation.monitored_attack, validation.outputs, validation.attacked)
        self.epochs, self.position = list(schedule(phases)), TrainingPosition()
        self.unwritten_best: list[np.ndarray] | None = None

    def run(self) -> dict[str, float]:
        """Run the whole training or what is left of it; returns the validation metrics of the chosen weights."""
        context = self.context
        header, arrays = context.workers.broadcast(Message(*context.resumed or ()))
        if header:
            self.restore(header, arrays)
        elif context.reused:
            self.reuse(*context.reused)
        context.progress.plan(sum(epoch.runner.cost_per_epoch for epoch in self.epochs[self.position.done :]))
        with held_signals() as interrupt:
            try:
                self.run_epochs(context.workers.any_interrupted(interrupt))
            finally:
                self.write_best()
        if self.position.best and context.workers.chief:
            self.checkpoints.load(self.network, "best")
        freeze(self.network, self.phases[-1].runner.phase)
        return self.position.best

    def run_epochs(self, interrupt: Callable[[], type[BaseException] | None]) -> None:
        """Run all epochs that are left; ends with the last weights in the network.

        Args:
            interrupt: Returns the exception that a signal asks for, or None.
        """
        snapshots, saved_at = self.context.snapshots, time.monotonic()

        def between_steps(*, due: bool = False) -> None:
            nonlocal saved_at
            stop = interrupt()
            if snapshots and (due or stop or time.monotonic() - saved_at >= self.context.save_every):
                self.write_best()
                snapshots.save(*self.snapshot())
                saved_at = time.monotonic()
            if stop:
                raise stop

        def after_step(done: int) -> None:
            self.check_finite(epoch, done)
            self.position.step = done
            if done < epoch.runner.batches.steps_per_epoch:
                between_steps()

        for epoch in self.epochs[self.position.done :]:
            resumed = self.position.step
            if not resumed:
                self.begin(epoch)
            metrics = epoch.runner.run_epoch(self.context.progress, epoch.label, resumed=resumed, after_step=after_step)
            self.finish(epoch, metrics)
            ends = self.ends_early(epoch) or epoch is self.epochs[-1]
            self.position.done, self.position.step = len(self.epochs) if ends else self.position.done + 1, 0
            between_steps(due=ends)
            if ends:
                break
        self.checkpoints.save(self.network, "last")

    # One epoch

    def begin(self, epoch: ScheduledEpoch) -> None:
        """Begin the phases that start with this epoch."""
        for runner in epoch.begins:
            runner.begin()
        if self.host(epoch) in epoch.begins:
            self.position.best_monitored, self.position.warned = 0.0, []

    def finish(self, epoch: ScheduledEpoch, metrics: dict[str, float]) -> None:
        """Monitor, warn, validate and record after an epoch."""
        phase = epoch.runner.phase
        if epoch.runner is not self.host(epoch):
            self.recorder.epoch(phase.name, epoch.runner.epochs_run, metrics)
            return
        monitored, similarity, grid = self.monitor()
        metrics.update(monitored)
        self.warn(epoch, metrics, similarity)
        self.validate(epoch, metrics)
        self.recorder.epoch(phase.name, epoch.epoch, metrics)
        self.recorder.pictures(phase.name, grid)
        if "validation_robust_accuracy" in metrics:
            self.context.after_validation()
        ends_early = self.ends_early(epoch)
        if ends_early:
            self.context.progress.say(
                f"early stopping after epoch {epoch.epoch} of {phase.name}: none in {self.validation.patience} was "
                f"more robust than epoch {self.position.best['epoch']}"
            )
        if epoch.epoch == phase.epochs or ends_early:
            self.checkpoints.save(self.network, checkpoint_name(epoch.number, phase))

    def warn(self, epoch: ScheduledEpoch, metrics: dict[str, float], similarity: float) -> None:
        """Report what went wrong in the phase, each kind of failure once."""
        best = self.position.best_monitored
        self.position.best_monitored = max(best, metrics["monitor_adversarial_accuracy"])
        for name, text in epoch_warnings(epoch.runner.phase, metrics, best, similarity).items():
            if name not in self.position.warned:
                self.position.warned.append(name)
                self.context.progress.say(f"{name} in epoch {epoch.epoch} of {epoch.runner.phase.name}: {text}")

    def validate(self, epoch: ScheduledEpoch, metrics: dict[str, float]) -> None:
        """Evaluate an epoch of the last phase, and keep its weights in memory if it is the best so far."""
        if not self.validation.evaluate or epoch.runner is not self.phases[-1].runner:
            return
        measured = self.validation.evaluate()
        metrics.update({f"validation_{name}": value for name, value in measured.items()})
        best = self.position.best
        if not best or measured["robust_accuracy"] > best["robust_accuracy"]:
            self.position.best = {**measured, "epoch": epoch.epoch}
            self.unwritten_best = self.network.get_weights()

    def write_best(self) -> None:
        """Write the best weights if they are in memory only: before a snapshot, which refers to them, and at the end.

        Writing them after each epoch that is better would take longer than such an epoch on a small data set.
        """
        if self.unwritten_best is None:
            return
        current = self.network.get_weights()
        self.network.set_weights(self.unwritten_best)
        self.checkpoints.save(self.network, "best")
        self.network.set_weights(current)
        self.unwritten_best = None

    def ends_early(self, epoch: ScheduledEpoch) -> bool:
        """Whether the validation of this epoch and of those just before ends the training before its last epoch."""
        best, patience = self.position.best, self.validation.patience
        if not (patience and best) or epoch.runner is not self.phases[-1].runner:
            return False
        return epoch.epoch < epoch.runner.phase.epochs and epoch.epoch - best["epoch"] >= patience

    def host(self, epoch: ScheduledEpoch) -> PhaseRunner:
        """The runner of the phase that the epoch belongs to; that of a refresh is another."""
        return self.phases[epoch.number - 1].runner

    def check_finite(self, epoch: ScheduledEpoch, step: int) -> None:
        """Stop at a step after which a loss or a weight is not finite.

        Raises:
            InvalidInputError: With the loss, the step, its images, and what to do.
        """
        runner, snapshots = epoch.runner, self.context.snapshots
        if runner.trainer.finite.numpy():
            return
        broken = [name for name, mean in runner.trainer.means.items() if not math.isfinite(float(mean.result()))]
        images = self.data.train.held.indices[runner.batches.indices(step - 1)]
        named = f", on the training images {', '.join(map(str, images[:8]))} and {max(0, len(images) - 8)} more"
        stored = snapshots and snapshots.numbers()
        kept = "a snapshot before it is kept" if stored else "no snapshot was stored before it"
        raise InvalidInputError(
            f"{' and '.join(broken) or 'weights'} not finite after step {step} of epoch {runner.epochs_run + 1} of "
            f"{runner.phase.name}{named if len(images) else ''}; {kept}, and the same command stops there again; "
            f"hint: give a smaller learning rate (now {runner.learning_rate:g}), or look at those images"
        )

    # Snapshots

    def current(self) -> list[PhaseRunner]:
        """The runners of the phase of the next epoch and of its refreshes; none at the end."""
        for epoch in self.epochs[self.position.done : self.position.done + 1]:
            runner, refreshes = self.phases[epoch.number - 1]
            return [runner, *refreshes]
        return []

    def variables(self) -> dict[str, Any]:
        """The variables of the network and of the current phase's runners, by name."""
        named = {f"network {index}": variable for index, variable in enumerate(self.network.variables)}
        for number, runner in enumerate(self.current()):
            named |= {f"runner {number} {index}": variable for index, variable in enumerate(runner.variables())}
        return named

    def snapshot(self) -> Snapshot:
        """Everything that the rest of the training depends on."""
        self.position.recorded = self.recorder.step
        self.recorder.flush()
        runners = [
            {"epochs run": runner.epochs_run, "average shown": bool(runner.average and runner.average.shown)}
            for runner in self.current()
        ]
        arrays = {name: variable.numpy() for name, variable in self.variables().items()}
        return {"where": self.where(), "course": self.position.to_json(), "runners": runners}, arrays

    def restore(self, header: dict, arrays: dict[str, np.ndarray]) -> None:
        """Resume from a snapshot."""
        self.position = TrainingPosition.from_json(header["course"])
        self.recorder.step = self.position.recorded
        for runner, stored in zip(self.current(), header["runners"], strict=True):
            runner.epochs_run = stored["epochs run"]
            if runner.average:
                runner.average.shown = stored["average shown"]
        variables = self.variables()
        for name in variables.keys() | arrays.keys():
            variables[name].assign(arrays[name])
        self.context.progress.say(f"resuming {self.where()}")

    def reuse(self, run: Path, phases: int) -> None:
        """Begin where another run ended its first phases: with its weights and its metrics up to there.

        Raises:
            InvalidInputError: If a checkpoint is missing or does not fit.
        """
        done = [epoch for epoch in self.epochs if epoch.number <= phases]
        checkpoints = Checkpoints(run / "checkpoints")
        for epoch in done:
            if epoch.runner is self.host(epoch) and epoch.epoch == epoch.runner.phase.epochs:
                name = checkpoint_name(epoch.number, epoch.runner.phase)
                checkpoints.load(self.network, name)
                self.checkpoints.save(self.network, name)
        lines = METRICS.read_lines(run / "metrics.jsonl")
        if len(lines) < len(done):
            raise InvalidInputError(
                f"{run}/metrics.jsonl has {len(lines)} lines, and {len(done)} epochs are to be reused; "
                f"hint: {METRICS.hint}"
            )
        for line in lines[: len(done)]:
            metrics: dict[str, Any] = {name: math.nan if value is None else value for name, value in line.items()}
            metrics.pop("step")
            self.recorder.epoch(metrics.pop("phase"), metrics.pop("epoch"), metrics)
        self.position.done = len(done)
        self.context.progress.say(f"up to {done[-1].label} as in {run}")

    def where(self) -> str:
        """The position in words."""
        if self.position.done == len(self.epochs):
            return "after the last epoch"
        return f"{self.epochs[self.position.done].label}, step {self.position.step}"
