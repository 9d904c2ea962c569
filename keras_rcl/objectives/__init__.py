"""Objectives: functions over tensors with one value per anchor or image, and thin Keras losses around them."""

from keras_rcl.objectives.classification import (
    BoostedCrossEntropy,
    CrossEntropy,
    KLToClean,
    boosted_cross_entropy,
    cross_entropy,
    kl_to_clean,
    misclassified_kl,
)
from keras_rcl.objectives.contrastive import (
    EuclideanSupCon,
    MarginContrastive,
    PrototypeContrastive,
    SupervisedContrastive,
    collapse_value,
    euclidean_supcon,
    has_positive,
    margin_contrastive,
    mean_over_anchors,
    prototype_contrastive,
    supervised_contrastive,
)

__all__ = [
    "BoostedCrossEntropy",
    "CrossEntropy",
    "EuclideanSupCon",
    "KLToClean",
    "MarginContrastive",
    "PrototypeContrastive",
    "SupervisedContrastive",
    "boosted_cross_entropy",
    "collapse_value",
    "cross_entropy",
    "euclidean_supcon",
    "has_positive",
    "kl_to_clean",
    "margin_contrastive",
    "mean_over_anchors",
    "misclassified_kl",
    "prototype_contrastive",
    "supervised_contrastive",
]
