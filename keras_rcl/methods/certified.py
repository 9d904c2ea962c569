"""Certified training: the worst case over a ball, by bounds, in the place of an attack."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.dataset import CropFlip, NoAugmentation, Policy
from keras_rcl.vocabulary.phase import (
    Adam,
    Adversarial,
    Clean,
    CrossEntropy,
    IntervalTightness,
    Optimizer,
    Phase,
    Ramp,
    ReLUBalance,
    SupCon,
    View,
    WorstCase,
)
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import Pixels

Share = Annotated[float, Field(ge=0, le=1)]


@spec
class _Scheduled:
    """What certified training by bounds shares.

    Fields:
        bound: `ibp`, the tighter and dearer `crown-ibp`, or `crown-ibp-fused` between them; see `WorstCase`.
        epsilon: what the ramp ends with.
        epochs: all of them.
        start_epochs, ramp_epochs: epsilon is 0 for the first and then grows, smoothly, for the second.
        regularization: lambda of Shi et al., which falls to 0 as epsilon grows; 0 leaves their regularisers out.
        interval_initialization: theirs; False keeps the network's own.
    """

    bound: Literal["ibp", "crown-ibp", "crown-ibp-fused"] = "ibp"
    epsilon: Pixels = 2 / 255
    epochs: NonNegativeInt = 160
    start_epochs: NonNegativeFloat = 1
    ramp_epochs: NonNegativeFloat = 80
    regularization: NonNegativeFloat = 0.5
    interval_initialization: bool = True
    batch_size: PositiveInt = 128
    optimizer: Optimizer = Adam(learning_rate=5e-4, schedule="steps", clip_norm=8.0)
    augmentation: Policy = CropFlip()

    def _ramp(self, start: float, stop: float) -> Ramp:
        return Ramp(start=start, stop=stop, epochs=self.ramp_epochs, after=self.start_epochs, shape="smooth")

    def _worst_case(self) -> WorstCase:
        return WorstCase(bound=self.bound, epsilon=self._ramp(0, self.epsilon))

    def _regularizers(self) -> tuple:
        if not self.regularization:
            return ()
        weight = self._ramp(self.regularization, 0)
        return (IntervalTightness(weight=weight), ReLUBalance(weight=weight))

    def _phase(self, name: str, first: View, terms: tuple) -> Phase:
        return Phase(
            name=name,
            epochs=self.epochs,
            trains=("encoder", "classifier"),
            augmentation=self.augmentation,
            views=(first, self._worst_case()),
            terms=(*terms, *self._regularizers()),
            optimizer=self.optimizer,
            batch_size=self.batch_size,
            interval_initialization=self.interval_initialization,
        )


@spec
class Certified(_Scheduled):
    """kappa * CE(clean) + (1 - kappa) * CE(worst-case logits), epsilon on a ramp (Gowal et al. 2018; Cusin 2026).

    Schedule, initialisation and regularisers are those of Shi et al. 2021 ("Fast certified robust training with short
    warmup") for CIFAR-10, who have kappa = 0; Gowal et al. let it fall from 1 to 0.5, Zhang et al. 2020 to 0.
    `bound=crown-ibp` is CROWN-IBP, with its beta at 1. Cusin's radius is 2/255; Cusin's own loss is of the lower bounds
    of all logits, which is not the worst case: see `certified_contrastive`'s `form`.
    """

    name: Literal["certified"] = "certified"
    initial_kappa: Share = 0.0
    final_kappa: Share = 0.0

    def phases(self) -> tuple[Phase, ...]:
        if self.initial_kappa == self.final_kappa == 0:
            return (self._phase("certified training", Clean(), (CrossEntropy(on="worst_case"),)),)
        kappa = self._ramp(self.initial_kappa, self.final_kappa)
        rest = self._ramp(1 - self.initial_kappa, 1 - self.final_kappa)
        terms = CrossEntropy(on="clean", weight=kappa), CrossEntropy(on="worst_case", weight=rest)
        return (self._phase("certified training", Clean(), terms),)


@spec
class MTLIBP(_Scheduled):
    """alpha * CE(IBP worst case) + (1 - alpha) * CE(adversarial) (De Palma et al. 2024, "Expressive losses", MTL-IBP).

    A small alpha gives up what intervals alone certify for accuracy that tighter bounds and branching then certify. It
    is the published code's for CIFAR-10 at 2/255, and so is the attack, which goes 2.1 times as far as the ball. There
    it grows with the ball, and the kernels' L1 norm is weighed with 3e-6; here it has its whole radius from the start,
    and there is no such term.
    """

    name: Literal["mtl_ibp"] = "mtl_ibp"
    alpha: Share = 4e-3
    attack: Attack = PGD(epsilon=4.2 / 255, num_steps=8)

    def phases(self) -> tuple[Phase, ...]:
        terms = (
            CrossEntropy(on="adversarial", weight=1 - self.alpha),
            CrossEntropy(on="worst_case", weight=self.alpha),
        )
        return (self._phase("MTL-IBP", Adversarial(attack=self.attack), terms),)


@spec
class CertifiedContrastive:
    """SupCon over bounded embeddings, then the classifier on bounds (Cusin 2026); or a sound form of it.

    Fields:
        form: `paper` contrasts the lower bounds of the embedding, and then trains the classifier on the lower bounds of
            the logits, as the authors' code does: no image need have such an embedding or such logits, and a small
            loss certifies nothing. `sound` is one phase of cross-entropy on the worst-case logits and alpha * SupCon on
            the embeddings of the images.
        alpha: weight of SupCon in the sound form.
    """

    name: Literal["certified_contrastive"] = "certified_contrastive"
    form: Literal["paper", "sound"] = "paper"
    bound: Literal["ibp", "crown-ibp"] = "crown-ibp"
    epsilon: Pixels = 2 / 255
    epochs: NonNegativeInt = 20
    linear_epochs: NonNegativeInt = 10
    start_epochs: NonNegativeFloat = 1
    ramp_epochs: NonNegativeFloat = 10
    alpha: NonNegativeFloat = 0.1
    temperature: PositiveFloat = 0.07
    batch_size: PositiveInt = 128
    optimizer: Optimizer = Adam(learning_rate=1e-3)
    linear_optimizer: Optimizer = Adam(learning_rate=1e-3)
    augmentation: Policy = NoAugmentation()

    def phases(self) -> tuple[Phase, ...]:
        shared = dict(batch_size=self.batch_size, augmentation=self.augmentation)
        contrast = dict(temperature=self.temperature, reads="embedding")
        if self.form == "sound":
            ramp = Ramp(start=0, stop=self.epsilon, epochs=self.ramp_epochs, after=self.start_epochs, shape="smooth")
            return (
                Phase(
                    name="certified contrastive training",
                    epochs=self.epochs,
                    trains=("encoder", "classifier"),
                    views=(Clean(), WorstCase(bound=self.bound, epsilon=ramp)),
                    terms=(CrossEntropy(on="worst_case"), SupCon(weight=self.alpha, **contrast)),
                    optimizer=self.optimizer,
                    **shared,
                ),
            )
        views = (Clean(), WorstCase(bound=self.bound, epsilon=self.epsilon, outputs="lower_bounds"))
        return (
            Phase(
                name="certified contrastive training",
                epochs=self.epochs,
                trains=("encoder",),
                views=views,
                terms=(SupCon(on="worst_case", **contrast),),
                optimizer=self.optimizer,
                **shared,
            ),
            Phase(
                name="linear classifier",
                epochs=self.linear_epochs,
                trains=("classifier",),
                views=views,
                terms=(CrossEntropy(on="worst_case"),),
                optimizer=self.linear_optimizer,
                **shared,
            ),
        )
