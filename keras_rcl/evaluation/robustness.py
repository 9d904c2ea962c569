"""The robustness of a classifier under attack: the survival table, and the measures that are reductions of it."""

import copy
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from keras_rcl.attacks import (
    NUMBERS,
    Crafted,
    check_classes,
    check_images,
    craft_round,
    is_one_round,
    length,
    mixes_rounds,
    sharing,
)
from keras_rcl.evaluation.sharding import Pieces
from keras_rcl.runtime.distributed import ALONE, Workers
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.fingerprint import Fingerprint, hash_arrays
from keras_rcl.storage.journal import Journal, Result
from keras_rcl.vocabulary.attacks import CORRUPTION_KINDS, Attack, Corruptions, as_attacks, describe
from keras_rcl.vocabulary.labels import class_labels
from keras_rcl.vocabulary.record import CorruptionSummary, Row
from keras_rcl.vocabulary.threat import Norm, ThreatModel

PAST_THE_BORDER = (1.001, 1.01)
"""The factors by which a nearest perturbation is lengthened, in turn, as long as its image is not misclassified."""
SAMPLES = 16
"""The number of broken and of robust images per attack whose adversarial images are kept for pictures."""


@dataclasses.dataclass(frozen=True)
class Survival:
    """Which images survived which attacks.

    An image that is misclassified before the attack counts as broken and is not attacked, except by corruptions. An
    answer that is not finite is the class -1, which no image has, so that it is wrong.

    Attributes:
        attacks: A attacks.
        labels: [N].
        clean_predictions: [N], the classes before any attack.
        predictions: [A, N], the classes of the adversarial images.
        distances: [A, N], from each image to the last adversarial one, in pixels and in the attack's norm; NaN if it
            was not attacked, or the attack has no norm.
        zero_gradients: [A], the share of zero pixel gradients.
        forwards: [A], forward passes of single images.
        backwards: [A], backward passes of single images.
        seconds: [A], of all workers together.
        stages: For each attack its members, each with the robust accuracy after it.
        adversarial: [A, N, H, W, C], or None if they were not kept.
        dead_gradients: [A], the share of images, counted once per round, of which every pixel gradient was zero.
        nearest: [A, N], of attacks that look for the nearest adversarial image its distance, whatever epsilon is, or
            infinity if none was found; NaN for other attacks and for images that were not attacked.
        samples: For each attack, position -> adversarial image [H, W, C] of the first `SAMPLES` broken and the first
            `SAMPLES` robust images, as far as this process computed them.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.layers[-1].set_weights([np.zeros((16, 2)), np.array([1.0, 0.0])])  # always class 0
        >>> images, labels = np.full((2, 4, 4, 1), 0.5, np.float32), np.array([0, 1])
        >>> evaluator = keras_rcl.Evaluator(model, [keras_rcl.FGSM(epsilon="8/255")])
        >>> survival = evaluator(images, labels)
        >>> float(survival.clean_accuracy), survival.predictions.shape
        (0.5, (1, 2))
    """

    attacks: tuple[Attack, ...]
    labels: np.ndarray
    clean_predictions: np.ndarray
    predictions: np.ndarray
    distances: np.ndarray
    zero_gradients: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    seconds: np.ndarray
    stages: tuple[tuple[tuple[str, float], ...], ...] = ()
    adversarial: np.ndarray | None = None
    samples: tuple[dict[int, np.ndarray], ...] = ()
    dead_gradients: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    nearest: np.ndarray | None = None

    @property
    def clean(self) -> np.ndarray:
        """[N] bool: classified correctly before any attack."""
        return self.clean_predictions == self.labels

    @property
    def survived(self) -> np.ndarray:
        """[A, N] bool: classified correctly before and after the attack."""
        return self.clean & (self.predictions == self.labels)

    @property
    def clean_accuracy(self) -> float:
        """The share of images that are classified correctly; NaN if there are none."""
        return float(self.clean.mean()) if len(self.labels) else math.nan

    def __repr__(self) -> str:
        robust = {
            describe(attack): round(float(row.mean()), 4)
            for attack, row in zip(self.attacks, self.survived, strict=True)
        }
        return (
            f"Survival(images={len(self.labels)}, clean_accuracy={self.clean_accuracy:.4g}, robust_accuracy={robust})"
        )

    def rows(self) -> list[Row]:
        """Return one row per attack, then the per-image worst case of each threat model with several attacks."""
        rows = [
            {
                "attack": describe(attack),
                **_threat(attack.threat_model),
                **_kind(attack),
                **measures(self.clean, self.survived[index], self._correct(index)),
                **_distances(self.distances[index], self.clean & ~self.survived[index]),
                **({} if self.nearest is None else _median(self.nearest[index])),
                "zero_gradients": float(self.zero_gradients[index]),
                **({"not_finite": lost} if (lost := int(np.sum(self.predictions[index] < 0))) else {}),
                "forwards": int(self.forwards[index]),
                "backwards": int(self.backwards[index]),
                "seconds": round(float(self.seconds[index]), 3),
                **({"stages": dict(self.stages[index])} if len(attack.members) > 1 else {}),
            }
            for index, attack in enumerate(self.attacks)
        ]
        for threat_model in dict.fromkeys(attack.threat_model for attack in self.attacks if attack.threat_model):
            members = [index for index, attack in enumerate(self.attacks) if attack.threat_model == threat_model]
            if len(members) > 1:
                worst = self.survived[members].all(axis=0)
                rows.append({"attack": "worst case", **_threat(threat_model), **measures(self.clean, worst)})
        return rows

    def _correct(self, index: int) -> np.ndarray:
        """[N] bool: what counts as correct for the adversarial accuracy of an attack."""
        return self.predictions[index] == self.labels if self.attacks[index].every_image else self.survived[index]


