"""What the checks of an audit read: the model, the images, the claim, and measurements that are made once."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

from keras_rcl.attacks.surrogates import logit_margin
from keras_rcl.evaluation.robustness import Evaluator, Survival
from keras_rcl.runtime.progress import Progress
from keras_rcl.storage.journal import Journal
from keras_rcl.vocabulary.attacks import (
    BIM,
    FGSM,
    PGD,
    Attack,
    AutoPGD,
    Embedding,
    Noise,
    RayS,
    Square,
    Transfer,
)
from keras_rcl.vocabulary.claim import AuditBudget, Claim

Status = Literal["passed", "raised", "not run"]

WHITE_BOX = ("fgsm", "pgd", "more steps", "restarts", "margin")
"""The names of the attacks through the classifier at the claim's epsilon."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: The name of the check.
        status: `passed`, `raised` or `not run`.
        because: What raised the check, or why it passed or was not run.
        figures: The numbers that the status is read from.
    """

    check: str
    status: Status
    because: str
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


class Result(NamedTuple):
    """The result of one check, before the check's name is added; the fields are those of `Finding`."""

    status: Status
    because: str
    figures: dict[str, float] = {}  # noqa: RUF012  never changed


def result(raised: bool, because: str, **figures: float) -> Result:
    """Return the result of a check that was run."""
    return Result("raised" if raised else "passed", because, {name: float(value) for name, value in figures.items()})


def not_run(because: str) -> Result:
    """Return the result of a check that does not apply."""
    return Result("not run", because)


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model under audit.

    Attributes:
        logits: Images [N, H, W, C] in [0, 1] -> [N, K], as they are served.
        embedding: Images -> [N, D], if the model has an embedding.
        probabilities: Whether the model's output is a softmax, of which `logits` are the logarithm.
        others: Name -> logits of a model that transfer attacks are crafted on.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Subject(logits=lambda images: images[:, 0, 0, :]).probabilities
        False
    """

    logits: Callable
    embedding: Callable | None = None
    probabilities: bool = False
    others: dict[str, Callable] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a result record says of the audited images.

    Attributes:
        clean: [N] bool: classified correctly before any attack.
        survived: [N] bool: classified correctly after all attacks of the claim's threat model.
        protocol: The protocol that the record names.
        same_model: Whether the record's model hash is the audited model's.
        attacked: For each attack whose images are stored, the images [N, H, W, C], and [N] bool: counted as robust.
        largest_distance: In pixels, if the record reports it.
    """

    clean: np.ndarray
    survived: np.ndarray
    protocol: str = "pixel"
    same_model: bool = True
    attacked: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    largest_distance: float | None = None


