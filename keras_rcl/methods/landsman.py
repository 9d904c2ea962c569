"""Landsman et al.: adversarial examples as additional positives, from PGD or from the embedding ("SC") attack.

A variant is the attack and the losses: `pgd_ce`, `sc_both`. The paper says neither radius, steps, epochs nor learning
rate; these are the field's for ImageNet. Its ResNet-50 comes pre-trained, for which the first phase stands: none where
`pretraining_epochs` is 0. The contrastive loss is on the embedding, the layer before the last, without a head; the
paper's adversarial examples are stored once, ours are crafted anew for each batch, the SC ones on the network's own
embedding in place of a proxy's.
"""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack, Embedding
from keras_rcl.vocabulary.dataset import CropFlip, Policy
from keras_rcl.vocabulary.phase import SGD, Adversarial, Clean, CrossEntropy, Optimizer, Phase, SupCon, Term
from keras_rcl.vocabulary.spec import spec


@spec
class _Landsman:
    """What all of them share.

    Fields:
        mixed: the batch is the images and their adversarial examples; False leaves the examples alone (section 2).
    """

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

    def _clean(self, name: str, epochs: int, trains: tuple, optimizer: Optimizer) -> Phase:
        """Cross-entropy on the images."""
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

    def _adversarial(self, name: str, epochs: int, trains: tuple, term: Term) -> Phase:
        """A loss on the adversarial examples, and on the images where they are mixed in."""
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

    def _supcon(self, epochs: int, temperature: float) -> Phase:
        return self._adversarial("SupCon", epochs, ("encoder",), SupCon(temperature=temperature, reads="embedding"))


@spec
class PGDCE(_Landsman):
    """Cross-entropy on images and their PGD examples, from a pre-trained network (Landsman et al., "PGD - CE")."""

    name: Literal["pgd_ce"] = "pgd_ce"
    epochs: NonNegativeInt = 10

    def phases(self) -> tuple[Phase, ...]:
        return (self._pretraining(), self._cross_entropy(self.epochs))


@spec
class PGDSupCon(_Landsman):
    """SupCon on the embedding with PGD examples as positives, the classifier as it was ("PGD - SupCon")."""

    name: Literal["pgd_supcon"] = "pgd_supcon"
    supcon_epochs: NonNegativeInt = 10
    temperature: PositiveFloat = 0.07

    def phases(self) -> tuple[Phase, ...]:
        return (self._pretraining(), self._supcon(self.supcon_epochs, self.temperature))


@spec
class PGDBoth(_Landsman):
    """SupCon with PGD examples, then cross-entropy on the same, all parts (Landsman et al., "PGD - Both")."""

    name: Literal["pgd_both"] = "pgd_both"
    supcon_epochs: NonNegativeInt = 10
    finetuning_epochs: NonNegativeInt = 10
    temperature: PositiveFloat = 0.07

    def phases(self) -> tuple[Phase, ...]:
        return (
            self._pretraining(),
            self._supcon(self.supcon_epochs, self.temperature),
            self._cross_entropy(self.finetuning_epochs),
        )


@spec
class SCCE(PGDCE):
    """`pgd_ce` with examples of the embedding attack (Landsman et al., "SC - CE")."""

    name: Literal["sc_ce"] = "sc_ce"
    attack: Attack = Embedding(epsilon=8 / 255, step_size=2 / 255, num_steps=10)


@spec
class SCSupCon(PGDSupCon):
    """`pgd_supcon` with examples of the embedding attack (Landsman et al., "SC - SupCon")."""

    name: Literal["sc_supcon"] = "sc_supcon"
    attack: Attack = Embedding(epsilon=8 / 255, step_size=2 / 255, num_steps=10)


@spec
class SCBoth(PGDBoth):
    """`pgd_both` with examples of the embedding attack (Landsman et al., "SC - Both")."""

    name: Literal["sc_both"] = "sc_both"
    attack: Attack = Embedding(epsilon=8 / 255, step_size=2 / 255, num_steps=10)


@spec
class SCSupConRetrained(SCSupCon):
    """`sc_supcon`, then the classifier alone on clean images, the encoder frozen ("SC - SupCon Retrained")."""

    name: Literal["sc_supcon_retrained"] = "sc_supcon_retrained"
    head_epochs: NonNegativeInt = 10

    def phases(self) -> tuple[Phase, ...]:
        return (
            self._pretraining(),
            self._supcon(self.supcon_epochs, self.temperature),
            self._clean("head retraining", self.head_epochs, ("classifier",), self.optimizer),
        )
