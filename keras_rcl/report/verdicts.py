"""Whether measured numbers decide a conclusion of a paper.

A conclusion places rows above other rows. It holds if every difference that it needs is decided and positive, and does
not hold if one is decided and negative. A difference is decided by rows trained under the protocol that they are
compared under, at least `SEEDS` seeds, values that are neither both near 0 nor both near 100 %, and a mean that is
larger than its spread over seeds and its sampling error over test images.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from keras_rcl.vocabulary.record import indices_in

SEEDS = 3
"""The smallest number of seeds that decides a difference."""
FLOOR, CEILING = 1.0, 99.0
"""Percent. Two values that are both below the first or above the second decide nothing."""
NAMED_ROWS = 3
"""More rows than this are counted in a reason, not named."""
NORMAL_95 = statistics.NormalDist().inv_cdf(0.975)


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """The result of each image in one evaluation.

    Attributes:
        images: the positions of the images in the data set, as ranges (first, last).
        correct: one digit per image, 1 where the network was correct.
    """

    images: tuple[tuple[int, int], ...]
    correct: str

    @property
    def values(self) -> np.ndarray:
        """float64 [N], 1 or 0 per image."""
        return np.frombuffer(self.correct.encode(), np.uint8) - float(ord("0"))

    @property
    def positions(self) -> np.ndarray:
        """int [N], the position of each image."""
        return indices_in(self.images)

    def at(self, positions: np.ndarray) -> "Outcomes":
        """The results of the images at some of the positions."""
        kept = zip(self.correct, np.isin(self.positions, positions), strict=True)
        return Outcomes(
            tuple((int(one), int(one)) for one in positions), "".join(result for result, keep in kept if keep)
        )


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measure of one system, over seeds.

    Attributes:
        values: seed -> percent, or the number of images of each status.
        images: the number of images; the smallest number if the seeds differ.
        outcomes: seed -> the result of each image, where the record has it.
    """

    values: Mapping[int, float | Mapping[str, int]]
    images: int
    outcomes: Mapping[int, Outcomes] = dataclasses.field(default_factory=dict)

    def at(self, positions: Mapping[int, np.ndarray]) -> "Measured":
        """The measure over the images at some positions of each seed."""
        outcomes = {seed: self.outcomes[seed].at(found) for seed, found in positions.items()}
        values = {seed: 100 * float(one.values.mean()) for seed, one in outcomes.items()}
        return Measured(values, min((len(one.correct) for one in outcomes.values()), default=0), outcomes)

    @property
    def counted(self) -> dict[str, int] | None:
        """The counts, summed over seeds; None if the values are percentages."""
        found = list(self.values.values())
        if not isinstance(found[0], Mapping):
            return None
        return {status: sum(counts[status] for counts in found) for status in found[0]}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the standard deviation over seeds (divisor n - 1), which is None for a single seed."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def difference_of(mine: Measured | None, theirs: Measured | None) -> dict[str, Any] | None:
    """The first value less the second, over the seeds that both have; None if they cannot be compared.

    If the numbers of images differ, the values are compared over the images that both have.

    Returns:
        `mean` and `spread` of the difference in percentage points; `seeds`; `values`, the mean of each side over these
        seeds; `sampling`, the half-width of its 95 % interval over test images, and whether it is `paired`;
        `interval`, see `_interval`; `within_spread` and `within_sampling`, whether the mean is not larger than either.
    """
    if mine is None or theirs is None or mine.counted is not None:
        return None
    seeds = sorted(mine.values.keys() & theirs.values.keys())
    if seeds and mine.images != theirs.images:
        seeds, mine, theirs = _on_shared_images(mine, theirs, seeds)
    if not seeds:
        return None
    pairs = [(_percent(mine, seed), _percent(theirs, seed)) for seed in seeds]
    mean, spread = mean_and_spread([a - b for a, b in pairs])
    sides = [statistics.fmean(side) for side in zip(*pairs, strict=True)]
    paired = _paired_error(mine, theirs, seeds)
    error = _binomial_error(sides, mine.images) if paired is None else paired
    sampling = 100 * NORMAL_95 * error
    return {
        "mean": mean,
        "spread": spread,
        "seeds": seeds,
        "values": sides,
        "sampling": sampling,
        "paired": paired is not None,
        "interval": _interval(mean, spread, len(seeds), 100 * error),
        "within_spread": spread is not None and abs(mean) <= spread,
        "within_sampling": abs(mean) <= sampling,
    }


def _on_shared_images(mine: Measured, theirs: Measured, seeds: Sequence[int]) -> tuple[list[int], Measured, Measured]:
    """The seeds of which both have the outcomes of shared images, and both sides over these images."""
    shared = {
        seed: np.intersect1d(mine.outcomes[seed].positions, theirs.outcomes[seed].positions)
        for seed in seeds
        if seed in mine.outcomes and seed in theirs.outcomes
    }
    shared = {seed: positions for seed, positions in shared.items() if len(positions)}
    return list(shared), mine.at(shared), theirs.at(shared)


