"""The `init` command: a look at somebody's images becomes a configuration that says why each value was chosen."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_rcl.data import sources
from keras_rcl.data.images import image_files, open_image, upright_size
from keras_rcl.errors import InvalidInputError
from keras_rcl.runtime.program import program_name
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.network import Encoder

SIZES = (32, 48, 64)
"""Sizes to which images are resized, in pixels."""

LARGEST = 96
"""The largest side of images that are not resized, in pixels."""

STEPS = 3000
"""The number of training steps that is aimed at."""

SAMPLED = 200
"""The number of images whose distances are measured."""


class Line(NamedTuple):
    """One line of YAML.

    Attributes:
        text: The key and the value, indented.
        why: The comment; empty if there is none.
    """

    text: str
    why: str = ""


class Look(NamedTuple):
    """What is known of a data set.

    Attributes:
        dataset: How it is read.
        found: In words, what images it has.
        shape: (H, W, C) of the images as they are read.
        classes: K.
        train: The number of training images.
        test: The number of test images.
        distance: The smallest L-inf distance of two sampled images of different classes, in [0, 1].
        has_gpu: Whether TensorFlow finds a GPU.
    """

    dataset: Dataset
    found: str
    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int
    distance: float
    has_gpu: bool


def suggest_config(path: str | Path) -> str:
    """Look at images, and write a configuration for `fit` that chooses and explains its settings.

    Args:
        path: A folder with one sub-folder per class, or an `.npz` file of arrays.

    Returns:
        YAML for `fit --config`: adversarial training with an encoder, an epsilon, a batch size and a number of epochs
        that fit the images. A comment on each line says why.

    Raises:
        InvalidInputError: If the images cannot be read.

    Example:
        >>> import keras_rcl
        >>> print(keras_rcl.suggest_config("photos"))  # doctest: +SKIP
    """
    look = _look(Path(path))
    lines = [*_data_lines(look), *_network_lines(look), *_method_lines(look), *_evaluation_lines(look)]
    width = min(58, max(len(line.text) for line in lines))
    head = [
        f"# Adversarial training on {path}: {look.found}, {look.classes} classes.",
        f"# Run: {program_name()} fit --config THIS_FILE",
        f"# Change what you know better. `{program_name()} show --config THIS_FILE` prints every setting.",
    ]
    body = [f"{line.text:<{width}}  # {line.why}" if line.why else line.text for line in lines]
    return "\n".join([*head, *body]) + "\n"


def _look(path: Path) -> Look:
    if path.is_dir():
        dataset, found = _look_at_folder(path)
    elif path.suffix == ".npz" or path.is_file():
        dataset, found = Dataset(name="arrays", data=str(path)), ""
    else:
        raise InvalidInputError(f"{path} does not exist; hint: give a folder with one sub-folder per class, or an .npz")
    source = sources.open_source(dataset)
    train = len(source.train.labels)
    sample = source.train.read(_spread(source.train.labels))
    shape = sample.shape[1:]
    if not found and max(shape[:2]) > LARGEST:
        dataset = Dataset(name="arrays", data=str(path), image_size=SIZES[-1])
        source = sources.open_source(dataset)
        found = f"images of {shape[0]}x{shape[1]}"
        sample = source.train.read(_spread(source.train.labels))
        shape = sample.shape[1:]
    test = round(dataset.test_fraction * train) if source.test is None else len(source.test.labels)
    train -= test if source.test is None else 0
    train -= round(dataset.validation_fraction * train) if source.validation is None else 0
    count = sum(len(split.labels) for split in (source.train, source.validation, source.test) if split is not None)
    found = f"{count} {found or f'images of {shape[0]}x{shape[1]}'}, {'grey' if shape[2] == 1 else 'colour'}"
    labels = source.train.labels[_spread(source.train.labels)]
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    size = shape[0], shape[1], shape[2]
    return Look(dataset, found, size, len(source.class_names), train, test, _distance(sample, labels), has_gpu)


def _look_at_folder(folder: Path) -> tuple[Dataset, str]:
    """How a folder is read, and what images it has: they are resized if their sizes differ or are large."""
    sizes = set()
    for path in image_files(folder):
        with open_image(path) as image:
            sizes.add(upright_size(image))
    if not sizes:
        raise InvalidInputError(f"{folder} holds no images; hint: give {sources.LAYOUTS}")
    shortest = min(min(size) for size in sizes)
    longest = max(max(size) for size in sizes)
    found = f"images of {shortest} to {longest} pixels" if len(sizes) > 1 else f"images of {'x'.join(map(str, *sizes))}"
    size = None
    if len(sizes) > 1 or longest > LARGEST:
        middle = int(np.median([min(size) for size in sizes]))
        size = max([size for size in SIZES if size <= middle], default=SIZES[0])
    return Dataset(name="folder", folder=str(folder), image_size=size), found


def _spread(labels: np.ndarray) -> np.ndarray:
    """Positions of a few images, with the class balance kept."""
    return sources.stratified(labels, min(SAMPLED, len(labels)), np.random.default_rng(0))


def _distance(images: np.ndarray, labels: np.ndarray) -> float:
    """The smallest L-inf distance of two images of different classes, in [0, 1]; 1 if there are none."""
    nearest, values = 255, images.reshape(len(images), -1).astype(np.int16)
    for row, label in zip(values, labels, strict=True):
        others = values[labels != label]
        if len(others):
            nearest = min(nearest, int(np.abs(others - row).max(axis=1).min()))
    return nearest / 255


def _data_lines(look: Look) -> list[Line]:
    dataset, size = look.dataset, look.dataset.image_size
    key, path = ("folder", dataset.folder) if dataset.name == "folder" else ("data", dataset.data)
    lines = [Line("dataset:"), Line(f"  name: {dataset.name}"), Line(f"  {key}: {json.dumps(str(path))}")]
    if size is not None:
        lines.append(
            Line(
                f"  image_size: {size}", f"the data set has {look.found.split(',')[0]}; twice the size costs four times"
            )
        )
    held = f"{look.test} images for the evaluation at the end" if look.test else "the evaluation at the end"
    return [
        *lines,
        Line("  test_fraction: 0.2", f"{held}; not read if the data set has a test split of its own"),
        Line("  validation_fraction: 0.2", f"chooses the best epoch, and leaves {look.train} images to train on"),
    ]


def _encoder(look: Look) -> tuple[Encoder, str]:
    side = max(look.shape[:2])
    if side <= 16:
        return "small_cnn", f"images of {side} pixels carry little detail"
    if look.has_gpu and look.train >= 2000:
        return "resnet18", f"{look.train} images, and a GPU"
    why = "no GPU was found" if not look.has_gpu else f"only {look.train} images"
    return "strided_cnn", f"{why}; with a GPU and thousands of images take resnet18"


def _network_lines(look: Look) -> list[Line]:
    encoder, why = _encoder(look)
    return [Line("network:"), Line(f"  encoder: {encoder}", why)]


def _epsilon(look: Look) -> tuple[int, str]:
    """Epsilon times 255, and why."""
    grey = look.shape[2] == 1
    usual = 16 if grey else 8
    why = "usual for small grey images" if grey else "usual for colour images"
    half = int(255 * look.distance / 2)
    if half >= usual:
        return usual, f"{why}; images of two classes differ by {round(255 * look.distance)}/255 or more in a pixel"
    return max(1, half), f"half the distance of the two most similar images of different classes ({usual}/255 is usual)"


def _batch(look: Look) -> tuple[int, int]:
    """The batch size, and the steps per epoch."""
    size = next((size for size in (128, 64, 32) if look.train >= 20 * size), min(16, max(1, look.train)))
    return size, max(1, look.train // size)


def _method_lines(look: Look) -> list[Line]:
    (size, steps), (epsilon, why) = _batch(look), _epsilon(look)
    epochs = int(np.clip(round(STEPS / steps), 10, 100))
    step = max(1, round(epsilon / 4))
    lines = [
        Line("variant: at", "adversarial training, the reference that other methods have to beat"),
        Line("methods:"),
        Line("  at:"),
        Line(f"    epochs: {epochs}", f"about {epochs * steps} steps; the best epoch is kept"),
        Line(f"    batch_size: {size}", f"{steps} step{'' if steps == 1 else 's'} per epoch"),
        Line("    optimizer: {name: adam, learning_rate: 0.001, schedule: cosine}", "needs no tuning to start with"),
    ]
    if look.shape[2] == 1:
        lines.append(Line("    augmentation: none", "a mirrored digit or letter is another one"))
    else:
        padding = max(1, max(look.shape[:2]) // 8)
        lines.append(
            Line(
                f"    augmentation: {{name: crop_flip, padding: {padding}}}",
                "shifts and mirrors; set flip: false if left and right matter",
            )
        )
    return [
        *lines,
        Line("    attack:"),
        Line("      name: pgd"),
        Line(f"      epsilon: {epsilon}/255", why),
        Line(f"      step_size: {step}/255", "a quarter of epsilon, so that the steps reach every corner"),
        Line("      num_steps: 7", "each step costs as much as training without an attack"),
    ]


def _evaluation_lines(look: Look) -> list[Line]:
    epsilon, _ = _epsilon(look)
    limit = [Line("  limit: 1000", f"of {look.test} test images: an interval of 3 points")] if look.test > 1000 else []
    return [
        Line("evaluation:"),
        *limit,
        Line("  attacks:"),
        Line(f"    - {{name: fgsm, epsilon: {epsilon}/255}}", "a single step: far above it is gradient masking"),
        Line(
            f"    - {{name: pgd, epsilon: {epsilon}/255, num_steps: 40}}",
            "before you publish: attack --attack autoattack",
        ),
        Line(f"  validation_attack: {{name: pgd, epsilon: {epsilon}/255, num_steps: 10}}", "chooses the best epoch"),
    ]
