"""RayS against a plain loop of the published algorithm, and against linear models whose nearest point is known."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_rcl.attacks.gradient_ascent import Round
from keras_rcl.attacks.rays import minimal_perturbation, rays
from keras_rcl.vocabulary.attacks import RayS

pytestmark = pytest.mark.slow

EASY = RayS(num_queries=400)


def linear(weights, bias, x):
    """In float64, so that an example's logits do not hang on its place in the batch."""
    return tf.reshape(tf.cast(x, tf.float64), [tf.shape(x)[0], -1]) @ weights + bias


def two_classes(shape, distance, count=6, seed=0):
    """(logits_fn, images [N, *shape], labels [N]) whose border is a hyperplane at the given L-inf distance of each."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0.4, 0.6, (count, *shape)).astype("float32")
    weights = rng.normal(size=(np.prod(shape), 2))
    difference = weights[:, 0] - weights[:, 1]
    scores = images.reshape(count, -1).astype("float64") @ difference
    labels = rng.integers(0, 2, count).astype("int32")
    bias = np.where(labels == 0, 1, -1) * distance * np.abs(difference).sum() - scores

    def logits(x):
        return linear(weights, np.stack([bias, np.zeros(count)], axis=1), x)

    return logits, images, labels


def bent(shape, classes=3, seed=0):
    """(logits_fn, images [4, *shape]), a small network; the images have a third of their pixels on the box's edge."""
    rng = np.random.default_rng(seed)
    hidden, output = rng.normal(size=(np.prod(shape), 8)), rng.normal(size=(8, classes))
    images = np.clip(rng.uniform(-0.25, 1.25, (4, *shape)), 0, 1).astype("float32")
    return lambda x: tf.tanh(linear(hidden, 0.0, x - 0.5)) @ output, images


def classes_of(logits_fn, images):
    return np.argmax(logits_fn(tf.constant(images)), axis=1).astype("int32")


def run(function, logits_fn, images, labels, attack, jit=False):
    graph = tf.function(
        lambda x, y: tuple(function(logits_fn, x, y, attack, *([Round()] if function is rays else [])))[:2],
        autograph=False,
        jit_compile=jit,
    )
    return [part.numpy() for part in graph(images, np.asarray(labels, "int32"))]


def counted(logits_fn):
    """The function, and how often it has been called."""
    calls = tf.Variable(0)

    def counting(x):
        calls.assign_add(1)
        return logits_fn(x)

    return counting, calls


def distances(images, others):
    return np.abs(images.astype("float64") - others).reshape(len(images), -1).max(axis=1)


# The published algorithm, for one image [C, H, W], in float64 and with radii of L2 length


class Spent(Exception):
    """The budget of queries is."""


