"""Randomised smoothing: the class that a classifier gives most often under Gaussian noise, with certified radii."""

import dataclasses
import functools
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from scipy.special import ndtri

from keras_rcl.attacks import check_classes, check_images
from keras_rcl.attacks.craft import example_seeds
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.intervals import lower_limits
from keras_rcl.evaluation.sharding import Pieces
from keras_rcl.runtime.distributed import ALONE, Workers
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.storage.fingerprint import Fingerprint, hash_arrays
from keras_rcl.storage.journal import Journal, Result
from keras_rcl.vocabulary.labels import class_labels

ABSTAINED = -1
"""The class of an image for which no class is certainly the most likely one."""

GROUP = 100
"""Noisy copies that share a seed. Batches hold whole groups, so that the size of a batch changes no result."""


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """How a classifier is smoothed and certified.

    Attributes:
        sigma: standard deviation of the noise, in pixel units.
        n0: noisy copies of an image that choose its class.
        n: noisy copies that bound the probability of that class.
        alpha: the probability that the certificate of an image is wrong is at most this.

    Raises:
        InvalidInputError: if a value cannot be used.
    """

    sigma: float
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 100:
            raise InvalidInputError(
                f"sigma {self.sigma:g}: the noise needs a standard deviation above 0, in units of [0, 1]; "
                "hint: 0.25 is usual"
            )
        if self.n0 < 1:
            raise InvalidInputError(f"n0 {self.n0}: at least one noisy copy chooses the class; hint: 100 is usual")
        if self.n < self.n0:
            raise InvalidInputError(
                f"n {self.n} is smaller than n0 {self.n0}: the bound needs more noisy copies than the choice of the "
                "class; hint: n=100000, n0=100"
            )
        if not 0 < self.alpha < 0.5:
            raise InvalidInputError(f"alpha {self.alpha:g} is not between 0 and 0.5; hint: 0.001 is usual")

    def radius(self, count: int) -> float:
        """The certified L2 radius of a class that `count` of the `n` copies are assigned to; 0 if there is none.

            R = sigma Phi^-1(p),   p = the lower limit of the class's probability with confidence 1 - alpha

        where p is above 1/2. The limit is that of Clopper and Pearson.
        """
        lowest = float(lower_limits(np.array(count), np.array(self.n), self.alpha))
        return self.sigma * float(ndtri(lowest)) if lowest > 0.5 else 0.0


@dataclasses.dataclass(frozen=True)
class Smoothed:
    """The certificates of N images.

    Attributes:
        smoothing: sigma, n0, n and alpha.
        labels: [N].
        predictions: [N], the smoothed classifier's classes; -1 where it abstains.
        radii: [N], L2 radii in pixel units within which that class does not change; 0 where it abstains.
        counts: [N], how many of the `n` noisy copies are assigned to the class that was tried.
        seconds: [N].
    """

    smoothing: Smoothing
    labels: np.ndarray
    predictions: np.ndarray
    radii: np.ndarray
    counts: np.ndarray
    seconds: np.ndarray

    @property
    def abstained(self) -> float:
        """The share of images for which the smoothed classifier abstains."""
        return float(np.mean(self.predictions == ABSTAINED))

    @property
    def correct_radii(self) -> np.ndarray:
        """[N], the certified radii; -1 where the class is wrong or the smoothed classifier abstains."""
        return np.where(self.predictions == self.labels, self.radii, -1.0)

    def certified_accuracy(self, radius: float) -> float:
        """The share of images that are classified correctly with a certificate of at least this radius.

        An abstention counts as wrong.
        """
        return float(np.mean(self.correct_radii >= radius))

    @property
    def average_radius(self) -> float:
        """The mean certified radius, 0 for images that are not classified correctly (Zhai et al. 2020)."""
        return float(np.mean(np.maximum(self.correct_radii, 0.0)))

    def rows(self) -> list[dict[str, float]]:
        """Return the certified accuracy at multiples of sigma / 2, up to the first at which it is 0."""
        rows, step = [], self.smoothing.sigma / 2
        while not rows or rows[-1]["certified_accuracy"] > 0:
            radius = step * len(rows)
            rows.append({"radius": radius, "certified_accuracy": self.certified_accuracy(radius)})
        return rows


