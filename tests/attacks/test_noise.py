"""Noise: its distribution against NumPy's and SciPy's, its draws, ball and box."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keras_rcl.attacks import craft
from keras_rcl.attacks.gradient_ascent import Round
from keras_rcl.attacks.noise import noise
from keras_rcl.vocabulary.attacks import Noise

pytestmark = pytest.mark.slow

KINDS = ("uniform", "gaussian", "salt_and_pepper")
EPSILON = {"linf": 0.1, "l2": 0.8}
every_noise = pytest.mark.parametrize(
    "attack", [Noise(kind=kind, norm=norm, epsilon=EPSILON[norm]) for kind in KINDS for norm in EPSILON], ids=str
)
SHAPE = (12, 12, 2)
PIXELS = int(np.prod(SHAPE))
# No ball reaches the box.
INNER = np.random.default_rng(0).uniform(0.45, 0.55, (60, *SHAPE)).astype("float32")


def run(attack, images, seed=0, jit=False):
    """One draw, each example's from its place and the seed."""
    seeds = tf.stack(
        [tf.range(len(images), dtype=tf.int64), tf.fill([len(images)], tf.constant(seed, tf.int64))], axis=1
    )
    graph = tf.function(lambda x: noise(None, x, None, attack, Round(seeds)).images, autograph=False, jit_compile=jit)
    return graph(images).numpy()


def deltas(attack):
    return run(attack, INNER).astype("float64") - INNER


def lengths(delta):
    return np.sqrt((delta.reshape(len(delta), -1) ** 2).sum(axis=1))


def p_value(sample, distribution):
    return stats.kstest(sample, distribution).pvalue


def test_uniform_in_the_cube():
    delta = deltas(Noise(epsilon=0.1)).ravel()
    assert p_value(delta, stats.uniform(-0.1, 0.2).cdf) > 0.01


def test_uniform_in_the_l2_ball():
    """Of D numbers, the length to the power of D is uniform, and a coordinate of the direction is beta distributed."""
    delta = deltas(Noise(norm="l2", epsilon=0.4))
    assert p_value((lengths(delta) / 0.4) ** PIXELS, "uniform") > 0.01
    squares = (delta[:, 3, 4, 1] / lengths(delta)) ** 2
    assert p_value(squares, stats.beta(0.5, (PIXELS - 1) / 2).cdf) > 0.01


def test_gaussian_cut_to_the_cube():
    """Within the ball a normal distribution's middle, on its surface what was beyond: 2 Phi(-sqrt 3), or 8.3 %."""
    delta = deltas(Noise(kind="gaussian", epsilon=0.1)).ravel()
    surface = np.abs(delta) > 0.1 - 1e-6
    assert np.mean(surface) == pytest.approx(2 * stats.norm.cdf(-np.sqrt(3)), abs=0.006)
    assert p_value(delta[~surface] / (0.1 / np.sqrt(3)), stats.truncnorm(-np.sqrt(3), np.sqrt(3)).cdf) > 0.01


def test_gaussian_of_length_epsilon():
    delta = deltas(Noise(kind="gaussian", norm="l2", epsilon=0.4))
    np.testing.assert_allclose(lengths(delta), 0.4, rtol=1e-5)
    assert p_value(delta.ravel() / (0.4 / np.sqrt(PIXELS)), "norm") > 0.01


@pytest.mark.parametrize("norm", EPSILON)
def test_salt_and_pepper(norm):
    """All channels of a pixel or none; toward white or black alike; a share that is uniform over the images."""
    epsilon = EPSILON[norm]
    delta = deltas(Noise(kind="salt_and_pepper", norm=norm, epsilon=epsilon))
    up, down = delta > 1e-6, delta < -1e-6
    assert np.array_equal(up[..., 0], up[..., 1]) and np.array_equal(down[..., 0], down[..., 1])
    moved = (up | down)[..., 0]
    assert p_value(moved.mean(axis=(1, 2)), "uniform") > 0.01
    assert stats.binomtest(int(up[..., 0].sum()), int(moved.sum())).pvalue > 0.01
    if norm == "linf":
        np.testing.assert_allclose(np.abs(delta[moved]), epsilon, atol=1e-6)
        return
    # On the way to the corner, as far as the ball lets.
    for image, change in zip(INNER, delta, strict=True):
        whole = np.where(change > 1e-6, 1 - image, np.where(change < -1e-6, -image, 0.0))
        size = np.sqrt((whole**2).sum())
        np.testing.assert_allclose(change, whole * min(1, epsilon / max(size, 1e-9)), atol=1e-6)


