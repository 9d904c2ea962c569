"""`train`: a whole method on somebody's own encoder and arrays, with all that `fit` has."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_rcl.config import Evaluation, Experiment
from keras_rcl.data.sources import ImageData, SourceData, divided
from keras_rcl.data.splits import SourceSplit
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.input_range import INPUT_RANGES, span_outside
from keras_rcl.methods import Method, as_method
from keras_rcl.networks.own_model import own_encoder
from keras_rcl.runtime.progress import Progress, Silent
from keras_rcl.runtime.signals import held_signals
from keras_rcl.storage.checkpoints import Checkpoints
from keras_rcl.vocabulary.dataset import Dataset
from keras_rcl.vocabulary.labels import class_labels
from keras_rcl.vocabulary.network import Network
from keras_rcl.vocabulary.record import Record
from keras_rcl.workflows.fit import FitOptions, Run, hash_data
from keras_rcl.workflows.robust_model import PROJECTION, range_that_is_read

NAME = "arrays"
"""The name of the data set in records."""

EVALUATION = Evaluation()
"""FGSM and PGD-40 at 8/255 at the end, and PGD-10 to choose the best epoch."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A finished training.

    Attributes:
        encoder: The given encoder, with the chosen weights.
        model: The two-headed network on it: images [N, H, W, C] in [0, 1] -> a dict of `embedding`, `projection`,
            `logits`.
        record: The evaluation; see `fit`.
        run: The folder of the run.
        saved_model: The folder of the export.
    """

    encoder: keras.Model
    model: keras.Model
    record: Record | dict[str, Any]
    run: Path
    saved_model: Path

    def __repr__(self) -> str:
        return f"Trained(run={str(self.run)!r}, saved_model={str(self.saved_model)!r})"


# More than 8 parameters: what is trained, on which data, how it is measured, and where results are written.
def train(
    encoder: keras.Model,
    method: Method | str,
    *,
    data: tuple,
    validation: tuple | None = None,
    test: tuple | None = None,
    run: str | Path,
    saved_models: str | Path | None = None,
    evaluation: Evaluation = EVALUATION,
    class_names: Sequence[str] = (),
    projection: Network = PROJECTION,
    input_range: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Train an encoder by all phases of a method, attack the result, and export it.

    A projection head and a linear classifier are added to the encoder, which is trained in place. The same call, made
    again after an interruption at any instant, resumes the run and ends in the same results; for that the encoder has
    to begin with the same weights, so set a seed before it is built.

    Args:
        encoder: Any built Keras model from images [N, H, W, C] of a fixed size to an embedding [N, E], in float32.
        method: A method, such as `CLAFS()`, or the name of one.
        data: Training images and labels: uint8 [N, H, W, C], or floats in the range that the encoder reads, which are
            rounded to 256 levels; integers [N] or [N, 1], one-hot rows [N, K], or names of classes.
        validation: Images and labels that choose the best epoch of the last phase. None: 20 % of the training images
            are held out.
        test: Images and labels of the evaluation at the end. None: the given validation images, which the record says;
            without them 20 % of the training images are held out.
        run: The folder of the run: configuration, metrics, checkpoints, TensorBoard, record.
        saved_models: The folder of exports; `saved_models` beside the folder of runs if it is not given.
        evaluation: The attacks of validation and of the evaluation at the end.
        class_names: K names; the numbers 0 to K - 1 if they are not given.
        projection: The projection head; its `projection_hidden` and `projection_dim` are read.
        input_range: The range of the images that the encoder reads: `0..1`, `0..255` or `-1..1`. If it is not given,
            it is read from the encoder's first layers; otherwise it is `0..1`.
        seed: Of heads, batches, augmentations and attacks.
        overwrite: Replace a run and an export of that name.
        progress: Shows progress. None: nothing is shown.

    Returns:
        The trained encoder and network, the record, and the folders.

    Raises:
        InvalidInputError: If the encoder, images or labels cannot be used, or the run's name is taken.
        KeyboardInterrupt: With a message that the same call resumes.

    Example:
        >>> import keras_rcl
        >>> trained = keras_rcl.train(
        ...     encoder, keras_rcl.CLAFS(), data=(x_train, y_train), validation=(x_val, y_val), run="runs/mine"
        ... )  # doctest: +SKIP
        >>> trained.encoder.save("encoder.keras")  # doctest: +SKIP
    """
    range_name = range_that_is_read(encoder, input_range)
    own = own_encoder(encoder, pixels=INPUT_RANGES[range_name])
    splits, dataset = _image_data(data, validation, test, range_name, class_names, seed)
    if splits.image_shape != own.input_shape[1:]:
        raise InvalidInputError(
            f"images have shape {splits.image_shape} and the encoder reads {own.input_shape[1:]}; hint: resize them"
        )
    experiment = Experiment(
        method=as_method(method),
        seed=seed,
        dataset=dataset,
        network=dataclasses.replace(projection, encoder="own", normalization="none", pretrained=None),
        evaluation=evaluation,
    )
    run = Path(run)
    exports = Path(saved_models) if saved_models is not None else run.parent.parent / "saved_models"
    options = FitOptions(run.name, run.parent, exports, overwrite)
    try:
        own.to_json()
    except Exception as error:
        raise InvalidInputError(
            f"encoder {encoder.name} cannot be saved: {' '.join(str(error).split())[:200]}; hint: build it as a "
            "functional or Sequential model, or give it get_config"
        ) from None
    with contextlib.ExitStack() as stack:
        training = Run(experiment, splits, hash_data(splits), options, progress or Silent(), encoder=own)
        training.tested = "validation" if test is None and validation is not None else "test"
        training.prepare(stack)
        fitted = training.fit()
        checkpoints = Checkpoints(fitted.run / "checkpoints")
        checkpoints.load(training.network, "best" if "best" in checkpoints.names() else "last")
        with held_signals(forget=True):
            training.folder.finish()
    encoder.trainable = True  # the last phase may have frozen it
    return Trained(encoder, training.network, fitted.record, fitted.run, fitted.saved_model)