def published(predict, image, label, num_queries, tolerance):
    """(images asked, best radius, best ray): Algorithm 3 of the paper with Algorithm 1, cut off after `num_queries`."""
    asked, size = [], image.size
    best_ray, best_radius = np.ones(size), np.inf

    def fools(radius, ray):
        if len(asked) == num_queries:
            raise Spent
        moved = np.clip(image.ravel() + radius * ray / np.sqrt(size), 0, 1).reshape(image.shape)
        asked.append(moved)
        return predict(moved) != label

    def boundary_radius(ray):
        nonlocal best_ray, best_radius
        if not fools(best_radius, ray):
            return
        start, end = 0.0, min(best_radius, np.sqrt(size))
        try:
            while end - start > tolerance:
                middle = (start + end) / 2
                if fools(middle, ray):
                    end = middle
                else:
                    start = middle
        finally:
            if end < best_radius:
                best_ray, best_radius = ray, end

    try:
        for level in itertools.count():
            length = -(-size // 2**level)
            for start in range(0, size, length):
                ray = best_ray.copy()
                ray[start : start + length] *= -1
                boundary_radius(ray)
    except Spent:
        return asked, best_radius, best_ray


@pytest.mark.slow
@settings(max_examples=10)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    num_queries=st.integers(1, 90),
    tolerance=st.sampled_from([1e-3, 3e-2]),
    seed=st.integers(0, 9),
)
def test_asks_what_the_published_algorithm_asks(shape, num_queries, tolerance, seed):
    """Query by query and image by image, of examples that take different turns; the second is wrong from the start."""
    logits, images = bent(shape, seed=seed)
    labels = classes_of(logits, images)
    labels[1] = (labels[1] + 1) % 3
    seen = []

    def recorded(x):
        seen.append(x.numpy())
        return logits(x)

    attack = RayS(num_queries=num_queries, tolerance=tolerance)
    found, distance = minimal_perturbation(recorded, tf.constant(images), tf.constant(labels), attack)[:2]
    for example, image in enumerate(images):
        asked, radius, ray = published(
            lambda moved: classes_of(logits, moved.transpose(1, 2, 0)[None])[0],
            image.transpose(2, 0, 1).astype("float64"),
            labels[example],
            num_queries,
            tolerance,
        )
        assert len(asked) == num_queries
        for query, (ours, theirs) in enumerate(zip(seen, asked, strict=False)):
            np.testing.assert_allclose(ours[example], theirs.transpose(1, 2, 0), atol=1e-6, err_msg=str(query))
        if radius == np.inf:
            assert np.isinf(distance[example]) and np.array_equal(found[example], image)
            continue
        moved = radius / np.sqrt(image.size) * ray.reshape(image.transpose(2, 0, 1).shape)
        expected = np.clip(image + moved.transpose(1, 2, 0), 0, 1)
        np.testing.assert_allclose(found[example], expected, atol=1e-6)
        np.testing.assert_allclose(distance[example], np.abs(expected - image).max(), atol=1e-6)


@pytest.mark.parametrize(
    "shape, attack",
    [
        ((4, 4, 1), RayS(num_queries=1000)),
        # Where no pixel's sign is worth an interval of the default tolerance, it would stay wrong.
        ((8, 8, 1), RayS(num_queries=4000, tolerance=1e-5)),
        ((4, 4, 3), RayS(num_queries=4000, tolerance=1e-5)),
    ],
)
def test_comes_near_the_distance_of_a_hyperplane(shape, attack):
    """|margin| / ||w||_1, which no point of the other class is closer than."""
    logits, images, labels = two_classes(shape, 0.05)
    found, distance = run(minimal_perturbation, logits, images, labels, attack)
    assert np.all(classes_of(logits, found) != labels)
    np.testing.assert_allclose(distances(found, images), distance, rtol=1e-5)
    assert np.all(distance > 0.05 * (1 - 1e-5)) and np.all(distance < 0.05 * 1.05)


@pytest.mark.parametrize("seed", range(5))
def test_no_ray_of_all_is_shorter(seed):
    """The 64 rays of a 3 x 2 image, each searched for its first point of another class at 4000 radii."""
    logits, images = bent((3, 2, 1), seed=seed)
    labels = classes_of(logits, images)
    found, distance = run(minimal_perturbation, logits, images, labels, RayS(num_queries=2000, tolerance=1e-5))
    radii = np.linspace(0, 1, 4001)[:, None]
    for image, label, nearest in zip(images, labels, distance, strict=True):
        rays_ = itertools.product([-1, 1], repeat=6)
        points = np.concatenate([np.clip(image.ravel() + radii * np.array(ray), 0, 1) for ray in rays_])
        fooled = classes_of(logits, points.reshape(-1, 3, 2, 1)) != label
        shortest = np.abs(points[fooled] - image.ravel()).max(axis=1).min() if fooled.any() else np.inf
        assert nearest >= shortest - 1 / 4000
    fell = np.isfinite(distance)
    assert fell.any()
    assert np.array_equal(classes_of(logits, found) != labels, fell)


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.1, 0.3, 1.0])
def test_what_falls_is_what_the_whole_budget_brings_within_epsilon(epsilon):
    """Stopping at the first image within epsilon spares none; an image that does not fall comes back as it is."""
    logits, images = bent((5, 5, 2), seed=3)
    labels = classes_of(logits, images)
    attack = dataclasses.replace(EASY, epsilon=epsilon)
    _, distance = run(minimal_perturbation, logits, images, labels, attack)
    counting, calls = counted(logits)
    x_adv, zeros = run(rays, counting, images, labels, attack)
    fell = classes_of(logits, x_adv) != labels
    assert np.array_equal(fell, distance <= epsilon)
    assert x_adv[~fell].tobytes() == images[~fell].tobytes()
    assert np.all(distances(x_adv, images) <= epsilon + 1e-7)
    assert (calls.numpy() < attack.num_queries) == fell.all()
    assert zeros.tolist() == [0.0] * len(images)


