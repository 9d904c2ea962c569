"""Stateless random numbers by Philox: those of `tf.random.stateless_*` with alg="philox", in 5 operations of their 30.

`StatelessRandomGetKeyCounter` would be one operation less, but XLA's drops the upper half of a 64-bit seed.
"""

import numpy as np
import tensorflow as tf

_PHILOX = tf.random.Algorithm.PHILOX.value
_SEED_KEY = np.array([0x02461E293EC8F720], np.uint64)
"""The key by which TensorFlow mixes the two words of a stateless seed."""
_SECOND_WORD = np.array([0, 1], np.uint64)


def bits(shape, seed: tf.Tensor) -> tf.Tensor:
    """Random uint32 of a shape, given a seed int32 or int64 [2]."""
    return _bits(shape, **_key_and_counter(seed))


def uniform(shape, seed: tf.Tensor, low: float, high: float, dtype=tf.float32) -> tf.Tensor:
    """Uniform draws in [low, high) of a shape, given a seed int32 or int64 [2]; `dtype` is float32 or int32."""
    drawn = dict(_key_and_counter(seed), shape=shape, alg=_PHILOX)
    if dtype.is_integer:
        return tf.raw_ops.StatelessRandomUniformIntV2(minval=low, maxval=high, **drawn)
    least, largest = np.float32(low), np.float32(high)
    return tf.raw_ops.StatelessRandomUniformV2(dtype=dtype, **drawn) * (largest - least) + least


def shuffled(values: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """The rows of a tensor in a random order, given a seed int32 or int64 [2]."""
    return tf.raw_ops.StatelessShuffle(value=values, alg=_PHILOX, **_key_and_counter(seed))


def _bits(shape, key, counter) -> tf.Tensor:
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape, key=key, counter=counter, dtype=tf.uint32, alg=_PHILOX
    )


def _key_and_counter(seed: tf.Tensor) -> dict[str, tf.Tensor]:
    """Of the generator that the seed starts: uint64 [1] and [2]."""
    mixed = tf.bitcast(_bits([2, 2], _SEED_KEY, tf.cast(seed, tf.uint64)), tf.uint64)
    return {"key": mixed[:1], "counter": mixed * _SECOND_WORD}
