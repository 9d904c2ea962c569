"""Attacks that run several others, each on the images that are still robust."""

import dataclasses
from typing import TYPE_CHECKING, Literal

from keras_rcl.vocabulary.attacks.base import AttackBase
from keras_rcl.vocabulary.attacks.black_box import Square
from keras_rcl.vocabulary.attacks.gradient import AutoPGD
from keras_rcl.vocabulary.attacks.minimal import FAB
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import Norm, Pixels

if TYPE_CHECKING:
    from keras_rcl.vocabulary.attacks.parsing import Attack


@spec
class AutoAttack(AttackBase):
    """AutoAttack: an ensemble of APGD-CE, APGD-T, FAB-T and Square, as in the published code.

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        version: `standard`, which for l1 runs APGD-CE with 5 restarts and APGD-T with 5 target classes; `plus`, which
            adds APGD-DLR and FAB and runs both of them, APGD-CE and FAB-T with 5 restarts; or `rand` for randomised
            classifiers: APGD-CE and APGD-DLR, each gradient the mean of 20 passes.

    Example:
        >>> import keras_rcl
        >>> [member.label for member in keras_rcl.AutoAttack(epsilon="8/255").members]
        ['APGD-CE', 'APGD-T', 'FAB-T', 'Square-5000']

    References:
        Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks"; 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers"
        (l1).
    """

    name: Literal["autoattack"] = "autoattack"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    version: Literal["standard", "plus", "rand"] = "standard"

    @property
    def min_classes(self) -> int:
        return max(member.min_classes for member in self.members)

    @property
    def members(self) -> tuple["Attack", ...]:
        norm, epsilon = self.norm, self.epsilon
        if self.version == "rand":
            return (
                AutoPGD(eot_iter=20, norm=norm, epsilon=epsilon),
                AutoPGD(loss="dlr", eot_iter=20, norm=norm, epsilon=epsilon),
            )
        targeted = AutoPGD(loss="dlr_targeted", norm=norm, epsilon=epsilon)
        square = Square(norm=norm, epsilon=epsilon)
        if self.version == "standard" and norm == "l1":
            first = AutoPGD(num_restarts=5, norm=norm, epsilon=epsilon)
            return first, dataclasses.replace(targeted, num_targets=5), FAB(norm=norm, epsilon=epsilon), square
        if self.version == "standard":
            return (AutoPGD(norm=norm, epsilon=epsilon), targeted, FAB(norm=norm, epsilon=epsilon), square)
        return (
            AutoPGD(num_restarts=5, norm=norm, epsilon=epsilon),
            AutoPGD(loss="dlr", num_restarts=5, norm=norm, epsilon=epsilon),
            FAB(multi_targeted=False, num_restarts=5, norm=norm, epsilon=epsilon),
            square,
            targeted,
            FAB(num_restarts=5, norm=norm, epsilon=epsilon),
        )

    @property
    def label(self) -> str:
        return "AutoAttack" if self.version == "standard" else f"AutoAttack {self.version}"
