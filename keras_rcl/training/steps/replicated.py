"""A training step on several replicas that equals the step of one device on the whole batch.

Each replica passes its own part of the batch and sends the outputs to all others. Each replica then has the outputs of
the whole batch and computes their loss; from its own part of dL / d outputs it computes its share of the gradient:

    dL/dw = sum over replicas of (d outputs / dw)^T (dL / d outputs)

So every anchor of a contrastive loss is compared with every other one, on whichever replica it is, and no gradient
passes through the gather. A tiled loss compares only the anchors of its own replica with all others.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from keras_rcl.networks.two_headed import batch_norms
from keras_rcl.objectives.tiled import RowShards, sharded_rows
from keras_rcl.runtime.distributed import Workers
from keras_rcl.training.loss_terms import outputs_read
from keras_rcl.training.steps.step import Gradients, Outputs, StepInput, StepResult

SUM, MEAN = tf.distribute.ReduceOp.SUM, tf.distribute.ReduceOp.MEAN


class ReplicatedStep:
    """The step of a trainer, compiled once, on all replicas of all workers.

    If BatchNorm is not synchronized, each replica normalizes by its own part of the batch, and the moving statistics
    of all replicas are averaged after each step.

    Args:
        trainer: The `RobustTrainer`; its network and optimizer have a copy of their variables on each replica.
        workers: Have more than one replica.
    """

    def __init__(self, trainer, workers: Workers):
        self._trainer, self._workers, self._strategy = trainer, workers, workers.strategy
        self._read = outputs_read(trainer.phase)
        scales = isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
        self._clip = (trainer.optimizer.inner_optimizer if scales else trainer.optimizer).global_clipnorm
        self._sees_all_gradients = scales or self._clip
        self._step = tf.function(self._on_all, autograph=False)

    def run_epoch(self, dataset: tf.data.Dataset, resumed: int, after_step: Callable[[int], None]) -> dict[str, float]:
        """Run all steps of a data set, as `fit` would; returns the means of the metrics.

        Args:
            dataset: This worker's part of each batch.
            resumed: How many steps of the epoch were done before; the metrics are as after the last of them.
            after_step: Called with the number of steps done.
        """
        if not resumed:
            self._trainer.reset_metrics()
        metrics = {}
        for done, (images, labels, seed) in enumerate(dataset, start=resumed + 1):
            with self._workers.collective_errors():
                metrics = self._step(self._per_replica(images, axis=1), self._per_replica(labels, axis=0), seed)
            after_step(done)
        return {name: float(value) for name, value in metrics.items()}

    def _per_replica(self, rows: tf.Tensor, axis: int):
        """Split an array among the replicas of this worker."""
        count = self._workers.local_replicas
        if count == 1:
            return rows
        parts = tf.split(rows, count, axis=axis)
        return self._strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group % count]
        )

    def _on_all(self, images, labels, seed) -> dict[str, tf.Tensor]:
        """A step of the whole batch; returns the means of the metrics over the epoch so far."""
        self._trainer.traces += 1
        results = self._strategy.run(self._on_one, (images, labels, seed))
        result = tf.nest.map_structure(lambda each: self._strategy.experimental_local_results(each)[0], results)
        return self._trainer.record(result)

    def _on_one(self, images, labels, seed) -> StepResult:
        """One replica's part of the step; returns the result of the whole batch."""
        gradients, result = self._gradients(self._trainer.step_input(images, labels, seed))
        self._trainer.apply(gradients)
        self._average_statistics()
        return result

    def _gradients(self, batch: StepInput) -> tuple[Gradients, StepResult]:
        """This replica's share of the gradients, and the result of the whole batch."""
        trainer = self._trainer
        with tf.GradientTape() as tape:
            outputs = trainer(batch, training=True)
        own = {name: outputs[name] for name in self._read}
        images = batch.labels.shape[0] // len(trainer.kinds)
        beside = {
            "labels": tf.cast(batch.labels, tf.float32)[:, None],
            "zero gradients": tf.fill([tf.shape(batch.labels)[0], 1], batch.zero_gradients),
        }
        gathered = self._gather({**own, **beside})
        labels = tf.cast(gathered.pop("labels")[:, 0], batch.labels.dtype)
        zero_gradients = tf.reduce_mean(gathered.pop("zero gradients"))
        with tf.GradientTape() as loss_tape:
            loss_tape.watch(gathered)
            with sharded_rows(self._row_shards(images)):
                loss, values = trainer.loss_and_values(labels, gathered)
                scaled = trainer.optimizer.scale_loss(loss)
                pulled = loss_tape.gradient(scaled, gathered)
        pulled = {name: rows for name, rows in pulled.items() if rows is not None}
        gradients = tape.gradient(
            [own[name] for name in pulled],
            trainer.trainable_variables,
            output_gradients=[self._own_rows(rows, images) for rows in pulled.values()],
        )
        result = StepResult(labels, gathered, loss, trainer.with_zero_gradients(values, zero_gradients))
        return self._for_optimizer(gradients), result

    def _gather(self, rows: Outputs) -> Outputs:
        """Arrays [V * n, D] of this replica -> [V * N, D] of all replicas, stacked view by view as on one device."""
        packed = tf.concat(list(rows.values()), axis=1)
        stacked = self._all_rows(packed, packed.shape[0] // len(self._trainer.kinds))
        return dict(zip(rows, tf.split(stacked, [array.shape[1] for array in rows.values()], axis=1), strict=True))

    def _row_shards(self, images: int) -> RowShards:
        """The anchors of a loss, divided like the images of which they are views."""
        return RowShards(
            own=lambda rows: self._own_rows(rows, images),
            gather=lambda values: self._all_rows(values[:, None], images)[:, 0],
        )

    def _all_rows(self, rows: tf.Tensor, images: int) -> tf.Tensor:
        """Views of this replica's n images, [V * n, D] -> those of all replicas, [V * N, D].

        They are concatenated and summed over the replicas; the array of each replica is zero where the others' are.
        Every strategy can do that.
        """
        context, replicas = tf.distribute.get_replica_context(), self._workers.replicas
        place = tf.one_hot(context.replica_id_in_sync_group, replicas, dtype=rows.dtype)
        gathered = context.all_reduce(SUM, place[:, None, None] * rows)  # [R, V * n, D]
        by_view = tf.transpose(tf.reshape(gathered, [replicas, -1, images, rows.shape[1]]), [1, 0, 2, 3])
        return tf.reshape(by_view, [-1, rows.shape[1]])

    def _own_rows(self, rows: tf.Tensor, images: int) -> tf.Tensor:
        """The views of this replica's n images, [V * n, ...], among those of all, [V * N, ...]."""
        by_replica = tf.reshape(rows, [-1, self._workers.replicas, images, *rows.shape[1:]])
        own = by_replica[:, tf.distribute.get_replica_context().replica_id_in_sync_group]
        return tf.reshape(own, [-1, *rows.shape[1:]])

    def _for_optimizer(self, gradients: Gradients) -> Gradients:
        """The gradients that the optimizer of this replica is given, before it sums those of all replicas.

        An optimizer that clips or looks for overflow would do so before the sum. In that case they are summed and
        clipped here, and each replica gives an equal part, which is too short to be clipped again.
        """
        if not self._sees_all_gradients:
            return gradients
        known = [gradient for gradient in gradients if gradient is not None]
        summed = tf.distribute.get_replica_context().all_reduce(SUM, known)
        if self._clip:
            summed, _ = tf.clip_by_global_norm(summed, self._trainer.optimizer.scale_loss(self._clip))
        parts = iter(summed)
        return [None if gradient is None else next(parts) / self._workers.replicas for gradient in gradients]

    def _average_statistics(self) -> None:
        """Replace moving statistics that each replica computed from its own part by their mean."""
        for layer in batch_norms(self._trainer.network):
            if layer.trainable and not layer.synchronized:
                for variable in (layer.moving_mean, layer.moving_variance):
                    context = tf.distribute.get_replica_context()
                    variable.assign(context.all_reduce(MEAN, tf.identity(variable.value)))
