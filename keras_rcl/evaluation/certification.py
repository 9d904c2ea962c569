"""Which images a classifier provably keeps right within a ball: attacks first, then bounds, cheap before expensive."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.attacks import check_images
from keras_rcl.bounds import Method, worst_case_margins
from keras_rcl.bounds.beta_crown import BranchAndBound
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.folding import fold
from keras_rcl.folding.numpy_forward import evaluate
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.fingerprint import Fingerprint
from keras_rcl.storage.journal import Journal, Result
from keras_rcl.vocabulary.attacks import Attack, AutoPGD
from keras_rcl.vocabulary.labels import class_labels
from keras_rcl.vocabulary.record import VerificationRow
from keras_rcl.vocabulary.threat import Norm, check_ball, format_epsilon

Status = Literal["misclassified", "unsafe", "safe-incomplete", "safe", "timeout", "unknown"]
"""The verification status of an image.

- `misclassified`: misclassified without an attack; it counts as wrong at every epsilon.
- `unsafe`: an image of its ball is misclassified, in float64 too.
- `safe-incomplete`: bounds alone prove that no image of its ball is.
- `safe`: branch and bound proves it.
- `timeout`: branch and bound did not finish in time.
- `unknown`: the requested methods do not decide it, or were not run on it.
"""

ATTACKS = (AutoPGD(), AutoPGD(loss="dlr_targeted"))
"""The attacks that run before any bound."""

COMPLETE = "branch-and-bound"
"""The method after the bounds."""

VERIFIED = ("safe-incomplete", "safe")
BROKEN = ("misclassified", "unsafe")

DEVICE = "CPU:0"
"""Where sound bounds are computed: a GPU may round products to fewer bits, or convolve by Winograd's algorithm."""

BOUND_BATCH = 20
"""The largest number of images that are bounded at once."""


@dataclasses.dataclass(frozen=True)
class Certification:
    """The verification of N images at E epsilons.

    Attributes:
        epsilons: [E].
        labels: [N].
        clean_predictions: [N].
        statuses: [E, N], each a `Status`.
        decided_by: [E, N], `attack`, a method, `float64` if the image itself is misclassified in float64, or nothing.
        margins: [E, N], the best lower bound of the least margin; minus infinity if none was computed.
        seconds: [E, N], of attack, bounds and branching; the time of a batch is divided among its images.
        counterexamples: (number of the epsilon, number of the image) -> float32 [H, W, C].
        norm: Of the balls, `linf`, `l2` or `l1`.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> inputs = keras.Input((4, 4, 1))
        >>> network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
        >>> network.layers[-1].set_weights([np.zeros((16, 2)), np.array([1.0, 0.0])])  # always class 0
        >>> images, labels = np.full((2, 4, 4, 1), 0.5, np.float32), np.array([0, 1])
        >>> certifier = keras_rcl.Certifier(network, [8 / 255], method="ibp", attacks=())
        >>> certification = certifier(images, labels)
        >>> certification.clean_predictions.tolist(), certification.margins.shape
        ([0, 0], (1, 2))
        >>> print(certification)
        2 images, clean accuracy 50.0%
        linf 8/255: robust accuracy at least 50.0% (1 misclassified, 1 safe-incomplete)
    """

    epsilons: tuple[float, ...]
    labels: np.ndarray
    clean_predictions: np.ndarray
    statuses: np.ndarray
    decided_by: np.ndarray
    margins: np.ndarray
    seconds: np.ndarray
    counterexamples: dict[tuple[int, int], np.ndarray]
    norm: Norm = "linf"

    @property
    def clean_accuracy(self) -> float:
        return float((self.clean_predictions == self.labels).mean())

    @property
    def verified_accuracy(self) -> float:
        """The share of images that are proved robust, at the largest epsilon."""
        return float(np.mean(np.isin(self.statuses[int(np.argmax(self.epsilons))], VERIFIED)))

    def rows(self) -> list[VerificationRow]:
        """Return one row per epsilon. The robust accuracy lies between `verified_accuracy` and `attacked_accuracy`."""
        return [
            {
                "norm": self.norm,
                "epsilon": epsilon,
                "clean_accuracy": self.clean_accuracy,
                "attacked_accuracy": float(np.mean(~np.isin(statuses, BROKEN))),
                "verified_accuracy": float(np.mean(np.isin(statuses, VERIFIED))),
                "counts": {status: int(np.sum(statuses == status)) for status in get_args(Status)},
                "seconds": round(float(seconds.sum()), 3),
            }
            for epsilon, statuses, seconds in zip(self.epsilons, self.statuses, self.seconds, strict=True)
        ]

    def __str__(self) -> str:
        lines = [f"{len(self.labels)} images, clean accuracy {100 * self.clean_accuracy:.1f}%"]
        for row in self.rows():
            verified, attacked = row["verified_accuracy"], row["attacked_accuracy"]
            between = "" if verified == attacked else f", at most {100 * attacked:.1f}%"
            counts = ", ".join(f"{count} {status}" for status, count in row["counts"].items() if count)
            radius = f"{self.norm} {format_epsilon(row['epsilon'], self.norm)}"
            lines.append(f"{radius}: robust accuracy at least {100 * verified:.1f}%{between} ({counts})")
        return "\n".join(lines)

    def __repr__(self) -> str:
        radii = ", ".join(format_epsilon(epsilon, self.norm) for epsilon in self.epsilons)
        return (
            f"Certification({self.norm} {radii}, images={len(self.labels)}, "
            f"verified_accuracy={self.verified_accuracy:.4g})"
        )


