"""CW against a NumPy loop of its equations, and against linear models whose nearest adversarial image is known."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.attacks.carlini_wagner import carlini_wagner, minimal_perturbation
from keras_rcl.attacks.gradient_ascent import Round
from keras_rcl.errors import InvalidInputError
from keras_rcl.networks import build_network
from keras_rcl.vocabulary.attacks import CarliniWagner
from keras_rcl.vocabulary.network import Network

pytestmark = pytest.mark.slow

CLASSES = 3
RNG = np.random.default_rng(0)
# A third of the pixels on the edge of the box.
IMAGES = np.clip(RNG.uniform(-0.25, 1.25, (6, 4, 4, 1)), 0, 1).astype("float32")
# Away from the box, where tanh has few digits in float32 and a pixel takes many steps to leave.
INNER = np.clip(IMAGES, 0.1, 0.9)
KERNEL = RNG.normal(size=(16, CLASSES))
HIDDEN, OUTPUT = RNG.normal(size=(16, 8)) / 2, RNG.normal(size=(8, CLASSES))
ATTACK = CarliniWagner(num_steps=40, binary_search_steps=4, initial_const=0.05, learning_rate=0.03)


def linear(x):
    """0 at middle grey; in float64, so that an example's logits do not hang on its place in the batch."""
    return tf.cast(tf.reshape(tf.cast(x, tf.float64) - 0.5, [-1, 16]) @ KERNEL, tf.float32)


def smooth(x):
    return tf.cast(tf.tanh(tf.reshape(tf.cast(x, tf.float64) - 0.5, [-1, 16]) @ HIDDEN) @ OUTPUT, tf.float32)


LABELS = np.argmax(linear(IMAGES), axis=1).astype("int32")


def run(attack, logits=linear, images=IMAGES, labels=LABELS, function=minimal_perturbation):
    rest = (Round(),) if function is carlini_wagner else ()
    graph = tf.function(lambda x, y: function(logits, x, y, attack, *rest)[:2], autograph=False)
    return tuple(part.numpy() for part in graph(tf.constant(images), tf.constant(labels, tf.int32)))


def lengths(delta):
    return np.sqrt((np.asarray(delta, "float64").reshape(len(delta), -1) ** 2).sum(axis=1))


def in_numpy(image, label, attack):
    """One image on the linear model, in float64: (closest, distance, constants), by scalars where that is clearer."""
    x = image.reshape(-1).astype("float64")
    closest, distance = x, 0.0 if np.argmax((x - 0.5) @ KERNEL) != label else np.inf
    low, high, constant, constants = 0.0, np.inf, attack.initial_const, []
    for _ in range(attack.binary_search_steps):
        constants.append(constant)
        w, m, v = np.arctanh(0.999999 * (2 * x - 1)), np.zeros(16), np.zeros(16)
        fooled, checked = False, np.inf
        for t in range(1, attack.num_steps + 1):
            moved = (np.tanh(w) + 1) / 2
            logits = (moved - 0.5) @ KERNEL
            rival = max((k for k in range(CLASSES) if k != label), key=lambda k: logits[k])
            ahead = logits[rival] - logits[label]
            size = np.sqrt(((moved - x) ** 2).sum())
            if ahead > attack.confidence:
                fooled = True
                if size < distance:
                    closest, distance = moved, size
            objective = size**2 + constant * max(-ahead, -attack.confidence) + constant * attack.confidence
            if (t - 1) % (attack.num_steps // 10) == 0:
                if objective > 0.9999 * checked:
                    break
                checked = objective
            pixels = 2 * (moved - x)
            if ahead < attack.confidence:
                pixels += constant * (KERNEL[:, label] - KERNEL[:, rival])
            gradient = pixels * (1 - np.tanh(w) ** 2) / 2
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            w = w - attack.learning_rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        if fooled:
            high = constant
        else:
            low = constant
        constant = 10 * constant if high == np.inf else (low + high) / 2
    return closest, distance, constants


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"confidence": 0.7},
        {"initial_const": 0.01, "learning_rate": 0.01},
        {"num_steps": 200, "binary_search_steps": 2},
        {"learning_rate": 0.2},
    ],
)
def test_against_a_numpy_loop(change):
    attack = dataclasses.replace(ATTACK, **change)
    labels = np.argmax(linear(INNER), axis=1)
    labels[0] = (labels[0] + 1) % CLASSES
    found, distance = run(attack, images=INNER, labels=labels)
    grown = halved = 0
    for index, (image, label) in enumerate(zip(INNER, labels, strict=True)):
        closest, expected, constants = in_numpy(image, label, attack)
        assert distance[index] == pytest.approx(expected, rel=1e-3)
        np.testing.assert_allclose(found[index].reshape(-1), closest, atol=1e-3)
        grown += constants[1] > constants[0]
        halved += constants[1] < constants[0]
    assert distance[0] == 0 and np.all(distance[1:] > 0)
    assert grown if "initial_const" in change else halved


