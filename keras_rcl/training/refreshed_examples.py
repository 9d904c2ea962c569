"""Adversarial examples of all training images, made every so many steps and kept in memory until the next time."""

import numpy as np
import tensorflow as tf

from keras_rcl.data.adversarial_store import whole_levels
from keras_rcl.data.sources import Split
from keras_rcl.runtime.progress import Progress
from keras_rcl.training.views import attacked
from keras_rcl.vocabulary.attacks import Refreshed


class RefreshedExamples:
    """The examples of one `refreshed` attack of a phase.

    An example is a function of the weights that it was made with, of its image and of the seed. So a saved state holds
    those weights, not the examples, and a run that goes on makes these again.

    Args:
        network: that is attacked.
        attack: what is made, and how often.
        kept: the variable uint8 [N, H, W, C] that the batches read.
        part: the N training images.
        batch_size: images attacked at once.
        seed: of the attack.
        dtype: that it is computed in.

    Attributes:
        weights: variables, the network's weights as they were at the last making.
        zero_gradients: the share of zero pixel gradients that the last making met.
    """

    def __init__(
        self, network, attack: Refreshed, kept: tf.Variable, part: Split, batch_size: int, seed: int, dtype: str
    ):
        self.attack, self.zero_gradients = attack, 0.0
        self.weights = tuple(tf.Variable(weight.value, trainable=False) for weight in network.weights)
        self._network, self._kept, self._part = network, kept, part
        self._size, self._seed = batch_size, seed
        self._made_at: int | None = None

        @tf.function(autograph=False)
        def craft(images, labels, seed):
            return attacked(network, attack.attack, seed, images, labels, dtype=dtype)

        self._craft = craft

    @property
    def cost(self) -> float:
        """Forward and backward passes of one making."""
        return len(self._part.labels) * self.attack.attack.cost

    def steps_left(self, step: int) -> int:
        """How many steps from this one on read the same examples."""
        return self.attack.every - step % self.attack.every

    def provide(self, step: int, progress: Progress, label: str) -> bool:
        """Let the batches from this step of the phase on read the examples that are theirs; whether any were made."""
        due = step - step % self.attack.every
        if self._made_at == due:
            return False
        now = [weight.numpy() for weight in self._network.weights]
        if due == step:
            _assign(self.weights, now)
        else:  # in a process that goes on from a state
            _assign(self._network.weights, [weight.numpy() for weight in self.weights])
        self._make(due // self.attack.every, progress, f"{label}  {self.attack.attack.label} of all images")
        _assign(self._network.weights, now)
        self._made_at = due
        return True

    def _make(self, number: int, progress: Progress, label: str) -> None:
        images, labels = self._part.images, self._part.labels.astype(np.int32)
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
