"""The audit of a robustness claim: the evaluation checklist, and the robust accuracy under a strong attack.

References:
    Carlini et al. 2019, "On Evaluating Adversarial Robustness" (the checklist).
    Athalye et al. 2018, "Obfuscated Gradients Give a False Sense of Security" (gradient masking).
    Croce and Hein 2020, and the flags of their code (randomised, dynamic, softmax output, Square better than APGD).
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from keras_rcl.attacks import check_images
from keras_rcl.attacks.surrogates import logit_margin
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.checks import CHECKS, Context, Evidence, Finding, Subject, run_checks
from keras_rcl.evaluation.checks.claim import comparison_text
from keras_rcl.evaluation.robustness import Survival
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.journal import Journal
from keras_rcl.vocabulary.claim import AuditBudget, Claim

__all__ = ["Audit", "Evidence", "Finding", "Subject", "Verdict", "audit"]

Verdict = Literal["stands", "falls", "not shown"]

GRID = 21
"""The number of points of the loss surface along each direction."""


@dataclasses.dataclass(frozen=True)
class Audit:
    """The verdict on a claim, and all that it rests on.

    Attributes:
        claim: The audited claim.
        verdict: `stands`, `falls` or `not shown`.
        reason: The verdict's reason in one sentence.
        findings: One per check.
        measured: The survival table of the verifier on all images.
        checked: The survival table of the checks' attacks on the first images.
        counterexamples: If the claim falls, the positions of the broken images that the claim counts, or may count, as
            robust.
        adversarial: [M, H, W, C], the image that broke each counterexample.
        predictions: [M], the classes of `adversarial`.
        surface: [GRID, GRID], the logit margin of one image along its gradient's sign (rows) and a random sign
            (columns), from -epsilon to epsilon.

    Example:
        >>> import keras_rcl
        >>> subject = keras_rcl.Subject(logits=model)  # doctest: +SKIP
        >>> claim = keras_rcl.Claim(robust_accuracy=0.6, epsilon="8/255")  # doctest: +SKIP
        >>> result = keras_rcl.audit(subject, images, labels, claim)  # doctest: +SKIP
        >>> [finding.check for finding in result.findings if finding.status == "raised"]  # doctest: +SKIP
    """

    claim: Claim
    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    measured: Survival
    checked: Survival
    counterexamples: np.ndarray
    adversarial: np.ndarray
    predictions: np.ndarray
    surface: np.ndarray


# Ten parameters: each of the keyword arguments is an independent choice with a default.
def audit(
    subject: Subject,
    images: np.ndarray,
    labels: np.ndarray,
    claim: Claim,
    *,
    evidence: Evidence | None = None,
    budget: AuditBudget = AuditBudget(),  # noqa: B008  a frozen value
    batch_size: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> Audit:
    """Audit a claim.

    The verdict is `falls` if fewer images survive the verifier than are claimed: by more than `budget.claim_tolerance`
    on the images of a record, or also by more than two standard errors of a share of N images if the claim is a
    number. It is `not shown` if a check that blocks is raised, and `stands` otherwise.

    Args:
        subject: The model.
        images: float32 [N, H, W, C] in [0, 1].
        labels: [N].
        claim: The claimed robust accuracy, with norm and epsilon.
        evidence: What a result record says of these images.
        budget: How much to spend.
        batch_size: Images attacked at once.
        seed: The seed of all random draws.
        progress: Where progress is shown.
        journal: Attacked batches that it holds are read from it, and all others are written to it.

    Returns:
        The verdict, with one finding per check.

    Raises:
        InvalidInputError: If there are no images, or they are not in [0, 1].

    Example:
        >>> import keras_rcl
        >>> subject = keras_rcl.Subject(logits=model)  # doctest: +SKIP
        >>> claim = keras_rcl.Claim(robust_accuracy=0.6, epsilon="8/255")  # doctest: +SKIP
        >>> result = keras_rcl.audit(subject, images, labels, claim)  # doctest: +SKIP
        >>> print(result.verdict, result.reason)  # doctest: +SKIP
    """
    check_images(images)
    if not len(images):
        raise InvalidInputError("no images to audit; choose another split or a higher limit")
    labels = np.asarray(labels, np.int32)
    context = Context(subject, images, labels, claim, evidence, budget, batch_size, seed, progress or Silent(), journal)
    findings = run_checks(context)
    verdict, reason = _verdict(context, findings)
    survived, adversarial, predictions = context.worst_case
    broken = context.measured.clean & ~survived
    if evidence is not None:
        broken &= evidence.survived
    counterexamples = np.flatnonzero(broken) if verdict == "falls" else np.zeros(0, int)
    return Audit(
        claim=claim,
        verdict=verdict,
        reason=reason,
        findings=findings,
        measured=context.measured,
        checked=context.checked,
        counterexamples=counterexamples,
        adversarial=adversarial[counterexamples],
        predictions=predictions[counterexamples],
        surface=_surface(context),
    )


def _verdict(context: Context, findings: tuple[Finding, ...]) -> tuple[Verdict, str]:
    """The verdict and its reason."""
    reason = comparison_text(context)
    if context.falls:
        return "falls", reason
    blocking = [finding.check for finding in findings if finding.status == "raised" and CHECKS[finding.check].blocks]
    if blocking:
        return "not shown", f"{reason}; but {', '.join(blocking)} was raised, so it may be lower still"
    return "stands", reason


def _surface(context: Context) -> np.ndarray:
    """The logit margin around the first image that is classified correctly, over two directions."""
    correct = np.flatnonzero(context.checked.clean)
    index = int(correct[0]) if len(correct) else 0
    image, label, epsilon = context.images[index], context.labels[index], context.claim.epsilon
    across = np.sign(np.random.default_rng(context.seed + 1).uniform(-1, 1, image.shape))
    step = epsilon if context.claim.norm == "linf" else epsilon / math.sqrt(image.size)
    ticks = np.linspace(-1, 1, GRID) * step
    along = context.direction[index]
    rows = [np.clip([image + a * along + b * across for b in ticks], 0, 1).astype(np.float32) for a in ticks]
    return np.stack([logit_margin(np.full(GRID, label), context.logits(row)).numpy() for row in rows])
