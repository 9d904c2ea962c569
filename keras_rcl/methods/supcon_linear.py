"""Supervised contrastive learning in two stages."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.dataset import NoAugmentation, Policy, SimCLR
from keras_rcl.vocabulary.phase import Adam, CrossEntropy, Optimizer, Phase, SupCon, view_of
from keras_rcl.vocabulary.spec import spec


@spec
class SupConLinear:
    """Supervised contrastive learning of encoder and projector, then a linear classifier (Khosla et al. 2020).

    "SCL" of CLAF's Table 1, which gives no setting for it: the defaults are those of `CLAFS` (200 + 100 epochs).
    Cusin's double training (section 2.4) is the same without a projector: `reads="embedding"`, one view, 20 + 10 epochs
    of Adam 1e-3, batch 128, both stages with the same augmentation.

    Attributes:
        encoder_epochs: passes over the training images of the first stage.
        linear_epochs: passes of the second stage.
        batch_size: images per step, before their views are made.
        temperature: of the contrastive loss.
        num_views: views of each image in the first stage.
        reads: contrast the head's `projection` or the encoder's `embedding`.
        augmentation: how the views vary, such as "simclr".
        linear_augmentation: how images vary in the second stage.
        optimizer: of the first stage.
        linear_optimizer: of the second stage.

    Example:
        >>> import keras_rcl
        >>> [phase.trains for phase in keras_rcl.SupConLinear().phases()]
        [('encoder', 'projector'), ('classifier',)]

    References:
        Khosla et al. 2020, "Supervised contrastive learning".
    """

    name: Literal["supcon_linear"] = "supcon_linear"
    encoder_epochs: NonNegativeInt = 200
    linear_epochs: NonNegativeInt = 100
    batch_size: PositiveInt = 256
    temperature: PositiveFloat = 0.07
    num_views: PositiveInt = 2
    reads: Literal["projection", "embedding"] = "projection"
    augmentation: Policy = SimCLR()
    linear_augmentation: Policy = NoAugmentation()
    optimizer: Optimizer = Adam(learning_rate=0.05, schedule="cosine")
    linear_optimizer: Optimizer = Adam(learning_rate=1e-3, schedule="cosine")

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(
                name="contrastive training",
                epochs=self.encoder_epochs,
                trains=("encoder", "projector") if self.reads == "projection" else ("encoder",),
                views=(view_of(self.augmentation),) * self.num_views,
                terms=(SupCon(temperature=self.temperature, reads=self.reads),),
                optimizer=self.optimizer,
                batch_size=self.batch_size,
            ),
            Phase(
                name="linear classifier",
                epochs=self.linear_epochs,
                trains=("classifier",),
                views=(view_of(self.linear_augmentation),),
                terms=(CrossEntropy(),),
                optimizer=self.linear_optimizer,
                batch_size=self.batch_size,
            ),
        )
