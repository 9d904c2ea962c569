"""Forward passes of a training step in training mode; a phase chooses one when it is built."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_rcl.bounds import output_lower_bounds, training_pass, worst_case_outputs
from keras_rcl.networks.two_headed import unit_norm
from keras_rcl.training.dual_batchnorm import CleanBatchNorm
from keras_rcl.training.ramps import value_at
from keras_rcl.training.steps.step import Outputs, StepInput
from keras_rcl.training.weight_perturbation import WeightAscent
from keras_rcl.vocabulary.phase import WorstCase

Forward = Callable[[StepInput], Outputs]


class NetworkForward:
    """The outputs of the network on all views in one pass.

    Args:
        network: The two-headed network.
        detach_classifier: The loss of the logits moves the classifier only, not the encoder.
        unit_embeddings: The projector reads embeddings at unit length.
    """

    def __init__(self, network: keras.Model, detach_classifier: bool, unit_embeddings: bool = False):
        self._network, self._detach, self._unit = network, detach_classifier, unit_embeddings

    def __call__(self, batch: StepInput) -> Outputs:
        outputs = self._network(batch.images, training=True)
        if self._unit:
            projector = self._network.get_layer("projector")
            unnormalized = projector(unit_norm(outputs["embedding"]))
            outputs = {**outputs, "unnormalized_projection": unnormalized, "projection": unit_norm(unnormalized)}
        if self._detach:
            classifier = self._network.get_layer("classifier")
            outputs = {**outputs, "logits": classifier(ops.stop_gradient(outputs["embedding"]))}
        return outputs


class FixedFeaturesForward:
    """The classifier on embeddings that were computed once, since the encoder is frozen."""

    def __init__(self, network: keras.Model):
        self._classifier = network.get_layer("classifier")

    def __call__(self, batch: StepInput) -> Outputs:
        return {"embedding": batch.images, "logits": self._classifier(batch.images)}


class TwoBatchNormsForward:
    """A pass in which the views that are not adversarial have BatchNorm layers of their own."""

    def __init__(self, forward: Forward, clean: CleanBatchNorm, kinds: tuple[str, ...]):
        self._forward, self._clean, self._kinds = forward, clean, kinds

    def __call__(self, batch: StepInput) -> Outputs:
        return self._clean(lambda images: self._forward(batch._replace(images=images)), batch.images, self._kinds)


class WorstCaseForward:
    """The outputs on the views of images, and beside them those of the worst case in a ball, which is the last view.

    Bounds are differentiated with respect to the weights, so they are computed inside the tape.

    Args:
        network: The two-headed network.
        view: The worst case.
        num_views: V, this view included.
        epochs: Returns how many epochs of the phase are done, on which the radius of the ball depends.
        reads: The outputs whose lower bounds are read, `logits` among them.
    """

    def __init__(
        self,
        network: keras.Model,
        view: WorstCase,
        num_views: int,
        epochs: Callable[[], tf.Tensor],
        reads: Sequence[str] = ("logits",),
    ):
        self._network, self._view, self._num_views, self._epochs = network, view, num_views, epochs
        self._reads = reads
        self._bound: Any = view.bound

    def __call__(self, batch: StepInput) -> Outputs:
        view, count = self._view, ops.shape(batch.labels)[0] // self._num_views
        epsilon = view.share * value_at(view.epsilon, self._epochs())
        outputs, statistics = training_pass(self._network, batch.images[:-count])
        images, labels = batch.images[-count:], batch.labels[-count:]
        if view.outputs == "margins":
            worst_case = worst_case_outputs(self._network, images, labels, epsilon, self._bound, statistics)
        else:
            bounded = ["embedding"] if view.outputs == "embedding_lower_bounds" else self._reads
            worst_case = {
                name: output_lower_bounds(self._network, images, epsilon, self._bound, name, statistics=statistics)
                for name in bounded
            }
            if "logits" not in worst_case:
                worst_case["logits"] = self._network.get_layer("classifier")(worst_case["embedding"])
        return {**outputs, "worst_case": worst_case}


class PerturbedForward:
    """A pass with perturbed weights, if the batch has a perturbation; see `WeightAscent`."""

    def __init__(self, forward: Forward, ascent: WeightAscent):
        self._forward, self._ascent = forward, ascent

    def __call__(self, batch: StepInput) -> Outputs:
        if not batch.perturbation:
            return self._forward(batch)
        with self._ascent.perturbed(batch.perturbation):
            return self._forward(batch)
