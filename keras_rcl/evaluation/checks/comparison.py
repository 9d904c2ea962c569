"""Checks that compare attacks with each other: a stronger attack must not break fewer images than a weaker one.

A check is raised for the images that the verifier did not break: a weakness of another attack that the verifier does
not share is reported, and withholds no verdict.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np

from keras_rcl.evaluation.checks.context import WHITE_BOX, Context, Result, not_run, result


def _needs_gradient(check: Callable[[Context], Result]) -> Callable[[Context], Result]:
    """The check, which is not run on a model without a gradient."""

    @functools.wraps(check)
    def run(context: Context) -> Result:
        if not context.differentiable:
            return not_run("no gradient reaches the pixels, so there is no white-box attack to compare with")
        return check(context)

    return run


def _judge(context: Context, broken: np.ndarray, text: str, **figures: float) -> Result:
    """Raised if more than `tolerance` of the images are broken and survive the verifier.

    Args:
        context: the audit.
        broken: [n] bool.
        text: what broke them, as the end of a sentence that begins with the share of images.
        **figures: further numbers.
    """
    share, beyond = float(broken.mean()), float((broken & context.left).mean())
    because = f"{share:.1%} of the images {text}"
    if broken.any():
        because += f"; {context.verifier.label} breaks {'these as well' if not beyond else f'all except {beyond:.1%}'}"
    return result(
        context.exceeds_tolerance(beyond), because, share_of_images=share, share_beyond_the_verifier=beyond, **figures
    )


def _compare(context: Context, strong: tuple[str, ...], weak: tuple[str, ...], text: str) -> Result:
    """Judge the images that survive all attacks of `strong` and are broken by one of `weak`."""
    return _judge(context, context.survivors(*strong) & ~context.survivors(*weak), text)


@_needs_gradient
def epsilon_0(context: Context) -> Result:
    """Whether an attack with epsilon 0 leaves every outcome as it is."""
    changed = context.survivors("epsilon 0") != context.checked.clean
    because = f"with epsilon 0, {int(changed.sum())} of {context.count} outcomes differ from the clean ones"
    return result(bool(changed.any()), because, share_of_images=changed.mean())


_RADII = ("half", "pgd", "double", "largest")


def _by_epsilon(context: Context) -> list[float]:
    """Robust accuracy at half, once and twice epsilon and at the largest."""
    return [float(context.survivors(name).mean()) for name in _RADII]


@_needs_gradient
def monotone(context: Context) -> Result:
    """Whether robust accuracy falls with epsilon."""
    shares = _by_epsilon(context)
    text = ", ".join(f"{share:.1%}" for share in shares)
    because = f"robust accuracy at half, once and twice epsilon and at the largest: {text}"
    rises = max(0.0, *np.diff(shares))
    strange = np.zeros(context.count, bool)  # broken at one epsilon, and not at a larger one
    for smaller, larger in itertools.pairwise(_RADII):
        strange |= context.left & ~context.survivors(smaller) & context.survivors(larger)
    beyond = strange.mean()
    return result(
        context.exceeds_tolerance(min(rises, beyond)), because, largest_rise=rises, share_beyond_the_verifier=beyond
    )


@_needs_gradient
def large_epsilon(context: Context) -> Result:
    """Whether no image survives an epsilon as wide as the pixel box."""
    survived = context.survivors("largest")
    because = f"{survived.mean():.1%} survive an epsilon as wide as the box"
    return result(context.exceeds_tolerance((survived & context.left).mean()), because, robust_accuracy=survived.mean())


@_needs_gradient
def iterative(context: Context) -> Result:
    """Whether many steps break what one step breaks."""
    steps = context.budget.num_steps
    return _compare(
        context, ("pgd", "more steps"), ("fgsm",), f"survive PGD-{steps} and PGD-{2 * steps} and are broken by FGSM"
    )


def converged(context: Context) -> Result:
    """Whether the verifier with more steps, queries and other random numbers, or PGD, breaks no further images."""
    if context.randomised:
        return not_run("the model is random, so a repeated attack breaks other images by chance")
    broken, names = context.broken_by(context.stronger), tuple(name for name in WHITE_BOX if name in context.attacks)
    if names:
        broken |= context.left & ~context.survivors(*names)
    attacks = context.stronger.survival.attacks if context.stronger.survival is not None else ()
    text = " or ".join([*(attack.label for attack in attacks), *(["PGD"] if names else [])])
    because = f"{broken.mean():.1%} of the images survive {context.verifier.label} and are broken by {text}"
    return result(context.exceeds_tolerance(broken.mean()), because, share_of_images=broken.mean())


def finite_differences(context: Context) -> Result:
    """Whether an attack along measured slopes of the logits breaks nothing that survives the verifier."""
    if context.randomised:
        return not_run("the model is random, so differences of its outputs are of chance")
    broken = context.broken_by(context.estimated)
    because = (
        f"{broken.mean():.1%} of the images survive {context.verifier.label} and are broken by PGD along slopes that "
        "are measured by finite differences"
    )
    return result(context.exceeds_tolerance(broken.mean()), because, share_of_images=broken.mean())


def _weaker(context: Context, names: tuple[str, ...], text: str) -> Result:
    """Judge the images that these attacks break, and that survive all attacks with gradients, if there are any."""
    white_box = tuple(name for name in WHITE_BOX if name in context.attacks)
    if not white_box:
        return _judge(context, ~context.survivors(*names) & context.checked.clean, f"are broken by {text}")
    return _compare(context, white_box, names, f"survive all attacks with gradients and are broken by {text}")


def black_box(context: Context) -> Result:
    """Whether attacks without gradients break nothing that survives those with gradients."""
    names = tuple(name for name in ("square", "rays") if name in context.attacks)
    return _weaker(context, names, " or ".join(context.attacks[name].label for name in names))


def noise(context: Context) -> Result:
    """Whether random noise breaks nothing that survives gradient attacks."""
    return _weaker(context, tuple(name for name in context.attacks if name.startswith("noise")), "random noise")


def transfer(context: Context) -> Result:
    """Whether images crafted on other models break nothing that survives attacks on the model itself."""
    names = tuple(name for name in context.attacks if name.startswith("transfer"))
    if not names:
        return not_run("no other model was given; name one with --transfer-from")
    return _weaker(context, names, "images crafted on another model")


@_needs_gradient
def embedding(context: Context) -> Result:
    """Whether an attack on the embedding breaks nothing that survives attacks through the classifier."""
    if "embedding" not in context.attacks:
        return not_run("the model has no embedding output")
    missed = context.survivors(*WHITE_BOX) & ~context.survivors("embedding")
    return _judge(
        context,
        missed,
        "survive all attacks through the classifier and are broken by one on the embedding",
        robust_accuracy=context.survivors("embedding").mean(),
        share_missed_through_the_classifier=missed.mean(),
    )
