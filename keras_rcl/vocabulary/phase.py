"""A method is a list of phases: each says which parts train, which views are in the batch, which losses are weighed."""

from typing import Annotated, Literal, Union

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.dataset import NoAugmentation, Policy
from keras_rcl.vocabulary.network import Part
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import Pixels, check_epsilon


@spec
class Ramp:
    """A number that moves from `start` to `stop` over some epochs of a phase.

    Fields:
        start: its value until then.
        stop: its value from then on.
        epochs: how long it moves; 0 jumps.
        after: how many epochs it waits before.
        shape: `linear`; or `smooth`, which grows as the fourth power for the first quarter and then at the slope
            reached there (Shi et al. 2021).
    """

    start: NonNegativeFloat
    stop: NonNegativeFloat
    epochs: NonNegativeFloat
    after: NonNegativeFloat = 0.0
    shape: Literal["linear", "smooth"] = "linear"

    def __format__(self, spec: str) -> str:
        return f"{self.start:{spec}} to {self.stop:{spec}}"


Weight = NonNegativeFloat | Ramp
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a moving average: the share of it that a step leaves."""
Kind = Literal["clean", "augmented", "adversarial", "worst_case"]


@spec
class Clean:
    """The images as they are."""

    kind: Literal["clean"] = "clean"


@spec
class Augmented:
    """A random variation of each image, drawn anew for each view."""

    kind: Literal["augmented"] = "augmented"
    policy: Policy


@spec
class Adversarial:
    """The images of another view, attacked through the classifier with the network in inference mode.

    Under the attacks `stored` and `refreshed` they are not crafted for the batch: the view is made of the examples
    that are kept as `of` is of the images.

    Fields:
        warm_steps: from the second epoch of each run of the phase on, an image's attack starts where its last one
            ended and takes so many steps (as in ATTA, Zheng et al. 2020, which keeps perturbations from epoch to
            epoch); 0 attacks anew each time.
    """

    kind: Literal["adversarial"] = "adversarial"
    attack: Attack
    of: Clean | Augmented = Clean()
    warm_steps: NonNegativeInt = 0

    def __post_init__(self):
        if self.warm_steps and (self.attack.name not in ("bim", "pgd") or self.attack.num_restarts > 1):
            raise ValueError(f"{self.attack.label} has no last image to start from; warm_steps are for bim and pgd")
        if self.warm_steps and isinstance(self.of, Augmented):
            raise ValueError("warm_steps need images that stay the same from epoch to epoch, not crops of them")

    @property
    def crafted(self) -> bool:
        """Whether each batch crafts it."""
        return self.attack.name not in ("stored", "refreshed")


@spec
class WorstCase:
    """All images within epsilon (L-inf, in the pixel box) at once: its outputs come from bounds, not from an image.

    Fields:
        bound: how they are bounded; see `keras_rcl.bounds`. `crown-ibp-fused` bounds the cross-entropy itself instead
            of each margin (loss fusion, Xu et al. 2020): looser, and at a fraction of the cost.
        epsilon: the radius; a `Ramp` in training.
        outputs: `margins` gives worst-case logits, whose cross-entropy is not below that of any image in the ball.
            `lower_bounds` gives the lower bound of each logit and of each value of the embedding (Cusin's published
            code): no image need have such outputs, and a small loss on them certifies nothing.
    """

    kind: Literal["worst_case"] = "worst_case"
    bound: Literal["ibp", "crown-ibp", "crown-ibp-fused"] = "ibp"
    epsilon: Pixels | Ramp
    outputs: Literal["margins", "lower_bounds"] = "margins"

    def __post_init__(self):
        check_epsilon(self.radius, "linf")
        if self.bound == "crown-ibp-fused" and self.outputs == "lower_bounds":
            raise ValueError("crown-ibp-fused bounds a cross-entropy and no output by itself; take crown-ibp")

    @property
    def radius(self) -> float:
        """The epsilon that the phase ends with."""
        return self.epsilon.stop if isinstance(self.epsilon, Ramp) else self.epsilon


View = Annotated[Union[Clean, Augmented, Adversarial, WorstCase], Field(discriminator="kind")]


def view_of(policy: Policy) -> Clean | Augmented:
    """The view that a policy makes: `none` is the clean image."""
    return Clean() if isinstance(policy, NoAugmentation) else Augmented(policy=policy)


@spec
class CrossEntropy:
    """Cross-entropy of the logits, on the views of one kind, or on all."""

    term: Literal["cross_entropy"] = "cross_entropy"
    weight: Weight = 1.0
    on: Kind | None = None


@spec
class BoostedCrossEntropy:
    """Cross-entropy and a margin on the likeliest wrong class (MART), on the views of one kind, or on all."""

    term: Literal["boosted_cross_entropy"] = "boosted_cross_entropy"
    weight: Weight = 1.0
    on: Kind | None = None


@spec
class SupCon:
    """Supervised contrastive loss over all views (Khosla et al. 2020; CLAF eq. 2).

    Fields:
        reads: the head's `projection`, or the encoder's `embedding` where a paper has no head (Landsman, Cusin).
        normalized: False takes it before it is brought to unit length, as CLAF's published code does in its first
            stage.
        positives: of an anchor: all of its `class`, or the other views of its `image` alone, which needs no label
            (Chen et al. 2020).
        on: the views of one kind; all but the worst case where not given.
    """

    term: Literal["supcon"] = "supcon"
    weight: Weight = 1.0
    temperature: PositiveFloat = 0.07
    reduction: Literal["mean", "sum"] = "mean"
    reads: Literal["projection", "embedding"] = "projection"
    normalized: bool = True
    positives: Literal["class", "image"] = "class"
    on: Kind | None = None


@spec
class MarginContrastive:
    """Margin contrastive loss over all views (Wang eq. 4)."""

    term: Literal["margin_contrastive"] = "margin_contrastive"
    weight: Weight = 1.0
    positive_margin: float = 0.5
    negative_margin: float = 0.1


@spec
class KLToClean:
    """KL(p(clean) || p(adversarial)), the regulariser of TRADES: of the one clean and the one adversarial view."""

    term: Literal["kl_to_clean"] = "kl_to_clean"
    weight: Weight = 6.0


@spec
class MisclassifiedKL:
    """`KLToClean` of each image times 1 - p_y(clean), the regulariser of MART: one clean and one adversarial view."""

    term: Literal["misclassified_kl"] = "misclassified_kl"
    weight: Weight = 5.0


@spec
class IntervalTightness:
    """The worst case's regulariser that keeps intervals from growing with depth (Shi et al. 2021, section 3.3)."""

    term: Literal["interval_tightness"] = "interval_tightness"
    weight: Weight = 0.5


