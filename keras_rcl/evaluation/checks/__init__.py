"""The checks of an audit, one row each.

To add a check: write `def check(context: Context) -> Result` in one of the modules beside this one, add a row to
`CHECKS`, and describe the check in `docs/auditing.md`.
"""

from collections.abc import Callable
from typing import NamedTuple

from keras_rcl.evaluation.checks import claim, comparison, model, reading
from keras_rcl.evaluation.checks.context import Context, Evidence, Finding, Result, Status, Subject, not_run

__all__ = ["CHECKS", "Check", "Context", "Evidence", "Finding", "Result", "Status", "Subject", "run_checks"]


class Check(NamedTuple):
    """One check.

    Attributes:
        run: Measures the model.
        meaning: What it means if the check is raised.
        remedy: What to do then.
        blocks: Whether a claim does not stand while the check is raised.
        voids: Whether there is no verdict at all while the check is raised: a claim does not fall either.
        attacks: Whether the check runs attacks of its own. It is not run if the verdict is decided without it.
    """

    run: Callable[[Context], Result]
    meaning: str
    remedy: str
    blocks: bool = True
    voids: bool = False
    attacks: bool = False


CHECKS: dict[str, Check] = {
    "read as trained": Check(
        reading.read_as_trained,
        "The model is probably not given the images that it was trained on, so nothing that is measured here is about "
        "the model of the claim.",
        "Check the range of the pixels (--input-range), the data set, the order of the classes and the channels, until "
        "the clean accuracy is the one that is known of this model; then audit again.",
        voids=True,
    ),
    "clean accuracy": Check(
        claim.clean_accuracy,
        "Fewer images are classified correctly without any attack than are claimed to be robust: the claim is of "
        "another model or other images, or it is false.",
        "Audit the model and the images that the claim is of.",
    ),
    "logits": Check(
        model.logits,
        "The output is already a softmax. Cross-entropy applies another softmax, whose gradient almost vanishes: the "
        "attack is weak, and the defence is not shown to be strong.",
        "Attack the logits, or the logarithm of the probabilities, as this audit does.",
        blocks=False,
    ),
    "deterministic": Check(
        model.deterministic,
        "The model's output for the same image differs from call to call: the model is random or changes with use. "
        "One gradient is then only a sample, and an attack that follows it follows noise.",
        "Average gradients over draws (AutoAttack's version `rand`) and report the accuracy expected over draws.",
    ),
    "per image": Check(
        model.per_image,
        "The output for an image depends on the other images of its batch, as with BatchNormalization in training "
        "mode.",
        "Serve and attack the model in inference mode.",
    ),
    "gradients": Check(
        model.gradients,
        "Gradients of the logit margin are zero, not finite or absent on many images: they are masked, as by rounding, "
        "JPEG or a clipped input, and gradient attacks do not move.",
        "Attack through a differentiable replacement of the layer (BPDA), and rely on black-box attacks first.",
    ),
    "saturation": Check(
        model.saturation,
        "The cross-entropy of many images is so small that its gradient vanishes in float32, though the logits have "
        "one: they are scaled so high that attacks on the cross-entropy are blind.",
        "Attack a loss without a scale, the logit margin or DLR, as AutoAttack does.",
        blocks=False,
    ),
    "loss surface": Check(
        model.loss_surface,
        "On many images a random step raises the margin more than a step along the gradient: the loss is shattered, "
        "and its gradient does not lead to adversarial images.",
        "Rely on black-box attacks; look for rounding, random or discontinuous layers.",
    ),
    "epsilon 0": Check(
        comparison.epsilon_0,
        "With epsilon 0 the attack's outcome is not the clean one: images are changed on the way, or the model is not "
        "a function.",
        "Make attack and model see the same pixels in [0, 1], with all preprocessing inside the model.",
        attacks=True,
    ),
    "ball and box": Check(
        claim.ball_and_box,
        "Adversarial images lie outside the ball or outside [0, 1]: another threat model was measured than is claimed.",
        "Project on the ball and then on the box, in pixels; count the images again.",
    ),
    "monotone": Check(
        comparison.monotone,
        "A larger epsilon breaks fewer images, though its ball contains the smaller one: the attack fails for reasons "
        "of its own.",
        "Tune step size and restarts until robust accuracy falls with epsilon.",
        attacks=True,
    ),
    "large epsilon": Check(
        comparison.large_epsilon,
        "Images survive an epsilon at which every image may become any other: the attack is stuck, which is a sign of "
        "masked gradients.",
        "Find what stops the attack before relying on a result at any smaller epsilon.",
        attacks=True,
    ),
    "iterative": Check(
        comparison.iterative,
        "A single step breaks images that survive many: the loss is not smooth enough for the steps to add up.",
        "Rely on neither attack; use black-box attacks and smaller steps.",
        attacks=True,
    ),
    "converged": Check(
        comparison.converged,
        "The verifier with twice the steps and queries and other random numbers, or PGD, breaks images that the "
        "verifier left: it had not converged, and more would be broken by more of it.",
        "Raise steps, restarts and queries of the verifier until nothing changes.",
        attacks=True,
    ),
    "finite differences": Check(
        comparison.finite_differences,
        "Slopes that are measured from the logits lead to adversarial images where the model's own gradient does not: "
        "its gradient misleads.",
        "Attack along measured slopes (SPSA), or through a differentiable replacement of the layer (BPDA).",
        attacks=True,
    ),
    "black box": Check(
        comparison.black_box,
        "An attack without gradients breaks images that survive all with gradients: gradients are masked.",
        "Take the black-box attack's number as an upper bound, and look for what masks the gradients.",
        attacks=True,
    ),
    "noise": Check(
        comparison.noise,
        "Random noise breaks images that survive all gradient attacks, which should be far stronger.",
        "The gradient attacks do not work on this model; find out why.",
        attacks=True,
    ),
    "transfer": Check(
        comparison.transfer,
        "Images crafted on another model break this one where attacks on itself do not: its own gradients mislead.",
        "Report the worst case over both, and look for what masks the gradients.",
        attacks=True,
    ),
    "embedding": Check(
        comparison.embedding,
        "An attack on the embedding, which does not use the classifier, breaks images that attacks through the "
        "classifier do not: the head that passes the gradient is stale, or masks it.",
        "Retrain the head on the encoder that is served, and attack the two together.",
        attacks=True,
    ),
    "record": Check(
        claim.record,
        "The record does not fit the model: outcomes recomputed from its images differ from those that it counts, as "
        "when success is tested before the last step.",
        "Count an image as robust only if the image that the attack returns is classified correctly.",
    ),
    "protocol": Check(
        claim.protocol,
        "The claim was, or may have been, measured in other coordinates than pixels, as on normalised images: its "
        "epsilon is then smaller in pixels, or its images were clamped elsewhere. A record names its coordinates; a "
        "number that fits can be a coincidence.",
        "State epsilon in [0, 1] pixels and attack with the normalisation inside the model.",
        attacks=True,
    ),
    "claimed number": Check(
        claim.claimed_number,
        "Fewer images survive the verifier than are claimed to be robust.",
        "Report the measured number; the images that were broken are stored beside this audit.",
        blocks=False,  # it is the verdict `falls` by itself
    ),
}
"""Every check by name, in the order in which checks run and are reported."""


def run_checks(context: Context) -> tuple[Finding, ...]:
    """Run all checks, and return one finding per check; those that the verdict does not depend on are not run."""
    return tuple(
        Finding(name, *(_DECIDED if context.verifier_alone and check.attacks else check.run(context)))
        for name, check in CHECKS.items()
    )


_DECIDED = not_run("the verdict was decided without it")
