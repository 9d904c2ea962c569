"""Adversarial training with clean images and their adversarial examples in one batch."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.dataset import NoAugmentation, Policy
from keras_rcl.vocabulary.phase import Adam, Adversarial, Clean, CrossEntropy, Optimizer, Phase
from keras_rcl.vocabulary.spec import spec


@spec
class AdversarialBatch:
    """Cross-entropy on the images and their PGD examples in one batch (Cusin 2026, section 4).

    The paper gives the radius; steps, epochs and batch (64 images and their 64 examples) are from the authors' code.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, before their adversarial examples are added.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        separate_batchnorm: give clean images BatchNorm of their own.
        attack: the attack that makes the examples.

    Example:
        >>> import keras_rcl
        >>> [view.kind for view in keras_rcl.AdversarialBatch().phases()[0].views]
        ['clean', 'adversarial']

    References:
        Cusin 2026, section 4.
    """

    name: Literal["adversarial"] = "adversarial"
    epochs: NonNegativeInt = 10
    batch_size: PositiveInt = 64
    optimizer: Optimizer = Adam(learning_rate=1e-3)
    augmentation: Policy = NoAugmentation()
    separate_batchnorm: bool = False
    attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(
                name="adversarial training",
                epochs=self.epochs,
                trains=("encoder", "classifier"),
                augmentation=self.augmentation,
                views=(Clean(), Adversarial(attack=self.attack)),
                terms=(CrossEntropy(),),
                optimizer=self.optimizer,
                batch_size=self.batch_size,
                separate_batchnorm=self.separate_batchnorm,
            ),
        )
