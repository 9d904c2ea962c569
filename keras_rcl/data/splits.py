"""The splits of a data set, in memory or streamed from disk; and choosing images with the class balance kept."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from keras_rcl.errors import InvalidInputError

SPLITS = ("train", "validation", "test")
"""The names of the splits of a data set."""


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
        return self.at(stratified(self.labels, limit, np.random.default_rng(0)))

    def at(self, kept: np.ndarray) -> "Split":
        """The images at some positions."""
        stored = {folder: examples[kept] for folder, examples in self.stored.items()}
        return Split(self.images[kept], self.labels[kept], self.indices[kept], stored)


class Piece(NamedTuple):
    """Consecutive records of a streamed split: `take` of a file after the first `skip`, or of the list of its images.

    Attributes:
        file: The file; empty if each image is a file of its own.
        skip: The number of records before the first.
        take: The number of records.
    """

    file: str
    skip: int
    take: int


class Records(Protocol):
    """A seed int32 [2] -> the serialised records of an epoch, in an order of that seed.

    With files `beside` each piece, the n-th record of each of them comes with the n-th record of the piece. An element
    is a vector of strings: the record, then one per file beside it.
    """

    def __call__(self, seed: tf.Tensor, beside: Sequence[tuple[str, ...]] = ()) -> tf.data.Dataset: ...


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """A training split that is read from disk during training, and never held in memory as a whole.

    Attributes:
        count: N images.
        held: some of them in memory, class balance kept, for uses that need only a few images.
        identity: names the files and which of their records are meant.
        records: the records of an epoch.
        open: file, skip and take of a piece -> its records.
        decode: one serialised record -> image uint8 [H, W, C], label int32.
        pieces: where the records are, in their order.
        stored: folder -> the file of adversarial examples of each piece.
        failures: what Python could not read; TensorFlow turns it into an error of its own.
    """

    count: int
    held: Split
    identity: str
    records: Records
    open: Callable[..., tf.data.Dataset]
    decode: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    pieces: tuple[Piece, ...]
    stored: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failures: list[InvalidInputError] = field(default_factory=list)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A context in which images are read; what Python could not read is raised as it was.

        Raises:
            InvalidInputError: if an image cannot be read.
        """
        try:
            yield
        except tf.errors.OpError:
            if self.failures:
                raise self.failures[0] from None
            raise

    def read(self, number: int, start: int, count: int) -> Split:
        """At most `count` images of a piece from its record `start` on, with their positions in the split."""
        piece = self.pieces[number]
        records = self.open(piece.file, piece.skip + start, min(count, piece.take - start))
        images, labels = [], []
        with self.reading():
            for image, label in records.map(self.decode).as_numpy_iterator():
                images.append(image)
                labels.append(label)
        first = sum(before.take for before in self.pieces[:number]) + start
        return Split(np.stack(images), np.array(labels, np.int64), np.arange(first, first + len(labels)))


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


class OnDemand(ImageData):
    """A data set of which each split is read when it is first needed.

    Args:
        name: As of `ImageData`.
        class_names: As of `ImageData`.
        read: `train`, `validation` or `test` -> the split.
    """

    def __init__(self, name: str, class_names: tuple[str, ...], read: Callable[[str], Split]):
        vars(self).update(name=name, class_names=class_names, _read=read)

    def __getattr__(self, name: str) -> Split:
        if name not in SPLITS:
            raise AttributeError(name)
        return vars(self).setdefault(name, self._read(name))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C), of a split that was read if there is one."""
        known = (vars(self)[name] for name in SPLITS if name in vars(self))
        split = next((split for split in known if len(split.labels)), None) or self.train.held
        return split.images.shape[1:]


class SourceSplit:
    """One of a data set's own splits, read when it is first needed.

    Args:
        labels: int64 [N], or a function that reads them.
        read: indices, ascending -> images uint8 [len(indices), H, W, C].
        identity: returns a text that names the images, for the records of a streamed split.
    """

    def __init__(
        self,
        labels: np.ndarray | Callable[[], np.ndarray],
        read: Callable[[np.ndarray], np.ndarray],
        identity: Callable[[], str] = str,
    ):
        self._labels, self.read, self.identity = labels, read, identity

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self._labels() if callable(self._labels) else self._labels


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
