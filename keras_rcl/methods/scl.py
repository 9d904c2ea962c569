"""Wang 2024: a contrastive loss beside cross-entropy, from scratch or on a trained baseline."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.dataset import NoAugmentation, Policy
from keras_rcl.vocabulary.phase import (
    Adam,
    CrossEntropy,
    MarginContrastive,
    Optimizer,
    Phase,
    SupCon,
    view_of,
)
from keras_rcl.vocabulary.spec import spec


@spec
class SCL:
    """Supervised contrastive loss and cross-entropy from scratch, alpha * SupCon + beta * CE (Wang 2024, eq. 3).

    The paper has a projection head of two layers and 64 dimensions (`Network`). It gives no temperature; this one is
    Khosla et al.'s.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        num_views: views of each image, such as the two parallel streams of the paper's figure 1.
        alpha: weight of the contrastive loss.
        beta: weight of the cross-entropy.
        temperature: of the contrastive loss.
        anchors: that its mean is taken over: those `with_positives` in the batch, or `all`, as in eq. 1.
        optimizer: `SGD` or `Adam` with their schedule.
        augmentation: how images vary, such as "crop_flip".

    Example:
        >>> import keras_rcl
        >>> [term.term for term in keras_rcl.SCL(alpha=0.3, beta=0.7).phases()[0].terms]
        ['supcon', 'cross_entropy']

    References:
        Wang 2024, eq. 3, figs. 6 and 7; Khosla et al. 2020, "Supervised contrastive learning".
    """

    name: Literal["scl"] = "scl"
    epochs: NonNegativeInt = 10
    batch_size: PositiveInt = 128
    num_views: PositiveInt = 1
    alpha: NonNegativeFloat = 0.5
    beta: NonNegativeFloat = 0.5
    temperature: PositiveFloat = 0.07
    anchors: Literal["with_positives", "all"] = "with_positives"
    optimizer: Optimizer = Adam(learning_rate=1e-3)
    augmentation: Policy = NoAugmentation()

    def phases(self) -> tuple[Phase, ...]:
        return (_joint(self, "joint training", _supcon(self)),)


@spec
class RefinedSCL:
    """The baseline, then supervised contrastive loss and cross-entropy together (Wang 2024, eq. 3).

    Attributes:
        baseline_epochs: passes with cross-entropy only.
        epochs: passes with both losses.
        batch_size: images per step.
        num_views: views of each image, such as the two parallel streams of the paper's figure 1.
        alpha: weight of the contrastive loss.
        beta: weight of the cross-entropy.
        temperature: of the contrastive loss.
        anchors: that its mean is taken over: those `with_positives` in the batch, or `all`, as in eq. 1.
        optimizer: of both phases.
        augmentation: how images vary, such as "crop_flip".

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.RefinedSCL().phases()]
        ['baseline', 'refinement']

    References:
        Wang 2024, eq. 3, fig. 8.
    """

    name: Literal["refined_scl"] = "refined_scl"
    baseline_epochs: NonNegativeInt = 10
    epochs: NonNegativeInt = 10
    batch_size: PositiveInt = 128
    num_views: PositiveInt = 1
    alpha: NonNegativeFloat = 0.5
    beta: NonNegativeFloat = 0.5
    temperature: PositiveFloat = 0.07
    anchors: Literal["with_positives", "all"] = "with_positives"
    optimizer: Optimizer = Adam(learning_rate=1e-3)
    augmentation: Policy = NoAugmentation()

    def phases(self) -> tuple[Phase, ...]:
        return (_baseline(self), _joint(self, "refinement", _supcon(self)))


@spec
class MarginSCL:
    """The baseline, then margin contrastive loss and cross-entropy together (Wang 2024, eqs. 4 and 5).

    Attributes:
        baseline_epochs: passes with cross-entropy only.
        epochs: passes with both losses.
        batch_size: images per step.
        num_views: views of each image, such as the two parallel streams of the paper's figure 1.
        alpha: weight of the contrastive loss.
        beta: weight of the cross-entropy.
        positive_margin: cosine similarity above which a pair of one class has no loss.
        negative_margin: cosine similarity below which a pair of two classes has no loss.
        optimizer: of both phases.
        augmentation: how images vary, such as "crop_flip".

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.MarginSCL().phases()]
        ['baseline', 'margin refinement']

    References:
        Wang 2024, eqs. 4 and 5, fig. 9.
    """

    name: Literal["margin_scl"] = "margin_scl"
    baseline_epochs: NonNegativeInt = 10
    epochs: NonNegativeInt = 10
    batch_size: PositiveInt = 128
    num_views: PositiveInt = 1
    alpha: NonNegativeFloat = 0.5
    beta: NonNegativeFloat = 0.5
    positive_margin: float = 0.5
    negative_margin: float = 0.1
    optimizer: Optimizer = Adam(learning_rate=1e-3)
    augmentation: Policy = NoAugmentation()

    def phases(self) -> tuple[Phase, ...]:
        contrast = MarginContrastive(
            weight=self.alpha, positive_margin=self.positive_margin, negative_margin=self.negative_margin
        )
        return (_baseline(self), _joint(self, "margin refinement", contrast))


def _baseline(method: RefinedSCL | MarginSCL) -> Phase:
    return Phase(
        name="baseline",
        epochs=method.baseline_epochs,
        trains=("encoder", "classifier"),
        views=(view_of(method.augmentation),) * method.num_views,
        terms=(CrossEntropy(),),
        optimizer=method.optimizer,
        batch_size=method.batch_size,
    )


def _supcon(method: SCL | RefinedSCL) -> SupCon:
    return SupCon(weight=method.alpha, temperature=method.temperature, anchors=method.anchors)


def _joint(method: SCL | RefinedSCL | MarginSCL, name: str, contrast: SupCon | MarginContrastive) -> Phase:
    """alpha * contrast + beta * CE, all parts."""
    return Phase(
        name=name,
        epochs=method.epochs,
        trains=("encoder", "projector", "classifier"),
        views=(view_of(method.augmentation),) * method.num_views,
        terms=(contrast, CrossEntropy(weight=method.beta)),
        optimizer=method.optimizer,
        batch_size=method.batch_size,
    )
