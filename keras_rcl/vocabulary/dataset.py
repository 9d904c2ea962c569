"""Which images, and how they are varied: data sets and augmentation policies as values."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from keras_rcl.vocabulary.spec import spec

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of random numbers: what NumPy, Keras and TensorFlow all take."""


@spec
class NoAugmentation:
    """The image as it is."""

    name: Literal["none"] = "none"


@spec
class CropFlip:
    """Pad by `padding` zeros, crop back to size at a random place, flip left-right half of the time."""

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
class LayerAugmentation:
    """Any Keras or KerasCV augmentation layer, by class name and arguments."""

    name: Literal["layer"] = "layer"
    layer: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)


def _by_name(value: object) -> object:
    """`"simclr"` is short for `{"name": "simclr"}`."""
    return {"name": value} if isinstance(value, str) else value


if TYPE_CHECKING:
    Policy = Any  # A field that a user sets by a name, a mapping or a policy, and that is read as a policy.
else:
    Policy = Annotated[
        Union[NoAugmentation, CropFlip, SimCLR, LayerAugmentation],
        Field(discriminator="name"),
        BeforeValidator(_by_name),
    ]
"""An augmentation policy: a name, or a mapping with the name and its arguments."""


@spec
class Dataset:
    """A labelled image data set and its fixed, seeded, stratified parts.

    Fields:
        name: `digits` (ships with scikit-learn), any TFDS image-classification data set, or `folder`.
        folder: for `folder`: a folder of images, one sub-folder a class.
        data_dir: where TFDS finds or puts prepared data sets; `TFDS_DATA_DIR` when not given.
        image_size: height and width to which images are resized; needed where their sizes differ.
        validation_fraction: the share of the training images held out to choose checkpoints and settings
            (0.2 is Cusin's 80/20 split; 0 holds nothing out).
        test_fraction: the share held out as the test part, where the data set has no test part of its own.
        limit: at most so many images in each part, with the class balance kept.
        split_seed: the seed of the parts, apart from the run's own seed, so that runs with other seeds share them.
        balanced_batches: draw every class equally often in each training batch.
        streamed: of a data set of TFDS that is larger than memory: training images are read from their files as they
            are needed, the shorter side brought to 8/7 of `image_size` and the middle cut out. The validation part is
            then the end of the train split, whatever `split_seed` is.
        held_images: where streamed: at most so many images in the validation and in the test part, class balance kept.
        shuffle_buffer: where streamed: records among which the next one is drawn, after the files were shuffled.
    """

    name: Annotated[str, Field(pattern=r"^\w+(/[\w.+-]+)?(:[\d.*]+)?$")] = "digits"
    folder: str | None = None
    data_dir: str | None = None
    image_size: Annotated[int, Field(gt=0, le=4096)] | None = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    limit: PositiveInt | None = None
    split_seed: Seed = 0
    balanced_batches: bool = False
    streamed: bool = False
    held_images: PositiveInt = 5000
    shuffle_buffer: PositiveInt = 4096

    def __post_init__(self):
        if self.streamed and self.name in ("digits", "folder"):
            raise ValueError(f"streamed is for data sets of TFDS, not for {self.name}; leave it out")
        if self.streamed and (self.image_size is None or self.balanced_batches):
            raise ValueError("streamed needs image_size, such as 224, and no balanced_batches")
