"""Fast adversarial training."""

from typing import Literal

from pydantic import NonNegativeInt

from keras_rcl.methods.schedule import AdversarialSchedule
from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.phase import CrossEntropy, Phase
from keras_rcl.vocabulary.spec import spec


@spec
class FastAT(AdversarialSchedule):
    """Fast adversarial training: FGSM with a random start and a step of 1.25 epsilon (Wong et al. 2020).

    15 epochs of batch 128 and weight decay 5e-4 are the paper's. In place of its cyclic learning rate up to 0.2 there
    is a cosine from 0.1. Single-step training can collapse: the network resists the training attack, and PGD succeeds
    on every image. The run reports this if the monitored attack shows it.

    Attributes:
        epochs: passes over the training images.
        passes: a budget of passes through the network per training image, in place of `epochs`.
        batch_size: images per step.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        attack: the attack that makes the examples.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.FastAT().attack.label
        'PGD-1'

    References:
        Wong, Rice and Kolter 2020, "Fast is better than free: revisiting adversarial training".
    """

    name: Literal["fast_at"] = "fast_at"
    epochs: NonNegativeInt = 15
    attack: Attack = PGD(epsilon=8 / 255, step_size=10 / 255, num_steps=1)

    def phases(self) -> tuple[Phase, ...]:
        return (self._on_examples("fast adversarial training", CrossEntropy()),)
