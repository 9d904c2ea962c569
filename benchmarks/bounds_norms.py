"""Bounds over L2 and L1 balls beside auto_LiRPA's, on three networks: a development check, not a test.

    pip install torch && pip install --no-deps auto_LiRPA appdirs torchvision
    python -m benchmarks.bounds_norms --json results/benchmarks/bounds_norms.json

Three small networks are trained on the digits of scikit-learn and walked layer by layer into PyTorch. auto_LiRPA takes
the dual norm at the input and knows no pixel box. So both are first compared on images between 0.35 and 0.65, whose
balls of radius 0.35 lie in the box. There `crown` is CROWN alone, as auto_LiRPA has it: ours otherwise intersects the
bounds before each ReLU with interval bounds. Convolutions are given to auto_LiRPA as matrices: its intervals of a
convolution take the L2 norm of the kernel in L1 as well, and the whole kernel where a window reaches beyond the image.
The last rows are on the digits themselves, whose pixels are often at 0 and 1: there ours are higher in the mean. At
last, one network is verified by branch and bound, and attacked: no image that is verified may be broken.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.bounds_reference import METHODS, BoundedModule, BoundedTensor, PerturbationLpNorm, torch_network
from benchmarks.command import command_line

import keras  # isort: skip
import torch  # isort: skip

from keras_rcl.bounds import worst_case_margins  # isort: skip
from keras_rcl.bounds.crown import LinearForms, lower_bounds  # isort: skip
from keras_rcl.bounds.input_sets import Interval, pixel_ball  # isort: skip
from keras_rcl.bounds.interval import past_scaling  # isort: skip
from keras_rcl.data import sources  # isort: skip
from keras_rcl.evaluation.certification import VERIFIED, Certifier  # isort: skip
from keras_rcl.evaluation.robustness import Evaluator  # isort: skip
from keras_rcl.folding.fold import ReLU, fold  # isort: skip
from keras_rcl.report.tables import markdown_table  # isort: skip
from keras_rcl.vocabulary.attacks import DDN, FMN, AutoAttack  # isort: skip
from keras_rcl.vocabulary.dataset import Dataset  # isort: skip

L = keras.layers
ORDER = {"l2": 2, "l1": 1}


def _chain(*hidden):
    def layers():
        for layer in hidden:
            yield layer
            if not isinstance(layer, L.Flatten):
                yield L.ReLU()
        yield L.Dense(10)

    return keras.Sequential([keras.Input((8, 8, 1)), *layers()])


NETWORKS = {
    "dense": lambda: _chain(L.Flatten(), L.Dense(64), L.Dense(64)),
    "deep": lambda: _chain(L.Flatten(), *(L.Dense(32) for _ in range(5))),
    "attacked": lambda: _chain(L.Flatten(), L.Dense(16), L.Dense(16)),
    "conv": lambda: _chain(L.Conv2D(8, 3, padding="same"), L.Conv2D(8, 3, strides=2), L.Flatten(), L.Dense(32)),
}


def trained(name: str, images: np.ndarray, labels: np.ndarray) -> keras.Model:
    """A network, after a few epochs."""
    keras.utils.set_random_seed(0)
    network = NETWORKS[name]()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
    network.fit(images, labels, batch_size=64, epochs=6, verbose=0)
    return network


def plain_crown(network, images, labels, epsilon, norm):
    """Margins [N, K - 1] by CROWN for the input of every ReLU, without interval bounds."""
    steps, inputs = past_scaling(fold(network), pixel_ball(keras.ops.convert_to_tensor(images), epsilon, norm))
    intervals, read = [inputs], {step.inputs[0] for step in steps if isinstance(step.operation, ReLU)}
    for number, step in enumerate(steps[1:], 1):
        interval = None
        if number in read:
            size = int(np.prod(step.shape))
            unit = np.tile(np.eye(size, dtype="float32"), (len(images), 1)).reshape(-1, *step.shape)
            ends = [sign * lower_bounds(steps[: number + 1], LinearForms(sign * unit), intervals) for sign in (1, -1)]
            interval = Interval(*(keras.ops.reshape(end, (-1, *step.shape)) for end in ends))
        intervals.append(interval)
    rows = LinearForms(_differences(labels).reshape(-1, 10))
    return np.asarray(lower_bounds(steps, rows, intervals)).reshape(len(images), -1)


def _differences(labels) -> np.ndarray:
    unit = np.eye(10, dtype="float32")
    return np.stack([(unit[y] - unit)[np.arange(10) != y] for y in labels])


def ours(network, images, labels, epsilon, norm, method) -> np.ndarray:
    margins = np.asarray(worst_case_margins(network, images, labels, epsilon, method, norm=norm))
    return margins[np.arange(10) != labels[:, None]].reshape(len(labels), -1)


def as_matrices(network: keras.Model) -> keras.Model:
    """The same network without convolutions."""
    layers, weights = [keras.Input((8, 8, 1)), L.Flatten()], []
    for layer in network.layers:
        if isinstance(layer, L.Conv2D):
            shape = layer.input.shape[1:]
            identity = np.eye(int(np.prod(shape)), dtype="float32").reshape(-1, *shape)
            outputs, bias = np.asarray(layer(identity)), np.asarray(layer(np.zeros((1, *shape), "float32")))
            weights += [(outputs - bias).reshape(len(identity), -1), bias.ravel()]
            layers.append(L.Dense(bias.size))
        elif isinstance(layer, L.Dense):
            weights += layer.get_weights()
            layers.append(L.Dense(layer.units))
        elif isinstance(layer, L.ReLU):
            layers.append(L.ReLU())
    twin = keras.Sequential(layers)
    twin.set_weights(weights)
    return twin


def theirs(network, images, labels, epsilon, norm, method) -> np.ndarray:
    twin, before = torch_network(fold(as_matrices(network)))
    with torch.no_grad():
        apart = np.abs(twin(before(images)).numpy() - np.asarray(network(images, training=False))).max()
    assert apart < 1e-4, f"the two networks differ by {apart}"
    bounded = BoundedModule(twin, before(images))
    ball = BoundedTensor(before(images), PerturbationLpNorm(norm=ORDER[norm], eps=epsilon))
    task = dict(x=(ball,), C=torch.tensor(_differences(labels)), bound_upper=False, method=METHODS[method])
    return bounded.compute_bounds(**task)[0].detach().numpy()


def compared(name, images, labels, network, norm, epsilon, method, in_box: bool) -> dict:
    """One row: the means of either, and how far they are apart, relative to the larger of a bound and their mean."""
    problem = network, images, labels, epsilon, norm
    mine = plain_crown(*problem) if method == "crown" and in_box else ours(*problem, method)
    other = theirs(*problem, method)
    if method == "crown-ibp":  # ours is never below the intervals
        other = np.maximum(other, theirs(*problem, "ibp"))
    apart = (mine - other) / np.maximum(np.abs(other), np.abs(other).mean())
    return {
        "network": name,
        "images": "within the box" if in_box else "digits",
        "norm": norm,
        "epsilon": epsilon,
        "bound": method,
        "ours": float(mine.mean()),
        "auto_LiRPA": float(other.mean()),
        "largest_relative_difference": float(np.abs(apart).max()),
        "lowest_relative_difference": float(apart.min()),
    }


def attacked(network, images, labels, norm, epsilons) -> list[dict]:
    """One row per radius: the images that are verified, those that attacks break, and those that are both."""
    found = Certifier(network, epsilons, norm=norm, attacks=(), timeout=5)(images, labels)
    rows = []
    for number, epsilon in enumerate(epsilons):
        attacks = [AutoAttack(norm=norm, epsilon=epsilon), FMN(norm=norm, epsilon=epsilon)]
        attacks += [DDN(epsilon=epsilon)] if norm == "l2" else []
        evaluator = Evaluator(lambda x: network(x, training=False), attacks, batch_size=len(labels))
        broken = ~evaluator(images, labels).survived.all(axis=0)
        statuses = found.statuses[number]
        verified = np.isin(statuses, VERIFIED)
        rows.append(
            {
                "norm": norm,
                "epsilon": epsilon,
                "images": len(labels),
                "verified": int(verified.sum()),
                "by branch and bound": int((statuses == "safe").sum()),
                "timeout": int((statuses == "timeout").sum()),
                "misclassified or broken": int(broken.sum()),
                "verified and broken": int((verified & broken).sum()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=10, help="images per network")
    parser.add_argument("--json", type=Path, help="the file to write")
    arguments = parser.parse_args()
    data, rows = sources.load(Dataset(name="digits")), []
    digits = data.test.limited(arguments.limit).images.astype(np.float32) / 255
    for name in ("dense", "deep", "conv"):
        network = trained(name, data.train.images.astype(np.float32) / 255, data.train.labels)
        for in_box, images in ((True, 0.35 + 0.3 * digits), (False, digits)):
            labels = np.argmax(network(images, training=False), axis=1)
            for norm in ORDER:
                epsilon = 0.35 if in_box or norm == "l2" else 1.0
                for method in ("ibp", "crown-ibp", "crown") if in_box else ("crown",):
                    rows.append(compared(name, images, labels, network, norm, epsilon, method, in_box))
                    print(rows[-1], file=sys.stderr, flush=True)
    small = data.test.limited(60)
    network = trained("attacked", data.train.images.astype(np.float32) / 255, data.train.labels)
    verified = []
    for norm, epsilons in {"l2": (0.3, 0.6), "l1": (0.75, 1.5)}.items():
        verified += attacked(network, small.images.astype(np.float32) / 255, small.labels, norm, epsilons)
    print(markdown_table(list(verified[0]), [list(map(str, row.values())) for row in verified]))
    cells = [[f"{value:.4g}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    print(markdown_table(list(rows[0]), cells))
    if arguments.json:
        command = command_line()
        record = {"command": command, "images": arguments.limit, "rows": rows, "verified": verified}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
