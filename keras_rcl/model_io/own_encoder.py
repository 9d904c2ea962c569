"""Encoders of users: a `.keras` file, a function that returns a model, a network of Keras, or a preset of KerasHub."""

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_rcl.errors import InvalidInputError, did_you_mean
from keras_rcl.evaluation.input_range import INPUT_RANGES, range_of_layers
from keras_rcl.model_io.encoder import pixel_scaling, read_preset
from keras_rcl.model_io.loading import LoadedModel, error_line
from keras_rcl.networks.own_model import own_encoder
from keras_rcl.vocabulary.network import encoder_source
from keras_rcl.vocabulary.registry import find

APPLICATIONS = "-1..1"
"""The range of images that a network of `keras.applications` is given, if its own first layers do not scale them."""


def load_own_encoder(
    encoder: str, image_shape: Sequence[int], *, seed: int = 0, trust: bool = False
) -> keras.Model | None:
    """Return the encoder that `network.encoder` names, as part of a two-headed network.

    Args:
        encoder: As `Network.encoder`.
        image_shape: (H, W, C) of the images.
        seed: Of the global seed of Keras, which is set before a model with random weights is built.
        trust: Load a `.keras` file without checking it.

    Returns:
        Images [N, H, W, C] in [0, 1] -> embedding [N, E]; None for an encoder of the package, and for `own`.

    Raises:
        InvalidInputError: If the encoder is not known, it cannot be built, or it does not read these images.
    """
    kind, name = encoder_source(encoder)
    shape = tuple(int(size) for size in image_shape)
    if kind in ("built_in", "own"):
        return None
    if kind == "hub":
        return _from_hub(encoder, name, shape)
    if kind == "file":
        model = LoadedModel(Path(name).expanduser(), trust=trust).layers
    else:
        keras.utils.set_random_seed(seed)
        if kind == "application":
            model = _application(name, shape)
        elif kind == "function":
            model = _called(encoder, import_function(encoder), shape)
        else:
            model = _called(encoder, _registered(name), shape)
    declared = range_of_layers(model)
    default = APPLICATIONS if kind == "application" else "0..1"
    range_name = default if declared is None else declared.name
    return own_encoder(model, pixels=INPUT_RANGES[range_name], image_shape=shape)


def _application(name: str, image_shape: tuple[int, ...]) -> keras.Model:
    """A network of `keras.applications` with random weights, without its classifier."""
    known = {key: value for key, value in vars(keras.applications).items() if inspect.isfunction(value)}
    build = known.get(name)
    if build is None:
        raise InvalidInputError(
            f"keras.applications has no network {name!r}{did_you_mean(name, known)}; hint: choose from "
            f"{', '.join(sorted(known))}"
        )
    try:
        return build(include_top=False, weights=None, input_shape=image_shape, pooling="avg")
    except Exception as error:
        raise InvalidInputError(
            f"keras.applications.{name} cannot be built for images of shape {image_shape}: {_line(error)}; hint: set "
            "dataset.image_size"
        ) from None


def import_function(encoder: str) -> Callable:
    """The function of `package.module:function`, imported from the current directory too."""
    module_name, _, path = encoder.partition(":")
    with _current_directory():
        try:
            found = importlib.import_module(module_name)
        except Exception as error:
            raise InvalidInputError(
                f"network.encoder {encoder!r}: module {module_name} cannot be imported: {type(error).__name__}: "
                f"{_line(error)}; hint: install its package, or run the command in the folder that holds it"
            ) from error
    for part in path.split("."):
        names = [name for name in dir(found) if not name.startswith("_")]
        if not hasattr(found, part):
            raise InvalidInputError(
                f"network.encoder {encoder!r}: {module_name} has no {path}{did_you_mean(path, names)}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise InvalidInputError(f"network.encoder {encoder!r} is a {type(found).__name__}; hint: name a function")
    return found


def _registered(name: str) -> Callable:
    entry = find("encoder", name)
    if entry is None or entry.run is None:
        raise InvalidInputError(f"no encoder is registered as {name!r}; hint: call keras_rcl.register_encoder")
    return entry.run


def _called(encoder: str, build: Callable, image_shape: tuple[int, ...]) -> keras.Model:
    """The model that a function returns, built for the images."""
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):
        parameters = {}
    with _current_directory():
        try:
            model = build(**({"image_shape": image_shape} if "image_shape" in parameters else {}))
        except Exception as error:
            raise InvalidInputError(
                f"network.encoder {encoder!r} raises {type(error).__name__}: {_line(error)}; hint: call the function "
                "in Python to see where; it is called with image_shape=(H, W, C) if it has an argument of this name"
            ) from error
    if not isinstance(model, keras.Model):
        raise InvalidInputError(
            f"network.encoder {encoder!r} returns {type(model).__name__}; hint: return a keras.Model"
        )
    if not model.built or not (getattr(model, "inputs", None) or model.get_build_config()):
        try:
            model(np.zeros((1, *image_shape), np.float32))
        except Exception as error:
            raise InvalidInputError(
                f"network.encoder {encoder!r} fails on images of shape {image_shape}: {_line(error)}; hint: set "
                "dataset.image_size"
            ) from error
    return model


@contextlib.contextmanager
def _current_directory() -> Iterator[None]:
    """Let Python import modules from the current directory too."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _from_hub(encoder: str, preset: str, image_shape: tuple[int, ...]) -> keras.Model:
    """The backbone of a preset of KerasHub behind the scale and offset of its own image converter, pooled."""
    backbone, converter = read_preset(encoder, preset)
    scale, offset, wanted = pixel_scaling(encoder, backbone, converter)
    if any(want not in (None, have) for want, have in zip(wanted, image_shape, strict=True)):
        size = f"dataset.image_size={wanted[0]}" if wanted[2] == image_shape[2] else "RGB images"
        raise InvalidInputError(
            f"network.encoder {encoder!r} reads images of shape {tuple(wanted)}, and these have {image_shape}; hint: "
            f"give it {size}"
        )
    scale, offset = (np.broadcast_to(np.asarray(value, float), image_shape[-1:]) for value in (scale, offset))
    image = keras.Input(image_shape, dtype="float32", name="own_image")
    # (x - mean) / std = 255 scale x + offset
    mean, std = -offset / (255 * scale), 1 / (255 * scale)
    x = keras.layers.Normalization(mean=mean.tolist(), variance=(std**2).tolist(), dtype="float32")(image)
    features = backbone({name: x for name in backbone.input} if isinstance(backbone.input, dict) else x)
    if isinstance(features, dict):
        raise InvalidInputError(
            f"network.encoder {encoder!r} gives {', '.join(features)}; hint: choose a preset of one output"
        )
    pooling = {4: keras.layers.GlobalAveragePooling2D, 3: keras.layers.GlobalAveragePooling1D}.get(len(features.shape))
    embedding = features if pooling is None else pooling(dtype="float32", name="pooled")(features)
    return own_encoder(keras.Model(image, embedding), image_shape=image_shape)


def _line(error: Exception) -> str:
    """The first line of an error."""
    return " ".join(error_line(error).split())
