"""Adversarial weight perturbation: its step by hand, and what it leaves as it was."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_trainer import STILL, phase_of, strided_convolution
from tiny import BATCH, CLASSES, eager_epoch, image_data, runner, snapshot, tiny_network

from keras_rcl.networks import parts
from keras_rcl.runtime.progress import Silent
from keras_rcl.training.phase_runner import cost_per_batch
from keras_rcl.training.weight_perturbation import WeightAscent
from keras_rcl.vocabulary.attacks import FGSM
from keras_rcl.vocabulary.phase import SGD, Adversarial, Clean, SupCon, WeightPerturbation

pytestmark = pytest.mark.slow

EVERYTHING = ("encoder", "projector", "classifier")


def linear_network() -> keras.Model:
    """logits = flattened pixels @ kernel + bias, in the parts of the real one."""
    image, row = keras.Input((8, 8, 1)), keras.Input((64,))
    encoder = keras.Model(image, keras.layers.Flatten()(image), name="encoder")
    projector = keras.Model(row, keras.layers.Activation("linear")(row), name="projector")
    initial = keras.initializers.RandomNormal(stddev=0.2, seed=3)
    dense = keras.layers.Dense(CLASSES, kernel_initializer=initial, bias_initializer=initial)
    classifier = keras.Model(row, dense(row), name="classifier")
    embedding = encoder(image)
    return keras.Model(
        image, {"embedding": embedding, "projection": projector(embedding), "logits": classifier(embedding)}
    )


def softmax_gradient(x, labels, kernel, bias):
    """Of the mean cross-entropy, image by image: x (p - y), p - y."""
    by_kernel, by_bias = np.zeros_like(kernel), np.zeros_like(bias)
    for row, label in zip(x, labels, strict=True):
        logits = row @ kernel + bias
        error = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        error[label] -= 1
        by_kernel += np.outer(row, error) / len(x)
        by_bias += error / len(x)
    return by_kernel, by_bias


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_the_steps_of_a_linear_network_by_hand(warmup):
    gamma, rate, data, network = 0.3, 0.2, image_data(BATCH), linear_network()
    kernel, bias = (weight.astype("float64") for weight in network.get_weights())
    awp = WeightPerturbation(gamma=gamma, warmup_epochs=warmup)
    phase = phase_of(Clean(), optimizer=SGD(learning_rate=rate, momentum=0.0), awp=awp)
    steps = runner(network, dataclasses.replace(phase, epochs=3), data)
    x, labels = data.train.images.reshape(BATCH, 64) / 255, data.train.labels
    for epoch in range(3):  # of one step
        plain, _ = softmax_gradient(x, labels, kernel, bias)
        length = gamma * np.sqrt((kernel**2).sum()) if epoch >= warmup else 0.0
        worse = kernel + length * plain / np.sqrt((plain**2).sum())
        by_kernel, by_bias = softmax_gradient(x, labels, worse, bias)
        kernel, bias = kernel - rate * by_kernel, bias - rate * by_bias
        steps.run_epoch(Silent(), "")
        found_kernel, found_bias = network.get_weights()
        np.testing.assert_allclose(found_kernel, kernel, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found_bias, bias, rtol=1e-4, atol=1e-6)


def test_without_a_perturbation_training_is_the_same_to_the_bit():
    idle = WeightPerturbation(gamma=0.5, warmup_epochs=2)
    views = (Clean(), Adversarial(attack=FGSM()))
    phase = phase_of(*views, trains=EVERYTHING, terms=(SupCon(), *phase_of(Clean()).terms))
    phase = dataclasses.replace(phase, epochs=2, optimizer=SGD(learning_rate=0.1), ema=0.9)
    networks = []
    for one in (phase, dataclasses.replace(phase, awp=idle)):
        networks.append(tiny_network())
        steps = runner(networks[-1], one)
        steps.begin()
        for _ in range(2):
            steps.run_epoch(Silent(), "")
    for value, found in zip(*(network.get_weights() for network in networks), strict=True):
        np.testing.assert_array_equal(found, value)


def test_weights_come_back_and_statistics_move_once_at_the_perturbed_ones():
    gamma, data, network = 0.5, image_data(BATCH), tiny_network()
    phase = phase_of(Clean(), trains=("encoder", "classifier"), optimizer=STILL, awp=WeightPerturbation(gamma=gamma))
    steps = runner(network, phase, data)
    x, labels = data.train.images.astype("float32") / 255, data.train.labels
    twin = tiny_network()
    conv = parts(twin)["encoder"].get_layer("conv1")
    with tf.GradientTape() as tape:
        logits = twin(x, training=True)["logits"]
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    gradient = tape.gradient(loss, conv.kernel.value).numpy()
    kernel, bias = conv.get_weights()
    worse = kernel + gamma * np.linalg.norm(kernel) / np.linalg.norm(gradient) * gradient

    before = snapshot(network)
    eager_epoch(steps)
    after = snapshot(network)
    for key, values in before.items():
        if key[1] == "kernel":
            assert all(np.array_equal(a, b) for a, b in zip(values, after[key], strict=True)), key
    norm = parts(network)["encoder"].get_layer("conv1_norm")
    outputs = strided_convolution((x - 0.35) / 0.3, worse, bias)
    np.testing.assert_allclose(norm.moving_mean, 0.1 * outputs.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, 0.9 + 0.1 * outputs.var(axis=(0, 1, 2)), rtol=1e-3)
    plain = strided_convolution((x - 0.35) / 0.3, kernel, bias)
    assert not np.allclose(norm.moving_variance, 0.9 + 0.1 * plain.var(axis=(0, 1, 2)), rtol=1e-2)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_the_size_is_relative_to_the_kernel_whatever_the_scale_of_the_loss(precision):
    network = tiny_network(precision=precision)
    x, labels = image_data(BATCH).train.tensors
    x = tf.cast(x, tf.float32) / 255
    ascent = WeightAscent(network, WeightPerturbation(gamma=0.01))

    def perturbation(scale):
        def loss():
            logits = network(x, training=True)["logits"]
            return scale * tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

        return ascent(loss, 0)

    kernels = [weight for weight in network.trainable_variables if "kernel" in weight.name]
    found = perturbation(1.0)
    assert [v.shape for v in found] == [kernel.shape for kernel in kernels]
    reached = 0
    for kernel, v, scaled in zip(kernels, found, perturbation(2.0**10), strict=True):
        length = np.linalg.norm(v)
        if "projection" in kernel.path:  # of which this loss knows nothing
            assert length == 0
            continue
        reached += 1
        assert length == pytest.approx(0.01 * np.linalg.norm(kernel), rel=1e-3)
        np.testing.assert_allclose(scaled, v, rtol=0.1, atol=0.05 * length)
    assert reached >= 3


def test_an_overflowing_loss_perturbs_nothing():
    network = tiny_network()
    ascent = WeightAscent(network, WeightPerturbation(gamma=0.01))
    x = image_data(BATCH).train.tensors[0]
    found = ascent(lambda: np.inf * tf.reduce_sum(network(tf.cast(x, tf.float32), training=True)["logits"]), 0)
    assert all(not np.any(v) for v in found)


def test_half_precision_trains():
    network = tiny_network(precision="mixed_float16")
    phase = phase_of(Clean(), trains=("encoder", "classifier"), awp=WeightPerturbation(gamma=0.01))
    phase = dataclasses.replace(phase, optimizer=SGD(learning_rate=0.05), epochs=4)
    steps = runner(network, phase, precision="mixed_float16")
    losses = [steps.run_epoch(Silent(), "")["loss"] for _ in range(4)]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]
    assert steps.trainer.traces == 1


def test_it_costs_another_pass_forward_and_back():
    plain = phase_of(Clean(), trains=("encoder", "classifier"))
    assert cost_per_batch(plain) == 3 * BATCH
    assert cost_per_batch(dataclasses.replace(plain, awp=WeightPerturbation(gamma=0.01))) == 6 * BATCH