class WorstCase(NamedTuple):
    """The outcome of each image under the verifier and the attacks of the checks within the ball.

    Attributes:
        survived: [N] bool.
        adversarial: [N, H, W, C], the image that broke it, or the verifier's last.
        predictions: [N], the classes of `adversarial`.
    """

    survived: np.ndarray
    adversarial: np.ndarray
    predictions: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """The inputs of an audit, and its measurements. Each measurement is made when it is first read, and kept.

    Attributes:
        subject: The model.
        images: float32 [N, H, W, C] in [0, 1].
        labels: int32 [N].
        claim: The audited claim.
        evidence: What a record says of these images; None if the claim is a number.
        budget: How much to spend.
        batch_size: Images attacked at once.
        seed: The seed of all random draws.
        progress: Where progress is shown.
        journal: Where attacked batches are stored, if anywhere.
    """

    subject: Subject
    images: np.ndarray
    labels: np.ndarray
    claim: Claim
    evidence: Evidence | None
    budget: AuditBudget
    batch_size: int
    seed: int
    progress: Progress
    journal: Journal | None = None

    @property
    def count(self) -> int:
        """The number of images that the checks run on, the first of all."""
        return min(self.budget.num_images, len(self.images))

    @functools.cached_property
    def logits(self) -> Callable:
        """Images -> float32 logits, finite: clipped to a quarter of float32's range."""
        largest = np.finfo(np.float32).max / 4
        return tf.function(
            lambda x: tf.clip_by_value(tf.cast(self.subject.logits(x), tf.float32), -largest, largest), autograph=False
        )

    # The model by itself.

    @functools.cached_property
    def repeated(self) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Images, their logits, the largest logit, and how far four repetitions differ, relative to the largest."""
        images = self.images[: min(self.count, 32)]
        first = self.logits(images).numpy()
        scale = max(1e-12, float(np.abs(first).max()))
        again = [np.abs(self.logits(images).numpy() - first).max() / scale for _ in range(4)]
        return images, first, scale, float(max(again))

    @property
    def randomised(self) -> bool:
        """Whether the model is random, or changes from call to call."""
        return self.repeated[-1] > 1e-4

    def gradient(self, loss_name: str) -> np.ndarray | None:
        """d loss / d pixels [n, H, W, C] of the cross-entropy or the logit margin; None if there is no gradient."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            x = tf.constant(self.images[: self.count])
            tape.watch(x)
            logits = tf.cast(self.subject.logits(x), tf.float32)
            labels = self.labels[: self.count]
            if loss_name == "cross_entropy":
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            else:
                loss = logit_margin(labels, logits)
        gradient = tape.gradient(loss, x)
        return None if gradient is None else gradient.numpy()

    @functools.cached_property
    def margin_gradient(self) -> np.ndarray | None:
        """The gradient of the logit margin, [n, H, W, C]; None if no gradient reaches the pixels."""
        return self.gradient("logit_margin")

    @property
    def differentiable(self) -> bool:
        """Whether a gradient reaches the pixels."""
        return self.margin_gradient is not None

    @functools.cached_property
    def direction(self) -> np.ndarray:
        """The sign of the margin's gradient, [n, H, W, C]; 0 where it is not finite or absent."""
        if self.margin_gradient is None:
            return np.zeros_like(self.images[: self.count])
        return np.sign(np.where(np.isfinite(self.margin_gradient), self.margin_gradient, 0))

    @property
    def dead(self) -> np.ndarray:
        """[n] bool: the margin's gradient is zero or not finite."""
        margins = self.margin_gradient
        assert margins is not None, "only for a differentiable model"
        return ~np.isfinite(margins).all(axis=(1, 2, 3)) | (margins == 0).all(axis=(1, 2, 3))

    # The attacks.

    @functools.cached_property
    def attacks(self) -> dict[str, Attack]:
        """The attacks that the checks compare, by name."""
        claim, budget = self.claim, self.budget
        ball = dict(norm=claim.norm, epsilon=claim.epsilon)
        kinds = ("uniform", "gaussian", "salt_and_pepper")
        attacks: dict[str, Attack] = {
            f"noise {kind}": Noise(**ball, kind=kind, num_restarts=budget.num_draws) for kind in kinds
        }
        attacks["square"] = Square(**ball, num_queries=budget.num_queries)
        if claim.norm == "linf":
            attacks["rays"] = RayS(**ball, num_queries=budget.num_queries)
        if not self.differentiable:
            return attacks
        pgd = PGD(**ball, num_steps=budget.num_steps)
        largest = 1.0 if claim.norm == "linf" else math.sqrt(self.images[0].size)
        attacks |= {
            "epsilon 0": BIM(norm=claim.norm, epsilon=0.0, num_steps=2, step_size=1 / 255),
            "fgsm": FGSM(**ball),
            "half": pgd.with_epsilon(claim.epsilon / 2),
            "pgd": pgd,
            "double": pgd.with_epsilon(min(2 * claim.epsilon, largest)),
            "largest": dataclasses.replace(pgd.with_epsilon(largest), loss="logit_margin"),
            "more steps": dataclasses.replace(pgd, num_steps=2 * budget.num_steps),
            "restarts": dataclasses.replace(pgd, num_restarts=budget.num_restarts),
            "margin": dataclasses.replace(pgd, num_steps=2 * budget.num_steps, loss="logit_margin"),
        }
        attacks |= {
            f"transfer {name}": Transfer(source=name, attack=dataclasses.replace(pgd, loss="logit_margin"))
            for name in self.subject.others
        }
        if self.subject.embedding is not None:
            attacks["embedding"] = Embedding(**ball, num_steps=2 * budget.num_steps)
        return attacks

    def _attacked_function(self, attack: Attack) -> Callable:
        """The function of images that an attack reads."""
        if attack.target_output == "embedding":
            assert self.subject.embedding is not None
            return self.subject.embedding
        return self.subject.logits if attack.proxy is None else self.subject.others[attack.proxy]

    def evaluate(self, attacks: tuple[Attack, ...], chosen: slice) -> Survival:
        """Attack the chosen images. The journal returns batches in the order in which they were stored."""
        images, labels = self.images[chosen], self.labels[chosen]
        evaluator = Evaluator(
            self.subject.logits,
            attacks,
            batch_size=min(self.batch_size, len(images)),
            seed=self.seed,
            outputs=self._attacked_function,
        )
        return evaluator(images, labels, keep_images=True, progress=self.progress, journal=self.journal)

    @functools.cached_property
    def checked(self) -> Survival:
        """The survival table of the checks' attacks on the first images."""
        return self.evaluate(tuple(self.attacks.values()), slice(0, self.count))

    def survivors(self, *names: str) -> np.ndarray:
        """[n] bool: which of the checks' images survive all attacks of these names."""
        attacks = list(self.attacks)
        return self.checked.survived[[attacks.index(name) for name in names]].all(axis=0)

    def exceeds_tolerance(self, share: float) -> bool:
        """Whether a share of the checks' images is larger than the tolerance and more than one image."""
        return bool(share > self.budget.tolerance and round(share * self.count) > 1)

    # The claim.

    @functools.cached_property
    def verifier(self) -> Attack:
        """The attack that the claimed number is compared with."""
        if not self.differentiable:
            return Square(norm=self.claim.norm, epsilon=self.claim.epsilon)
        if self.logits(self.images[:1]).shape[1] < 4:
            return AutoPGD(norm=self.claim.norm, epsilon=self.claim.epsilon, num_restarts=5)
        return self.budget.resolved_verifier(self.claim, self.randomised)

    @functools.cached_property
    def measured(self) -> Survival:
        """The survival table of the verifier on all images, made after `checked`, as a journal stores them."""
        _ = self.checked
        return self.evaluate((self.verifier,), slice(None))

    @functools.cached_property
    def worst_case(self) -> WorstCase:
        """Each image under the verifier and all attacks of the checks within the claim's ball."""
        survived, checked = self.measured.survived[0].copy(), self.checked
        assert self.measured.adversarial is not None and checked.adversarial is not None
        adversarial, predictions = self.measured.adversarial[0].copy(), self.measured.predictions[0].copy()
        for number, attack in enumerate(checked.attacks):
            if attack.epsilon <= self.claim.epsilon:
                broken = np.flatnonzero(survived[: self.count] & ~checked.survived[number])
                survived[broken], adversarial[broken] = False, checked.adversarial[number][broken]
                predictions[broken] = checked.predictions[number][broken]
        return WorstCase(survived, adversarial, predictions)

    @property
    def allowed_shortfall(self) -> float:
        """By how much the measured robust accuracy may be below the claimed one."""
        if self.evidence is None:
            return self.budget.claim_tolerance + 2 * standard_error(self.worst_case.survived)
        return self.budget.claim_tolerance

    @property
    def falls(self) -> bool:
        """Whether fewer images survive than are claimed."""
        return self.claim.robust_accuracy - float(self.worst_case.survived.mean()) > self.allowed_shortfall


def standard_error(outcomes: np.ndarray) -> float:
    """Return the standard error of a share, sqrt(p (1 - p) / N)."""
    share = float(np.mean(outcomes))
    return math.sqrt(share * (1 - share) / len(outcomes))
