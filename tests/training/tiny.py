"""Everything small: 8x8 images of three classes, a network of a few thousand weights, CLAF in a few steps."""

import numpy as np

from keras_rcl.data.sources import ImageData, Split
from keras_rcl.methods.clafs import CLAFS
from keras_rcl.networks import build_network, parts
from keras_rcl.training.phase_runner import PhaseRunner
from keras_rcl.training.run_context import RunContext, Validation
from keras_rcl.training.run_phases import run_phases
from keras_rcl.training.tensorboard import TensorBoardWriter
from keras_rcl.vocabulary.attacks import PGD, Noise
from keras_rcl.vocabulary.compute import ComputeSettings
from keras_rcl.vocabulary.dataset import CropFlip
from keras_rcl.vocabulary.network import Network
from keras_rcl.vocabulary.phase import Adam

CLASSES = 3
BATCH = 16


def image_part(count: int, seed: int) -> Split:
    """Each class is bright in a third of the rows of its own; the rest is noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = rng.integers(0, 96, (count, 8, 8, 1))
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 3] += 128
    return Split(images=images.astype(np.uint8), labels=labels, indices=np.arange(count))


def image_data(count: int = 2 * BATCH) -> ImageData:
    parts_of = {name: image_part(count, seed) for seed, name in enumerate(("train", "validation", "test"))}
    return ImageData(name="stripes", class_names=("top", "middle", "bottom"), **parts_of)


def tiny_network(seed: int = 0, precision: str = "float32"):
    word = Network(encoder="small_cnn", projection_hidden=8, projection_dim=4)
    return build_network(word, (8, 8, 1), CLASSES, mean=[0.35], std=[0.3], seed=seed, precision=precision)


def tiny_clafs(**changes) -> CLAFS:
    """One epoch of everything, unless changed."""
    small = dict(
        warmup_epochs=1,
        adversarial_epochs=1,
        inner_epochs=1,
        linear_epochs=1,
        batch_size=BATCH,
        augmentation=CropFlip(padding=1),
        attack=PGD(epsilon=8 / 255, num_steps=2),
        optimizer=Adam(learning_rate=0.01, schedule="cosine"),
    )
    return CLAFS(**{**small, **changes})


def runner(network, phase, data=None, *, epochs=None, seed=(0,), **compute) -> PhaseRunner:
    """A phase runner; `compute` are fields of `ComputeSettings`."""
    data = image_data() if data is None else data
    epochs = phase.epochs if epochs is None else epochs
    return PhaseRunner(network, phase, data, epochs=epochs, seed=seed, compute=ComputeSettings(**compute))


def eager_epoch(steps: PhaseRunner) -> dict[str, float]:
    """Run the steps of an epoch without a graph, which takes longer to trace; returns the means of the metrics."""
    for batch in steps.batches.dataset:
        metrics = steps.trainer.train_step(batch)
    return {name: float(value) for name, value in metrics.items()}


def train(folder, network, phases, *, evaluate=None, patience=None, seed=0, precision="float32", **context):
    """Run phases on the tiny images in a folder; `context` are fields of `RunContext`. Returns the chosen metrics.

    The monitored attack is noise, whose graph has no gradient.
    """
    with TensorBoardWriter(folder) as writer:
        return run_phases(
            network,
            phases,
            image_data(),
            RunContext(folder, writer, **context),
            Validation(Noise(), evaluate, patience),
            seed=seed,
            compute=ComputeSettings(precision=precision),
        )


def snapshot(network) -> dict[tuple[str, str], list[np.ndarray]]:
    """(part, kind of variable) -> values; the kinds are kernel, bias, gamma, beta, moving_mean, moving_variance."""
    values: dict = {}
    for name, part in parts(network).items():
        for variable in part.variables:
            values.setdefault((name, variable.name), []).append(variable.numpy())
    return values


def moved(before: dict, after: dict) -> tuple[set, set]:
    """The (part, kind) of which every variable moved, and those of which any did, to the last bit."""
    same = {key: [np.array_equal(a, b) for a, b in zip(before[key], after[key], strict=True)] for key in before}
    return {key for key, found in same.items() if not any(found)}, {key for key, f in same.items() if not all(f)}