class Certifier:
    """Verifies images in the balls around them, cut to the pixel box.

    Each image goes from the attack to ever tighter bounds until one decides it.

    Args:
        network: functional, images [N, H, W, C] in [0, 1] -> logits [N, K] or a dict with `logits`.
        epsilons: radii in pixels.
        norm: Of the balls, `linf`, `l2` or `l1`.
        method: The most expensive one that is tried: a `Method` of the bounds, or `branch-and-bound`, which decides
            every ReLU network, given time.
        timeout: Seconds of branch and bound per image.
        attacks: run first, in the norm and at each radius; none to leave it to the bounds.
        batch_size: images attacked at once.
        count: Bound at most this many images per radius: the first that survive the attacks; the others stay `unknown`.
        seed: of the attacks.
        float64: bound in float64. Bounds hold up to the rounding of their arithmetic, which is not bounded itself.
        sound: widen every bound by a proven bound of its rounding error, so that they hold for the folded network in
            real arithmetic, see `keras_rcl.bounds.rounding`; for `linf`, on the CPU.

    Raises:
        InvalidInputError: if a layer has no bounds, a radius cannot be one in the norm, an attack does not have the
            norm, or `sound` is for another norm than `linf`.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> inputs = keras.Input((4, 4, 1))
        >>> network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
        >>> network.layers[-1].set_weights([np.zeros((16, 2)), np.array([1.0, 0.0])])  # always class 0
        >>> images, labels = np.full((2, 4, 4, 1), 0.5, np.float32), np.array([0, 1])
        >>> certifier = keras_rcl.Certifier(network, [8 / 255], method="ibp", attacks=())
        >>> certifier(images, labels).statuses.tolist()
        [['safe-incomplete', 'misclassified']]
    """

    def __init__(
        self,
        network: keras.Model,
        epsilons: Sequence[float],
        *,
        norm: Norm = "linf",
        method: str = COMPLETE,
        timeout: float = 180.0,
        attacks: Sequence[Attack] = ATTACKS,
        batch_size: int = 250,
        count: int | None = None,
        seed: int = 0,
        float64: bool = False,
        sound: bool = False,
    ):
        self.epsilons, self._dtype = tuple(epsilons), "float64" if float64 else "float32"
        self._steps = fold(network, dtype="float64")
        self._norm, self._method, self._timeout, self._count = norm, method, timeout, count
        self._sound = sound
        if sound and norm != "linf":
            raise InvalidInputError(f"sound bounds are not for {norm}; hint: use linf, or leave sound out")
        methods = (*get_args(Method), COMPLETE)
        if method not in methods:
            raise InvalidInputError(f"unknown method {method!r}; choose from {', '.join(methods)}")
        for epsilon in self.epsilons:
            check_ball(epsilon, norm, network.input_shape[1:])
        bounds = [name for name in methods[: methods.index(method) + 1] if name != COMPLETE]
        self._bounds = {name: _compiled_bound(network, name, norm, self._dtype, sound) for name in bounds}
        self._branch_and_bound = None
        if method == COMPLETE:
            self._branch_and_bound = BranchAndBound(network, norm=norm, dtype=self._dtype, sound=sound)

        def logits(images):
            outputs = network(images, training=False)
            return outputs["logits"] if isinstance(outputs, dict) else outputs

        evaluator = Evaluator(logits, (), batch_size=batch_size, seed=seed)
        self._evaluators = [
            evaluator.with_attacks([attack_within(attack, norm, epsilon) for attack in attacks], seed)
            for epsilon in self.epsilons
        ]

    def fingerprint(self, images: np.ndarray, labels: np.ndarray) -> Fingerprint:
        """What the results in a journal depend on, except for the model and the versions."""
        attacked = self._evaluators[0].fingerprint(images, labels, keep_images=True)
        settings = {
            "epsilons": list(self.epsilons),
            "method": self._method,
            "timeout": self._timeout,
            "count": self._count,
            "dtype": self._dtype,
            **({} if self._norm == "linf" else {"norm": self._norm}),  # journals of linf were written without it
            **({"sound": True} if self._sound else {}),
        }
        return dataclasses.replace(attacked, settings={**attacked.settings, **settings})

    def __call__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        progress: Progress | None = None,
        journal: Journal | None = None,
    ) -> Certification:
        """Verify images [N, H, W, C] in [0, 1] with labels [N]; with a `journal` of this fingerprint, resume it.

        Raises:
            InvalidInputError: If the images are not a batch of floats in [0, 1], or a label is outside the classes.
        """
        images = np.asarray(check_images(images), np.float32)
        labels = class_labels(labels, self._steps[-1].shape[0], count=len(images))
        progress, counterexamples = progress or Silent(), {}
        balls = []
        for number in range(len(self.epsilons)):
            balls.append(self._verify(number, images, labels, progress, journal))
            counterexamples.update({(number, index): image for index, image in balls[-1].broken.items()})
        return Certification(
            epsilons=self.epsilons,
            labels=labels,
            clean_predictions=balls[0].predictions,
            statuses=np.stack([ball.statuses for ball in balls]),
            decided_by=np.stack([ball.decided_by for ball in balls]),
            margins=np.stack([ball.margins.min(axis=1) for ball in balls]),
            seconds=np.stack([ball.seconds for ball in balls]),
            counterexamples=counterexamples,
            norm=self._norm,
        )

    def _verify(self, number: int, images, labels, progress: Progress, journal: Journal | None) -> "_Ball":
        """Attack, then run one method after the other, each on the undecided images."""
        epsilon, evaluator = self.epsilons[number], self._evaluators[number]
        where = f"{self._norm} {format_epsilon(epsilon, self._norm)}"
        survival = evaluator(images, labels, keep_images=True, progress=progress, journal=journal)
        ball = _Ball(survival.clean_predictions, labels, self._steps[-1].shape[0])
        ball.seconds[survival.clean] = survival.seconds.sum() / max(1, survival.clean.sum())
        for survived, adversarial in zip(survival.survived, survival.adversarial, strict=True):
            for index in np.setdiff1d(ball.undecided, np.flatnonzero(survived)):
                broken = self.counterexample(images[index], adversarial[index], labels[index], epsilon)
                if broken is not None:
                    ball.decide(index, "unsafe", "attack", broken)
        if self._sound:  # a class in float32 can be another one than in real arithmetic
            for index in ball.undecided:
                if (broken := self.counterexample(images[index], images[index], labels[index], epsilon)) is not None:
                    ball.decide(index, "unsafe", "float64", broken)
        ball.select(self._count)
        for method, bound in self._bounds.items():
            undecided = ball.undecided
            progress.start(f"{method} {where}", len(undecided))
            for start in range(0, len(undecided), BOUND_BATCH):
                chosen = undecided[start : start + BOUND_BATCH]
                run = functools.partial(self._run, bound, images[chosen], labels[chosen], epsilon)
                found = _piece(journal, f"{number} {method} ".encode() + chosen.tobytes(), run)
                ball.margins[chosen] = np.maximum(ball.margins[chosen], found["margins"])
                ball.seconds[chosen] += found["seconds"] / len(chosen)
                for index in chosen[ball.margins[chosen].min(axis=1) > 0]:
                    ball.decide(index, "safe-incomplete", method)
                progress.update(start + len(chosen))
            progress.finish(ball.summary())
        if self._branch_and_bound:
            undecided = ball.undecided
            progress.start(f"{COMPLETE} {where}", len(undecided))
            for done, index in enumerate(undecided, 1):
                wrong = np.flatnonzero(ball.margins[index] <= 0)
                run = functools.partial(self._branch, images[index], labels[index], epsilon, wrong)
                found = _piece(journal, f"{number} {COMPLETE} {index}".encode(), run)
                ball.margins[index, wrong] = np.maximum(ball.margins[index, wrong], found["lower"])
                ball.seconds[index] += found["seconds"]
                status = str(found["status"])
                ball.decide(index, status, COMPLETE if status != "timeout" else "", found.get("counterexample"))
                progress.update(done, ball.summary())
            progress.finish(ball.summary())
        return ball

    def _branch(self, image, label: int, epsilon: float, wrong: np.ndarray) -> Result:
        """Run branch and bound on an image."""
        check = functools.partial(self.counterexample, image, label=label, epsilon=epsilon)
        with tf.device(DEVICE if self._sound else None):
            outcome = self._branch_and_bound(image, label, epsilon, wrong=wrong, seconds=self._timeout, check=check)
        status = {True: "safe", False: "unsafe", None: "timeout"}[outcome.safe]
        found = {"status": np.array(status), "lower": np.array(outcome.lower), "seconds": np.array(outcome.seconds)}
        return found if outcome.counterexample is None else {**found, "counterexample": outcome.counterexample}

    def _run(self, bound: Callable, images, labels, epsilon: float) -> Result:
        """Margins of a batch, those of the labels infinite."""
        with tf.device(DEVICE if self._sound else None):
            bound.get_concrete_function()  # traced now, so that tracing does not count in the seconds
            started = time.perf_counter()
            margins = bound(images.astype(self._dtype), labels, np.asarray(epsilon, self._dtype)).numpy()
        np.put_along_axis(margins, labels[:, None], np.inf, axis=1)
        return {"margins": margins, "seconds": np.array(time.perf_counter() - started)}

    def counterexample(self, image, adversarial, label: int, epsilon: float) -> np.ndarray | None:
        """A float32 image of the ball that is classified otherwise in float64, near a supposed one; None if it is not.

        Args:
            image: float32 [H, W, C], the ball's center.
            adversarial: the supposed one; what lies outside ball or box by rounding is moved inside.
            label: of the image.
            epsilon: the radius.
        """
        moved = _moved_inside(image.astype(np.float64), adversarial, epsilon, self._norm)
        (logits,) = evaluate(self._steps, moved[None])
        return moved if np.delete(logits, label).max() > logits[label] else None


