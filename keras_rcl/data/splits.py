"""The splits of a data set, in memory or streamed from disk; and choosing images with the class balance kept."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        indices: int64 [N], the position in the data set's own split (in the whole data set where it has only one).
        stored: folder -> adversarial examples of the images, uint8 [N, H, W, C].
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    stored: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def held(self) -> "Split":
        """The images in memory: all of them."""
        return self

    @functools.cached_property
    def tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Images uint8 [N, H, W, C] and labels int32 [N] in the host's memory, once for all users."""
        with tf.device("CPU"):
            return tf.constant(self.images), tf.constant(self.labels, tf.int32)

    def limited(self, limit: int | None) -> "Split":
        """At most `limit` images, class balance kept, always the same ones; all where `limit` is None."""
        if limit is None or limit >= len(self.labels):
            return self
        kept = stratified(self.labels, limit, np.random.default_rng(0))
        stored = {folder: examples[kept] for folder, examples in self.stored.items()}
        return Split(self.images[kept], self.labels[kept], self.indices[kept], stored)


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """A training split that is read from disk during training, and never held in memory as a whole.

    Attributes:
        count: N images.
        held: some of them in memory, class balance kept, for uses that need only a few images.
        identity: names the files and which of their records are meant.
        records: a seed int32 [2] -> the serialised records in an order of that seed.
        decode: one serialised record -> image uint8 [H, W, C], label int32.
    """

    count: int
    held: Split
    identity: str
    records: Callable[[tf.Tensor], tf.data.Dataset]
    decode: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclass(frozen=True)
class ImageData:
    """A labelled image data set in its three disjoint splits."""

    name: str
    class_names: tuple[str, ...]
    train: Split | StreamedSplit
    validation: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.train.held.images.shape[1:]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [C] of the training pixels in [0, 1]; 1 for a channel that never varies.

        For a streamed split they are those of the images in memory.
        """
        values = np.arange(256) / 255
        channels = np.moveaxis(self.train.held.images, -1, 0)
        shares = np.stack([np.bincount(channel.ravel(), minlength=256) / channel.size for channel in channels])
        mean = shares @ values
        variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
        constant = np.count_nonzero(shares, axis=1) == 1
        return mean, np.where(constant, 1.0, np.sqrt(variance))


@dataclass(frozen=True)
class SourceSplit:
    """One of a data set's own splits: all its labels, and its images on demand.

    Attributes:
        labels: int64 [N].
        read: indices, ascending -> images uint8 [len(indices), H, W, C].
    """

    labels: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]


def stratified(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Choose `size` positions at random, ascending, with the classes in the proportions of `labels`.

    Each class gets its share rounded down; the rest goes to the largest remainders (Hamilton's method).
    """
    if not size:
        return np.zeros(0, np.int64)
    classes, counts = np.unique(labels, return_counts=True)
    quota, remainder = np.divmod(size * counts, len(labels))
    quota[np.argsort(-remainder, kind="stable")[: size - quota.sum()]] += 1
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
    return np.sort(np.concatenate([member[:share] for member, share in zip(members, quota, strict=True)]))


def gathered(images: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Collect `count` images uint8 [H, W, C] of one shape in one array, without holding them twice."""
    found = np.zeros((0, 1, 1, 1), np.uint8)
    for position, image in enumerate(images):
        if not position:
            found = np.empty((count, *image.shape), np.uint8)
        found[position] = image
    return found
