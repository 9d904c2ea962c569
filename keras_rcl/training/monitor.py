"""What is measured while a network trains, and the thresholds at which a warning is given."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.attacks import craft_and_count
from keras_rcl.data.pictures import picture_grid
from keras_rcl.data.sources import ImageData
from keras_rcl.folding import inference_graph
from keras_rcl.measures.embedding_geometry import POINTS, clean_to_adversarial_distance, geometry
from keras_rcl.training.loss_terms import is_contrastive
from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.phase import Phase

MONITORED_IMAGES = 32
BATCH = 128
"""Number of images whose embeddings are computed at once."""
SEED = 0
"""Of the monitored attack."""
DEAD = 0.5
"""An attack is called dead if its share of zero pixel gradients is above this."""
COLLAPSED = 0.999
"""Projections are called collapsed if the mean cosine between them is above this."""


def overfits_catastrophically(metrics: dict[str, float], best: float) -> bool:
    """Whether the network has overfitted to a single-step attack ("catastrophic overfitting").

    The accuracy under the attack of the training is at least the best accuracy under the monitored attack, and the
    accuracy under the monitored attack is below half of its best.

    Args:
        metrics: Of an epoch.
        best: The highest accuracy under the monitored attack so far in the phase.

    References:
        Wong et al. 2020, "Fast is better than free: revisiting adversarial training".
    """
    return metrics["monitor_adversarial_accuracy"] < best / 2 <= best <= metrics.get("accuracy_adversarial", 0.0)


def epoch_warnings(phase: Phase, metrics: dict[str, float], best: float, similarity: float) -> dict[str, str]:
    """What went wrong in an epoch: a text for each kind of failure.

    Args:
        phase: The phase that the epoch belongs to.
        metrics: Of the epoch.
        best: The highest accuracy under the monitored attack in the phase before this epoch.
        similarity: The mean cosine between the projections of the monitored images.
    """
    warnings, attacked = {}, metrics.get("zero_gradients", 0.0)
    if overfits_catastrophically(metrics, best):
        warnings["catastrophic overfitting"] = (
            f"{metrics['accuracy_adversarial']:.0%} under the training's attack, "
            f"{metrics['monitor_adversarial_accuracy']:.0%} under the monitored one, which left {best:.0%} before; "
            "hint: take more steps, smaller ones, or fewer epochs"
        )
    if attacked > DEAD:
        warnings["dead attack"] = (
            f"{attacked:.0%} of the pixel gradients that it met are zero, so it moves little; hint: choose another "
            "loss of the attack, such as logit_margin, or a smaller learning rate"
        )
    if is_contrastive(phase) and similarity > COLLAPSED:
        warnings["collapsed embeddings"] = (
            f"the projections of the monitored images have a mean cosine of {similarity:.4f}; hint: take a smaller "
            "learning rate, another temperature, or larger batches"
        )
    return warnings


def mean_cosine(projection: tf.Tensor) -> tf.Tensor:
    """The mean cosine between two different rows of unit length [N, D]; 0 for one row.

    Formula:

        (|sum of rows|^2 - N) / (N (N - 1))
    """
    count = projection.shape[0]
    total = tf.reduce_sum(tf.square(tf.reduce_sum(projection, axis=0)))
    return (total - count) / max(1, count * (count - 1))


class Monitor:
    """Attacks a fixed batch of training images once per epoch.

    It measures clean and adversarial accuracy, by which all phases can be compared, draws what the attack does, and
    measures the geometry of the embeddings of `POINTS` images; the distance to adversarial images is that of the batch.

    Args:
        network: The two-headed network.
        data: The images are the first ones of its training split.
        attack: The monitored attack.
        outputs: What `inference_graph` returned for the network; None: it is called here.
        attacked: What `Evaluator.one_round` returned for the attack on the network; None: the attack is traced here.
    """

    def __init__(
        self,
        network: keras.Model,
        data: ImageData,
        attack: Attack,
        outputs: Callable | None = None,
        attacked: Callable | None = None,
    ):
        held = data.train.held
        self.images = tf.constant(held.images[:MONITORED_IMAGES], tf.float32) / 255
        self.labels = tf.constant(held.labels[:MONITORED_IMAGES], tf.int32)
        self.shown = held.limited(POINTS)

        self._outputs = outputs or inference_graph(network)

        @tf.function(autograph=False)
        def traced_here(images, labels, seed):
            return craft_and_count(attack, lambda x: network(x, training=False)["logits"], images, labels, seed=seed)

        self._attacked = attacked or traced_here

    def __call__(self) -> tuple[dict[str, float], float, np.ndarray]:
        """Measure the network as it is now.

        Returns:
            The metrics, the mean cosine between projections, and a picture grid of clean images, adversarial images
            and perturbations.
        """
        adversarial, zeros = self._attacked(self.images, self.labels, SEED)
        before, after = self._outputs(self.images), self._outputs(adversarial)
        metrics = {
            "monitor_clean_accuracy": self._accuracy(before["logits"]),
            "monitor_adversarial_accuracy": self._accuracy(after["logits"]),
            "monitor_zero_gradients": float(tf.reduce_mean(zeros)),
            **self._geometry(before, after),
        }
        similarity = float(mean_cosine(tf.cast(before["projection"], tf.float32)))
        return metrics, similarity, picture_grid(self.images.numpy()[:8], adversarial.numpy()[:8])

    def _accuracy(self, logits: tf.Tensor) -> float:
        """The share of the attacked images that are classified correctly."""
        hits = tf.argmax(logits, axis=1, output_type=tf.int32) == self.labels
        return float(tf.reduce_mean(tf.cast(hits, tf.float32)))

    def _geometry(self, before: dict[str, tf.Tensor], after: dict[str, tf.Tensor]) -> dict[str, float]:
        """Measure the embeddings: `<space>_<measure>`; a measure without a pair of images is left out.

        Args:
            before: The outputs on the attacked images before the attack.
            after: The outputs on the adversarial images.
        """
        starts = range(0, len(self.shown.labels), BATCH)
        batches = [self.shown.images[start : start + BATCH] for start in starts]
        found = [self._outputs(tf.constant(images, tf.float32) / 255) for images in batches]
        metrics: dict[str, float] = {}
        for space in ("embedding", "projection"):
            rows, clean, moved = (
                np.concatenate([outputs[space] for outputs in each]).astype(np.float32)
                for each in (found, [before], [after])
            )
            measured = geometry(self.shown.labels, rows)
            measured["clean_to_adversarial_distance"] = clean_to_adversarial_distance(clean, moved)
            metrics |= {f"{space}_{name}": value for name, value in measured.items() if value is not None}
        return metrics
