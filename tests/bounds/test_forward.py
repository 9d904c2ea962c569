"""The passes of a folded network, in NumPy and in TensorFlow, against Keras itself."""

import numpy as np
import pytest
from tiny_networks import IMAGE_BLOCKS, TAILS, random_images, random_network

from keras_rcl.bounds import fold, folded
from keras_rcl.bounds.forward import evaluate


@pytest.mark.parametrize("block", IMAGE_BLOCKS)
def test_numpy_gives_what_keras_does(block):
    for seed, tail in enumerate(TAILS):
        network, images = random_network(["conv", block], tail, seed=seed), random_images(3, seed)
        found = evaluate(fold(network, dtype="float64"), images)
        assert found.dtype == np.float64
        expected = network(images, training=False)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(folded(network)(images), expected, rtol=1e-4, atol=1e-5)