def _interval(mean: float, spread: float | None, seeds: int, error: float) -> list[float]:
    """The limits of the 95 % interval of a mean difference, in percentage points, over images and seeds.

    The variance of the mean is that over images plus that over seeds. Of Student's t, the degrees of freedom are
    Satterthwaite's, of which images have very many. A single seed has an interval over images only.
    """
    over_seeds = (spread or 0.0) ** 2 / seeds
    variance = error**2 + over_seeds
    freedom = (seeds - 1) * (variance / over_seeds) ** 2 if over_seeds else math.inf
    half = math.sqrt(variance) * (float(stdtrit(freedom, 0.975)) if math.isfinite(freedom) else NORMAL_95)
    return [mean - half, mean + half]


def _percent(measured: Measured, seed: int) -> float:
    value = measured.values[seed]
    assert not isinstance(value, Mapping)
    return value


def _paired_error(mine: Measured, theirs: Measured, seeds: Sequence[int]) -> float | None:
    """The standard error of the mean over images of the difference, which is averaged over seeds first.

    None if the outcomes of an image are not known on both sides, for every seed and the same images.
    """
    sides = [(mine.outcomes.get(seed), theirs.outcomes.get(seed)) for seed in seeds]
    known = [one for pair in sides for one in pair if one is not None]
    if len(known) < 2 * len(seeds) or len({(one.images, len(one.correct)) for one in known}) > 1:
        return None
    differences = np.mean([a.values - b.values for a, b in sides if a and b], axis=0)
    if len(differences) < 2:
        return None
    return float(np.std(differences, ddof=1) / math.sqrt(len(differences)))


def _binomial_error(percents: Sequence[float], images: int) -> float:
    """The standard error of the difference of two shares of the same number of images, taken as independent.

    The seeds are measured on the same images, so their number does not make it smaller.
    """
    return math.sqrt(sum(p / 100 * (1 - p / 100) for p in percents) / images)


@dataclasses.dataclass(frozen=True)
class Compared:
    """A difference that a conclusion needs to be positive, and what it is a difference of.

    Attributes:
        difference: see `difference_of`; None if it is not measured.
        foreign: label of a row -> the protocol that it was trained under, where that is not the protocol of the
            comparison.
    """

    difference: Mapping[str, Any] | None
    foreign: Mapping[str, str] = dataclasses.field(default_factory=dict)


def verdict(needed: Sequence[Compared]) -> dict[str, Any] | None:
    """Whether all differences are positive.

    Returns:
        None if nothing is measured. Otherwise `holds`, True, False or None if it is not decided; `because`, the reasons
        why it is not; and `least`, the smallest of the decided differences.
    """
    if not any(one.difference for one in needed):
        return None
    decided = [one.difference["mean"] for one in needed if one.difference and not _reasons(one)]
    least = min(decided, default=None)
    if least is not None and least < 0:
        return {"holds": False, "because": [], "least": least}
    because = _because(needed)
    return {"holds": None if because else True, "because": because, "least": least}


def _reasons(one: Compared) -> list[str]:
    """Why a difference decides nothing, in the order of `_ORDER`; empty if it decides."""
    found = one.difference
    if found is None:
        return ["not all measured"]
    tests = {
        "trained under": bool(one.foreign),
        "floor": max(found["values"]) < FLOOR,
        "ceiling": min(found["values"]) > CEILING,
        "one seed": len(found["seeds"]) == 1,
        "two seeds": len(found["seeds"]) == 2,
        "within its spread": len(found["seeds"]) >= SEEDS and found["within_spread"],
        "within its sampling error": found["within_sampling"],
    }
    return [reason for reason, applies in tests.items() if applies]


def _because(needed: Sequence[Compared]) -> list[str]:
    """Each reason once, with the smallest number of seeds."""
    reasons = {reason for one in needed for reason in _reasons(one)}
    reasons -= {"two seeds"} if "one seed" in reasons else set()
    under: dict[str, list[str]] = {}
    for row, protocol in {row: protocol for one in needed for row, protocol in one.foreign.items()}.items():
        under.setdefault(protocol, []).append(row)
    named = {name: ", ".join(rows) if len(rows) <= NAMED_ROWS else f"{len(rows)} rows" for name, rows in under.items()}
    texts = {"trained under": [f"trained under {protocol}: {rows}" for protocol, rows in named.items()]}
    return [text for reason in _ORDER if reason in reasons for text in texts.get(reason, [reason])]


_ORDER = (
    *("not all measured", "trained under", "floor", "ceiling"),
    *("one seed", "two seeds", "within its spread", "within its sampling error"),
)
