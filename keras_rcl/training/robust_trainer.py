"""One trainer for every method: Keras' own `train_step`, with views stacked before it and losses weighed inside."""

import keras
import tensorflow as tf
from keras import ops

from keras_rcl.bounds import output_bounds, training_pass, worst_case_outputs
from keras_rcl.folding import fold
from keras_rcl.training.dual_batchnorm import CleanBranch
from keras_rcl.training.loss_terms import (
    Batch,
    evaluate_terms,
    is_contrastive,
    share_without_positives,
    term_names,
    weigh,
)
from keras_rcl.training.micro_batches import gradients_in_parts, in_parts
from keras_rcl.training.moving_average import MovingAverage
from keras_rcl.training.ramps import value_at
from keras_rcl.training.views import stack_views
from keras_rcl.training.warm_starts import WarmStarts
from keras_rcl.training.weight_perturbation import WeightAscent
from keras_rcl.vocabulary.compute import DEFAULT_COMPUTE, ComputeSettings
from keras_rcl.vocabulary.phase import Adversarial, Phase


class RobustTrainer(keras.Model):
    """Trains a network by one phase; holds both and owns no mathematics.

    Tape, loss scaling, distribution and callbacks are Keras'. It expects batches from `keras_rcl.data.pipeline`:
    images [V, N, H, W, C], labels [N], seed [2]. With `micro_batch`, which divides N, so many images pass through the
    network at once; BatchNorm normalises each such part by its own statistics. With `warm_starts`, by the places of
    views, or `features`, the embeddings of all training images [N, E] in place of the images, batches are `indexed`.

    Attributes:
        means: of each metric over the epoch so far.
        finite: a variable, whether the last step left every mean and every weight a number. A step that loss scaling
            skipped does.
    """

    def __init__(
        self,
        network: keras.Model,
        phase: Phase,
        compute: ComputeSettings = DEFAULT_COMPUTE,
        *,
        steps_per_epoch: int,
        warm_starts: dict[int, WarmStarts] | None = None,
        features: tf.Variable | None = None,
    ):
        # autocast would bring pixels to half precision before the network's own float32 normalisation.
        super().__init__(name="trainer", dtype=keras.DTypePolicy(compute.precision), autocast=False)
        self.network = network
        self.phase = phase
        self.steps_per_epoch = steps_per_epoch
        self.compute = compute
        self.warm_starts, self.features = warm_starts, features
        if phase.worst_case:
            fold(network)  # refuses a layer without bounds before anything is trained
        self.kinds = tuple(view.kind for view in phase.views)
        self.average = MovingAverage(network, phase.ema) if phase.ema else None
        self.weight_ascent = WeightAscent(network, phase.awp, steps_per_epoch) if phase.awp.gamma else None
        self.branch = CleanBranch(network) if phase.separate_batchnorm else None
        self.branch_variables = self.branch.variables if self.branch else []  # among those that Keras trains
        self.traces = 0
        self.finite = tf.Variable(True, trainable=False)
        names = [*term_names(phase), *(f"accuracy_{kind}" for kind in sorted(set(self.kinds)))]
        if is_contrastive(phase):
            names.append("anchors_without_positives")
        if any(isinstance(view, Adversarial) and view.crafted for view in phase.views):
            names.append("zero_gradients")
        if phase.worst_case:
            names.append("epsilon")
        self.means = {name: keras.metrics.Mean(name=name) for name in names}

    @property
    def epochs(self):
        """How many epochs of the phase are done, by the optimizer's steps: what its ramps go by."""
        return ops.cast(self.optimizer.iterations, "float32") / self.steps_per_epoch

    def call(self, x, training=None):
        if self.features is not None:
            return {"embedding": x, "logits": self.network.get_layer("classifier")(x)}
        if self.phase.worst_case:
            return self.bounded(*x)
        if isinstance(x, tuple):
            images, perturbation = x
            with self.weight_ascent.at(perturbation):
                return self.call(images, training=training)
        if self.branch and training:
            return self.branch(self.passed, x, self.kinds)
        return self.passed(x, training=training)

    def passed(self, x, training=True):
        """The outputs of one pass of images."""
        outputs = self.network(x, training=training)
        if self.phase.detach_classifier:
            classifier = self.network.get_layer("classifier")
            outputs = {**outputs, "logits": classifier(ops.stop_gradient(outputs["embedding"]))}
        return outputs

    def bounded(self, x, y):
        """The outputs on the views of images, and beside them those of the worst case, which comes last.

        Bounds are differentiated with respect to the weights, and so belong inside the tape.
        """
        view, count = self.phase.worst_case, ops.shape(y)[0] // len(self.kinds)
        epsilon = value_at(view.epsilon, self.epochs)
        outputs, statistics = training_pass(self.network, x[:-count])
        images, labels = x[-count:], y[-count:]
        if view.outputs == "margins":
            worst_case = worst_case_outputs(self.network, images, labels, epsilon, view.bound, statistics)
        else:
            worst_case = {
                name: output_bounds(self.network, images, epsilon, view.bound, name, statistics=statistics).lower
                for name in ("logits", "embedding")
            }
        return {**outputs, "worst_case": worst_case}

    def train_step(self, data):
        self.traces += 1
        x, y, zero_gradients = self._batch(*data)
        if "zero_gradients" in self.means:
            self.means["zero_gradients"].update_state(zero_gradients)
        seen = (x, y) if self.phase.worst_case else x
        if self.weight_ascent:
            seen = x, self.weight_ascent(lambda: self._scaled_loss(x, y), self.optimizer.iterations)
        metrics = self._step_in_parts(x, y) if self.compute.micro_batch else super().train_step((seen, y))
        self.end_step(metrics)
        return metrics

    def end_step(self, metrics: dict[str, tf.Tensor]) -> None:
        """What follows the update of the weights: the average, and whether all is still finite."""
        if self.average:
            self.average.update(self.optimizer.iterations)
        numbers = [*metrics.values(), *self.network.weights]
        self.finite.assign(tf.reduce_all([tf.reduce_all(tf.math.is_finite(number)) for number in numbers]))

    def _batch(self, images, labels, seed, indices=None):
        """What the network, or its classifier, sees; labels; and the share of zero gradients that attacks met."""
        if self.features is None:
            return stack_views(
                self.network,
                self.phase,
                images,
                labels,
                seed,
                indices,
                warm_starts=self.warm_starts,
                compute=self.compute,
            )
        repeats = [len(self.kinds)]
        return tf.tile(tf.gather(self.features, indices), [*repeats, 1]), tf.tile(labels, repeats), 0.0

    def _step_in_parts(self, x, y):
        """Keras' `train_step` of a batch of which only a part fits into memory."""
        rows = {name: tf.TensorSpec(of.shape[1:], of.dtype) for name, of in self.network.output.items()}
        held = [(variable, tf.identity(variable.value)) for variable in self.network.non_trainable_variables]
        size = self.compute.micro_batch
        y_pred = in_parts(lambda part: self(part, training=True), size, x, signature=rows)
        for variable, value in held:  # BatchNorm's statistics move in the pass that is taped
            variable.assign(value)
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            loss = self.compute_loss(x, y, y_pred)
            scaled = self.optimizer.scale_loss(loss)
        cotangents = tape.gradient(scaled, y_pred, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        variables = self.trainable_variables
        gradients = gradients_in_parts(
            lambda part: self(part, training=True), size, x, cotangents, [v.value for v in variables]
        )
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(x)[0])
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self.compute_metrics(x, y, y_pred)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss, values = self.loss_and_terms(y, y_pred)
        for name, value in values.items():
            self.means[name].update_state(value)
        if self.phase.worst_case:
            self.means["epsilon"].update_state(value_at(self.phase.worst_case.epsilon, self.epochs))
        return loss

    def loss_and_terms(self, y, y_pred):
        """The loss of a batch, and each term's value under its name; no metric hears of it."""
        values = evaluate_terms(self.phase, Batch(y, y_pred, self.kinds))
        return weigh(self.phase, values, self.epochs), values

    def _scaled_loss(self, x, y):
        """The loss alone, as it is differentiated."""
        return self.optimizer.scale_loss(self.loss_and_terms(y, self(x, training=True))[0])

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        batch = Batch(y, y_pred, self.kinds)
        for kind in set(self.kinds):
            hits = ops.equal(ops.argmax(batch.view("logits", kind), axis=-1), batch.view("labels", kind))
            self.means[f"accuracy_{kind}"].update_state(ops.cast(hits, "float32"))
        if "anchors_without_positives" in self.means:
            self.means["anchors_without_positives"].update_state(share_without_positives(batch.view("labels", None)))
        return self.get_metrics_result()
