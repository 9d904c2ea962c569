"""How a classifier stands under attack: the survival table, and everything reported as a reduction of it."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_rcl.attacks import check_images, craft_and_count
from keras_rcl.progress import Progress, Silent
from keras_rcl.vocabulary.attack import Attack, describe
from keras_rcl.vocabulary.threat import ThreatModel


@dataclasses.dataclass(frozen=True)
class Survival:
    """Which images survived which attacks.

    attacks: A attacks. labels, clean_predictions: [N]. predictions: [A, N], on the adversarial images; an image that is
    wrong before the attack counts as fallen and is not attacked. zero_gradients: [A], the share of zero pixel gradients
    met. forwards, backwards: [A], passes of single images. seconds: [A]. adversarial: [A, N, H, W, C] or None.
    """

    attacks: tuple[Attack, ...]
    labels: np.ndarray
    clean_predictions: np.ndarray
    predictions: np.ndarray
    zero_gradients: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    seconds: np.ndarray
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
                "zero_gradients": float(self.zero_gradients[index]),
                "forwards": int(self.forwards[index]),
                "backwards": int(self.backwards[index]),
                "seconds": round(float(self.seconds[index]), 3),
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
    return {"norm": threat_model.norm, "epsilon": threat_model.epsilon}


class Evaluator:
    """Attacks a classifier on many images; compiled once, so that it can be called after every epoch.

    Args:
        logits_fn: images [N, H, W, C] in [0, 1] -> logits [N, K], in inference mode.
        attacks: run one after another, each on the images that are right before it.
        batch_size: images attacked at once; the last batch is filled up, so that no shape is traced twice.
        seed: of the attacks' random numbers.
        jit: compile with XLA.
    """

    def __init__(
        self, logits_fn: Callable, attacks: Sequence[Attack], *, batch_size: int = 250, seed: int = 0, jit: bool = False
    ):
        self.attacks, self.batch_size = tuple(attacks), batch_size

        def predict(x):
            return tf.argmax(logits_fn(x), axis=1, output_type=tf.int32)

        def attack_with(attack):
            def step(x, labels):
                targets = tf.argmin(logits_fn(x), axis=1, output_type=tf.int32) if attack.targeted else labels
                crafted = craft_and_count(attack, logits_fn, x, targets, seed=seed)
                return crafted.images, predict(crafted.images), crafted.zero_gradients

            return tf.function(step, autograph=False, jit_compile=jit)

        self._predict = tf.function(predict, autograph=False, jit_compile=jit)
        self._steps = [attack_with(attack) for attack in self.attacks]

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, *, keep_images: bool = False, progress: Progress | None = None
    ) -> Survival:
        """Attack images [N, H, W, C] in [0, 1] with labels [N]; `keep_images` keeps what was crafted.

        A targeted attack aims at each image's least likely class; it succeeds, as any, where the image ends wrong.

        Raises:
            Refused: if the images are no batch of floats in [0, 1], or no gradient reaches them.
        """
        check_images(images)
        progress = progress or Silent()
        labels = np.asarray(labels, np.int32)
        clean = self.predict(images)
        right = np.flatnonzero(clean == labels)
        predictions = np.tile(clean, (len(self.attacks), 1))
        adversarial = np.tile(images, (len(self.attacks), 1, 1, 1, 1)) if keep_images else None
        zeros, seconds = np.zeros(len(self.attacks)), np.zeros(len(self.attacks))
        for number, (attack, step) in enumerate(zip(self.attacks, self._steps, strict=True)):
            progress.start(describe(attack), len(right), work=attack.num_steps * attack.num_restarts)
            started, done = time.perf_counter(), 0
            for chosen, real in _batches(right, self.batch_size):
                x_adv, predicted, zero = step(images[chosen], labels[chosen])
                chosen = chosen[:real]
                predictions[number, chosen] = predicted.numpy()[:real]
                zeros[number] += float(np.sum(zero.numpy()[:real]))
                if keep_images:
                    adversarial[number, chosen] = x_adv.numpy()[:real]
                done += real
                progress.update(done)
            seconds[number] = time.perf_counter() - started
            survived = float(np.mean(predictions[number] == labels))
            progress.finish(f"robust accuracy {survived:.2%}")
        steps = np.array([attack.num_steps * attack.num_restarts for attack in self.attacks]) * len(right)
        # Beside the steps: a pass a restart to keep the best one, a pass to choose the target, a pass for the outcome.
        picks = np.array([attack.num_restarts if attack.num_restarts > 1 else 0 for attack in self.attacks])
        aims = np.array([attack.targeted for attack in self.attacks], int)
        return Survival(
            attacks=self.attacks,
            labels=labels,
            clean_predictions=clean,
            predictions=predictions,
            zero_gradients=zeros / max(1, len(right)),
            forwards=steps + (picks + aims + 1) * len(right),
            backwards=steps,
            seconds=seconds,
            adversarial=adversarial,
        )

    def craft(self, number: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """What attack `number` makes of images [N, H, W, C]; per example, so the same as within an evaluation."""
        adversarial = np.empty_like(images)
        for chosen, real in _batches(np.arange(len(images)), self.batch_size):
            x_adv, _, _ = self._steps[number](images[chosen], np.asarray(labels[chosen], np.int32))
            adversarial[chosen[:real]] = x_adv.numpy()[:real]
        return adversarial

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The classes [N] of images [N, H, W, C]."""
        predictions = np.zeros(len(images), np.int32)
        for chosen, real in _batches(np.arange(len(images)), self.batch_size):
            predictions[chosen[:real]] = self._predict(images[chosen]).numpy()[:real]
        return predictions


def _batches(indices: np.ndarray, size: int):
    """(indices of a full batch, how many of them count): the last batch is filled up with its first index."""
    for start in range(0, len(indices), size):
        chosen = indices[start : start + size]
        real = len(chosen)
        yield np.concatenate([chosen, np.full(size - real, chosen[0])]), real
