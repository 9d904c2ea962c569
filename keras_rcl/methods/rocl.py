"""RoCL: adversarial contrastive pre-training without labels."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack, SupConAttack
from keras_rcl.vocabulary.dataset import CropFlip, Policy, SimCLR
from keras_rcl.vocabulary.phase import (
    SGD,
    Adversarial,
    Augmented,
    CrossEntropy,
    Optimizer,
    Phase,
    SupCon,
    view_of,
)
from keras_rcl.vocabulary.spec import spec


@spec
class RoCLAT:
    """RoCL (Kim et al. 2020): contrastive training without labels, then adversarial training.

    The positives of an image are its other views: two crops, and one crop that an attack made dissimilar. Then
    adversarial training of all parts, with the schedule of `AT` except for its epochs. Differences from the paper and
    its code: SGD without LARS and warm-up; the attacked crop is a third one and is moved away from itself, in the
    paper the first away from the second; the term of weight 1/256 that contrasts it once more is left out.

    Attributes:
        pretraining_epochs: passes over the training images of the first stage.
        finetuning_epochs: passes of the second stage.
        batch_size: images per step, before their views are made.
        temperature: of the contrastive loss.
        pretraining_augmentation: how the views of the first stage vary.
        augmentation: how images vary in the second stage.
        separate_batchnorm: in the first stage, give clean views BatchNorm of their own.
        pretraining_optimizer: of the first stage.
        optimizer: of the second stage.
        pretraining_attack: the attack of the first stage, without labels.
        attack: the attack of the second stage.

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.RoCLAT().phases()]
        ['contrastive pre-training', 'adversarial training']

    References:
        Kim, Tack and Hwang 2020, "Adversarial self-supervised contrastive learning", arXiv:2006.07589.
    """

    name: Literal["rocl_at"] = "rocl_at"
    pretraining_epochs: NonNegativeInt = 1000
    finetuning_epochs: NonNegativeInt = 150
    batch_size: PositiveInt = 256
    temperature: PositiveFloat = 0.5
    pretraining_augmentation: Policy = SimCLR()
    augmentation: Policy = CropFlip()
    separate_batchnorm: bool = False
    pretraining_optimizer: Optimizer = SGD(learning_rate=0.1, momentum=0.9, schedule="cosine", weight_decay=1e-6)
    optimizer: Optimizer = SGD(learning_rate=0.1, momentum=0.9, schedule="cosine", weight_decay=5e-4)
    pretraining_attack: Attack = SupConAttack(
        epsilon=8 / 255, step_size=0.007, num_steps=7, temperature=0.5, positives="image"
    )
    attack: Attack = PGD(epsilon=8 / 255, step_size=0.007, num_steps=10)

    def phases(self) -> tuple[Phase, ...]:
        crop = Augmented(policy=self.pretraining_augmentation)
        return (
            Phase(
                name="contrastive pre-training",
                epochs=self.pretraining_epochs,
                trains=("encoder", "projector"),
                views=(crop, crop, Adversarial(attack=self.pretraining_attack, of=crop)),
                terms=(SupCon(temperature=self.temperature, positives="image"),),
                optimizer=self.pretraining_optimizer,
                batch_size=self.batch_size,
                separate_batchnorm=self.separate_batchnorm,
            ),
            Phase(
                name="adversarial training",
                epochs=self.finetuning_epochs,
                trains=("encoder", "classifier"),
                views=(Adversarial(attack=self.attack, of=view_of(self.augmentation)),),
                terms=(CrossEntropy(),),
                optimizer=self.optimizer,
                batch_size=self.batch_size,
            ),
        )