def test_an_example_that_has_fallen_waits_for_the_others():
    """It comes back as the first image that was seen within epsilon, however long the others take."""
    logits, images, labels = two_classes((4, 4, 1), np.array([0.05, 0.02, 0.001, 0.9, 0.1, 0.3]))
    x_adv, _ = run(rays, logits, images, labels, dataclasses.replace(EASY, epsilon=0.12))
    assert (classes_of(logits, x_adv) != labels).tolist() == [True, True, True, False, True, False]
    seen = []

    def recorded(x):
        seen.append(x.numpy())
        return logits(x)

    rays(recorded, tf.constant(images), tf.constant(labels), dataclasses.replace(EASY, epsilon=0.12), Round())
    for example in (0, 1, 2, 4):
        first = next(
            x[example]
            for x in seen
            if classes_of(logits, x)[example] != labels[example] and distances(x, images)[example] <= 0.12
        )
        np.testing.assert_allclose(x_adv[example], first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_queries", [1, 2, 57])
def test_asks_as_often_as_it_may_and_returns_what_it_was_given(num_queries):
    """Of a classifier that is never fooled; nothing is found."""
    images = np.random.default_rng(0).uniform(size=(3, 4, 4, 1)).astype("float32")
    counting, calls = counted(lambda x: tf.zeros([tf.shape(x)[0], 2]))
    attack = RayS(num_queries=num_queries)
    for function, count in ((rays, num_queries), (minimal_perturbation, 2 * num_queries)):
        found, _ = run(function, counting, images, [0, 0, 0], attack)
        assert calls.numpy() == count
        assert found.tobytes() == images.tobytes()
    assert np.all(np.isinf(run(minimal_perturbation, counting, images, [0, 0, 0], attack)[1]))


def test_nothing_but_the_class_is_looked_at():
    logits, images = bent((4, 4, 2), seed=1)
    labels = classes_of(logits, images)
    found, distance = run(minimal_perturbation, logits, images, labels, EASY)

    def one_hot(x):
        return tf.one_hot(tf.argmax(logits(x), axis=1), 3)

    assert run(minimal_perturbation, one_hot, images, labels, EASY)[0].tobytes() == found.tobytes()
    assert np.isfinite(distance).any()


def test_compiled_alike():
    logits, images = bent((4, 4, 2), seed=1)
    labels = classes_of(logits, images)
    attack = dataclasses.replace(EASY, epsilon=0.2)
    compiled, _ = run(rays, logits, images, labels, attack, jit=True)
    np.testing.assert_allclose(compiled, run(rays, logits, images, labels, attack)[0], rtol=0, atol=1e-6)


def test_no_gradient_comes_back():
    logits, images, labels = two_classes((4, 4, 1), 0.05)
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = [*minimal_perturbation(logits, x, labels, EASY), *rays(logits, x, labels, EASY, Round())]
        total = tf.add_n([tf.reduce_sum(part) for part in found])
    assert tape.gradient(total, x) is None


def test_the_graph_does_not_grow_with_the_queries():
    logits, images, labels = two_classes((4, 4, 1), 0.05)

    def nodes(num_queries):
        attack = RayS(num_queries=num_queries)
        function = tf.function(lambda x, y: rays(logits, x, y, attack, Round()).images, autograph=False)
        graph = function.get_concrete_function(images, labels).graph.as_graph_def()
        return len(graph.node) + sum(len(part.node_def) for part in graph.library.function)

    assert nodes(10) == nodes(10_000)


def test_says_what_it_costs():
    assert RayS().num_passes == (10_000, 0) and RayS(num_queries=7).num_passes == (7, 0)
    assert RayS().num_rounds == 1 and RayS().cost == 10_000
