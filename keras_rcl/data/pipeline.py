"""Batches of the views that a phase requests, as a pure function of (seed, epoch, step)."""

import contextlib

import numpy as np
import tensorflow as tf

from keras_rcl.data.adversarial_store import decode_example
from keras_rcl.data.augmentations import Rows, augment
from keras_rcl.data.splits import Split, StreamedSplit
from keras_rcl.data.tfdata_options import PARALLEL, PREFETCHED, untuned
from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime import philox
from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.dataset import NoAugmentation, Policy
from keras_rcl.vocabulary.phase import Adversarial, Augmented, View

NO_AUGMENTATION = NoAugmentation()
fold_in, split = tf.random.experimental.stateless_fold_in, tf.random.experimental.stateless_split


class Batches:
    """Batches of views for one phase, built and traced once; an epoch depends on the seed and its number alone.

    Attributes:
        batch_size: N, at most the number of images.
        steps_per_epoch: batches per epoch; the remainder of each epoch's permutation is dropped.
        dataset: one epoch per iteration, of elements (images float32 [V, N, H, W, C] in [0, 1], labels int32 [N],
            seed int32 [2]); of a share, N / n images. An adversarial view holds the images at which its attack starts,
            or the examples that are kept, varied as the images are; `seed` is for the attacks. If `indexed`, a fourth:
            their numbers in the split, int32 [N].
        refreshed: of each `refreshed` attack: the variable, uint8 [images, H, W, C], that its examples are read from;
            the images themselves until somebody assigns it.
    """

    def __init__(
        self,
        data: Split | StreamedSplit,
        views: tuple[View, ...],
        batch_size: int,
        seed: int | tuple[int, ...],
        *,
        augmentation: Policy = NO_AUGMENTATION,
        balanced: bool = False,
        indexed: bool = False,
        share: tuple[int, int] = (0, 1),
    ):
        """Build the dataset.

        Args:
            data: the images to draw from.
            views: the V views of each image, in order; none where images are looked up by their indices.
            batch_size: N.
            seed: one or more non-negative integers.
            augmentation: drawn once per image; all of its views are made from the result.
            indexed: add the numbers of the images to each element.
            balanced: every class equally often in every batch (up to rounding), cycling through its images.
            share: (i, n): of each batch only the i-th of n equal shares, counted from 0; n divides N.

        Raises:
            InvalidInputError: if the split is empty.
        """
        self._data, streamed = data, isinstance(data, StreamedSplit)
        count = data.count if streamed else len(data.labels)
        if not count:
            raise InvalidInputError(
                "no images to make batches of; lower dataset.validation_fraction, or raise dataset.limit"
            )
        self.batch_size = min(batch_size, count)
        self.steps_per_epoch = count // self.batch_size
        self._views, self._augmentation, self._indexed = tuple(views), augmentation, indexed
        count = self.batch_size // share[1]
        self._rows = Rows(share[0] * count, count, self.batch_size)
        self._order = self._balanced_order if balanced else self._shuffled_order
        self._seed = entropy(seed)
        self._images, self._labels = (None, None) if streamed else data.tensors
        kept = {view.attack for view in views if isinstance(view, Adversarial) and not view.crafted}
        for attack in kept if streamed else ():
            if attack.name == "refreshed":
                raise InvalidInputError(
                    f"{attack.label} are read from memory, and dataset.streamed holds no training image there; craft "
                    "them on the fly, or give --limit"
                )
        self._beside = tuple(sorted(kept, key=lambda attack: attack.folder)) if streamed else ()
        with tf.device("CPU"):
            self.refreshed = {
                attack: tf.Variable(data.images, trainable=False) for attack in kept if attack.name == "refreshed"
            }
            stored = {
                attack: tf.constant(data.stored[attack.folder])
                for attack in kept
                if attack.name == "stored" and not streamed
            }
            self._kept = {**self.refreshed, **stored}
            self._epoch = tf.Variable(0, trainable=False, name="epoch")
            self._first = tf.Variable(0, trainable=False, dtype=tf.int64, name="first_step")
        steps, batch = (self._streamed_steps, self._streamed_batch) if streamed else (self._steps, self._batch)
        self.dataset = (
            tf.data.Dataset.from_tensors(0)
            .flat_map(steps)
            .map(batch, num_parallel_calls=PARALLEL, deterministic=True)
            .prefetch(PREFETCHED)
            .with_options(untuned())
        )

    def reading(self) -> contextlib.AbstractContextManager:
        """A context in which the dataset is iterated; an image that cannot be read is an InvalidInputError."""
        return self._data.reading() if isinstance(self._data, StreamedSplit) else contextlib.nullcontext()

    def start_epoch(self, epoch: int, step: int = 0) -> None:
        """Choose the epoch that the next iteration of `dataset` gives, and the first step of it."""
        self._epoch.assign(epoch)
        self._first.assign(step)

    def indices(self, step: int) -> np.ndarray:
        """The numbers of the images in a step of the epoch, int [N]; empty if the split is streamed."""
        if self._images is None:
            return np.empty(0, int)
        order_seed, _ = self._epoch_seeds()
        return self._indices(order_seed)[step].numpy()

    def _epoch_seeds(self) -> list[tf.Tensor]:
        """Of the epoch's order, and of its steps."""
        return epoch_seeds(self._seed, self._epoch.read_value())

    def _indices(self, order_seed: tf.Tensor) -> tf.Tensor:
        """Of each step's images: int32 [steps, N]."""
        used = self.steps_per_epoch * self.batch_size
        return tf.reshape(self._order(order_seed, used), [self.steps_per_epoch, self.batch_size])

    @tf.autograph.experimental.do_not_convert
    def _steps(self, _) -> tf.data.Dataset:
        """The indices int32 [N] and the seed int32 [2] of each step of the epoch that is to be run."""
        order_seed, steps_seed = self._epoch_seeds()
        return (
            tf.data.Dataset.from_tensor_slices(self._indices(order_seed))
            .enumerate()
            .skip(self._first.read_value())
            .map(lambda step, chosen: (self._rows.select(chosen), fold_in(steps_seed, tf.cast(step, tf.int32))))
        )

    @tf.autograph.experimental.do_not_convert
    def _streamed_steps(self, _) -> tf.data.Dataset:
        """The images uint8 [N, H, W, C], labels int32 [N], examples and seed int32 [2] of each step that is to be run.

        The examples are uint8 [N, S, H, W, C], of S stored attacks. Records before the first step are read again, but
        not decoded.
        """
        order_seed, steps_seed = self._epoch_seeds()
        size, first = self.batch_size, self._first.read_value()
        return (
            self._data.records(order_seed, [self._data.stored[attack.folder] for attack in self._beside])
            .skip(first * size)
            .take((self.steps_per_epoch - first) * size)
            .batch(size, drop_remainder=True)
            .map(self._rows.select)  # so that only these are decoded
            .unbatch()
            .map(self._decoded, num_parallel_calls=PARALLEL, deterministic=True)
            .batch(self._rows.count, drop_remainder=True)
            .enumerate(first)
            .map(lambda step, batch: (*batch, fold_in(steps_seed, tf.cast(step, tf.int32))))
        )

    @tf.autograph.experimental.do_not_convert
    def _decoded(self, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """A vector of records -> image uint8 [H, W, C], label int32, stored examples uint8 [S, H, W, C]."""
        image, label = self._data.decode(found[0])
        examples = [decode_example(found[1 + i], image.shape, label) for i in range(len(self._beside))]
        return image, label, tf.stack(examples) if examples else tf.zeros([0, *image.shape], tf.uint8)

    def _shuffled_order(self, seed: tf.Tensor, used: int) -> tf.Tensor:
        """The first `used` of a permutation of all images."""
        return self._permutation(seed)[:used]

    def _balanced_order(self, seed: tf.Tensor, used: int) -> tf.Tensor:
        """The classes in turn, each giving the next image of its own permutation, over and over."""
        permutation_seed, class_seed = tf.unstack(split(seed))
        permutation = self._permutation(permutation_seed)
        by_class = tf.gather(permutation, tf.argsort(tf.gather(self._labels, permutation), stable=True))
        counts = np.unique(self._labels.numpy(), return_counts=True)[1].astype(np.int32)
        starts = np.cumsum(counts, dtype=np.int32) - counts
        turn, occurrence = tf.range(used) % len(counts), tf.range(used) // len(counts)
        classes = tf.gather(tf.random.experimental.stateless_shuffle(tf.range(len(counts)), class_seed), turn)
        return tf.gather(by_class, tf.gather(starts, classes) + occurrence % tf.gather(counts, classes))

    def _permutation(self, seed: tf.Tensor) -> tf.Tensor:
        """All image indices, int32, in a random order."""
        return philox.shuffled(tf.range(len(self._labels)), seed)

    @tf.autograph.experimental.do_not_convert
    def _batch(self, indices: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The element of one step: images [V, N, H, W, C], labels [N], seed [2], and if `indexed` indices [N]."""
        kept = {attack: tf.gather(images, indices) for attack, images in self._kept.items()}
        viewed = self._viewed(tf.gather(self._images, indices), tf.gather(self._labels, indices), seed, kept)
        return *viewed, *((indices,) if self._indexed else ())

    @tf.autograph.experimental.do_not_convert
    def _streamed_batch(self, images: tf.Tensor, labels: tf.Tensor, examples: tf.Tensor, seed: tf.Tensor):
        """The element of one step of a streamed split, from its images and their examples; see `_batch`."""
        return self._viewed(images, labels, seed, {attack: examples[:, i] for i, attack in enumerate(self._beside)})

    def _viewed(self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, kept: dict[Attack, tf.Tensor]):
        """The element of these images uint8 [N, H, W, C] and of the examples of them that are kept."""
        images = tf.cast(images, tf.float32) / 255
        kept = {attack: tf.cast(examples, tf.float32) / 255 for attack, examples in kept.items()}
        views, attack_seed = make_views(self._views, self._augmentation, images, seed, rows=self._rows, kept=kept)
        return views, labels, attack_seed


def entropy(seed: int | tuple[int, ...]) -> np.ndarray:
    """The seed int32 [2] that one or more non-negative integers give."""
    return np.random.SeedSequence(seed).generate_state(2).view(np.int32)


def epoch_seeds(seed, epoch) -> list[tf.Tensor]:
    """The seeds of an epoch, int32 [2] each: of the order of its images, and of its steps."""
    return tf.unstack(split(fold_in(seed, epoch)))


def step_seed(seed, epoch, step) -> tf.Tensor:
    """The seed int32 [2] of a step of an epoch."""
    return fold_in(epoch_seeds(seed, epoch)[1], step)


def make_views(
    views: tuple[View, ...],
    augmentation: Policy,
    images: tf.Tensor,
    seed: tf.Tensor,
    *,
    rows: Rows | None = None,
    kept: dict[Attack, tf.Tensor] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Make the views of a batch of images, except for the attacks.

    Args:
        views: The V views of each image, in order.
        augmentation: Drawn once per image; all of its views are made from the result.
        images: float32 [N, H, W, C] in [0, 1].
        seed: int32 [2], of the step.
        rows: Where in a larger batch these images are; see `augment`.
        kept: Of each attack whose examples are not crafted for the batch: the examples of these images.

    Returns:
        float32 [V, N, H, W, C], and the seed int32 [2] of the attacks. An adversarial view holds the images at which
        its attack starts.
    """
    seeds, shared_seed = tf.unstack(split(seed, num=len(views) + 1)), fold_in(seed, len(views) + 1)
    clean = augment(augmentation, images, shared_seed, rows)
    varied = {attack: augment(augmentation, examples, shared_seed, rows) for attack, examples in (kept or {}).items()}
    made = [_view(view, clean, varied, view_seed, rows) for view, view_seed in zip(views, seeds[1:], strict=True)]
    return tf.stack(made) if made else tf.zeros([0, *clean.shape]), seeds[0]


def _view(view: View, clean: tf.Tensor, kept: dict[Attack, tf.Tensor], seed: tf.Tensor, rows: Rows | None) -> tf.Tensor:
    """One view, [N, H, W, C], of the clean images [N, H, W, C], or of the examples that are kept."""
    source, images = view, clean
    if isinstance(view, Adversarial):
        source, images = view.of, clean if view.crafted else kept[view.attack]
    return augment(source.policy, images, seed, rows) if isinstance(source, Augmented) else images
