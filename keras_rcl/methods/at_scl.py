"""Adversarial training with a contrastive loss: what such a loss adds to `at` and to `trades`.

These two methods are ours; no paper describes them. A contrastive loss over three views of each image (clean, augmented
and adversarial) is added to the loss on adversarial examples. Weights and temperature are Wang's and Khosla et al.'s
and were not tuned for this purpose.
"""

from typing import Literal

from pydantic import NonNegativeFloat

from keras_rcl.methods.schedule import PairedSchedule
from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.dataset import NoAugmentation, Policy, SimCLR
from keras_rcl.vocabulary.phase import (
    Adversarial,
    Augmented,
    Clean,
    Contrast,
    CrossEntropy,
    KLToClean,
    Phase,
    Smoothing,
    SupCon,
    Term,
)
from keras_rcl.vocabulary.spec import spec


@spec
class _WithContrast(PairedSchedule):
    """The contrastive part of both methods."""

    contrast: Contrast = SupCon(weight=0.5)
    second_view: Policy = SimCLR()
    label_smoothing: Smoothing = 0.0
    margin: NonNegativeFloat = 0.0

    def _on_views(self, name: str, *terms: Term, clean_view: bool = True) -> Phase:
        clean = (Clean(),) if clean_view else ()
        varied = () if isinstance(self.second_view, NoAugmentation) else (Augmented(policy=self.second_view),)
        headless = getattr(self.contrast, "reads", "projection") == "embedding"
        return self._on_pairs(
            name,
            *terms,
            self.contrast,
            trains=("encoder", "classifier") if headless else ("encoder", "projector", "classifier"),
            views=(*clean, *varied, Adversarial(attack=self.attack)),
        )


@spec
class ATSCL(_WithContrast):
    """Adversarial training with a contrastive loss (ours): CE(adversarial) + contrast of three views.

    An image costs 29 passes forward or backward, 20 for the attack and 3 per view; with the same attack `AT` costs 23:
    79 epochs are at most the passes of 100 epochs of `AT`.

    Attributes:
        epochs: passes over the training images.
        passes: a budget of passes through the network per training image, in place of `epochs`.
        batch_size: images per step, before their views are made.
        contrast: `SupCon`, `MarginContrastive` or `PrototypeContrastive` of `keras_rcl.vocabulary.phase`.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary before their views are made, such as "crop_flip".
        clean_view: False leaves the clean view out. With the second view "none" as well, adversarial examples are
            contrasted with each other, and an image costs what it costs in `AT`.
        second_view: how the augmented view differs from the clean one; "none" leaves the view out.
        attack: the attack that makes the examples: on cross-entropy, KL, SupCon (`supcon`) or their sum (`joint`).
        ema: decay of a moving average of the weights, such as 0.999; 0 keeps none.
        label_smoothing: the share of each label that cross-entropy spreads over all classes.
        margin: what cross-entropy subtracts from the logit of the label; for a cosine classifier, such as 3.
        awp: adversarial weight perturbation; `gamma` 0 for none.
        separate_batchnorm: give views that are not adversarial BatchNorm of their own.

    Example:
        >>> import keras_rcl
        >>> [view.kind for view in keras_rcl.ATSCL().phases()[0].views]
        ['clean', 'augmented', 'adversarial']
    """

    name: Literal["at_scl"] = "at_scl"
    clean_view: bool = True

    def phases(self) -> tuple[Phase, ...]:
        attacked = CrossEntropy(on="adversarial", label_smoothing=self.label_smoothing, margin=self.margin)
        return (self._on_views("contrastive adversarial training", attacked, clean_view=self.clean_view),)


@spec
class TRADESSCL(_WithContrast):
    """TRADES with a contrastive loss (ours): CE(clean) + beta * KL(p(clean) || p(adversarial)) + contrast of views.

    An image costs 30 passes forward or backward, 21 for the attack and 3 per view; with the same attack `TRADES` costs
    27: 90 epochs are the passes of 100 epochs of `TRADES`.

    Attributes:
        epochs: passes over the training images.
        passes: a budget of passes through the network per training image, in place of `epochs`.
        batch_size: images per step, before their views are made.
        beta: weight of the KL divergence.
        contrast: `SupCon`, `MarginContrastive` or `PrototypeContrastive` of `keras_rcl.vocabulary.phase`.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary before their views are made, such as "crop_flip".
        second_view: how the augmented view differs from the clean one; "none" leaves the view out.
        attack: the attack that makes the examples.
        ema: decay of a moving average of the weights, such as 0.999; 0 keeps none.
        label_smoothing: the share of each label that cross-entropy spreads over all classes.
        margin: what cross-entropy subtracts from the logit of the label; for a cosine classifier, such as 3.
        awp: adversarial weight perturbation; `gamma` 0 for none.
        separate_batchnorm: give views that are not adversarial BatchNorm of their own.

    Example:
        >>> import keras_rcl
        >>> [term.term for term in keras_rcl.TRADESSCL().phases()[0].terms]
        ['cross_entropy', 'kl_to_clean', 'supcon']
    """

    name: Literal["trades_scl"] = "trades_scl"
    beta: NonNegativeFloat = 6.0
    attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10, loss="kl_to_clean")

    def phases(self) -> tuple[Phase, ...]:
        clean = CrossEntropy(on="clean", label_smoothing=self.label_smoothing, margin=self.margin)
        return (self._on_views("contrastive TRADES", clean, KLToClean(weight=self.beta)),)
