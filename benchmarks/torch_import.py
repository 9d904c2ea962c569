"""Imported networks against the PyTorch modules that their checkpoints are of, with random weights.

    pip install torch torchvision && pip install --no-deps robustbench && python -m benchmarks.torch_import [--json]

Each module is initialized at random, its BatchNorm statistics too, saved by `torch.save`, imported, and compared on
random images. A module of a package that is not installed is left out by name.
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import click
import numpy as np

from keras_rcl.runtime.tensorflow import start_tensorflow

IMAGES = 2
TOLERANCE = 1e-5
"""Of the largest difference between logits, relative to the largest logit."""


def robustbench(module: str):
    """A file of RobustBench's architectures, without the packages that RobustBench itself imports."""
    found = importlib.util.find_spec("robustbench")
    path = Path(found.submodule_search_locations[0]) / "model_zoo" / "architectures" / f"{module}.py"
    spec = importlib.util.spec_from_file_location(f"robustbench_{module}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def preact(block: str, **options):
    zoo = robustbench("resnet")
    return zoo.PreActResNet(getattr(zoo, block), [2, 2, 2, 2], **options)


def torchvision(name: str):
    import torchvision

    return getattr(torchvision.models, name)(weights=None)


MODULES: dict[str, tuple[str, int, str, Callable]] = {
    "torchvision resnet18": ("resnet18", 224, "imagenet", lambda: torchvision("resnet18")),
    "torchvision resnet50": ("resnet50", 224, "imagenet", lambda: torchvision("resnet50")),
    "RobustBench ResNet18": ("resnet18", 32, "none", lambda: robustbench("resnet").ResNet18()),
    "RobustBench ResNet50": ("resnet50", 32, "cifar10", lambda: robustbench("resnet").ResNet50()),
    "RobustBench PreActBlockV2": ("preact_resnet18", 32, "cifar10", lambda: preact("PreActBlockV2", bn_before_fc=True)),
    "RobustBench PreActBlockV2, open": ("preact_resnet18", 32, "none", lambda: preact("PreActBlockV2")),
    "RobustBench PreActBlock": ("preact_resnet18_fast", 32, "cifar10", lambda: preact("PreActBlock")),
    "RobustBench WideResNet-28-10": (
        "wide_resnet_28_10",
        32,
        "none",
        lambda: robustbench("wide_resnet").WideResNet(sub_block1=True),
    ),
}
"""Name -> architecture, image size, normalization, and the module."""


def randomized(module):
    """The module in evaluation mode, with random statistics and scales in its BatchNorm layers."""
    import torch

    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(layer.weight, 0.7, 1.3)
            torch.nn.init.uniform_(layer.bias, -0.3, 0.3)
    return module.eval()


def difference(name: str) -> dict[str, float]:
    """The largest difference of the logits, and the largest logit."""
    import torch

    from keras_rcl.model_io.torch_checkpoints import read_tensors
    from keras_rcl.model_io.torch_names import NORMALIZATIONS, sort_tensors
    from keras_rcl.workflows.import_weights import build_named

    architecture, size, normalization, make = MODULES[name]
    module = randomized(make())
    images = np.random.default_rng(0).random((IMAGES, size, size, 3), np.float32)
    mean, std = (
        np.array(values or default, np.float32)
        for values, default in zip(NORMALIZATIONS[normalization], (0, 1), strict=True)
    )
    with torch.no_grad():
        expected = module(torch.tensor(((images - mean) / std).transpose(0, 3, 1, 2))).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.pt"
        torch.save({"state_dict": torch.nn.DataParallel(module).state_dict(), "epoch": 1}, path)
        named = sort_tensors(read_tensors(path).tensors)
    network, _, _ = build_named(named, architecture, normalization, size)
    found = network(images, training=False)["logits"].numpy()
    return {"difference": float(np.abs(found - expected).max()), "largest": float(np.abs(expected).max())}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def main(as_json: bool) -> None:
    start_tensorflow()
    found = {}
    for name in MODULES:
        try:
            found[name] = difference(name)
        except (ModuleNotFoundError, AttributeError) as error:
            click.echo(f"{name}: left out ({error})", err=True)
            continue
        ok = found[name]["difference"] <= TOLERANCE * max(1.0, found[name]["largest"])
        click.echo(
            f"{name}: {found[name]['difference']:.1e} of {found[name]['largest']:.2f}{'' if ok else ' TOO FAR'}",
            err=True,
        )
    if as_json:
        command = "python -m benchmarks.torch_import --json > results/benchmarks/torch_import.json"
        packages = {name: metadata.version(name) for name in ("torch", "torchvision", "robustbench")}
        click.echo(json.dumps({"command": command, "versions": packages, "measured": found}, indent=1))


if __name__ == "__main__":
    main()
