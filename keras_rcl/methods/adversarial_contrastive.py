"""Contrastive training with clean images and their adversarial examples in one batch."""

from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack, SupConAttack
from keras_rcl.vocabulary.dataset import NoAugmentation, Policy
from keras_rcl.vocabulary.phase import Adam, Adversarial, Clean, CrossEntropy, Optimizer, Phase, SupCon
from keras_rcl.vocabulary.spec import spec


@spec
class AdversarialContrastive:
    """SupCon on the images and the examples that maximise it, then a linear classifier (Cusin 2026, section 4).

    The contrastive loss and the attack on it use the encoder's output. Each example is moved away from the clean
    images of its class; in the authors' code from their examples, which all move at once. The classifier is trained on
    images and PGD examples, as there.

    Attributes:
        encoder_epochs: passes over the training images of the first stage.
        linear_epochs: passes of the second stage.
        batch_size: images per step, before their adversarial examples are added.
        temperature: of the contrastive loss.
        optimizer: of the first stage.
        linear_optimizer: of the second stage.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        separate_batchnorm: in the first stage, give clean images BatchNorm of their own.
        attack: the attack of the first stage.
        linear_attack: the attack of the second stage.

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.AdversarialContrastive().phases()]
        ['adversarial contrastive training', 'linear classifier']

    References:
        Cusin 2026, section 4.
    """

    name: Literal["adversarial_contrastive"] = "adversarial_contrastive"
    encoder_epochs: NonNegativeInt = 40
    linear_epochs: NonNegativeInt = 10
    batch_size: PositiveInt = 64
    temperature: PositiveFloat = 0.1
    optimizer: Optimizer = Adam(learning_rate=1e-3)
    linear_optimizer: Optimizer = Adam(learning_rate=1e-3)
    augmentation: Policy = NoAugmentation()
    separate_batchnorm: bool = False
    attack: Attack = SupConAttack(epsilon=8 / 255, step_size=2 / 255, num_steps=10, temperature=0.1, reads="embedding")
    linear_attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)

    def phases(self) -> tuple[Phase, ...]:
        batch: dict[str, Any] = dict(batch_size=self.batch_size, augmentation=self.augmentation)
        return (
            Phase(
                name="adversarial contrastive training",
                epochs=self.encoder_epochs,
                trains=("encoder",),
                views=(Clean(), Adversarial(attack=self.attack)),
                terms=(SupCon(temperature=self.temperature, reads="embedding"),),
                optimizer=self.optimizer,
                separate_batchnorm=self.separate_batchnorm,
                **batch,
            ),
            Phase(
                name="linear classifier",
                epochs=self.linear_epochs,
                trains=("classifier",),
                views=(Clean(), Adversarial(attack=self.linear_attack)),
                terms=(CrossEntropy(),),
                optimizer=self.linear_optimizer,
                **batch,
            ),
        )
