"""Bounds: what a network's outputs can be at most and at least, over a ball of images."""

from keras_rcl.bounds.batch_statistics import training_pass
from keras_rcl.bounds.input_sets import Interval
from keras_rcl.bounds.worst_case import (
    Method,
    output_bounds,
    output_lower_bounds,
    worst_case_margins,
    worst_case_outputs,
)
from keras_rcl.folding.fast_forward import at_inference, folded
from keras_rcl.folding.fold import fold

__all__ = [
    "Interval",
    "Method",
    "at_inference",
    "fold",
    "folded",
    "output_bounds",
    "output_lower_bounds",
    "training_pass",
    "worst_case_margins",
    "worst_case_outputs",
]
