"""What a command is given: images of a data set that a model fits, and what attacks look at."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_rcl.data import sources
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.embeddings import embedding_geometry
from keras_rcl.evaluation.input_range import InputRange
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.measures.embedding_geometry import POINTS
from keras_rcl.model_io.classifier import Classifier, load_classifier
from keras_rcl.model_io.encoder import load_encoder
from keras_rcl.model_io.loading import resize_function
from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.dataset import Dataset

SUPPORT_IMAGES = 256
"""How many training images the SupCon attack contrasts with, class balance kept."""


def split_of(data: sources.ImageData, part: str) -> sources.Split:
    """The `train`, `validation` or `test` part.

    Raises:
        InvalidInputError: if it has no images.
    """
    chosen = getattr(data, part)
    if isinstance(chosen, sources.StreamedSplit):
        raise InvalidInputError(f"the {part} part of {data.name} is streamed; choose another --split, or give --limit")
    if not len(chosen.labels):
        raise InvalidInputError(f"the {part} part of {data.name} is empty; choose another --split")
    return chosen


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 images as float32 in [0, 1]."""
    return images.astype(np.float32) / 255


def data_for(classifier: Classifier, fields: dict[str, Any], part: str) -> sources.ImageData:
    """The data set of `dataset_of`, which the classifier fits; splits other than `part` are read when needed.

    Raises:
        InvalidInputError: if none is named, it cannot be read, or its images or classes are others than the
            classifier's.
    """
    data = sources.load(dataset_of(classifier, fields), part)
    _check_fit(classifier, data)
    return data


def positions_of_record(path: str | Path, stored: Mapping[str, Any], data_name: str, indices: np.ndarray) -> np.ndarray:
    """The positions of a record's images in a split.

    Args:
        path: Of the record.
        stored: What `read_record` returned for it.
        data_name: The name of the data set.
        indices: The indices of the images of the split.

    Raises:
        InvalidInputError: If the record is of another data set, or of images that are not in the split.
    """
    if stored["data"]["name"] != data_name:
        raise InvalidInputError(
            f"{path} is of {stored['data']['name']}, not {data_name}; pass --dataset {stored['data']['name']}"
        )
    place = {int(index): position for position, index in enumerate(indices)}
    missing = [int(index) for index in stored["data"]["indices"] if int(index) not in place]
    if missing:
        raise InvalidInputError(
            f"{path} names image {missing[0]} of {data_name}, which is not in its {stored['data']['part']} split"
        )
    return np.array([place[int(index)] for index in stored["data"]["indices"]], int)


def model_values(classifier: Classifier, input_range: InputRange) -> dict[str, Any]:
    """What the record of an evaluation says of the model."""
    return {**classifier.identity(), "note": classifier.note, "input_range": input_range.to_json()}


def read_dataset(fields: Mapping[str, Any]) -> Dataset:
    """The data set of its fields.

    Raises:
        InvalidInputError: If a field cannot be used.
    """
    try:
        return Dataset(**fields)
    except InvalidInputError as error:
        raise InvalidInputError(f"data set: {error}") from None


def dataset_of(classifier: Classifier, fields: dict[str, Any]) -> Dataset:
    """The data set that `fields` name; or the one that the model was trained with, with these fields changed."""
    if "name" not in fields:
        settings = classifier.contract.get("config")
        if settings is None:
            raise InvalidInputError(f"{classifier.path} has no model.json that names its data set; give --dataset")
        # Of a model from elsewhere; TFDS would write there.
        fields = {**settings["dataset"], "data_dir": None, **fields}
    dataset = read_dataset(fields)
    if dataset.folder is not None and dataset.name != "folder":
        raise InvalidInputError(f"--folder {dataset.folder} is not read for --dataset {dataset.name}; leave out one")
    return dataset


def _check_fit(classifier: Classifier, data: sources.ImageData) -> None:
    shape = tuple(classifier.image_shape)
    if any(want is not None and want != have for want, have in zip(shape, data.image_shape, strict=True)):
        raise InvalidInputError(
            f"{classifier.path} takes images of shape {shape}, but {data.name} has {data.image_shape}; "
            f"{_hint_on_shapes(shape, data.image_shape)}"
        )
    if classifier.num_classes != data.num_classes:
        raise InvalidInputError(
            f"{classifier.path} has {classifier.num_classes} classes, but {data.name} has {data.num_classes}; "
            "give the --dataset that it was trained on"
        )


