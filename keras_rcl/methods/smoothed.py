"""Training for randomised smoothing: on Gaussian noise, and on attacks of the smoothed classifier."""

from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, SmoothedAscent, SmoothedAttack
from keras_rcl.vocabulary.dataset import CropFlip, Policy
from keras_rcl.vocabulary.phase import (
    SGD,
    Adversarial,
    Clean,
    Contrast,
    CrossEntropy,
    Decay,
    Kind,
    Optimizer,
    Phase,
    View,
)
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import Sigma


@spec
class _OnNoise:
    """The fields of both methods, and their phase on noisy views."""

    name: str
    epochs: NonNegativeInt = 90
    batch_size: PositiveInt = 256
    sigma: Sigma = 0.25
    num_draws: PositiveInt = 1
    contrast: Contrast | None = None
    optimizer: Optimizer = SGD(learning_rate=0.1, momentum=0.9, schedule="cosine", weight_decay=1e-4)
    augmentation: Policy = CropFlip()
    ema: Decay = 0.0

    def _on_noise(self, name: str, views: tuple[View, ...], on: Kind | None = None) -> Phase:
        """Cross-entropy on the noisy views of one kind or on all, with the contrast of all views if there is one."""
        parts: Any = ("encoder", "classifier")
        if self.contrast and getattr(self.contrast, "reads", "projection") == "projection":
            parts = ("encoder", "projector", "classifier")
        return Phase(
            name=name,
            epochs=self.epochs,
            trains=parts,
            augmentation=self.augmentation,
            views=views,
            noise=self.sigma,
            terms=(CrossEntropy(on=on), *([self.contrast] if self.contrast else [])),
            optimizer=self.optimizer,
            batch_size=self.batch_size,
            ema=self.ema,
        )


@spec
class SmoothedTraining(_OnNoise):
    """Training for randomised smoothing: cross-entropy on images with Gaussian noise (Cohen et al. 2019).

    The noise is that of `certify`: of each pixel, and not clipped to [0, 1]. Epochs, batch, learning rate and weight
    decay are the paper's for CIFAR-10; in place of its division by 10 every 30 epochs there is a cosine.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, before their noisy copies are made.
        sigma: standard deviation of the noise, in pixel units; certify with the same.
        num_draws: noisy copies of each image in a batch.
        contrast: `SupCon` or `MarginContrastive` (of `keras_rcl.vocabulary.phase`) of all copies, with its weight;
            none if not given.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary before noise is added, such as "crop_flip".
        ema: decay of a moving average of the weights, such as 0.999; 0 keeps none.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.SmoothedTraining(sigma=0.5).phases()[0].noise
        0.5

    References:
        Cohen, Rosenfeld and Kolter 2019, "Certified adversarial robustness via randomized smoothing".
    """

    name: Literal["smoothed"] = "smoothed"

    def phases(self) -> tuple[Phase, ...]:
        return (self._on_noise("training on noise", (Clean(),) * self.num_draws),)


@spec
class SmoothAdv(_OnNoise):
    """SmoothAdv: adversarial training of the smoothed classifier (Salman et al. 2019).

    PGD maximises the cross-entropy of the mean softmax over noisy copies of an image, which have the same noise in all
    steps. The network is trained on the attacked image with each of these draws of noise. Epochs, learning rate, weight
    decay, steps of 2 epsilon / num_steps and the start at the image are those of the authors' code for CIFAR-10, and
    so are the 256 rows of a batch; in place of its division by 10 every 50 epochs there is a cosine, and epsilon does
    not grow over the first epochs. The paper chooses sigma, epsilon, steps and draws by radius.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, before their noisy copies are made.
        sigma: standard deviation of the noise, in pixel units; certify with the same.
        num_draws: noisy copies of each image, for the attack and in a batch.
        contrast: `SupCon` or `MarginContrastive` (of `keras_rcl.vocabulary.phase`) of the noisy copies of the clean and
            the attacked image, with its weight; none if not given.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        ema: decay of a moving average of the weights, such as 0.999; 0 keeps none.
        attack: FGSM, BIM, MI-FGSM or PGD, which is run on the smoothed classifier.

    Example:
        >>> import keras_rcl
        >>> phase = keras_rcl.SmoothAdv(num_draws=4).phases()[0]
        >>> [view.kind for view in phase.views], phase.views[0].attack.num_draws
        (['adversarial', 'adversarial', 'adversarial', 'adversarial'], 4)

    References:
        Salman et al. 2019, "Provably robust deep learning via adversarially trained smoothed classifiers".
    """

    name: Literal["smooth_adv"] = "smooth_adv"
    epochs: NonNegativeInt = 150
    batch_size: PositiveInt = 128
    num_draws: PositiveInt = 2
    attack: SmoothedAscent = PGD(norm="l2", epsilon=0.5, step_size=0.25, num_steps=4, random_start=False)

    def phases(self) -> tuple[Phase, ...]:
        attack = SmoothedAttack(attack=self.attack, sigma=self.sigma, num_draws=self.num_draws)
        attacked = (Adversarial(attack=attack),) * self.num_draws
        if self.contrast is None:
            return (self._on_noise("SmoothAdv", attacked),)
        return (self._on_noise("contrastive SmoothAdv", (Clean(), *attacked), on="adversarial"),)
