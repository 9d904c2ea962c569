"""Adversarial examples of another attack: transferred, read from disk, kept for many steps, or of a smoothed model."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal, Self, Union

from pydantic import BeforeValidator, Field, PositiveInt

from keras_rcl.vocabulary.attacks.base import AttackBase, through
from keras_rcl.vocabulary.attacks.black_box import Square
from keras_rcl.vocabulary.attacks.gradient import BIM, FGSM, MIFGSM, PGD, AutoPGD
from keras_rcl.vocabulary.attacks.representation import Embedding, JointAttack, SupConAttack
from keras_rcl.vocabulary.registry import OpenUnion
from keras_rcl.vocabulary.spec import PathText, spec
from keras_rcl.vocabulary.threat import Norm, Pixels, Protocol, Sigma


def _parse(value: object) -> object:
    """Accept an attack as it is written on the command line."""
    from keras_rcl.vocabulary.attacks.parsing import parse_attack

    return parse_attack(value) if isinstance(value, str) else value


class Wrapping(AttackBase):
    """What an attack that runs another one, its field `attack`, takes from that one."""

    attack: AttackBase

    @property
    def norm(self) -> Norm | None:
        return self.attack.norm

    @property
    def epsilon(self) -> float | None:
        return self.attack.epsilon

    def with_epsilon(self, epsilon: float) -> Self:
        return dataclasses.replace(self, attack=self.attack.with_epsilon(epsilon))

    def check_images(self, image_shape: Sequence[int | None]) -> None:
        self.attack.check_images(image_shape)


@spec
class Transfer(Wrapping):
    """Another attack, run on another classifier; its adversarial images are given to the evaluated model.

    Attributes:
        source: the attacked classifier: the path of a SavedModel or `.keras` file of images in [0, 1].
        attack: the attack, or its text as on the command line; one that is registered as well.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Transfer(source="saved_models/other", attack="pgd-20:epsilon=4/255").label
        'PGD-20 through saved_models/other'

    References:
        Papernot, McDaniel and Goodfellow 2016, "Transferability in machine learning".
    """

    name: Literal["transfer"] = "transfer"
    source: Annotated[PathText, Field(min_length=1)]
    attack: Annotated[
        Union[FGSM, BIM, MIFGSM, PGD, AutoPGD, Square],
        Field(discriminator="name"),
        OpenUnion("attack"),
        BeforeValidator(_parse),
    ] = PGD(num_steps=40)

    def __post_init__(self) -> None:
        super().__post_init__()
        one = self.attack.members == (self.attack,)
        if not one or self.attack.target_output != "logits" or self.attack.proxy or self.attack.training_only:
            raise ValueError(
                f"{self.attack.label} cannot be transferred: it does not read the logits of one model alone"
            )

    @property
    def proxy(self) -> str:
        return self.source

    @property
    def protocol(self) -> Protocol:
        return self.attack.protocol

    @property
    def targeted(self) -> bool:
        return self.attack.targeted

    @property
    def num_restarts(self) -> int:
        return self.attack.num_restarts

    @property
    def num_rounds(self) -> int:
        return self.attack.num_rounds

    @property
    def num_passes(self) -> tuple[int, int]:
        return self.attack.num_passes

    @property
    def takes_protocol(self) -> bool:
        return self.attack.takes_protocol

    def with_protocol(self, protocol: Protocol) -> Self:
        return dataclasses.replace(self, attack=self.attack.with_protocol(protocol))

    def for_classes(self, num_classes: int) -> Self:
        return dataclasses.replace(self, attack=self.attack.for_classes(num_classes))

    @property
    def label(self) -> str:
        return f"{self.attack.label}{through(self.source)}"


@spec
class Stored(AttackBase):
    """Adversarial examples of the training images that `craft-dataset` wrote, in place of crafting them.

    Available in training only.

    Attributes:
        folder: the folder that `craft-dataset` wrote.
        norm: the ball of the attack that made the examples, `linf`, `l2` or `l1`.
        epsilon: the radius of that attack in pixel units, such as "8/255".

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Stored(folder="adversarial/digits").cost
        0

    References:
        Landsman et al., adversarial examples as additional positives of supervised contrastive learning.
    """

    name: Literal["stored"] = "stored"
    folder: Annotated[PathText, Field(min_length=1)]
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255

    training_only = True

    @property
    def num_passes(self) -> tuple[int, int]:
        return 0, 0

    @property
    def label(self) -> str:
        return "stored examples"


@spec
class Refreshed(Wrapping):
    """Adversarial examples of all training images, crafted every `every` steps and kept in memory in between.

    Available in training only. The examples take one byte per pixel and channel. Between two refreshes an epoch costs
    as much as clean training; the examples are those of the network at the last refresh.

    Attributes:
        every: steps of the phase between two refreshes; the first refresh is before the first step.
        attack: the attack, or its text as on the command line; one that is registered as well.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Refreshed(every=500, attack="pgd-5").label
        'PGD-5 every 500 steps'

    References:
        Landsman et al., adversarial examples as additional positives of supervised contrastive learning.
    """

    name: Literal["refreshed"] = "refreshed"
    every: PositiveInt
    attack: Annotated[
        Union[FGSM, BIM, MIFGSM, PGD, Embedding, SupConAttack, JointAttack, AutoPGD],
        Field(discriminator="name"),
        OpenUnion("attack"),
        BeforeValidator(_parse),
    ] = PGD()

    steps_field = "every"
    training_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack.training_only:
            raise ValueError(f"{self.attack.label} does not craft examples; hint: name an attack that does")
        if self.attack.protocol != "pixel" or self.attack.targeted:
            raise ValueError(f"{self.label}: examples are kept in pixels and have no target; leave those fields out")

    @property
    def proxy(self) -> str | None:
        return self.attack.proxy

    @property
    def num_passes(self) -> tuple[int, int]:
        return 0, 0

    @property
    def label(self) -> str:
        return f"{self.attack.label} every {self.every} steps"


SmoothedAscent = Annotated[
    Union[FGSM, BIM, MIFGSM, PGD],
    Field(discriminator="name"),
    OpenUnion("attack"),
    BeforeValidator(_parse),
]
"""An attack that can be run on a smoothed classifier, or its text."""


@spec
class SmoothedAttack(Wrapping):
    """Another attack, run on the smoothed classifier: the mean softmax over noisy copies of each image.

    The copies of an image have the same noise in all steps. The noise is not clipped: it takes pixels out of [0, 1].
    Available in training only; `keras_rcl.certify` measures a smoothed classifier.

    Attributes:
        attack: the attack, or its text as on the command line; one that is registered as well.
        sigma: standard deviation of the noise, in pixel units.
        num_draws: noisy copies per image.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.SmoothedAttack(attack="pgd-4:norm=l2,epsilon=0.5", sigma=0.25, num_draws=2).label
        'PGD-4 through 2 draws of noise 0.25'

    References:
        Salman et al. 2019, "Provably robust deep learning via adversarially trained smoothed classifiers".
    """

    name: Literal["smoothed"] = "smoothed"
    attack: SmoothedAscent = PGD(norm="l2", epsilon=0.5, num_steps=4)
    sigma: Sigma = 0.25
    num_draws: Annotated[int, Field(ge=1, le=1000)] = 2

    steps_field = "num_draws"
    training_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack.protocol != "pixel" or self.attack.targeted or self.attack.num_rounds > 1:
            raise ValueError(
                f"{self.attack.label} of a smoothed classifier runs once, in pixels and without a target; hint: leave "
                "protocol, targeted and num_restarts out"
            )

    @property
    def resolved_step_size(self) -> float:
        """That of the inner attack."""
        return self.attack.resolved_step_size

    @property
    def min_classes(self) -> int:
        return self.attack.min_classes

    @property
    def num_passes(self) -> tuple[int, int]:
        forward, backward = self.attack.num_passes
        return self.num_draws * forward, self.num_draws * backward

    @property
    def label(self) -> str:
        draws = "1 draw" if self.num_draws == 1 else f"{self.num_draws} draws"
        return f"{self.attack.label} through {draws} of noise {self.sigma:g}"
