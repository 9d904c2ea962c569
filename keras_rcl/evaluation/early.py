"""Attacks as many of the audited images as a verdict needs, in a random order.

The verdict of an audit of all N images depends on the number K of images that survive. After n images, the possible
numbers K form an interval (`keras_rcl.evaluation.intervals.possible_counts`). The audit ends if the verdict is the same
for all of them. With the probability `verdict_confidence` none of the intervals excludes K, and the verdict is that of
an audit of all images.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from keras_rcl.evaluation.checks import CHECKS, Context
from keras_rcl.evaluation.checks.counting import Sample
from keras_rcl.evaluation.robustness import Survival

GROWTH = 1.5
"""The ratio of the numbers of attacked images at which two successive intervals are computed."""


def attack_until_decided(context: Context, confidence: float) -> Context:
    """Attack images until the verdict on the claim is decided.

    The checks run on their own images, the first of the data, as in an audit of all images. They are not run if the
    claim falls without them; their attacks can only break more images.

    Args:
        context: An audit of which nothing was attacked.
        confidence: The probability with which the verdict is that of an audit of all images.

    Returns:
        The audit with the sample that decides it, or with all images.
    """
    count, total = context.count, len(context.images)
    others = np.random.default_rng(context.seed).permutation(total - count)
    order = np.concatenate([np.arange(count), count + others])
    clean = context.evaluator.predict(context.images) == context.labels
    table = context.evaluate((context.verifier,), order[:count])
    context = context.with_sample(Sample(order, clean, table, confidence), verifier_alone=True)
    if _raised(context, "voids"):
        return context
    blocked = False
    while True:
        if context.verifier_alone and (context.complete or "falls" not in context.possible_verdicts):
            context = context.with_sample(context.sample, verifier_alone=False)
            blocked = _raised(context, "blocks")
        if context.complete or _decided(context, blocked):
            return context
        context = context.with_sample(_grown(context), context.verifier_alone)


def _raised(context: Context, kind: Literal["blocks", "voids"]) -> bool:
    """Whether a check of a kind is raised."""
    return any(check.run(context).status == "raised" for check in CHECKS.values() if getattr(check, kind))


def _decided(context: Context, blocked: bool) -> bool:
    """Whether the verdict is the same for all numbers of survivors that are possible."""
    verdicts = context.possible_verdicts
    if verdicts == {"falls"}:
        return bool(context.counterexamples.any())
    return not context.verifier_alone and "falls" not in verdicts and (blocked or len(verdicts) == 1)


def _grown(context: Context) -> Sample:
    """The sample after the verifier has attacked more images."""
    sample = context.sample
    assert sample is not None
    more = sample.order[len(sample.positions) : math.ceil(GROWTH * len(sample.positions))]
    return dataclasses.replace(sample, table=_joined(sample.table, context.evaluate((context.verifier,), more)))


def _joined(first: Survival, second: Survival) -> Survival:
    """The table of the images of two tables of the same attacks. Shares of gradients are weighted by forward passes."""
    sizes = np.array([len(first.labels), len(second.labels)]) / (len(first.labels) + len(second.labels))
    passes = np.stack([first.forwards, second.forwards])

    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(first, name), getattr(second, name)], axis=-1)

    def mean(name: str) -> np.ndarray:
        values = np.stack([getattr(first, name), getattr(second, name)])
        return np.sum(values * passes, axis=0) / np.maximum(1, passes.sum(axis=0))

    assert first.adversarial is not None and second.adversarial is not None
    return Survival(
        attacks=first.attacks,
        labels=both("labels"),
        clean_predictions=both("clean_predictions"),
        predictions=both("predictions"),
        distances=both("distances"),
        zero_gradients=mean("zero_gradients"),
        forwards=passes.sum(axis=0),
        backwards=first.backwards + second.backwards,
        seconds=first.seconds + second.seconds,
        stages=tuple(
            tuple((label, float(sizes @ [a, b])) for (label, a), (_, b) in zip(mine, others, strict=True))
            for mine, others in zip(first.stages, second.stages, strict=True)
        ),
        adversarial=np.concatenate([first.adversarial, second.adversarial], axis=1),
        dead_gradients=mean("dead_gradients"),
    )