def test_within_5_percent_of_the_smallest_distance_with_the_defaults():
    """(z_y - z_j) / ||w_y - w_j||_2, where the box does not bind, it is not stepped over, and j, the runner-up that the
    margin follows, is the nearest.
    """
    images = np.random.default_rng(1).uniform(0.3, 0.7, (40, 4, 4, 1)).astype("float32")
    values = linear(images).numpy().astype("float64")
    labels, runners_up = np.argsort(-values, axis=1)[:, :2].T
    reach = np.linalg.norm(KERNEL[:, :, None] - KERNEL[:, None], axis=0)
    reach[np.eye(CLASSES, dtype=bool)] = np.nan
    distances = (values.max(axis=1, keepdims=True) - values) / reach[labels]
    expected = np.nanmin(distances, axis=1)
    fair = (np.nanargmin(distances, axis=1) == runners_up) & (expected > 0.04)
    assert fair.sum() > 20
    found, distance = run(CarliniWagner(), images=images[fair], labels=labels[fair])
    np.testing.assert_allclose(lengths(found - images[fair]), distance, rtol=1e-5)
    assert np.all(distance >= expected[fair] * (1 - 1e-3)) and np.all(distance <= 1.05 * expected[fair])
    assert np.all(np.argmax(linear(found), axis=1) != labels[fair])


def test_what_is_within_epsilon_and_else_the_image():
    closest, distance = run(ATTACK)
    assert np.all(np.isfinite(distance)) and closest.min() >= 0 and closest.max() <= 1
    for epsilon in (0.0, float(np.median(distance)), float(distance.max())):
        images, zeros = run(ATTACK.with_epsilon(epsilon), function=carlini_wagner)
        within = distance <= np.float32(epsilon)
        assert np.array_equal(images[within], closest[within])
        assert np.array_equal(images[~within], IMAGES[~within])
        assert np.array_equal(np.argmax(linear(images), axis=1) != LABELS, within)
        assert np.array_equal(zeros, np.zeros(len(IMAGES)))


def test_what_is_misclassified_as_it_is_stays():
    wrong = (LABELS + np.arange(6) % 2) % CLASSES
    closest, distance = run(ATTACK, labels=wrong)
    assert np.array_equal(closest[1::2], IMAGES[1::2]) and np.all(distance[1::2] == 0)
    assert np.all(distance[::2] > 0)


def test_the_margin_is_at_least_the_confidence():
    attack = dataclasses.replace(ATTACK, confidence=2.0, num_steps=100)
    closest, distance = run(attack, images=INNER)
    logits = linear(closest).numpy()
    label = np.eye(CLASSES, dtype=bool)[LABELS]
    ahead = np.where(label, -np.inf, logits).max(axis=1) - logits[label]
    assert np.all(ahead > 2 - 1e-4) and np.all(ahead < 2.5)
    assert np.all(distance > run(ATTACK, images=INNER)[1])


