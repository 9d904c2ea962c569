"""Attacks on what a network makes of an image before its logits: the embedding and the projection."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks.base import through, times
from keras_rcl.vocabulary.attacks.gradient import GradientAscent
from keras_rcl.vocabulary.spec import PathText, spec
from keras_rcl.vocabulary.threat import Norm, Pixels, Protocol


@spec
class Embedding(GradientAscent):
    """The embedding ("SC") attack: PGD on the distance between the attacked image's embedding and the clean one's.

    The attack needs no label.

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        step_size: length of a step in pixel units; a quarter of `epsilon` if not given.
        num_steps: steps per restart.
        num_restarts: runs per image, each from another random start.
        source: the model whose embedding is attacked, a proxy that knows nothing of the evaluated model: the path of
            a SavedModel or `.keras` file of images in [0, 1], or `kerashub:PRESET`. The evaluated model if not given.
        protocol: the coordinates that epsilon and the step are measured in.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Embedding(source="saved_models/proxy").label
        'embedding-10 through saved_models/proxy'

    References:
        Landsman et al., adversarial examples as additional positives of supervised contrastive learning.
    """

    name: Literal["embedding"] = "embedding"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    num_restarts: PositiveInt = 1
    source: PathText | None = None
    protocol: Protocol = "pixel"

    @property
    def random_start(self) -> bool:
        return True

    @property
    def target_output(self) -> str:
        return "embedding"

    @property
    def proxy(self) -> str | None:
        return self.source

    @property
    def num_passes(self) -> tuple[int, int]:
        return self.num_steps + 1, self.num_steps

    @property
    def label(self) -> str:
        return f"embedding-{self.num_steps}{times(self.num_restarts)}{through(self.source)}"


@spec
class SupConAttack(GradientAscent):
    """PGD that maximises the supervised contrastive loss of an image's projection against clean images.

    In evaluation the clean images are a fixed class-balanced sample of the training images, so that each image is
    attacked independently. In training they are the images of the batch.

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        step_size: length of a step in pixel units; a quarter of `epsilon` if not given.
        num_steps: steps per restart.
        num_restarts: runs per image, each from another random start.
        temperature: of the contrastive loss.
        reads: the head's `projection`, or the encoder's `embedding`, which is normalised to unit length.
        positives: the positives of an image: all images of its `class`, or the `image` itself only, which needs no
            label (RoCL) and is available in training only.
        contrast: the samples that an image is contrasted with: the `clean` images; or the other `attacked` images of
            the batch, which all move at once, as in Cusin's published code, in training only.
        protocol: the coordinates that epsilon and the step are measured in.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.SupConAttack(num_steps=20, reads="embedding").label
        'SupCon-20 of embeddings'

    References:
        Cusin 2026, section 4; Kim, Tack and Hwang 2020, "Adversarial self-supervised contrastive learning".
    """

    name: Literal["supcon"] = "supcon"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    num_restarts: PositiveInt = 1
    temperature: PositiveFloat = 0.07
    reads: Literal["projection", "embedding"] = "projection"
    positives: Literal["class", "image"] = "class"
    contrast: Literal["clean", "attacked"] = "clean"
    protocol: Protocol = "pixel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positives == "image" and self.contrast == "attacked":
            raise ValueError("contrast attacked has no other view of an image; use it with positives class")

    @property
    def random_start(self) -> bool:
        return True

    @property
    def target_output(self) -> str:
        return self.reads

    @property
    def label(self) -> str:
        of = (self.reads == "embedding") * " of embeddings" + (self.positives == "image") * " image by image"
        together = (self.contrast == "attacked") * " together"
        return f"SupCon-{self.num_steps}{times(self.num_restarts)}{of}{together}"


@spec
class JointAttack(GradientAscent):
    """PGD on `loss` + `weight` * SupCon of the projection against the clean images of the batch.

    For a network that is trained on both losses. Available in training only; evaluate with `PGD` and `SupConAttack`.

    Attributes:
        norm: the ball, `linf`, `l2` or `l1`.
        epsilon: radius of the ball in pixel units, such as "8/255".
        step_size: length of a step in pixel units; a quarter of `epsilon` if not given.
        num_steps: steps per image.
        loss: the loss of the logits.
        weight: the factor of the contrastive loss.
        temperature: of the contrastive loss.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.JointAttack(weight=0.5).label
        'joint-10 + 0.5 SupCon'
    """

    name: Literal["joint"] = "joint"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    loss: Literal["cross_entropy", "kl_to_clean"] = "cross_entropy"
    weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: PositiveFloat = 0.07

    training_only = True

    @property
    def random_start(self) -> bool:
        return True

    @property
    def target_output(self) -> tuple[str, str]:
        return "logits", "projection"

    @property
    def num_passes(self) -> tuple[int, int]:
        return self.num_steps + 1, self.num_steps

    @property
    def label(self) -> str:
        return f"joint-{self.num_steps}{self.suffix} + {self.weight:g} SupCon"
