"""Our bounds beside auto_LiRPA's on the same weights and images: a development check, not a test.

    pip install torch && pip install --no-deps auto_LiRPA appdirs torchvision
    python -m benchmarks.bounds_reference saved_models/cifar10-at --limit 20

The folded network becomes a PyTorch module; the outputs are compared before anything is bounded. For each method: the
mean lower bound of logit_y - logit_j by either, the difference, and the seconds per image. Ours are never
below the intervals', so auto_LiRPA's are raised to its own intervals' before they are compared. They are timed in turn
on the same cores, without the tracing of either's graph.

auto_LiRPA 0.3, the version on PyPI, is of 2022: what newer PyTorch and NumPy have moved is put where it looks for it.
"""

import argparse
import json
import sys
import time
import types
from pathlib import Path

import numpy as np

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
import torch  # noqa: E402
import torch.onnx.symbolic_helper  # noqa: E402
import torch.onnx.utils  # noqa: E402
from torch.onnx._internal.torchscript_exporter import _globals, utils  # noqa: E402

_moved = types.ModuleType("numpy.lib.arraysetops")
_moved.isin = np.isin
sys.modules.setdefault("numpy.lib.arraysetops", _moved)
torch.onnx.symbolic_helper._set_opset_version = lambda v: setattr(_globals.GLOBALS, "export_onnx_opset_version", v)
torch.onnx.utils._optimize_graph = utils._optimize_graph
torch._C.Node.__getitem__ = lambda node, name: getattr(node, node.kindOf(name))(name)

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm  # noqa: E402

from keras_rcl import config  # noqa: E402
from keras_rcl.bounds import worst_case_margins  # noqa: E402
from keras_rcl.data import sources  # noqa: E402
from keras_rcl.folding import fold  # noqa: E402
from keras_rcl.folding.fold import Conv, Dense, Image, Pad, ReLU, Reshape, Scale  # noqa: E402
from keras_rcl.model_io.classifier import load_classifier  # noqa: E402
from keras_rcl.report.tables import markdown_table  # noqa: E402
from keras_rcl.vocabulary.threat import parse_pixels  # noqa: E402

METHODS = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN", "alpha-crown": "CROWN-Optimized"}
"""Our name -> auto_LiRPA's."""


def _tensor(value):
    return torch.tensor(np.asarray(value))


def torch_network(steps):
    """A chain of folded steps as a PyTorch module, and what is done to the images [N, H, W, C] before it.

    The normalisation stays outside, for auto_LiRPA's window mode fails on one value per channel; it moves each pixel by
    itself, so that the ball's image is a box too.
    """
    layers, padding, shape, scale = [], (0, 0), None, None
    for number, step in enumerate(steps):
        operation = step.operation
        assert step.inputs in ((), (number - 1,)), f"{step.path} is not a chain"
        if isinstance(operation, Scale):
            assert number == 1, f"{step.path} is not folded"
            scale = operation
        elif isinstance(operation, Pad):
            padding = tuple(amounts[0] for amounts in operation.amounts)
            assert all(low == high for low, high in operation.amounts)
        elif isinstance(operation, Conv):
            height, width, channels, filters = operation.kernel.shape
            layers.append(torch.nn.Conv2d(channels, filters, (height, width), operation.strides, padding))
            layers[-1].weight.data = _tensor(operation.kernel).permute(3, 2, 0, 1).contiguous()
            layers[-1].bias.data = _tensor(operation.bias)
            padding = (0, 0)
        elif isinstance(operation, Reshape):
            layers.append(torch.nn.Flatten())
            shape = steps[number - 1].shape
        elif isinstance(operation, Dense):
            kernel = np.asarray(operation.kernel)
            if shape is not None:
                kernel = kernel.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
                shape = None
            layers.append(torch.nn.Linear(*kernel.shape))
            layers[-1].weight.data = _tensor(kernel.T.copy())
            layers[-1].bias.data = _tensor(operation.bias)
        elif isinstance(operation, ReLU):
            layers.append(torch.nn.ReLU())
        else:
            assert isinstance(operation, Image), f"no PyTorch twin for {step.path}"

    def before(images):
        scaled = images if scale is None else images * np.asarray(scale.factor) + np.asarray(scale.offset)
        return torch.tensor(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))

    return torch.nn.Sequential(*layers).eval(), before


