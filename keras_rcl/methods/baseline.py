"""The plain classifier."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from keras_rcl.vocabulary.dataset import NoAugmentation, Policy
from keras_rcl.vocabulary.phase import Adam, CrossEntropy, Optimizer, Phase, view_of
from keras_rcl.vocabulary.spec import spec


@spec
class Baseline:
    """Plain training: cross-entropy on clean or augmented images (Wang 2024).

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary, such as "crop_flip"; "none" by default.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Baseline(epochs=3, augmentation="crop_flip").phases()[0].epochs
        3

    References:
        Wang 2024, for the defaults.
    """

    name: Literal["baseline"] = "baseline"
    epochs: NonNegativeInt = 10
    batch_size: PositiveInt = 128
    optimizer: Optimizer = Adam(learning_rate=1e-3)
    augmentation: Policy = NoAugmentation()

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(
                name="train",
                epochs=self.epochs,
                trains=("encoder", "classifier"),
                views=(view_of(self.augmentation),),
                terms=(CrossEntropy(),),
                optimizer=self.optimizer,
                batch_size=self.batch_size,
            ),
        )
