"""The folded network: what a Keras network computes in inference mode, as affine steps that attacks and bounds read."""

from keras_rcl.folding.fast_forward import at_inference, folded
from keras_rcl.folding.fold import fold

__all__ = ["at_inference", "fold", "folded"]
