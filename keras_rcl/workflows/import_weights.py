"""Import a checkpoint of PyTorch: its tensors become the weights of one of our networks, and an export."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_rcl.data import sources
from keras_rcl.errors import InvalidInputError, did_you_mean
from keras_rcl.evaluation.record import versions
from keras_rcl.model_io.export import export
from keras_rcl.model_io.torch_checkpoints import read_tensors
from keras_rcl.model_io.torch_names import (
    LAYOUTS,
    NORMALIZATIONS,
    Layout,
    Named,
    fitting_layout,
    sort_tensors,
)
from keras_rcl.networks.backbones import build_encoder
from keras_rcl.networks.two_headed import build_network, parts
from keras_rcl.storage.output_folder import check_name, check_replaceable, free_name
from keras_rcl.vocabulary.network import Encoder, Network
from keras_rcl.workflows.inputs import read_dataset

CIFAR_SIZE, IMAGENET_SIZE = 32, 224
"""Height and width of images, if not given, for a first kernel of 3 and of 7 pixels."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """An imported network.

    Attributes:
        path: The folder of the export.
        codebase: Whose names the tensors have.
        key: The state dict that was read, if the checkpoint holds several mappings.
        others: The state dicts that were not read.
        unread: Names of tensors that no forward pass reads, such as counters.
        mean: Of pixels in [0, 1], per channel, as the normalization layer of the network has it; empty if it has none.
        std: As `mean`.
        num_tensors: How many tensors became weights.

    Example:
        >>> from pathlib import Path
        >>> import keras_rcl
        >>> imported = keras_rcl.Imported(Path("saved_models/a"), "torchvision", "", (), (), (), (), 102)
        >>> imported.num_tensors
        102
    """

    path: Path
    codebase: str
    key: str
    others: tuple[str, ...]
    unread: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_tensors: int


def import_weights(
    checkpoints: str | Path | Sequence[str | Path],
    architecture: str,
    *,
    normalization: str | None = None,
    dataset: Mapping[str, Any] | None = None,
    key: str | None = None,
    name: str | None = None,
    saved_models: Path = Path("saved_models"),
    overwrite: bool = False,
) -> Imported:
    """Write the weights of a PyTorch checkpoint as an export, which `attack`, `audit`, `verify` and `fit` take.

    PyTorch is not needed, and no code of the checkpoint is run. Every tensor must become a weight and every weight must
    be filled.

    Args:
        checkpoints: A PyTorch checkpoint in the zip format, or a `.safetensors` file; several if encoder and classifier
            are in files of their own.
        architecture: `resnet18`, `preact_resnet18`, `preact_resnet18_fast`, `wide_resnet_28_10`, `resnet50` or
            `cusin_cnn`.
        normalization: What the network expects of its images: `none` for pixels in [0, 1], `cifar10`, `cifar10-0.2`,
            `cifar100`, `imagenet` or `minus1to1`, or the numbers `mean,mean,mean,std,std,std`. It becomes a layer of
            the network. Not needed if the checkpoint holds it, or the codebase always has the same one.
        dataset: Fields of `Dataset`: the data set that the network classifies, with whose class names it is exported
            and on which it is attacked by default. Its `image_size` alone chooses the size of the images.
        key: The state dict to read, if the checkpoint holds several.
        name: Of the export; `<file>` by default.
        saved_models: The folder of exports.
        overwrite: Replace an export of that name.

    Returns:
        What was imported, and where it is.

    Raises:
        InvalidInputError: If a checkpoint cannot be read or does not fit the architecture, or the normalization is
            not known.

    Example:
        >>> import keras_rcl
        >>> keras_rcl.import_weights("cifar_linf_8.pt", "resnet18", normalization="none")  # doctest: +SKIP
    """
    if architecture not in LAYOUTS:
        raise InvalidInputError(
            f"unknown architecture {architecture!r}; choose from {', '.join(LAYOUTS)}"
            f"{did_you_mean(architecture, LAYOUTS)}"
        )
    paths = [Path(path) for path in ([checkpoints] if isinstance(checkpoints, (str, Path)) else checkpoints)]
    name = name or free_name(paths[0].stem, (saved_models,), overwrite)
    check_name(name)
    check_replaceable(saved_models / name, "model.json", overwrite)
    states = [read_tensors(path, key) for path in paths]
    named = sort_tensors(_joined([state.tensors for state in states]))
    network, layout, (mean, std) = build_named(named, architecture, normalization, (dataset or {}).get("image_size"))
    about = {
        "name": name,
        "variant": None,
        **_data_contract(dataset, layout.encoder, network.output["logits"].shape[-1]),
        "imported": {
            "architecture": architecture,
            "codebase": layout.codebase,
            "files": [path.name for path in paths],
            "weights": hash_files(paths),
            "normalization": {"mean": list(mean), "std": list(std)},
        },
        "versions": versions(),
    }
    path = export(network, saved_models / name, about, overwrite=overwrite)
    others = tuple(other for state in states for other in state.others)
    return Imported(path, layout.codebase, states[0].key, others, named.unread, mean, std, len(named.weights))


def build_named(
    named: Named, architecture: str, normalization: str | None = None, image_size: int | None = None
) -> tuple[keras.Model, Layout, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Build the network of an architecture with the tensors of a checkpoint as its weights.

    Returns:
        The network, the layout of the names, and the mean and the standard deviation of its normalization.

    Raises:
        InvalidInputError: As of `import_weights`.
    """
    size = image_size or _image_size(named.weights)
    layout = fitting_layout(architecture, lambda encoder: _structure(encoder, size), named.weights)
    mean, std = _normalization(normalization, named, layout, size)
    classes = named.weights[layout.name("logits", "bias")].size
    spec = Network(encoder=layout.encoder, projection_dim=None, normalization="mean_std" if mean else "none")
    network = build_network(spec, (size, size, 3), classes, mean=mean or None, std=std or None)
    _fill(network, layout, named.weights)
    return network, layout, (mean, std)


