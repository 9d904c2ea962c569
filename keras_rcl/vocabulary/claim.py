"""A robustness claim, and how thoroughly to audit it."""

from typing import Annotated, Any

from pydantic import Field, PositiveInt

from keras_rcl.errors import InvalidInputError, named
from keras_rcl.vocabulary.attacks import Attack, AutoAttack, AutoPGD, Square
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import Norm, Pixels, check_epsilon

Share = Annotated[float, Field(ge=0, le=1)]


@spec
class Claim:
    """A claimed robust accuracy: the share of images that no perturbation within the ball misclassifies.

    Attributes:
        robust_accuracy: the claimed share, in [0, 1].
        norm: the ball, `linf` or `l2`.
        epsilon: radius of the ball in pixel units, such as "8/255".

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Claim(robust_accuracy=0.6, epsilon="8/255").norm
        'linf'
    """

    robust_accuracy: Share
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255

    def __post_init__(self):
        check_epsilon(self.epsilon, self.norm)


def as_claim(claim: object) -> Claim:
    """A claim as it is.

    Raises:
        InvalidInputError: if it is something else.
    """
    if not isinstance(claim, Claim):
        raise InvalidInputError(
            f"{named(claim)} is not a claim; hint: give one, such as keras_rcl.Claim(robust_accuracy=0.6)"
        )
    return claim


@spec
class AuditBudget:
    """How much an audit spends.

    Attributes:
        num_images: images of the checks, the first ones of those that the verifier attacks.
        num_steps: steps of the PGD that is checked for convergence; it also runs with twice as many steps and with
            restarts.
        num_restarts: restarts of the PGD with restarts.
        num_queries: queries per image of the black-box check.
        num_draws: draws per image of each noise control.
        verifier: the attack that measures robust accuracy at the claim's epsilon. If not given: AutoAttack, in version
            `rand` if the model is random; APGD for fewer than four classes; Square if no gradient reaches the pixels.
        tolerance: the share of images by which two measurements may differ before a check raises a finding.
        claim_tolerance: the share by which a claim on the same images may exceed the measured robust accuracy, and the
            rounding of a claim that is a number.
        confidence: the probability with which an interval contains the share that it is of.
        resolution: a claim stands only if the lower limit of the measured share's interval is at most this far below
            the claim, and at most half the claim: with fewer images the number says too little.
        verdict_confidence: attack only as many images as are needed for a verdict that is, with this probability, that
            of an audit of all images. If not given, all images are attacked.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.AuditBudget(num_images=50).num_steps
        20
    """

    num_images: PositiveInt = 100
    num_steps: PositiveInt = 20
    num_restarts: PositiveInt = 5
    num_queries: PositiveInt = 1000
    num_draws: PositiveInt = 10
    verifier: Attack | None = None
    tolerance: Share = 0.02
    claim_tolerance: Share = 0.005
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    resolution: Share = 0.15
    verdict_confidence: Annotated[float, Field(gt=0, lt=1)] | None = None

    def resolved_verifier(
        self, claim: Claim, randomised: bool, num_classes: int | None = None, differentiable: bool = True
    ) -> Attack:
        """The verifier, in the claim's ball.

        Args:
            claim: norm and epsilon.
            randomised: whether the model is random.
            num_classes: the number of the model's classes; None if it is not known.
            differentiable: whether a gradient of the model reaches the pixels.

        Raises:
            InvalidInputError: if the given verifier has another norm than the claim, runs in other coordinates than
                pixels, or is not defined for the model.
        """
        ball: dict[str, Any] = dict(norm=claim.norm, epsilon=claim.epsilon)
        if self.verifier is not None:
            return self._given_verifier(claim, num_classes, differentiable)
        if not differentiable:
            return Square(**ball)
        if num_classes is not None and num_classes < 4:
            return AutoPGD(**ball, num_restarts=5)
        return AutoAttack(**ball, version="rand" if randomised else "standard")

    def _given_verifier(self, claim: Claim, num_classes: int | None, differentiable: bool) -> Attack:
        """The verifier that was given, which is run or refused, never replaced."""
        verifier = self.verifier
        assert verifier is not None
        if verifier.norm is None:
            raise InvalidInputError(
                f"verifier {verifier.label} has no ball, and the claim is of one; hint: use autoattack or pgd"
            )
        if verifier.norm != claim.norm:
            raise InvalidInputError(
                f"verifier {verifier.label} has norm {verifier.norm}, the claim {claim.norm}; use one"
            )
        if verifier.protocol != "pixel" or verifier.training_only:
            why = "is an attack of training" if verifier.training_only else f"runs under {verifier.protocol}"
            raise InvalidInputError(f"verifier {verifier.label} {why}; a claim is of pixels; use autoattack or pgd")
        if num_classes is not None:
            verifier.for_classes(num_classes)
        reads_own_gradient = any(member.num_passes[1] and member.proxy is None for member in verifier.members)
        if not differentiable and reads_own_gradient:
            raise InvalidInputError(
                f"verifier {verifier.label} needs gradients, and no gradient reaches the pixels; use square or rays"
            )
        return verifier.with_epsilon(claim.epsilon)
