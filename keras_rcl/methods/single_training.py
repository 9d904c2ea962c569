"""Supervised contrastive loss and cross-entropy in one stage."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.dataset import NoAugmentation, Policy
from keras_rcl.vocabulary.phase import Adam, CrossEntropy, Optimizer, Phase, SupCon, view_of
from keras_rcl.vocabulary.spec import spec


@spec
class SingleTraining:
    """Single training: alpha * SupCon + (1 - alpha) * CE, encoder and classifier at once (Cusin 2026).

    The contrastive loss is on the encoder's output, with one view of each image. The paper leaves alpha to be tuned;
    this value is from the authors' code.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        alpha: weight of the contrastive loss, in [0, 1].
        temperature: of the contrastive loss.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary, such as "crop_flip".

    Example:
        >>> import keras_rcl
        >>> [term.weight for term in keras_rcl.SingleTraining(alpha=0.25).phases()[0].terms]
        [0.25, 0.75]

    References:
        Cusin 2026, section 2.4.
    """

    name: Literal["single_training"] = "single_training"
    epochs: NonNegativeInt = 30
    batch_size: PositiveInt = 128
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1
    temperature: PositiveFloat = 0.07
    optimizer: Optimizer = Adam(learning_rate=1e-3)
    augmentation: Policy = NoAugmentation()

    def phases(self) -> tuple[Phase, ...]:
        contrast = SupCon(weight=self.alpha, temperature=self.temperature, reads="embedding")
        return (
            Phase(
                name="single training",
                epochs=self.epochs,
                trains=("encoder", "classifier"),
                views=(view_of(self.augmentation),),
                terms=(contrast, CrossEntropy(weight=1 - self.alpha)),
                optimizer=self.optimizer,
                batch_size=self.batch_size,
            ),
        )
