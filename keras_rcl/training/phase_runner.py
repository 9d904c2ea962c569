"""One phase of a training: its optimizer, its batches and its trainer, compiled once."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.data.pipeline import Batches
from keras_rcl.data.sources import ImageData
from keras_rcl.data.splits import StreamedSplit
from keras_rcl.errors import InvalidInputError
from keras_rcl.networks.two_headed import initialize_for_intervals, layers_of, parts, reinitialize
from keras_rcl.runtime.distributed import ALONE, Workers
from keras_rcl.runtime.progress import Progress
from keras_rcl.training.fixed_features import FixedFeatures
from keras_rcl.training.loss_terms import phase_collapse_value
from keras_rcl.training.optimizers import make_optimizer
from keras_rcl.training.refreshed_examples import RefreshedExamples
from keras_rcl.training.robust_trainer import RobustTrainer
from keras_rcl.training.steps.replicated import ReplicatedStep
from keras_rcl.training.warm_starts import WarmStarts
from keras_rcl.vocabulary.compute import DEFAULT_COMPUTE, ComputeSettings
from keras_rcl.vocabulary.phase import Adversarial, Phase

AfterStep = Callable[[int], None]
"""Called after each step with the number of steps of the epoch that are done."""


def freeze(network: keras.Model, phase: Phase) -> None:
    """Make only the parts trainable that the phase trains.

    The BatchNorm statistics of the other parts do not move either, unless the phase says so.
    """
    for name, part in parts(network).items():
        for layer in (part, *part.layers, *layers_of(part)):
            layer.trainable = False  # Keras skips a value that equals the current one, and the variables with it
            layer.trainable = name in phase.trains
            normalizes = isinstance(layer, keras.layers.BatchNormalization)
            if normalizes and name not in phase.trains and not phase.frozen_statistics:
                layer.trainable = True
                layer.gamma.trainable = layer.beta.trainable = False


class PhaseRunner:
    """One phase, compiled once: its trainer, optimizer and batches.

    Args:
        network: The two-headed network, trained in place.
        phase: What is trained.
        data: The phase is trained on its training split.
        epochs: How many epochs the schedule of the optimizer spans.
        seed: Of batches, attacks and reinitialized parts.
        compute: Precision, compilation and memory.
        balanced: Every class appears equally often in each batch.
        workers: The processes that train together.

    Attributes:
        epochs_run: How many epochs were run.

    Raises:
        InvalidInputError: If the phase cannot be trained with these settings on these workers.
    """

    def __init__(
        self,
        network: keras.Model,
        phase: Phase,
        data: ImageData,
        *,
        epochs: int,
        seed: tuple[int, ...],
        compute: ComputeSettings = DEFAULT_COMPUTE,
        balanced: bool = False,
        workers: Workers = ALONE,
    ):
        self.network, self.phase, self.seed = network, phase, seed
        self.epochs_run = 0
        self._build_batches(data, balanced, workers)
        self._build_trainer(compute)
        self.refreshed = self._refreshed_examples(data)
        freeze(network, phase)
        with workers.scope():
            steps = self.batches.steps_per_epoch
            optimizer = make_optimizer(
                phase.optimizer, (phase.schedule_epochs or epochs) * steps, phase.schedule_after * steps
            )
        self.trainer.compile(optimizer=optimizer, jit_compile=compute.jit)
        self.optimizer = self.trainer.optimizer  # Keras wraps it if the loss is to be scaled
        with workers.scope():
            self.optimizer.build(self.trainer.trainable_variables)
        self.replicated = None
        if workers.replicas > 1:
            _check_replicas(workers.replicas, self.batches.batch_size, phase, compute)
            self.replicated = ReplicatedStep(self.trainer, workers)
        self._fresh = [tf.identity(variable.value) for variable in self.optimizer.variables]

    def _build_batches(self, data: ImageData, balanced: bool, workers: Workers) -> None:
        """The batches, and what is kept for each training image: features, warm starts."""
        phase, held = self.phase, None if isinstance(data.train, StreamedSplit) else data.train
        if held is None and phase.warm_views:
            raise InvalidInputError(
                "warm_steps keep the last attack on every image in memory, and dataset.streamed keeps no image; "
                "leave out one"
            )
        fixed = phase.reads_fixed_features and workers.replicas == 1
        self.features = FixedFeatures(self.network, held) if held and fixed else None
        self.warm_starts = {
            place: WarmStarts(len(held.labels), data.image_shape, view.attack.epsilon)
            for place, view in enumerate(phase.views)
            if held and place in phase.warm_views and isinstance(view, Adversarial)
        }
        self.batches = Batches(
            data.train,
            () if self.features else phase.views,
            phase.batch_size,
            self.seed,
            augmentation=phase.augmentation,
            balanced=balanced,
            indexed=bool(self.features or self.warm_starts),
            share=(workers.index, workers.count),
        )

    def _build_trainer(self, compute: ComputeSettings) -> None:
        """The trainer, not yet compiled."""
        size = None if self.features else _fitting(compute.micro_batch, self.batches.batch_size, self.phase)
        self.trainer = RobustTrainer(
            self.network,
            self.phase,
            dataclasses.replace(compute, micro_batch=size),
            steps_per_epoch=self.batches.steps_per_epoch,
            warm_starts=self.warm_starts,
            features=self.features and self.features.values,
        )
        self.average, self.clean_batchnorm = self.trainer.average, self.trainer.clean_batchnorm

    def _refreshed_examples(self, data: ImageData) -> list[RefreshedExamples]:
        """The examples that the batches read and that are refreshed during the phase."""
        return [
            RefreshedExamples(
                self.network,
                attack,
                kept,
                data.train.held,
                self.trainer.compute.micro_batch or self.batches.batch_size,
                seed=_entropy(*self.seed) % 2**31,
                dtype=self.trainer.compute.attack_dtype,
            )
            for attack, kept in self.batches.refreshed.items()
        ]

    def begin(self) -> None:
        """Begin the phase: reinitialize parts, reset the optimizer if the phase asks for it.

        A refresh begins before each of its runs.
        """
        for part in self.phase.reinitialize:
            reinitialize(parts(self.network)[part], seed=_entropy(*self.seed, self.epochs_run))
        if self.phase.interval_initialization and "encoder" in self.phase.trains:
            initialize_for_intervals(parts(self.network)["encoder"], seed=_entropy(*self.seed, self.epochs_run))
        for starts in self.warm_starts.values():
            starts.warm.assign(False)
        if self.features:
            self.features.clear()
        if self.phase.fresh_optimizer:
            for variable, value in zip(self.optimizer.variables, self._fresh, strict=True):
                variable.assign(value)
        if self.average:
            self.average.begin()
        if self.clean_batchnorm:
            self.clean_batchnorm.begin()

    def run_epoch(
        self, progress: Progress, label: str, *, resumed: int = 0, after_step: AfterStep | None = None
    ) -> dict[str, float]:
        """Run one pass over the training images.

        Afterwards the network has its averaged weights if an average is kept.

        Args:
            progress: Shows progress.
            label: Of the progress bar.
            resumed: How many steps of the epoch are done; the variables, metrics included, are as after the last.
            after_step: Called with the number of steps done.

        Returns:
            The means of the metrics.

        Raises:
            InvalidInputError: If memory does not suffice, or an image cannot be read.
        """
        freeze(self.network, self.phase)
        if self.average:
            self.average.show(False)
        if self.features:
            self.features.fill()
        started = time.perf_counter()
        try:
            with self.batches.reading():
                metrics = self._run_intervals(progress, label, resumed, after_step)
        except tf.errors.ResourceExhaustedError:
            raise InvalidInputError(self._out_of_memory()) from None
        except tf.errors.DataLossError as error:
            reason = error.message.splitlines()[0]
            raise InvalidInputError(
                f"the training images cannot be read: {reason}; hint: prepare the data set again"
            ) from None
        seconds = time.perf_counter() - started
        if self.average:
            self.average.show(True)
        self.epochs_run += 1
        for starts in self.warm_starts.values():
            starts.warm.assign(True)
        images = (self.batches.steps_per_epoch - resumed) * self.batches.batch_size
        for kept in self.refreshed:
            metrics["zero_gradients"] = kept.zero_gradients
        metrics["learning_rate"] = self.learning_rate
        metrics["images_per_second"] = images / seconds
        collapse = phase_collapse_value(self.phase, self.batches.batch_size)
        if not math.isnan(collapse):
            metrics["collapse_value"] = collapse
        progress.finish(f"loss {metrics['loss']:.3f}")
        return metrics

    def _run_intervals(
        self, progress: Progress, label: str, resumed: int, after_step: AfterStep | None
    ) -> dict[str, float]:
        """Run the steps that are left, with the refreshed examples made between them; returns the metrics' means."""
        total, done, metrics = self.batches.steps_per_epoch, resumed, {}
        while done < total:
            step = self.epochs_run * total + done
            made = [kept.provide(step, progress, label) for kept in self.refreshed]
            if any(made) or done == resumed:
                progress.start(label, total, work=self.cost_per_epoch)
            end = min([total, *(done + kept.steps_left(step) for kept in self.refreshed)])
            self.batches.start_epoch(self.epochs_run, done)
            metrics = self._run_steps(end - done, done, progress, after_step)
            done = end
        return metrics

    def _run_steps(
        self, steps: int, resumed: int, progress: Progress, after_step: AfterStep | None
    ) -> dict[str, float]:
        """Run some steps of an epoch; returns the metrics' means."""
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

    def _out_of_memory(self) -> str:
        size = self.batches.batch_size
        smaller = f"--micro-batch {_divisor(size, (self.trainer.compute.micro_batch or size) // 2)}"
        return (
            f"out of memory in {self.phase.name}: batches of {size} images, each in {len(self.phase.views)} views; "
            f"hint: give {'a smaller batch_size' if self.replicated else smaller}"
        )

    def variables(self) -> list:
        """Everything that changes while the phase runs, apart from the network and `epochs_run`."""
        kept = [one.variables for one in (self.average, self.clean_batchnorm, *self.warm_starts.values()) if one]
        kept += [one.weights for one in self.refreshed]
        return [*self.optimizer.variables, *self.trainer.metrics_variables, *itertools.chain(*kept)]

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(tf.convert_to_tensor(self.optimizer.learning_rate))

    @property
    def cost_per_epoch(self) -> float:
        """The forward passes that an epoch costs, roughly; for the share of a progress bar."""
        steps = self.batches.steps_per_epoch
        return steps * (cost_per_batch(self.phase) + sum(kept.cost / kept.attack.every for kept in self.refreshed))


