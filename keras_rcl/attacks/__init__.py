"""Attacks in the graph: `craft(attack, logits_fn, x, labels, seed=...)`."""

from keras_rcl.attacks.craft import (
    check_classes,
    check_images,
    craft,
    craft_and_count,
    craft_round,
    is_one_round,
    mixes_rounds,
    sharing,
)
from keras_rcl.attacks.gradient_ascent import NUMBERS, Crafted
from keras_rcl.attacks.norms import length

__all__ = [
    "NUMBERS",
    "Crafted",
    "check_classes",
    "check_images",
    "craft",
    "craft_and_count",
    "craft_round",
    "is_one_round",
    "length",
    "mixes_rounds",
    "sharing",
]
