"""Networks: encoders and the two-headed network around them."""

from keras_rcl.networks.backbones import ENCODERS, build_encoder
from keras_rcl.networks.two_headed import (
    UnitNorm,
    batch_norms,
    build_network,
    initialize_for_intervals,
    layers_of,
    parts,
    reinitialize,
    synchronize,
)

__all__ = [
    "ENCODERS",
    "UnitNorm",
    "batch_norms",
    "build_encoder",
    "build_network",
    "initialize_for_intervals",
    "layers_of",
    "parts",
    "reinitialize",
    "synchronize",
]
