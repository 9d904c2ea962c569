"""Exact statistics of a share of images: how far a sample of them can be from the share of all."""

import numpy as np
from scipy.special import bdtr, betaincinv, gammaln


def interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share: the shares under which a count as low, or as high, is not unlikely.

    Args:
        count: The images that count.
        total: All images, at least one.
        confidence: The probability with which the interval contains the share.

    Returns:
        The lower and the upper limit.

    References:
        Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the binomial".
    """
    low, high = limits(np.array([count]), np.array([total]), confidence)
    return float(low[0]), float(high[0])


def limits(counts: np.ndarray, totals: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The limits [N] of `interval` for counts [N] of totals [N]."""
    tail, others = (1 - confidence) / 2, totals - counts
    low = lower_limits(counts, totals, tail)
    high = np.where(others > 0, betaincinv(counts + 1, np.maximum(others, 1), 1 - tail), 1.0)
    return low, high


def lower_limits(counts: np.ndarray, totals: np.ndarray, tail: float) -> np.ndarray:
    """The shares [N] under which counts [N] as high, of totals [N], have the probability `tail`; 0 for a count of 0."""
    return np.where(counts > 0, betaincinv(np.maximum(counts, 1), totals - counts + 1, tail), 0.0)


def probability_of_at_most(count: int, total: int, share: float) -> float:
    """The probability that at most `count` of `total` images count if each does with the probability `share`."""
    return float(bdtr(count, total, share))


MOST_IMAGES = 100_000
"""The largest number of images that the functions below look for."""


def images_to_show(share: float, lowest: float, confidence: float, above: int = 0) -> int | None:
    """The smallest number of images, above a given one, of which the share itself lifts the lower limit to `lowest`.

    Args:
        share: The share that is to be shown, in [0, 1].
        lowest: Below `share`; the lower limit of the interval must not be lower.
        confidence: That of the interval.
        above: The number must be larger than this.

    Returns:
        The number; None if it is larger than `MOST_IMAGES`.
    """
    totals = np.arange(above + 1, MOST_IMAGES)
    low, _ = limits(np.ceil(share * totals - 1e-9).astype(int), totals, confidence)
    enough = np.flatnonzero(low >= lowest)
    return int(totals[enough[0]]) if len(enough) else None


def images_to_refute(claimed: float, measured: float, confidence: float, above: int = 0) -> int | None:
    """The smallest number of images, above a given one, of which a measured share contradicts a larger claimed one.

    Args:
        claimed: The claimed share.
        measured: The measured share.
        confidence: The claim is contradicted if so few images have a probability below half of 1 - `confidence`.
        above: The number must be larger than this.

    Returns:
        The number; None if it is larger than `MOST_IMAGES`.
    """
    totals = np.arange(above + 1, MOST_IMAGES)
    unlikely = np.flatnonzero(bdtr(np.floor(measured * totals + 1e-9), totals, claimed) < (1 - confidence) / 2)
    return int(totals[unlikely[0]]) if len(unlikely) else None


def possible_counts(count: int, drawn: int, total: int, confidence: float) -> tuple[int, int]:
    """How many of all images can count, if some are drawn without replacement in a random order.

    A number K of all is excluded if `count` of `drawn` have under K at most the probability

        (1 - confidence) / (drawn + 1).

    The probability that any of the samples, from the first image to the last, excludes the true number is at most
    1 - `confidence`. So images may be drawn until a question is decided, and the limits hold when drawing stops.

    Args:
        count: The drawn images that count.
        drawn: The images that are drawn so far.
        total: All images.
        confidence: The probability with which the limits of all samples contain the number.

    Returns:
        The smallest and the largest possible number. It is the count if all images are drawn.

    References:
        Waudby-Smith and Ramdas 2020, "Confidence sequences for sampling without replacement" (the prior-posterior ratio
        martingale of the hypergeometric distribution, here with a uniform prior).
    """
    numbers = np.arange(count, total - (drawn - count) + 1)
    ways = _log_choose(numbers, count) + _log_choose(total - numbers, drawn - count)
    probability = ways - _log_choose(np.array(total), drawn)
    possible = numbers[probability > np.log((1 - confidence) / (drawn + 1))]
    return int(possible[0]), int(possible[-1])


def _log_choose(total: np.ndarray, count: int) -> np.ndarray:
    """The logarithm of the number of ways to choose `count` of `total`."""
    return gammaln(total + 1) - gammaln(count + 1) - gammaln(total - count + 1)