def test_salt_and_pepper_is_white_and_black_where_the_ball_is_large():
    x_adv = run(Noise(kind="salt_and_pepper", epsilon=1.0), INNER)
    assert np.all((x_adv == 0) | (x_adv == 1) | (x_adv == INNER))
    assert {0.0, 1.0} <= set(x_adv.ravel().tolist())


@settings(max_examples=15)
@given(
    kind=st.sampled_from(KINDS),
    norm=st.sampled_from(sorted(EPSILON)),
    epsilon=st.sampled_from([0.0, 1e-4, 8 / 255, 0.5, 1.0]),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
    seed=st.integers(0, 2**40),
)
def test_in_the_ball_and_in_the_box(kind, norm, epsilon, shape, seed):
    images = np.clip(np.random.default_rng(seed).uniform(-0.25, 1.25, (5, *shape)), 0, 1).astype("float32")
    x_adv = run(Noise(kind=kind, norm=norm, epsilon=epsilon), images, seed)
    assert x_adv.dtype == np.float32 and x_adv.min() >= 0 and x_adv.max() <= 1
    delta = (x_adv.astype("float64") - images).reshape(5, -1)
    size = np.abs(delta).max(axis=1) if norm == "linf" else lengths(delta)
    assert size.max() <= epsilon + 1e-6
    assert epsilon > 0 or x_adv.tobytes() == images.tobytes()


@every_noise
def test_examples_seeds_and_draws_differ(attack):
    first = run(attack, INNER)
    changes = first - INNER
    assert len({change.tobytes() for change in changes}) == len(INNER)
    assert run(attack, INNER).tobytes() == first.tobytes()
    assert np.any(run(attack, INNER, seed=1) != first, axis=(1, 2, 3)).all()
    assert np.any(run(attack, INNER, seed=2**32) != first, axis=(1, 2, 3)).all()


@every_noise
def test_compiled_alike(attack):
    np.testing.assert_allclose(run(attack, INNER, jit=True), run(attack, INNER), rtol=0, atol=1e-6)


@pytest.mark.slow_after(2)
@every_noise
def test_more_draws_fool_more_and_none_loses_what_it_had(attack):
    """A border that a single draw crosses now and then: each draw adds to those before."""
    kernel = np.random.default_rng(1).normal(size=(PIXELS, 1))

    def logits(x):
        rise = tf.reshape(tf.cast(x, tf.float64) - INNER, [-1, PIXELS]) @ kernel
        return tf.concat([rise - 0.5 * EPSILON[attack.norm], tf.zeros_like(rise)], axis=1)

    ones, fell = np.ones(len(INNER), int), []
    for draws in (1, 2, 6):
        drawn = dataclasses.replace(attack, num_restarts=draws)
        x_adv = tf.function(lambda x, drawn=drawn: craft(drawn, logits, x, ones, seed=3), autograph=False)(INNER)
        fell.append(np.argmax(logits(x_adv), axis=1) == 0)
    assert np.all(fell[0] <= fell[1]) and np.all(fell[1] <= fell[2])
    assert 0 < fell[0].mean() < fell[2].mean()


def test_says_what_it_costs():
    """Nothing: the one look at each draw is the evaluation's own."""
    assert Noise().num_passes == (0, 0) and Noise(num_restarts=4).cost == 0
    assert Noise(num_restarts=4).num_rounds == 4
