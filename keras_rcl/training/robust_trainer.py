"""One trainer for every method: a Keras model whose step crafts views, weighs losses and updates one phase's parts."""

import keras
import tensorflow as tf
from keras import ops

from keras_rcl.folding import fold
from keras_rcl.training.dual_batchnorm import CleanBatchNorm
from keras_rcl.training.forward import (
    FixedFeaturesForward,
    Forward,
    NetworkForward,
    PerturbedForward,
    TwoBatchNormsForward,
    WorstCaseForward,
)
from keras_rcl.training.loss_terms import (
    Batch,
    evaluate_terms,
    is_contrastive,
    outputs_read,
    share_without_positives,
    term_names,
    weigh,
)
from keras_rcl.training.moving_average import MovingAverage
from keras_rcl.training.ramps import value_at
from keras_rcl.training.steps.micro_batched import micro_batched_gradients
from keras_rcl.training.steps.single import whole_batch_gradients
from keras_rcl.training.steps.step import Gradients, Outputs, StepInput, StepResult
from keras_rcl.training.views import stack_views
from keras_rcl.training.warm_starts import WarmStarts
from keras_rcl.training.weight_perturbation import WeightAscent
from keras_rcl.vocabulary.compute import DEFAULT_COMPUTE, ComputeSettings
from keras_rcl.vocabulary.phase import Adversarial, Phase


