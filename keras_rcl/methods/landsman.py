"""Landsman et al.: adversarial examples as additional positives, from PGD or from the embedding ("SC") attack.

A variant combines an attack and losses: `pgd_ce`, `sc_both`. The paper gives neither radius, steps, epochs nor learning
rate; these are the usual ones for ImageNet. Its ResNet-50 is pre-trained; the first phase replaces that and is left
out if `pretraining_epochs` is 0. The contrastive loss is on the embedding, the layer before the last, without a head:
SupCon for examples that are crafted for each batch, Euclidean distances for stored ones (section 2).
The paper's adversarial examples are stored once; ours are crafted for each batch, the SC ones on the network's own
embedding in place of a proxy's.
"""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack, Embedding
from keras_rcl.vocabulary.dataset import CropFlip, Policy
from keras_rcl.vocabulary.network import Part
from keras_rcl.vocabulary.phase import (
    SGD,
    Adversarial,
    Clean,
    CrossEntropy,
    EuclideanSupCon,
    Optimizer,
    Phase,
    SupCon,
    Term,
)
from keras_rcl.vocabulary.spec import spec

_Contrast = Literal["supcon", "euclidean_supcon"]


@spec
class _Landsman:
    """The fields and phases that all seven share."""

    name: str
    pretraining_epochs: NonNegativeInt = 90
    batch_size: PositiveInt = 256
    pretraining_optimizer: Optimizer = SGD(learning_rate=0.1, momentum=0.9, schedule="cosine", weight_decay=1e-4)
    optimizer: Optimizer = SGD(learning_rate=0.01, momentum=0.9, schedule="cosine", weight_decay=1e-4)
    augmentation: Policy = CropFlip()
    mixed: bool = True
    separate_batchnorm: bool = False
    attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)

    def _pretraining(self) -> Phase:
        return self._clean(
            "pre-training", self.pretraining_epochs, ("encoder", "classifier"), self.pretraining_optimizer
        )

    def _clean(self, name: str, epochs: int, trains: tuple[Part, ...], optimizer: Optimizer) -> Phase:
        """A phase of cross-entropy on the images."""
        return Phase(
            name=name,
            epochs=epochs,
            trains=trains,
            augmentation=self.augmentation,
            views=(Clean(),),
            terms=(CrossEntropy(),),
            optimizer=optimizer,
            batch_size=self.batch_size,
        )

    def _adversarial(self, name: str, epochs: int, trains: tuple[Part, ...], term: Term) -> Phase:
        """A phase on the adversarial examples and, if `mixed`, on the images."""
        attacked = Adversarial(attack=self.attack)
        return Phase(
            name=name,
            epochs=epochs,
            trains=trains,
            augmentation=self.augmentation,
            views=(Clean(), attacked) if self.mixed else (attacked,),
            terms=(term,),
            optimizer=self.optimizer,
            batch_size=self.batch_size,
            separate_batchnorm=self.separate_batchnorm,
        )

    def _cross_entropy(self, epochs: int) -> Phase:
        return self._adversarial("cross-entropy", epochs, ("encoder", "classifier"), CrossEntropy())

    def _supcon(self, epochs: int, temperature: float, contrast: _Contrast) -> Phase:
        terms: dict[str, Term] = {
            "supcon": SupCon(temperature=temperature, reads="embedding"),
            "euclidean_supcon": EuclideanSupCon(),
        }
        return self._adversarial("SupCon", epochs, ("encoder",), terms[contrast])


@spec
class _CE(_Landsman):
    epochs: NonNegativeInt = 10

    def phases(self) -> tuple[Phase, ...]:
        return (self._pretraining(), self._cross_entropy(self.epochs))


@spec
class _SupCon(_Landsman):
    supcon_epochs: NonNegativeInt = 10
    contrast: _Contrast = "supcon"
    temperature: PositiveFloat = 0.07

    def phases(self) -> tuple[Phase, ...]:
        return (self._pretraining(), self._supcon(self.supcon_epochs, self.temperature, self.contrast))


