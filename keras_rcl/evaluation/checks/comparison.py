"""Checks that compare attacks with each other: a stronger attack must not break fewer images than a weaker one."""

import functools
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


def _compare(context: Context, strong: tuple[str, ...], weak: tuple[str, ...], text: str) -> Result:
    """Raised if the attacks `weak` break more than `tolerance` of the images that survive all of `strong`."""
    left, both = context.survivors(*strong), context.survivors(*strong, *weak)
    share = (left.sum() - both.sum()) / context.count
    survive_weak = f"{context.survivors(*weak).mean():.1%}"
    because = text.format(share=f"{share:.1%}", strong=f"{left.mean():.1%}", weak=survive_weak)
    return result(context.exceeds_tolerance(share), because, share_of_images=share)


@_needs_gradient
def epsilon_0(context: Context) -> Result:
    """Whether an attack with epsilon 0 leaves every outcome as it is."""
    changed = context.survivors("epsilon 0") != context.checked.clean
    because = f"with epsilon 0, {int(changed.sum())} of {context.count} outcomes differ from the clean ones"
    return result(bool(changed.any()), because, share_of_images=changed.mean())


def _by_epsilon(context: Context) -> list[float]:
    """Robust accuracy at half, once and twice epsilon and at the largest."""
    return [float(context.survivors(name).mean()) for name in ("half", "pgd", "double", "largest")]


@_needs_gradient
def monotone(context: Context) -> Result:
    """Whether robust accuracy falls with epsilon."""
    shares = _by_epsilon(context)
    rises = max(0.0, *np.diff(shares))
    because = "robust accuracy at half, once and twice epsilon and at the largest: "
    because += ", ".join(f"{share:.1%}" for share in shares)
    return result(context.exceeds_tolerance(rises), because, largest_rise=rises)


@_needs_gradient
def large_epsilon(context: Context) -> Result:
    """Whether no image survives an epsilon as wide as the pixel box."""
    share = _by_epsilon(context)[-1]
    because = f"{share:.1%} survive an epsilon as wide as the box"
    return result(context.exceeds_tolerance(share), because, robust_accuracy=share)


@_needs_gradient
def iterative(context: Context) -> Result:
    """Whether many steps break what one step breaks."""
    steps = context.budget.num_steps
    return _compare(
        context,
        ("pgd", "more steps"),
        ("fgsm",),
        f"FGSM breaks {{share}} that survive PGD-{steps} and PGD-{2 * steps} ({{weak}} survive it, {{strong}} them)",
    )


@_needs_gradient
def converged(context: Context) -> Result:
    """Whether more steps and restarts break no further images."""
    steps, restarts = context.budget.num_steps, context.budget.num_restarts
    return _compare(
        context,
        ("pgd", "margin"),
        ("more steps", "restarts"),
        f"twice the steps and {restarts} restarts break {{share}} that survive PGD-{steps} on cross-entropy "
        f"and PGD-{2 * steps} on the margin",
    )


_BROKEN_BY = "{share} of the images survive all gradient attacks ({strong} do) and are broken by "


@_needs_gradient
def black_box(context: Context) -> Result:
    """Whether attacks without gradients break nothing that survives those with gradients."""
    names = tuple(name for name in ("square", "rays") if name in context.attacks)
    return _compare(context, WHITE_BOX, names, _BROKEN_BY + " or ".join(names))


@_needs_gradient
def noise(context: Context) -> Result:
    """Whether random noise breaks nothing that survives gradient attacks."""
    names = tuple(name for name in context.attacks if name.startswith("noise"))
    return _compare(context, WHITE_BOX, names, _BROKEN_BY + "noise")


@_needs_gradient
def transfer(context: Context) -> Result:
    """Whether images crafted on other models break nothing that survives attacks on the model itself."""
    names = tuple(name for name in context.attacks if name.startswith("transfer"))
    if not names:
        return not_run("no other model was given; name one with --transfer-from")
    return _compare(context, WHITE_BOX, names, _BROKEN_BY + "images crafted on another model")


@_needs_gradient
def embedding(context: Context) -> Result:
    """Whether an attack on the embedding breaks nothing that survives attacks through the classifier."""
    if "embedding" not in context.attacks:
        return not_run("the model has no embedding output")
    through_head, through_embedding = context.survivors(*WHITE_BOX), context.survivors("embedding")
    missed = (through_head & ~through_embedding).mean()
    return result(
        context.exceeds_tolerance(missed),
        f"{missed:.1%} of the images survive all attacks through the classifier ({through_head.mean():.1%} do) and "
        f"are broken by one on the embedding ({through_embedding.mean():.1%} survive it)",
        robust_accuracy=through_embedding.mean(),
        share_missed_through_the_classifier=missed,
    )
