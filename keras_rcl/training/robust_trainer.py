"""One trainer for every method: Keras' own `train_step`, with views stacked before it and losses weighed inside."""

import keras
import tensorflow as tf
from keras import ops

from keras_rcl.training.batch_views import stack_views
from keras_rcl.training.loss_terms import (
    Batch,
    evaluate_terms,
    is_contrastive,
    share_without_positives,
    term_names,
    weigh,
)
from keras_rcl.training.moving_average import MovingAverage
from keras_rcl.training.weight_perturbation import WeightAscent
from keras_rcl.vocabulary.phase import Adversarial, Phase


class RobustTrainer(keras.Model):
    """Trains a network by one phase; holds both and owns no mathematics.

    Tape, loss scaling, distribution and callbacks are Keras'. It expects batches from `keras_rcl.data.pipeline`:
    images [V, N, H, W, C], labels [N], seed [2].

    Attributes:
        means: of each metric over the epoch so far.
        finite: a variable, whether the last step left every mean and every weight a number. A step that loss scaling
            skipped does.
    """

    def __init__(self, network: keras.Model, phase: Phase, precision: str = "float32", *, steps_per_epoch: int):
        # autocast would bring pixels to half precision before the network's own float32 normalisation.
        super().__init__(name="trainer", dtype=keras.DTypePolicy(precision), autocast=False)
        self.network = network
        self.phase = phase
        self.kinds = tuple(view.kind for view in phase.views)
        self.average = MovingAverage(network, phase.ema) if phase.ema else None
        self.weight_ascent = WeightAscent(network, phase.awp, steps_per_epoch) if phase.awp.gamma else None
        self.traces = 0
        self.finite = tf.Variable(True, trainable=False)
        names = [*term_names(phase), *(f"accuracy_{kind}" for kind in sorted(set(self.kinds)))]
        if is_contrastive(phase):
            names.append("anchors_without_positives")
        if any(isinstance(view, Adversarial) and view.crafted for view in phase.views):
            names.append("zero_gradients")
        self.means = {name: keras.metrics.Mean(name=name) for name in names}

    def call(self, x, training=None):
        if isinstance(x, tuple):
            images, perturbation = x
            with self.weight_ascent.at(perturbation):
                return self.call(images, training=training)
        outputs = self.network(x, training=training)
        if self.phase.detach_classifier:
            classifier = self.network.get_layer("classifier")
            outputs = {**outputs, "logits": classifier(ops.stop_gradient(outputs["embedding"]))}
        return outputs

    def train_step(self, data):
        self.traces += 1
        x, y, zero_gradients = stack_views(self.network, self.phase, *data)
        if "zero_gradients" in self.means:
            self.means["zero_gradients"].update_state(zero_gradients)
        perturbed = x
        if self.weight_ascent:
            perturbed = x, self.weight_ascent(lambda: self._scaled_loss(x, y), self.optimizer.iterations)
        metrics = super().train_step((perturbed, y))
        if self.average:
            self.average.update(self.optimizer.iterations)
        numbers = [*metrics.values(), *self.network.weights]
        self.finite.assign(tf.reduce_all([tf.reduce_all(tf.math.is_finite(number)) for number in numbers]))
        return metrics

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        values = evaluate_terms(self.phase, Batch(y, y_pred, self.kinds))
        for name, value in values.items():
            self.means[name].update_state(value)
        return weigh(self.phase, values)

    def _scaled_loss(self, x, y):
        """The loss alone, as it is differentiated."""
        values = evaluate_terms(self.phase, Batch(y, self(x, training=True), self.kinds))
        return self.optimizer.scale_loss(weigh(self.phase, values))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        batch = Batch(y, y_pred, self.kinds)
        for kind in set(self.kinds):
            hits = ops.equal(ops.argmax(batch.view("logits", kind), axis=-1), batch.view("labels", kind))
            self.means[f"accuracy_{kind}"].update_state(ops.cast(hits, "float32"))
        if "anchors_without_positives" in self.means:
            self.means["anchors_without_positives"].update_state(share_without_positives(y))
        return self.get_metrics_result()
