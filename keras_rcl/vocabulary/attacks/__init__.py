"""Attacks as values: their hyper-parameters under the field's names. `keras_rcl.attacks.craft` runs them."""

from keras_rcl.vocabulary.attacks.base import AttackBase
from keras_rcl.vocabulary.attacks.black_box import HopSkipJump, Noise, RayS, Square
from keras_rcl.vocabulary.attacks.ensemble import AutoAttack
from keras_rcl.vocabulary.attacks.gradient import BIM, FGSM, MIFGSM, PGD, AutoPGD, GradientAscent, Surrogate
from keras_rcl.vocabulary.attacks.minimal import DDN, FAB, FMN, CarliniWagner, DeepFool
from keras_rcl.vocabulary.attacks.parsing import (
    ALIASES,
    ATTACKS,
    Attack,
    as_attack,
    as_attacks,
    describe,
    known_attacks,
    parse_attack,
    to_cli,
)
from keras_rcl.vocabulary.attacks.representation import Embedding, JointAttack, SupConAttack
from keras_rcl.vocabulary.attacks.transformations import CORRUPTION_KINDS, Corruptions, Spatial
from keras_rcl.vocabulary.attacks.wrappers import Refreshed, SmoothedAscent, SmoothedAttack, Stored, Transfer

__all__ = [
    "ALIASES",
    "ATTACKS",
    "BIM",
    "CORRUPTION_KINDS",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "MIFGSM",
    "PGD",
    "Attack",
    "AttackBase",
    "AutoAttack",
    "AutoPGD",
    "CarliniWagner",
    "Corruptions",
    "DeepFool",
    "Embedding",
    "GradientAscent",
    "HopSkipJump",
    "JointAttack",
    "Noise",
    "RayS",
    "Refreshed",
    "SmoothedAscent",
    "SmoothedAttack",
    "Spatial",
    "Square",
    "Stored",
    "SupConAttack",
    "Surrogate",
    "Transfer",
    "as_attack",
    "as_attacks",
    "describe",
    "known_attacks",
    "parse_attack",
    "to_cli",
]
