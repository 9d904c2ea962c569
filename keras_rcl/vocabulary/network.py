"""Networks as values."""

from typing import Literal

from pydantic import PositiveInt

from keras_rcl.vocabulary.word import word

Encoder = Literal[
    "small_cnn", "strided_cnn", "convex_small", "resnet18", "preact_resnet18", "wide_resnet_28_10", "resnet50"
]
Part = Literal["encoder", "projector", "classifier"]
Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]


@word
class Network:
    """The two-headed network: image -> normalize -> encoder -> {embedding, projection, logits}.

    Fields:
        encoder: one of `keras_rcl.networks.backbones`.
        projection_hidden: width of the projection head's hidden layer; none makes the head one linear layer.
        projection_dim: D, the length of the projection; none leaves the head out, so that the projection is the
            normalised embedding (Cusin).
        normalization: `mean_std` of the training images per channel, `minus1to1` for 2x - 1, or `none`.
    """

    encoder: Encoder = "small_cnn"
    projection_hidden: PositiveInt | None = 512
    projection_dim: PositiveInt | None = 128
    normalization: Literal["mean_std", "minus1to1", "none"] = "mean_std"
