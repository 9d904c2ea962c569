"""Data sets that are larger than memory: training reads their files, evaluation a sample of fixed size."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from keras_rcl.data.splits import ImageData, Piece, Records, SourceSplit, Split, StreamedSplit
from keras_rcl.data.tfdata_options import PARALLEL
from keras_rcl.data.tfds_sets import examples, prepared
from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime import philox
from keras_rcl.vocabulary.dataset import Dataset

SAMPLE = 1024
"""Number of training images in memory: for monitoring, contrast, and the mean of the pixels."""
READERS = 16
"""Number of pieces that are read at once."""
PIECE = 1024
"""Number of image files in a piece."""


def load_streamed(dataset: Dataset) -> ImageData:
    """Load a data set of TFDS whose training split stays on disk.

    The validation split is the end of TFDS' train split, which TFDS shuffled when it prepared the files. Of it and of
    the test split `held_images` images are loaded, and a few of the training split, with the classes balanced: the
    files are read from their beginning until there are enough. With `limit`, that number of training images is loaded
    in the same way, and nothing is streamed.

    Args:
        dataset: its name, place, size and splits.

    Returns:
        The three splits; `train` is a `StreamedSplit` if there is no limit.

    Raises:
        InvalidInputError: as for `load`; or if the examples are not shuffled.
    """
    builder, keys = prepared(dataset)
    info, feature = builder.info, builder.info.features[keys[0]]
    if info.disable_shuffling:
        raise InvalidInputError(
            f"{dataset.name} is not shuffled on disk, as streaming needs it; leave out dataset.streamed"
        )
    total, channels = info.splits["train"].num_examples, feature.shape[-1]
    count = total - round(dataset.validation_fraction * total)
    if not count:
        raise InvalidInputError(
            f"{dataset.name}: {total} images leave none for its train split; change validation_fraction"
        )

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def image_of(encoded: tf.Tensor) -> tf.Tensor:
        return cropped(feature.decode_example(encoded), dataset.image_size, channels)

    def held(split: str, first: int, size: int) -> Split:
        classes = info.features[keys[1]].num_classes
        chosen = list(_balanced(_examples(builder, split, keys), classes, size))
        shape = (dataset.image_size, dataset.image_size, channels)
        images = np.stack([image_of(encoded).numpy() for _, _, encoded in chosen]) if chosen else np.zeros((0, *shape))
        labels = np.array([label for _, label, _ in chosen], np.int64)
        return Split(images.astype(np.uint8), labels, first + np.array([at for at, _, _ in chosen], np.int64))

    train, size = f"train[:{count}]", dataset.limit or dataset.held_images
    sample = held(train, 0, dataset.limit or min(SAMPLE, dataset.held_images))
    validation = held(f"train[{count}:]", count, size) if count < total else _nothing(sample)
    test = held(_test_split(builder, keys), 0, size)
    if not dataset.limit:
        sample = _streamed(builder, train, count, sample, keys, image_of, dataset.shuffle_buffer)
    return ImageData(dataset.name, tuple(info.features[keys[1]].names), sample, validation, test)


def cropped(image: tf.Tensor, size: int, channels: int) -> tf.Tensor:
    """The middle of an image: uint8 [H, W, C] -> uint8 [size, size, C].

    The shorter side is brought to 8/7 of the size, bilinearly and antialiased (256 for 224), and the square in the
    middle cut out. An image of that size stays as it is.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    fits = (height == size) & (width == size)
    shorter = tf.where(fits, size, round(size * 8 / 7))
    sides = tf.cast(tf.stack([height, width]), tf.float32)
    sides = tf.round(tf.cast(shorter, tf.float32) * sides / tf.reduce_min(sides))
    pixels = tf.image.resize(image, tf.cast(sides, tf.int32), antialias=True)
    pixels = tf.image.resize_with_crop_or_pad(pixels, size, size)
    return tf.ensure_shape(tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8), [size, size, channels])