class RobustTrainer(keras.Model):
    """Trains a network by one phase.

    Batches, callbacks and the loop over steps are Keras'. It expects batches of `keras_rcl.data.pipeline`: images
    [V, N, H, W, C], labels [N], seed [2]; with `warm_starts` or `features` also indices [N].

    Args:
        network: The two-headed network.
        phase: Its views, losses and trained parts.
        compute: Precision and memory. A micro-batch divides N; BatchNorm normalizes each one by its own statistics.
        steps_per_epoch: Of the batches; a number, or a scalar variable.
        replicas: On how many replicas Keras runs the step, each on its own part of a batch; Keras sums their gradients.
        warm_starts: By the place of a view, where its attacks start.
        features: The embeddings of all training images [N, E], which then take the place of the images.

    Attributes:
        forward: The forward pass of the phase.
        means: The mean of each metric over the epoch so far.
        finite: A variable: whether the last step left every mean and every weight finite. A step that loss scaling
            skipped does.
        traces: How often the step was traced.

    Raises:
        InvalidInputError: If the phase has a worst case and the network has a layer without bounds.
    """

    def __init__(
        self,
        network: keras.Model,
        phase: Phase,
        compute: ComputeSettings = DEFAULT_COMPUTE,
        *,
        steps_per_epoch: int | tf.Variable,
        replicas: int = 1,
        warm_starts: dict[int, WarmStarts] | None = None,
        features: tf.Variable | None = None,
    ):
        # autocast would bring pixels to half precision before the network's own float32 normalization.
        super().__init__(name="trainer", dtype=keras.DTypePolicy(compute.precision), autocast=False)
        self.network, self.phase, self.compute = network, phase, compute
        self.steps_per_epoch, self._replicas = steps_per_epoch, replicas
        self.warm_starts, self.features = warm_starts, features
        if phase.worst_case:
            fold(network)  # raises for a layer without bounds before anything is trained
        self.kinds = tuple(view.kind for view in phase.views)
        self.average = MovingAverage(network, phase.ema) if phase.ema else None
        self.weight_ascent = WeightAscent(network, phase.awp) if phase.awp.gamma else None
        self.clean_batchnorm = CleanBatchNorm(network) if phase.separate_batchnorm else None
        # An attribute of this model, so that Keras trains these variables too.
        self.clean_batchnorm_variables = self.clean_batchnorm.variables if self.clean_batchnorm else []
        self.forward = self._forward_of_phase()
        self.traces = 0
        self.finite = tf.Variable(True, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        self.mean_loss = keras.metrics.Mean(name="loss")
        self.means = {name: keras.metrics.Mean(name=name) for name in self._metric_names()}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The loss first, then all others; without the tracker that Keras makes for a loss given to `compile`."""
        return [self.mean_loss, *self.means.values()]

    @property
    def epochs(self) -> tf.Tensor:
        """How many epochs of the phase are done, by the steps of the optimizer; ramps depend on it."""
        return ops.cast(self.optimizer.iterations, "float32") / ops.cast(self.steps_per_epoch, "float32")

    def call(self, batch: StepInput, training: bool | None = None) -> Outputs:
        """The forward pass of a step.

        Keras passes `training` on to the layers within, also to those that a forward pass calls one by one.
        """
        return self.forward(batch)

    def train_step(self, data) -> dict[str, tf.Tensor]:
        """Train on one batch; returns the means of the metrics over the epoch so far."""
        self.traces += 1
        return self.record(self.update_weights(self.step_input(*data)))

    def update_weights(self, batch: StepInput) -> StepResult:
        """Compute the gradients of a batch and update the weights."""
        if self.weight_ascent:
            perturbation = self.weight_ascent(lambda: self._scaled_loss(batch), self.epochs)
            batch = batch._replace(perturbation=perturbation)
        step = micro_batched_gradients if self.compute.micro_batch else whole_batch_gradients
        gradients, result = step(self, batch)
        self.apply(gradients)
        return result._replace(values=self.with_zero_gradients(result.values, batch.zero_gradients))

    def step_input(self, images, labels, seed, indices=None) -> StepInput:
        """Craft the adversarial views of a batch and stack all views; or gather the features of its images."""
        if self.features is not None:
            repeats = len(self.kinds)
            rows = tf.tile(tf.gather(self.features, indices), [repeats, 1])
            return StepInput(rows, tf.tile(labels, [repeats]))
        rows, labels, zero_gradients = stack_views(
            self.network,
            self.phase,
            images,
            labels,
            seed,
            indices,
            epochs=self.epochs,
            warm_starts=self.warm_starts,
            compute=self.compute,
        )
        return StepInput(rows, labels, zero_gradients=() if zero_gradients is None else zero_gradients)

    def loss_and_values(
        self, labels: tf.Tensor, outputs: Outputs, weights: tf.Tensor | tuple[()] = ()
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The loss of a batch, and the scalars whose means are reported: each term, and the radius of a worst case.

        The loss includes the losses that layers add themselves, such as those of weight regularizers.

        Args:
            labels: [V * N].
            outputs: Of the forward pass.
            weights: Of the images in the losses, [V * N]; empty: all are 1.
        """
        values = evaluate_terms(self.phase, Batch(labels, outputs, self.kinds, weights))
        loss = weigh(self.phase, values, self.epochs)
        loss = sum((ops.cast(added, loss.dtype) for added in self.network.losses), loss)
        if self.phase.worst_case:
            values["epsilon"] = value_at(self.phase.worst_case.epsilon, self.epochs)
        return loss, values

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss as it is differentiated: scaled for half precision, and divided among replicas."""
        return self.optimizer.scale_loss(loss / self._replicas if self._replicas > 1 else loss)

    def apply(self, gradients: Gradients) -> None:
        """Update the weights."""
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))

    def record(self, result: StepResult) -> dict[str, tf.Tensor]:
        """Do what follows an update: metrics, the moving average, and the check that all numbers are finite.

        Returns:
            The means of the metrics over the epoch so far.
        """
        self.mean_loss.update_state(result.loss, sample_weight=tf.shape(result.labels)[0])
        for name, value in result.values.items():
            self.means[name].update_state(value)
        batch = Batch(result.labels, result.outputs, self.kinds)
        for kind in set(self.kinds):
            hits = ops.equal(ops.argmax(batch.view("logits", kind), axis=-1), batch.view("labels", kind))
            self.means[f"accuracy_{kind}"].update_state(ops.cast(hits, "float32"))
        if "anchors_without_positives" in self.means:
            self.means["anchors_without_positives"].update_state(share_without_positives(batch.view("labels", None)))
        metrics = self.get_metrics_result()
        if self.average:
            self.average.update(self.optimizer.iterations)
        numbers = [*metrics.values(), *self.network.weights]
        self.finite.assign(tf.reduce_all([tf.reduce_all(tf.math.is_finite(number)) for number in numbers]))
        return metrics

    def with_zero_gradients(self, values: dict[str, tf.Tensor], share: tf.Tensor | tuple[()]) -> dict[str, tf.Tensor]:
        """The reported scalars, with the share of zero gradients if the phase crafts attacks."""
        return {**values, "zero_gradients": share} if "zero_gradients" in self.means else values

    def _forward_of_phase(self) -> Forward:
        phase, network = self.phase, self.network
        if self.features is not None:
            return FixedFeaturesForward(network)
        if phase.worst_case:
            reads = [name for name in ("logits", "embedding") if name in outputs_read(phase)]
            return WorstCaseForward(network, phase.worst_case, len(phase.views), lambda: self.epochs, reads)
        forward: Forward = NetworkForward(network, phase.detach_classifier, phase.unit_embeddings)
        if self.clean_batchnorm:
            forward = TwoBatchNormsForward(forward, self.clean_batchnorm, self.kinds)
        return PerturbedForward(forward, self.weight_ascent) if self.weight_ascent else forward

    def _metric_names(self) -> list[str]:
        phase = self.phase
        names = [*term_names(phase), *(f"accuracy_{kind}" for kind in sorted(set(self.kinds)))]
        if is_contrastive(phase):
            names.append("anchors_without_positives")
        if any(isinstance(view, Adversarial) and view.crafted for view in phase.views):
            names.append("zero_gradients")
        if phase.worst_case:
            names.append("epsilon")
        return names

    def _scaled_loss(self, batch: StepInput) -> tf.Tensor:
        """The loss alone, as it is differentiated."""
        outputs = self(batch, training=True)
        return self.scale_loss(self.loss_and_values(batch.labels, outputs, batch.weights)[0])