@spec
class _Both(_Landsman):
    supcon_epochs: NonNegativeInt = 10
    finetuning_epochs: NonNegativeInt = 10
    contrast: _Contrast = "supcon"
    temperature: PositiveFloat = 0.07

    def phases(self) -> tuple[Phase, ...]:
        return (
            self._pretraining(),
            self._supcon(self.supcon_epochs, self.temperature, self.contrast),
            self._cross_entropy(self.finetuning_epochs),
        )


@spec
class PGDCE(_CE):
    """Cross-entropy on images and their PGD examples, from a pre-trained network (Landsman et al., "PGD - CE").

    Attributes:
        pretraining_epochs: passes over the training images before, with plain cross-entropy; 0 skips them.
        epochs: passes over the training images with cross-entropy.
        batch_size: images per step, before their adversarial examples are added.
        pretraining_optimizer: of the pre-training.
        optimizer: of the phases after it.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        mixed: train on images and their adversarial examples; False trains on the examples only (section 2).
        separate_batchnorm: give clean images BatchNorm of their own.
        attack: the attack that makes the examples.

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.PGDCE().phases()]
        ['pre-training', 'cross-entropy']

    References:
        Landsman et al., row "PGD - CE".
    """

    name: Literal["pgd_ce"] = "pgd_ce"


@spec
class PGDSupCon(_SupCon):
    """SupCon on the embedding with PGD examples as positives; the classifier does not train ("PGD - SupCon").

    Attributes:
        pretraining_epochs: passes over the training images before, with plain cross-entropy; 0 skips them.
        supcon_epochs: passes over the training images with the contrastive loss.
        contrast: the contrastive loss: `supcon`, or `euclidean_supcon`, that of the paper's stored examples.
        temperature: of `supcon`.
        batch_size: images per step, before their adversarial examples are added.
        pretraining_optimizer: of the pre-training.
        optimizer: of the phases after it.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        mixed: train on images and their adversarial examples; False trains on the examples only (section 2).
        separate_batchnorm: give clean images BatchNorm of their own.
        attack: the attack that makes the examples.

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.PGDSupCon().phases()]
        ['pre-training', 'SupCon']

    References:
        Landsman et al., row "PGD - SupCon".
    """

    name: Literal["pgd_supcon"] = "pgd_supcon"


@spec
class PGDBoth(_Both):
    """SupCon with PGD examples as positives, then cross-entropy on the same, all parts ("PGD - Both").

    Attributes:
        pretraining_epochs: passes over the training images before, with plain cross-entropy; 0 skips them.
        supcon_epochs: passes over the training images with the contrastive loss.
        finetuning_epochs: passes with cross-entropy.
        contrast: the contrastive loss: `supcon`, or `euclidean_supcon`, that of the paper's stored examples.
        temperature: of `supcon`.
        batch_size: images per step, before their adversarial examples are added.
        pretraining_optimizer: of the pre-training.
        optimizer: of the phases after it.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        mixed: train on images and their adversarial examples; False trains on the examples only (section 2).
        separate_batchnorm: give clean images BatchNorm of their own.
        attack: the attack that makes the examples.

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.PGDBoth().phases()]
        ['pre-training', 'SupCon', 'cross-entropy']

    References:
        Landsman et al., row "PGD - Both".
    """

    name: Literal["pgd_both"] = "pgd_both"


@spec
class SCCE(_CE):
    """`pgd_ce` with examples of the embedding attack (Landsman et al., "SC - CE").

    Attributes:
        pretraining_epochs: passes over the training images before, with plain cross-entropy; 0 skips them.
        epochs: passes over the training images with cross-entropy.
        batch_size: images per step, before their adversarial examples are added.
        pretraining_optimizer: of the pre-training.
        optimizer: of the phases after it.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        mixed: train on images and their adversarial examples; False trains on the examples only (section 2).
        separate_batchnorm: give clean images BatchNorm of their own.
        attack: the attack that makes the examples.

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.SCCE().phases()]
        ['pre-training', 'cross-entropy']

    References:
        Landsman et al., row "SC - CE".
    """

    name: Literal["sc_ce"] = "sc_ce"
    attack: Attack = Embedding(epsilon=8 / 255, step_size=2 / 255, num_steps=10)