def _hint_on_shapes(wanted: tuple[int | None, ...], given: tuple[int, ...]) -> str:
    """What makes the images of a data set fit a model: another size can be given, other channels cannot."""
    if wanted[2] not in (None, given[2]):
        return f"give the --dataset that it was trained on, with images of {wanted[2]} channels"
    if wanted[0] != wanted[1]:
        return "give the --dataset that it was trained on; --image-size makes square images"
    return f"give the --dataset that it was trained on, or --image-size {wanted[0]} to resize"


def outputs_of(
    attacks: Sequence[Attack], own: Callable, data: sources.ImageData, trust: bool = False
) -> tuple[Callable, dict[str, str]]:
    """attack -> the function of images that it looks at; and the hash of each source, all of which are read now.

    `own` gives the attacked model's: `logits`, `embedding` or `projection` -> function, None where it has none.
    """
    found, hashes = {}, {}
    for attack in attacks:
        attack.check_images(data.image_shape)
    for member in itertools.chain.from_iterable(attack.members for attack in attacks):
        key = proxy, output = member.proxy, member.target_output
        if key in found:
            continue
        if member.training_only:
            raise InvalidInputError(f"{member.name} is an attack of training; attack the model by pgd and by supcon")
        if proxy is None:
            found[key] = own(output)
            if found[key] is None:
                hint = "give it source=MODEL" if output == "embedding" else "choose another attack"
                raise InvalidInputError(
                    f"{member.label} reads the {output}, which the attacked model does not return; {hint}"
                )
        elif output == "logits":
            found[key], hashes[proxy] = logits_through(proxy, data, trust)
        else:
            encoder = load_encoder(proxy, data.image_shape, trust=trust)
            found[key], hashes[proxy] = encoder.embedding, encoder.model_hash
    return lambda attack: found[attack.proxy, attack.target_output], hashes


def logits_through(source: str, data: sources.ImageData, trust: bool = False) -> tuple[Callable, str]:
    """images -> logits of the classifier that a transfer attack is crafted on, and its hash."""
    classifier = load_classifier(source, trust=trust)
    if classifier.num_classes != data.num_classes:
        raise InvalidInputError(
            f"{source} has {classifier.num_classes} classes, but {data.name} has {data.num_classes}; "
            "give a source of the same classes"
        )
    resize, _ = resize_function(source, classifier.image_shape, data.image_shape)
    return lambda images: classifier.logits(resize(images)), classifier.model_hash


def support_of(
    attacks: Sequence[Attack], outputs: Callable, data: sources.ImageData
) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels [M] and projections [M, D] of training images, always the same; where an attack contrasts with them."""
    contrasting = [attack for attack in attacks if attack.name == "supcon"]
    if not contrasting:
        return None
    if len({attack.target_output for attack in contrasting}) > 1:
        raise InvalidInputError(
            f"{', '.join(attack.label for attack in contrasting)} contrast two outputs; run one at a time"
        )
    shown = data.train.held.limited(SUPPORT_IMAGES)
    if without := data.num_classes - len(np.unique(shown.labels)):
        raise InvalidInputError(
            f"{contrasting[0].label} contrasts with {len(shown.labels)} training images, which leave {without} of "
            f"{data.num_classes} classes without one; choose another attack, or a larger --limit"
        )
    images, project = pixels(shown.images), outputs(contrasting[0])
    return shown.labels, np.concatenate([project(images[start : start + 64]) for start in range(0, len(images), 64)])


def geometry_of(
    outputs: Callable,
    part: sources.Split,
    attacks: Sequence[Attack],
    seed: int,
    evaluator: Evaluator | None = None,
) -> dict[str, Any] | None:
    """Of the embeddings of a few of the part's images; arguments as of `embedding_geometry`."""
    shown = part.limited(POINTS)
    return embedding_geometry(outputs, pixels(shown.images), shown.labels, attacks, seed=seed, evaluator=evaluator)
