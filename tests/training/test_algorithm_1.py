"""CLAF's second stage beside a plain Algorithm 1 that shares nothing with it but its batches."""

import numpy as np
import tensorflow as tf
from tiny import BATCH, image_data, runner, tiny_clafs, tiny_network

from benchmarks.plain_claf import PlainCLAF
from keras_rcl.runtime.progress import Silent
from keras_rcl.vocabulary.attacks import PGD
from keras_rcl.vocabulary.phase import SGD


def test_an_epoch_ends_in_the_weights_of_the_plain_algorithm():
    """Under SGD: Adam's first steps are the signs of gradients, which rounding turns round."""
    by_sgd = SGD(learning_rate=0.05, momentum=0.0)
    attack = PGD(epsilon=8 / 255, step_size=4 / 255, num_steps=2, random_start=False)
    method = tiny_clafs(inner_epochs=2, attack=attack, optimizer=by_sgd, inner_optimizer=by_sgd)
    data, phase = image_data(2 * BATCH), method.phases()[1]
    ours, theirs = tiny_network(), tiny_network()
    before = ours.get_weights()
    inner = runner(ours, phase.refresh[0], data, seed=(0, 1))
    outer = runner(ours, phase, data, seed=(0, 0))
    inner.begin()
    for _ in range(2):
        inner.run_epoch(Silent(), "")
    outer.run_epoch(Silent(), "")

    def epochs():
        for epoch in range(2):
            inner.batches.start_epoch(epoch)
            yield ((views[0], labels) for views, labels, _ in inner.batches.dataset)

    plain = PlainCLAF(theirs, method)
    outer.batches.start_epoch(0)
    plain.epoch(epochs(), ((*tf.unstack(views, 3), labels) for views, labels, _ in outer.batches.dataset))
    moved = [np.abs(after - start).max() for after, start in zip(ours.get_weights(), before, strict=True)]
    assert sum(size > 1e-4 for size in moved) > len(moved) / 2
    for found, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)
