"""Madry adversarial training."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.dataset import CropFlip, Policy
from keras_rcl.vocabulary.phase import (
    SGD,
    Adversarial,
    CrossEntropy,
    Decay,
    Optimizer,
    Phase,
    WeightPerturbation,
    view_of,
)
from keras_rcl.vocabulary.spec import spec


@spec
class AT:
    """Adversarial training (Madry et al. 2018): cross-entropy on PGD examples alone.

    The defaults are the field's for CIFAR-10 and ResNet-18 (Rice et al. 2020): PGD-10 at 8/255 with steps of 2/255,
    crop and flip, SGD 0.1 with momentum, batch 128. `ema`, such as 0.999, averages the weights; `awp.gamma`, such as
    0.01, perturbs them.
    """

    name: Literal["at"] = "at"
    epochs: NonNegativeInt = 100
    batch_size: PositiveInt = 128
    optimizer: Optimizer = SGD(learning_rate=0.1, momentum=0.9, schedule="cosine", weight_decay=5e-4)
    augmentation: Policy = CropFlip()
    ema: Decay = 0.0
    awp: WeightPerturbation = WeightPerturbation()
    attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(
                name="adversarial training",
                epochs=self.epochs,
                trains=("encoder", "classifier"),
                views=(Adversarial(attack=self.attack, of=view_of(self.augmentation)),),
                terms=(CrossEntropy(),),
                optimizer=self.optimizer,
                batch_size=self.batch_size,
                ema=self.ema,
                awp=self.awp,
            ),
        )
