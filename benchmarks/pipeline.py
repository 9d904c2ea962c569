"""Images a second that our pipeline prepares, by policy, beside plain tf.data chains.

    python -m benchmarks.pipeline --images 2000 --json results/benchmarks/pipeline.json

An epoch of two views of each image in batches of 128. Ours draws every image by its own seed, so that an epoch can be
repeated exactly; the plain chains, which anybody would write, do not. How long `fit` waits is `benchmarks.train_step`'s
to say.
"""

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from benchmarks.side_by_side import alternate, options, random_data, rows_of, tell  # noqa: E402
from keras_rcl.data.pipeline import Batches  # noqa: E402
from keras_rcl.vocabulary.dataset import CropFlip, NoAugmentation, SimCLR  # noqa: E402
from keras_rcl.vocabulary.phase import Augmented  # noqa: E402

BATCH, VIEWS = 128, 2


def ours(part, policy):
    batches = Batches(part, (Augmented(policy=policy),) * VIEWS, BATCH, 0)

    def epoch():
        batches.start_epoch(0)
        return sum(images.shape[1] for images, _, _ in batches.dataset)

    return epoch


def plain(part, view):
    """`view` is float images [N, H, W, C] -> one augmented view of them."""
    dataset = tf.data.Dataset.from_tensor_slices((part.images, part.labels)).shuffle(len(part.labels))
    dataset = dataset.batch(BATCH, drop_remainder=True)

    def views(images, labels):
        images = tf.cast(images, tf.float32) / 255
        return tf.stack([view(images) for _ in range(VIEWS)]), labels

    dataset = dataset.map(views, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return lambda: sum(images.shape[1] for images, _ in dataset)


def crop_flip(images):
    """One crop for the whole batch."""
    padded = tf.pad(images, [[0, 0], [4, 4], [4, 4], [0, 0]])
    return tf.image.random_flip_left_right(tf.image.random_crop(padded, tf.shape(images)))


def main() -> None:
    arguments = options(__doc__, images=2000, network=False).parse_args()
    part = random_data(arguments.images).train
    layers = keras.Sequential([keras.layers.RandomCrop(32, 32), keras.layers.RandomFlip("horizontal")])
    contenders = {
        "ours, crop_flip": ours(part, CropFlip()),
        "tf.image, one crop a batch": plain(part, crop_flip),
        "Keras layers, one crop a batch": plain(part, lambda images: layers(images, training=True)),
        "ours, none": ours(part, NoAugmentation()),
        "plain, none": plain(part, lambda images: images),
        "ours, simclr": ours(part, SimCLR()),
    }
    seconds, prepared = alternate(contenders, arguments.repeats, arguments.only)
    images = {name: VIEWS * prepared[name] for name in prepared}
    tell(arguments, rows_of(seconds, images, {}), batch=BATCH, views=VIEWS)


if __name__ == "__main__":
    main()
