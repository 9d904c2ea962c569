"""The embeddings of all training images, computed once while the encoder is frozen."""

import keras
import tensorflow as tf

from keras_rcl.data.splits import Split

BATCH = 250


class FixedFeatures:
    """The embedding of each image of a split, computed by the encoder in inference mode.

    Args:
        network: The two-headed network.
        split: The N images.

    Attributes:
        values: float32 [N, E], after `fill`. No snapshot stores them: they follow from the network.
    """

    def __init__(self, network: keras.Model, split: Split):
        self._images, _ = split.tensors
        width = network.output["embedding"].shape[-1]
        self.values = tf.Variable(tf.zeros((len(self._images), width)), trainable=False)
        self._filled = False

        # One graph for any number of images, so also for the last batch.
        batch = tf.TensorSpec([None, *self._images.shape[1:]], tf.uint8)

        @tf.function(input_signature=[batch], autograph=False)
        def embed(images):
            return network(tf.cast(images, tf.float32) / 255, training=False)["embedding"]

        self._embed = embed

    def clear(self) -> None:
        """Forget the embeddings: the encoder has changed."""
        self._filled = False

    def fill(self) -> None:
        """Compute the embeddings, unless they are there."""
        for start in range(0, 0 if self._filled else len(self._images), BATCH):
            batch = slice(start, start + BATCH)
            self.values[batch].assign(self._embed(self._images[batch]))
        self._filled = True
