"""The audit of a robustness claim: the evaluation checklist, and the number that an honest attack gives.

Sources: Carlini et al. 2019, "On Evaluating Adversarial Robustness" (the checklist); Athalye et al. 2018 (gradient
masking); Croce and Hein 2020 and the flags of their code (randomised, dynamic, softmax output, Square ahead of APGD).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

from keras_rcl.attacks import check_images
from keras_rcl.attacks.surrogates import logit_margin
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.robustness import Evaluator, Survival
from keras_rcl.runtime.progress import Progress, Silent
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
    describe,
)
from keras_rcl.vocabulary.claim import AuditBudget, Claim
from keras_rcl.vocabulary.threat import PROTOCOLS

Status = Literal["passed", "raised", "not run"]
Verdict = Literal["stands", "falls", "not shown"]

SATURATED, GRID = 1e-6, 21


class Check(NamedTuple):
    """What a check that is raised means and what to do; `blocks`: with it raised, no claim is taken as shown."""

    meaning: str
    remedy: str
    blocks: bool = True


CHECKS: dict[str, Check] = {
    "logits": Check(
        "The output is already a softmax. Cross-entropy applies another one, whose gradient all but vanishes: the "
        "attack, and not the defence, is weak.",
        "Attack the logits, or the logarithm of the probabilities, as this audit does.",
        blocks=False,
    ),
    "deterministic": Check(
        "The model answers the same image differently from call to call: it is random or changes with use. One "
        "gradient is then a sample, and an attack that follows it climbs noise.",
        "Average gradients over draws (AutoAttack's version `rand`) and report the accuracy expected over draws.",
    ),
    "per image": Check(
        "The answer to an image depends on the others in its batch, as with BatchNormalization in training mode.",
        "Serve and attack the model in inference mode.",
    ),
    "gradients": Check(
        "Gradients of the logit margin are zero, not finite or absent on many images: they are masked, as by rounding, "
        "JPEG or a clipped input, and gradient attacks stand still.",
        "Attack through a differentiable stand-in for the layer (BPDA), and believe black-box attacks first.",
    ),
    "saturation": Check(
        "The cross-entropy of many images is so small that its gradient vanishes in float32, though the logits have "
        "one: they are scaled so high that attacks on the cross-entropy are blind.",
        "Attack a loss that has no scale, the logit margin or DLR, as AutoAttack does.",
        blocks=False,
    ),
    "loss surface": Check(
        "On many images a random step raises the margin more than a step along the gradient: the loss is shattered, "
        "and its gradient does not lead anywhere.",
        "Believe black-box attacks; look for rounding, random or discontinuous layers.",
    ),
    "epsilon 0": Check(
        "With epsilon 0 the attack's outcome is not the clean one: images are changed on the way, or the model is not "
        "a function.",
        "Make attack and model see the same pixels in [0, 1], with all preprocessing inside the model.",
    ),
    "ball and box": Check(
        "Adversarial images lie outside the ball or outside [0, 1]: another threat model was measured than is claimed.",
        "Project on the ball and then on the box, in pixels; count the images again.",
    ),
    "monotone": Check(
        "A larger epsilon fells fewer images, though its ball holds the smaller one: the attack fails for reasons of "
        "its own.",
        "Tune step size and restarts until robust accuracy falls with epsilon.",
    ),
    "large epsilon": Check(
        "Images survive an epsilon at which every image may become any other: the attack is stuck, the mark of "
        "masked gradients.",
        "Find what stops it before believing any smaller epsilon.",
    ),
    "iterative": Check(
        "A single step fells images that survive many: the loss is not smooth enough for the steps to add up.",
        "Believe neither; use black-box attacks and smaller steps.",
    ),
    "converged": Check(
        "Twice the steps, or restarts, fell further images: the attack had not converged.",
        "Raise steps and restarts until nothing changes.",
    ),
    "black box": Check(
        "An attack without gradients fells images that survive all with gradients: gradients are masked.",
        "Believe the black-box attack's number as an upper bound, and look for what masks the gradients.",
    ),
    "noise": Check(
        "Random noise fells images that survive all gradient attacks, which should be far stronger.",
        "The gradient attacks are broken for this model; find out why.",
    ),
    "transfer": Check(
        "Images crafted on another model fell this one where attacks on itself do not: its own gradients mislead.",
        "Report the worst case over both, and look for what masks the gradients.",
    ),
    "embedding": Check(
        "An attack on the embedding, which knows nothing of the classifier, fells what attacks through the classifier "
        "do not: the head through which the gradient flows is stale, or hides the way.",
        "Retrain the head on the encoder that is served, and attack the two together.",
    ),
    "record": Check(
        "The record does not fit the model: outcomes recomputed from its images differ from what it counts, as where "
        "success was looked for before the last step.",
        "Count an image as robust only if the image that the attack returns is classified correctly.",
    ),
    "protocol": Check(
        "The claim was measured in other coordinates than pixels, as on normalised images: its epsilon is "
        "smaller in pixels, or its images were clamped elsewhere.",
        "State epsilon in [0, 1] pixels and attack with the normalisation inside the model.",
    ),
    "claimed number": Check(
        "The verifier leaves fewer images right than are claimed to be robust.",
        "Report its number; the images that fell are beside this audit.",
    ),
}
"""Every check by name, in the order of the report."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found: its `status`, what raised it or how it passed, and the figures that it is read from."""

    check: str
    status: Status
    because: str
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model under audit.

    logits: images [N, H, W, C] in [0, 1] -> [N, K], as they are served. embedding: images -> [N, D], where it has one.
    probabilities: its output was a softmax, of which `logits` are the logarithm. others: name -> logits of models to
    transfer attacks from.
    """

    logits: Callable
    embedding: Callable | None = None
    probabilities: bool = False
    others: dict[str, Callable] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a result record says of the audited images.

    clean, survived: [N] bool, right before, and after, all its attacks of the claim's threat model. protocol: that it
    names. same_model: whether its hash is the model's. attacked: for each attack whose images are kept, those images
    [N, H, W, C] and whether it counts them as robust, [N] bool. largest_distance: in pixels, where it says so.
    """

    clean: np.ndarray
    survived: np.ndarray
    protocol: str = "pixel"
    same_model: bool = True
    attacked: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    largest_distance: float | None = None


