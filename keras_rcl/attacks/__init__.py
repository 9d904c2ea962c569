"""Attacks in the graph: `craft(attack, logits_fn, x, labels, seed=...)`."""

from keras_rcl.attacks.craft import check_classes, check_images, craft, craft_and_count, craft_round, sharing
from keras_rcl.attacks.gradient_ascent import NUMBERS
from keras_rcl.attacks.norms import length

__all__ = [
    "NUMBERS",
    "check_classes",
    "check_images",
    "craft",
    "craft_and_count",
    "craft_round",
    "length",
    "sharing",
]