@spec
class SCSupCon(_SupCon):
    """`pgd_supcon` with examples of the embedding attack (Landsman et al., "SC - SupCon").

    Attributes:
        pretraining_epochs: passes over the training images before, with plain cross-entropy; 0 skips them.
        supcon_epochs: passes over the training images with the contrastive loss.
        contrast: the contrastive loss: `supcon`, or `euclidean_supcon`, that of the paper's stored examples.
        temperature: of `supcon`.
        batch_size: images per step, before their adversarial examples are added.
        pretraining_optimizer: of the pre-training.
        optimizer: of the phases after it.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        mixed: train on images and their adversarial examples; False trains on the examples only (section 2).
        separate_batchnorm: give clean images BatchNorm of their own.
        attack: the attack that makes the examples.

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.SCSupCon().phases()]
        ['pre-training', 'SupCon']

    References:
        Landsman et al., row "SC - SupCon".
    """

    name: Literal["sc_supcon"] = "sc_supcon"
    attack: Attack = Embedding(epsilon=8 / 255, step_size=2 / 255, num_steps=10)


@spec
class SCBoth(_Both):
    """`pgd_both` with examples of the embedding attack (Landsman et al., "SC - Both").

    Attributes:
        pretraining_epochs: passes over the training images before, with plain cross-entropy; 0 skips them.
        supcon_epochs: passes over the training images with the contrastive loss.
        finetuning_epochs: passes with cross-entropy.
        contrast: the contrastive loss: `supcon`, or `euclidean_supcon`, that of the paper's stored examples.
        temperature: of `supcon`.
        batch_size: images per step, before their adversarial examples are added.
        pretraining_optimizer: of the pre-training.
        optimizer: of the phases after it.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        mixed: train on images and their adversarial examples; False trains on the examples only (section 2).
        separate_batchnorm: give clean images BatchNorm of their own.
        attack: the attack that makes the examples.

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.SCBoth().phases()]
        ['pre-training', 'SupCon', 'cross-entropy']

    References:
        Landsman et al., row "SC - Both".
    """

    name: Literal["sc_both"] = "sc_both"
    attack: Attack = Embedding(epsilon=8 / 255, step_size=2 / 255, num_steps=10)


@spec
class SCSupConRetrained(_SupCon):
    """`sc_supcon`, then the classifier only, on clean images ("SC - SupCon Retrained").

    Attributes:
        pretraining_epochs: passes over the training images before, with plain cross-entropy; 0 skips them.
        supcon_epochs: passes over the training images with the contrastive loss.
        contrast: the contrastive loss: `supcon`, or `euclidean_supcon`, that of the paper's stored examples.
        temperature: of `supcon`.
        head_epochs: passes that train the classifier.
        batch_size: images per step, before their adversarial examples are added.
        pretraining_optimizer: of the pre-training.
        optimizer: of the phases after it.
        augmentation: how images vary before they are attacked, such as "crop_flip".
        mixed: train on images and their adversarial examples; False trains on the examples only (section 2).
        separate_batchnorm: give clean images BatchNorm of their own.
        attack: the attack that makes the examples.

    Example:
        >>> import keras_rcl
        >>> [phase.name for phase in keras_rcl.SCSupConRetrained().phases()]
        ['pre-training', 'SupCon', 'head retraining']

    References:
        Landsman et al., row "SC - SupCon Retrained".
    """

    name: Literal["sc_supcon_retrained"] = "sc_supcon_retrained"
    attack: Attack = Embedding(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
    head_epochs: NonNegativeInt = 10

    def phases(self) -> tuple[Phase, ...]:
        return (*super().phases(), self._clean("head retraining", self.head_epochs, ("classifier",), self.optimizer))
