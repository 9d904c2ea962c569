"""Checks of the claim, and of the record that it is read from."""

import dataclasses

import numpy as np

from keras_rcl.evaluation.checks.context import Context, Result, not_run, result, standard_error
from keras_rcl.vocabulary.attacks import PGD, Attack, describe
from keras_rcl.vocabulary.threat import PROTOCOLS


def ball_and_box(context: Context) -> Result:
    """Whether every adversarial image, of the record and of this audit, is in ball and box, in float64."""
    limit = context.claim.epsilon * (1 + 1e-5) + 1e-6
    outside, seen, farthest = 0, 0, 0.0
    for images, adversarial in _adversarial_pairs(context):
        change = adversarial.astype(np.float64) - images
        axes = (1, 2, 3)
        size = np.abs(change).max(axis=axes) if context.claim.norm == "linf" else np.sqrt((change**2).sum(axis=axes))
        boxed = (adversarial.min(axis=axes) >= 0) & (adversarial.max(axis=axes) <= 1)
        outside += int(np.sum((size > limit) | ~boxed))
        seen, farthest = seen + len(size), max(farthest, float(size.max()))
    recorded = context.evidence.largest_distance if context.evidence is not None else None
    because = f"{outside} of {seen} adversarial images lie outside; the farthest at {farthest * 255:.4g}/255"
    far = recorded is not None and recorded > limit
    if recorded is not None and far:
        because += f"; the record itself reports {recorded * 255:.4g}/255"
    return result(outside > 0 or far, because, outside=outside, farthest=farthest)


def _adversarial_pairs(context: Context) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and adversarial images within the claim's ball: of the record, of the verifier and of the checks."""
    stored = context.evidence.attacked if context.evidence is not None else ()
    checked, measured = context.checked, context.measured
    assert checked.adversarial is not None and measured.adversarial is not None
    return [
        *((context.images, adversarial) for adversarial, _ in stored),
        (context.images, measured.adversarial[0]),
        *(
            (context.images[: context.count], adversarial)
            for attack, adversarial in zip(checked.attacks, checked.adversarial, strict=True)
            if attack.epsilon <= context.claim.epsilon
        ),
    ]


def record(context: Context) -> Result:
    """Whether the record agrees with its images and the model."""
    evidence = context.evidence
    if evidence is None:
        return not_run("the claim is a number, with no record of outcomes")
    tolerance, wrong = context.budget.claim_tolerance, []
    if not evidence.same_model:
        wrong.append("its model hash is of another model")
    clean = float(np.mean(evidence.clean != context.measured.clean))
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
    """Whether the claim is of other coordinates: as its record says, or because they give the claimed number."""
    named = context.evidence.protocol if context.evidence is not None else "pixel"
    if named != "pixel":
        return result(True, f"its record names the protocol {named}")
    if not context.falls or not context.differentiable:
        return result(False, "no other protocol is named")
    claim, budget = context.claim, context.budget
    pgd = PGD(norm=claim.norm, epsilon=claim.epsilon, num_steps=budget.num_steps)
    protocols = [name for name in PROTOCOLS if name != "pixel"] if context.images.shape[-1] in (1, 3) else []
    attacks: tuple[Attack, ...] = tuple(dataclasses.replace(pgd, protocol=name) for name in protocols)
    survival = context.evaluate(attacks, slice(0, context.count))
    shares = {name: survived.mean() for name, survived in zip(protocols, survival.survived, strict=True)}
    matching = [
        name
        for name, survived in zip(protocols, survival.survived, strict=True)
        if abs(survived.mean() - claim.robust_accuracy) <= budget.tolerance + 2 * standard_error(survived)
    ]
    text = ", ".join(f"{name} ({shares[name]:.1%})" for name in matching)
    because = "no other known coordinates give the claimed number"
    if matching:
        because = (
            f"the claimed {claim.robust_accuracy:.1%} is, within chance, what PGD gives in the coordinates of {text}"
        )
    return result(bool(matching), because, **shares)


def claimed_number(context: Context) -> Result:
    """Whether as many images survive as are claimed."""
    return result(
        context.falls,
        comparison_text(context),
        claimed=context.claim.robust_accuracy,
        measured=context.worst_case.survived.mean(),
        allowed=context.allowed_shortfall,
    )


def comparison_text(context: Context) -> str:
    """Return the claimed and the measured robust accuracy in one sentence."""
    survived = context.worst_case.survived
    return (
        f"{context.claim.robust_accuracy:.1%} claimed, {float(survived.mean()):.1%} of {len(survived)} images survive "
        f"{describe(context.verifier)} and the checks' attacks"
    )
