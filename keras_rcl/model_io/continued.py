"""A network that continues the weights of an export: fine-tuning."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.loading import LoadedModel, read_contract
from keras_rcl.networks.two_headed import build_network
from keras_rcl.vocabulary.network import Network, Precision


def continued_hash(network: Network) -> str | None:
    """Return the hash of the export whose weights a network continues; None if it continues none.

    Raises:
        InvalidInputError: If `network.pretrained` is not the folder of an export.
    """
    folder = network.pretrained_export
    if folder is None:
        return None
    contract = read_contract(Path(folder).expanduser())
    if not contract:
        raise InvalidInputError(
            f"network.pretrained {folder!r} is not the folder of an export; hint: give a folder that `import` or `fit` "
            "wrote, or imagenet"
        )
    return contract["model_hash"]


def build_continued(
    network: Network,
    image_shape: Sequence[int],
    num_classes: int,
    *,
    seed: int = 0,
    precision: Precision = "float32",
    encoder: keras.Model | None = None,
) -> keras.Model:
    """Build a network with the weights of the export that `network.pretrained` names.

    Its normalization and the weights of its encoder are those of the export, and so are those of its classifier if it
    tells as many classes apart. The projector is new.

    Raises:
        InvalidInputError: If there is no such export, or its encoder is another one.
    """
    continued_hash(network)
    folder = Path(network.pretrained_export).expanduser()
    exported = LoadedModel(folder).layers
    known = {layer.name for layer in exported.layers}
    if not {"encoder", "classifier"} <= known:
        raise InvalidInputError(f"{folder} has no encoder and classifier by name; hint: give an export of this package")
    mean = std = None
    if "normalize" in known:
        normalize = exported.get_layer("normalize")
        mean, std = np.ravel(normalize.mean), np.sqrt(np.ravel(normalize.variance))
    normalization = "none" if mean is None else "mean_std"
    spec = dataclasses.replace(network, pretrained=None, normalization=normalization)
    built = build_network(
        spec, image_shape, num_classes, mean=mean, std=std, seed=seed, precision=precision, encoder=encoder
    )
    for part in ("encoder", "classifier"):
        theirs, ours = exported.get_layer(part).get_weights(), built.get_layer(part)
        if [weight.shape for weight in theirs] == [tuple(weight.shape) for weight in ours.weights]:
            ours.set_weights(theirs)
        elif part == "encoder":
            raise InvalidInputError(
                f"{folder} has another encoder than {network.encoder} for images {tuple(image_shape)}; hint: set "
                "network.encoder to its encoder"
            )
    return built
