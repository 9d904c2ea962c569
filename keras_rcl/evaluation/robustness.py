"""How a classifier stands under attack: the survival table, and everything reported as a reduction of it."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_rcl.attacks import check_images, craft_round, length
from keras_rcl.evaluation.sharding import Pieces
from keras_rcl.runtime.distributed import ALONE, Workers
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.fingerprint import Fingerprint, hash_arrays
from keras_rcl.storage.journal import Journal, Result
from keras_rcl.vocabulary.attacks import Attack, describe
from keras_rcl.vocabulary.threat import ThreatModel


@dataclasses.dataclass(frozen=True)
class Survival:
    """Which images survived which attacks.

    attacks: A attacks. labels, clean_predictions: [N]. predictions: [A, N], on the adversarial images; an image that is
    wrong before the attack counts as fallen and is not attacked. distances: [A, N], from each image to the last that
    was crafted of it, in pixels and in the attack's norm; NaN where none was. zero_gradients: [A], the share of zero
    pixel gradients met. forwards, backwards: [A], passes of single images. seconds: [A], of all workers together.
    stages: for each attack its members, each with the robust accuracy after it. adversarial: [A, N, H, W, C] or None.
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

    @property
    def clean(self) -> np.ndarray:
        """[N] bool: right before any attack."""
        return self.clean_predictions == self.labels

    @property
    def survived(self) -> np.ndarray:
        """[A, N] bool: right before and after the attack."""
        return self.clean & (self.predictions == self.labels)

    @property
    def clean_accuracy(self) -> float:
        return float(self.clean.mean())

    def rows(self) -> list[dict]:
        """One row an attack, then one for the per-image worst case of each threat model with several attacks."""
        rows = [
            {
                "attack": describe(attack),
                **_threat(attack.threat_model),
                **measures(self.clean, self.survived[index]),
                **_distances(self.distances[index], self.clean & ~self.survived[index]),
                "zero_gradients": float(self.zero_gradients[index]),
                "forwards": int(self.forwards[index]),
                "backwards": int(self.backwards[index]),
                "seconds": round(float(self.seconds[index]), 3),
                **({"stages": dict(self.stages[index])} if len(attack.members) > 1 else {}),
            }
            for index, attack in enumerate(self.attacks)
        ]
        for threat_model in dict.fromkeys(attack.threat_model for attack in self.attacks):
            members = [index for index, attack in enumerate(self.attacks) if attack.threat_model == threat_model]
            if len(members) > 1:
                worst = self.survived[members].all(axis=0)
                rows.append({"attack": "worst case", **_threat(threat_model), **measures(self.clean, worst)})
        return rows


def measures(clean: np.ndarray, survived: np.ndarray) -> dict[str, float]:
    """The field's measures of one attack.

    clean, survived: [N] bool. ASR is over the images that were right before the attack, AFR = 1 - ASR, robust accuracy
    RA = accuracy * AFR (Cusin). Adversarial accuracy counts an image that was wrong before the attack as wrong, which
    makes it equal to RA.
    """
    right = int(clean.sum())
    success = 1.0 - survived.sum() / right if right else 0.0
    return {
        "clean_accuracy": float(clean.mean()),
        "adversarial_accuracy": float(survived.mean()),
        "attack_success_rate": float(success),
        "attack_failure_rate": float(1.0 - success),
        "robust_accuracy": float(clean.mean() * (1.0 - success)),
    }


def _threat(threat_model: ThreatModel) -> dict:
    return {"norm": threat_model.norm, "epsilon": threat_model.epsilon, "protocol": threat_model.protocol}


def _distances(distances: np.ndarray, fell: np.ndarray) -> dict[str, float | None]:
    """How far the attack went in pixels: the largest distance of all images attacked, the median of those that fell."""
    attacked = distances[~np.isnan(distances)]
    return {
        "largest_distance": float(attacked.max()) if len(attacked) else None,
        "median_distance_fallen": float(np.median(distances[fell])) if fell.any() else None,
    }