@spec
class ReLUBalance:
    """The worst case's regulariser that keeps active and inactive ReLUs in balance (Shi et al. 2021, section 3.3)."""

    term: Literal["relu_balance"] = "relu_balance"
    weight: Weight = 0.5


Term = Annotated[
    Union[
        CrossEntropy,
        BoostedCrossEntropy,
        SupCon,
        MarginContrastive,
        KLToClean,
        MisclassifiedKL,
        IntervalTightness,
        ReLUBalance,
    ],
    Field(discriminator="term"),
]


Contrast = Annotated[Union[SupCon, MarginContrastive], Field(discriminator="term")]
"""Either of the losses that compare what a network makes of several images."""


@spec
class Adam:
    """Adam (Kingma and Ba 2015).

    Fields:
        schedule: `cosine` decays the learning rate to 0 over the phase; `steps` divides it by 5 after 5/7 and again
            after 6/7 of the phase (Shi et al. 2021, epochs 50 and 60 of 70).
        clip_norm: the gradient of all weights together is scaled down to this length where it is longer.
    """

    name: Literal["adam"] = "adam"
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = None


@spec
class SGD:
    """Stochastic gradient descent, with momentum where asked for."""

    name: Literal["sgd"] = "sgd"
    learning_rate: PositiveFloat = 0.1
    schedule: Literal["constant", "cosine"] = "constant"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 0.0


Optimizer = Annotated[Union[Adam, SGD], Field(discriminator="name")]


@spec
class WeightPerturbation:
    """Adversarial weight perturbation (Wu, Xia and Wang 2020): a step's gradient is taken at worse weights.

    Fields:
        gamma: length of a kernel's perturbation relative to the kernel's own; 0 for none. The authors' values are
            0.01 for adversarial training and 0.005 for TRADES.
        warmup_epochs: of the phase, without a perturbation (the authors': 10 of 200 for TRADES).
    """

    gamma: NonNegativeFloat = 0.0
    warmup_epochs: NonNegativeInt = 0


