"""Randomised smoothing on linear classifiers, of which the probability of a class under noise is known."""

import statistics

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import keras_rcl
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.smoothing import GROUP, Smoother, Smoothing

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=16).astype("float32")
IMAGES = RNG.uniform(0, 1, (12, 4, 4, 1)).astype("float32")
MARGINS = (IMAGES.reshape(-1, 16).astype("float64") - 0.5) @ WEIGHTS
LABELS = (MARGINS > 0).astype(int)
DISTANCES = np.abs(MARGINS) / np.linalg.norm(WEIGHTS.astype("float64"))
NORMAL = statistics.NormalDist()
READ = {"input_range": "0..1", "output": "logits"}


def linear(images):
    """Class 1 where <w, x - 1/2> is positive."""
    value = tf.linalg.matvec(tf.reshape(images, [-1, 16]) - 0.5, WEIGHTS)
    return tf.stack([-value, value], axis=1)


def test_the_radius_is_that_of_the_exact_binomial_limit():
    smoothing = Smoothing(0.25, n0=10, n=1000)
    for count in (1, 500, 501, 560, 900, 999, 1000):
        lowest = stats.binomtest(count, 1000, alternative="greater").proportion_ci(0.999, method="exact").low
        expected = 0.25 * NORMAL.inv_cdf(lowest) if lowest > 0.5 else 0.0
        assert smoothing.radius(count) == pytest.approx(expected, rel=1e-6)
    assert smoothing.radius(0) == 0
    # By hand: of 100,000 equal answers the limit is 0.001^(1 / 100,000), and the largest radius 3.8 sigma.
    assert Smoothing(1.0).radius(100_000) == pytest.approx(NORMAL.inv_cdf(0.001 ** (1 / 100_000)), rel=1e-6)


def test_radii_exceed_the_true_distance_as_rarely_as_alpha_says():
    """10,000 certificates of a linear classifier at distance d, whose class has the probability Phi(d / sigma)."""
    rng, smoothing = np.random.default_rng(1), Smoothing(0.5, n0=10, n=1000)
    distances = rng.uniform(0.05, 1.2, 10_000)
    counts = rng.binomial(1000, [NORMAL.cdf(distance / 0.5) for distance in distances])
    radii = {count: smoothing.radius(int(count)) for count in np.unique(counts)}
    wrong = sum(radii[count] > distance for count, distance in zip(counts, distances, strict=True))
    assert wrong <= stats.binom.ppf(0.999, 10_000, 0.001)


@pytest.mark.parametrize("n", [10_000, 100_000])
def test_a_linear_classifier_in_closed_form(n):
    """The smoothed class is the class, and the radius just below the distance where the probability is not near 1/2."""
    sigma = float(np.median(DISTANCES))
    smoothed = Smoother(linear, Smoothing(sigma, n=n))(IMAGES, LABELS)
    expected = n * np.array([NORMAL.cdf(distance / sigma) for distance in DISTANCES])
    spread = np.sqrt(expected * (1 - expected / n)) + 1
    certain = DISTANCES > 0.2 * sigma
    assert certain.sum() > 8
    np.testing.assert_array_less(np.abs(smoothed.counts - expected)[certain], (5 * spread)[certain])
    np.testing.assert_array_equal(smoothed.predictions[certain], LABELS[certain])
    assert (smoothed.radii <= DISTANCES).all()
    likely = (DISTANCES > 0.5 * sigma) & (DISTANCES / sigma < NORMAL.inv_cdf(0.999))
    assert likely.sum() > 5
    assert (smoothed.radii[likely] >= (0.95 if n == 100_000 else 0.8) * DISTANCES[likely]).all()


def test_neither_the_batch_nor_the_order_of_images_changes_a_certificate():
    smoothing = Smoothing(0.3, n0=30, n=950)  # no whole number of groups
    whole = Smoother(linear, smoothing, batch_size=1000)(IMAGES, LABELS)
    assert 950 % GROUP and whole.counts.max() <= 950
    other = Smoother(linear, smoothing, batch_size=1)(IMAGES[::-1], LABELS[::-1])
    np.testing.assert_array_equal(other.counts[::-1], whole.counts)
    np.testing.assert_array_equal(other.radii[::-1], whole.radii)
    seeded = Smoother(linear, smoothing, seed=1)(IMAGES, LABELS)
    assert (seeded.counts != whole.counts).any()


def test_abstentions_and_answers_that_are_not_finite_count_as_wrong():
    def coin(images):
        """One class or the other by the sign of the noise on one pixel, which is 1/2 of IMAGES here."""
        return tf.stack([images[:, 0, 0, 0] - 0.5, 0.5 - images[:, 0, 0, 0]], axis=1)

    halves = np.full((3, 4, 4, 1), 0.5, "float32")
    smoothed = Smoother(coin, Smoothing(0.25, n=2000))(halves, [0, 1, 0])
    assert smoothed.predictions.tolist() == [-1, -1, -1] and smoothed.abstained == 1
    assert smoothed.certified_accuracy(0.0) == 0 and smoothed.average_radius == 0
    assert smoothed.rows() == [{"radius": 0.0, "certified_accuracy": 0.0}]
    lost = Smoother(lambda images: linear(images) * np.nan, Smoothing(0.25, n=200))(IMAGES[:2], LABELS[:2])
    assert lost.counts.tolist() == [0, 0] and lost.predictions.tolist() == [-1, -1]


def test_the_table_counts_images_whose_radius_is_large_enough():
    sigma = float(np.median(DISTANCES))
    report = keras_rcl.certify(linear, IMAGES, LABELS, sigma=sigma, n=2000, **READ)
    right = report.smoothed.predictions == LABELS
    for row in report.record["rows"]:
        expected = np.mean(right & (report.smoothed.radii >= row["radius"]))
        assert row["certified_accuracy"] == report.certified_accuracy(row["radius"]) == expected
    assert [row["radius"] / sigma for row in report.record["rows"]][:3] == [0, 0.5, 1.0]
    assert report.record["rows"][-1]["certified_accuracy"] == 0
    assert "L2 radius  certified" in str(report) and "abstained on" in str(report)
    (axes,) = report.plot().axes
    line = axes.lines[0]
    assert line.get_ydata()[0] == pytest.approx(100 * right.mean()) and line.get_ydata()[-1] == 0


def test_a_model_with_random_answers_is_certified_and_named():
    def random(images):
        return linear(images) + tf.random.normal([tf.shape(images)[0], 2], stddev=0.01)

    report = keras_rcl.certify(random, IMAGES[:3], LABELS[:3], n=200, **READ)
    (warning,) = (line for line in report.record["warnings"] if "random" in line)
    assert "certificates hold for the class that is most likely under the noise and the randomness" in warning
    assert not keras_rcl.certify(linear, IMAGES[:3], LABELS[:3], n=200, **READ).record["warnings"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sigma": 0}, "sigma 0: the noise needs a standard deviation above 0, in units of \\[0, 1\\]; hint: 0.25"),
        ({"sigma": float("nan")}, "sigma nan"),
        ({"n": 99}, "n 99 is smaller than n0 100: .*; hint: n=100000, n0=100"),
        ({"n0": 0}, "n0 0: at least one"),
        ({"alpha": 0}, "alpha 0 is not between 0 and 0.5; hint: 0.001"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused_in_one_line(given, said):
    with pytest.raises(InvalidInputError, match=said) as caught:
        keras_rcl.certify(linear, IMAGES, LABELS, **given)
    assert len(str(caught.value).splitlines()) == 1
