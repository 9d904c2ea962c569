"""Exact intervals of a share, against sums of binomial probabilities and closed forms."""

import math

import pytest

from keras_rcl.evaluation.intervals import images_to_refute, images_to_show, interval, probability_of_at_most


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
