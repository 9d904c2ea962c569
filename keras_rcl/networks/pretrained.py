"""ResNet-50 of keras.applications with its ImageNet weights, as an encoder."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import keras

from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.hdf5 import check_plain_hdf5
from keras_rcl.vocabulary.network import Precision

SMALLEST_IMAGE = 32
"""The smallest side of an image, in pixels, for which keras.applications builds a ResNet-50."""

MEAN = tuple(value / 255 for value in (123.68, 116.779, 103.939))
STD = (1 / 255,) * 3
"""Mean and standard deviation of RGB pixels in [0, 1]: the weights read 255 x minus the mean of ImageNet, not divided
(the "caffe" preprocessing)."""


def pretrained_resnet50(weights: str, input_shape: Sequence[int], precision: Precision = "float32") -> keras.Model:
    """Build ResNet-50 with pretrained weights.

    The weights were trained on BGR images, so the channels of the first kernel are reversed; no layer reverses the
    channels of the image. The first convolution is float32 under every policy, as in the other encoders.

    Args:
        weights: `imagenet`, or an `.h5` file of the weights of `keras.applications.ResNet50(include_top=False)`.
        input_shape: (H, W, 3).
        precision: The dtype policy of its layers.

    Returns:
        The functional model `encoder`: RGB image [N, H, W, 3], normalized by `MEAN` and `STD` -> embedding [N, 2048].

    Raises:
        InvalidInputError: If the images are not RGB or are too small, or the weights cannot be loaded or belong to
            another network.
    """
    if input_shape[-1] != 3 or min(input_shape[:2]) < SMALLEST_IMAGE:
        least = f"{SMALLEST_IMAGE}x{SMALLEST_IMAGE}"
        raise InvalidInputError(
            f"pretrained weights read RGB images of {least} or more, not {tuple(input_shape)}; "
            "hint: set dataset.image_size, or leave out network.pretrained"
        )
    if weights != "imagenet" and not Path(weights).expanduser().is_file():
        raise InvalidInputError(
            f"network.pretrained {weights!r} is not a file; hint: give imagenet, or an .h5 file of ResNet50's weights"
        )
    source = weights if weights == "imagenet" else str(Path(weights).expanduser())
    try:
        if weights != "imagenet":
            check_plain_hdf5(Path(source))
        with contextlib.redirect_stdout(sys.stderr):  # where Keras shows a download
            loaded = keras.applications.ResNet50(
                include_top=False, weights=source, input_shape=tuple(input_shape), pooling="avg"
            )
    except Exception as error:  # of the network, the disk, HDF5 or Keras
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InvalidInputError(
            f"network.pretrained {weights!r} could not be loaded: {reason}; hint: download the weights of "
            "ResNet50 without its top on a machine with a network connection, and give the file"
        ) from None

    def under_policy(layer):
        policy = "float32" if layer.name == "conv1_conv" else precision
        return type(layer).from_config({**layer.get_config(), "dtype": keras.DTypePolicy(policy)})

    copied = keras.models.clone_model(loaded, clone_function=under_policy)
    copied.set_weights(loaded.get_weights())
    first = copied.get_layer("conv1_conv").kernel
    first.assign(first.numpy()[:, :, ::-1])
    return keras.Model(copied.input, copied.output, name="encoder")
