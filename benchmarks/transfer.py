"""Frozen encoders of CIFAR-10 on other data: a linear classifier on their embeddings, clean and attacked.

    python -m benchmarks.transfer saved_models/at saved_models/at_scl --json results/benchmarks/transfer.json

MNIST (TFDS, found by TFDS_DATA_DIR) or `--dataset digits`, resized to what the encoder reads, in three equal channels.
The classifier learns from the embeddings of clean training images. AutoAttack is through encoder and classifier.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import keras  # noqa: E402

from keras_rcl.data.sources import Split, load  # noqa: E402
from keras_rcl.evaluation.record import versions  # noqa: E402
from keras_rcl.evaluation.robustness import Evaluator  # noqa: E402
from keras_rcl.model_io.encoder import load_encoder  # noqa: E402
from keras_rcl.report.tables import markdown_table, percent  # noqa: E402
from keras_rcl.storage.atomic import write_json  # noqa: E402
from keras_rcl.vocabulary.attacks import AutoAttack  # noqa: E402
from keras_rcl.vocabulary.dataset import Dataset  # noqa: E402
from keras_rcl.vocabulary.threat import parse_fraction  # noqa: E402
from keras_rcl.workflows.inputs import pixels  # noqa: E402

BATCH = 250


def embeddings(embed, split: Split) -> np.ndarray:
    """The embeddings of a split, in batches."""
    images = pixels(split.images)
    return np.concatenate([embed(images[i : i + BATCH]).numpy() for i in range(0, len(images), BATCH)])


def classifier(features: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> keras.Model:
    """A linear classifier of embeddings, which are standardized in its first layer."""
    keras.utils.set_random_seed(seed)
    standardize = keras.layers.Normalization()
    standardize.adapt(features)
    model = keras.Sequential([keras.Input(features.shape[1:]), standardize, keras.layers.Dense(classes)])
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(features, labels, batch_size=BATCH, epochs=30, verbose=0)
    return model


def measured(export: Path, train: Split, test: Split, classes: int, attack: AutoAttack) -> dict[str, float]:
    """Clean and robust accuracy of one encoder."""
    embed = load_encoder(export, train.images.shape[1:]).embedding
    head = classifier(embeddings(embed, train), train.labels, classes, seed=0)
    evaluator = Evaluator(lambda x: head(embed(x), training=False), (attack,), batch_size=BATCH)
    survival = evaluator(pixels(test.images), test.labels)
    robust = survival.rows()[0]["robust_accuracy"]
    return {"clean_accuracy": survival.clean_accuracy, "robust_accuracy": robust}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path, help="folders of exports")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--test", type=int, default=1000, help="test images")
    parser.add_argument("--epsilon", default="8/255")
    parser.add_argument("--json", type=Path, help="the file to write")
    arguments = parser.parse_args()
    data = load(Dataset(name=arguments.dataset, validation_fraction=0))
    train, test = data.train.limited(arguments.train), data.test.limited(arguments.test)
    attack, rows = AutoAttack(epsilon=parse_fraction(arguments.epsilon)), {}
    for export in arguments.exports:
        rows[export.name] = measured(export, train, test, len(data.class_names), attack)
        print(f"{export.name}: {rows[export.name]}", file=sys.stderr, flush=True)
    cells = [[name, *(percent(value) for value in row.values())] for name, row in rows.items()]
    print(markdown_table(["encoder", "clean", attack.label], cells, right=(1, 2)))
    if arguments.json:
        facts = {"dataset": arguments.dataset, "train": len(train.labels), "test": len(test.labels)}
        facts |= {"attack": attack.label, "protocol": attack.protocol}
        write_json(arguments.json, {"command": command_line(), "versions": versions(), **facts, "rows": rows})


if __name__ == "__main__":
    main()
