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
    """What is said of a model: that so large a share of images stays right whatever is done within the ball."""

    robust_accuracy: Share
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255

    def __post_init__(self):
        check_epsilon(self.epsilon, self.norm)


@spec
class AuditBudget:
    """How much an audit spends.

    Fields:
        num_images: the checks' images, the first of those that AutoAttack is run on.
        num_steps: of the PGD that is checked for convergence; it is run with twice as many steps, and with restarts.
        num_restarts: of that last one.
        num_queries: of the black-box check.
        num_draws: of each noise control.
        verifier: the attack that the claimed number is held against, at the claim's epsilon; AutoAttack by default, its
            version `rand` where the model is random.
        tolerance: the share of images by which two measures may differ before anything is raised.
        claim_tolerance: the share by which a claim on the same images may exceed what is measured.
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
            InvalidInputError: if it is of another norm.
        """
        if self.verifier is not None:
            if self.verifier.norm != claim.norm:
                raise InvalidInputError(
                    f"verifier {self.verifier.label} is of {self.verifier.norm}, the claim of {claim.norm}"
                )
            return self.verifier.with_epsilon(claim.epsilon)
        return AutoAttack(norm=claim.norm, epsilon=claim.epsilon, version="rand" if randomised else "standard")
