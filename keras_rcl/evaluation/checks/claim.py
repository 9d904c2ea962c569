"""Checks of the claim, and of the record that it is read from."""

import dataclasses
import itertools

import numpy as np

from keras_rcl.evaluation.checks.context import Context, Result, not_run, result
from keras_rcl.evaluation.intervals import interval
from keras_rcl.vocabulary.attacks import PGD, Attack, describe
from keras_rcl.vocabulary.threat import PROTOCOLS, Norm


def clean_accuracy(context: Context) -> Result:
    """Whether the model classifies at least as many images as are claimed to be robust."""
    clean, claimed = context.clean_accuracy, context.claim.robust_accuracy
    because = f"{clean:.1%} of the images are classified correctly without an attack, {claimed:.1%} are claimed robust"
    return result(claimed - clean > context.budget.claim_tolerance, because, clean_accuracy=clean)


def ball_and_box(context: Context) -> Result:
    """Whether every adversarial image, of the record and of this audit, is in ball and box, in float64."""
    limit = context.claim.epsilon * (1 + 1e-5) + 1e-6
    outside, seen, farthest = 0, 0, 0.0
    stored = context.evidence.attacked if context.evidence is not None else ()
    recorded_pairs = ((context.images, adversarial) for adversarial, _ in stored)
    for images, adversarial in itertools.chain(recorded_pairs, context.adversarial_pairs()):
        size, boxed = _size(images, adversarial, context.claim.norm)
        outside += int(np.sum((size > limit) | ~boxed))
        seen, farthest = seen + len(size), max(farthest, float(size.max()))
    recorded = context.evidence.largest_distance if context.evidence is not None else None
    because = f"{outside} of {seen} adversarial images lie outside; the farthest at {_text(farthest, context)}"
    far = recorded is not None and recorded > limit
    if recorded is not None and far:
        because += f"; the record itself reports {_text(recorded, context)}"
    return result(outside > 0 or far, because, outside=outside, farthest=farthest)


def _text(distance: float, context: Context) -> str:
    return f"{distance:.6g}" if context.claim.norm == "l1" else f"{distance * 255:.4g}/255"


def _size(images: np.ndarray, adversarial: np.ndarray, norm: Norm) -> tuple[np.ndarray, np.ndarray]:
    """[N], the size of each change in float64; and [N] bool, whether the image is in [0, 1]."""
    change, axes = adversarial.astype(np.float64) - images, (1, 2, 3)
    flat = change.reshape(len(change), -1)
    size = np.linalg.norm(flat, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    return size, (adversarial.min(axis=axes) >= 0) & (adversarial.max(axis=axes) <= 1)


def record(context: Context) -> Result:
    """Whether the record agrees with its images and the model."""
    evidence = context.evidence
    if evidence is None:
        return not_run("the claim is a number, with no record of outcomes")
    tolerance, wrong = context.budget.claim_tolerance, []
    if not evidence.same_model:
        wrong.append("its model hash is of another model")
    clean = float(np.mean(evidence.clean[context.positions] != context.measured.clean))
    if clean > tolerance:
        wrong.append(f"{clean:.1%} of the clean outcomes differ")
    miscounted = 0
    for images, survived in evidence.attacked:
        batches = [images[start : start + context.batch_size] for start in range(0, len(images), context.batch_size)]
        predicted = np.concatenate([np.argmax(context.logits(batch), axis=1) for batch in batches])
        miscounted += int(np.sum((predicted == context.labels) != survived))
    stored = sum(len(survived) for _, survived in evidence.attacked)
    if miscounted > tolerance * stored:
        wrong.append(
            f"{miscounted} of its {stored} adversarial images are counted the other way than they are classified"
        )
    agrees = f"its clean outcomes and its {stored} stored images are as it reports"
    return result(bool(wrong), "; ".join(wrong) or agrees, miscounted=miscounted)


def protocol(context: Context) -> Result:
    """Whether the claim is of other coordinates: as its record says, or because they give the claimed number.

    A record says which coordinates it is of, and its images show it; only a bare number is compared with what other
    coordinates give.
    """
    if context.evidence is not None:
        named = context.evidence.protocol
        if named != "pixel":
            return result(True, f"its record names the protocol {named}")
        kept = f", and {len(context.evidence.attacked)} attacks' images are kept" if context.evidence.attacked else ""
        return result(False, f"its record is of pixels{kept}")
    if not context.falls or not context.differentiable:
        return result(False, "no other protocol is named")
    claim, budget = context.claim, context.budget
    pgd = PGD(norm=claim.norm, epsilon=claim.epsilon, num_steps=budget.num_steps)
    protocols = [name for name in PROTOCOLS if name != "pixel"] if context.images.shape[-1] in (1, 3) else []
    attacks: tuple[Attack, ...] = tuple(dataclasses.replace(pgd, protocol=name) for name in protocols)
    survival = context.evaluate(attacks, context.positions)
    shares = {name: float(one.mean()) for name, one in zip(protocols, survival.survived, strict=True)}
    counts = dict(zip(protocols, survival.survived.sum(axis=1), strict=True))
    within = {name: interval(int(counts[name]), len(survival.labels), budget.confidence) for name in protocols}
    matching = [name for name, (low, high) in within.items() if low <= claim.robust_accuracy <= high]
    if not matching:
        return result(False, "no other known coordinates give the claimed number", **shares)
    text = ", ".join(
        f"{name} ({shares[name]:.1%}, {within[name][0]:.1%} to {within[name][1]:.1%})" for name in matching
    )
    because = (
        f"{claim.robust_accuracy:.1%} is, within the chance of {len(survival.labels)} images, what PGD gives in the "
        f"coordinates of {text}; this may be a coincidence"
    )
    return result(True, because, **shares)


def claimed_number(context: Context) -> Result:
    """Whether as many images survive as are claimed."""
    low, high = context.interval
    return result(
        context.comparison.contradicted,
        comparison_text(context),
        claimed=context.claim.robust_accuracy,
        measured=context.robust_accuracy,
        low=low,
        high=high,
        probability=context.comparison.probability,
    )


def comparison_text(context: Context) -> str:
    """Return the claimed and the measured robust accuracy in one sentence."""
    low, high = context.interval
    attacks = describe(context.verifier) + ("" if context.verifier_alone else " and the checks' attacks")
    claimed, measured = f"{context.claim.robust_accuracy:.1%} claimed", f"{context.robust_accuracy:.1%}"
    if context.sample is None or context.complete:
        confidence = f"{context.budget.confidence:.0%} interval {low:.1%} to {high:.1%}"
        return f"{claimed}, {measured} of {len(context.labels)} images survive {attacks} ({confidence})"
    return (
        f"{claimed}, {measured} of {len(context.positions)} attacked images survive {attacks}; of all "
        f"{len(context.labels)} {low:.1%} to {high:.1%} do, with {100 * context.sample.confidence:.6g}% confidence"
    )
