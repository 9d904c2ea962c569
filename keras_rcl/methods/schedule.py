"""The fields that methods of adversarial training share, and the phases that they make of them."""

import dataclasses
import math
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.dataset import CropFlip, Policy
from keras_rcl.vocabulary.phase import (
    SGD,
    Adversarial,
    Clean,
    Decay,
    Optimizer,
    Phase,
    Term,
    WeightPerturbation,
    view_of,
)
from keras_rcl.vocabulary.spec import spec


@spec
class AdversarialSchedule:
    """One phase of adversarial training of encoder and classifier.

    The defaults are the usual ones for CIFAR-10 and ResNet-18 (Rice et al. 2020): PGD-10 at 8/255 with steps of 2/255,
    crop and flip, SGD 0.1 with momentum, batch 128.

    Attributes:
        passes: a budget in place of `epochs`: the phase has as many epochs as fit into this number of passes per
            training image, and at least one. A forward pass counts 1, a backward pass to the weights 2, a step of an
            attack 2.
    """

    name: str
    epochs: NonNegativeInt = 100
    passes: PositiveFloat | None = None
    batch_size: PositiveInt = 128
    optimizer: Optimizer = SGD(learning_rate=0.1, momentum=0.9, schedule="cosine", weight_decay=5e-4)
    augmentation: Policy = CropFlip()
    attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)

    def _phase(self, name: str, *terms: Term, **fields: Any) -> Phase:
        common: dict[str, Any] = dict(
            epochs=self.epochs,
            trains=("encoder", "classifier"),
            optimizer=self.optimizer,
            batch_size=self.batch_size,
        )
        phase = Phase(name=name, terms=terms, **(common | fields))
        if self.passes is None:
            return phase
        return dataclasses.replace(phase, epochs=max(1, math.floor(self.passes / phase.cost)))

    def _on_examples(self, name: str, *terms: Term) -> Phase:
        """A phase on adversarial examples only."""
        view = Adversarial(attack=self.attack, of=view_of(self.augmentation))
        return self._phase(name, *terms, views=(view,))


@spec
class AveragedSchedule(AdversarialSchedule):
    """An `AdversarialSchedule` with averaged and with perturbed weights."""

    ema: Decay = 0.0
    awp: WeightPerturbation = WeightPerturbation()

    def _phase(self, name: str, *terms: Term, **fields: Any) -> Phase:
        return super()._phase(name, *terms, ema=self.ema, awp=self.awp, **fields)


@spec
class PairedSchedule(AveragedSchedule):
    """An `AveragedSchedule` on clean images and their adversarial examples."""

    separate_batchnorm: bool = False

    def _on_pairs(self, name: str, *terms: Term, **fields: Any) -> Phase:
        views = (Clean(), Adversarial(attack=self.attack))
        common = dict(augmentation=self.augmentation, views=views, separate_batchnorm=self.separate_batchnorm)
        return self._phase(name, *terms, **(common | fields))
