"""Exact intervals of a share, against sums of binomial probabilities and closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import hypergeom

from keras_rcl.evaluation.intervals import (
    images_to_refute,
    images_to_show,
    interval,
    possible_counts,
    probability_of_at_most,
)


def at_most(count, total, share):
    return sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(count + 1))


@pytest.mark.parametrize(("count", "total"), [(1, 2), (4, 10), (30, 60), (96, 100), (1, 200)])
def test_the_limits_leave_a_fortieth_on_each_side(count, total):
    low, high = interval(count, total)
    assert 1 - at_most(count - 1, total, low) == pytest.approx(0.025, rel=1e-6)
    assert at_most(count, total, high) == pytest.approx(0.025, rel=1e-6)


@pytest.mark.parametrize("total", [1, 7, 100])
def test_all_and_none(total):
    """If all images count, the lower limit p solves p^N = 0.025; the upper one of none mirrors it."""
    low, high = interval(total, total)
    assert (low, high) == (pytest.approx(0.025 ** (1 / total)), 1.0)
    assert interval(0, total) == (0.0, pytest.approx(1 - low))


def test_the_probability_under_a_claim():
    assert probability_of_at_most(96, 100, 1.0) == 0.0 and probability_of_at_most(100, 100, 1.0) == 1.0
    assert probability_of_at_most(50, 100, 0.6) == pytest.approx(at_most(50, 100, 0.6))


def test_how_many_images_decide():
    """With all of N images robust the lower limit is 0.025^(1/N), which is 0.85 from the 23rd image on."""
    assert 0.025 ** (1 / 22) < 0.85 <= 0.025 ** (1 / 23)
    assert images_to_show(1.0, 0.85, 0.95) == 23 and images_to_show(1.0, 0.85, 0.95, above=40) == 41
    count = images_to_refute(0.6, 0.5, 0.95)
    assert at_most(math.floor(0.5 * count), count, 0.6) < 0.025
    assert images_to_refute(0.5, 0.5, 0.95) is None


@pytest.mark.parametrize(("count", "drawn", "total"), [(0, 0, 9), (3, 10, 40), (10, 10, 40), (0, 25, 40), (7, 40, 40)])
def test_counts_that_a_sample_does_not_exclude(count, drawn, total):
    """A number of all images is possible if the hypergeometric probability of the sample is above a bound."""
    numbers = np.arange(total + 1)
    possible = numbers[hypergeom.pmf(count, total, numbers, drawn) > 0.05 / (drawn + 1)]
    assert possible_counts(count, drawn, total, 0.95) == (possible.min(), possible.max())
    assert len(possible) == possible.max() - possible.min() + 1
    if drawn == total:
        assert len(possible) == 1


def excluding(total, confidence):
    """[n, k, K] bool: whether k of n images exclude that K of all count."""
    table = np.ones((total + 1, total + 1, total + 1), bool)
    for drawn in range(total + 1):
        for count in range(drawn + 1):
            low, high = possible_counts(count, drawn, total, confidence)
            table[drawn, count, low : high + 1] = False
    return table


def test_no_sample_on_the_way_excludes_the_true_count():
    """The exact probability that any sample does, by adding up all ways of drawing one image after the other."""
    total, alpha = 24, 0.1
    table = excluding(total, 1 - alpha)
    for true in range(total + 1):
        reached = np.zeros(total + 2)  # of count k, no sample so far having excluded the true number
        reached[0] = 1.0
        for drawn in range(total):
            share = np.clip((true - np.arange(total + 2)) / (total - drawn), 0, 1)
            reached = reached * (1 - share) + np.roll(reached * share, 1)
            reached[:-1][table[drawn + 1, :, true]] = 0.0
        assert 1 - reached.sum() <= alpha
        assert reached.sum() < 1 or true in (0, total)


def test_coverage_of_drawn_samples():
    """Of 500 random orders, at most a tenth excludes the true number at any time."""
    total, true, rng, missed = 60, 42, np.random.default_rng(0), 0
    table = excluding(total, 0.9)
    for _ in range(500):
        counts = np.concatenate([[0], np.cumsum(rng.permutation(np.arange(total) < true))])
        missed += table[np.arange(total + 1), counts, true].any()
    assert 0 < missed <= 50
