"""Networks: encoders and the two-headed network around them."""

from keras_rcl.networks.backbones import ENCODERS, build_encoder
from keras_rcl.networks.two_headed import UnitNorm, build_network, initialize_for_intervals, parts, reinitialize

__all__ = [
    "ENCODERS",
    "UnitNorm",
    "build_encoder",
    "build_network",
    "initialize_for_intervals",
    "parts",
    "reinitialize",
]