def streamed_files(source: SourceSplit, chosen: np.ndarray, held: Split, dataset: Dataset) -> StreamedSplit:
    """Stream images that are files of their own, in pieces in which they are mixed.

    Args:
        source: reads images by their index.
        chosen: the indices of the images.
        held: some of them in memory.
        dataset: its seed and its shuffle buffer.

    Returns:
        The streamed split. A record is the text of an index.
    """
    order = np.random.default_rng(dataset.split_seed).permutation(chosen)
    indices, labels = tf.constant(order, tf.int64), tf.constant(source.labels, tf.int32)
    pieces = tuple(Piece("", start, min(PIECE, len(order) - start)) for start in range(0, len(order), PIECE))
    failures: list[InvalidInputError] = []

    def read(index: np.ndarray) -> np.ndarray:
        try:
            return source.read(index[None])[0]
        except InvalidInputError as error:
            failures.append(error)
            raise

    def open_piece(file: tf.Tensor, skip: tf.Tensor, take: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(tf.strings.as_string(indices[skip : skip + take]))

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def decode(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        index = tf.strings.to_number(record, tf.int64)
        image = tf.numpy_function(read, [index], tf.uint8, stateful=False)
        return tf.ensure_shape(image, held.images.shape[1:]), tf.gather(labels, index)

    listed = hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
    identity = f"{source.identity()}, images {listed} in pieces of {PIECE}"
    records = _records(pieces, open_piece, dataset.shuffle_buffer)
    return StreamedSplit(len(order), held, identity, records, open_piece, decode, pieces, failures=failures)


def _records(pieces: Sequence[Piece], open_piece: Callable[..., tf.data.Dataset], buffer: int) -> Records:
    """The records of all pieces: several pieces are read at once, and the next record is drawn from a buffer."""

    def records(seed: tf.Tensor, beside: Sequence[tuple[str, ...]] = ()) -> tf.data.Dataset:
        # The order depends on `seed` alone: TensorFlow would mix in a global seed of the process, and fail if it is 0.
        tf.compat.v1.get_default_graph().seed = None
        piece_seed, record_seed = tf.unstack(tf.random.experimental.stateless_split(seed))
        order = philox.shuffled(tf.range(len(pieces)), piece_seed)
        files, skips, takes = zip(*pieces, strict=True)
        others = np.array(beside, object).reshape(len(beside), len(pieces)).T
        columns = (tf.constant(files), tf.constant(skips, tf.int64), tf.constant(takes, tf.int64))
        shuffled = [tf.gather(column, order) for column in (*columns, tf.constant(others, tf.string))]

        def read(file: tf.Tensor, skip: tf.Tensor, take: tf.Tensor, others: tf.Tensor) -> tf.data.Dataset:
            examples = [tf.data.TFRecordDataset(others[i]) for i in range(len(beside))]
            return tf.data.Dataset.zip(open_piece(file, skip, take), *examples).map(lambda *found: tf.stack(found))

        found = tf.data.Dataset.from_tensor_slices(tuple(shuffled)).interleave(
            read, cycle_length=READERS, num_parallel_calls=PARALLEL, deterministic=True
        )
        return found.shuffle(buffer, seed=tf.cast(record_seed[0], tf.int64), reshuffle_each_iteration=False)

    return records


def _streamed(builder, split: str, count: int, held: Split, keys, image_of, buffer: int) -> StreamedSplit:
    """The streamed split of these records of the train split."""
    instructions = builder.info.splits[split].file_instructions
    pieces = tuple(Piece(str(one.filename), one.skip, one.take) for one in instructions)
    features, (image_key, label_key) = builder.info.features, keys
    skip_image = {image_key: _skip_decoding()}

    def open_piece(file: tf.Tensor, skip: tf.Tensor, take: tf.Tensor) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(file).skip(skip).take(take)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def decode(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = features.deserialize_example(record, decoders=skip_image)
        return image_of(example[image_key]), tf.cast(example[label_key], tf.int32)

    identity = f"{builder.info.full_name} {split} {builder.info.splits['train'].shard_lengths}"
    return StreamedSplit(count, held, identity, _records(pieces, open_piece, buffer), open_piece, decode, pieces)


def _examples(builder, split: str, keys: tuple[str, str]) -> Iterator[tuple[int, int, bytes]]:
    """(position in the split, label, encoded image), in the order of the files; read as it is asked for."""
    image_key, label_key = keys
    batches = examples(builder, split, keys).as_numpy_iterator()
    found = (pair for batch in batches for pair in zip(batch[label_key], batch[image_key], strict=True))
    for position, (label, encoded) in enumerate(found):
        yield position, int(label), encoded


def _balanced(examples: Iterator, classes: int, size: int) -> Iterator:
    """The first examples of each class, up to size / classes of it and a few of any for what that leaves over."""
    share, over = divmod(size, classes)
    taken = np.zeros(classes, int)
    for example in examples:
        _, label, _ = example
        if not 0 <= label < classes:
            raise InvalidInputError(f"label {label} is outside the data set's {classes} classes; mend the data set")
        if taken[label] == share and over:
            over -= 1
        elif taken[label] >= share:
            continue
        taken[label] += 1
        yield example
        if taken.sum() == size:
            return


def _test_split(builder, keys: tuple[str, str]) -> str:
    """`test`, or `validation` where the labels of `test` are not public."""
    for name in ("test", "validation"):
        if name in builder.info.splits:
            _, label, _ = next(_examples(builder, name, keys))
            if label >= 0:
                return name
    raise InvalidInputError(
        f"{builder.name} has no labelled test or validation split to measure on; leave out dataset.streamed"
    )


def _nothing(like: Split) -> Split:
    return Split(like.images[:0], like.labels[:0], like.indices[:0])


def _skip_decoding():
    import tensorflow_datasets as tfds

    return tfds.decode.SkipDecoding()
