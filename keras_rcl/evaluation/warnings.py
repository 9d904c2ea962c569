"""What makes a measured robust accuracy untrustworthy, one line each, as AutoAttack's own code warns of it."""

from collections.abc import Callable

import numpy as np

from keras_rcl.evaluation.robustness import Survival
from keras_rcl.vocabulary.attacks import describe

DEAD = 0.5
"""The share of zero pixel gradients above which an attack is called dead."""

DEAD_IMAGES = 0.1
"""The share of images without any gradient above which an attack is called dead on them."""

RANDOM, BATCH_DEPENDENT = 1e-4, 1e-3
"""By how much outputs for the same image may differ, relative to the largest logit: alone, and in another batch."""


def model_warnings(logits_fn: Callable, images: np.ndarray) -> list[str]:
    """Return what is wrong with the answers to the first 32 images: chance, or dependence on the batch.

    Args:
        logits_fn: Images [N, H, W, C] in [0, 1] -> logits [N, K].
        images: float32 [N, H, W, C].
    """
    images = images[:32]
    if not len(images):
        return []
    first = np.asarray(logits_fn(images), np.float64)
    if change := randomness(logits_fn, images, first):
        return [
            f"the model is random: outputs for the same images differ by {change:.1%} of the largest logit, so that "
            "each outcome is one draw; hint: attack with eot_iter, or AutoAttack's version rand"
        ]
    reversed_ = np.asarray(logits_fn(images[::-1]))[::-1]
    alone = first.copy()
    alone[0] = np.asarray(logits_fn(np.repeat(images[:1], len(images), axis=0)))[0]
    change = max(_difference(first, reversed_), _difference(first, alone))
    if change > BATCH_DEPENDENT:
        return [
            f"the output for an image changes by {change:.1%} of the largest logit with the other images of its batch, "
            "as BatchNormalization does in training mode; hint: call the model with training=False"
        ]
    return []


def randomness(logits_fn: Callable, images: np.ndarray, first: np.ndarray | None = None) -> float:
    """Return by how much outputs for the same first 32 images differ, relative to the largest logit; 0 if they do not.

    Args:
        logits_fn: Images [N, H, W, C] in [0, 1] -> logits [N, K].
        images: float32 [N, H, W, C].
        first: The logits of these images, if they are known.
    """
    images = images[:32]
    change = _difference(np.asarray(logits_fn(images) if first is None else first, np.float64), logits_fn(images))
    return change if change > RANDOM else 0.0


def _difference(first: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of logits [N, K], relative to the largest of the first."""
    scale = max(1e-12, float(np.abs(first[np.isfinite(first)]).max(initial=0)))
    return float(np.nan_to_num(np.abs(np.asarray(other, np.float64) - first), posinf=0).max() / scale)


def attack_warnings(survival: Survival) -> list[str]:
    """Return one line per attack whose gradients were zero, and one if answers were not finite."""
    found = []
    for number, attack in enumerate(survival.attacks):
        zeros = float(survival.zero_gradients[number])
        dead = float(survival.dead_gradients[number]) if len(survival.dead_gradients) else 0.0
        if zeros > DEAD or dead > DEAD_IMAGES:
            share = f"all of {dead:.0%} of the images" if dead > DEAD_IMAGES else f"{zeros:.0%} of the pixels"
            found.append(
                f"{describe(attack)}: the gradient is zero on {share}, so this attack did not move there, and its "
                "robust accuracy says little; hint: attack with --attack autoattack and --attack square"
            )
    clean, attacked = int(np.sum(survival.clean_predictions < 0)), int(np.sum(survival.predictions < 0))
    if clean or attacked:
        found.append(
            f"logits are not finite for {clean} clean and {attacked} attacked images; these answers count as wrong"
        )
    return found
