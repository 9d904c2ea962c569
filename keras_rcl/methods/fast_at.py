"""Fast adversarial training."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.dataset import CropFlip, Policy
from keras_rcl.vocabulary.phase import SGD, Adversarial, CrossEntropy, Optimizer, Phase, view_of
from keras_rcl.vocabulary.spec import spec


@spec
class FastAT:
    """Fast adversarial training: FGSM with a random start and a step of 1.25 epsilon (Wong et al. 2020).

    15 epochs of batch 128 and weight decay 5e-4 are the paper's; its cyclic learning rate up to 0.2 is a cosine from
    0.1 here. Single-step training can collapse: what it does not see, PGD, then succeeds on every image. The run says
    so when the monitored attack shows it.
    """

    name: Literal["fast_at"] = "fast_at"
    epochs: NonNegativeInt = 15
    batch_size: PositiveInt = 128
    optimizer: Optimizer = SGD(learning_rate=0.1, momentum=0.9, schedule="cosine", weight_decay=5e-4)
    augmentation: Policy = CropFlip()
    attack: Attack = PGD(epsilon=8 / 255, step_size=10 / 255, num_steps=1)

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase(
                name="fast adversarial training",
                epochs=self.epochs,
                trains=("encoder", "classifier"),
                views=(Adversarial(attack=self.attack, of=view_of(self.augmentation)),),
                terms=(CrossEntropy(),),
                optimizer=self.optimizer,
                batch_size=self.batch_size,
            ),
        )
