"""What every attack offers, whatever its hyper-parameters are."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.threat import Norm, Protocol, ThreatModel, check_ball, check_epsilon, check_step_size

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from keras_rcl.vocabulary.attacks.parsing import Attack
else:
    DataclassInstance = object


class AttackBase(DataclassInstance):
    """The interface of an attack. Most properties are fields of the subclasses that let a user choose them.

    Attributes:
        steps_field: The field that a number after the attack's name sets on the command line.
        training_only: Whether the attack is defined in training only.
        every_image: Whether an evaluation attacks misclassified images as well.
        minimal: Whether one run finds the nearest adversarial image, whatever epsilon is.
        stops_within: Whether a run of such an attack ends at the first adversarial image within epsilon.

    Example:
        A subclass is a `spec` with the fields `name`, `norm` and `epsilon`, and the properties `label` and
        `num_passes`; see `register_attack`.

        >>> import keras_rcl
        >>> issubclass(keras_rcl.PGD, keras_rcl.AttackBase)
        True
    """

    steps_field: ClassVar[str] = "num_steps"
    """The field that a number after the attack's name sets on the command line."""
    training_only: ClassVar[bool] = False
    """Whether the attack is defined in training only."""
    every_image: ClassVar[bool] = False
    """Whether an evaluation attacks misclassified images as well."""
    minimal: ClassVar[bool] = False
    """Whether one run finds the nearest adversarial image, whatever epsilon is."""
    stops_within: ClassVar[bool] = False
    """Whether a run of such an attack ends at the first adversarial image within epsilon."""

    def __post_init__(self) -> None:
        if self.norm is None or self.epsilon is None:
            return
        check_epsilon(self.epsilon, self.norm)
        check_step_size(getattr(self, "step_size", None), self.norm)

    @property
    def norm(self) -> Norm | None:
        """The norm of the ball; None if no ball bounds the attack."""
        raise NotImplementedError

    @property
    def epsilon(self) -> float | None:
        """The radius of the ball in the protocol's units; None if no ball bounds the attack."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """A short name for tables and records, with what differs from the usual setting: `PGD-40x5`."""
        raise NotImplementedError

    @property
    def num_passes(self) -> tuple[int, int]:
        """Forward and backward passes per image in one round."""
        raise NotImplementedError

    @property
    def protocol(self) -> Protocol:
        return "pixel"

    @property
    def targeted(self) -> bool:
        return False

    @property
    def num_restarts(self) -> int:
        return 1

    @property
    def min_classes(self) -> int:
        """The smallest number of classes for which the attack is defined."""
        return 2

    @property
    def target_output(self) -> Any:
        """The output that the attack reads: `logits`, `embedding` or `projection`; a tuple if it reads several."""
        return "logits"

    @property
    def proxy(self) -> str | None:
        """The path of the model whose output the attack reads; None for the attacked model itself."""
        return None

    @property
    def threat_model(self) -> ThreatModel | None:
        """The ball; None if no ball bounds the attack."""
        if self.norm is None:
            return None
        return ThreatModel(norm=self.norm, epsilon=self.epsilon, protocol=self.protocol)

    @property
    def num_rounds(self) -> int:
        """How often the attack runs, each time on the images that are still robust.

        The number of restarts, times the number of target classes for an attack that has several.
        """
        return self.num_restarts

    @property
    def members(self) -> tuple["Attack", ...]:
        """The attacks of an ensemble in the order in which they run; any other attack is its own only member."""
        return (self,)  # type: ignore[return-value]

    @property
    def variations(self) -> tuple["Attack", ...]:
        """What an evaluation runs and reports in place of this attack; most attacks are their own only variation."""
        return (self,)  # type: ignore[return-value]

    @property
    def measures_training(self) -> bool:
        """Whether the attack can measure a network while it is trained: on its own logits, within a ball."""
        return self.target_output == "logits" and not self.proxy and not self.training_only and self.norm is not None

    @property
    def cost(self) -> int:
        """Forward and backward passes of all rounds of all members, per image that survives them."""
        return sum(member.num_rounds * sum(member.num_passes) for member in self.members)

    def for_training(self) -> Self:
        """The attack that crafts examples to train on: with all steps, also where the last never counts."""
        return self

    @property
    def takes_protocol(self) -> bool:
        """Whether the attack runs in the coordinates of another protocol than `pixel`."""
        return has_protocol(type(self))

    def check_images(self, image_shape: Sequence[int | None]) -> None:
        """Check that ball and step are not longer than the distance of any two images of this shape (H, W, C).

        Under another protocol than `pixel` they have other units and are not checked.

        Raises:
            InvalidInputError: if one of them is.
        """
        if self.protocol != "pixel" or self.norm is None or self.epsilon is None:
            return
        check_ball(self.epsilon, self.norm, image_shape)
        check_ball(getattr(self, "step_size", None) or 0.0, self.norm, image_shape, "step_size")

    def with_epsilon(self, epsilon: float) -> Self:
        """The same attack with another radius, in pixel units.

        Raises:
            InvalidInputError: if no ball bounds the attack.
        """
        if self.norm is None:
            raise InvalidInputError(
                f"{self.label} has no epsilon to set; hint: leave the epsilon out, or run this attack by itself"
            )
        return dataclasses.replace(self, epsilon=epsilon)

    def with_protocol(self, protocol: Protocol) -> Self:
        """The same attack under another protocol.

        Raises:
            InvalidInputError: if the attack runs under `pixel` only.
        """
        from keras_rcl.vocabulary.attacks.parsing import ATTACKS

        if self.takes_protocol:
            return dataclasses.replace(self, protocol=protocol)
        if protocol != "pixel":
            able = ", ".join(name for name, cls in ATTACKS.items() if has_protocol(cls))
            raise InvalidInputError(f"{self.label} runs in pixels only, not under {protocol}; protocols are for {able}")
        return self

    def for_classes(self, num_classes: int) -> Self:
        """The same attack on a classifier of K classes: with at most K - 1 target classes.

        Raises:
            InvalidInputError: if the attack needs more classes.
        """
        if num_classes < self.min_classes:
            raise InvalidInputError(
                f"{self.label} needs at least {self.min_classes} classes and the model has {num_classes}; "
                "use pgd, apgd with cross_entropy, fab or square"
            )
        targets = getattr(self, "num_targets", 0)
        return dataclasses.replace(self, num_targets=num_classes - 1) if targets >= num_classes else self


def has_protocol(cls: type) -> bool:
    """Whether a class of attacks has the field `protocol`."""
    return "protocol" in {field.name for field in dataclasses.fields(cls)}


def times(num_restarts: int) -> str:
    """The part of a label that counts restarts: `x5`; empty for one."""
    return f"x{num_restarts}" if num_restarts > 1 else ""


def eot(num_passes: int) -> str:
    """The part of a label that counts the passes of each gradient: ` EOT-20`; empty for one."""
    return f" EOT-{num_passes}" if num_passes > 1 else ""


def through(proxy: str | None) -> str:
    """The part of a label that names the attacked model, if it is another one than the evaluated model."""
    return f" through {proxy}" if proxy else ""
