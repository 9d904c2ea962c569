"""Data sets and augmentation policies as values."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from keras_rcl.errors import did_you_mean
from keras_rcl.vocabulary.allowed_layers import CONFIGURED_LAYERS
from keras_rcl.vocabulary.spec import PathText, spec

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that NumPy, Keras and TensorFlow accept."""


@spec
class NoAugmentation:
    """No augmentation."""

    name: Literal["none"] = "none"


@spec
class CropFlip:
    """Pad by `padding` zeros, crop to the original size at a random position, flip left-right with probability 1/2."""

    name: Literal["crop_flip"] = "crop_flip"
    padding: NonNegativeInt = 4
    flip: bool = True


@spec
class SimCLR:
    """Random resized crop, flip, colour jitter, greyscale (Chen et al. 2020; Khosla et al. 2020 for the numbers)."""

    name: Literal["simclr"] = "simclr"
    min_area: Annotated[float, Field(gt=0, le=1)] = 0.2
    flip: bool = True
    jitter_probability: Annotated[float, Field(ge=0, le=1)] = 0.8
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.4
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.4
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    greyscale_probability: Annotated[float, Field(ge=0, le=1)] = 0.2


@spec
class Rotation:
    """Rotate about the centre by an angle that is uniform in [-degrees, degrees].

    A pixel takes the value of the nearest one, and 0 where that lies outside of the image.
    """

    name: Literal["rotation"] = "rotation"
    degrees: Annotated[float, Field(ge=0, le=180)] = 15.0


@spec
class ColourJitter:
    """The colour jitter of `SimCLR`, of every image: brightness, contrast, saturation and hue."""

    name: Literal["colour_jitter"] = "colour_jitter"
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.4
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.4
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1


@spec
class GaussianNoise:
    """With a probability, add noise of a standard deviation in pixel units to each value; clipped to [0, 1]."""

    name: Literal["gaussian_noise"] = "gaussian_noise"
    std: Annotated[float, Field(ge=0, le=1)] = 0.025
    probability: Annotated[float, Field(ge=0, le=1)] = 0.5


@spec
class LayerAugmentation:
    """A Keras or KerasCV layer that computes only, by class name and arguments of plain values."""

    name: Literal["layer"] = "layer"
    layer: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        if self.layer not in CONFIGURED_LAYERS:
            close = did_you_mean(self.layer, CONFIGURED_LAYERS)
            raise ValueError(
                f"augmentation layer {self.layer!r} is not among the layers of Keras and KerasCV that compute only"
                f"{close or '; hint: choose an augmentation layer such as RandAugment'}"
            )
        if name := next((key for key, value in self.arguments.items() if _names_a_class(value)), None):
            raise ValueError(
                f"argument {name!r} of augmentation layer {self.layer} names a class; hint: give plain values"
            )


def _names_a_class(value: Any) -> bool:
    """Whether Keras would build a class or look up a function that is named in a value of YAML."""
    if isinstance(value, dict):
        return "class_name" in value or any(map(_names_a_class, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_names_a_class, value))


def _by_name(value: object) -> object:
    """`"simclr"` is short for `{"name": "simclr"}`."""
    return {"name": value} if isinstance(value, str) else value


_Single = Annotated[
    Union[NoAugmentation, CropFlip, SimCLR, Rotation, ColourJitter, GaussianNoise, LayerAugmentation],
    Field(discriminator="name"),
    BeforeValidator(_by_name),
]


@spec
class Chain:
    """Several policies, one after the other."""

    name: Literal["chain"] = "chain"
    policies: Annotated[tuple[_Single, ...], Field(min_length=1)]


if TYPE_CHECKING:
    Policy = Any  # A field that a user sets by a name, a mapping or a policy, and that is read as a policy.
else:
    Policy = Annotated[
        Union[NoAugmentation, CropFlip, SimCLR, Rotation, ColourJitter, GaussianNoise, LayerAugmentation, Chain],
        Field(discriminator="name"),
        BeforeValidator(_by_name),
    ]
"""An augmentation policy: a name, or a mapping with the name and its arguments."""


@spec
class Dataset:
    """A labelled image data set and its fixed, seeded, stratified splits.

    Attributes:
        name: `digits` (ships with scikit-learn), any TFDS image-classification data set, `folder`, or `arrays`.
        folder: for `folder`: the path of a folder of images with one sub-folder per class.
        data: for `arrays`: the path of an `.npz` file with images and labels.
        data_dir: where TFDS reads and writes prepared data sets; `TFDS_DATA_DIR` if not given.
        image_size: height and width, in pixels, to which images are resized; needed if their sizes differ.
        validation_fraction: the share of the training images held out to choose checkpoints and settings
            (0.2 is Cusin's 80/20 split; 0 holds nothing out).
        test_fraction: the share held out as the test split, if the data set has no test split of its own.
        limit: at most this number of images in each split, with the class balance kept.
        split_seed: the seed of the splits, independent of the run's seed, so that runs with other seeds share them.
        balanced_batches: draw every class equally often in each training batch.
        label_noise: the share of the training images that get the label of another class, chosen at random by
            `split_seed`, for experiments on noisy labels. Validation and test labels stay as they are.
        streamed: for a data set that is larger than memory: training images are read from their files when they are
            needed. Images of TFDS are then resized so that the shorter side is 8/7 of `image_size`, and cropped to the
            centre, and the validation split is the end of the train split, whatever `split_seed` is. Images and splits
            of a folder are those that it has in memory.
        held_images: if streamed: at most this number of images in the validation and in the test split, with the class
            balance kept.
        shuffle_buffer: if streamed: images among which the next one is drawn, after the files were shuffled.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.Dataset(name="cifar10", validation_fraction=0.1).test_fraction
        0.2
    """

    name: Annotated[str, Field(pattern=r"^\w+(/[\w.+-]+)?(:[\d.*]+)?$")] = "digits"
    folder: PathText | None = None
    data: PathText | None = None
    data_dir: PathText | None = None
    image_size: Annotated[int, Field(gt=0, le=4096)] | None = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    limit: PositiveInt | None = None
    split_seed: Seed = 0
    balanced_batches: bool = False
    label_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    streamed: bool = False
    held_images: PositiveInt = 5000
    shuffle_buffer: PositiveInt = 4096

    def __post_init__(self):
        if self.data is not None and self.name != "arrays":
            raise ValueError(f"data {self.data} is not read for {self.name}; hint: set name to arrays, or leave it out")
        if self.streamed and self.name in ("digits", "arrays"):
            raise ValueError(f"streamed is for TFDS data sets and folders, not for {self.name}; leave it out")
        if self.streamed and (self.image_size is None or self.balanced_batches):
            raise ValueError("streamed needs image_size, such as 224, and no balanced_batches")
        if self.streamed and self.label_noise:
            raise ValueError("label_noise is for images in memory; leave out streamed or label_noise")

    @property
    def in_memory(self) -> bool:
        """Whether the images were given to `train` as arrays, so that they cannot be read again."""
        return self.name == "arrays" and self.data is None
