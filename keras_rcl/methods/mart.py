"""MART."""

from typing import Literal

from pydantic import NonNegativeFloat

from keras_rcl.methods.schedule import PairedSchedule
from keras_rcl.vocabulary.phase import BoostedCrossEntropy, MisclassifiedKL, Phase
from keras_rcl.vocabulary.spec import spec


@spec
class MART(PairedSchedule):
    """Misclassification-aware adversarial training, MART (Wang et al. 2020).

    BCE(adversarial) + beta * KL(p(clean) || p(adversarial)) * (1 - p_y(clean)); the attack maximises cross-entropy.
    beta = 5 is the paper's lambda for ResNet-18. Schedule, attack and the joint forward pass are those of `TRADES`.

    Attributes:
        epochs: passes over the training images.
        passes: a budget of passes through the network per training image, in place of `epochs`.
        batch_size: images per step, before their adversarial examples are added.
        beta: weight of the KL divergence.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        attack: the attack that makes the examples.
        ema: decay of a moving average of the weights, such as 0.999; 0 keeps none.
        awp: adversarial weight perturbation; `gamma` 0 for none.
        separate_batchnorm: give clean images BatchNorm of their own.

    Example:
        >>> import keras_rcl
        >>> [term.term for term in keras_rcl.MART().phases()[0].terms]
        ['boosted_cross_entropy', 'misclassified_kl']

    References:
        Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified examples".
    """

    name: Literal["mart"] = "mart"
    beta: NonNegativeFloat = 5.0

    def phases(self) -> tuple[Phase, ...]:
        return (self._on_pairs("MART", BoostedCrossEntropy(on="adversarial"), MisclassifiedKL(weight=self.beta)),)