class Evaluator:
    """Attacks a classifier on many images; compiled once, so that it can be called after every epoch.

    Args:
        logits_fn: images [N, H, W, C] in [0, 1] -> logits [N, K], in inference mode.
        attacks: run one after another, each on the images that are right before it.
        batch_size: images attacked at once; changes speed, and no result.
        seed: of the attacks' random numbers.
        jit: compile with XLA.
        outputs: attack -> the function that it looks at, images -> [N, D], for those that read other than these logits.
        support: labels [M] and projections [M, D] that the SupCon attack contrasts with.
        crafted_on: the function that attacks on logits see, `logits_fn` where not given. Outcomes are always of
            `logits_fn`.
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
        crafted_on: Callable | None = None,
    ):
        self.attacks, self.batch_size = tuple(attacks), batch_size
        self._seed, self._support = seed, support

        def predict(x):
            return tf.argmax(logits_fn(x), axis=1, output_type=tf.int32)

        def compiled(function, image_shape, *others):
            """With XLA for batches of one size, which it would compile anew for each; else for batches of any."""
            count = batch_size if jit else None
            images = tf.TensorSpec([count, *image_shape], tf.float32)
            signature = [images, *(tf.TensorSpec([count] * rank, tf.int32) for rank in others)]
            return tf.function(function, signature, autograph=False, jit_compile=jit)

        def step_of(member, image_shape):
            own_logits = member.target_output == "logits" and member.proxy is None
            read = crafted_on if crafted_on and own_logits else logits_fn if outputs is None else outputs(member)

            def step(x, labels, round):
                targets = tf.argmin(logits_fn(x), axis=1, output_type=tf.int32) if member.targeted else labels
                crafted = craft_round(member, read, x, targets, seed=seed, round=round, support=support)
                distances = length(crafted.images - x, member.norm)
                return crafted.images, predict(crafted.images), distances, crafted.zero_gradients

            return compiled(step, image_shape, 1, 0)

        self._width = batch_size if jit else 1
        self._predict_of, self._step_of = (
            functools.cache(functools.partial(compiled, predict)),
            functools.cache(step_of),
        )
        self._count_classes = functools.cache(lambda shape: int(logits_fn(tf.zeros((1, *shape))).shape[-1]))

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
        """Attack images [N, H, W, C] in [0, 1] with labels [N]; `keep_images` keeps what was crafted.

        With a `journal` of this `fingerprint`, batches that it holds are read from it, and all others written to it.
        With `workers`, all of which call this with the same, each attacks some of the batches, and all get the whole.

        Each round of an attack, and each member of an ensemble, runs on what survived the rounds before, in batches of
        their own. A targeted attack aims at each image's least likely class; it succeeds, as any, where the image
        ends wrong.

        Raises:
            InvalidInputError: if the images are no batch of floats in [0, 1], no gradient reaches them, or an attack
                is not defined for so few classes.
        """
        check_images(images)
        images, labels = np.asarray(images, np.float32), np.asarray(labels, np.int32)
        progress, pieces = progress or Silent(), Pieces(workers, journal)
        (clean,) = pieces([(b"clean", lambda: {"predictions": self.predict(images)})])
        clean = clean["predictions"]
        outcomes = [
            self._attack(number, images, labels, clean, keep_images, progress, pieces)
            for number in range(len(self.attacks))
        ]

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
        )

    def _attack(
        self, number: int, images, labels, clean, keep_images: bool, progress: Progress, pieces: Pieces
    ) -> "_Outcome":
        """Run every round of an attack's members on what survives; a batch is a piece of the journal."""
        attack = self.attacks[number]
        survivors = np.flatnonzero(clean == labels)
        outcome = _Outcome(clean.copy(), np.full(len(images), np.nan), images.copy() if keep_images else None)
        num_classes = self._count_classes(images.shape[1:])
        members = [member.for_classes(num_classes) for member in attack.for_classes(num_classes).members]
        attempts = 0
        for index, member in enumerate(members):
            for round in range(member.num_rounds):
                name = describe(attack) if len(members) == 1 else f"{describe(attack)}: {member.label}"
                rounds = f", round {round + 1}/{member.num_rounds}" if member.num_rounds > 1 else ""
                progress.start(name + rounds, len(survivors), work=sum(member.num_passes))
                done, batches = 0, _batches(survivors, self.batch_size)
                wanted = [
                    (
                        f"{number} {index} {round} {describe(attack)} ".encode() + chosen.tobytes(),
                        functools.partial(self._run, member, round, images, labels, chosen, keep_images),
                    )
                    for chosen in batches
                ]
                for chosen, found in zip(batches, pieces(wanted), strict=True):
                    outcome.predictions[chosen] = found["predictions"]
                    outcome.distances[chosen] = found["distances"]
                    outcome.zero_gradients += float(np.sum(found["zero_gradients"]))
                    outcome.seconds += float(found["seconds"])
                    if keep_images:
                        outcome.adversarial[chosen] = found["images"]
                    done += len(chosen)
                    progress.update(done)
                attempts += done
                outcome.forwards += done * (member.num_passes[0] + 1)
                outcome.backwards += done * member.num_passes[1]
                survivors = survivors[outcome.predictions[survivors] == labels[survivors]]
                progress.finish(f"robust accuracy {len(survivors) / len(images):.2%}")
            outcome.stages += ((member.label, len(survivors) / len(images)),)
        outcome.zero_gradients /= max(1, attempts)
        return outcome

    def _run(self, member: Attack, round: int, images, labels, chosen, keep_images: bool) -> Result:
        """What one round makes of the images chosen."""
        started = time.perf_counter()
        filled = self._filled(chosen)
        step = self._step_of(member, images.shape[1:])
        x_adv, predicted, distances, zeros = step(images[filled], labels[filled], tf.constant(round))
        made = {"predictions": predicted, "distances": distances, "zero_gradients": zeros}
        if keep_images:
            made["images"] = x_adv
        arrays = {name: tensor.numpy()[: len(chosen)] for name, tensor in made.items()}
        return {**arrays, "seconds": np.array(time.perf_counter() - started)}

    def craft(self, number: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """What attack `number` makes of images [N, H, W, C]; per example, so the same as within an evaluation."""
        labels = np.asarray(labels, np.int32)
        outcome = self._attack(number, images, labels, self.predict(images), True, Silent(), Pieces(ALONE))
        return outcome.adversarial

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The classes [N] of images [N, H, W, C]."""
        predictions, predict = np.zeros(len(images), np.int32), self._predict_of(images.shape[1:])
        for chosen in _batches(np.arange(len(images)), self.batch_size):
            predictions[chosen] = predict(images[self._filled(chosen)]).numpy()[: len(chosen)]
        return predictions

    def _filled(self, chosen: np.ndarray) -> np.ndarray:
        """Indices of as many images as a compiled function takes at least: those chosen, then the first of them."""
        return np.concatenate([chosen, np.full(max(0, self._width - len(chosen)), chosen[0])])


@dataclasses.dataclass
class _Outcome:
    """One attack's part of a `Survival`, while it is made."""

    predictions: np.ndarray
    distances: np.ndarray
    adversarial: np.ndarray | None
    zero_gradients: float = 0.0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    stages: tuple[tuple[str, float], ...] = ()


def _batches(indices: np.ndarray, size: int) -> list[np.ndarray]:
    """The indices in as few batches as hold `size` at most, all about as large: a small one takes longer an image."""
    return np.array_split(indices, -(-len(indices) // size)) if len(indices) else []