def hash_files(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of the bytes of the files, one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(2**20), b""):
                digest.update(block)
    return digest.hexdigest()


def _joined(files: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tensors of all files."""
    tensors: dict[str, np.ndarray] = {}
    for more in files:
        if shared := tensors.keys() & more.keys():
            raise InvalidInputError(
                f"two checkpoints hold a tensor {min(shared)!r}; hint: give one file, or encoder and classifier"
            )
        tensors |= more
    return tensors


def _image_size(weights: Mapping[str, np.ndarray]) -> int:
    """ImageNet's size if a convolution has the 7x7 kernel of ImageNet's stem, else CIFAR's."""
    return IMAGENET_SIZE if any(w.ndim == 4 and w.shape[-1] == 7 for w in weights.values()) else CIFAR_SIZE


def _structure(encoder: Encoder, size: int) -> list[tuple[str, str]]:
    """(layer, variable) of each weight of the network around an encoder."""
    layers = build_encoder(encoder, (size, size, 3)).layers
    weights = [(layer.name, variable.name) for layer in layers for variable in layer.weights]
    return [*weights, ("logits", "kernel"), ("logits", "bias")]


def _normalization(
    given: str | None, named: Named, layout: Layout, size: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation that the network expects: as given, of the checkpoint, or of its codebase."""
    chosen = None if given is None else _parse_normalization(given)
    if named.statistics is not None:
        mean, std = (tuple(np.broadcast_to(values.astype(float), 3).tolist()) for values in named.statistics)
        if chosen is not None and (chosen == ((), ()) or not np.allclose(chosen, (mean, std), atol=1e-3)):
            raise InvalidInputError(
                f"normalization {given!r} contradicts the checkpoint, which holds mean {_text(mean)} and std "
                f"{_text(std)}; hint: leave it out"
            )
        return _checked(mean, std)
    if chosen is not None:
        return chosen
    default = layout.normalization
    if default is None or (default == "imagenet" and size <= CIFAR_SIZE):
        raise InvalidInputError(
            f"the checkpoint does not say how images are normalized for it; hint: give --normalization, one of "
            f"{', '.join(NORMALIZATIONS)}: none for TRADES and most of RobustBench, cifar10 for fast_adversarial"
        )
    return NORMALIZATIONS[default]


def _parse_normalization(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 6:
        raise InvalidInputError(
            f"unknown normalization {text!r}; choose from {', '.join(NORMALIZATIONS)}, or give "
            f"mean,mean,mean,std,std,std{did_you_mean(text, NORMALIZATIONS)}"
        )
    return _checked(numbers[:3], numbers[3:])


def _checked(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and min(std) > 0):
        raise InvalidInputError(f"a normalization by mean {_text(mean)} and std {_text(std)} is not possible")
    return ((), ()) if mean == (0.0,) * 3 and std == (1.0,) * 3 else (mean, std)


def _text(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _fill(network: keras.Model, layout: Layout, weights: Mapping[str, np.ndarray]) -> None:
    """Assign every weight of encoder and classifier."""
    for layer, variable, kept in _variables(network):
        name = layout.name(layer.name, variable.name)
        value = _in_keras_order(weights[name], layer, kept)
        if value.shape != tuple(variable.shape):
            wanted = _in_torch_order(tuple(variable.shape), layer)
            raise InvalidInputError(
                f"tensor {name!r} has the shape {list(weights[name].shape)}, and {layout.encoder} has {list(wanted)} "
                f"for images of {network.input_shape[1]} pixels; hint: choose another --architecture or --image-size"
            )
        variable.assign(value)


def _variables(network: keras.Model) -> Iterator[tuple[keras.layers.Layer, Any, tuple[int, ...] | None]]:
    """Layer, variable, and the shape (H, W, C) that was flattened just before the layer, of each weight."""
    for part in ("encoder", "classifier"):
        flattened = None
        for layer in parts(network)[part].layers:
            if isinstance(layer, keras.layers.Flatten):
                flattened = tuple(layer.input.shape[1:])
            for variable in layer.weights:
                yield layer, variable, flattened
            flattened = None if layer.weights else flattened


def _in_keras_order(value: np.ndarray, layer: keras.layers.Layer, flattened: tuple[int, ...] | None) -> np.ndarray:
    """A PyTorch tensor with its axes as in Keras: [O, I, H, W] -> [H, W, I, O], [O, I] -> [I, O]."""
    value = np.asarray(value, np.float32)
    if isinstance(layer, keras.layers.Conv2D) and value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if isinstance(layer, keras.layers.Dense) and value.ndim == 2:
        if flattened and value.shape[1] == np.prod(flattened):  # PyTorch flattens [C, H, W], Keras [H, W, C]
            height, width, channels = flattened
            value = value.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(len(value), -1)
        return value.transpose()
    return value


def _in_torch_order(shape: tuple[int, ...], layer: keras.layers.Layer) -> tuple[int, ...]:
    if isinstance(layer, keras.layers.Conv2D) and len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    return shape[::-1]


def _data_contract(dataset: Mapping[str, Any] | None, encoder: Encoder, classes: int) -> dict[str, Any]:
    """What `model.json` says about the data set: its class names, and how it is read; numbers where none is given."""
    if not (dataset and "name" in dataset):
        return {"class_names": [str(number) for number in range(classes)]}
    data = sources.load(read_dataset(dataset))
    if data.num_classes != classes:
        raise InvalidInputError(
            f"the checkpoint tells {classes} classes apart, and {data.name} has {data.num_classes}; hint: give the "
            "--dataset that it was trained on"
        )
    fields = {key: value for key, value in dataset.items() if key != "data_dir"}
    return {
        "data_set": data.name,
        "class_names": list(data.class_names),
        "config": {"dataset": fields, "network": {"encoder": encoder}},
    }
