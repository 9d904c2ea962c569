"""Attacks as values: their hyper-parameters under the field's names. `keras_rcl.attacks.craft` runs them."""

import dataclasses
from typing import Annotated, Literal, Union, get_args

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from keras_rcl.errors import InvalidInputError, format_error
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import (
    PROTOCOLS,
    Norm,
    Pixels,
    Protocol,
    ThreatModel,
    check_epsilon,
    check_step_size,
    format_pixels,
)

Surrogate = Literal["cross_entropy", "logit_margin", "dlr", "kl_to_clean"]
"""What a gradient attack maximises; `keras_rcl.attacks.surrogates` holds the functions."""


class _Attack:
    """What every attack can say of itself."""

    targeted = False
    num_restarts = 1
    fewest_classes = 2
    protocol = "pixel"
    reads = "logits"
    """The output that it looks at: `logits`, `embedding` or `projection`; a tuple where it looks at several."""
    source = None
    """The model on disk whose output that is; none for the attacked model itself."""
    counts = "num_steps"
    """The field that a number after its name is, on the command line."""
    of_training = False
    """Whether it makes sense in training alone."""

    def __post_init__(self):
        check_epsilon(self.epsilon, self.norm)
        check_step_size(getattr(self, "step_size", None), self.norm)

    @property
    def threat_model(self) -> ThreatModel:
        return ThreatModel(norm=self.norm, epsilon=self.epsilon, protocol=self.protocol)

    @property
    def num_rounds(self) -> int:
        """How often it runs, each time on what survived so far: restarts, times target classes where it has several."""
        return self.num_restarts

    @property
    def members(self) -> tuple["Attack", ...]:
        """The attacks that it consists of, in order: itself, but for an ensemble."""
        return (self,)

    @property
    def work(self) -> int:
        """Forward and backward passes of all rounds of all members, an image that survives them."""
        return sum(member.num_rounds * sum(member.passes) for member in self.members)

    def at(self, epsilon: float) -> "Attack":
        """The same attack with another radius."""
        return dataclasses.replace(self, epsilon=epsilon)

    @property
    def takes_protocol(self) -> bool:
        """Whether it can run in the coordinates of another protocol than `pixel`."""
        return "protocol" in {field.name for field in dataclasses.fields(self)}

    def under(self, protocol: Protocol) -> "Attack":
        """The same attack under another protocol.

        Raises:
            InvalidInputError: if it knows only `pixel`.
        """
        if self.takes_protocol:
            return dataclasses.replace(self, protocol=protocol)
        if protocol != "pixel":
            able = ", ".join(name for name, cls in ATTACKS.items() if "protocol" in cls.__dataclass_fields__)
            raise InvalidInputError(
                f"{self.label} runs in pixels alone, not under {protocol}; the protocols are for {able}"
            )
        return self

    def fitted(self, num_classes: int) -> "Attack":
        """The same attack on a classifier of K classes: with at most K - 1 target classes.

        Raises:
            InvalidInputError: if it is not defined for so few classes.
        """
        if num_classes < self.fewest_classes:
            raise InvalidInputError(
                f"{self.label} needs at least {self.fewest_classes} classes and the model has {num_classes}; "
                "use pgd, apgd with cross_entropy, fab or square"
            )
        targets = getattr(self, "num_targets", 0)
        return dataclasses.replace(self, num_targets=num_classes - 1) if targets >= num_classes else self


