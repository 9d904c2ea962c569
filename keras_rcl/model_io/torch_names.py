"""What the codebases in which robust weights are published call the tensors of our encoders."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.network import Architecture, Encoder

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((), ()),
    "minus1to1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar10-0.2": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation per channel of pixels in [0, 1]. Of CIFAR-10 two sets of deviations are in use: those of
all pixels, and in `cifar10-0.2` the mean over images of each image's own deviation."""

_PARTS = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"} | {
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
"""Variable of a Keras layer -> parameter or buffer of a PyTorch module."""

_UNREAD = re.compile(r"(^|\.)num_batches_tracked$|^n_classes$|^sub_block1\.|(^|\.)attacker\.")
"""Tensors that no forward pass in evaluation mode reads: counters; the number of classes in MAIR; the second copy of
the first block in the code of TRADES; the copy of the network in the attacker of the robustness library."""

_STATISTICS = re.compile(r"(^|\.)(?P<kind>mean|mu|new_mean|std|sigma|new_std)$")
"""The mean and the deviation of a normalization layer within the network."""


@dataclass(frozen=True)
class Layout:
    """The names that a codebase gives to the layers of an architecture.

    Attributes:
        codebase: What it is called in messages.
        encoder: Our encoder.
        block: The prefix of a block; `{stage}` counts from 1, `{block}` from 0.
        in_block: Name of a layer in a block of ours -> name in the codebase.
        others: Name of any other layer of ours -> name in the codebase.
        tensors: Full name of a tensor as `others` and `block` give it -> its name, where the codebase has another one.
        normalization: What its networks expect, if that is always the same; a name of `NORMALIZATIONS`.
    """

    codebase: str
    encoder: Encoder
    block: str
    in_block: Mapping[str, str]
    others: Mapping[str, str]
    tensors: Mapping[str, str] = field(default_factory=dict)
    normalization: str | None = None

    def name(self, layer: str, variable: str) -> str:
        """The name of a variable of one of our layers; empty if the codebase has no such layer."""
        within = re.fullmatch(r"stage(\d+)_block(\d+)_(\w+)", layer)
        if within:
            prefix = self.block.format(stage=int(within[1]), block=int(within[2]) - 1)
            inner = self.in_block.get(within[3])
            module = None if inner is None else f"{prefix}.{inner}"
        else:
            module = self.others.get(layer)
        if module is None:
            return ""
        name = f"{module}.{_PARTS[variable]}"
        return self.tensors.get(name, name)


_POST = {f"conv{i}": f"conv{i}" for i in (1, 2, 3)} | {f"norm{i}": f"bn{i}" for i in (1, 2, 3)}
_PRE = {f"conv{i}": f"conv{i}" for i in (1, 2)} | {f"norm{i}": f"bn{i + 1}" for i in (0, 1)}


def _resnets(encoder: Encoder) -> tuple[Layout, ...]:
    def resnet(codebase: str, shortcut: str, classifier: str, normalization: str | None = None) -> Layout:
        in_block = _POST | {"shortcut": f"{shortcut}.0", "shortcut_norm": f"{shortcut}.1"}
        others = {"stem_conv": "conv1", "stem_norm": "bn1", "logits": classifier}
        return Layout(codebase, encoder, "layer{stage}.{block}", in_block, others, normalization=normalization)

    return (
        resnet("torchvision", "downsample", "fc", "imagenet"),
        resnet("RobustBench, TRADES and MAIR", "shortcut", "linear"),
    )


def _preact(codebase: str, encoder: Encoder, closing: Mapping[str, str]) -> Layout:
    others = {"stem_conv": "conv1", "logits": "linear", **closing}
    return Layout(codebase, encoder, "layer{stage}.{block}", _PRE | {"shortcut": "shortcut.0"}, others)


def _cusin(classifier: str, renamed: Mapping[str, str]) -> Layout:
    convs = {f"conv{i + 1}": f"encoder.encoder.{3 * i}" for i in range(3)}
    norms = {f"conv{i + 1}_norm": f"encoder.encoder.{3 * i + 1}" for i in range(3)}
    denses = {"dense1": "encoder.proj.0", "dense2": "encoder.proj.2", "embedding_norm": "encoder.proj.3"}
    others = convs | norms | denses | {"logits": classifier}
    return Layout("Cusin and Serafini", "strided_cnn", "", {}, others, renamed, "minus1to1")