@dataclasses.dataclass(frozen=True)
class Audit:
    """The verdict on a claim, and all that it rests on.

    findings: one a check. measured: the survival table of the verifier on all images; checked: that of the checks on
    the first of them. counterexamples: positions of the images that the claim counts as robust, or may, and that fell;
    with `adversarial` [N, H, W, C] what felled them, and `predictions` [N] as what. surface: logit
    margin [GRID, GRID] of one image, along its
    gradient's sign (rows) and a random sign (columns), from -epsilon to epsilon.
    """

    claim: Claim
    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    measured: Survival
    checked: Survival
    counterexamples: np.ndarray
    adversarial: np.ndarray
    predictions: np.ndarray
    surface: np.ndarray


def audit(
    subject: Subject,
    images: np.ndarray,
    labels: np.ndarray,
    claim: Claim,
    *,
    evidence: Evidence | None = None,
    budget: AuditBudget = AuditBudget(),  # noqa: B008  a frozen value
    batch_size: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> Audit:
    """Audit a claim on images [N, H, W, C] in [0, 1] with labels [N]; attacks that the journal holds are read from it.

    Verdict: `falls` where fewer images survive the verifier than are claimed, beyond `claim_tolerance` on the same
    images, or beyond two standard errors of a share of N images where the claim names none; `not shown` where a
    finding that blocks is raised; else `stands`.

    Raises:
        InvalidInputError: if there are no images, or they are none in [0, 1].
    """
    check_images(images)
    if not len(images):
        raise InvalidInputError("no images to audit; choose another part or a higher limit")
    labels = np.asarray(labels, np.int32)
    auditor = _Auditor(subject, images, labels, claim, evidence, budget, batch_size, seed, journal)
    return auditor.run(progress or Silent())


class _Auditor:
    """One audit, while it is made."""

    def __init__(self, subject, images, labels, claim, evidence, budget, batch_size, seed, journal):
        self.subject, self.claim, self.evidence, self.budget = subject, claim, evidence, budget
        self.images, self.labels = images, labels
        self.batch_size, self.seed, self.journal = batch_size, seed, journal
        self.count = min(budget.num_images, len(images))
        largest = np.finfo(np.float32).max / 4
        self.logits = tf.function(
            lambda x: tf.clip_by_value(tf.cast(subject.logits(x), tf.float32), -largest, largest), autograph=False
        )
        self.findings: list[Finding] = []

    def note(self, check: str, raised: bool, because: str, **figures: float) -> bool:
        figures = {name: float(value) for name, value in figures.items()}
        self.findings.append(Finding(check, "raised" if raised else "passed", because, figures))
        return raised

    def skip(self, check: str, because: str) -> None:
        self.findings.append(Finding(check, "not run", because))

    def run(self, progress: Progress) -> Audit:
        self.check_output()
        randomised = self.check_function()
        self.differentiable = self.check_gradients()
        self.checked = self.evaluate(self.attacks(), slice(0, self.count), progress)
        self.check_attacks()
        verifier = self.verifier(randomised)
        self.measured = self.evaluate((verifier,), slice(None), progress)
        falls, reason = self.check_claim(verifier)
        self.check_record(falls)
        self.check_protocol(falls, progress)
        self.check_ball()
        blocking = [f.check for f in self.findings if f.status == "raised" and CHECKS[f.check].blocks]
        blocking = [check for check in blocking if check != "claimed number"]
        if falls:
            verdict = "falls"
        elif blocking:
            verdict, reason = "not shown", f"{reason}; but {', '.join(blocking)} was raised, so it may be lower still"
        else:
            verdict = "stands"
        fell = self.measured.clean & ~self.survived
        if self.evidence is not None:
            fell &= self.evidence.survived
        counterexamples = np.flatnonzero(fell) if falls else np.zeros(0, int)
        order = list(CHECKS)
        return Audit(
            claim=self.claim,
            verdict=verdict,
            reason=reason,
            findings=tuple(sorted(self.findings, key=lambda finding: order.index(finding.check))),
            measured=self.measured,
            checked=self.checked,
            counterexamples=counterexamples,
            adversarial=self.adversarial[counterexamples],
            predictions=self.predictions[counterexamples],
            surface=self.surface(),
        )

    # The model by itself.

    def check_output(self) -> None:
        """Whether what it gives are logits."""
        values = self.logits(self.images[: self.count]).numpy()
        softmax = bool(np.all(values >= 0) and np.allclose(values.sum(axis=1), 1.0, rtol=0, atol=2e-3))
        if softmax:
            because = "its rows, given as logits, are non-negative and sum to 1"
        elif self.subject.probabilities:
            because = "it gives probabilities; this audit attacks their logarithm"
        else:
            because = "its rows are no probabilities"
        self.note("logits", softmax or self.subject.probabilities, because)

    def check_function(self) -> bool:
        """Whether it is a function of each image alone; returns whether it is random or changes with use."""
        images = self.images[: min(self.count, 32)]
        first = self.logits(images).numpy()
        scale = max(1e-12, float(np.abs(first).max()))
        again = [np.abs(self.logits(images).numpy() - first).max() / scale for _ in range(4)]
        changes = float(max(again))
        randomised = self.note(
            "deterministic",
            changes > 1e-4,
            f"five answers to the same images differ by up to {changes:.2g} of the largest logit",
            largest_difference=changes,
        )
        if randomised:
            self.skip("per image", "the model is random, so neighbours cannot be told from chance")
            return True
        reversed_ = self.logits(images[::-1]).numpy()[::-1]
        # The same image beside copies of itself: a batch of other statistics, and of the same size.
        alone = np.stack([self.logits(np.repeat(image[None], len(images), axis=0)).numpy()[0] for image in images[:4]])
        difference = max(np.abs(reversed_ - first).max(), np.abs(alone - first[:4]).max()) / scale
        self.note(
            "per image",
            difference > 1e-3,
            f"with other neighbours in the batch an answer moves by up to {difference:.2g} of the largest logit",
            largest_difference=difference,
        )
        return False

    def gradient(self, loss_name: str, images: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """d loss / d pixels [N, H, W, C], of the cross-entropy or of the logit margin; None where there is none."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            x = tf.constant(images)
            tape.watch(x)
            logits = tf.cast(self.subject.logits(x), tf.float32)
            if loss_name == "cross_entropy":
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            else:
                loss = logit_margin(labels, logits)
        found = tape.gradient(loss, x)
        return None if found is None else found.numpy()

    def check_gradients(self) -> bool:
        """Whether gradients are there, finite, not zero and lead up; returns whether there are any."""
        images, labels = self.images[: self.count], self.labels[: self.count]
        margins = self.gradient("logit_margin", images, labels)
        if margins is None:
            self.note("gradients", True, "no gradient at all reaches the pixels", share_of_images=1.0)
            for check in ("saturation", "loss surface"):
                self.skip(check, "no gradient reaches the pixels")
            self.direction = np.zeros_like(images)
            return False
        self.direction = np.sign(np.where(np.isfinite(margins), margins, 0))
        dead = ~np.isfinite(margins).all(axis=(1, 2, 3)) | (margins == 0).all(axis=(1, 2, 3))
        zeros = float(np.mean((margins == 0) | ~np.isfinite(margins)))
        self.note(
            "gradients",
            self.many(dead.mean()),
            f"the margin's gradient is zero or not finite on {dead.mean():.1%} of images, {zeros:.1%} of pixels",
            share_of_images=dead.mean(),
            share_of_pixels=zeros,
        )
        entropy = self.gradient("cross_entropy", images, labels)
        size = np.abs(entropy).max(axis=(1, 2, 3)), np.abs(margins).max(axis=(1, 2, 3))
        blind = (size[0] <= SATURATED * size[1]) & (size[1] > 0)
        self.note(
            "saturation",
            blind.mean() > 0.5,
            f"the cross-entropy's gradient is below {SATURATED:g} of the margin's on {blind.mean():.1%} of the images",
            share_of_images=blind.mean(),
        )
        step = min(self.claim.epsilon, 8 / 255) / 4 if self.claim.norm == "linf" else 1 / 255
        signs = np.sign(np.random.default_rng(self.seed).uniform(-1, 1, images.shape)).astype(np.float32)
        along, across = (
            logit_margin(labels, self.logits(np.clip(images + step * d, 0, 1).astype(np.float32))).numpy()
            for d in (self.direction, signs)
        )
        astray = ~dead & (across > along)
        self.note(
            "loss surface",
            astray.mean() > 0.1,
            f"a random step of {step * 255:.2g}/255 climbs higher than the gradient's on {astray.mean():.1%} of images",
            share_of_images=astray.mean(),
        )
        return True

    def surface(self) -> np.ndarray:
        """The logit margin around the first image that is right, over two directions."""
        right = np.flatnonzero(self.checked.clean)
        index = int(right[0]) if len(right) else 0
        image, label = self.images[index], self.labels[index]
        across = np.sign(np.random.default_rng(self.seed + 1).uniform(-1, 1, image.shape))
        step = self.claim.epsilon if self.claim.norm == "linf" else self.claim.epsilon / math.sqrt(image.size)
        ticks = np.linspace(-1, 1, GRID) * step
        rows = [
            np.clip([image + a * self.direction[index] + b * across for b in ticks], 0, 1).astype(np.float32)
            for a in ticks
        ]
        return np.stack([logit_margin(np.full(GRID, label), self.logits(row)).numpy() for row in rows])

    # The attacks beside one another.

    def attacks(self) -> tuple[Attack, ...]:
        """What the checks compare, by the names that `survived_by` finds them under."""
        ball, budget = dict(norm=self.claim.norm, epsilon=self.claim.epsilon), self.budget
        pgd = PGD(**ball, num_steps=budget.num_steps)
        kinds = ("uniform", "gaussian", "salt_and_pepper")
        self.names = {f"noise {kind}": Noise(**ball, kind=kind, num_restarts=budget.num_draws) for kind in kinds}
        self.names["square"] = Square(**ball, num_queries=budget.num_queries)
        if self.claim.norm == "linf":
            self.names["rays"] = RayS(**ball, num_queries=budget.num_queries)
        if self.differentiable:
            largest = 1.0 if self.claim.norm == "linf" else math.sqrt(self.images[0].size)
            self.names |= {
                "epsilon 0": BIM(norm=self.claim.norm, epsilon=0.0, num_steps=2, step_size=1 / 255),
                "fgsm": FGSM(**ball),
                "half": pgd.with_epsilon(self.claim.epsilon / 2),
                "pgd": pgd,
                "double": pgd.with_epsilon(min(2 * self.claim.epsilon, largest)),
                "largest": dataclasses.replace(pgd.with_epsilon(largest), loss="logit_margin"),
                "more steps": dataclasses.replace(pgd, num_steps=2 * budget.num_steps),
                "restarts": dataclasses.replace(pgd, num_restarts=budget.num_restarts),
                "margin": dataclasses.replace(pgd, num_steps=2 * budget.num_steps, loss="logit_margin"),
            }
            self.names |= {
                f"transfer {name}": Transfer(source=name, attack=dataclasses.replace(pgd, loss="logit_margin"))
                for name in self.subject.others
            }
            if self.subject.embedding is not None:
                self.names["embedding"] = Embedding(**ball, num_steps=2 * budget.num_steps)
        return tuple(self.names.values())

    def outputs(self, attack: Attack) -> Callable:
        """What an attack looks at."""
        if attack.target_output == "embedding":
            return self.subject.embedding
        return self.subject.logits if attack.proxy is None else self.subject.others[attack.proxy]

    def evaluate(self, attacks, chosen: slice, progress: Progress) -> Survival:
        images, labels = self.images[chosen], self.labels[chosen]
        evaluator = Evaluator(
            self.subject.logits,
            attacks,
            batch_size=min(self.batch_size, len(images)),
            seed=self.seed,
            outputs=self.outputs,
        )
        return evaluator(images, labels, keep_images=True, progress=progress, journal=self.journal)

    def survivors(self, *names: str) -> np.ndarray:
        """[n] bool: which of the checks' images survive all the attacks of these names."""
        attacks = list(self.names)
        return self.checked.survived[[attacks.index(name) for name in names]].all(axis=0)

    def many(self, share: float) -> bool:
        """Whether a share of the checks' images is more than the tolerance, and more than one image."""
        return share > self.budget.tolerance and round(share * self.count) > 1

    def compare(self, check: str, strong: tuple[str, ...], weak: tuple[str, ...], text: str) -> None:
        """Raise `check` where the attacks `weak` fell more than `tolerance` of the images that survive all `strong`."""
        left, both = self.survivors(*strong), self.survivors(*strong, *weak)
        share = (left.sum() - both.sum()) / self.count
        self.note(
            check,
            self.many(share),
            text.format(share=f"{share:.1%}", strong=f"{left.mean():.1%}", weak=f"{self.survivors(*weak).mean():.1%}"),
            share_of_images=share,
        )

    def check_attacks(self) -> None:
        """Every check that compares attacks."""
        noises = tuple(name for name in self.names if name.startswith("noise"))
        others = tuple(name for name in self.names if name.startswith("transfer"))
        black_box = tuple(name for name in ("square", "rays") if name in self.names)
        if not self.differentiable:
            compared = ("epsilon 0", "monotone", "large epsilon", "iterative", "converged", "black box", "noise")
            for check in (*compared, "transfer", "embedding"):
                self.skip(check, "no gradient reaches the pixels, so there is no white-box attack to compare with")
            return
        changed = self.survivors("epsilon 0") != self.checked.clean
        self.note(
            "epsilon 0",
            bool(changed.any()),
            f"with epsilon 0, {int(changed.sum())} of {self.count} outcomes differ from the clean ones",
            share_of_images=changed.mean(),
        )
        shares = [float(self.survivors(name).mean()) for name in ("half", "pgd", "double", "largest")]
        rises = max(0.0, *np.diff(shares))
        self.note(
            "monotone",
            self.many(rises),
            "robust accuracy at half, once and twice epsilon and at the largest: "
            + ", ".join(f"{share:.1%}" for share in shares),
            largest_rise=rises,
        )
        self.note(
            "large epsilon",
            self.many(shares[-1]),
            f"{shares[-1]:.1%} survive an epsilon as wide as the box",
            robust_accuracy=shares[-1],
        )
        steps = self.budget.num_steps
        self.compare(
            "iterative",
            ("pgd", "more steps"),
            ("fgsm",),
            f"FGSM fells {{share}} that PGD-{steps} and PGD-{2 * steps} leave ({{weak}} survive it, {{strong}} them)",
        )
        self.compare(
            "converged",
            ("pgd", "margin"),
            ("more steps", "restarts"),
            f"twice the steps and {self.budget.num_restarts} restarts fell {{share}} that PGD-{steps} on cross-entropy "
            f"and PGD-{2 * steps} on the margin leave",
        )
        white_box = ("fgsm", "pgd", "more steps", "restarts", "margin")
        text = "{share} of the images survive all gradient attacks ({strong} do) and fall to "
        self.compare("black box", white_box, black_box, text + " or ".join(black_box))
        self.compare("noise", white_box, noises, text + "noise")
        if others:
            self.compare("transfer", white_box, others, text + "images crafted on another model")
        else:
            self.skip("transfer", "no other model was given; name one with --transfer-from")
        if "embedding" not in self.names:
            self.skip("embedding", "the model offers no embedding")
            return
        through_head, through_embedding = self.survivors(*white_box), self.survivors("embedding")
        missed = (through_head & ~through_embedding).mean()
        self.note(
            "embedding",
            self.many(missed),
            f"{missed:.1%} of the images survive all attacks through the classifier ({through_head.mean():.1%} do) and "
            f"fall to one on the embedding ({through_embedding.mean():.1%} survive it)",
            robust_accuracy=through_embedding.mean(),
            share_missed_through_the_classifier=missed,
        )

    # The claim.

    def verifier(self, randomised: bool) -> Attack:
        if not self.differentiable:
            return Square(norm=self.claim.norm, epsilon=self.claim.epsilon)
        if self.logits(self.images[:1]).shape[1] < 4:
            return AutoPGD(norm=self.claim.norm, epsilon=self.claim.epsilon, num_restarts=5)
        return self.budget.resolved_verifier(self.claim, randomised)

    def check_claim(self, verifier: Attack) -> tuple[bool, str]:
        """Hold the claim against the verifier and all other attacks; returns whether it falls, and why."""
        survived = self.survived = self.measured.survived[0].copy()
        self.adversarial, self.predictions = self.measured.adversarial[0].copy(), self.measured.predictions[0].copy()
        for number, attack in enumerate(self.checked.attacks):
            if attack.epsilon <= self.claim.epsilon:  # what fell to any attack within the ball is not robust
                fell = np.flatnonzero(survived[: self.count] & ~self.checked.survived[number])
                survived[fell], self.adversarial[fell] = False, self.checked.adversarial[number][fell]
                self.predictions[fell] = self.checked.predictions[number][fell]
        found, claimed = float(survived.mean()), self.claim.robust_accuracy
        if self.evidence is None:
            allowed = self.budget.claim_tolerance + 2 * _error(survived)
        else:
            allowed = self.budget.claim_tolerance
        falls = claimed - found > allowed
        reason = f"{claimed:.1%} claimed, {found:.1%} of {len(survived)} images survive {describe(verifier)}"
        reason += " and the checks' attacks"
        self.note("claimed number", falls, reason, claimed=claimed, measured=found, allowed=allowed)
        return falls, reason

    def check_record(self, falls: bool) -> None:
        """What a record says, against what its images and its model say."""
        if self.evidence is None:
            self.skip("record", "the claim is a number, with no record of outcomes")
            return
        wrong = []
        if not self.evidence.same_model:
            wrong.append("its model hash is another one")
        clean = float(np.mean(self.evidence.clean != self.measured.clean))
        if clean > self.budget.claim_tolerance:
            wrong.append(f"{clean:.1%} of the clean outcomes are others")
        miscounted = 0
        for images, survived in self.evidence.attacked:
            predicted = np.concatenate(
                [
                    np.argmax(self.logits(images[start : start + self.batch_size]), axis=1)
                    for start in range(0, len(images), self.batch_size)
                ]
            )
            miscounted += int(np.sum((predicted == self.labels) != survived))
        checked = sum(len(survived) for _, survived in self.evidence.attacked)
        if miscounted > self.budget.claim_tolerance * checked:
            wrong.append(
                f"{miscounted} of its {checked} adversarial images are counted the other way than they are classified"
            )
        fits = f"its clean outcomes and its {checked} kept images are as it says"
        self.note("record", bool(wrong), "; ".join(wrong) or fits, miscounted=miscounted)

    def check_protocol(self, falls: bool, progress: Progress) -> None:
        """Whether the claim is of other coordinates: as its record says, or as reproduces it where it falls."""
        named = self.evidence.protocol if self.evidence is not None else "pixel"
        if named != "pixel":
            self.note("protocol", True, f"its record names the protocol {named}")
            return
        if not falls or not self.differentiable:
            self.note("protocol", False, "it is of pixels, as far as it says")
            return
        pgd = PGD(norm=self.claim.norm, epsilon=self.claim.epsilon, num_steps=self.budget.num_steps)
        protocols = [name for name in PROTOCOLS if name != "pixel"] if self.images.shape[-1] in (1, 3) else []
        attacks = tuple(dataclasses.replace(pgd, protocol=name) for name in protocols)
        survival = self.evaluate(attacks, slice(0, self.count), progress)
        found = {name: survived for name, survived in zip(protocols, survival.survived, strict=True)}
        claimed = self.claim.robust_accuracy
        matching = {
            name: survived.mean()
            for name, survived in found.items()
            if abs(survived.mean() - claimed) <= self.budget.tolerance + 2 * _error(survived)
        }
        text = ", ".join(f"{name} ({share:.1%})" for name, share in matching.items())
        self.note(
            "protocol",
            bool(matching),
            f"the claimed {claimed:.1%} is, within chance, what PGD gives in the coordinates of {text}"
            if matching
            else "no other coordinates that are known here give the claimed number",
            **{name: survived.mean() for name, survived in found.items()},
        )

    def check_ball(self) -> None:
        """Every adversarial image, of the record and of this audit, by float64 arithmetic."""
        epsilon, norm = self.claim.epsilon, self.claim.norm
        outside, seen, farthest = 0, 0, 0.0
        kept = [(self.images, images) for images, _ in (self.evidence.attacked if self.evidence is not None else ())]
        own = [(self.images, self.measured.adversarial[0])]
        own += [
            (self.images[: self.count], adversarial)
            for attack, adversarial in zip(self.checked.attacks, self.checked.adversarial, strict=True)
            if attack.epsilon <= epsilon
        ]
        for images, adversarial in (*kept, *own):
            change = adversarial.astype(np.float64) - images
            size = np.abs(change).max(axis=(1, 2, 3)) if norm == "linf" else np.sqrt((change**2).sum(axis=(1, 2, 3)))
            boxed = (adversarial.min(axis=(1, 2, 3)) >= 0) & (adversarial.max(axis=(1, 2, 3)) <= 1)
            outside += int(np.sum((size > epsilon * (1 + 1e-5) + 1e-6) | ~boxed))
            seen, farthest = seen + len(size), max(farthest, float(size.max()))
        claimed_distance = self.evidence.largest_distance if self.evidence is not None else None
        far = claimed_distance is not None and claimed_distance > epsilon * (1 + 1e-5) + 1e-6
        because = f"{outside} of {seen} adversarial images lie outside; the farthest at {farthest * 255:.4g}/255"
        if far:
            because += f"; the record itself says {claimed_distance * 255:.4g}/255"
        self.note("ball and box", outside > 0 or far, because, outside=outside, farthest=farthest)


def _error(outcomes: np.ndarray) -> float:
    """The standard error of a share, sqrt(p (1 - p) / N)."""
    share = float(np.mean(outcomes))
    return math.sqrt(share * (1 - share) / len(outcomes))
