"""Our AutoAttack members beside torchattacks' on the same weights and images: a development check, not a test.

    pip install torch torchattacks
    python -m benchmarks.attack_reference saved_models/cifar10-at --limit 1000

The exported Keras network is walked layer by layer into PyTorch, so both see the same function; the outputs are
compared before anything is attacked. For each member: robust accuracy by either, and on how many images they agree.
torchattacks' own AutoAttack class runs 10 steps, so its members are called one by one at the published budgets (Croce
and Hein 2020).
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np

from keras_rcl.runtime import start_tensorflow

start_tensorflow()

import keras  # noqa: E402
import torch  # noqa: E402
import torchattacks  # noqa: E402

from keras_rcl import config  # noqa: E402
from keras_rcl.classifier import load_classifier  # noqa: E402
from keras_rcl.data import sources  # noqa: E402
from keras_rcl.evaluation.robustness import Evaluator  # noqa: E402
from keras_rcl.report.tables import markdown_table, percent  # noqa: E402
from keras_rcl.vocabulary.attack import FAB, AutoPGD, Square  # noqa: E402
from keras_rcl.vocabulary.threat import parse_pixels  # noqa: E402


class _PlainGradient(torch.autograd.Function):
    """The identity, whose gradient lies in memory as torchattacks' FAB expects it."""

    @staticmethod
    def forward(context, x):
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient):
        return gradient.contiguous()


class TorchNetwork(torch.nn.Module):
    """A chain of Keras layers as PyTorch operations: [N, C, H, W] in [0, 1] -> logits."""

    def __init__(self, layers):
        super().__init__()
        self.steps = [step for layer in layers for step in _translate(layer)]

    def forward(self, x):
        x = _PlainGradient.apply(x)
        for step in self.steps:
            x = step(x)
        return x


def _tensor(value):
    return torch.tensor(keras.ops.convert_to_numpy(value))


def _translate(layer):
    """The PyTorch operations of one Keras layer; NCHW, and NHWC order where the layer flattens."""
    kind = type(layer).__name__
    if kind == "Normalization":
        mean, std = (_tensor(v).reshape(1, -1, 1, 1) for v in (layer.mean, np.sqrt(layer.variance)))
        return [lambda x: (x - mean) / std]
    if kind == "ZeroPadding2D":
        (top, bottom), (left, right) = layer.padding
        return [lambda x: torch.nn.functional.pad(x, (left, right, top, bottom))]
    if kind == "Conv2D" and layer.padding == "valid":
        kernel, bias = (
            _tensor(layer.kernel).permute(3, 2, 0, 1).contiguous(),
            _tensor(layer.bias) if layer.use_bias else None,
        )
        return [lambda x: torch.nn.functional.conv2d(x, kernel, bias, stride=layer.strides)]
    if kind == "BatchNormalization":
        values = [_tensor(v) for v in (layer.moving_mean, layer.moving_variance, layer.gamma, layer.beta)]
        return [lambda x: torch.nn.functional.batch_norm(x, *values, eps=layer.epsilon)]
    if kind == "ReLU":
        return [torch.relu]
    if kind == "Flatten":
        return [lambda x: x.permute(0, 2, 3, 1).flatten(1)]
    if kind == "Dense":
        kernel, bias = _tensor(layer.kernel), _tensor(layer.bias)
        return [lambda x: x @ kernel + bias]
    if kind in ("InputLayer", "Activation"):
        return []
    raise SystemExit(f"no PyTorch twin for layer {layer.name} ({kind})")


def torch_network(path: Path) -> TorchNetwork:
    """The classifier of an export: normalisation, encoder, classifier."""
    network = keras.saving.load_model(path / "model.keras")
    parts = [network.get_layer(name).layers for name in ("encoder", "classifier")]
    return TorchNetwork([network.get_layer("normalize"), *parts[0], *parts[1]])


def members(epsilon: float) -> dict:
    """Name -> (our word, torchattacks' attack of a model)."""
    ball = dict(norm="Linf", eps=epsilon, seed=0, verbose=False)
    return {
        "APGD-CE": (
            AutoPGD(epsilon=epsilon),
            lambda m: torchattacks.APGD(m, steps=100, n_restarts=1, loss="ce", **ball),
        ),
        "APGD-T": (
            AutoPGD(epsilon=epsilon, loss="dlr_targeted"),
            lambda m: torchattacks.APGDT(m, steps=100, n_restarts=1, n_classes=10, **ball),
        ),
        "FAB-T": (
            FAB(epsilon=epsilon),
            lambda m: torchattacks.FAB(m, steps=100, n_restarts=1, n_classes=10, multi_targeted=True, **ball),
        ),
        "Square": (
            Square(epsilon=epsilon),
            lambda m: torchattacks.Square(m, n_queries=5000, n_restarts=1, loss="margin", **ball),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--epsilon", type=parse_pixels, default=8 / 255)
    parser.add_argument("--members", default="APGD-CE,APGD-T,FAB-T,Square")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    classifier = load_classifier(arguments.model)
    dataset = config.parse(classifier.contract["config"], str(arguments.model)).dataset
    part = sources.load(dataset).test.limited(arguments.limit)
    images, labels = part.images.astype(np.float32) / 255, part.labels
    twin = torch_network(arguments.model).eval()
    theirs_in = torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        difference = np.abs(twin(theirs_in).numpy() - np.asarray(classifier.logits(images))).max()
    assert difference < 1e-3, f"the two networks differ by {difference}"

    rows, found = [], {}
    for name, (word, make) in members(arguments.epsilon).items():
        if name not in arguments.members.split(","):
            continue
        started = time.perf_counter()
        survival = Evaluator(classifier.logits, [word], batch_size=100)(images, labels)
        ours, our_seconds = survival.survived[0], time.perf_counter() - started
        started, theirs = time.perf_counter(), survival.clean.copy()
        right = np.flatnonzero(survival.clean)
        for start in range(0, len(right), 250):
            chosen = right[start : start + 250]
            x_adv = make(twin)(theirs_in[chosen], torch.tensor(labels[chosen]))
            with torch.no_grad():
                theirs[chosen] = twin(x_adv).argmax(1).numpy() == labels[chosen]
        their_seconds = time.perf_counter() - started
        agree = float(np.mean(ours == theirs))
        found[name] = {
            "ours": float(ours.mean()),
            "torchattacks": float(theirs.mean()),
            "agreement": agree,
            "seconds": our_seconds,
            "torchattacks_seconds": their_seconds,
        }
        rows.append(
            [
                name,
                percent(ours.mean()),
                percent(theirs.mean()),
                percent(agree),
                f"{our_seconds:.0f}",
                f"{their_seconds:.0f}",
            ]
        )
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    print(markdown_table(["member", "ours", "torchattacks", "agree", "seconds", "torchattacks, seconds"], rows))
    if arguments.json:
        command = f"python -m benchmarks.attack_reference {shlex.join(sys.argv[1:])}"
        record = {
            "command": command,
            "protocol": "pixel",
            "model": str(arguments.model),
            "images": len(labels),
            "epsilon": arguments.epsilon,
            "members": found,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
