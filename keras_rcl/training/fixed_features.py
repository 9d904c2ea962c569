"""The embeddings of all training images, computed once while the encoder stands still."""

import keras
import tensorflow as tf

from keras_rcl.data.splits import Split

BATCH = 250


class FixedFeatures:
    """What a network's encoder, in inference mode, makes of each image of a part.

    Attributes:
        values: [N, E] float32, once `fill` was called. No state saves them: they follow from the network.
    """

    def __init__(self, network: keras.Model, part: Split):
        self._images, _ = part.tensors
        width = network.output["embedding"].shape[-1]
        self.values = tf.Variable(tf.zeros((len(self._images), width)), trainable=False)
        self._filled = False

        @tf.function(autograph=False, reduce_retracing=True)
        def embed(images):
            return network(tf.cast(images, tf.float32) / 255, training=False)["embedding"]

        self._embed = embed

    def clear(self) -> None:
        """The encoder has moved."""
        self._filled = False

    def fill(self) -> None:
        """Compute them, unless that is done."""
        for start in range(0, 0 if self._filled else len(self._images), BATCH):
            batch = slice(start, start + BATCH)
            self.values[batch].assign(self._embed(self._images[batch]))
        self._filled = True