def _entropy(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def cost_per_batch(phase: Phase) -> float:
    """The forward passes that a batch costs, roughly."""
    return phase.batch_size * phase.cost


def _fitting(micro_batch: int | None, batch_size: int, phase: Phase) -> int | None:
    """The micro-batch if it is smaller than the batch, else None.

    Raises:
        InvalidInputError: If it does not divide the batch, or the phase needs the whole batch at once.
    """
    if micro_batch is None or micro_batch >= batch_size:
        return None
    if batch_size % micro_batch:
        raise InvalidInputError(
            f"micro-batches of {micro_batch} images do not fill {phase.name}'s batches of {batch_size}; "
            f"hint: give --micro-batch {_divisor(batch_size, micro_batch)}"
        )
    for needs in phase.of_whole_batch:
        raise InvalidInputError(
            f"{phase.name} computes its {needs} from the whole batch; hint: leave out --micro-batch, or {needs}"
        )
    return micro_batch


def _check_replicas(replicas: int, batch_size: int, phase: Phase, compute: ComputeSettings) -> None:
    """Check that a phase can be trained on several replicas.

    Raises:
        InvalidInputError: If its batches do not divide among them, or it needs a whole batch in one place.
    """
    if batch_size % replicas:
        fitting = batch_size // replicas * replicas
        hint = f"--set method.batch_size={fitting}" if fitting else "fewer of them"
        raise InvalidInputError(
            f"{phase.name}'s batches of {batch_size} do not divide among {replicas} replicas; hint: give {hint}"
        )
    needs = [
        *phase.of_whole_batch,
        phase.warm_views and "warm_steps",
        any(isinstance(view, Adversarial) and view.attack.name == "refreshed" for view in phase.views) and "refreshed",
        compute.micro_batch and "--micro-batch",
        compute.jit and "--jit",
    ]
    for what in filter(None, needs):
        raise InvalidInputError(
            f"{phase.name} has {what}, which is for one replica, and there are {replicas}; hint: leave out either"
        )


def _divisor(number: int, largest: int) -> int:
    """The largest divisor of a number that is at most `largest`; 1 if that is 0."""
    return max(size for size in range(1, max(1, largest) + 1) if number % size == 0)


class _Steps(keras.callbacks.Callback):
    """Reports steps, and restores the metrics of the steps that were done before, which Keras resets."""

    def __init__(self, progress: Progress, resumed: int, after_step: AfterStep | None):
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
