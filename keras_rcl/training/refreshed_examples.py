"""Adversarial examples of all training images, refreshed at regular intervals and kept in memory between them."""

import numpy as np
import tensorflow as tf

from keras_rcl.data.adversarial_store import whole_levels
from keras_rcl.data.sources import Split
from keras_rcl.runtime.progress import Progress
from keras_rcl.training.views import attacked
from keras_rcl.vocabulary.attacks import Refreshed


class RefreshedExamples:
    """The examples of one `refreshed` attack of a phase.

    An example depends on the weights with which it was crafted, on its image and on the seed. A snapshot therefore
    stores those weights instead of the examples, and a run that resumes crafts the examples again.

    Args:
        network: The attacked network.
        attack: Which attack, and how often the examples are refreshed.
        kept: The variable uint8 [N, H, W, C] that the batches read.
        split: The N training images.
        batch_size: How many images are attacked at once.
        seed: Of the attack.
        dtype: Of the attack.

    Attributes:
        weights: Variables with the weights of the network at the last refresh.
        zero_gradients: The share of zero pixel gradients that the last refresh met.
    """

    def __init__(
        self, network, attack: Refreshed, kept: tf.Variable, split: Split, batch_size: int, seed: int, dtype: str
    ):
        self.attack, self.zero_gradients = attack, 0.0
        self.weights = tuple(tf.Variable(weight.value, trainable=False) for weight in network.weights)
        self._network, self._kept, self._split = network, kept, split
        self._size, self._seed = batch_size, seed
        self._made_at: int | None = None

        @tf.function(autograph=False)
        def craft(images, labels, seed):
            return attacked(network, attack.attack, seed, images, labels, dtype=dtype)

        self._craft = craft

    @property
    def cost(self) -> float:
        """The forward passes that one refresh costs, roughly."""
        return len(self._split.labels) * self.attack.attack.cost

    def steps_left(self, step: int) -> int:
        """How many steps, this one included, read the same examples."""
        return self.attack.every - step % self.attack.every

    def provide(self, step: int, progress: Progress, label: str) -> bool:
        """Provide the examples for a step of the phase and those after it; returns whether they were crafted now.

        Args:
            step: Of the phase.
            progress: Shows progress.
            label: Of the progress bar.
        """
        due = step - step % self.attack.every
        if self._made_at == due:
            return False
        now = [weight.numpy() for weight in self._network.weights]
        if due == step:
            _assign(self.weights, now)
        else:  # in a process that resumed from a snapshot
            _assign(self._network.weights, [weight.numpy() for weight in self.weights])
        self._make(due // self.attack.every, progress, f"{label}  {self.attack.attack.label} of all images")
        _assign(self._network.weights, now)
        self._made_at = due
        return True

    def _make(self, number: int, progress: Progress, label: str) -> None:
        images, labels = self._split.images, self._split.labels.astype(np.int32)
        made, zeros = np.empty_like(images), []
        progress.start(label, len(labels))
        for start in range(0, len(labels), self._size):
            chosen = slice(start, start + self._size)
            clean = images[chosen]
            seed = tf.constant([self._seed, number], tf.int32)
            crafted, shares = self._craft(clean.astype(np.float32) / 255, labels[chosen], seed)
            made[chosen] = whole_levels(clean, crafted.numpy())
            zeros.append(shares.numpy())
            progress.update(start + len(clean))
        self._kept.assign(made)
        self.zero_gradients = float(np.concatenate(zeros).mean())
        progress.finish()


def _assign(variables, values) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