class _Ascent(_Attack):
    """What every attack of the plain gradient-ascent loop can say of itself."""

    loss = "cross_entropy"
    momentum = 0.0
    eot_iter = 1

    def __post_init__(self):
        super().__post_init__()
        if self.loss == "kl_to_clean" and (self.targeted or not self.random_start):
            raise ValueError("loss kl_to_clean is flat at the image and has no target; use it with a random start")

    @property
    def fewest_classes(self) -> int:
        return 3 if self.loss == "dlr" else 2

    @property
    def resolved_step_size(self) -> float:
        """The step, in the protocol's units: `step_size` where given, else a quarter of `epsilon` (2/255 at 8/255)."""
        return self.epsilon / 4 if self.step_size is None else self.step_size

    @property
    def stops_early(self) -> bool:
        """Whether each image stays where it first fools, and the last step is not made: a quirk of some protocols.

        An attack that sees no logits cannot tell what fools; all its steps count.
        """
        return self.reads == "logits" and self.num_steps > 1 and not PROTOCOLS[self.protocol].last_step_counts

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of one round, an image; some first look at the image itself."""
        steps = self.num_steps - self.stops_early
        looks = self.targeted or self.loss == "kl_to_clean"
        return steps * (self.eot_iter + self.stops_early) + looks, steps * self.eot_iter

    @property
    def suffix(self) -> str:
        """What its label says beside name and steps."""
        return ("" if self.loss == "cross_entropy" else f" {self.loss}") + (" targeted" if self.targeted else "")


@spec
class FGSM(_Ascent):
    """Fast gradient sign method (Goodfellow et al. 2015; Wang eq. 6): one step of size epsilon up the loss."""

    name: Literal["fgsm"] = "fgsm"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    targeted: bool = False
    loss: Surrogate = "cross_entropy"
    protocol: Protocol = "pixel"

    num_steps = 1
    random_start = False

    @property
    def resolved_step_size(self) -> float:
        return self.epsilon

    @property
    def label(self) -> str:
        return f"FGSM{self.suffix}"


@spec
class BIM(_Ascent):
    """Basic iterative method (Kurakin et al. 2017): iterated FGSM from the image itself."""

    name: Literal["bim"] = "bim"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    targeted: bool = False
    loss: Surrogate = "cross_entropy"
    protocol: Protocol = "pixel"

    random_start = False

    @property
    def label(self) -> str:
        return f"BIM-{self.num_steps}{self.suffix}"


@spec
class MIFGSM(_Ascent):
    """Momentum iterative FGSM (Dong et al. 2018): BIM along a decaying sum of gradients, each of unit L1 length.

    g_{t+1} = momentum * g_t + grad / ||grad||_1,   step_size = epsilon / num_steps unless given
    """

    name: Literal["mifgsm"] = "mifgsm"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    momentum: Annotated[float, Field(gt=0)] = 1.0
    targeted: bool = False
    loss: Surrogate = "cross_entropy"
    protocol: Protocol = "pixel"

    random_start = False

    @property
    def resolved_step_size(self) -> float:
        return self.epsilon / self.num_steps if self.step_size is None else self.step_size

    @property
    def label(self) -> str:
        return f"MI-FGSM-{self.num_steps}{self.suffix}"


@spec
class PGD(_Ascent):
    """Projected gradient descent (Madry et al. 2018): random start in the ball, steps up the loss, projection.

    `step_size` is a quarter of `epsilon` unless given. Of several restarts each image keeps the one that fools the
    classifier, and among equals the one with the highest loss. Of a randomised classifier each gradient is the mean
    over `eot_iter` passes (expectation over transformation, Athalye et al. 2018).
    """

    name: Literal["pgd"] = "pgd"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    num_restarts: PositiveInt = 1
    random_start: bool = True
    targeted: bool = False
    loss: Surrogate = "cross_entropy"
    eot_iter: PositiveInt = 1
    protocol: Protocol = "pixel"

    @property
    def label(self) -> str:
        return f"PGD-{self.num_steps}{_times(self.num_restarts)}{self.suffix}{_eot(self.eot_iter)}"


@spec
class Embedding(_Ascent):
    """The embedding ("SC") attack (Landsman et al.): PGD on the distance between an image's embedding and its own.

    Needs no label. `source` is the model whose embedding it reads, a proxy that sees nothing of the target: SavedModel
    or `.keras` file of images in [0, 1], or `kerashub:PRESET`; where not given, the defended model's own.
    """

    name: Literal["embedding"] = "embedding"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    num_restarts: PositiveInt = 1
    source: str | None = None
    protocol: Protocol = "pixel"

    reads = "embedding"
    random_start = True

    @property
    def passes(self) -> tuple[int, int]:
        return self.num_steps + 1, self.num_steps

    @property
    def label(self) -> str:
        return f"embedding-{self.num_steps}{_times(self.num_restarts)}{_through(self.source)}"


@spec
class SupConAttack(_Ascent):
    """PGD that maximises the supervised contrastive loss of an image's projection against clean ones (Cusin).

    In evaluation these are a fixed class-balanced sample of the training images, so that each image is attacked for
    itself; in training they are the images of the batch at which the attack starts.

    Fields:
        reads: the head's `projection`, or the encoder's `embedding`, which is brought to unit length.
        positives: of an image: all of its `class`, or the `image` itself alone, which needs no label (RoCL); only
            training has that one.
    """

    name: Literal["supcon"] = "supcon"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    num_restarts: PositiveInt = 1
    temperature: PositiveFloat = 0.07
    reads: Literal["projection", "embedding"] = "projection"
    positives: Literal["class", "image"] = "class"
    protocol: Protocol = "pixel"

    random_start = True

    @property
    def label(self) -> str:
        of = (self.reads == "embedding") * " of embeddings" + (self.positives == "image") * " image by image"
        return f"SupCon-{self.num_steps}{_times(self.num_restarts)}{of}"


@spec
class JointAttack(_Ascent):
    """PGD on `loss` + `weight` * SupCon of the projection against the clean images of the batch: an attack of training.

    For a network that learns by both. In evaluation attack by `pgd` and by `supcon`.
    """

    name: Literal["joint"] = "joint"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    loss: Literal["cross_entropy", "kl_to_clean"] = "cross_entropy"
    weight: Annotated[float, Field(ge=0)] = 1.0
    temperature: PositiveFloat = 0.07

    reads = ("logits", "projection")
    random_start = True
    of_training = True

    @property
    def passes(self) -> tuple[int, int]:
        return self.num_steps + 1, self.num_steps

    @property
    def label(self) -> str:
        return f"joint-{self.num_steps}{self.suffix} + {self.weight:g} SupCon"


@spec
class AutoPGD(_Attack):
    """APGD (Croce and Hein 2020, Algorithm 1): PGD with momentum that chooses its own step size.

    `loss` is `cross_entropy`, the scale-free `dlr`, or `dlr_targeted`, which goes round by round for the `num_targets`
    classes that are likeliest after the true one. The step is halved where less than `rho` of the steps paid. Of a
    randomised classifier each gradient is the mean over `eot_iter` passes.
    """

    name: Literal["apgd"] = "apgd"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_steps: PositiveInt = 100
    num_restarts: PositiveInt = 1
    loss: Literal["cross_entropy", "dlr", "dlr_targeted"] = "cross_entropy"
    num_targets: PositiveInt = 9
    rho: Annotated[float, Field(ge=0, le=1)] = 0.75
    eot_iter: PositiveInt = 1

    @property
    def fewest_classes(self) -> int:
        return {"cross_entropy": 2, "dlr": 3, "dlr_targeted": 4}[self.loss]

    @property
    def num_rounds(self) -> int:
        return self.num_restarts * (self.num_targets if self.loss == "dlr_targeted" else 1)

    @property
    def passes(self) -> tuple[int, int]:
        gradients = (self.num_steps + 1) * self.eot_iter
        return gradients + (self.loss == "dlr_targeted"), gradients

    @property
    def label(self) -> str:
        kind = {"cross_entropy": "CE", "dlr": "DLR", "dlr_targeted": "T"}[self.loss]
        return f"APGD-{kind}{_times(self.num_restarts)}{_eot(self.eot_iter)}"


@spec
class FAB(_Attack):
    """FAB-T (Croce and Hein 2020, "Minimally distorted adversarial examples"): the nearest adversarial image.

    Goes round by round for the `num_targets` classes that are likeliest after the true one; what it finds counts
    where it lies within `epsilon`. Without `multi_targeted` it is FAB as first published: each step goes for the class
    whose border is nearest, at one backward pass a class. `alpha_max`, `eta` and `beta` are the paper's: bias toward
    the original, overshoot, backward step.
    """

    name: Literal["fab"] = "fab"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_steps: PositiveInt = 100
    num_restarts: PositiveInt = 1
    multi_targeted: bool = True
    num_targets: PositiveInt = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    @property
    def num_rounds(self) -> int:
        return self.num_restarts * (self.num_targets if self.multi_targeted else 1)

    @property
    def passes(self) -> tuple[int, int]:
        return 2 * self.num_steps + 1, self.num_steps * (1 if self.multi_targeted else self.num_targets + 1)

    def fitted(self, num_classes: int) -> "Attack":
        """The same attack on a classifier of K classes: with at most K - 1 target classes, or all of them."""
        targets = min(self.num_targets, num_classes - 1) if self.multi_targeted else num_classes - 1
        return dataclasses.replace(self, num_targets=targets)

    @property
    def label(self) -> str:
        return f"FAB{'-T' if self.multi_targeted else ''}{_times(self.num_restarts)}"


@spec
class CarliniWagner(_Attack):
    """CW (Carlini and Wagner 2017, L2, untargeted, f_6): the nearest adversarial image, by gradient descent.

    Minimises ||x' - x||^2 + c max(z_y - max_{j != y} z_j, -confidence) by `num_steps` of Adam for each of
    `binary_search_steps` constants c, from `initial_const` on; what it finds counts where it lies within `epsilon`.
    Defaults are those of the authors' code and of Foolbox, with 1,000 steps for their 10,000, as in CleverHans.

    What papers call CW-inf is PGD on `logit_margin`: `cw-inf-40` on the command line.
    """

    name: Literal["cw"] = "cw"
    norm: Literal["l2"] = "l2"
    epsilon: Pixels = 128 / 255
    num_steps: PositiveInt = 1000
    binary_search_steps: PositiveInt = 9
    initial_const: PositiveFloat = 1e-3
    learning_rate: PositiveFloat = 1e-2
    confidence: Annotated[float, Field(ge=0)] = 0.0

    @property
    def passes(self) -> tuple[int, int]:
        steps = self.binary_search_steps * self.num_steps
        return steps + 1, steps

    @property
    def label(self) -> str:
        return f"CW-{self.num_steps}"


@spec
class Square(_Attack):
    """Square (Andriushchenko et al. 2020): random search with square patches; needs no gradient.

    `num_queries` is its budget an image, `p_init` the share of pixels that the first patches cover.
    """

    name: Literal["square"] = "square"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_queries: PositiveInt = 5000
    num_restarts: PositiveInt = 1
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8

    counts = "num_queries"

    @property
    def passes(self) -> tuple[int, int]:
        return self.num_queries, 0

    @property
    def label(self) -> str:
        return f"Square-{self.num_queries}{_times(self.num_restarts)}"


@spec
class RayS(_Attack):
    """RayS (Chen and Gu 2020): search among rays of sign vectors; needs nothing but the predicted class.

    `num_queries` is its budget an image; what it finds counts where it lies within `epsilon`. The search along a ray
    ends at an interval of `tolerance`, in L2 length as in the published code. Nothing about it is random.
    """

    name: Literal["rays"] = "rays"
    norm: Literal["linf"] = "linf"
    epsilon: Pixels = 8 / 255
    num_queries: PositiveInt = 10_000
    tolerance: PositiveFloat = 1e-3

    counts = "num_queries"

    @property
    def passes(self) -> tuple[int, int]:
        return self.num_queries, 0

    @property
    def label(self) -> str:
        return f"RayS-{self.num_queries}"


@spec
class Noise(_Attack):
    """Random noise within the ball, `num_restarts` draws of it: the control that an attack has to beat.

    `uniform` in the ball; `gaussian`, of standard deviation epsilon / sqrt(3) cut to the ball (linf), or scaled to
    length epsilon (l2); `salt_and_pepper`, a random share of pixels pushed to white or black as far as the ball lets.
    """

    name: Literal["noise"] = "noise"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    kind: Literal["uniform", "gaussian", "salt_and_pepper"] = "uniform"
    num_restarts: PositiveInt = 1

    passes = (0, 0)

    @property
    def label(self) -> str:
        return f"noise {self.kind} {_times(self.num_restarts)}".rstrip()


@spec
class Transfer(_Attack):
    """Another attack, crafted on another classifier, `source`: a SavedModel or `.keras` of images in [0, 1]."""

    name: Literal["transfer"] = "transfer"
    source: Annotated[str, Field(min_length=1)] = Field()  # or else the base class's None is its default
    attack: Annotated[
        Union[FGSM, BIM, MIFGSM, PGD, AutoPGD, Square],
        BeforeValidator(lambda value: parse_attack(value) if isinstance(value, str) else value),
        Field(discriminator="name"),
    ] = PGD(num_steps=40)

    norm = property(lambda self: self.attack.norm)
    epsilon = property(lambda self: self.attack.epsilon)
    protocol = property(lambda self: self.attack.protocol)
    targeted = property(lambda self: self.attack.targeted)
    num_restarts = property(lambda self: self.attack.num_restarts)
    num_rounds = property(lambda self: self.attack.num_rounds)
    passes = property(lambda self: self.attack.passes)

    def at(self, epsilon: float) -> "Attack":
        return dataclasses.replace(self, attack=self.attack.at(epsilon))

    @property
    def takes_protocol(self) -> bool:
        return self.attack.takes_protocol

    def under(self, protocol: Protocol) -> "Attack":
        return dataclasses.replace(self, attack=self.attack.under(protocol))

    def fitted(self, num_classes: int) -> "Attack":
        return dataclasses.replace(self, attack=self.attack.fitted(num_classes))

    @property
    def label(self) -> str:
        return f"{self.attack.label}{_through(self.source)}"


@spec
class Stored(_Attack):
    """Examples that `craft-dataset` made of the training images, in place of crafting them (Landsman et al.).

    For training alone. `norm` and `epsilon` are those of the attack that made what is in `folder`.
    """

    name: Literal["stored"] = "stored"
    folder: Annotated[str, Field(min_length=1)]
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255

    passes = (0, 0)
    of_training = True

    @property
    def label(self) -> str:
        return "stored examples"


@spec
class Refreshed(_Attack):
    """Examples of `attack`, made of all training images every so many steps and kept until then (Landsman et al.).

    For training alone: they lie in memory, a byte a pixel and channel, as `stored` ones do on disk. An epoch between
    two times costs what clean training does; the examples are of the network as it was when they were made.

    Fields:
        every: steps of the phase from one making to the next, the first being before its first step.
    """

    name: Literal["refreshed"] = "refreshed"
    every: PositiveInt
    attack: Annotated[
        Union[FGSM, BIM, MIFGSM, PGD, Embedding, SupConAttack, JointAttack, AutoPGD],
        BeforeValidator(lambda value: parse_attack(value) if isinstance(value, str) else value),
        Field(discriminator="name"),
    ] = PGD()

    norm = property(lambda self: self.attack.norm)
    epsilon = property(lambda self: self.attack.epsilon)
    source = property(lambda self: self.attack.source)
    passes = (0, 0)
    counts = "every"
    of_training = True

    def __post_init__(self):
        super().__post_init__()
        if self.attack.protocol != "pixel" or self.attack.targeted:
            raise ValueError(f"{self.label}: examples are kept in pixels, and have no target; leave those fields out")

    def at(self, epsilon: float) -> "Attack":
        return dataclasses.replace(self, attack=self.attack.at(epsilon))

    @property
    def label(self) -> str:
        return f"{self.attack.label} every {self.every} steps"


@spec
class AutoAttack(_Attack):
    """AutoAttack (Croce and Hein 2020): APGD-CE, APGD-T, FAB-T and Square, each on what survived.

    Version `plus` adds APGD-DLR and FAB, and 5 restarts of those, of APGD-CE and of FAB-T. `rand`, for randomised
    classifiers, is APGD-CE and APGD-DLR, each gradient the mean of 20 passes. All as in the published code.
    """

    name: Literal["autoattack"] = "autoattack"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    version: Literal["standard", "plus", "rand"] = "standard"

    @property
    def fewest_classes(self) -> int:
        return max(member.fewest_classes for member in self.members)

    @property
    def members(self) -> tuple["Attack", ...]:
        ball = dict(norm=self.norm, epsilon=self.epsilon)
        if self.version == "rand":
            return (AutoPGD(eot_iter=20, **ball), AutoPGD(loss="dlr", eot_iter=20, **ball))
        targeted = AutoPGD(loss="dlr_targeted", **ball)
        if self.version == "standard":
            return (AutoPGD(**ball), targeted, FAB(**ball), Square(**ball))
        often = dict(num_restarts=5, **ball)
        return (
            AutoPGD(**often),
            AutoPGD(loss="dlr", **often),
            FAB(multi_targeted=False, **often),
            Square(**ball),
            targeted,
            FAB(**often),
        )

    @property
    def label(self) -> str:
        return "AutoAttack" if self.version == "standard" else f"AutoAttack {self.version}"


def _times(restarts: int) -> str:
    return f"x{restarts}" if restarts > 1 else ""


def _eot(passes: int) -> str:
    return f" EOT-{passes}" if passes > 1 else ""


def _through(source: str | None) -> str:
    return f" through {source}" if source else ""


Attack = Annotated[
    Union[
        FGSM,
        BIM,
        MIFGSM,
        PGD,
        Embedding,
        SupConAttack,
        JointAttack,
        AutoPGD,
        FAB,
        CarliniWagner,
        Square,
        RayS,
        Noise,
        Transfer,
        Stored,
        Refreshed,
        AutoAttack,
    ],
    Field(discriminator="name"),
]
"""Any attack; the field `name` says which."""

ATTACKS = {cls.name: cls for cls in get_args(get_args(Attack)[0])}

ALIASES = {"cw-inf": {"name": "pgd", "loss": "logit_margin"}}
"""Other spellings on the command line: CW-inf, as papers call it, is PGD on CW's margin, and is labelled as that."""