def _traced() -> dict[str, str]:
    """The names that auto_LiRPA gives to Cusin's encoder: parameters and buffers are numbered in the order of use."""
    affine, norm = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var")
    modules = [(f"encoder.encoder.{i}", norm if i % 3 else affine) for i in (0, 1, 3, 4, 6, 7)]
    modules += [("encoder.proj.0", affine), ("encoder.proj.2", affine), ("encoder.proj.3", norm)]
    numbers = iter((*range(1, 7), *range(8, 14), *range(15, 21), *range(22, 30)))
    return {
        f"{module}.{part}": f"/{next(numbers)}.{'buffer' if part.startswith('running') else 'param'}"
        for module, parts in modules
        for part in parts
    }


_TRACED = _traced()
_TRACED_CLASSIFIER = {"classifier.classifier.weight": "/31.param", "classifier.classifier.bias": "/32.param"}

LAYOUTS: dict[Architecture, tuple[Layout, ...]] = {
    "resnet18": _resnets("resnet18"),
    "resnet50": _resnets("resnet50"),
    "preact_resnet18": (
        _preact("RobustBench", "preact_resnet18", {"final_norm": "bn"}),
        _preact("MAIR", "preact_resnet18_open", {}),
    ),
    "preact_resnet18_fast": (_preact("fast_adversarial and RobustBench", "preact_resnet18_fast", {}),),
    "wide_resnet_28_10": (
        Layout(
            "TRADES, RobustBench and MAIR",
            "wide_resnet_28_10",
            "block{stage}.layer.{block}",
            _PRE | {"shortcut": "convShortcut"},
            {"stem_conv": "conv1", "final_norm": "bn1", "logits": "fc"},
        ),
    ),
    "cusin_cnn": (
        _cusin("classifier.classifier", {}),
        _cusin("classifier.classifier", _TRACED | _TRACED_CLASSIFIER),
        _cusin("classifier", _TRACED),
    ),
}
"""Architecture -> the layouts that its checkpoints have."""


@dataclass(frozen=True)
class Named:
    """The tensors of a checkpoint, sorted.

    Attributes:
        weights: Name without the prefix -> array.
        prefix: What all names began with, such as `module.`.
        unread: Names of tensors that no forward pass reads.
        statistics: `mean` and `std` per channel of a normalization layer, if the checkpoint has one.
    """

    weights: dict[str, np.ndarray]
    prefix: str
    unread: tuple[str, ...]
    statistics: tuple[np.ndarray, np.ndarray] | None


def sort_tensors(tensors: Mapping[str, np.ndarray]) -> Named:
    """Set apart what is not a weight, and take off the prefix that all weights share, such as `module.`."""
    found = {}
    for name, array in tensors.items():
        match = _STATISTICS.search(name)
        if match and array.size in (1, 3) and not _UNREAD.search(name):
            found["mean" if match["kind"] in ("mean", "mu", "new_mean") else "std"] = array.reshape(-1)
    statistics = (found["mean"], found["std"]) if len(found) == 2 else None
    others = [name for name in tensors if not (statistics and _STATISTICS.search(name))]
    prefix = _shared_prefix(name for name in others if not _UNREAD.search(name))
    weights, unread = {}, []
    for name in others:
        short = name.removeprefix(prefix)
        if _UNREAD.search(name) or _UNREAD.search(short):
            unread.append(name)
        else:
            weights[short] = tensors[name]
    return Named(weights, prefix, tuple(unread), statistics)


def _shared_prefix(names: Iterable[str]) -> str:
    """The longest dotted prefix of all names."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return "".join(f"{part}." for part in shared)


def fitting_layout(
    architecture: str, weights_of: Callable[[Encoder], Iterable[tuple[str, str]]], given: Iterable[str]
) -> Layout:
    """Return the layout under which each weight has a tensor and each tensor a weight.

    Args:
        architecture: A name of `LAYOUTS`.
        weights_of: Encoder -> (layer, variable) of each weight of the network around it.
        given: Names of the tensors, without their prefix.

    Raises:
        InvalidInputError: If there is none; it names tensors and weights that are left over under the closest layout.
    """
    given = set(given)
    misses = []
    for layout in LAYOUTS[architecture]:
        named = {f"{layer}/{variable}": layout.name(layer, variable) for layer, variable in weights_of(layout.encoder)}
        unused = sorted(given - set(named.values()))
        unfilled = [weight for weight, name in named.items() if name not in given]
        if not unused and not unfilled:
            return layout
        misses.append((len(unused) + len(unfilled), layout, unused, unfilled))
    _, layout, unused, unfilled = min(misses, key=lambda miss: miss[0])
    raise InvalidInputError(
        f"the checkpoint is not a {architecture} as in {layout.codebase}: {_some('tensors', unused)} not used, "
        f"{_some('weights', unfilled)} not filled; hint: choose another --architecture or --key"
    )


def _some(what: str, names: list[str]) -> str:
    shown = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
    return f"{len(names)} {what}{shown}"
