"""What the checks of an audit read: the model, the images, the claim, and measurements that are made once."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

from keras_rcl.attacks.estimated_gradient import with_estimated_gradient
from keras_rcl.attacks.surrogates import logit_margin
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.checks.counting import Comparison, Sample, Verdict
from keras_rcl.evaluation.robustness import Evaluator, Survival
from keras_rcl.runtime.gradients import operation_without_gradient
from keras_rcl.runtime.progress import Progress
from keras_rcl.storage.journal import Journal
from keras_rcl.vocabulary.attacks import (
    BIM,
    FGSM,
    PGD,
    Attack,
    Embedding,
    Noise,
    RayS,
    Square,
    Transfer,
)
from keras_rcl.vocabulary.claim import AuditBudget, Claim
from keras_rcl.vocabulary.threat import LARGEST_LENGTH, length_of_ones

Status = Literal["passed", "raised", "not run"]

WHITE_BOX = ("fgsm", "pgd", "more steps", "restarts", "margin")
"""The names of the attacks through the classifier at the claim's epsilon."""

ESTIMATED = "finite differences"
"""The name of the model itself as the source of attacks along an estimated gradient."""
DRAWS = 32
"""The number of directions of each estimated gradient."""


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
        doubts: What says that `logits` do not read images as the model was trained, one sentence each. If it is not
            given, the audit looks for such signs itself.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Subject(logits=lambda images: images[:, 0, 0, :]).probabilities
        False
    """

    logits: Callable
    embedding: Callable | None = None
    probabilities: bool = False
    others: dict[str, Callable] = dataclasses.field(default_factory=dict)
    doubts: tuple[str, ...] | None = None


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


class Attempt(NamedTuple):
    """The outcome of attacks on some of the images.

    Attributes:
        positions: [m], of the attacked images.
        survival: Their survival table; None if no image was left to attack.
    """

    positions: np.ndarray
    survival: Survival | None


class WorstCase(NamedTuple):
    """The outcome of each attacked image under the verifier and the attacks of the checks within the ball.

    Attributes:
        survived: [n] bool.
        adversarial: [n, H, W, C], the image that broke it, or the verifier's last.
        predictions: [n], the classes of `adversarial`.
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
        sample: The images that were attacked, if not all are.
        verifier_alone: Leave out the attacks of the checks, which the verdict does not depend on.
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
    sample: Sample | None = None
    verifier_alone: bool = False

    def with_sample(self, sample: Sample | None, verifier_alone: bool) -> "Context":
        """The same audit with more images attacked; measurements that do not depend on them are kept."""
        other = copy.copy(self)
        kept = {name: value for name, value in vars(self).items() if name not in ("measured", "worst_case", "left")}
        if verifier_alone != self.verifier_alone:
            kept.pop("checked", None)
        vars(other).clear()
        vars(other).update(kept, sample=sample, verifier_alone=verifier_alone)
        return other

    @property
    def positions(self) -> np.ndarray:
        """[n], the positions of the attacked images."""
        return np.arange(len(self.images)) if self.sample is None else self.sample.positions

    @property
    def complete(self) -> bool:
        """Whether all images are attacked."""
        return len(self.positions) == len(self.images)

    @property
    def clean_accuracy(self) -> float:
        """The share of all images that are classified correctly."""
        return self.measured.clean_accuracy if self.sample is None else float(self.sample.clean.mean())

    @property
    def count(self) -> int:
        """The number of images that the checks run on, the first of all."""
        return min(self.budget.num_images, len(self.images))

    @functools.cached_property
    def logits(self) -> Callable:
        """Images -> float32 logits, finite: clipped to a quarter of float32's range."""
        largest = np.finfo(np.float32).max / 4
        return tf.function(
            lambda x: tf.clip_by_value(tf.cast(self.subject.logits(x), tf.float32), -largest, largest),
            autograph=False,
            reduce_retracing=True,
        )

    # The model by itself.

    @property
    def num_classes(self) -> int:
        """The number of the model's classes."""
        return int(self.logits(self.images[:1]).shape[1])

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
        try:
            gradient = tape.gradient(loss, x)
        except LookupError as error:
            if operation_without_gradient(error) is None:
                raise
            return None
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
        pgd = PGD(**ball, num_steps=budget.num_steps)
        attacks |= {
            f"transfer {name}": Transfer(source=name, attack=dataclasses.replace(pgd, loss="logit_margin"))
            for name in self.subject.others
        }
        if not self.differentiable:
            return attacks
        largest = min(length_of_ones(self.images[0].size, claim.norm), LARGEST_LENGTH[claim.norm])
        attacks |= {
            "epsilon 0": BIM(norm=claim.norm, epsilon=0.0, num_steps=2, step_size=1 / 255),
            "fgsm": FGSM(**ball),
            "half": pgd.with_epsilon(claim.epsilon / 2),
            "pgd": pgd,
            "double": pgd.with_epsilon(min(2 * claim.epsilon, largest)),
            "largest": dataclasses.replace(
                pgd.with_epsilon(largest), loss="logit_margin", num_restarts=budget.num_restarts
            ),
            "more steps": dataclasses.replace(pgd, num_steps=2 * budget.num_steps),
            "restarts": dataclasses.replace(pgd, num_restarts=budget.num_restarts),
            "margin": dataclasses.replace(pgd, num_steps=2 * budget.num_steps, loss="logit_margin"),
        }
        if self.subject.embedding is not None:
            attacks["embedding"] = Embedding(**ball, num_steps=2 * budget.num_steps)
        return attacks

    def _attacked_function(self, attack: Attack) -> Callable:
        """The function of images that an attack reads."""
        if attack.proxy == ESTIMATED:
            radius = self.claim.epsilon / 2 or 1 / 255
            radius /= length_of_ones(self.images[0].size, self.claim.norm)
            return with_estimated_gradient(self.logits, radius, DRAWS, self.seed)
        if attack.target_output == "embedding" and attack.proxy is None:
            assert self.subject.embedding is not None
            return self.subject.embedding
        return self.subject.logits if attack.proxy is None else self.subject.others[attack.proxy]

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """What attacks the model; all attacks of the audit share its graphs."""
        return Evaluator(self.subject.logits, (), batch_size=self.batch_size, outputs=self._attacked_function)

    def evaluate(self, attacks: tuple[Attack, ...], chosen: slice | np.ndarray, seed: int | None = None) -> Survival:
        """Attack the chosen images. The journal returns batches in the order in which they were stored."""
        evaluator = self.evaluator.with_attacks(attacks, self.seed if seed is None else seed)
        return evaluator(
            self.images[chosen], self.labels[chosen], keep_images=True, progress=self.progress, journal=self.journal
        )

    @functools.cached_property
    def checked(self) -> Survival:
        """The survival table of the checks' attacks on the first images."""
        attacks = () if self.verifier_alone else tuple(self.attacks.values())
        return self.evaluate(attacks, slice(0, self.count))

    def survivors(self, *names: str) -> np.ndarray:
        """[n] bool: which of the checks' images survive all attacks of these names."""
        attacks = list(self.attacks)
        return self.checked.survived[[attacks.index(name) for name in names]].all(axis=0)

    def exceeds_tolerance(self, share: float) -> bool:
        """Whether a share of the checks' images is larger than the tolerance and more than one image."""
        return bool(share > self.budget.tolerance and round(share * self.count) > 1)

    @functools.cached_property
    def left(self) -> np.ndarray:
        """[n] bool: which of the checks' images survive the verifier. A check is raised for these alone."""
        return self.measured.survived[0][: self.count]

    @functools.cached_property
    def stronger(self) -> Attempt:
        """The verifier with twice the steps and queries and other random numbers, on the checks' images that it left.

        Of an ensemble, members that minimise the distance are left out: they take longest and rarely decide.
        """
        members = self.verifier.members
        chosen = [one for one in members if len(members) == 1 or one.name not in ("fab", "cw")]
        return self._attempt(tuple(_strengthened(member) for member in chosen), self.seed + 1)

    @functools.cached_property
    def estimated(self) -> Attempt:
        """PGD along an estimated gradient, on the checks' images that the verifier left."""
        claim, budget = self.claim, self.budget
        pgd = PGD(
            norm=claim.norm,
            epsilon=claim.epsilon,
            num_steps=budget.num_steps,
            num_restarts=2,
            loss="logit_margin",
        )
        return self._attempt((Transfer(source=ESTIMATED, attack=pgd),), self.seed)

    def _attempt(self, attacks: tuple[Attack, ...], seed: int) -> Attempt:
        positions = np.flatnonzero(self.left & (not self.randomised))
        return Attempt(positions, self.evaluate(attacks, positions, seed) if len(positions) else None)

    def broken_by(self, attempt: Attempt) -> np.ndarray:
        """[n] bool: which of the checks' images an attempt broke."""
        broken = np.zeros(self.count, bool)
        if attempt.survival is not None:
            broken[attempt.positions] = ~attempt.survival.survived.all(axis=0)
        return broken

    # The claim.

    @functools.cached_property
    def verifier(self) -> Attack:
        """The attack that the claimed number is compared with.

        Raises:
            InvalidInputError: If the one that was given is not defined for the model.
        """
        verifier = self.budget.resolved_verifier(self.claim, self.randomised, self.num_classes, self.differentiable)
        for member in verifier.members:
            if member.proxy is not None and member.proxy not in self.subject.others:
                raise InvalidInputError(
                    f"verifier {member.label}: {member.proxy} was not given; give it with --transfer-from as well"
                )
            known = member.target_output == "embedding" and self.subject.embedding is not None
            if member.target_output != "logits" and not known:
                raise InvalidInputError(
                    f"verifier {member.label} reads the {member.target_output}, which the audited model does not "
                    "return; use autoattack or pgd"
                )
        return verifier

    @functools.cached_property
    def measured(self) -> Survival:
        """The survival table of the verifier on the attacked images.

        If these are all, it is made after `checked`, as a journal stores them.
        """
        if self.sample is not None:
            return self.sample.table
        _ = self.checked
        return self.evaluate((self.verifier,), slice(None))

    def _outcomes(self) -> Iterator[tuple[np.ndarray, Survival, int]]:
        """Positions, table and row of each attack of the checks within the claim's ball."""
        if self.verifier_alone:
            return
        attempts = [Attempt(np.arange(self.count), self.checked), self.stronger, self.estimated]
        for positions, survival in attempts:
            if survival is not None:
                for number, attack in enumerate(survival.attacks):
                    if attack.epsilon <= self.claim.epsilon:
                        yield positions, survival, number

    def adversarial_pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images and adversarial images within the claim's ball, of the verifier and of the checks."""
        everything = self.positions, self.measured, 0
        for positions, survival, number in itertools.chain([everything], self._outcomes()):
            assert survival.adversarial is not None
            yield self.images[positions], survival.adversarial[number]

    @functools.cached_property
    def worst_case(self) -> WorstCase:
        """Each attacked image under the verifier and all attacks of the checks within the claim's ball."""
        survived = self.measured.survived[0].copy()
        assert self.measured.adversarial is not None
        adversarial, predictions = self.measured.adversarial[0].copy(), self.measured.predictions[0].copy()
        for positions, survival, number in self._outcomes():
            assert survival.adversarial is not None
            rows = np.flatnonzero(survived[positions] & ~survival.survived[number])
            broken = positions[rows]
            survived[broken], adversarial[broken] = False, survival.adversarial[number][rows]
            predictions[broken] = survival.predictions[number][rows]
        return WorstCase(survived, adversarial, predictions)

    @property
    def robust_accuracy(self) -> float:
        """The share of attacked images that survive the worst case."""
        return float(self.worst_case.survived.mean())

    @property
    def surviving(self) -> tuple[int, int, int]:
        """How many of all images survive: at least, most likely, and at most. The same if all are attacked."""
        survived = self.worst_case.survived
        if self.sample is None:
            return (int(survived.sum()),) * 3
        return self.sample.possible(survived, self.count)

    def compared(self, survivors: int) -> Comparison:
        """The claim beside a number of survivors of all images."""
        return Comparison(survivors, len(self.images), self.claim, self.budget, self.evidence is not None)

    @property
    def comparison(self) -> Comparison:
        """The claim beside the number of survivors, or the most likely one."""
        return self.compared(self.surviving[1])

    @property
    def possible_verdicts(self) -> set[Verdict]:
        """The verdicts by the numbers alone, for the smallest and the largest number of survivors."""
        low, _, high = self.surviving
        return {self.compared(low).verdict, self.compared(high).verdict}

    @property
    def interval(self) -> tuple[float, float]:
        """The exact interval of the robust accuracy for images like these; of a sample, that of all images."""
        if self.complete:
            return self.comparison.interval
        low, _, high = self.surviving
        return low / len(self.images), high / len(self.images)

    @property
    def counterexamples(self) -> np.ndarray:
        """[n] bool: the broken images that the claim counts, or may count, as robust."""
        broken = self.measured.clean & ~self.worst_case.survived
        return broken if self.evidence is None else broken & self.evidence.survived[self.positions]

    @property
    def falls(self) -> bool:
        """Whether fewer images survive than are claimed, with counterexamples."""
        return self.comparison.contradicted and bool(self.counterexamples.any())


def _strengthened(attack: Attack) -> Attack:
    """The attack with twice the steps, or twice the queries, or twice the restarts."""
    if isinstance(attack, Transfer):
        return dataclasses.replace(attack, attack=_strengthened(attack.attack))
    fields = {field.name for field in dataclasses.fields(attack)}
    doubled = next((name for name in ("num_steps", "num_queries", "num_restarts") if name in fields), None)
    return attack if doubled is None else dataclasses.replace(attack, **{doubled: 2 * getattr(attack, doubled)})
