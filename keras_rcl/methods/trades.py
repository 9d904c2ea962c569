"""TRADES."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.dataset import CropFlip, Policy
from keras_rcl.vocabulary.phase import (
    SGD,
    Adversarial,
    Clean,
    CrossEntropy,
    Decay,
    KLToClean,
    Optimizer,
    Phase,
    WeightPerturbation,
)
from keras_rcl.vocabulary.spec import spec


@spec
class TRADES:
    """TRADES (Zhang et al. 2019): cross-entropy on clean images + beta * KL(p(clean) || p(adversarial)).

    The attack maximises the same KL. Defaults are the paper's for CIFAR-10 (beta = 6, PGD-10 at 8/255 with steps of
    2/255) on the field's schedule for ResNet-18, as for `at`. Clean and adversarial images pass through the network
    together, so BatchNorm sees both; the paper's code passes them one after the other. `ema` and
    `awp` are as of `at`, the authors' gamma 0.005. `separate_batchnorm` gives clean images BatchNorm of their own.
    """

    name: Literal["trades"] = "trades"
    epochs: NonNegativeInt = 100
    batch_size: PositiveInt = 128
    beta: NonNegativeFloat = 6.0
    optimizer: Optimizer = SGD(learning_rate=0.1, momentum=0.9, schedule="cosine", weight_decay=5e-4)
    augmentation: Policy = CropFlip()
    ema: Decay = 0.0
    awp: WeightPerturbation = WeightPerturbation()
    separate_batchnorm: bool = False
    attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10, loss="kl_to_clean")

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(
                name="TRADES",
                epochs=self.epochs,
                trains=("encoder", "classifier"),
                augmentation=self.augmentation,
                views=(Clean(), Adversarial(attack=self.attack)),
                terms=(CrossEntropy(on="clean"), KLToClean(weight=self.beta)),
                optimizer=self.optimizer,
                batch_size=self.batch_size,
                ema=self.ema,
                awp=self.awp,
                separate_batchnorm=self.separate_batchnorm,
            ),
        )
