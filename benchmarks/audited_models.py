"""Classifiers of scikit-learn's digits for `benchmarks.audits`: honest ones, and ones that fool gradients.

Each is a small network of 8x8 pixels, trained adversarially in a few seconds. A model that fools gradients comes with
the functions that an attacker who knows the defence would attack instead of it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_rcl.attacks import craft
from keras_rcl.vocabulary.attacks import PGD

EPSILON = 32 / 255
TRAINED, TESTED = slice(0, 1297), slice(1297, 1797)
TINY = np.finfo(np.float32).tiny


class Audited(NamedTuple):
    """A classifier.

    Attributes:
        logits: images [N, 8, 8, 1] -> [N, 10].
        surrogates: what an adaptive attacker attacks in its place; the model itself is attacked as well.
        probabilities: whether the model's output is a softmax, of which `logits` are the logarithm.
    """

    logits: Callable
    surrogates: tuple[Callable, ...] = ()
    probabilities: bool = False


@functools.cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """The digits, float32 [1797, 8, 8, 1] in [0, 1], and their labels."""
    digits = load_digits()
    return (digits.images[..., None] / 16).astype("float32"), digits.target.astype("int32")


@functools.cache
def network(seed: int = 0, activation: str = "relu", average: bool = False, epochs: int = 15) -> keras.Model:
    """A network of one hidden layer, trained on PGD examples of each epoch's network.

    Args:
        seed: of the weights.
        activation: of the hidden layer.
        average: take the moving average of the weights.
        epochs: of training.
    """
    keras.utils.set_random_seed(seed)
    images, labels = (array[TRAINED] for array in data())
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(96, activation)]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    decay = {"use_ema": True, "ema_momentum": 0.95} if average else {}
    optimizer = keras.optimizers.Adam(3e-3, **decay)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    attack = PGD(epsilon=EPSILON / 2, num_steps=5)
    crafted = tf.function(lambda x, y: craft(attack, model, x, y), autograph=False)
    for _ in range(epochs):
        model.fit(crafted(images, labels), labels, batch_size=64, epochs=1, verbose=0)
    return model


def without_gradient(function: Callable) -> Callable:
    """The function, with a gradient of zero."""
    cut = tf.custom_gradient(lambda x, outputs: (tf.identity(outputs), lambda upstream: (tf.zeros_like(x), None)))
    return lambda x: cut(x, tf.stop_gradient(function(x)))


def weights(model: keras.Model) -> tuple[tf.Tensor, ...]:
    """Kernel and bias of the hidden layer and of the last one."""
    return tuple(tf.constant(array) for array in model.get_weights())


def through_hidden(model: keras.Model, change: Callable) -> Callable:
    """The network with something done to its hidden layer before the ReLU."""
    kernel, bias, last, offset = weights(model)
    return lambda x: change(tf.reshape(x, [-1, 64]) @ kernel + bias) @ last + offset


# --- honest models ----------------------------------------------------------------------------------------------------


def softmax_outputs() -> Audited:
    """A softmax at the end; what is attacked is its logarithm, as of a model on disk."""
    model = network()
    return Audited(lambda x: tf.math.log(tf.maximum(tf.nn.softmax(model(x)), TINY)), probabilities=True)


def scaled_logits() -> Audited:
    """Logits times 1,000: attacks on the cross-entropy are blind."""
    model = network()
    return Audited(lambda x: 1000.0 * model(x), (model,))


def temperature() -> Audited:
    """Logits divided by 10, as after calibration."""
    model = network()
    return Audited(lambda x: model(x) / 10.0, (model,))


def ensemble() -> Audited:
    """The mean of the probabilities of three networks."""
    models = [network(seed) for seed in range(3)]
    return Audited(lambda x: tf.math.log(tf.add_n([tf.nn.softmax(model(x)) for model in models]) / 3 + TINY))


def relu6() -> Audited:
    """A network with ReLU6."""
    return Audited(network(activation="relu6"))


def averaged_weights() -> Audited:
    """The moving average of the weights."""
    return Audited(network(average=True))


def smooth_activation() -> Audited:
    """A network with SiLU."""
    return Audited(network(activation="silu"))


# --- models that fool gradients ---------------------------------------------------------------------------------------


def reversed_gradient() -> Audited:
    """The gradient that the model returns points away from every adversarial image."""
    model = network()
    flip = tf.custom_gradient(lambda x: (tf.identity(x), lambda upstream: -upstream))
    return Audited(lambda x: model(flip(x)), (model,))


def decoy_network() -> Audited:
    """The gradient is that of another network, trained on other labels."""
    model, decoy = network(), network(7, epochs=1)

    def logits(x):
        other = tf.roll(decoy(x), 3, axis=1)
        return other + tf.stop_gradient(model(x) - other)

    return Audited(logits, (model,))


def ripple() -> Audited:
    """A wave of small height and steep slope on the logits, which hides their own slope."""
    model = network()
    waves = tf.constant(np.random.default_rng(0).normal(size=(64, 10)).astype("float32"))
    return Audited(lambda x: model(x) + 0.02 * tf.sin(3000.0 * (tf.reshape(x, [-1, 64]) @ waves)), (model,))


def hard_labels() -> Audited:
    """One at the predicted class and zero elsewhere, without a gradient."""
    model = network()
    return Audited(without_gradient(lambda x: tf.one_hot(tf.argmax(model(x), axis=1), 10)), (model,))


def squashed_logits() -> Audited:
    """A steep tanh on the differences from the largest logit: scores tell hardly more than the class."""
    model = network()

    def logits(x):
        z = model(x)
        return tf.tanh(200.0 * (z - tf.reduce_max(z, axis=1, keepdims=True))) + 1.0

    return Audited(logits, (model,))


def steep_pixels() -> Audited:
    """A steep sigmoid on every pixel: gradients vanish where pixels are dark or bright."""
    model = network()

    def squashed(slope):
        return lambda x: model(tf.sigmoid(slope * (x - 0.5)))

    return Audited(squashed(60.0), (squashed(8.0), squashed(20.0), model))


def bit_depth() -> Audited:
    """Pixels of five levels."""
    model = network()
    return Audited(lambda x: model(without_gradient(lambda x: tf.round(x * 4) / 4)(x)), (model,))


def quantised_activations() -> Audited:
    """A hidden layer of coarse levels, without a gradient."""
    model = network()
    coarse = without_gradient(lambda h: tf.round(2.0 * tf.nn.relu(h)) / 2.0)
    return Audited(through_hidden(model, coarse), (model,))


def plateaus() -> Audited:
    """Logits rounded to whole numbers, without a gradient."""
    model = network()
    return Audited(lambda x: without_gradient(tf.round)(2.0 * model(x)), (model,))


def winners_take_all() -> Audited:
    """The 10 largest of 96 hidden units pass, the others are zero (k-WTA)."""
    model = network()

    def winners(h):
        return tf.where(h >= tf.math.top_k(h, 10).values[:, -1:], tf.nn.relu(h), 0.0)

    return Audited(through_hidden(model, winners), (model,))


def votes() -> Audited:
    """The votes of seven networks, counted."""
    models = [network(seed, epochs=8) for seed in range(7)]

    def counted(x):
        return tf.add_n([tf.one_hot(tf.argmax(model(x), axis=1), 10) for model in models])

    def softened(x):
        return tf.math.log(tf.add_n([tf.nn.softmax(4.0 * model(x)) for model in models]))

    return Audited(without_gradient(counted), (softened, lambda x: tf.add_n([model(x) for model in models])))


def detector() -> Audited:
    """A detector of rough images passes them, smoothed, to another network; the choice has no gradient."""
    model, other = network(), network(1)
    roughness = tf.constant(_roughness(data()[0][TRAINED]).numpy())
    threshold = float(np.quantile(roughness, 0.9))

    def smooth(x):
        return tf.nn.avg_pool2d(x, 2, 1, "SAME") * 0.5 + x * 0.5

    def logits(x):
        rough = tf.stop_gradient(_roughness(x)) > threshold
        return tf.where(rough[:, None], other(smooth(x)), model(x))

    def both(x):
        return model(x) + other(smooth(x))

    return Audited(logits, (both, model, lambda x: other(smooth(x))))


def _roughness(x) -> tf.Tensor:
    """[N], the mean absolute difference of neighbouring pixels."""
    down, across = tf.abs(x[:, 1:] - x[:, :-1]), tf.abs(x[:, :, 1:] - x[:, :, :-1])
    return tf.reduce_mean(down, axis=(1, 2, 3)) + tf.reduce_mean(across, axis=(1, 2, 3))


def keyed_noise() -> Audited:
    """Noise that a hash of the image determines: every image has its own, always the same."""
    model = network()
    key = tf.constant(np.random.default_rng(1).normal(size=(64, 64)).astype("float32"))

    def noisy(x):
        mixed = tf.reshape(x, [-1, 64]) @ key * 1e4
        return x + 0.15 * tf.reshape(tf.stop_gradient(tf.sin(mixed)), tf.shape(x))

    return Audited(lambda x: model(noisy(x)), (model,))


def random_noise() -> Audited:
    """Noise that is drawn again in each call."""
    model = network()
    return Audited(lambda x: model(x + tf.random.normal(tf.shape(x), stddev=0.2)), (model,))


def random_resizing() -> Audited:
    """Images resized to a random size and back."""
    model = network()

    def resized(x):
        size = tf.random.uniform([], 6, 11, tf.int32)
        return tf.image.resize(tf.image.resize(x, [size, size]), [8, 8])

    return Audited(lambda x: model(resized(x)), (model,))


def counting() -> Audited:
    """The model counts its calls, and shifts the image by one pixel in every other one."""
    model = network()
    calls = tf.Variable(0, dtype=tf.int32)

    def logits(x):
        return model(tf.roll(x, calls.assign_add(1) % 2, axis=2))

    return Audited(logits, (model,))


HONEST = (softmax_outputs, scaled_logits, temperature, ensemble, relu6, averaged_weights, smooth_activation)
DECEPTIVE = (
    *(reversed_gradient, decoy_network, ripple, hard_labels, squashed_logits, steep_pixels, bit_depth),
    *(quantised_activations, plateaus, winners_take_all, votes, detector, keyed_noise),
    *(random_noise, random_resizing, counting),
)
MODELS = {make.__name__: make for make in (*HONEST, *DECEPTIVE)}
