"""TRADES."""

from typing import Literal

from pydantic import NonNegativeFloat

from keras_rcl.methods.schedule import PairedSchedule
from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.phase import CrossEntropy, KLToClean, Phase, Smoothing
from keras_rcl.vocabulary.spec import spec


@spec
class TRADES(PairedSchedule):
    """TRADES (Zhang et al. 2019): cross-entropy on clean images + beta * KL(p(clean) || p(adversarial)).

    The attack maximises the same KL. Defaults are the paper's for CIFAR-10 (beta = 6, PGD-10 at 8/255 with steps of
    2/255) with the schedule of `AT`. Clean and adversarial images pass through the network together, so BatchNorm
    uses both; the paper's code passes them one after the other. There the attack starts at normal noise of standard
    deviation 0.001 around the image (`start_deviation` of `PGD`); here it starts anywhere in the ball.

    Attributes:
        epochs: passes over the training images.
        passes: a budget of passes through the network per training image, in place of `epochs`.
        batch_size: images per step, before their adversarial examples are added.
        beta: weight of the KL divergence.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        attack: the attack that makes the examples.
        ema: decay of a moving average of the weights, such as 0.999; 0 keeps none.
        label_smoothing: the share of each label that cross-entropy spreads over all classes.
        margin: what cross-entropy subtracts from the logit of the label; for a cosine classifier, such as 3.
        awp: adversarial weight perturbation; the authors' `gamma` is 0.005, 0 for none.
        separate_batchnorm: give clean images BatchNorm of their own.

    Example:
        >>> import keras_rcl
        >>> [term.term for term in keras_rcl.TRADES(beta=6.0).phases()[0].terms]
        ['cross_entropy', 'kl_to_clean']

    References:
        Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy".
    """

    name: Literal["trades"] = "trades"
    beta: NonNegativeFloat = 6.0
    label_smoothing: Smoothing = 0.0
    margin: NonNegativeFloat = 0.0
    attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10, loss="kl_to_clean")

    def phases(self) -> tuple[Phase, ...]:
        clean = CrossEntropy(on="clean", label_smoothing=self.label_smoothing, margin=self.margin)
        return (self._on_pairs("TRADES", clean, KLToClean(weight=self.beta)),)