def theirs(bounded, before, images, labels, epsilon, method, iterations, inner: bool):
    """[N, K - 1]: the margins of the wrong classes in order; `inner` optimises the bounds before each ReLU too."""
    low, high = before(np.clip(images - epsilon, 0, 1)), before(np.clip(images + epsilon, 0, 1))
    ball = BoundedTensor(before(images), PerturbationLpNorm(norm=np.inf, x_L=low, x_U=high))
    unit = torch.eye(bounded.final_shape[1])
    differences = torch.stack([(unit[y] - unit)[torch.arange(len(unit)) != y] for y in labels])
    bounded.set_bound_opts({"optimize_bound_args": {"iteration": iterations, "early_stop_patience": 10**6}})
    task = dict(x=(ball,), C=differences, bound_upper=False)
    if method == "alpha-crown" and not inner:
        bounded.compute_bounds(**task, method="CROWN")
        read = [relu.inputs[0] for relu in bounded.relus]
        task["intermediate_layer_bounds"] = {n.name: [n.lower.detach(), n.upper.detach()] for n in read}
    found, _ = bounded.compute_bounds(**task, method=METHODS[method])
    return found.detach().numpy()


# A script: one pass from arguments to result.
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--epsilon", type=parse_pixels, default=2 / 255)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument(
        "--inner-iterations", type=int, default=0, help="0: alpha-CROWN on CROWN's inner bounds, by both"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    classifier = load_classifier(arguments.model)
    experiment = config.parse(classifier.contract["config"], str(arguments.model))
    part = sources.load(experiment.dataset).test.limited(arguments.limit)
    images, labels = part.images.astype(np.float32) / 255, part.labels
    network = keras.saving.load_model(arguments.model / "model.keras")
    twin, before = torch_network(fold(network))
    with torch.no_grad():
        difference = np.abs(twin(before(images)).numpy() - np.asarray(classifier.logits(images))).max()
    assert difference < 1e-3, f"the two networks differ by {difference}"
    inner = arguments.inner_iterations
    wrong = np.arange(len(classifier.contract["class_names"])) != labels[:, None]

    def ours_of(method):
        options = dict(iterations=arguments.iterations, inner_iterations=inner) if method == "alpha-crown" else {}

        @tf.function(autograph=False)
        def margins(images, labels):
            return worst_case_margins(network, images, labels, arguments.epsilon, method, **options)

        return lambda: margins(images, labels).numpy()[wrong].reshape(len(labels), -1)

    def theirs_of(method):
        bounded = BoundedModule(twin, before(images[:1]))
        return lambda: theirs(
            bounded, before, images, labels, arguments.epsilon, method, arguments.iterations, inner > 0
        )

    rows, found = [], {}
    intervals = theirs_of("ibp")()
    for method in arguments.methods.split(","):
        seconds, margins = {"ours": [], "theirs": []}, {}
        compiled = ours_of(method)
        compiled()
        for _ in range(arguments.repeats):
            # A new one each time: optimised bounds leave something behind in auto_LiRPA's.
            for name, run in (("ours", compiled), ("theirs", theirs_of(method))):
                started = time.perf_counter()
                margins[name] = run()
                seconds[name].append((time.perf_counter() - started) / len(labels))
        ours, reference = margins["ours"], np.maximum(margins["theirs"], intervals)
        apart = np.abs(ours - reference) / np.maximum(np.abs(reference), np.abs(reference).mean())
        found[method] = {
            "mean": float(ours.mean()),
            "auto_LiRPA_mean": float(reference.mean()),
            "largest_relative_difference": float(apart.max()),
            "share_within_1e-4": float(np.mean(apart <= 1e-4)),
            "seconds": min(seconds["ours"]),
            "auto_LiRPA_seconds": min(seconds["theirs"]),
        }
        print(f"{method}: {found[method]}", file=sys.stderr, flush=True)
        rows.append([method, *(f"{value:.4g}" for value in found[method].values())])
    print(markdown_table(["method", *(name.replace("_", " ") for name in found[method])], rows))
    if arguments.json:
        record = {
            "command": command_line(),
            "model": str(arguments.model),
            "images": len(labels),
            "epsilon": arguments.epsilon,
            "iterations": arguments.iterations,
            "inner_iterations": inner,
            "methods": found,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
