"""Adversarial training and contrast of views, end to end: what a contrastive loss adds to `at` and to `trades`.

Ours, of no paper. Beside the loss on adversarial examples stands a contrastive one over three views of each image:
clean, varied once more, and adversarial. Weights and temperature are Wang's and Khosla et al.'s, not tuned for this.
"""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.dataset import CropFlip, NoAugmentation, Policy, SimCLR
from keras_rcl.vocabulary.phase import (
    SGD,
    Adversarial,
    Augmented,
    Clean,
    Contrast,
    CrossEntropy,
    Decay,
    KLToClean,
    Optimizer,
    Phase,
    SupCon,
    Term,
    WeightPerturbation,
)
from keras_rcl.vocabulary.spec import spec


@spec
class _EndToEnd:
    """What both share: schedule, attack, `ema` and `awp` of `at`; and the contrastive side.

    Fields:
        contrast: SupCon or the margin loss, and its weight.
        second_view: how the augmented view differs from the clean one; `none` leaves it out.
        attack: maximises cross-entropy, KL, SupCon (`supcon`) or their sum (`joint`).
    """

    epochs: NonNegativeInt = 100
    batch_size: PositiveInt = 128
    contrast: Contrast = SupCon(weight=0.5)
    optimizer: Optimizer = SGD(learning_rate=0.1, momentum=0.9, schedule="cosine", weight_decay=5e-4)
    augmentation: Policy = CropFlip()
    second_view: Policy = SimCLR()
    ema: Decay = 0.0
    awp: WeightPerturbation = WeightPerturbation()
    separate_batchnorm: bool = False
    attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)

    def _phase(self, name: str, *terms: Term) -> Phase:
        varied = () if isinstance(self.second_view, NoAugmentation) else (Augmented(policy=self.second_view),)
        headless = getattr(self.contrast, "reads", "projection") == "embedding"
        return Phase(
            name=name,
            epochs=self.epochs,
            trains=("encoder", "classifier") if headless else ("encoder", "projector", "classifier"),
            augmentation=self.augmentation,
            views=(Clean(), *varied, Adversarial(attack=self.attack)),
            terms=(*terms, self.contrast),
            optimizer=self.optimizer,
            batch_size=self.batch_size,
            ema=self.ema,
            awp=self.awp,
            separate_batchnorm=self.separate_batchnorm,
        )


@spec
class ATSCL(_EndToEnd):
    """Adversarial training and contrast: CE(adversarial) + contrast(clean, augmented, adversarial).

    An image costs 29 passes forward or back, 20 of the attack and 3 a view, where `at` costs 23 by the same attack:
    79 epochs are at most the passes of 100 of `at`.
    """

    name: Literal["at_scl"] = "at_scl"

    def phases(self) -> tuple[Phase, ...]:
        return (self._phase("contrastive adversarial training", CrossEntropy(on="adversarial")),)


@spec
class TRADESSCL(_EndToEnd):
    """TRADES and contrast: CE(clean) + beta * KL(p(clean) || p(adversarial)) + contrast(clean, augmented, adversarial).

    An image costs 30 passes forward or back, 21 of the attack and 3 a view, where `trades` costs 27 by the same
    attack: 90 epochs are the passes of 100 of `trades`.
    """

    name: Literal["trades_scl"] = "trades_scl"
    beta: NonNegativeFloat = 6.0
    attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10, loss="kl_to_clean")

    def phases(self) -> tuple[Phase, ...]:
        return (self._phase("contrastive TRADES", CrossEntropy(on="clean"), KLToClean(weight=self.beta)),)
