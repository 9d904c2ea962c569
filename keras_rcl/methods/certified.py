"""Certified training: the worst case over a ball, by bounds, in the place of an attack."""

from dataclasses import replace
from typing import Annotated, Any, Literal

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
    can_grow,
)
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import Pixels

Share = Annotated[float, Field(ge=0, le=1)]


@spec
class _Scheduled:
    """The fields and phases of certified training by bounds."""

    name: str
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
    """Certified training: kappa * CE(clean) + (1 - kappa) * CE(worst-case logits) (Gowal et al. 2018).

    Schedule, initialisation and regularisers are those of Shi et al. 2021 for CIFAR-10, who have kappa = 0; Gowal et
    al. let it fall from 1 to 0.5, Zhang et al. 2020 to 0. `bound="crown-ibp"` is CROWN-IBP with its beta at 1. Cusin's
    radius is 2/255.

    Attributes:
        form: `sound` trains on the worst case. `cusin` is the form of Cusin's published code: cross-entropy on the
            lower bounds of all logits, at `epsilon` from the first step and without anything of a schedule. There may
            be no image with such logits, and a small loss certifies nothing.
        bound: `ibp`; the tighter and more expensive `crown-ibp`; or `crown-ibp-fused`, between the two.
        epsilon: the L-inf radius at the end of the ramp, in pixel units.
        epochs: passes over the training images, start and ramp included.
        start_epochs: epochs at epsilon 0.
        ramp_epochs: epochs in which epsilon grows, after those.
        regularization: lambda of Shi et al., which falls to 0 as epsilon grows; 0 leaves the regularisers out.
        interval_initialization: initialise kernels as Shi et al. do.
        batch_size: images per step.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary, such as "crop_flip".
        initial_kappa: kappa at the start of the ramp, in [0, 1].
        final_kappa: kappa at the end of the ramp, in [0, 1].

    Example:
        >>> import keras_rcl
        >>> [view.kind for view in keras_rcl.Certified(epsilon="2/255").phases()[0].views]
        ['clean', 'worst_case']

    References:
        Gowal et al. 2018, "On the effectiveness of interval bound propagation for training verifiably robust models";
        Zhang et al. 2020, "Towards stable and efficient training of verifiably robust neural networks"; Shi et al.
        2021, "Fast certified robust training with short warmup"; Cusin 2026.
    """

    name: Literal["certified"] = "certified"
    form: Literal["sound", "cusin"] = "sound"
    initial_kappa: Share = 0.0
    final_kappa: Share = 0.0

    def __post_init__(self):
        scheduled = (self.start_epochs, self.ramp_epochs, self.regularization, self.interval_initialization)
        if self.form == "cusin" and any((*scheduled, self.initial_kappa, self.final_kappa)):
            raise ValueError(
                "form cusin has no schedule; set start_epochs, ramp_epochs, regularization, initial_kappa and "
                "final_kappa to 0, and interval_initialization to false"
            )
        if self.form == "cusin" and self.bound == "crown-ibp-fused":
            raise ValueError("crown-ibp-fused bounds a cross-entropy, not each logit; use crown-ibp with form cusin")

    def _worst_case(self) -> WorstCase:
        if self.form == "cusin":
            return WorstCase(bound=self.bound, epsilon=self.epsilon, outputs="lower_bounds")
        return super()._worst_case()

    def phases(self) -> tuple[Phase, ...]:
        if self.initial_kappa == self.final_kappa == 0:
            return (self._phase("certified training", Clean(), (CrossEntropy(on="worst_case"),)),)
        kappa = self._ramp(self.initial_kappa, self.final_kappa)
        rest = self._ramp(1 - self.initial_kappa, 1 - self.final_kappa)
        terms = CrossEntropy(on="clean", weight=kappa), CrossEntropy(on="worst_case", weight=rest)
        return (self._phase("certified training", Clean(), terms),)


@spec
class MTLIBP(_Scheduled):
    """MTL-IBP: alpha * CE(IBP worst case) + (1 - alpha) * CE(adversarial) (De Palma et al. 2024).

    A small alpha lowers what intervals alone certify and raises accuracy that tighter bounds and branching certify. It
    is the published code's for CIFAR-10 at 2/255, and so is the attack, whose radius is 2.1 times that of the ball and
    grows with it. In that code the kernels' L1 norm has weight 3e-6; here it has none.

    Attributes:
        bound: `ibp`; the tighter and more expensive `crown-ibp`; or `crown-ibp-fused`, between the two.
        epsilon: the L-inf radius at the end of the ramp, in pixel units.
        epochs: passes over the training images, start and ramp included.
        start_epochs: epochs at epsilon 0.
        ramp_epochs: epochs in which epsilon grows, after those.
        regularization: lambda of Shi et al., which falls to 0 as epsilon grows; 0 leaves the regularisers out.
        interval_initialization: initialise kernels as Shi et al. do.
        batch_size: images per step.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary, such as "crop_flip".
        alpha: weight of the worst case, in [0, 1].
        attack: the attack that makes the adversarial examples.
        growing_attack: whether its radius and step grow with epsilon, for FGSM, BIM, MI-FGSM and PGD of one restart;
            those of other attacks do not grow.

    Example:
        >>> import keras_rcl
        >>> [view.kind for view in keras_rcl.MTLIBP().phases()[0].views]
        ['adversarial', 'worst_case']

    References:
        De Palma et al. 2024, "Expressive losses for verified robustness via convex combinations".
    """

    name: Literal["mtl_ibp"] = "mtl_ibp"
    alpha: Share = 4e-3
    attack: Attack = PGD(epsilon=4.2 / 255, num_steps=8)
    growing_attack: bool = True

    def phases(self) -> tuple[Phase, ...]:
        terms = (
            CrossEntropy(on="adversarial", weight=1 - self.alpha),
            CrossEntropy(on="worst_case", weight=self.alpha),
        )
        grows = self.growing_attack and can_grow(self.attack)
        adversarial = Adversarial(attack=self.attack, growth=self._ramp(0, 1) if grows else None)
        return (self._phase("MTL-IBP", adversarial, terms),)


