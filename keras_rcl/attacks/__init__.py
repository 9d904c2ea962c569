"""Attacks in the graph: `craft(attack, logits_fn, x, labels, seed=...)`."""

from keras_rcl.attacks.craft import craft, craft_and_count

__all__ = ["craft", "craft_and_count"]
