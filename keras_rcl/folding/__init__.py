"""The folded network: what a Keras network computes in inference mode, as affine steps for attacks and bounds."""

from keras_rcl.folding.fast_forward import at_inference, folded, inference_graph
from keras_rcl.folding.fold import fold

__all__ = ["at_inference", "fold", "folded", "inference_graph"]
