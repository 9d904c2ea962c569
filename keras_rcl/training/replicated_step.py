"""A training step on several replicas, which is the step of one device on the whole batch.

Each replica passes its own part of the batch and tells all others what came out. Each then has the outputs of the whole
batch, the loss of them, and by its own part of dL / d outputs its share of the gradient:

    dL/dw = sum over replicas of (d outputs / dw)^T (dL / d outputs)

So every anchor of a contrastive loss meets every other, on whichever replica, and no gradient passes the gather.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from keras_rcl.networks.two_headed import batch_norms
from keras_rcl.runtime.distributed import Workers
from keras_rcl.training.loss_terms import outputs_read
from keras_rcl.training.robust_trainer import RobustTrainer
from keras_rcl.training.views import stack_views

SUM, MEAN = tf.distribute.ReduceOp.SUM, tf.distribute.ReduceOp.MEAN


class ReplicatedStep:
    """The step of a trainer, compiled once, on all replicas of all workers.

    Where BatchNorm is not synchronised each replica normalises by its own part of the batch, and the moving statistics
    are brought to their mean after each step.

    Args:
        trainer: whose network and optimizer have a copy of their variables on each replica.
        workers: which have more than one.
    """

    def __init__(self, trainer: RobustTrainer, workers: Workers):
        self._trainer, self._workers, self._strategy = trainer, workers, workers.strategy
        self._read = outputs_read(trainer.phase)
        scales = isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
        self._clip = (trainer.optimizer.inner_optimizer if scales else trainer.optimizer).global_clipnorm
        self._looks = scales or self._clip
        self._step = tf.function(self._on_all, autograph=False)

    def run_epoch(self, dataset: tf.data.Dataset, resumed: int, after_step: Callable[[int], None]) -> dict[str, float]:
        """All steps of a data set, as `fit` would; returns the metrics' means.

        Args:
            dataset: of this worker's part of each batch.
            resumed: how many steps of the epoch were done before; the metrics are as after the last of them.
            after_step: called with the number of steps done.
        """
        if not resumed:
            self._trainer.reset_metrics()
        metrics = {}
        for done, (images, labels, seed) in enumerate(dataset, start=resumed + 1):
            with self._workers.collective_errors():
                metrics = self._step(self._dealt(images, axis=1), self._dealt(labels, axis=0), seed)
            after_step(done)
        return {name: float(value) for name, value in metrics.items()}

    def _dealt(self, rows: tf.Tensor, axis: int):
        """Its part to each replica of this worker."""
        count = self._workers.local_replicas
        if count == 1:
            return rows
        parts = tf.split(rows, count, axis=axis)
        return self._strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group % count]
        )

    def _on_all(self, images, labels, seed) -> dict[str, tf.Tensor]:
        trainer = self._trainer
        trainer.traces += 1
        found = self._strategy.run(self._on_one, (images, labels, seed))
        first = tf.nest.map_structure(lambda each: self._strategy.experimental_local_results(each)[0], found)
        labels, outputs, zero_gradients, loss, values = first
        if "zero_gradients" in trainer.means:
            trainer.means["zero_gradients"].update_state(zero_gradients)
        for name, value in values.items():
            trainer.means[name].update_state(value)
        trainer._loss_tracker.update_state(loss, sample_weight=tf.shape(labels)[0])
        metrics = trainer.compute_metrics(None, labels, outputs)
        trainer.end_step(metrics)
        return metrics

    def _on_one(self, images, labels, seed):
        """A replica's part of the step: (labels [V * N], outputs [V * N, ...], zero gradients, loss, terms) of all."""
        trainer, optimizer = self._trainer, self._trainer.optimizer
        x, y, zeros = stack_views(trainer.network, trainer.phase, images, labels, seed, compute=trainer.compute)
        with tf.GradientTape() as tape:
            outputs = trainer(x, training=True)
        own = {name: outputs[name] for name in self._read}
        beside = {"labels": tf.cast(y, tf.float32)[:, None], "zeros": tf.fill([tf.shape(y)[0], 1], zeros)}
        everyones = self._of_all({**own, **beside})
        labels = tf.cast(everyones.pop("labels")[:, 0], y.dtype)
        zeros = tf.reduce_mean(everyones.pop("zeros"))
        with tf.GradientTape() as loss_tape:
            loss_tape.watch(everyones)
            loss, values = trainer.loss_and_terms(labels, everyones)
            scaled = optimizer.scale_loss(loss)
        pulled = {name: rows for name, rows in loss_tape.gradient(scaled, everyones).items() if rows is not None}
        variables = trainer.trainable_variables
        gradients = tape.gradient(
            [own[name] for name in pulled], variables, output_gradients=[self._own(rows) for rows in pulled.values()]
        )
        optimizer.apply_gradients(zip(self._as_seen(gradients), variables, strict=True))
        self._agree_on_statistics()
        return labels, everyones, zeros, loss, values

    def _of_all(self, rows: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Arrays [V * n, D] of this replica -> [V * N, D] of all, stacked view by view as on one device.

        They travel as one, added up, each replica's being zero where the others' are: which every strategy can do.
        """
        context, views = tf.distribute.get_replica_context(), len(self._trainer.kinds)
        packed = tf.concat(list(rows.values()), axis=1)
        place = tf.one_hot(context.replica_id_in_sync_group, self._workers.replicas, dtype=packed.dtype)
        everyones = context.all_reduce(SUM, place[:, None, None] * packed)  # [R, V * n, D]
        shape = [self._workers.replicas, views, packed.shape[0] // views, packed.shape[1]]
        stacked = tf.reshape(tf.transpose(tf.reshape(everyones, shape), [1, 0, 2, 3]), [-1, packed.shape[1]])
        return dict(zip(rows, tf.split(stacked, [array.shape[1] for array in rows.values()], axis=1), strict=True))

    def _own(self, rows: tf.Tensor) -> tf.Tensor:
        """This replica's [V * n, D] of the rows of all [V * N, D]."""
        views, replicas = len(self._trainer.kinds), self._workers.replicas
        shape = [views, replicas, rows.shape[0] // (views * replicas), rows.shape[1]]
        own = tf.reshape(rows, shape)[:, tf.distribute.get_replica_context().replica_id_in_sync_group]
        return tf.reshape(own, [-1, rows.shape[1]])

    def _as_seen(self, gradients: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
        """The gradients as the optimizer is to see them before it adds up those of all replicas.

        Where it clips, or looks for overflow, it would do so before. Then they are summed and clipped here, and each
        replica gives an equal part, which is too short to be clipped again.
        """
        if not self._looks:
            return gradients
        known = [gradient for gradient in gradients if gradient is not None]
        summed = tf.distribute.get_replica_context().all_reduce(SUM, known)
        if self._clip:
            summed, _ = tf.clip_by_global_norm(summed, self._trainer.optimizer.scale_loss(self._clip))
        parts = iter(summed)
        return [None if gradient is None else next(parts) / self._workers.replicas for gradient in gradients]

    def _agree_on_statistics(self) -> None:
        """Moving statistics that each replica took of its own part become their mean."""
        for layer in batch_norms(self._trainer.network):
            if layer.trainable and not layer.synchronized:
                for variable in (layer.moving_mean, layer.moving_variance):
                    context = tf.distribute.get_replica_context()
                    variable.assign(context.all_reduce(MEAN, tf.identity(variable.value)))
