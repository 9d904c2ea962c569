"""Networks as values."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from keras_rcl.vocabulary.spec import spec

Encoder = Literal[
    "small_cnn",
    "strided_cnn",
    "convex_small",
    "resnet18",
    "preact_resnet18",
    "preact_resnet18_open",
    "preact_resnet18_fast",
    "wide_resnet_28_10",
    "resnet50",
]
Architecture = Literal[
    "resnet18", "preact_resnet18", "preact_resnet18_fast", "wide_resnet_28_10", "resnet50", "cusin_cnn"
]
"""The networks whose weights can be imported."""

EncoderChoice = Literal[Encoder, "own"]
"""An encoder by its name, or `own`: a Keras model that is given beside the settings."""

Part = Literal["encoder", "projector", "classifier"]
Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]
AttackDtype = Literal["float32", "bfloat16"]


@spec
class Network:
    """The two-headed network: image -> normalize -> encoder -> {embedding, projection, logits}.

    Attributes:
        encoder: one of `keras_rcl.networks.backbones`; or `own`, the Keras model that `train` was given.
        projection_hidden: width of the projection head's hidden layer; None makes the head one linear layer.
        projection_dim: D, the length of the projection; None leaves the head out, so that the projection is the
            normalised embedding (Cusin).
        pretrained: initial weights. The folder of an export of the same encoder, such as one that `import` wrote: its
            encoder, its normalisation and, for as many classes, its classifier are continued. Or, of `resnet50` in the
            architecture of keras.applications, `imagenet`, which Keras downloads (94 MB), or an `.h5` file of that
            network without its top; these weights take RGB images. Images are normalised as for the weights;
            `normalization` is ignored.
        normalization: `mean_std` of the training images per channel, `minus1to1` for 2x - 1, or `none`.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Network(encoder="resnet18", projection_dim=64).projection_hidden
        512
    """

    encoder: EncoderChoice = "small_cnn"
    projection_hidden: PositiveInt | None = 512
    projection_dim: PositiveInt | None = 128
    pretrained: Annotated[str, Field(min_length=1)] | None = None
    normalization: Literal["mean_std", "minus1to1", "none"] = "mean_std"

    def __post_init__(self):
        if self.pretrained and self.pretrained_export is None and self.encoder != "resnet50":
            raise ValueError(
                f"pretrained weights are available for encoder resnet50, not for {self.encoder}; leave one of them "
                "out, or give the folder of an export"
            )

    @property
    def pretrained_export(self) -> str | None:
        """The folder of the export whose weights are continued; None if `pretrained` is something else."""
        named = self.pretrained is not None and self.pretrained != "imagenet" and not self.pretrained.endswith(".h5")
        return self.pretrained if named else None
