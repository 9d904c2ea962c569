"""What decides a conclusion: seeds, spread, sampling error of the images, floor and ceiling; by hand and by SciPy."""

import numpy as np
import pytest
from scipy import stats

from keras_rcl.report.verdicts import Compared, Measured, Outcomes, difference_of, verdict


def measured(*percents: float, images: int = 10_000) -> Measured:
    return Measured(dict(enumerate(percents)), images)


def judged(mine: Measured, theirs: Measured, **fields) -> str:
    """`holds`, `does not hold`, or the reasons why neither."""
    found = verdict([Compared(difference_of(mine, theirs), **fields)])
    return {True: "holds", False: "does not hold", None: "; ".join(found["because"])}[found["holds"]]


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        ((60, 61, 62), (50, 51, 53), "holds"),
        ((50, 51, 53), (60, 61, 62), "does not hold"),
        ((60,), (20,), "one seed"),
        ((60, 61), (20, 21), "two seeds"),
        ((60, 52, 50), (50, 51, 53), "within its spread"),  # 10, 1, -3: 2.7 +- 6.7
        ((51, 52, 53), (50, 51, 52), "within its sampling error"),  # 1 +- 0, and 1.4 over 10,000 images
        ((0.9, 0.8, 0.9), (0.0, 0.0, 0.0), "floor"),
        ((0.0, 0.0, 0.0), (0.9, 0.8, 0.9), "floor"),
        ((0.0,), (0.0,), "floor; one seed; within its sampling error"),
        ((1.9, 1.9, 1.9), (0.5, 0.5, 0.5), "holds"),
        ((99.9, 99.8, 99.9), (99.2, 99.3, 99.2), "ceiling"),
    ],
)
def test_what_decides(mine, theirs, said):
    assert judged(measured(*mine), measured(*theirs)) == said


def test_a_row_trained_under_another_protocol_decides_nothing():
    rows = measured(60, 61, 62), measured(50, 51, 53)
    assert judged(*rows, foreign={"AT": "pixel", "CLAF": "pixel"}) == "trained under pixel: AT, CLAF"


def test_one_decided_difference_refutes_and_all_are_needed_to_hold():
    good, bad = difference_of(measured(9, 9, 9), measured(1, 1, 1)), difference_of(measured(1, 1, 1), measured(9, 9, 9))
    one_seed = difference_of(measured(1), measured(9))
    assert verdict([Compared(good), Compared(bad), Compared(None)])["holds"] is False
    assert verdict([Compared(good), Compared(one_seed)]) == {"holds": None, "because": ["one seed"], "least": 8}
    assert verdict([Compared(good), Compared(None)])["because"] == ["not all measured"]
    assert verdict([Compared(None)]) is None


def outcomes(*rows: np.ndarray) -> Measured:
    """Seeds 0, 1, ... with the result of each image."""
    each = {seed: Outcomes(((0, len(row) - 1),), "".join(map(str, row))) for seed, row in enumerate(rows)}
    return Measured({seed: 100 * float(row.mean()) for seed, row in enumerate(rows)}, len(rows[0]), each)


def test_the_sampling_error_is_paired_over_images():
    """The interval of SciPy's one-sample t-test on the differences of the images, up to the normal quantile."""
    rng = np.random.default_rng(0)
    theirs = rng.integers(0, 2, (3, 5000))
    mine = np.where(rng.random((3, 5000)) < 0.03, 1, theirs)  # the same images, and some more
    found = difference_of(outcomes(*mine), outcomes(*theirs))
    exact = stats.ttest_1samp((mine - theirs).mean(axis=0), 0).confidence_interval(0.95)
    assert found["paired"] and found["mean"] == pytest.approx(100 * (mine - theirs).mean())
    assert found["sampling"] == pytest.approx(50 * (exact.high - exact.low), rel=1e-3)
    unpaired = difference_of(
        measured(*(100 * mine.mean(1)), images=5000), measured(*(100 * theirs.mean(1)), images=5000)
    )
    shares = np.array([mine.mean(), theirs.mean()])
    assert not unpaired["paired"] and unpaired["sampling"] > 3 * found["sampling"]
    assert unpaired["sampling"] == pytest.approx(196 * np.sqrt((shares * (1 - shares)).sum() / 5000), rel=1e-3)


def test_images_that_differ_are_not_paired():
    row = np.array([1, 0, 1, 1])
    elsewhere = Measured({0: 75.0}, 4, {0: Outcomes(((4, 7),), "1011")})
    assert not difference_of(outcomes(row), elsewhere)["paired"]
    assert difference_of(outcomes(row), outcomes(row))["paired"]


def test_other_numbers_of_images_are_compared_where_both_have_them():
    """The second side has images 3 and 4 of the first side's 2 to 5: 0, 1 there, beside 1, 1."""
    mine = Measured({0: 75.0}, 4, {0: Outcomes(((2, 5),), "1011")})
    theirs = Measured({0: 100.0, 1: 50.0}, 2, {0: Outcomes(((3, 3), (4, 4)), "11")})
    found = difference_of(mine, theirs)
    assert (found["mean"], found["values"], found["seeds"], found["paired"]) == (-50, [50, 100], [0], True)
    assert difference_of(mine, Measured({0: 50.0}, 2)) is None
    assert difference_of(mine, Measured({0: 50.0}, 2, {0: Outcomes(((7, 8),), "10")})) is None


def test_the_interval_is_that_of_t_tests_where_only_images_or_only_seeds_vary():
    rng = np.random.default_rng(1)
    mine, theirs = rng.integers(0, 2, (2, 2000))
    over_images = stats.ttest_1samp(mine - theirs, 0).confidence_interval(0.95)
    expected = (100 * over_images.low, 100 * over_images.high)
    assert difference_of(outcomes(mine), outcomes(theirs))["interval"] == pytest.approx(expected, abs=0.01)
    assert difference_of(outcomes(mine, mine), outcomes(theirs, theirs))["interval"] == pytest.approx(
        expected, abs=0.01
    )
    over_seeds = stats.ttest_1samp([7, 9, 14], 0).confidence_interval(0.95)
    found = difference_of(measured(67, 69, 74, images=10**9), measured(60, 60, 60, images=10**9))
    assert found["interval"] == pytest.approx((over_seeds.low, over_seeds.high), abs=0.01)


def test_the_interval_covers_the_true_difference_95_times_in_100():
    """Images and seeds vary: 1,000 draws of 3 seeds on 200 images, of which the true difference is 0.1."""
    rng, covered = np.random.default_rng(2), 0
    for _ in range(1000):
        shift = 0.1 + 0.03 * rng.standard_normal((3, 1))
        ease = rng.random(200)  # of each image, shared by all seeds and both sides
        theirs = (rng.random((3, 200)) < 0.8 * ease).astype(int)
        mine = (rng.random((3, 200)) < 0.8 * ease + shift).astype(int)
        low, high = difference_of(outcomes(*mine), outcomes(*theirs))["interval"]
        covered += low <= 10 <= high
    assert 940 <= covered <= 995
