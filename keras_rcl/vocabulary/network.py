"""Networks as values."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from keras_rcl.errors import did_you_mean
from keras_rcl.vocabulary.registry import added, find, reserve
from keras_rcl.vocabulary.spec import PathText, spec

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

reserve("encoder", [*get_args(Encoder), "own"])

KERASHUB = ("keras_hub:", "kerashub:")
"""What the name of a preset of KerasHub begins with."""
_APPLICATIONS = "keras.applications."
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

EncoderKind = Literal["built_in", "own", "registered", "file", "function", "application", "hub"]


class EncoderSource(NamedTuple):
    """Where an encoder comes from.

    Attributes:
        kind: `built_in`; `own`, a model that is given beside the settings; `registered` by `register_encoder`; a
            `.keras` `file`; a `function` that returns a model; an `application` of Keras; or a preset of KerasHub.
        name: Its name, path or preset.
    """

    kind: EncoderKind
    name: str


def encoder_source(encoder: str) -> EncoderSource:
    """Tell where the encoder that `network.encoder` names comes from. Nothing is read or imported, except plugins.

    Raises:
        ValueError: If no encoder has such a name.
    """
    if encoder in get_args(Encoder):
        return EncoderSource("built_in", encoder)
    if encoder == "own":
        return EncoderSource("own", encoder)
    for prefix in KERASHUB:
        if encoder.startswith(prefix) and encoder != prefix:
            return EncoderSource("hub", encoder.removeprefix(prefix))
    if encoder.startswith(_APPLICATIONS) and encoder.removeprefix(_APPLICATIONS).isidentifier():
        return EncoderSource("application", encoder.removeprefix(_APPLICATIONS))
    if encoder.endswith(".keras"):
        return EncoderSource("file", encoder)
    if _FUNCTION.fullmatch(encoder):
        return EncoderSource("function", encoder)
    if find("encoder", encoder) is not None:
        return EncoderSource("registered", encoder)
    known = [*get_args(Encoder), *added("encoder")]
    raise ValueError(
        f"no encoder has this name{did_you_mean(encoder, known)}; choose from {', '.join(map(repr, known))}, or give a "
        ".keras file, package.module:function, keras.applications.NAME or keras_hub:PRESET"
    )


def _check_encoder(encoder: str) -> str:
    encoder_source(encoder)
    return encoder


if TYPE_CHECKING:
    EncoderChoice = Any  # A field that a user sets by a text or a path, and that is read as a text.
else:
    EncoderChoice = Annotated[PathText, AfterValidator(_check_encoder)]
"""An encoder by its name, see `encoder_source`."""

Part = Literal["encoder", "projector", "classifier"]
Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]
AttackDtype = Literal["float32", "bfloat16"]
Initialization = Literal["he_normal", "pytorch"]
Classifier = Literal["linear", "cosine"]


@spec
class Network:
    """The two-headed network: image -> normalize -> encoder -> {embedding, projection, logits}.

    Attributes:
        encoder: one of `keras_rcl.networks.backbones`, or a name of `register_encoder`. Or an encoder of your own, from
            images to an embedding [N, E]: the path of a `.keras` file; `package.module:function`, a function that
            returns a `keras.Model`; `keras.applications.NAME`, with random weights; `keras_hub:PRESET`, the backbone of
            a preset of KerasHub with its weights; or `own`, the model that `train` was given.
        projection_hidden: width of the projection head's hidden layer; None makes the head one linear layer.
        projection_dim: D, the length of the projection; None leaves the head out, so that the projection is the
            normalised embedding (Cusin).
        pretrained: initial weights. The folder of an export of the same encoder, such as one that `import` wrote: its
            encoder, its normalisation and, for as many classes, its classifier are continued. Or, of `resnet50` in the
            architecture of keras.applications, `imagenet`, which Keras downloads (94 MB), or an `.h5` file of that
            network without its top; these weights take RGB images. Images are normalised as for the weights;
            `normalization` is ignored.
        normalization: `mean_std` of the training images per channel, `minus1to1` for 2x - 1, `claf-repo` for the
            constants of that protocol, which much code for CIFAR-10 has, or `none`. An encoder of your own reads images
            in the range of its first layers, and it is ignored.
        initialization: of the layers that the package builds: `he_normal` with biases of 0 (He et al. 2015), or
            `pytorch`, the default of PyTorch's layers: kernels and biases uniform within 1 / sqrt(n), where each unit
            reads n numbers.
        classifier: `linear`, or `cosine`: each logit is `logit_scale` times the cosine between the embedding and the
            weights of the class (hypersphere embedding, Pang et al. 2020). A cosine classifier has no bounds.
        logit_scale: the largest logit of a cosine classifier.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Network(encoder="resnet18", projection_dim=64).projection_hidden
        512
    """

    encoder: EncoderChoice = "small_cnn"
    projection_hidden: PositiveInt | None = 512
    projection_dim: PositiveInt | None = 128
    pretrained: Annotated[str, Field(min_length=1)] | None = None
    normalization: Literal["mean_std", "minus1to1", "claf-repo", "none"] = "mean_std"
    initialization: Initialization = "he_normal"
    classifier: Classifier = "linear"
    logit_scale: PositiveFloat = 15.0

    def __post_init__(self):
        if self.pretrained and self.pretrained_export is None and self.encoder != "resnet50":
            raise ValueError(
                f"pretrained weights are available for encoder resnet50, not for {self.encoder}; leave one of them "
                "out, or give the folder of an export"
            )

    @property
    def has_own_encoder(self) -> bool:
        """Whether the encoder is not one of the package."""
        return self.encoder not in get_args(Encoder)

    @property
    def pretrained_export(self) -> str | None:
        """The folder of the export whose weights are continued; None if `pretrained` is something else."""
        named = self.pretrained is not None and self.pretrained != "imagenet" and not self.pretrained.endswith(".h5")
        return self.pretrained if named else None