MEASURES = (
    "clean_accuracy",
    "adversarial_accuracy",
    "attack_success_rate",
    "attack_failure_rate",
    "robust_accuracy",
)


def measures(clean: np.ndarray, survived: np.ndarray, correct: np.ndarray | None = None) -> dict[str, float]:
    """Return the usual measures of one attack.

    The attack success rate ASR is over the images that are classified correctly before the attack, AFR = 1 - ASR, and
    robust accuracy RA = accuracy * AFR (Cusin). Adversarial accuracy counts an image that is misclassified before the
    attack as wrong, so it equals RA, except of corruptions, which are of every image. Each measure is one division of
    counts: 0.144, not 0.14400000000000002.

    Args:
        clean: [N] bool, classified correctly before the attack.
        survived: [N] bool, classified correctly before and after it.
        correct: [N] bool, classified correctly after it; `survived` if not given.
    """
    count, right, robust = len(clean), int(clean.sum()), int(survived.sum())
    if not count:
        return dict.fromkeys(MEASURES, math.nan)
    return {
        "clean_accuracy": right / count,
        "adversarial_accuracy": (robust if correct is None else int(correct.sum())) / count,
        "attack_success_rate": (right - robust) / right if right else 0.0,
        "attack_failure_rate": robust / right if right else 1.0,
        "robust_accuracy": robust / count,
    }


def corruption_summary(rows: Sequence[Row]) -> CorruptionSummary | None:
    """Return the mean accuracy over the corruptions of some rows, and that of each kind.

    Args:
        rows: Of a survival table; rows of other attacks are left out.

    Returns:
        The mean over kinds of the mean over severities, and the latter by kind; None if no row is of a corruption.
    """
    found = {
        kind: [row["adversarial_accuracy"] for row in rows if row.get("kind") == kind] for kind in CORRUPTION_KINDS
    }
    kinds = {kind: math.fsum(shares) / len(shares) for kind, shares in found.items() if shares}
    return {"mean_accuracy": math.fsum(kinds.values()) / len(kinds), "kinds": kinds} if kinds else None


def _kind(attack: Attack) -> dict:
    """What a row says of a corruption."""
    return {"kind": attack.kind, "severity": attack.severity} if isinstance(attack, Corruptions) else {}


def _threat(threat_model: ThreatModel | None) -> dict:
    if threat_model is None:
        return {"norm": None, "epsilon": None, "protocol": "pixel"}
    return {"norm": threat_model.norm, "epsilon": threat_model.epsilon, "protocol": threat_model.protocol}


