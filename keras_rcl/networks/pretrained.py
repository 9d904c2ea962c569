"""ResNet-50 of keras.applications, with the weights that it was trained to on ImageNet, as an encoder."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import keras

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.network import Precision

SMALLEST_IMAGE = 32
"""Pixels a side below which keras.applications builds no ResNet-50."""

MEAN = tuple(value / 255 for value in (123.68, 116.779, 103.939))
STD = (1 / 255,) * 3
"""Of RGB pixels in [0, 1]: the weights read 255 x minus ImageNet's mean, undivided (the "caffe" preprocessing)."""


def pretrained_resnet50(weights: str, input_shape: Sequence[int], precision: Precision = "float32") -> keras.Model:
    """The functional model `encoder`: RGB image [N, H, W, 3], normalised by `MEAN` and `STD` -> embedding [N, 2048].

    The weights were trained on BGR images, and so the first convolution's kernel is read backwards: no layer turns the
    channels round. That convolution is float32 under every policy, as in the other encoders.

    Args:
        weights: `imagenet`, or an `.h5` file of the weights of `keras.applications.ResNet50(include_top=False)`.
        input_shape: (H, W, 3).
        precision: the dtype policy of its layers.

    Raises:
        InvalidInputError: if the images are not RGB or too small, or the weights cannot be had or are of another
            network.
    """
    if input_shape[-1] != 3 or min(input_shape[:2]) < SMALLEST_IMAGE:
        least = f"{SMALLEST_IMAGE}x{SMALLEST_IMAGE}"
        raise InvalidInputError(
            f"pretrained weights read RGB images of {least} or more, not {tuple(input_shape)}; "
            "set dataset.image_size, or leave out network.pretrained"
        )
    if weights != "imagenet" and not Path(weights).expanduser().is_file():
        raise InvalidInputError(
            f"network.pretrained {weights!r} is no file; give imagenet, or an .h5 file of ResNet50's weights"
        )
    source = weights if weights == "imagenet" else str(Path(weights).expanduser())
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Keras shows a download
            loaded = keras.applications.ResNet50(
                include_top=False, weights=source, input_shape=tuple(input_shape), pooling="avg"
            )
    except Exception as error:  # of the network, the disk, HDF5 or Keras
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InvalidInputError(
            f"network.pretrained {weights!r} cannot be had: {reason}; download the weights of ResNet50 without its top "
            "where there is a network, and give the file"
        ) from None

    def under_policy(layer):
        policy = "float32" if layer.name == "conv1_conv" else precision
        return type(layer).from_config({**layer.get_config(), "dtype": keras.DTypePolicy(policy)})

    copied = keras.models.clone_model(loaded, clone_function=under_policy)
    copied.set_weights(loaded.get_weights())
    first = copied.get_layer("conv1_conv").kernel
    first.assign(first.numpy()[:, :, ::-1])
    return keras.Model(copied.input, copied.output, name="encoder")