class Smoother:
    """Certifies the smoothed version of any classifier in L2 balls.

    Args:
        logits_fn: images [N, H, W, C] -> logits [N, K], in inference mode. It need not be differentiable. The noise
            takes pixels out of [0, 1].
        smoothing: the noise and the numbers of copies.
        batch_size: noisy copies classified at once; it changes the speed, and no result.
        seed: of the noise.

    References:
        Cohen, Rosenfeld and Kolter 2019, "Certified adversarial robustness via randomized smoothing"
        (arXiv:1902.02918), Algorithm Certify.
    """

    def __init__(self, logits_fn: Callable, smoothing: Smoothing, *, batch_size: int = 1000, seed: int = 0):
        self.smoothing, self._seed = smoothing, seed
        groups = max(1, batch_size // GROUP)

        def votes(image: tf.Tensor, seed: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
            """How many of `total` noisy copies of an image [H, W, C] are assigned to each class, [K]."""

            def noise(group):
                return tf.random.stateless_normal([GROUP, *image.shape], seed + tf.stack([group, 0]), alg="philox")

            def add(first, counts):
                numbers = first + tf.range(groups, dtype=tf.int64)
                drawn = tf.map_fn(noise, numbers, fn_output_signature=tf.float32)
                copies = image + smoothing.sigma * tf.reshape(drawn, [groups * GROUP, *image.shape])
                logits = logits_fn(copies)
                finite = tf.reduce_all(tf.math.is_finite(logits), axis=1)
                counted = finite & (first * GROUP + tf.range(groups * GROUP, dtype=tf.int64) < total)
                classes = tf.argmax(logits, axis=1, output_type=tf.int32)
                ones = tf.one_hot(tf.where(counted, classes, -1), self._classes(tuple(image.shape)), dtype=tf.int64)
                return first + groups, counts + tf.reduce_sum(ones, axis=0)

            start = tf.constant(0, tf.int64), tf.zeros([self._classes(tuple(image.shape))], tf.int64)
            return tf.while_loop(lambda first, _: first * GROUP < total, add, start)[1]

        self._classes = functools.cache(lambda shape: int(logits_fn(tf.zeros((1, *shape))).shape[-1]))
        self._votes = tf.function(votes, autograph=False)

    def fingerprint(self, images: np.ndarray, labels: np.ndarray) -> Fingerprint:
        """What the results in a journal depend on, except for the model and the versions."""
        settings = dataclasses.asdict(self.smoothing)
        return Fingerprint(images=hash_arrays(images, labels), seed=self._seed, settings=settings)

    def __call__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        progress: Progress | None = None,
        journal: Journal | None = None,
        workers: Workers = ALONE,
    ) -> Smoothed:
        """Certify images [N, H, W, C] in [0, 1] with labels [N]; with a `journal` of this fingerprint, resume it.

        Raises:
            InvalidInputError: If the images are not a batch of floats in [0, 1], or a label is outside the classes.
        """
        images = np.asarray(check_images(images), np.float32)
        labels = class_labels(labels, count=len(images))
        if not len(images):
            raise InvalidInputError("there are no images; hint: give at least one")
        check_classes(self._classes(images.shape[1:]), labels)
        progress, found = progress or Silent(), []
        progress.start(f"smoothing sigma {self.smoothing.sigma:g}", len(images), work=self.smoothing.n)
        tasks = [
            (f"smoothed {number}".encode(), functools.partial(self._certify, image))
            for number, image in enumerate(images)
        ]
        for result in Pieces(workers, journal)(tasks):
            found.append(result)
            progress.update(len(found))

        def column(name):
            return np.array([result[name].item() for result in found])

        smoothed = Smoothed(self.smoothing, labels, *map(column, ("prediction", "radius", "count", "seconds")))
        progress.finish(f"certified accuracy {smoothed.certified_accuracy(0.0):.2%}")
        return smoothed

    def _certify(self, image: np.ndarray) -> Result:
        """The certificate of one image: some copies choose the class, others bound its probability."""
        started, smoothing = time.perf_counter(), self.smoothing
        seed = example_seeds(tf.constant(image[None]), self._seed)[0]
        choice = self._votes(image, seed, tf.constant(smoothing.n0, tf.int64)).numpy()
        top = int(choice.argmax())
        # 2^32 apart, so that the copies that bound the probability are others than those that chose the class.
        votes = self._votes(image, seed + tf.constant([0, 2**32], tf.int64), tf.constant(smoothing.n, tf.int64))
        count = int(votes.numpy()[top])
        radius = smoothing.radius(count)
        return {
            "prediction": np.array(top if radius > 0 else ABSTAINED),
            "radius": np.array(radius),
            "count": np.array(count),
            "seconds": np.array(time.perf_counter() - started),
        }
