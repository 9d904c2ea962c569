"""CLAF, supervised: adversarial examples as positives of the supervised contrastive loss."""

import dataclasses
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from keras_rcl.vocabulary.attacks import PGD, Attack
from keras_rcl.vocabulary.dataset import NoAugmentation, Policy, SimCLR
from keras_rcl.vocabulary.phase import (
    Adam,
    Adversarial,
    Augmented,
    Clean,
    CrossEntropy,
    Optimizer,
    Phase,
    SupCon,
    view_of,
)
from keras_rcl.vocabulary.spec import spec


@spec
class CLAFS:
    """Contrastive Learning with Adversarial Features (Rahamim and Naeh 2022, arXiv:2203.08959, Algorithm 1).

    The defaults are the paper's Algorithm 1. Four fields are its ablations, nine are differences between the text and
    the authors' published code, and three are ours. Parts: encoder f, projector g, classifier c.

    Attributes:
        warmup_epochs: passes over the training images of the first stage, contrast of two crops (60).
        adversarial_epochs: passes of the second stage, with an adversarial positive (140).
        inner_epochs: N of Algorithm 1: passes that train c before each epoch of the second stage.
        linear_epochs: passes of the third stage, which trains the final c (100).
        batch_size: images per step, before their views are made.
        temperature: tau of eq. 2; the value is from the authors' code.
        augmentation: how crops vary.
        attack: how the adversarial positive is crafted, through c(f(x)).
        optimizer: of f and g.
        inner_optimizer: of c in the second stage.
        linear_optimizer: of the final c.
        inner_classifier: c is trained on `adversarial` or `natural` images (Table 2).
        linear_evaluation: the final c is trained on `natural` or `adversarial` images (Table 4).
        inner_start: before each epoch c is `continued` or `reinitialized` (Table 5).
        final_start: the final c is `reinitialized` or `continued` from the inner one (Table 6).
        projection_normalized: False contrasts projections of the first stage that are not normalised (code).
        unit_embeddings: in the first stage the projector reads embeddings at unit length (code).
        positive_of: the adversarial positive starts from the `clean` image or from a third random `crop` (code).
        positive_augmentation: how that crop varies, if not as `augmentation` (code: resized crop and flip only).
        head_augmentation: how the images of the inner classifier and of the third stage vary (code: the same).
        batchnorm_statistics: of the frozen encoder: `frozen`, or `moving` while a classifier trains (code).
        inner_optimizer_state: `kept` from epoch to epoch, or `anew`: reset at each (code).
        reduction: of the contrastive loss over anchors: `mean`, or `sum` as in eq. 2 (code).
        schedule_over: the schedule of `optimizer` spans `each_stage`, or `both_stages` that train f and g, as in text
            and code. Moments of an optimizer that has them start again with the second stage.
        head: `inner_epochs` is Algorithm 1; `online` trains c in the same step as f and g, behind a stop-gradient, and
            has no inner epochs (ours).
        warm_steps: if not 0, attacks of the inner epochs after the first start where the last attack on their image
            ended, and take this number of steps; with an online head those of the positive do (ours).
        separate_batchnorm: in the second stage, give crops BatchNorm of their own; c always uses the other (ours).

    Example:
        >>> import keras_rcl
        >>> [(phase.name, phase.epochs) for phase in keras_rcl.CLAFS(warmup_epochs=30).phases()]
        [('warm-up', 30), ('adversarial positives', 140), ('linear evaluation', 100)]

    References:
        Rahamim and Naeh 2022, "Contrastive Learning with Adversarial Features", arXiv:2203.08959.
    """

    name: Literal["clafs"] = "clafs"
    warmup_epochs: NonNegativeInt = 60
    adversarial_epochs: NonNegativeInt = 140
    inner_epochs: NonNegativeInt = 5
    linear_epochs: NonNegativeInt = 100
    batch_size: PositiveInt = 256
    temperature: PositiveFloat = 0.07
    augmentation: Policy = SimCLR()
    attack: Attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=5)
    optimizer: Optimizer = Adam(learning_rate=0.05, schedule="cosine")
    inner_optimizer: Optimizer = Adam(learning_rate=1e-3)
    linear_optimizer: Optimizer = Adam(learning_rate=1e-3, schedule="cosine")

    inner_classifier: Literal["adversarial", "natural"] = "adversarial"
    linear_evaluation: Literal["natural", "adversarial"] = "natural"
    inner_start: Literal["continued", "reinitialized"] = "continued"
    final_start: Literal["reinitialized", "continued"] = "reinitialized"

    projection_normalized: bool = True
    positive_of: Literal["clean", "crop"] = "clean"
    batchnorm_statistics: Literal["frozen", "moving"] = "frozen"
    inner_optimizer_state: Literal["kept", "anew"] = "kept"
    reduction: Literal["mean", "sum"] = "mean"
    unit_embeddings: bool = False
    positive_augmentation: Policy | None = None
    head_augmentation: Policy = NoAugmentation()
    schedule_over: Literal["each_stage", "both_stages"] = "each_stage"

    head: Literal["inner_epochs", "online"] = "inner_epochs"
    warm_steps: NonNegativeInt = 0
    separate_batchnorm: bool = False

    def __post_init__(self):
        if self.positive_augmentation is not None and self.positive_of == "clean":
            raise ValueError("positive_augmentation varies the crop of positive_of crop; set it, or leave this one out")

    def _positive(self) -> Adversarial:
        """The adversarial view of the second stage."""
        varied = self.augmentation if self.positive_augmentation is None else self.positive_augmentation
        return Adversarial(
            attack=self.attack,
            of=Clean() if self.positive_of == "clean" else view_of(varied),
            warm_steps=self.warm_steps if self.head == "online" else 0,
        )

    def phases(self) -> tuple[Phase, ...]:
        crop = Augmented(policy=self.augmentation)
        natural, online = view_of(self.head_augmentation), self.head == "online"
        attacked = Adversarial(attack=self.attack, of=natural)
        warm = dataclasses.replace(attacked, warm_steps=self.warm_steps)
        contrast = SupCon(temperature=self.temperature, reduction=self.reduction)
        both = self.schedule_over == "both_stages"
        features: dict[str, Any] = dict(
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            schedule_epochs=(self.warmup_epochs + self.adversarial_epochs or None) if both else None,
        )
        head: dict[str, Any] = dict(
            trains=("classifier",),
            terms=(CrossEntropy(),),
            batch_size=self.batch_size,
            frozen_statistics=self.batchnorm_statistics == "frozen",
        )
        inner = Phase(
            name="inner classifier",
            epochs=self.inner_epochs,
            views=(warm if self.inner_classifier == "adversarial" else natural,),
            optimizer=self.inner_optimizer,
            reinitialize=("classifier",) if self.inner_start == "reinitialized" else (),
            fresh_optimizer=self.inner_optimizer_state == "anew",
            **head,
        )
        return (
            Phase(
                name="warm-up",
                epochs=self.warmup_epochs,
                trains=("encoder", "projector"),
                views=(crop, crop),
                terms=(dataclasses.replace(contrast, normalized=self.projection_normalized),),
                unit_embeddings=self.unit_embeddings,
                **features,
            ),
            Phase(
                name="adversarial positives",
                epochs=self.adversarial_epochs,
                trains=("encoder", "projector", "classifier") if online else ("encoder", "projector"),
                views=(crop, crop, self._positive()),
                terms=(contrast, CrossEntropy(on="adversarial")) if online else (contrast,),
                refresh=() if online else (inner,),
                detach_classifier=online,
                separate_batchnorm=self.separate_batchnorm,
                schedule_after=self.warmup_epochs if both else 0,
                **features,
            ),
            Phase(
                name="linear evaluation",
                epochs=self.linear_epochs,
                views=(attacked if self.linear_evaluation == "adversarial" else natural,),
                optimizer=self.linear_optimizer,
                reinitialize=("classifier",) if self.final_start == "reinitialized" else (),
                **head,
            ),
        )