def describe(attack: Attack) -> str:
    """One line for tables: `PGD-40 linf 8/255`, and the protocol where it is not `pixel`."""
    protocol = "" if attack.protocol == "pixel" else f" {attack.protocol}"
    return f"{attack.label} {attack.norm} {format_pixels(attack.epsilon)}{protocol}"


def parse_attack(text: str) -> Attack:
    """An attack written on the command line: `pgd`, `pgd-40`, `pgd-40:num_restarts=5,norm=l2,epsilon=128/255`.

    A number after the name is `num_steps`, or `num_queries` of those that have it; what follows the colon are the
    attack's fields. `cw-inf` is among `ALIASES`.

    Raises:
        InvalidInputError: if the attack, a field or a value is unknown, naming it.
    """
    head, _, tail = text.partition(":")
    alias = next((alias for alias in ALIASES if f"{head}-".startswith(f"{alias}-")), None)
    name = alias or head.partition("-")[0]
    if name not in ATTACKS and not alias:
        raise InvalidInputError(f"unknown attack {name!r}; choose from {', '.join([*ATTACKS, *ALIASES])}")
    fields = dict(ALIASES[alias]) if alias else {"name": name}
    if steps := head[len(name) + 1 :]:
        fields[ATTACKS[fields["name"]].counts] = steps
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise InvalidInputError(f"attack {text!r}: {item!r} is not key=value")
        fields[key.strip()] = value.strip()
    try:
        return TypeAdapter(Attack).validate_python(fields)
    except ValidationError as error:
        raise InvalidInputError(f"attack {text!r}: {format_error(error)}") from None


def spell(attack: Attack) -> str:
    """An attack as `parse_attack` reads it, with the fields that are not its defaults: `pgd:epsilon=16/255`."""
    default, given = type(attack)(), TypeAdapter(Attack).dump_python(attack, mode="json")
    fields = [
        f"{field.name}={given[field.name]}"
        for field in dataclasses.fields(attack)
        if getattr(attack, field.name) != getattr(default, field.name)
    ]
    return ":".join([attack.name, *([",".join(fields)] if fields else [])])
