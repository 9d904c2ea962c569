"""Ball geometry against NumPy loops, and the draws' distribution."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from keras_rcl.attacks import craft
from keras_rcl.attacks.norms import length, project, random_start, steepest_step
from keras_rcl.vocabulary.attacks import PGD

quick = settings(max_examples=40)
norms = pytest.mark.parametrize("norm", ["linf", "l2"])
SHAPE = (2, 2, 3, 1)
pixels = hnp.arrays("float32", SHAPE, elements=st.floats(0, 1, width=32, allow_subnormal=False))
changes = hnp.arrays("float32", SHAPE, elements=st.floats(-3, 3, width=32, allow_subnormal=False))
radii = st.floats(0, 2).map(lambda value: round(value, 3))


def size(delta, norm):
    flat = [abs(float(value)) for value in np.asarray(delta).ravel()]
    return max(flat) if norm == "linf" else sum(value**2 for value in flat) ** 0.5


@norms
@quick
@given(x=pixels, change=changes, epsilon=radii)
def test_project(norm, x, change, epsilon):
    found = project(tf.constant(x + change), tf.constant(x), epsilon, norm).numpy()
    expected = []
    for image, moved in zip(x.astype("float64"), (x + change).astype("float64"), strict=True):
        delta = moved - image
        if norm == "linf":
            delta = np.array([min(max(value, -epsilon), epsilon) for value in delta.ravel()]).reshape(delta.shape)
        elif size(delta, norm) > epsilon:
            delta = delta * epsilon / size(delta, norm)
        expected.append(np.minimum(np.maximum(image + delta, 0), 1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert found.min() >= 0 and found.max() <= 1
    assert all(size(found[i].astype("float64") - x[i], norm) <= epsilon + 1e-6 for i in range(2))
    np.testing.assert_allclose(project(tf.constant(found), tf.constant(x), epsilon, norm), found, rtol=0, atol=1e-6)
    if epsilon == 0:
        np.testing.assert_array_equal(found, x)


@norms
@quick
@given(gradient=changes, scale=st.sampled_from([1.0, 1e-30, 1e30]))
def test_steepest_step(norm, gradient, scale):
    """Of unit length however large or small the gradient is, and 0 for none."""
    gradient = (np.where(np.abs(gradient) < 1e-3, 0, gradient) * scale).astype("float32")
    found = steepest_step(tf.constant(gradient), norm).numpy()
    for step, slope in zip(found, gradient.astype("float64"), strict=True):
        if norm == "linf":
            np.testing.assert_array_equal(step, np.sign(slope))
        else:
            np.testing.assert_allclose(step, slope / (size(slope, "l2") or 1), rtol=0, atol=1e-6)


@norms
@quick
@given(delta=changes)
def test_length(norm, delta):
    np.testing.assert_allclose(length(tf.constant(delta), norm), [size(row, norm) for row in delta], rtol=1e-6)


def uniformity(values):
    """Largest distance between the distribution of values and the uniform one on [0, 1], in units of 1 / sqrt(n)."""
    values = np.sort(np.ravel(values))
    ranks = np.arange(len(values) + 1) / len(values)
    return max(np.abs(values - ranks[1:]).max(), np.abs(values - ranks[:-1]).max()) * np.sqrt(len(values))


def draws(norm, count=1500, epsilon=0.25):
    seeds = np.stack([np.arange(count), np.zeros(count)], axis=1).astype("int64")
    start = tf.function(lambda x, seeds: random_start(x, epsilon, norm, seeds), autograph=False)
    return (start(tf.fill([count, 2, 2, 1], 0.5), seeds).numpy() - 0.5).reshape(count, 4) / epsilon


def test_uniform_in_the_cube():
    """Kolmogorov and Smirnov: a uniform sample stays below 1.95 in 999 of 1000 cases."""
    found = draws("linf")
    assert all(uniformity((found[:, pixel] + 1) / 2) < 1.95 for pixel in range(4))
    assert np.abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.1


def test_uniform_in_the_l2_ball():
    """In d dimensions the share of the ball within radius r is r^d, and a coordinate's mean square is 1 / (d + 2)."""
    found = draws("l2")
    radius = np.sqrt((found**2).sum(axis=1))
    assert radius.max() <= 1 + 1e-5
    assert uniformity(radius**4) < 1.95
    np.testing.assert_allclose((found**2).mean(axis=0), 1 / 6, atol=0.02)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.05)


def test_a_start_near_the_image_is_normal():
    """TRADES' start. With a gradient of 0 the attack stays there; Kolmogorov and Smirnov: see above."""
    x = np.random.default_rng(0).uniform(0.3, 0.7, (20, 10, 10, 1)).astype("float32")
    attack = PGD(num_steps=1, loss="kl_to_clean", start_deviation=0.01)

    def flat(images):
        return tf.stack([0.0 * tf.reduce_sum(images, axis=(1, 2, 3))] * 2, axis=1)

    moved = np.ravel(craft(attack, flat, x, np.zeros(20, int), seed=3).numpy() - x)
    assert uniformity(stats.norm.cdf(moved / 0.01)) < 1.95 and np.abs(moved).max() <= 8 / 255 + 1e-6
    clipped = craft(PGD(num_steps=1, start_deviation=1.0), flat, x, np.zeros(20, int), seed=3).numpy() - x
    assert np.abs(clipped).max() == pytest.approx(8 / 255, rel=1e-4) and np.mean(np.abs(clipped) > 7.9 / 255) > 0.9
    for fields in ({"random_start": False}, {"start_deviation": 0}):
        with pytest.raises(ValueError, match="needs a random start and a number above 0"):
            PGD(**{"start_deviation": 0.001, **fields})


@norms
def test_a_start_is_cut_to_the_box(norm):
    x = np.tile(np.array([0, 1], "float32").reshape(1, 1, 2, 1), (50, 2, 1, 1))
    found = random_start(tf.constant(x), 0.25, norm, np.stack([np.arange(50)] * 2, axis=1)).numpy()
    assert found.min() == 0 and found.max() == 1
    assert 0 < np.abs(found - x).max() <= 0.25 + 1e-6
