"""Checks of the model by itself: its output, and its gradients."""

import numpy as np

from keras_rcl.attacks.surrogates import logit_margin
from keras_rcl.evaluation.checks.context import Context, Result, not_run, result

SATURATED = 1e-6
"""The ratio of the cross-entropy's gradient to the margin's at which logits count as saturated."""

ASTRAY = 0.1
"""The share of images on which a random step may raise the margin more than a step along the gradient."""

_NO_GRADIENT = "no gradient reaches the pixels"


def logits(context: Context) -> Result:
    """Whether the output is logits and not probabilities."""
    values = context.logits(context.images[: context.count]).numpy()
    softmax = bool(np.all(values >= 0) and np.allclose(values.sum(axis=1), 1.0, rtol=0, atol=2e-3))
    if softmax:
        because = "its rows, given as logits, are non-negative and sum to 1"
    elif context.subject.probabilities:
        because = "the model returns probabilities; this audit attacks their logarithm"
    else:
        because = "its rows are not probabilities"
    return result(softmax or context.subject.probabilities, because)


def deterministic(context: Context) -> Result:
    """Whether the model returns the same output for the same images."""
    *_, change = context.repeated
    because = f"five outputs for the same images differ by up to {change:.2g} of the largest logit"
    return result(context.randomised, because, largest_difference=change)


def per_image(context: Context) -> Result:
    """Whether the output for an image is independent of the other images of its batch."""
    if context.randomised:
        return not_run("the model is random, so the effect of other images cannot be separated from chance")
    images, first, scale, _ = context.repeated
    reversed_ = context.logits(images[::-1]).numpy()[::-1]
    # The same image beside copies of itself: a batch of other statistics, and of the same size.
    alone = np.stack([context.logits(np.repeat(image[None], len(images), axis=0)).numpy()[0] for image in images[:4]])
    difference = max(np.abs(reversed_ - first).max(), np.abs(alone - first[:4]).max()) / scale
    because = f"with other images in the batch an output changes by up to {difference:.2g} of the largest logit"
    return result(difference > 1e-3, because, largest_difference=difference)


def gradients(context: Context) -> Result:
    """Whether gradients of the logit margin are present, finite and not zero."""
    margins = context.margin_gradient
    if margins is None:
        return result(True, _NO_GRADIENT, share_of_images=1.0)
    dead, zeros = context.dead, float(np.mean((margins == 0) | ~np.isfinite(margins)))
    beyond = (dead & context.left).mean()
    because = f"the margin's gradient is zero or not finite on {dead.mean():.1%} of images, {zeros:.1%} of pixels"
    if dead.any():
        because += f"; {beyond:.1%} of the images have none and survive {context.verifier.label}"
    return result(
        context.exceeds_tolerance(beyond),
        because,
        share_of_images=dead.mean(),
        share_of_pixels=zeros,
        share_beyond_the_verifier=beyond,
    )


def saturation(context: Context) -> Result:
    """Whether the gradient of the cross-entropy vanishes beside that of the margin."""
    margins = context.margin_gradient
    if margins is None:
        return not_run(_NO_GRADIENT)
    entropy = context.gradient("cross_entropy")
    assert entropy is not None
    of_entropy, of_margin = np.abs(entropy).max(axis=(1, 2, 3)), np.abs(margins).max(axis=(1, 2, 3))
    blind = ((of_entropy <= SATURATED * of_margin) & (of_margin > 0)).mean()
    return result(
        blind > 0.5,
        f"the cross-entropy's gradient is below {SATURATED:g} of the margin's on {blind:.1%} of the images",
        share_of_images=blind,
    )


def loss_surface(context: Context) -> Result:
    """Whether a step along the gradient raises the margin more than a random step."""
    if not context.differentiable:
        return not_run(_NO_GRADIENT)
    claim, images, labels = context.claim, context.images[: context.count], context.labels[: context.count]
    step = min(claim.epsilon, 8 / 255) / 4 if claim.norm == "linf" else 1 / 255
    signs = np.sign(np.random.default_rng(context.seed).uniform(-1, 1, images.shape)).astype(np.float32)
    along, across = (
        logit_margin(labels, context.logits(np.clip(images + step * d, 0, 1).astype(np.float32))).numpy()
        for d in (context.direction, signs)
    )
    astray = ~context.dead & (across > along)
    beyond = (astray & context.left).mean()
    because = f"a random step of {step * 255:.2g}/255 raises the margin more than a step along the gradient on "
    because += f"{astray.mean():.1%} of images"
    if astray.any():
        because += f"; {beyond:.1%} of the images survive {context.verifier.label} as well"
    return result(
        beyond > ASTRAY and context.exceeds_tolerance(beyond),
        because,
        share_of_images=astray.mean(),
        share_beyond_the_verifier=beyond,
    )