class _Ball:
    """The verification of all images at one epsilon, while it is computed."""

    def __init__(self, predictions: np.ndarray, labels: np.ndarray, num_classes: int):
        self.predictions = predictions
        self.statuses = np.full(len(labels), "unknown", f"<U{max(map(len, get_args(Status)))}")
        self.statuses[predictions != labels] = "misclassified"
        self.decided_by = np.full(len(labels), "", "<U16")
        self.margins = np.full((len(labels), num_classes), -np.inf)
        self.seconds = np.zeros(len(labels))
        self.broken: dict[int, np.ndarray] = {}
        self.selected = np.full(len(labels), True)

    @property
    def undecided(self) -> np.ndarray:
        return np.flatnonzero((self.statuses == "unknown") & self.selected)

    def select(self, count: int | None) -> None:
        """Bound only the first `count` undecided images."""
        if count is not None:
            self.selected[self.undecided[count:]] = False

    def decide(self, index: int, status: Status, by: str, broken: np.ndarray | None = None) -> None:
        self.statuses[index], self.decided_by[index] = status, by
        if broken is not None:
            self.broken[int(index)] = broken

    def summary(self) -> str:
        """The verified and undecided shares, for progress."""
        safe = np.isin(self.statuses, VERIFIED).mean()
        return f"verified {safe:.2%}, undecided {len(self.undecided) / len(self.statuses):.2%}"