@spec
class Phase:
    """One stage of a method.

    Fields:
        name: what progress bars and TensorBoard call it.
        epochs: passes over the training images.
        trains: the parts that move; all else is frozen, BatchNorm statistics included.
        views: what a batch is made of, V views of each image.
        terms: the weighted losses, summed.
        augmentation: varies each image once, before its views are made of it: they share the crop.
        refresh: phases run before each epoch of this one (CLAF's inner classifier epochs).
        reinitialize: parts drawn anew before the phase starts; as a refresh, before each of its runs.
        interval_initialization: the kernels of the parts that train are drawn before the phase starts so that
            intervals keep their width from layer to layer (Shi et al. 2021, section 3.1).
        fresh_optimizer: for a refresh: start its optimizer anew at each run, as CLAF's published code does.
        detach_classifier: the classifier trains, but its gradient stops at the embedding (an online head).
        ema: decay of an exponential moving average of the network over the phase's steps; 0 keeps none. The average is
            what is monitored, validated, saved and handed on; the steps, and their attacks, are of the weights.
        awp: adversarial weight perturbation of what trains, by the whole loss; metrics of a step are at the worse
            weights. It costs each view another pass forward and back.
        separate_batchnorm: views that are not adversarial have BatchNorm statistics, gamma and beta of their own (Xie
            et al. 2020), which begin as copies and end with the phase: the network that is attacked, validated and
            handed on is that of the adversarial views.
        frozen_statistics: False lets a frozen encoder's BatchNorm statistics move, as CLAF's published code does.
    """

    name: str
    epochs: NonNegativeInt
    trains: tuple[Part, ...]
    views: Annotated[tuple[View, ...], Field(min_length=1)]
    terms: Annotated[tuple[Term, ...], Field(min_length=1)]
    optimizer: Optimizer = Adam()
    batch_size: PositiveInt = 128
    augmentation: Policy = NoAugmentation()
    refresh: tuple["Phase", ...] = ()
    reinitialize: tuple[Part, ...] = ()
    interval_initialization: bool = False
    fresh_optimizer: bool = False
    detach_classifier: bool = False
    ema: Decay = 0.0
    awp: WeightPerturbation = WeightPerturbation()
    separate_batchnorm: bool = False
    frozen_statistics: bool = True

    def __post_init__(self):
        if self.ema and self.refresh:
            raise ValueError(f"phase {self.name!r}: its refreshes would train the average; leave out one of the two")
        kinds = [view.kind for view in self.views]
        if self.warm_views and not isinstance(self.augmentation, NoAugmentation):
            raise ValueError(f"phase {self.name!r}: warm_steps need images that stay the same; leave augmentation out")
        if "worst_case" in kinds and (kinds.index("worst_case") != len(kinds) - 1 or len(kinds) == 1):
            raise ValueError(f"phase {self.name!r}: one worst case comes last, after a view of images; it has {kinds}")
        if "worst_case" in kinds and self.detach_classifier:
            raise ValueError(f"phase {self.name!r}: bounds reach through the classifier; leave detach_classifier out")
        if "worst_case" in kinds and self.awp.gamma:
            raise ValueError(f"phase {self.name!r}: bounds are of the weights as they are; leave awp out")
        if self.separate_batchnorm:
            self._check_branches(kinds)
        for term in self.terms:
            pairs = isinstance(term, (KLToClean, MisclassifiedKL))
            if pairs and not kinds.count("clean") == kinds.count("adversarial") == 1:
                raise ValueError(f"phase {self.name!r}: {term.term} needs one clean and one adversarial view")
            if isinstance(term, (IntervalTightness, ReLUBalance)) and "worst_case" not in kinds:
                raise ValueError(f"phase {self.name!r}: {term.term} needs a worst case; it has {kinds}")
            on = getattr(term, "on", None)
            if on is not None and on not in kinds:
                raise ValueError(f"phase {self.name!r}: no {on} view for its {term.term}; it has {kinds}")

    def _check_branches(self, kinds: list[Kind]) -> None:
        """Whether there are two branches to separate, of an encoder that trains, at the weights as they are."""
        where = f"phase {self.name!r}: separate_batchnorm"
        if "adversarial" not in kinds or len(set(kinds)) == 1:
            raise ValueError(f"{where} needs adversarial views and others; it has {kinds}")
        if "encoder" not in self.trains or "worst_case" in kinds or self.awp.gamma:
            raise ValueError(f"{where} needs an encoder that trains, without bounds or awp; leave one of them out")

    @property
    def worst_case(self) -> WorstCase | None:
        """Its view of all images in a ball, if it has one."""
        return self.views[-1] if isinstance(self.views[-1], WorstCase) else None

    @property
    def of_whole_batch(self) -> tuple[str, ...]:
        """What it has that needs a whole batch in one place."""
        found = {
            "bounds": self.worst_case,
            "awp": self.awp.gamma,
            "separate_batchnorm": self.separate_batchnorm,
        }
        return tuple(name for name, there in found.items() if there)

    @property
    def warm_views(self) -> tuple[int, ...]:
        """The places of the views whose attacks start where the last ones ended."""
        return tuple(place for place, view in enumerate(self.views) if getattr(view, "warm_steps", 0))

    @property
    def reads_fixed_features(self) -> bool:
        """Whether it sees nothing but what an encoder that stands still makes of images that stay the same."""
        stands = self.trains == ("classifier",) and self.frozen_statistics and not self.awp.gamma
        same = isinstance(self.augmentation, NoAugmentation) and all(isinstance(view, Clean) for view in self.views)
        return stands and same and all(isinstance(term, (CrossEntropy, BoostedCrossEntropy)) for term in self.terms)

    @property
    def cost(self) -> float:
        """Forward passes that an image costs in an epoch, roughly: two for a backward, two for an attack's step."""
        learned = (3 if "encoder" in self.trains else 1) * (2 if self.awp.gamma else 1)
        attacked = sum(view.attack.cost for view in self.views if isinstance(view, Adversarial))
        return len(self.views) * learned + attacked

    @property
    def total_cost(self) -> float:
        """`cost` of all epochs, those of the refreshes included."""
        return self.epochs * (self.cost + sum(inner.total_cost for inner in self.refresh))

    @property
    def total_epochs(self) -> int:
        """Passes over the training images, those of the refreshes included."""
        return self.epochs * (1 + sum(inner.total_epochs for inner in self.refresh))
