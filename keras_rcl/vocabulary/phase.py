"""A method is a list of phases. A phase names the parts that train, the views in a batch and the weighted losses."""

from typing import Annotated, Literal, Union

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks import Attack, SmoothedAttack
from keras_rcl.vocabulary.dataset import NoAugmentation, Policy
from keras_rcl.vocabulary.network import Part
from keras_rcl.vocabulary.registry import OpenUnion
from keras_rcl.vocabulary.spec import spec
from keras_rcl.vocabulary.threat import Pixels, check_epsilon


@spec
class Ramp:
    """A number that moves from `start` to `stop` over some epochs of a phase.

    Attributes:
        start: the value before the ramp.
        stop: the value after it.
        epochs: length of the ramp in epochs; 0 is a jump.
        after: epochs before the ramp.
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
"""The decay of a moving average: the share of the average that remains after a step."""
Smoothing = Annotated[float, Field(ge=0, lt=1)]
"""The share of a label that is spread over all classes."""
Kind = Literal["clean", "augmented", "adversarial", "worst_case"]


@spec
class Clean:
    """The images as they are."""

    kind: Literal["clean"] = "clean"


@spec
class Augmented:
    """A random variation of each image, drawn independently for each view."""

    kind: Literal["augmented"] = "augmented"
    policy: Policy


def can_grow(attack: Attack) -> bool:
    """Whether the radius of an attack can change from step to step of a training."""
    return attack.name in ("fgsm", "bim", "mifgsm", "pgd") and attack.num_restarts == 1


@spec
class Adversarial:
    """The images of another view, attacked through the classifier with the network in inference mode.

    With the attacks `stored` and `refreshed` they are not crafted for the batch: the view is made of the stored
    examples, as `of` is made of the images.

    Attributes:
        attack: the attack.
        of: the view that is attacked.
        warm_steps: from the second epoch of each run of the phase, an image's attack starts where its last attack
            ended and takes this number of steps (as in ATTA, Zheng et al. 2020, which keeps perturbations from epoch
            to epoch); with 0 each attack starts from its own start.
        growth: the share of the attack's epsilon and step size that it has, over the epochs of the phase; None if it
            has them from the first step.
    """

    kind: Literal["adversarial"] = "adversarial"
    attack: Attack
    of: Clean | Augmented = Clean()
    warm_steps: NonNegativeInt = 0
    growth: Ramp | None = None

    def __post_init__(self):
        if self.attack.norm is None:
            raise ValueError(
                f"{self.attack.label} has no epsilon, and training takes attacks that have one, such as pgd"
            )
        if self.warm_steps and (self.attack.name not in ("bim", "pgd") or self.attack.num_restarts > 1):
            raise ValueError(f"{self.attack.label} cannot start from its last image; use warm_steps with bim or pgd")
        if self.warm_steps and isinstance(self.of, Augmented):
            raise ValueError("warm_steps need images that stay the same from epoch to epoch, not crops of them")
        if self.growth and (self.warm_steps or not can_grow(self.attack)):
            raise ValueError(
                f"{self.attack.label} cannot grow; use growth with fgsm, bim, mifgsm or pgd of one restart, without "
                "warm_steps"
            )

    @property
    def crafted(self) -> bool:
        """Whether the view is crafted for each batch."""
        return self.attack.name not in ("stored", "refreshed")


@spec
class WorstCase:
    """All images within epsilon (L-inf, in the pixel box) at once: the outputs are bounds, not those of an image.

    Attributes:
        bound: the bound; see `keras_rcl.bounds`. `crown-ibp-fused` bounds the cross-entropy itself instead of each
            margin (loss fusion, Xu et al. 2020): looser, at a fraction of the cost.
        epsilon: the radius; a `Ramp` in training.
        share: the radius of the box that is bounded, as a share of epsilon. Below 1 it is a box around the image of the
            phase's adversarial view instead of the clean one, and its outputs bound that part of the ball alone
            (Mueller et al. 2023).
        outputs: `margins` gives worst-case logits, whose cross-entropy is not below that of any image in the ball.
            `lower_bounds` gives the lower bound of each logit and of each value of the embedding (Cusin's published
            code): there may be no image with such outputs, and a small loss on them certifies nothing.
            `embedding_lower_bounds` gives the lower bound of each value of the embedding, and the classifier's logits
            of these, on which Cusin's published code trains the classifier of its contrastive network.
    """

    kind: Literal["worst_case"] = "worst_case"
    bound: Literal["ibp", "crown-ibp", "crown-ibp-fused"] = "ibp"
    epsilon: Pixels | Ramp
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    outputs: Literal["margins", "lower_bounds", "embedding_lower_bounds"] = "margins"

    def __post_init__(self):
        check_epsilon(self.radius, "linf")
        if self.bound == "crown-ibp-fused" and self.outputs != "margins":
            raise ValueError("crown-ibp-fused bounds a cross-entropy, not each output; use crown-ibp")

    @property
    def radius(self) -> float:
        """The epsilon at the end of the phase."""
        return self.epsilon.stop if isinstance(self.epsilon, Ramp) else self.epsilon


View = Annotated[Union[Clean, Augmented, Adversarial, WorstCase], Field(discriminator="kind")]


def view_of(policy: Policy) -> Clean | Augmented:
    """The view of a policy; `none` gives the clean image."""
    return Clean() if isinstance(policy, NoAugmentation) else Augmented(policy=policy)


@spec
class CrossEntropy:
    """Cross-entropy of the logits, on the views of one kind or on all views.

    Attributes:
        label_smoothing: the share of each label that is spread evenly over all classes (Szegedy et al. 2016).
        margin: what is subtracted from the logit of the label before the loss is computed (Wang et al. 2018).
    """

    term: Literal["cross_entropy"] = "cross_entropy"
    weight: Weight = 1.0
    on: Kind | None = None
    label_smoothing: Smoothing = 0.0
    margin: NonNegativeFloat = 0.0


@spec
class BoostedCrossEntropy:
    """Cross-entropy and a margin to the top wrong class (MART), on the views of one kind or on all views."""

    term: Literal["boosted_cross_entropy"] = "boosted_cross_entropy"
    weight: Weight = 1.0
    on: Kind | None = None


@spec
class SupCon:
    """Supervised contrastive loss over all views (Khosla et al. 2020; CLAF eq. 2).

    Attributes:
        reads: the head's `projection`, or the encoder's `embedding` if a paper has no head (Landsman, Cusin).
        normalized: False uses the output before it is scaled to unit length, as CLAF's published code does in its
            first stage.
        anchors: that the mean is taken over: those `with_positives` in the batch, or `all` (Wang eq. 1).
        positives: of an anchor: all rows of its `class`, or only the other views of its `image`, which needs no label
            (Chen et al. 2020).
        on: the views of one kind; all views except the worst case if not given.
        anchors_on: the views whose rows are anchors, which are compared with the rows of all views; all views if not
            given.
        detached: the views whose rows the gradient does not reach.
        hard_positives: only positives that the network now predicts as another class than it predicts the anchor.
        hard_negatives: only negatives that the network now predicts as the class that it predicts for the anchor.
    """

    term: Literal["supcon"] = "supcon"
    weight: Weight = 1.0
    temperature: PositiveFloat = 0.07
    reduction: Literal["mean", "sum"] = "mean"
    anchors: Literal["with_positives", "all"] = "with_positives"
    reads: Literal["projection", "embedding"] = "projection"
    normalized: bool = True
    positives: Literal["class", "image"] = "class"
    on: Kind | None = None
    anchors_on: Kind | None = None
    detached: Kind | None = None
    hard_positives: bool = False
    hard_negatives: bool = False

    def __post_init__(self):
        if self.on and (self.anchors_on or self.detached):
            raise ValueError(f"supcon on {self.on} views has no other views; leave out on, or anchors_on and detached")
        if self.anchors_on and self.anchors_on == self.detached:
            raise ValueError(f"supcon: anchors_on and detached are both {self.detached}; gradients come from anchors")

    @property
    def selects_pairs(self) -> bool:
        """Whether some pairs of rows are left out."""
        return bool(self.anchors_on or self.hard_positives or self.hard_negatives)


@spec
class PrototypeContrastive:
    """Cross-entropy over the cosines between a row and the mean direction of each class of the batch.

    The mean of a row's own class leaves the row out.

    Attributes:
        temperature: what the cosines are divided by.
        detached: whether the gradient stops at the means.
    """

    term: Literal["prototype_contrastive"] = "prototype_contrastive"
    weight: Weight = 1.0
    temperature: PositiveFloat = 0.1
    detached: bool = False


@spec
class MarginContrastive:
    """Margin contrastive loss over all views (Wang eq. 4)."""

    term: Literal["margin_contrastive"] = "margin_contrastive"
    weight: Weight = 1.0
    positive_margin: float = 0.5
    negative_margin: float = 0.1


@spec
class EuclideanSupCon:
    """Euclidean distances between embeddings, masked by label and summed per anchor (Landsman et al., section 2).

    Attributes:
        negatives: what the distances to other classes do; see `keras_rcl.euclidean_supcon`.
        normalized: True scales embeddings to unit length first.
    """

    term: Literal["euclidean_supcon"] = "euclidean_supcon"
    weight: Weight = 1.0
    negatives: Literal["ignored", "subtracted"] = "ignored"
    normalized: bool = False


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
        PrototypeContrastive,
        MarginContrastive,
        EuclideanSupCon,
        KLToClean,
        MisclassifiedKL,
        IntervalTightness,
        ReLUBalance,
    ],
    Field(discriminator="term"),
    OpenUnion("loss"),
]


Contrast = Annotated[Union[SupCon, MarginContrastive, PrototypeContrastive], Field(discriminator="term")]
"""A contrastive loss."""


@spec
class Adam:
    """Adam (Kingma and Ba 2015).

    Attributes:
        schedule: `cosine` decays the learning rate over the phase; `steps` divides it by 5 after 5/7 and again after
            6/7 of the phase (Shi et al. 2021, epochs 50 and 60 of 70).
        final_share: the share of the learning rate at which `cosine` ends.
        warmup_share: the share of the phase's steps in which `cosine` first grows linearly from a 25th of the learning
            rate; 0.3 is the one-cycle schedule (Smith and Topin 2018).
        weight_decay: the share of each weight that a step of learning rate 1 takes away (Loshchilov and Hutter 2019).
        clip_norm: the gradient of all weights together is scaled to this length if it is longer.
        epsilon: added to the denominator; 1e-7 is Keras' default, 1e-8 PyTorch's.
    """

    name: Literal["adam"] = "adam"
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = None
    epsilon: PositiveFloat = 1e-7

    def __post_init__(self):
        _check_warmup(self)


@spec
class SGD:
    """Stochastic gradient descent, with momentum.

    Attributes:
        schedule: `cosine` decays the learning rate over the phase.
        final_share: the share of the learning rate at which `cosine` ends.
        warmup_share: the share of the phase's steps in which `cosine` first grows linearly from a 25th of the learning
            rate; 0.3 is the one-cycle schedule (Smith and Topin 2018).
        weight_decay: added to the gradient, times the weight, as in PyTorch.
    """

    name: Literal["sgd"] = "sgd"
    learning_rate: PositiveFloat = 0.1
    schedule: Literal["constant", "cosine"] = "constant"
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 0.0

    def __post_init__(self):
        _check_warmup(self)


def _check_warmup(optimizer: Adam | SGD) -> None:
    if optimizer.warmup_share and optimizer.schedule != "cosine":
        raise ValueError(f"warmup_share {optimizer.warmup_share:g} needs schedule cosine, not {optimizer.schedule}")


Optimizer = Annotated[Union[Adam, SGD], Field(discriminator="name")]


@spec
class WeightPerturbation:
    """Adversarial weight perturbation (Wu, Xia and Wang 2020): a step's gradient is computed at perturbed weights.

    Attributes:
        gamma: length of a kernel's perturbation relative to the length of the kernel; 0 for none. The authors' values
            are 0.01 for adversarial training and 0.005 for TRADES.
        warmup_epochs: epochs of the phase without a perturbation (the authors': 10 of 200 for TRADES).
    """

    gamma: NonNegativeFloat = 0.0
    warmup_epochs: NonNegativeInt = 0


@spec
class Phase:
    """One stage of a method.

    Attributes:
        name: the name in progress bars and TensorBoard.
        epochs: passes over the training images.
        trains: the parts that train; all others are frozen, with their BatchNorm statistics.
        views: the V views of each image in a batch.
        terms: the weighted losses, summed.
        augmentation: varies each image once, before its views are made: they share the crop.
        noise: standard deviation, in pixel units, of the Gaussian noise that is added to all views after their attacks;
            it is not clipped to [0, 1] (Cohen et al. 2019). Equal views of the same images share their attack and
            differ in their noise, which is that of the copies of a `SmoothedAttack`.
        refresh: phases run before each epoch of this one (CLAF's inner classifier epochs).
        reinitialize: parts that are initialised again before the phase starts; for a refresh, before each of its runs.
        interval_initialization: the kernels of an encoder that trains are initialised before the phase so that
            intervals keep their width from layer to layer (Shi et al. 2021, section 3.1). Those of the classifier are
            not, as in the authors' code.
        fresh_optimizer: for a refresh: reset its optimizer at each run, as CLAF's published code does.
        detach_classifier: the classifier trains, but its gradient stops at the embedding (an online head).
        ema: decay of an exponential moving average of the network over the phase's steps; 0 keeps none. The average is
            monitored, validated, saved and exported; steps and their attacks use the weights.
        awp: adversarial weight perturbation of the parts that train, by the whole loss; metrics of a step are those
            at the perturbed weights. It costs one more forward and backward pass per view.
        separate_batchnorm: views that are not adversarial have BatchNorm statistics, gamma and beta of their own (Xie
            et al. 2020), which start as copies and end with the phase: the network that is attacked, validated
            and exported is that of the adversarial views.
        frozen_statistics: False updates a frozen encoder's BatchNorm statistics, as CLAF's published code does.
        unit_embeddings: the projector reads embeddings at unit length, as CLAF's published code has it in its first
            stage.
        schedule_epochs: epochs that the schedule of the optimizer spans, if they are not those of the phase.
        schedule_after: how many of these are before the phase, whose first step has the learning rate of that place.
    """

    name: str
    epochs: NonNegativeInt
    trains: tuple[Part, ...]
    views: Annotated[tuple[View, ...], Field(min_length=1)]
    terms: Annotated[tuple[Term, ...], Field(min_length=1)]
    optimizer: Optimizer = Adam()
    batch_size: PositiveInt = 128
    augmentation: Policy = NoAugmentation()
    noise: Annotated[float, Field(ge=0, le=100)] = 0.0
    refresh: tuple["Phase", ...] = ()
    reinitialize: tuple[Part, ...] = ()
    interval_initialization: bool = False
    fresh_optimizer: bool = False
    detach_classifier: bool = False
    ema: Decay = 0.0
    awp: WeightPerturbation = WeightPerturbation()
    separate_batchnorm: bool = False
    frozen_statistics: bool = True
    unit_embeddings: bool = False
    schedule_epochs: PositiveInt | None = None
    schedule_after: NonNegativeInt = 0

    def __post_init__(self):
        if self.schedule_after and (self.schedule_epochs or 0) < self.schedule_after + self.epochs:
            raise ValueError(
                f"phase {self.name!r}: {self.epochs} epochs after {self.schedule_after} do not fit into "
                f"schedule_epochs {self.schedule_epochs}; give at least {self.schedule_after + self.epochs}"
            )
        if self.unit_embeddings and ("worst_case" in [view.kind for view in self.views]):
            raise ValueError(f"phase {self.name!r}: bounds are of embeddings as they are; leave unit_embeddings out")
        if self.ema and self.refresh:
            raise ValueError(f"phase {self.name!r}: its refreshes would train the average; leave out ema or refresh")
        kinds = [view.kind for view in self.views]
        if self.warm_views and not isinstance(self.augmentation, NoAugmentation):
            raise ValueError(f"phase {self.name!r}: warm_steps need images that stay the same; leave augmentation out")
        if "worst_case" in kinds and (kinds.index("worst_case") != len(kinds) - 1 or len(kinds) == 1):
            raise ValueError(f"phase {self.name!r}: one worst case comes last, after a view of images; it has {kinds}")
        if "worst_case" in kinds and self.detach_classifier:
            raise ValueError(f"phase {self.name!r}: bounds reach through the classifier; leave detach_classifier out")
        if "worst_case" in kinds and self.awp.gamma:
            raise ValueError(f"phase {self.name!r}: bounds are of the weights as they are; leave awp out")
        if "worst_case" in kinds and self.noise:
            raise ValueError(f"phase {self.name!r}: bounds are of images without noise; leave noise out")
        if self.worst_case and self.worst_case.share < 1:
            self._check_small_box(self.worst_case)
        for attack in (view.attack for view in self.views if isinstance(view, Adversarial)):
            if isinstance(attack, SmoothedAttack) and attack.sigma != self.noise:
                raise ValueError(
                    f"phase {self.name!r}: noise {self.noise:g}, and {attack.label} has sigma {attack.sigma:g}; use one"
                )
        if self.separate_batchnorm:
            self._check_branches(kinds)
        for term in self.terms:
            pairs = isinstance(term, (KLToClean, MisclassifiedKL))
            if pairs and not kinds.count("clean") == kinds.count("adversarial") == 1:
                raise ValueError(f"phase {self.name!r}: {term.term} needs one clean and one adversarial view")
            if isinstance(term, (IntervalTightness, ReLUBalance)) and "worst_case" not in kinds:
                raise ValueError(f"phase {self.name!r}: {term.term} needs a worst case; it has {kinds}")
            for on in (getattr(term, name, None) for name in ("on", "anchors_on", "detached")):
                if isinstance(on, str) and on not in kinds:
                    raise ValueError(f"phase {self.name!r}: no {on} view for its {term.term}; it has {kinds}")

    def _check_small_box(self, worst_case: WorstCase) -> None:
        """Check that a small box has one adversarial image to lie around, and lies within the ball."""
        where = f"phase {self.name!r}: a worst case of share {worst_case.share:g}"
        views = [view for view in self.views if isinstance(view, Adversarial)]
        if [(view.of, view.attack.norm, view.attack.protocol) for view in views] != [(Clean(), "linf", "pixel")]:
            raise ValueError(f"{where} lies around one adversarial view, of clean images and in an linf ball of pixels")
        room = (1 - worst_case.share) * worst_case.radius
        if (radius := views[0].attack.epsilon or 0.0) > room * (1 + 1e-6):
            raise ValueError(f"{where} leaves the ball from an attack of epsilon {radius:g}; give it at most {room:g}")

    def _check_branches(self, kinds: list[Kind]) -> None:
        """Check that there are two branches to separate, of an encoder that trains without perturbed weights."""
        where = f"phase {self.name!r}: separate_batchnorm"
        if "adversarial" not in kinds or len(set(kinds)) == 1:
            raise ValueError(f"{where} needs adversarial views and others; it has {kinds}")
        if "encoder" not in self.trains or "worst_case" in kinds or self.awp.gamma:
            raise ValueError(f"{where} needs an encoder that trains, without bounds or awp; leave one of them out")

    @property
    def worst_case(self) -> WorstCase | None:
        """The view of all images in a ball, if there is one."""
        return self.views[-1] if isinstance(self.views[-1], WorstCase) else None

    @property
    def of_whole_batch(self) -> tuple[str, ...]:
        """The settings that need a whole batch on one replica."""
        found = {
            "bounds": self.worst_case,
            "awp": self.awp.gamma,
            "separate_batchnorm": self.separate_batchnorm,
        }
        return tuple(name for name, there in found.items() if there)

    @property
    def warm_views(self) -> tuple[int, ...]:
        """The positions of the views whose attacks start where the last ones ended."""
        return tuple(place for place, view in enumerate(self.views) if getattr(view, "warm_steps", 0))

    def first_of_equals(self, place: int) -> int:
        """The position of the first view that is equal to the one at `place` and of the same images.

        With noise, equal views share their attack and differ in their draw of noise. Without noise, and for a view
        that varies its images itself, it is `place`.
        """
        view = self.views[place]
        source = view.of if isinstance(view, Adversarial) else view
        return self.views.index(view) if self.noise and not isinstance(source, Augmented) else place

    @property
    def reads_fixed_features(self) -> bool:
        """Whether the phase reads only the features that a frozen encoder computes from constant images."""
        frozen = self.trains == ("classifier",) and self.frozen_statistics and not self.awp.gamma and not self.noise
        same = isinstance(self.augmentation, NoAugmentation) and all(isinstance(view, Clean) for view in self.views)
        return frozen and same and all(isinstance(term, (CrossEntropy, BoostedCrossEntropy)) for term in self.terms)

    @property
    def cost(self) -> float:
        """Forward passes per image and epoch, roughly: a backward pass counts as two, a step of an attack as two."""
        learned = (3 if "encoder" in self.trains else 1) * (2 if self.awp.gamma else 1)
        places = {self.first_of_equals(place) for place in range(len(self.views))}
        views = (self.views[place] for place in sorted(places))
        attacked = sum(view.attack.cost for view in views if isinstance(view, Adversarial))
        return len(self.views) * learned + attacked

    @property
    def total_cost(self) -> float:
        """`cost` of all epochs, with those of the refreshes."""
        return self.epochs * (self.cost + sum(inner.total_cost for inner in self.refresh))

    @property
    def total_epochs(self) -> int:
        """Passes over the training images, with those of the refreshes."""
        return self.epochs * (1 + sum(inner.total_epochs for inner in self.refresh))