@spec
class SABR(_Scheduled):
    """SABR: CE(worst case of a small box around an adversarial example in the ball) (Mueller et al. 2023).

    The box has the radius lambda * epsilon. It lies around the result of PGD within (1 - lambda) * epsilon, so it is in
    the ball. The loss bounds the box, and not the ball: only a verifier certifies. Both radii grow by the same ramp.

    lambda is the published code's for CIFAR-10 at 2/255; it has 0.7 for 8/255, and 0.4 and 0.6 for MNIST at 0.1 and
    0.3. For 2/255 that code also shrinks intervals before ReLUs, and the kernels' L1 norm has weight 1e-6; neither is
    done here. BatchNorm normalises by the statistics of the adversarial images, as for `mtl_ibp`; in that code by those
    of the clean ones.

    Attributes:
        bound: `ibp`; the tighter and more expensive `crown-ibp`; or `crown-ibp-fused`, between the two.
        epsilon: the L-inf radius of the ball at the end of the ramp, in pixel units.
        epochs: passes over the training images, start and ramp included.
        start_epochs: epochs at epsilon 0.
        ramp_epochs: epochs in which epsilon grows, after those.
        regularization: lambda of Shi et al., which falls to 0 as epsilon grows; 0 leaves the regularisers out.
        interval_initialization: initialise kernels as Shi et al. do.
        batch_size: images per step.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary, such as "crop_flip".
        box_share: lambda, the radius of the box as a share of epsilon, between 0 and 1.
        num_steps: steps of PGD, each of half the radius in which it searches.

    Example:
        >>> import keras_rcl
        >>> adversarial, box = keras_rcl.SABR(epsilon=0.1, box_share=0.4).phases()[0].views
        >>> round(adversarial.attack.epsilon, 3), box.share
        (0.06, 0.4)

    References:
        Mueller, Eckert, Fischer and Vechev 2023, "Certified training: small boxes are all you need".
    """

    name: Literal["sabr"] = "sabr"
    start_epochs: NonNegativeFloat = 2
    box_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    num_steps: PositiveInt = 8

    def _worst_case(self) -> WorstCase:
        return replace(super()._worst_case(), share=self.box_share)

    def phases(self) -> tuple[Phase, ...]:
        radius = (1 - self.box_share) * self.epsilon
        attack = PGD(epsilon=radius, step_size=radius / 2, num_steps=self.num_steps)
        adversarial = Adversarial(attack=attack, growth=self._ramp(0, 1))
        return (self._phase("SABR", adversarial, (CrossEntropy(on="worst_case"),)),)


@spec
class CertifiedContrastive:
    """SupCon over bounded embeddings, then the classifier on bounds (Cusin 2026); or a sound form of it.

    Attributes:
        form: `paper` contrasts the lower bounds of the embedding, and then trains the classifier on bounds. There may
            be no image with such an embedding or such logits, and a small loss certifies nothing. `sound` is one phase
            of cross-entropy on the worst-case logits and alpha * SupCon on the embeddings of the images.
        classifier_reads: in the paper's form, the lower bounds of the `logits`; or those of the `embedding`, which are
            passed through the classifier, as in the authors' code.
        bound: `ibp`, or the tighter and more expensive `crown-ibp`.
        epsilon: the L-inf radius in pixel units.
        epochs: passes over the training images of the first phase.
        linear_epochs: passes that train the classifier, in the paper's form.
        start_epochs: epochs at epsilon 0, in the sound form.
        ramp_epochs: epochs in which epsilon grows, after those.
        alpha: weight of SupCon in the sound form.
        temperature: of the contrastive loss.
        batch_size: images per step.
        optimizer: of the first phase.
        linear_optimizer: of the classifier's phase.
        augmentation: how images vary, such as "crop_flip".

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.CertifiedContrastive(form="sound").phases()]
        ['certified contrastive training']

    References:
        Cusin 2026.
    """

    name: Literal["certified_contrastive"] = "certified_contrastive"
    form: Literal["paper", "sound"] = "paper"
    classifier_reads: Literal["logits", "embedding"] = "logits"
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
        shared: dict[str, Any] = dict(batch_size=self.batch_size, augmentation=self.augmentation)
        contrast: dict[str, Any] = dict(temperature=self.temperature, reads="embedding")
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
        outputs: Any = "lower_bounds" if self.classifier_reads == "logits" else "embedding_lower_bounds"
        views = (Clean(), WorstCase(bound=self.bound, epsilon=self.epsilon, outputs=outputs))
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