def _distances(distances: np.ndarray, broken: np.ndarray) -> dict[str, float | None]:
    """The largest distance in pixels of all attacked images, and the median of the broken ones."""
    attacked = distances[~np.isnan(distances)]
    return {
        "largest_distance": float(attacked.max()) if len(attacked) else None,
        "median_distance_fallen": float(np.median(distances[broken])) if broken.any() else None,
    }


def _median(nearest: np.ndarray) -> dict[str, float | None]:
    """The median distance to the nearest adversarial images; None if it is infinite."""
    found = nearest[~np.isnan(nearest)]
    if not len(found):
        return {}
    median = float(np.median(found))
    return {"median_distance": median if math.isfinite(median) else None}


class Evaluator:
    """Attacks a classifier on many images; compiled once, so that it can be called after every epoch.

    Args:
        logits_fn: Images [N, H, W, C] in [0, 1] -> logits [N, K], in inference mode. It decides all outcomes.
        attacks: Run one after another, each on the images that are classified correctly. Corruptions run on all
            images, as one attack per kind and severity. Attacks that look for the nearest adversarial image and differ
            in epsilon alone share one run; its costs are those of the first.
        batch_size: Images attacked at once; it changes the speed, and no result.
        seed: The seed of the attacks' random numbers.
        jit: Compile with XLA.
        outputs: Attack -> the function of images [N, D] that it reads, for attacks that read other outputs.
        support: Labels [M] and projections [M, D] that the SupCon attack contrasts with.
        gradient_fn: The function that attacks on the logits read; `logits_fn` if not given.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.layers[-1].set_weights([np.zeros((16, 2)), np.array([1.0, 0.0])])  # always class 0
        >>> images, labels = np.full((2, 4, 4, 1), 0.5, np.float32), np.array([0, 1])
        >>> evaluator = keras_rcl.Evaluator(model, [keras_rcl.FGSM(epsilon="8/255")])
        >>> evaluator(images, labels).survived.tolist()
        [[True, False]]
    """

    def __init__(
        self,
        logits_fn: Callable,
        attacks: Sequence[Attack],
        *,
        batch_size: int = 250,
        seed: int = 0,
        jit: bool = False,
        outputs: Callable[[Attack], Callable] | None = None,
        support: tuple | None = None,
        gradient_fn: Callable | None = None,
    ):
        self.attacks, self.batch_size = _each(attacks), batch_size
        self._seed, self._support = seed, support
        self._width = batch_size if jit else None
        self._graphs = _Graphs(logits_fn, batch_size, jit, outputs, support, gradient_fn)

    def with_attacks(self, attacks: Sequence[Attack], seed: int) -> "Evaluator":
        """The same evaluator with other attacks and another seed; what both need is traced once.

        Args:
            attacks: As of `Evaluator`.
            seed: The seed of the attacks' random numbers.
        """
        other = copy.copy(self)
        other.attacks, other._seed = _each(attacks), seed
        return other

    def fingerprint(self, images: np.ndarray, labels: np.ndarray, *, keep_images: bool = False) -> Fingerprint:
        """What the results in a journal depend on, except for the model, its sources and the versions."""
        return Fingerprint(
            images=hash_arrays(images, labels, *(self._support or ())[:1]),
            attacks=[dataclasses.asdict(attack) for attack in self.attacks],
            seed=self._seed,
            settings={"batch_size": self.batch_size, "kept_images": keep_images},
        )

    def __call__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        keep_images: bool = False,
        progress: Progress | None = None,
        journal: Journal | None = None,
        workers: Workers = ALONE,
    ) -> Survival:
        """Attack images and return the survival table.

        Misclassified images are not attacked, and an image that one round broke is not attacked again: each round of an
        attack, and each member of an ensemble, runs on the survivors of the rounds before. A targeted attack aims at
        each image's least likely class; it succeeds, like any attack, if the image is misclassified at the end.

        Args:
            images: Float [N, H, W, C] in [0, 1].
            labels: [N] integers; also [N, 1], one-hot rows [N, K] or whole floats.
            keep_images: Keep all adversarial images.
            progress: Where progress is shown.
            journal: With this `fingerprint`. Batches that it holds are read from it, and all others are written to it.
            workers: All of them call this with the same arguments. Each attacks some of the batches, and all return
                the whole table.

        Raises:
            InvalidInputError: If the images are not a batch of floats in [0, 1], a label is outside the classes, the
                classifier has one output, no gradient reaches the images, or an attack is not defined for so few
                classes.
        """
        images = np.asarray(check_images(images), np.float32)
        for attack in self.attacks:
            attack.check_images(images.shape[1:])
        labels = class_labels(labels, count=len(images))
        if len(images):
            check_classes(self._graphs.count_classes(images.shape[1:]), labels)
        progress, pieces = progress or Silent(), Pieces(workers, journal)
        (first,) = pieces([(b"clean", lambda: {"predictions": self.predict(images)})])
        clean = first["predictions"]
        found: dict[int, _Outcome] = {}
        for number in range(len(self.attacks)):
            if number not in found:
                found |= self._outcomes(number, images, labels, clean, keep_images, progress, pieces)
        outcomes = [found[number] for number in range(len(self.attacks))]

        def column(name):
            return np.array([getattr(outcome, name) for outcome in outcomes])

        return Survival(
            attacks=self.attacks,
            labels=labels,
            clean_predictions=clean,
            predictions=column("predictions").reshape(len(outcomes), len(images)),
            distances=column("distances").reshape(len(outcomes), len(images)),
            zero_gradients=column("zero_gradients"),
            forwards=column("forwards"),
            backwards=column("backwards"),
            seconds=column("seconds"),
            stages=tuple(outcome.stages for outcome in outcomes),
            adversarial=column("adversarial").reshape(len(outcomes), *images.shape) if keep_images else None,
            samples=tuple(outcome.samples for outcome in outcomes),
            dead_gradients=column("dead_gradients"),
            nearest=column("nearest").reshape(len(outcomes), len(images)),
        )

    def _outcomes(self, number: int, *arguments) -> dict[int, "_Outcome"]:
        """The outcomes, by number, of an attack and of those that share its run; arguments as of `_attack`."""
        attack, sharing_run = self.attacks[number], [number]
        if attack.minimal:
            alike = attack.with_epsilon(0.0)
            sharing_run = [n for n, a in enumerate(self.attacks) if a.minimal and a.with_epsilon(0.0) == alike]
        if attack.minimal and (len(sharing_run) > 1 or not attack.stops_within):
            return self._search(sharing_run, *arguments)
        return {number: self._attack(number, *arguments)}

    def _search(
        self, numbers: list[int], images, labels, clean, keep_images: bool, progress: Progress, pieces: Pieces
    ) -> dict[int, "_Outcome"]:
        """Run a search for the nearest adversarial image once for attacks that differ in epsilon alone."""
        outcomes = {number: _Outcome.before(clean, images if keep_images else None) for number in numbers}
        (costs, *_), attack = outcomes.values(), self.attacks[numbers[0]]
        name, right = f"{attack.label} {attack.norm}", np.flatnonzero(clean == labels)
        member = attack.for_classes(self._graphs.count_classes(images.shape[1:]))
        key = f"{numbers[0]} nearest {describe(attack)} "
        progress.start(name, len(right), work=sum(member.num_passes))
        run = functools.partial(self._run, member, range(1), images, labels, nearest=True)
        for chosen, found, crafted in self._batch_by_batch(key, run, right, keep_images, progress, pieces):
            for number, outcome in outcomes.items():
                cut, left = _within(self.attacks[number].epsilon, found, images[chosen], labels[chosen], crafted)
                outcome.add_rounds(1, chosen, cut, labels, left)
        costs.forwards, costs.backwards = len(right) * (member.num_passes[0] + 1), len(right) * member.num_passes[1]
        shares = []
        for outcome in outcomes.values():
            outcome.seconds *= outcome is costs
            outcome.zero_gradients /= max(1, len(right))
            outcome.dead_gradients /= max(1, len(right))
            shares.append(float(np.sum(outcome.predictions[right] == labels[right]) / max(1, len(images))))
            outcome.stages = ((member.label, shares[-1]),)
        progress.finish(f"robust accuracy {', '.join(f'{share:.2%}' for share in shares)}")
        return outcomes

    def _batch_by_batch(
        self, key: str, run: Callable, positions, keep: bool, progress: Progress, pieces: Pieces, count: int = 1
    ) -> Iterator[tuple[np.ndarray, Result, np.ndarray | None]]:
        """The positions of each batch, the results of `run`, and its images if this process computed them.

        `run` runs `count` rounds.
        The results of a batch are stored in the journal under `key` and its positions.
        """
        done, batches, crafted = 0, _batches(positions, self.batch_size), {}  # type: ignore[var-annotated]
        tasks = [(key.encode() + each.tobytes(), functools.partial(run, each, keep, crafted)) for each in batches]
        for chosen, found in zip(batches, pieces(tasks), strict=True):
            yield chosen, found, crafted.pop(chosen.tobytes(), None)
            done += len(chosen) * count
            progress.update(done)

    def _attack(
        self, number: int, images, labels, clean, keep_images: bool, progress: Progress, pieces: Pieces
    ) -> "_Outcome":
        """Run every round of an attack's members on the survivors; the results of a batch are stored in the journal."""
        attack = self.attacks[number]
        survivors = np.arange(len(images)) if attack.every_image else np.flatnonzero(clean == labels)
        outcome = _Outcome.before(clean, images if keep_images else None)
        outcome.sampled = not attack.every_image  # 75 corruptions would keep as many times the memory
        num_classes = self._graphs.count_classes(images.shape[1:])
        members = [member.for_classes(num_classes) for member in attack.for_classes(num_classes).members]
        for index, member in enumerate(members):
            rounds = range(0)
            while rounds.stop < member.num_rounds:
                rounds = self._next_rounds(member, rounds.stop, len(survivors))
                name = describe(attack) if len(members) == 1 else f"{describe(attack)}: {member.label}"
                progress.start(
                    name + _of_rounds(rounds, member.num_rounds),
                    len(survivors) * len(rounds),
                    work=sum(member.num_passes),
                )
                key = f"{number} {index} {rounds} {describe(attack)} "
                run = functools.partial(self._run, member, rounds, images, labels)
                for chosen, found, crafted in self._batch_by_batch(
                    key, run, survivors, keep_images, progress, pieces, len(rounds)
                ):
                    outcome.add_rounds(len(rounds), chosen, found, labels, crafted)
                done = len(survivors) * len(rounds)
                outcome.forwards += done * (member.num_passes[0] + 1)
                outcome.backwards += done * member.num_passes[1]
                survivors = survivors[outcome.predictions[survivors] == labels[survivors]]
                accuracy = "accuracy" if attack.every_image else "robust accuracy"
                progress.finish(f"{accuracy} {len(survivors) / max(1, len(images)):.2%}")
            outcome.stages += ((member.label, len(survivors) / max(1, len(images))),)
        outcome.zero_gradients /= max(1, outcome.attempts)
        outcome.dead_gradients /= max(1, outcome.attempts)
        return outcome

    def _next_rounds(self, member: Attack, first: int, count: int) -> range:
        """The rounds that run next on `count` survivors: as many as one batch has room for, as a small one is slow."""
        fitting = self.batch_size // max(1, count) if mixes_rounds(member, self._support) else 1
        return range(first, min(member.num_rounds, first + max(1, fitting)))

    def _run(
        self, member: Attack, rounds: range, images, labels, chosen, keep_images: bool, crafted: dict, nearest=False
    ) -> Result:
        """Run rounds on the chosen images, one after the other in the results.

        The adversarial images are put into `crafted`.
        """
        started = time.perf_counter()
        filled = self._filled(np.tile(chosen, len(rounds)))
        numbers = np.repeat(np.array(rounds, np.int32), len(chosen))
        numbers = np.concatenate([numbers, np.full(len(filled) - len(numbers), rounds.start, np.int32)])
        step = self._graphs.step(member, images.shape[1:], nearest)
        seeds = np.array([0, self._seed], np.int64)
        x_adv, predicted, distances, zeros = step(images[filled], labels[filled], numbers, seeds)
        tensors = {"predictions": predicted, "distances": distances, "zero_gradients": zeros}
        rows = len(chosen) * len(rounds)
        arrays = {name: tensor.numpy()[:rows] for name, tensor in tensors.items()}
        crafted[chosen.tobytes()] = adversarial = x_adv.numpy()[:rows]
        if keep_images:
            arrays["images"] = adversarial
        return {**arrays, "seconds": np.array(time.perf_counter() - started)}

    def craft(self, number: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return what attack `number` makes of images [N, H, W, C]: per image the same as within an evaluation."""
        labels = np.asarray(labels, np.int32)
        outcomes = self._outcomes(number, images, labels, self.predict(images), True, Silent(), Pieces(ALONE))
        outcome = outcomes[number]
        assert outcome.adversarial is not None
        return outcome.adversarial

    def one_round(self, number: int) -> Callable | None:
        """Return an attack of one round as a function of images, all of which it attacks, by the graph of evaluations.

        Args:
            number: The number of the attack.

        Returns:
            images [N, H, W, C], labels int32 [N], seed -> what `craft_and_count` returns; None if the attack has
            several rounds, is targeted or does not read the classifier's own logits, or with XLA.
        """
        attack = self.attacks[number]
        own_logits = attack.target_output == "logits" and attack.proxy is None
        if not (is_one_round(attack) and own_logits) or attack.targeted or self._width is not None:
            return None

        def run(images: tf.Tensor, labels: tf.Tensor, seed: int) -> Crafted:
            step = self._graphs.step(attack, images.shape[1:])
            crafted, _, _, zeros = step(images, labels, tf.zeros_like(labels), np.array([0, seed], np.int64))
            return Crafted(crafted, zeros)

        return run

    def adversarial_images(
        self, survival: Survival, number: int, positions: np.ndarray, images: np.ndarray
    ) -> np.ndarray:
        """Return adversarial images [M, H, W, C] of one attack; those that the evaluation did not keep are crafted.

        Args:
            survival: A table of this evaluator.
            number: The number of the attack.
            positions: [M], of the images.
            images: The evaluated images [N, H, W, C].
        """
        if survival.adversarial is not None:
            return survival.adversarial[number][positions]
        kept = dict(survival.samples[number])
        missing = np.array([position for position in positions if position not in kept], int)
        if len(missing):
            crafted = self.craft(number, images[missing], survival.labels[missing])
            kept.update(zip(missing.tolist(), crafted, strict=True))
        return np.stack([kept[position] for position in positions.tolist()])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the classes [N] of images [N, H, W, C]."""
        predictions, predict = np.zeros(len(images), np.int32), self._graphs.predict(images.shape[1:])
        for chosen in _batches(np.arange(len(images)), self.batch_size):
            predictions[chosen] = predict(images[self._filled(chosen)]).numpy()[: len(chosen)]
        return predictions

    def _filled(self, chosen: np.ndarray) -> np.ndarray:
        """The chosen indices, filled up with the first of them to the batch size that a compiled function takes."""
        return np.concatenate([chosen, np.full(max(0, (self._width or 1) - len(chosen)), chosen[0])])


class _Graphs:
    """The compiled functions of an evaluator, each traced when it is first needed; arguments as of `Evaluator`.

    They take batches of any size, or of `batch_size` images with XLA, which would compile again for each size. Attacks
    that differ in numbers alone share a graph, except with XLA.
    """

    def __init__(self, logits_fn: Callable, batch_size: int, jit: bool, outputs, support, gradient_fn):
        self._logits_fn, self._batch_size, self._support = logits_fn, batch_size, support
        self._width = batch_size if jit else None
        self._outputs, self._gradient_fn = outputs, gradient_fn
        self._compiled: dict[tuple, Callable] = {}
        self._num_classes: dict[tuple, int] = {}

    def count_classes(self, image_shape: tuple[int, ...]) -> int:
        """The number of outputs of the classifier."""
        if image_shape not in self._num_classes:
            self._num_classes[image_shape] = int(self._logits_fn(tf.zeros((1, *image_shape))).shape[-1])
        return self._num_classes[image_shape]

    def predict(self, image_shape: tuple[int, ...]) -> Callable:
        """The function of images that returns classes; -1 where a logit is not finite."""
        return self._function(("predict", image_shape), lambda: self._predict, image_shape)

    def step(self, member: Attack, image_shape: tuple[int, ...], nearest: bool = False) -> Callable:
        """The function of images, labels, rounds [N] and seeds that runs one round of an attack on each image.

        With `nearest` it returns the nearest adversarial images wherever they are, and not those within epsilon.
        """
        if isinstance(member, Corruptions):  # NumPy, and no graph per kind and severity
            return functools.partial(self._corrupt, member)
        # A loop whose number of steps is an input crashes XLA.
        shared, numbers = sharing(member) if self._width is None or nearest else (member, None)
        signature = (
            tf.TensorSpec([self._width], tf.int32),
            tf.TensorSpec([self._width], tf.int32),
            tf.TensorSpec([2], tf.int64),
            NUMBERS if numbers else (),
        )
        function = self._function((shared, image_shape), lambda: self._step_of(member), image_shape, *signature)
        if not nearest:
            return functools.partial(function, numbers=numbers or ())
        everywhere = () if numbers is None else numbers._replace(epsilon=math.inf)
        return functools.partial(self._past_the_border, functools.partial(function, numbers=everywhere), member.norm)

    def _past_the_border(self, step: Callable, norm: Norm, x, labels, rounds, seeds) -> tuple:
        """As of `step`; an image that stops just before the border of the served logits is moved a little further.

        A search ends at the border of the logits that it reads, which differ from the served ones by rounding.
        """
        nearest, predicted, distances, zeros = step(x, labels, rounds, seeds)
        images = nearest
        for factor in PAST_THE_BORDER:
            before = (predicted == labels) & (distances > 0)
            if not tf.reduce_any(before):
                break
            further = tf.clip_by_value(x + factor * (nearest - x), 0.0, 1.0)
            images = tf.where(before[:, None, None, None], further, images)
            predicted = self.predict(x.shape[1:])(images)
        return images, predicted, length(images - x, norm), zeros

    def _corrupt(self, member: Corruptions, x, labels, rounds, seeds) -> tuple:
        """As of `step`, run eagerly."""
        images = craft_round(member, self._logits_fn, x, labels, seed=seeds).images
        return images, self.predict(x.shape[1:])(images), tf.fill([len(x)], np.nan), tf.zeros([len(x)])

    def _function(self, key: tuple, make: Callable[[], Callable], image_shape: tuple[int, ...], *signature) -> Callable:
        if key not in self._compiled:
            images = tf.TensorSpec([self._width, *image_shape], tf.float32)
            self._compiled[key] = tf.function(
                make(), [images, *signature], autograph=False, jit_compile=self._width is not None
            )
        return self._compiled[key]

    def _predict(self, x: tf.Tensor) -> tf.Tensor:
        logits = self._logits_fn(x)
        classes = tf.argmax(logits, axis=1, output_type=tf.int32)
        return tf.where(tf.reduce_all(tf.math.is_finite(logits), axis=1), classes, -1)

    def _step_of(self, member: Attack) -> Callable:
        own_logits = member.target_output == "logits" and member.proxy is None
        if self._gradient_fn and own_logits:
            read = self._gradient_fn
        else:
            read = self._logits_fn if self._outputs is None else self._outputs(member)

        mixes = mixes_rounds(member, self._support)

        def step(x, labels, rounds, seeds, numbers):
            targets = tf.argmin(self._logits_fn(x), axis=1, output_type=tf.int32) if member.targeted else labels
            crafted = craft_round(
                member,
                read,
                x,
                targets,
                seed=seeds,
                round=rounds if mixes else rounds[0],
                support=self._support,
                numbers=numbers or None,
                width=self._batch_size,
            )
            unmeasured = tf.zeros_like(x[:, 0, 0, 0]) + np.nan
            distances = unmeasured if member.norm is None else length(crafted.images - x, member.norm)
            return crafted.images, self._predict(crafted.images), distances, crafted.zero_gradients

        return step


@dataclasses.dataclass
class _Outcome:
    """One attack's part of a `Survival`, while it is computed."""

    predictions: np.ndarray
    distances: np.ndarray
    nearest: np.ndarray
    adversarial: np.ndarray | None
    zero_gradients: float = 0.0
    dead_gradients: float = 0.0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    attempts: int = 0
    stages: tuple[tuple[str, float], ...] = ()
    samples: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    sampled: bool = True

    @classmethod
    def before(cls, clean: np.ndarray, kept: np.ndarray | None) -> "_Outcome":
        """That of an attack which has not begun; `kept` are the images if adversarial images are to be kept."""
        unknown = np.full((2, len(clean)), np.nan)
        return cls(clean.copy(), *unknown, None if kept is None else kept.copy())

    def add_rounds(
        self, count: int, chosen: np.ndarray, found: Result, labels: np.ndarray, crafted: np.ndarray | None
    ) -> None:
        """Add the results of rounds that ran side by side on a batch, each for the survivors of those before it.

        Args:
            count: The number of rounds.
            chosen: The images [N] of the batch.
            found: As of `Evaluator._run`.
            labels: Of all images.
            crafted: The adversarial images of all rounds; None if another process computed them.
        """
        self.seconds += float(found["seconds"])
        for number in range(count):
            left = np.arange(len(chosen))
            if number:
                left = np.flatnonzero(self.predictions[chosen] == labels[chosen])
            rows = number * len(chosen) + left
            results = {name: values[rows] for name, values in found.items() if name != "seconds"}
            self.add(chosen[left], results, labels, None if crafted is None else crafted[rows])

    def add(self, chosen: np.ndarray, found: Result, labels: np.ndarray, crafted: np.ndarray | None) -> None:
        """Add the results of a round on a batch; `crafted` as of `add_rounds`."""
        self.attempts += len(chosen)
        self.predictions[chosen] = found["predictions"]
        self.distances[chosen] = found["distances"]
        self.nearest[chosen] = found.get("nearest", np.nan)
        self.zero_gradients += float(np.sum(found["zero_gradients"]))
        self.dead_gradients += float(np.sum(found["zero_gradients"] > 0.999))
        if self.adversarial is not None:
            self.adversarial[chosen] = found["images"]
            return
        if crafted is None:
            for position in chosen.tolist():
                self.samples.pop(position, None)
            return
        if not self.sampled:
            return
        self.samples.update(zip(chosen.tolist(), crafted, strict=True))
        robust = {position: bool(self.predictions[position] == labels[position]) for position in self.samples}
        first = [[p for p in sorted(robust) if robust[p] is kind][:SAMPLES] for kind in (False, True)]
        self.samples = {position: self.samples[position].copy() for position in itertools.chain(*first)}


def _of_rounds(rounds: range, count: int) -> str:
    """Which of `count` rounds, for a progress bar."""
    if count == 1:
        return ""
    return f", round {rounds.start + 1}{f'-{rounds.stop}' if len(rounds) > 1 else ''}/{count}"


def _within(epsilon, found: Result, images, labels, crafted: np.ndarray | None) -> tuple[Result, np.ndarray | None]:
    """The results of a search as those of an attack within epsilon: clean images where the nearest one is farther."""
    far = found["distances"] > epsilon
    broken = found["predictions"] != labels
    cut = {
        **found,
        "predictions": np.where(far, labels, found["predictions"]),
        "distances": np.where(far, np.float32(0), found["distances"]),
        "nearest": np.where(broken, found["distances"], np.inf),
    }
    stay = far[:, None, None, None]
    if "images" in found:
        cut["images"] = np.where(stay, images, found["images"])
    return cut, None if crafted is None else np.where(stay, images, crafted)


def _each(attacks: Sequence[Attack]) -> tuple[Attack, ...]:
    """The attacks that are run, in order: corruptions of several kinds or severities one by one."""
    return tuple(itertools.chain.from_iterable(attack.variations for attack in as_attacks(attacks)))


def _batches(indices: np.ndarray, size: int) -> list[np.ndarray]:
    """The indices in the fewest batches of at most `size`, all about as large: a small batch is slower per image."""
    return np.array_split(indices, -(-len(indices) // size)) if len(indices) else []
