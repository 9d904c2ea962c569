"""The audit of a robustness claim: the evaluation checklist, and the robust accuracy under a strong attack.

References:
    Carlini et al. 2019, "On Evaluating Adversarial Robustness" (the checklist).
    Athalye et al. 2018, "Obfuscated Gradients Give a False Sense of Security" (gradient masking).
    Croce and Hein 2020, and the flags of their code (randomised, dynamic, softmax output, Square better than APGD).
"""

import dataclasses

import numpy as np

from keras_rcl.attacks import check_images
from keras_rcl.attacks.surrogates import logit_margin
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.checks import CHECKS, Context, Evidence, Finding, Subject, run_checks
from keras_rcl.evaluation.checks.claim import comparison_text
from keras_rcl.evaluation.checks.counting import Verdict
from keras_rcl.evaluation.early import attack_until_decided
from keras_rcl.evaluation.robustness import Survival
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.journal import Journal
from keras_rcl.vocabulary.claim import AuditBudget, Claim
from keras_rcl.vocabulary.labels import class_labels
from keras_rcl.vocabulary.threat import check_ball, length_of_ones

__all__ = ["Audit", "Evidence", "Finding", "Subject", "Verdict", "audit"]

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
        clean_accuracy: The share of all images that are classified correctly before any attack.
        attacked: [n], the positions of the images that the verifier attacked, in the order of `measured`: all N images,
            unless the budget has a `verdict_confidence`.
        measured: The survival table of the verifier on these images.
        checked: The survival table of the checks' attacks on the first images.
        counterexamples: If the claim falls, the positions of the broken images that the claim counts, or may count, as
            robust.
        adversarial: [M, H, W, C], the image that broke each counterexample.
        predictions: [M], the classes of `adversarial`.
        survived: [n] bool: which attacked images survive the verifier and the attacks of the checks.
        interval: The exact (Clopper-Pearson) interval of the share that survives, for images like these; with a
            `verdict_confidence`, that of the share of all N images.
        images_needed: If the images are too few for a verdict, the number that would decide; None otherwise.
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
    clean_accuracy: float
    attacked: np.ndarray
    measured: Survival
    checked: Survival
    counterexamples: np.ndarray
    adversarial: np.ndarray
    predictions: np.ndarray
    survived: np.ndarray
    interval: tuple[float, float]
    images_needed: int | None
    surface: np.ndarray

    @property
    def robust_accuracy(self) -> float:
        """The share of attacked images that survive."""
        return float(self.survived.mean())

    def __str__(self) -> str:
        width = max(len(finding.check) for finding in self.findings)
        lines = [f"{finding.check:{width}}  {finding.status:7}  {finding.because}" for finding in self.findings]
        return "\n".join([*lines, f"the claim {'is ' * (self.verdict == 'not shown')}{self.verdict}: {self.reason}"])

    def __repr__(self) -> str:
        raised = [finding.check for finding in self.findings if finding.status == "raised"]
        return f"Audit(verdict={self.verdict!r}, robust_accuracy={self.robust_accuracy:.4g}, raised={raised})"


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

    The verdict is `falls` if there are counterexamples and fewer images survive than are claimed: by more than
    `budget.claim_tolerance` on the images of a record; if the claim is a number, so few that this has a probability
    below 2.5 % if the claim is true (exact binomial). It is `stands` if at least as many survive as are claimed, the
    images are enough for that (`budget.resolution`), and no check that blocks is raised. Otherwise, and always if the
    model is not read as it was trained, it is `not shown`.

    If `budget.verdict_confidence` is given, images are attacked in a random order until the verdict is, with this
    probability, that of an audit of all images. Checks that it does not depend on are not run.

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
        InvalidInputError: If there are no images, they are not in [0, 1], the ball is wider than the box, or the
            given verifier is not defined for the model.

    Example:
        >>> import keras_rcl
        >>> subject = keras_rcl.Subject(logits=model)  # doctest: +SKIP
        >>> claim = keras_rcl.Claim(robust_accuracy=0.6, epsilon="8/255")  # doctest: +SKIP
        >>> result = keras_rcl.audit(subject, images, labels, claim)  # doctest: +SKIP
        >>> print(result.verdict, result.reason)  # doctest: +SKIP
    """
    images = np.asarray(check_images(images), np.float32)
    if not len(images):
        raise InvalidInputError("no images to audit; choose another split or a higher limit")
    check_ball(claim.epsilon, claim.norm, images.shape[1:])
    labels = class_labels(labels, count=len(images))
    context = Context(subject, images, labels, claim, evidence, budget, batch_size, seed, progress or Silent(), journal)
    return conclude(context)


def conclude(context: Context) -> Audit:
    """Run the checks and return the verdict; the measurements that the context holds are not made again.

    Raises:
        InvalidInputError: As of `audit`.
    """
    _ = context.verifier  # raises before anything is attacked
    if context.budget.verdict_confidence is not None:
        context = attack_until_decided(context, context.budget.verdict_confidence)
    findings = run_checks(context)
    verdict, reason = _verdict(context, findings)
    survived, adversarial, predictions = context.worst_case
    rows = np.flatnonzero(context.counterexamples) if verdict == "falls" else np.zeros(0, int)
    rows = rows[np.argsort(context.positions[rows])]
    return Audit(
        claim=context.claim,
        verdict=verdict,
        reason=reason,
        findings=findings,
        clean_accuracy=context.clean_accuracy,
        attacked=context.positions,
        measured=context.measured,
        checked=context.checked,
        counterexamples=context.positions[rows],
        adversarial=adversarial[rows],
        predictions=predictions[rows],
        survived=survived,
        interval=context.interval,
        images_needed=context.comparison.images_needed,
        surface=_surface(context),
    )


def _verdict(context: Context, findings: tuple[Finding, ...]) -> tuple[Verdict, str]:
    """The verdict and its reason."""
    reason = comparison_text(context)
    raised = {finding.check: finding.because for finding in findings if finding.status == "raised"}
    void = [because for name, because in raised.items() if CHECKS[name].voids]
    if void:
        return "not shown", f"the model is probably not read as it was trained ({'; '.join(void)}); {reason}"
    if context.falls:
        return "falls", reason
    doubts = []
    comparison = context.comparison
    if comparison.contradicted:
        doubts.append("no attack broke an image that the claim counts as robust")
    elif not comparison.reached:
        doubts.append("fewer survive than are claimed, and chance explains the difference")
    elif not comparison.enough_images:
        doubts.append("these are too few images for this claim")
    if comparison.images_needed is not None:
        doubts[-1] += f"; about {comparison.images_needed} images would decide"
    blocking = [name for name in raised if CHECKS[name].blocks]
    if blocking:
        doubts.append(f"{', '.join(blocking)} {'was' if len(blocking) == 1 else 'were'} raised")
    return ("not shown", f"{reason}; but {', and '.join(doubts)}") if doubts else ("stands", reason)


def _surface(context: Context) -> np.ndarray:
    """The logit margin around the first image that is classified correctly, over two directions."""
    correct = np.flatnonzero(context.checked.clean)
    index = int(correct[0]) if len(correct) else 0
    image, label, epsilon = context.images[index], context.labels[index], context.claim.epsilon
    across = np.sign(np.random.default_rng(context.seed + 1).uniform(-1, 1, image.shape))
    step = epsilon / length_of_ones(image.size, context.claim.norm)
    ticks = np.linspace(-1, 1, GRID) * step
    along = context.direction[index]
    rows = [np.clip([image + a * along + b * across for b in ticks], 0, 1).astype(np.float32) for a in ticks]
    return np.stack([logit_margin(np.full(GRID, label), context.logits(row)).numpy() for row in rows])
