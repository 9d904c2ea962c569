"""Random numbers by Philox are those of TensorFlow's own functions."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.runtime import philox

SEEDS = ([0, 0], [5, -7], [-(2**31), 2**31 - 1], [2**40 + 3, -(2**50)])
DRAWS = {
    "bits": (
        lambda seed: philox.bits([3, 2], seed),
        lambda seed: tf.random.stateless_uniform([3, 2], seed, None, None, tf.uint32, alg="philox"),
    ),
    "float32": (
        lambda seed: philox.uniform([3, 2], seed, -0.3, 1.7),
        lambda seed: tf.random.stateless_uniform([3, 2], seed, -0.3, 1.7, alg="philox"),
    ),
    "int32": (
        lambda seed: philox.uniform([3, 2], seed, -3, 40, tf.int32),
        lambda seed: tf.random.stateless_uniform([3, 2], seed, -3, 40, tf.int32, alg="philox"),
    ),
    "shuffled": (
        lambda seed: philox.shuffled(tf.range(20), seed),
        lambda seed: tf.random.experimental.stateless_shuffle(tf.range(20), seed, alg="philox"),
    ),
}


def check(drawn, expected):
    """For seeds of 32 and 64 bits, negative ones among them."""
    for dtype, seeds in ((tf.int64, SEEDS), (tf.int32, SEEDS[:3])):
        for seed in seeds:
            seed = tf.constant(seed, dtype)
            assert np.array_equal(drawn(seed), expected(seed))


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_tensorflow(name):
    check(*DRAWS[name])


@pytest.mark.slow
def test_bits_are_the_same_under_xla():
    ours, theirs = DRAWS["bits"]
    check(tf.function(ours, jit_compile=True), theirs)
