"""One SupCon step of a large batch in parts: its peak memory, and its gradient beside the whole batch's.

    python -m benchmarks.micro_batch --json results/robustness/micro_batch.json

Images of CIFAR's size, a random pattern a class under noise, two views of each, through a small network without
BatchNorm, so that images are coupled by the loss alone. The step is plain gradient descent with a rate of 1,024, so
that the gradient is the change of the weights over the rate, and their own rounding is small beside it. Each step runs
in a process of its own, whose peak resident memory is the kernel's own figure.
"""

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np

from benchmarks.command import command_line

RATE = 1024.0


def step(batch_size: int, micro_batch: int | None, channels: int) -> tuple[np.ndarray, dict]:
    """The gradient, flat, and what it took."""
    from keras_rcl.runtime.tensorflow import start_tensorflow

    start_tensorflow()
    import keras
    import tensorflow as tf
    from keras import layers

    from keras_rcl.training.robust_trainer import RobustTrainer
    from keras_rcl.vocabulary.compute import ComputeSettings
    from keras_rcl.vocabulary.phase import Clean, CrossEntropy, Phase, SupCon

    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    x = image
    for width in (channels, 2 * channels, 4 * channels):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.AveragePooling2D(2)(x)
    embedding = layers.GlobalAveragePooling2D()(x)
    projected = layers.Dense(128)(embedding)
    outputs = {
        "embedding": embedding,
        "projection": layers.UnitNormalization()(projected),
        "unnormalized_projection": projected,
        "logits": layers.Dense(10)(embedding),
    }
    network = keras.Model(image, outputs)
    phase = Phase(
        name="large batch",
        epochs=1,
        trains=("encoder", "projector", "classifier"),
        views=(Clean(), Clean()),
        terms=(SupCon(temperature=0.1), CrossEntropy(weight=0.01)),
        batch_size=batch_size,
    )
    trainer = RobustTrainer(network, phase, ComputeSettings(micro_batch=micro_batch), steps_per_epoch=1)
    trainer.compile(optimizer=keras.optimizers.SGD(RATE), jit_compile=False)
    rng, labels = np.random.default_rng(0), np.arange(batch_size) % 10
    patterns = rng.random((10, 4, 4, 3), np.float32).repeat(8, axis=1).repeat(8, axis=2)
    images = (patterns[labels] + rng.random((2, batch_size, 32, 32, 3), np.float32)) / 2
    batch = tf.constant(images), tf.constant(labels, tf.int32), tf.constant([0, 0])
    begun, started = network.get_weights(), time.perf_counter()
    loss = trainer.fit(tf.data.Dataset.from_tensors(batch), shuffle=False, verbose=0).history["supcon"][0]
    seconds = time.perf_counter() - started
    ended = network.get_weights()
    gradient = np.concatenate([np.ravel(before - after) / RATE for before, after in zip(begun, ended, strict=True)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return gradient, {"supcon": loss, "peak_gib": round(peak, 2), "seconds": round(seconds, 1)}


def apart(*arguments) -> tuple[np.ndarray, dict]:
    """`step` in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(step, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--channels", type=int, default=32, help="Of the first of three convolutions.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = options.batch_size, options.micro_batch, options.channels
    gradient, in_parts = apart(*sizes)
    whole_gradient, whole = apart(options.batch_size, None, options.channels)
    result = {
        "command": command_line(),
        "batch_size": options.batch_size,
        "views": 2,
        "micro_batch": options.micro_batch,
        "channels": options.channels,
        "weights": len(gradient),
        "in_parts": in_parts,
        "whole": whole,
        "largest_gradient": float(np.abs(whole_gradient).max()),
        "largest_difference": float(np.abs(gradient - whole_gradient).max()),
        "relative_difference": float(np.linalg.norm(gradient - whole_gradient) / np.linalg.norm(whole_gradient)),
    }
    text = json.dumps(result, indent=1)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
