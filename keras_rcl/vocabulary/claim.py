"""A robustness claim, and how thoroughly to audit it."""

from typing import Annotated

from pydantic import Field, PositiveInt

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import Attack, AutoAttack
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
        verifier: the attack that measures robust accuracy at the claim's epsilon; AutoAttack if not given, in version
            `rand` if the model is random.
        tolerance: the share of images by which two measurements may differ before a check raises a finding.
        claim_tolerance: the share by which a claim on the same images may exceed the measured robust accuracy.

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

    def resolved_verifier(self, claim: Claim, randomised: bool) -> Attack:
        """The verifier, in the claim's ball.

        Raises:
            InvalidInputError: if the verifier has another norm than the claim.
        """
        if self.verifier is not None:
            if self.verifier.norm != claim.norm:
                raise InvalidInputError(
                    f"verifier {self.verifier.label} has norm {self.verifier.norm}, the claim {claim.norm}; use one"
                )
            return self.verifier.with_epsilon(claim.epsilon)
        return AutoAttack(norm=claim.norm, epsilon=claim.epsilon, version="rand" if randomised else "standard")
