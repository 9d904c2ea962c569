"""The passes of a folded network, in NumPy and in TensorFlow, against Keras itself."""

import keras
import numpy as np
import pytest
from tiny_networks import IMAGE_BLOCKS, TAILS, random_images, random_network

from keras_rcl.bounds import at_inference, fold, folded
from keras_rcl.bounds.forward import evaluate
from keras_rcl.vocabulary.word import Refused

L = keras.layers


@pytest.mark.parametrize("block", IMAGE_BLOCKS)
def test_numpy_gives_what_keras_does(block):
    for seed, tail in enumerate(TAILS):
        network, images = random_network(["conv", block], tail, seed=seed), random_images(3, seed)
        found = evaluate(fold(network, dtype="float64"), images)
        assert found.dtype == np.float64
        expected = network(images, training=False)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        if block == "max_pooling":
            with pytest.raises(Refused, match="is a maximum pooling"):
                folded(network)
        else:
            np.testing.assert_allclose(folded(network)(images), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_folded_is_called():
    for pooling, called in ((L.AveragePooling2D, False), (L.MaxPooling2D, True)):
        image = keras.Input((6, 5, 2))
        network = keras.Model(image, {"logits": L.Flatten()(pooling(2)(L.Conv2D(3, 3)(image)))})
        calls, call = [], network.call
        network.call = lambda *args, call=call, calls=calls, **kwargs: calls.append(1) or call(*args, **kwargs)
        images = random_images(3, 0)
        expected = network(images)["logits"]
        del calls[:]
        np.testing.assert_allclose(at_inference(network)(images), expected, rtol=1e-4, atol=1e-5)
        assert bool(calls) == called
