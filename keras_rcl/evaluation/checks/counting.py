"""A claimed share of images beside a number of survivors, of all images or of a sample of them."""

import dataclasses
from typing import Literal

import numpy as np

from keras_rcl.evaluation.intervals import (
    images_to_refute,
    images_to_show,
    interval,
    possible_counts,
    probability_of_at_most,
)
from keras_rcl.evaluation.robustness import Survival
from keras_rcl.vocabulary.claim import AuditBudget, Claim

Verdict = Literal["stands", "falls", "not shown"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The claimed robust accuracy beside a number of images that survive.

    Attributes:
        survivors: The number of images that survive.
        total: The number of all images.
        claim: The audited claim.
        budget: Its thresholds.
        of_record: Whether the claim is of these very images, as a record reports them, without chance.
    """

    survivors: int
    total: int
    claim: Claim
    budget: AuditBudget
    of_record: bool

    @property
    def share(self) -> float:
        """The share of images that survive."""
        return self.survivors / self.total

    @property
    def probability(self) -> float:
        """The probability that so few images survive if the claim is true."""
        return probability_of_at_most(self.survivors, self.total, self.claim.robust_accuracy)

    @property
    def contradicted(self) -> bool:
        """Whether fewer images survive than chance explains; a record is of these very images, without chance."""
        if not self.of_record:
            return self.probability < (1 - self.budget.confidence) / 2
        return self.claim.robust_accuracy - self.share > self.budget.claim_tolerance

    @property
    def reached(self) -> bool:
        """Whether as many images survive as are claimed."""
        return self.claim.robust_accuracy - self.share <= self.budget.claim_tolerance

    @property
    def lowest(self) -> float:
        """The lower limit that the interval must reach for the claim to stand."""
        claimed = self.claim.robust_accuracy
        return claimed - min(self.budget.resolution, claimed / 2)

    @property
    def interval(self) -> tuple[float, float]:
        """The exact interval of the robust accuracy, for images like these."""
        return interval(self.survivors, self.total, self.budget.confidence)

    @property
    def enough_images(self) -> bool:
        """Whether the images are enough for a claim of this size."""
        return self.interval[0] >= self.lowest

    @property
    def verdict(self) -> Verdict:
        """The verdict by the numbers alone: `falls` needs a counterexample as well, `stands` the checks."""
        if self.contradicted:
            return "falls"
        return "stands" if self.reached and self.enough_images else "not shown"

    @property
    def images_needed(self) -> int | None:
        """The number of images at which the open question would be decided; None if it is, or no number does.

        If fewer survive than are claimed, that at which the same share would contradict the claim; otherwise that at
        which the claimed share is enough for the claim to stand.
        """
        claimed, confidence = self.claim.robust_accuracy, self.budget.confidence
        if not self.reached:
            return None if self.contradicted else images_to_refute(claimed, self.share, confidence, self.total)
        return None if self.enough_images else images_to_show(claimed, self.lowest, confidence, self.total)


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """The images that the verifier has attacked: the first of an order of all.

    The images of the checks are the first, and all others follow in a random order.

    Attributes:
        order: [N], positions of all images.
        clean: [N] bool, by position: classified correctly before any attack.
        table: The survival table of the verifier on the first images of the order.
        confidence: The probability with which `possible` contains the number.
    """

    order: np.ndarray
    clean: np.ndarray
    table: Survival
    confidence: float

    @property
    def positions(self) -> np.ndarray:
        """[n], of the attacked images, in order."""
        return self.order[: len(self.table.labels)]

    def possible(self, survived: np.ndarray, first: int) -> tuple[int, int, int]:
        """How many of all images survive: at least, by the sample's share, and at most.

        A misclassified image does not survive, and is known without an attack. The outcomes of the checks' images are
        known as well. The other attacked images are a sample, without replacement, of the others that are classified
        correctly.

        Args:
            survived: [n] bool, of the attacked images, in order.
            first: The number of the checks' images.
        """
        correct = self.clean[self.order[first:]]
        known, count = int(survived[:first].sum()), int(survived[first:].sum())
        drawn, total = int(correct[: len(survived) - first].sum()), int(correct.sum())
        low, high = possible_counts(count, drawn, total, self.confidence)
        likely = round(total * count / drawn) if drawn else low
        return known + low, known + min(max(likely, low), high), known + high