def test_nothing_to_find():
    """A constant classifier with gradients, whose border is outside the box; one without any gradient."""

    def far(x):
        return tf.stack([10.0 - tf.reduce_mean(x, axis=(1, 2, 3)), tf.zeros_like(x[:, 0, 0, 0])], axis=1)

    labels = np.zeros(6, int)
    for logits, share in ((far, 0), (lambda x: far(x * 0.0), 1)):
        closest, distance = run(ATTACK, logits, labels=labels)
        assert np.array_equal(closest, IMAGES) and np.all(distance == np.inf)
        images, zeros = run(ATTACK.with_epsilon(100.0), logits, labels=labels, function=carlini_wagner)
        assert np.array_equal(images, IMAGES) and np.all(zeros == share)
    with pytest.raises(InvalidInputError, match="no gradient"):
        run(ATTACK, lambda x: tf.stop_gradient(far(x)), labels=labels)


def test_an_image_that_is_done_waits_for_nobody():
    """The loop ends when the last image is done, so a stubborn neighbour makes it long; the others do not notice."""
    attack = dataclasses.replace(ATTACK, num_steps=200)
    steps = tf.Variable(0)

    def counting(x):
        steps.assign_add(1)
        return smooth(x)

    labels = np.argmax(smooth(IMAGES), axis=1)
    alone, taken = [], []
    for index in range(6):
        steps.assign(0)
        alone.append(run(attack, counting, IMAGES[[index]], labels[[index]])[0][0])
        taken.append(int(steps))
    assert len(set(taken)) > 1 and max(taken) < 4 * 200 + 1
    together = run(attack, smooth, labels=labels)[0]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    order = [3, 0, 5, 2, 1, 4]
    np.testing.assert_allclose(run(attack, smooth, IMAGES[order], labels[order])[0], together[order], atol=1e-5)


def test_compiled_by_xla_alike():
    arguments = tf.constant(IMAGES), tf.constant(LABELS), ATTACK
    graph = tf.function(lambda: minimal_perturbation(linear, *arguments)[0], autograph=False, jit_compile=True)
    np.testing.assert_allclose(graph(), run(ATTACK)[0], rtol=0, atol=1e-4)


def test_the_network_is_untouched_and_the_tape_sees_nothing():
    network = build_network(Network(projection_hidden=8, projection_dim=4, normalization="minus1to1"), (8, 8, 1), 3)
    x = tf.constant(np.random.default_rng(9).uniform(size=(4, 8, 8, 1)).astype("float32"))
    before = [np.array(variable).tobytes() for variable in network.variables]

    def logits(images):
        return network(images, training=False)["logits"]

    labels = tf.argmax(logits(x), axis=1, output_type=tf.int32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        images, distance = minimal_perturbation(logits, x, labels, dataclasses.replace(ATTACK, num_steps=3))[:2]
        total = tf.reduce_sum(images**2) + tf.reduce_sum(distance)
    weights = [variable.value for variable in network.trainable_variables]
    assert all(gradient is None for gradient in tape.gradient(total, [x, *weights]))
    assert [np.array(variable).tobytes() for variable in network.variables] == before
    assert images.dtype == tf.float32 and images.shape == x.shape


@pytest.mark.parametrize("field", ["num_steps", "binary_search_steps"])
def test_the_graph_does_not_grow(field):
    def operations(value):
        attack = dataclasses.replace(ATTACK, **{field: value})
        graph = tf.function(lambda x, labels: minimal_perturbation(linear, x, labels, attack), autograph=False)
        definition = graph.get_concrete_function(IMAGES, LABELS).graph.as_graph_def()
        return len(definition.node) + sum(len(function.node_def) for function in definition.library.function)

    assert operations(2) == operations(200) > 100


def test_as_many_passes_as_it_says():
    calls = tf.Variable(0)

    def counting(x):
        calls.assign_add(1)
        # Never fooled, and the objective falls with every step.
        return 100.0 * linear(x) + 1e3 * tf.one_hot(LABELS, CLASSES)

    run(dataclasses.replace(ATTACK, num_steps=5), counting)
    assert calls.numpy() == dataclasses.replace(ATTACK, num_steps=5).num_passes[0] == 21
