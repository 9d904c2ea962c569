"""Attacks as values: their hyper-parameters under the field's names. `keras_rcl.attacks.craft` runs them."""

import dataclasses
from typing import Annotated, Literal, Union, get_args

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

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
from keras_rcl.vocabulary.word import Refused, first_line, word

Surrogate = Literal["cross_entropy", "logit_margin", "dlr", "kl_to_clean"]
"""What a gradient attack maximises; `keras_rcl.attacks.surrogates` holds the functions."""


class _Attack:
    """What every attack can say of itself."""

    targeted = False
    num_restarts = 1
    fewest_classes = 2
    protocol = "pixel"
    reads = "logits"
    """The output that it looks at: `logits`, `embedding` or `projection`."""
    source = None
    """The model on disk whose output that is; none for the attacked model itself."""

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

    def fitted(self, num_classes: int) -> "Attack":
        """The same attack on a classifier of K classes: with at most K - 1 target classes.

        Raises:
            Refused: if it is not defined for so few classes.
        """
        if num_classes < self.fewest_classes:
            raise Refused(
                f"{self.label} needs at least {self.fewest_classes} classes and the model has {num_classes}; "
                "use pgd, apgd with cross_entropy, fab or square"
            )
        targets = getattr(self, "num_targets", 0)
        return dataclasses.replace(self, num_targets=num_classes - 1) if targets >= num_classes else self


class _Ascent(_Attack):
    """What every attack of the plain gradient-ascent loop can say of itself."""

    loss = "cross_entropy"
    momentum = 0.0

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
        """Whether each image stays where it first fools, and the last step is not made: a quirk of some protocols."""
        return self.num_steps > 1 and not PROTOCOLS[self.protocol].last_step_counts

    @property
    def passes(self) -> tuple[int, int]:
        """Forward and backward passes of one round, an image; some first look at the image itself."""
        steps = self.num_steps - self.stops_early
        return steps * (1 + self.stops_early) + (self.targeted or self.loss == "kl_to_clean"), steps

    @property
    def suffix(self) -> str:
        """What its label says beside name and steps."""
        return ("" if self.loss == "cross_entropy" else f" {self.loss}") + (" targeted" if self.targeted else "")


@word
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


@word
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


@word
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


@word
class PGD(_Ascent):
    """Projected gradient descent (Madry et al. 2018): random start in the ball, steps up the loss, projection.

    `step_size` is a quarter of `epsilon` unless given. Of several restarts each image keeps the one that fools the
    classifier, and among equals the one with the highest loss.
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
    protocol: Protocol = "pixel"

    @property
    def label(self) -> str:
        return f"PGD-{self.num_steps}{_times(self.num_restarts)}{self.suffix}"


@word
class Embedding(_Ascent):
    """The embedding ("SC") attack (Landsman et al.): PGD on the distance between an image's embedding and its own.

    Needs no label. `source` is the model whose embedding it reads, on disk (a SavedModel or `.keras`), a proxy that sees
    nothing of the target; where not given, the defended model's own.
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


@word
class SupConAttack(_Ascent):
    """PGD that maximises the supervised contrastive loss of an image's projection against clean ones (Cusin).

    In evaluation these are a fixed class-balanced sample of the training images, so that each image is attacked for itself; in training
    they are the clean images of the batch.
    """

    name: Literal["supcon"] = "supcon"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    step_size: Pixels | None = None
    num_steps: PositiveInt = 10
    num_restarts: PositiveInt = 1
    temperature: PositiveFloat = 0.07
    protocol: Protocol = "pixel"

    reads = "projection"
    random_start = True

    @property
    def label(self) -> str:
        return f"SupCon-{self.num_steps}{_times(self.num_restarts)}"


@word
class AutoPGD(_Attack):
    """APGD (Croce and Hein 2020, Algorithm 1): PGD with momentum that chooses its own step size.

    `loss` is `cross_entropy`, the scale-free `dlr`, or `dlr_targeted`, which goes round by round for the `num_targets`
    classes that are likeliest after the true one. The step is halved where less than `rho` of the steps paid.
    """

    name: Literal["apgd"] = "apgd"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_steps: PositiveInt = 100
    num_restarts: PositiveInt = 1
    loss: Literal["cross_entropy", "dlr", "dlr_targeted"] = "cross_entropy"
    num_targets: PositiveInt = 9
    rho: Annotated[float, Field(ge=0, le=1)] = 0.75

    @property
    def fewest_classes(self) -> int:
        return {"cross_entropy": 2, "dlr": 3, "dlr_targeted": 4}[self.loss]

    @property
    def num_rounds(self) -> int:
        return self.num_restarts * (self.num_targets if self.loss == "dlr_targeted" else 1)

    @property
    def passes(self) -> tuple[int, int]:
        return self.num_steps + 1 + (self.loss == "dlr_targeted"), self.num_steps + 1

    @property
    def label(self) -> str:
        kind = {"cross_entropy": "CE", "dlr": "DLR", "dlr_targeted": "T"}[self.loss]
        return f"APGD-{kind}{_times(self.num_restarts)}"


