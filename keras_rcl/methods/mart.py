"""MART."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.dataset import CropFlip, Policy
from keras_rcl.vocabulary.phase import (
    SGD,
    Adversarial,
    BoostedCrossEntropy,
    Clean,
    Decay,
    MisclassifiedKL,
    Optimizer,
    Phase,
    WeightPerturbation,
)
from keras_rcl.vocabulary.spec import spec


@spec
class MART:
    """Misclassification-aware adversarial training (Wang et al. 2020).

    BCE(adversarial) + beta * KL(p(clean) || p(adversarial)) * (1 - p_y(clean)), the attack maximising cross-entropy.
    beta = 5 is the paper's lambda for ResNet-18; schedule, attack, the joint pass, `ema` and `awp` are as
    of `trades`.
    """

    name: Literal["mart"] = "mart"
    epochs: NonNegativeInt = 100
    batch_size: PositiveInt = 128
    beta: NonNegativeFloat = 5.0
    optimizer: Optimizer = SGD(learning_rate=0.1, momentum=0.9, schedule="cosine", weight_decay=5e-4)
    augmentation: Policy = CropFlip()
    ema: Decay = 0.0
    awp: WeightPerturbation = WeightPerturbation()
    separate_batchnorm: bool = False
    attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(
                name="MART",
                epochs=self.epochs,
                trains=("encoder", "classifier"),
                augmentation=self.augmentation,
                views=(Clean(), Adversarial(attack=self.attack)),
                terms=(BoostedCrossEntropy(on="adversarial"), MisclassifiedKL(weight=self.beta)),
                optimizer=self.optimizer,
                batch_size=self.batch_size,
                ema=self.ema,
                awp=self.awp,
                separate_batchnorm=self.separate_batchnorm,
            ),
        )
