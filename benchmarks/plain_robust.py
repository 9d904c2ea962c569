"""The robust accuracy of `at` trained by a plain loop, beside that of `fit` with the same configuration.

    python -m benchmarks.plain_robust --json results/benchmarks/plain_robust.json
    python cli.py report --paper contrast --scale cpu --train --seeds 3

CIFAR-10 (TFDS, found by TFDS_DATA_DIR). The loop has the training images, the network, the batches, the attack, the
optimizer and the epochs of that configuration, and nothing else of this package. The same attacks on the same test
images judge both.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from benchmarks.plain_at import PlainAT  # noqa: E402
from keras_rcl import config  # noqa: E402
from keras_rcl.config import Experiment  # noqa: E402
from keras_rcl.data.sources import ImageData, load  # noqa: E402
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.evaluation.robustness import Evaluator  # noqa: E402
from keras_rcl.report.tables import markdown_table, percent  # noqa: E402
from keras_rcl.storage.atomic import write_json  # noqa: E402
from keras_rcl.vocabulary.attacks import AutoAttack  # noqa: E402
from keras_rcl.workflows.fit import networks  # noqa: E402
from keras_rcl.workflows.inputs import pixels  # noqa: E402

CONFIG, SCALE = Path("configs/papers/contrast/at.yaml"), "cpu"
AUTOATTACK_LIMIT = 1000
PADDING = 4


def batches_of(data: ImageData, size: int, seed: int) -> tf.data.Dataset:
    """Shuffled batches of training images in [0, 1], cropped and flipped at random, and labels."""
    height, width, channels = data.image_shape

    def varied(image, label):
        image = tf.image.resize_with_crop_or_pad(image, height + 2 * PADDING, width + 2 * PADDING)
        image = tf.image.random_flip_left_right(tf.image.random_crop(image, (height, width, channels)))
        return tf.cast(image, tf.float32) / 255, label

    dataset = tf.data.Dataset.from_tensor_slices((data.train.images, data.train.labels.astype("int32")))
    dataset = dataset.shuffle(len(data.train.labels), seed=seed).map(varied, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(size, drop_remainder=True).prefetch(2)


def trained(experiment: Experiment, data: ImageData) -> keras.Model:
    """The network of the experiment, trained by the plain loop; gives logits."""
    keras.utils.set_random_seed(experiment.seed)
    network, _ = networks(experiment, data)
    model = keras.Model(network.inputs, network.output["logits"])
    (phase,) = experiment.method.phases()
    attack, optimizer = phase.views[0].attack, phase.optimizer
    steps = phase.epochs * (len(data.train.labels) // phase.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(optimizer.learning_rate, steps)
    plain = PlainAT(model, attack.epsilon, attack.step_size, attack.num_steps, rate)
    batches = batches_of(data, phase.batch_size, experiment.seed)
    for epoch in range(phase.epochs):
        started = time.perf_counter()
        loss = plain.epoch(batches)
        print(f"epoch {epoch + 1}: loss {loss:.3f}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return model


def measured(model: keras.Model, experiment: Experiment, data: ImageData) -> dict[str, float]:
    """Clean and robust accuracy on test images, by attack."""
    (pgd,) = experiment.evaluation.attacks
    row = {}
    for attack, images in ((pgd, data.test), (AutoAttack(), data.test.limited(AUTOATTACK_LIMIT))):
        evaluator = Evaluator(lambda x: model(x, training=False), (attack,), seed=experiment.seed)
        survival = evaluator(pixels(images.images), images.labels)
        row.setdefault("clean_accuracy", survival.clean_accuracy)
        row[attack.label] = survival.rows()[0]["robust_accuracy"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="the file to write")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        experiment = config.load(CONFIG, None, [f"seed={seed}"], SCALE)
        data = load(experiment.dataset)
        rows.append({"seed": seed, **measured(trained(experiment, data), experiment, data)})
        print(rows[-1], file=sys.stderr, flush=True)
        if arguments.json:
            (pgd,) = experiment.evaluation.attacks
            facts = {"config": str(CONFIG), "scale": SCALE, "protocol": pgd.protocol}
            facts |= {"autoattack_limit": AUTOATTACK_LIMIT, "rows": rows}
            write_json(arguments.json, {"command": command_line(), "versions": versions(), **facts})
    cells = [[str(row["seed"]), *(percent(value) for name, value in row.items() if name != "seed")] for row in rows]
    header = ["seed", "clean", *list(rows[0])[2:]]
    print(markdown_table(header, cells, right=range(len(header))))


if __name__ == "__main__":
    main()
