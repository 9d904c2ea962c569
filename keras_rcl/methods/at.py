"""Adversarial training."""

from typing import Literal

from pydantic import NonNegativeFloat

from keras_rcl.methods.schedule import AveragedSchedule
from keras_rcl.vocabulary.phase import CrossEntropy, Phase, Smoothing
from keras_rcl.vocabulary.spec import spec


@spec
class AT(AveragedSchedule):
    """Adversarial training (Madry et al. 2018): cross-entropy on PGD examples only.

    Attributes:
        epochs: passes over the training images.
        passes: a budget of passes through the network per training image, in place of `epochs`.
        batch_size: images per step.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        attack: the attack that makes the examples.
        ema: decay of a moving average of the weights, such as 0.999; 0 keeps none.
        label_smoothing: the share of each label that cross-entropy spreads over all classes.
        margin: what cross-entropy subtracts from the logit of the label; for a cosine classifier, such as 3.
        awp: adversarial weight perturbation; `gamma` such as 0.01, 0 for none.

    Example:
        >>> import keras_rcl
        >>> method = keras_rcl.AT(epochs=30, attack=keras_rcl.PGD(epsilon="8/255", num_steps=7))
        >>> [phase.name for phase in method.phases()]
        ['adversarial training']

    References:
        Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks"; Rice, Wong and Kolter 2020,
        "Overfitting in adversarially robust deep learning", for the defaults.
    """

    name: Literal["at"] = "at"
    label_smoothing: Smoothing = 0.0
    margin: NonNegativeFloat = 0.0

    def phases(self) -> tuple[Phase, ...]:
        attacked = CrossEntropy(label_smoothing=self.label_smoothing, margin=self.margin)
        return (self._on_examples("adversarial training", attacked),)