@word
class FAB(_Attack):
    """FAB-T (Croce and Hein 2020, "Minimally distorted adversarial examples"): the nearest adversarial image.

    Goes round by round for the `num_targets` classes that are likeliest after the true one; what it finds counts
    where it lies within `epsilon`. `alpha_max`, `eta` and `beta` are the paper's: bias toward the original,
    overshoot, backward step.
    """

    name: Literal["fab"] = "fab"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255
    num_steps: PositiveInt = 100
    num_restarts: PositiveInt = 1
    num_targets: PositiveInt = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    @property
    def num_rounds(self) -> int:
        return self.num_restarts * self.num_targets

    @property
    def passes(self) -> tuple[int, int]:
        return 2 * self.num_steps + 1, self.num_steps

    @property
    def label(self) -> str:
        return f"FAB-T{_times(self.num_restarts)}"


@word
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

    @property
    def passes(self) -> tuple[int, int]:
        return self.num_queries, 0

    @property
    def label(self) -> str:
        return f"Square-{self.num_queries}{_times(self.num_restarts)}"


@word
class Transfer(_Attack):
    """Another attack, crafted on another model: `source` on disk, a SavedModel or `.keras`. Black-box for the target."""

    name: Literal["transfer"] = "transfer"
    source: str
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

    def fitted(self, num_classes: int) -> "Attack":
        return dataclasses.replace(self, attack=self.attack.fitted(num_classes))

    @property
    def label(self) -> str:
        return f"{self.attack.label}{_through(self.source)}"


@word
class AutoAttack(_Attack):
    """AutoAttack, standard version (Croce and Hein 2020): APGD-CE, APGD-T, FAB-T and Square, each on what survived."""

    name: Literal["autoattack"] = "autoattack"
    norm: Norm = "linf"
    epsilon: Pixels = 8 / 255

    fewest_classes = 4

    @property
    def members(self) -> tuple["Attack", ...]:
        ball = dict(norm=self.norm, epsilon=self.epsilon)
        return (AutoPGD(**ball), AutoPGD(loss="dlr_targeted", **ball), FAB(**ball), Square(**ball))

    @property
    def label(self) -> str:
        return "AutoAttack"


def _times(restarts: int) -> str:
    return f"x{restarts}" if restarts > 1 else ""


def _through(source: str | None) -> str:
    return f" through {source}" if source else ""


Attack = Annotated[
    Union[FGSM, BIM, MIFGSM, PGD, Embedding, SupConAttack, AutoPGD, FAB, Square, Transfer, AutoAttack],
    Field(discriminator="name"),
]
"""Any attack; the field `name` says which."""

ATTACKS = {cls.name: cls for cls in get_args(get_args(Attack)[0])}


def describe(attack: Attack) -> str:
    """One line for tables: `PGD-40 linf 8/255`, and the protocol where it is not `pixel`."""
    protocol = "" if attack.protocol == "pixel" else f" {attack.protocol}"
    return f"{attack.label} {attack.norm} {format_pixels(attack.epsilon)}{protocol}"


def parse_attack(text: str) -> Attack:
    """An attack written on the command line: `pgd`, `pgd-40`, `pgd-40:num_restarts=5,norm=l2,epsilon=128/255`.

    A number after the name is `num_steps`; what follows the colon are the attack's fields.

    Raises:
        Refused: if the attack, a field or a value is unknown, naming it.
    """
    head, _, tail = text.partition(":")
    name, _, steps = head.partition("-")
    if name not in ATTACKS:
        raise Refused(f"unknown attack {name!r}; choose from {', '.join(ATTACKS)}")
    fields = {"name": name}
    if steps:
        fields["num_steps"] = steps
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise Refused(f"attack {text!r}: {item!r} is not key=value")
        fields[key.strip()] = value.strip()
    try:
        return TypeAdapter(Attack).validate_python(fields)
    except ValidationError as error:
        raise Refused(f"attack {text!r}: {first_line(error)}") from None