def attack_within(attack: Attack, norm: Norm, epsilon: float) -> Attack:
    """An attack at a radius of a norm.

    Raises:
        InvalidInputError: If the attack does not have the norm.
    """
    if norm == "linf" or attack.norm == norm:
        return attack.with_epsilon(epsilon)
    try:
        return dataclasses.replace(attack, norm=norm, epsilon=epsilon)
    except (InvalidInputError, TypeError):  # the norm is one of others, or is not a field
        raise InvalidInputError(f"{attack.label} does not attack in {norm}; hint: leave it out") from None


def _moved_inside(center: np.ndarray, supposed: np.ndarray, epsilon: float, norm: Norm) -> np.ndarray:
    """The float32 image near a supposed one that lies in the ball around a center and in the pixel box, exactly."""
    low, high = np.maximum(center - epsilon, 0), np.minimum(center + epsilon, 1)

    def size(change: np.ndarray) -> float:
        return {"linf": 0.0, "l2": float(np.linalg.norm(change)), "l1": float(np.abs(change).sum())}[norm]

    change = np.clip(supposed, low, high) - center
    change = change * (epsilon / max(size(change), epsilon, 1e-300))
    for shorter in (0.0, *10.0 ** np.arange(-7, 0)):  # where rounding to float32 leaves the ball
        moved = (center + change * (1 - shorter)).astype(np.float32)
        moved = np.where(moved > high, np.nextafter(moved, np.float32(-1)), moved)
        moved = np.where(moved < low, np.nextafter(moved, np.float32(2)), moved)
        if size(moved.astype(np.float64) - center) <= epsilon:
            return moved
    return center.astype(np.float32)


def _compiled_bound(network: keras.Model, method: Method, norm: Norm, dtype: str, sound: bool) -> Callable:
    """images [N, H, W, C], labels [N], epsilon -> margins [N, K]."""
    return tf.function(
        functools.partial(worst_case_margins, network, method=method, norm=norm, sound=sound),
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, *network.inputs[0].shape[1:]], dtype),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([], dtype),
        ],
    )


def _piece(journal: Journal | None, name: bytes, compute: Callable[[], Result]) -> Result:
    return compute() if journal is None else journal.result(name, compute)