def _image_data(
    data: tuple, validation: tuple | None, test: tuple | None, range_name: str, class_names: Sequence[str], seed: int
) -> tuple[ImageData, Dataset]:
    """The three splits, and the settings that say how they were made."""
    given = {
        name: _arrays(pair, name, range_name, class_names)
        for name, pair in (("data", data), ("validation", validation), ("test", test))
        if pair is not None
    }
    images, labels = given["data"]
    names = [*class_names] or [str(number) for number in range(int(labels.max()) + 1)]
    for name, (others, other_labels) in given.items():
        class_labels(other_labels, len(names))
        if others.shape[1:] != images.shape[1:]:
            raise InvalidInputError(
                f"{name} images have shape {others.shape[1:]} and training images {images.shape[1:]}; hint: resize them"
            )

    splits = {name: _source(*arrays) for name, arrays in given.items()}
    validated = splits.get("validation")
    source = SourceData(names, splits["data"], splits.get("test", validated), validated)
    dataset = Dataset(name=NAME, split_seed=seed)
    return divided(dataset, source), dataset


def _source(images: np.ndarray, labels: np.ndarray) -> SourceSplit:
    return SourceSplit(labels.astype(np.int64), lambda indices: images[indices])


def _arrays(pair: Any, name: str, range_name: str, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, C], and labels [N].

    Raises:
        InvalidInputError: If they are not a pair of images and labels, or pixels are outside the range.
    """
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InvalidInputError(f"{name} is {type(pair).__name__}; hint: give a pair (images, labels) of arrays")
    images = np.asarray(pair[0])
    if images.ndim != 4 or not len(images):
        raise InvalidInputError(f"{name} images have shape {images.shape}; hint: give a batch [N, H, W, C]")
    if images.dtype != np.uint8:
        if span := span_outside(images, range_name):
            raise InvalidInputError(
                f"{name} images span [{span[0]:g}, {span[1]:g}] and the encoder reads {range_name}; hint: give "
                "input_range, or uint8 images"
            )
        scale, offset = INPUT_RANGES[range_name]
        images = np.clip(np.rint((images.astype(np.float32) - offset) * (255 / scale)), 0, 255).astype(np.uint8)
    return images, class_labels(pair[1], count=len(images), class_names=class_names)
