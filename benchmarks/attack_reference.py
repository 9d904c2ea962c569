"""Our AutoAttack members beside torchattacks' on the same weights and images: a development check, not a test.

    pip install torch torchattacks
    python -m benchmarks.attack_reference saved_models/cifar10-at --limit 1000 --json results/benchmarks/at.json

The exported Keras network is walked layer by layer into PyTorch, so both see the same function; the outputs are
compared before anything is attacked. For each member, and for the ensemble, which is the worst case over all of them:
robust accuracy by either, and on how many images they agree. torchattacks' own AutoAttack class runs 10 steps, so its
members are called one by one at the published budgets (Croce and Hein 2020); its L2 APGD takes one step size for a
whole batch, so it is given one image at a time. Its Square never reaches the last row and column with squares smaller
than the image, though the paper draws their corner from {0, ..., w - h} (Andriushchenko et al. 2020, Algorithm 2); so
there is a second one, `Square to the edge`, with that one bound mended. Each member is written as it comes, and not run
again where the file has it.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.command import command_line
from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import torch  # noqa: E402
import torchattacks  # noqa: E402

from benchmarks.torch_twin import TorchNetwork, channels_first, check_twin  # noqa: E402
from keras_rcl import config  # noqa: E402
from keras_rcl.data import sources  # noqa: E402
from keras_rcl.evaluation.robustness import Evaluator  # noqa: E402
from keras_rcl.model_io.classifier import load_classifier  # noqa: E402
from keras_rcl.report.tables import markdown_table, percent  # noqa: E402
from keras_rcl.vocabulary.attacks import FAB, AutoPGD, Square  # noqa: E402
from keras_rcl.vocabulary.threat import parse_pixels  # noqa: E402


class SquareToTheEdge(torchattacks.Square):
    """torchattacks' Square, whose corners are drawn from 0 to `high` with both ends."""

    def random_int(self, low=0, high=1, shape=(1,)):
        return super().random_int(low, high + 1, list(shape))


def members(norm: str, epsilon: float) -> dict:
    """Name -> (our word, torchattacks' attack of a model)."""
    ours = dict(norm=norm, epsilon=epsilon)
    theirs = dict(norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, seed=0, verbose=False)
    return {
        "APGD-CE": (
            AutoPGD(**ours),
            lambda m: torchattacks.APGD(m, steps=100, n_restarts=1, loss="ce", **theirs),
        ),
        "APGD-T": (
            AutoPGD(loss="dlr_targeted", **ours),
            lambda m: torchattacks.APGDT(m, steps=100, n_restarts=1, n_classes=10, **theirs),
        ),
        "FAB-T": (
            FAB(**ours),
            lambda m: torchattacks.FAB(m, steps=100, n_restarts=1, n_classes=10, multi_targeted=True, **theirs),
        ),
        "Square": (
            Square(**ours),
            lambda m: torchattacks.Square(m, n_queries=5000, n_restarts=1, loss="margin", **theirs),
        ),
        "Square to the edge": (
            Square(**ours),
            lambda m: SquareToTheEdge(m, n_queries=5000, n_restarts=1, loss="margin", **theirs),
        ),
    }


def survivors_of_torch(
    make, twin, images: torch.Tensor, labels: np.ndarray, right: np.ndarray, size: int
) -> np.ndarray:
    """[N] bool: which images are right before and after torchattacks' attack, in batches of `size`."""
    survived = right.copy()
    indices = np.flatnonzero(right)
    for start in range(0, len(indices), size):
        chosen = indices[start : start + size]
        x_adv = make(twin)(images[chosen], torch.tensor(labels[chosen]))
        with torch.no_grad():
            survived[chosen] = twin(x_adv).argmax(1).numpy() == labels[chosen]
    return survived


def bits(outcomes: np.ndarray) -> str:
    return "".join("1" if outcome else "0" for outcome in outcomes)


def summary(found: dict, clean: str) -> dict:
    """What is reported of each member and of the ensemble: robust accuracy by either, and their agreement."""
    pairs = {name: (member["survival"], member["torchattacks_survival"]) for name, member in found.items()}
    worst = [["1" if set(outcomes) == {"1"} else "0" for outcomes in zip(*side)] for side in zip(*pairs.values())]  # noqa: B905
    pairs["ensemble"] = tuple("".join(side) for side in worst)
    return {
        name: {
            "ours": ours.count("1") / len(ours),
            "torchattacks": theirs.count("1") / len(theirs),
            "agreement": sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(clean),
        }
        for name, (ours, theirs) in pairs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--norm", choices=["linf", "l2"], default="linf")
    parser.add_argument("--epsilon", type=parse_pixels, default=8 / 255)
    parser.add_argument("--members", default="APGD-CE,APGD-T,FAB-T,Square,Square to the edge")
    parser.add_argument("--json", type=Path, help="the file to write, and to resume from")
    arguments = parser.parse_args()

    classifier = load_classifier(arguments.model)
    dataset = config.parse(classifier.contract["config"], str(arguments.model)).dataset
    part = sources.load(dataset).test.limited(arguments.limit)
    images, labels = part.images.astype(np.float32) / 255, part.labels
    twin, theirs_in = TorchNetwork(classifier.model.layers).eval(), channels_first(images)
    check_twin(twin, images, classifier.logits(images))

    record = {
        "protocol": "pixel",
        "model": str(arguments.model),
        "model_hash": classifier.model_hash,
        "images": len(labels),
        "norm": arguments.norm,
        "epsilon": arguments.epsilon,
        "clean": bits(Evaluator(classifier.logits, ())(images, labels).clean),
    }
    found = {}
    if arguments.json and arguments.json.exists():
        before = json.loads(arguments.json.read_text())
        assert all(before.get(key) == value for key, value in record.items()), f"{arguments.json} is of something else"
        found = before["members"]
    for name, (word, make) in members(arguments.norm, arguments.epsilon).items():
        if name not in arguments.members.split(",") or name in found:
            continue
        started = time.perf_counter()
        survival = Evaluator(classifier.logits, [word], batch_size=100)(images, labels)
        our_seconds = time.perf_counter() - started
        started = time.perf_counter()
        size = 1 if arguments.norm == "l2" and name.startswith("APGD") else 250
        theirs = survivors_of_torch(make, twin, theirs_in, labels, survival.clean, size)
        found[name] = {
            "survival": bits(survival.survived[0]),
            "torchattacks_survival": bits(theirs),
            "seconds": round(our_seconds, 1),
            "torchattacks_seconds": round(time.perf_counter() - started, 1),
        }
        print(f"{name}: {summary({name: found[name]}, record['clean'])[name]}", file=sys.stderr, flush=True)
        if arguments.json:
            command = command_line()
            whole = {"command": command, **record, "summary": summary(found, record["clean"]), "members": found}
            arguments.json.write_text(json.dumps(whole, indent=1) + "\n")
    rows = [[name, *map(percent, row.values())] for name, row in summary(found, record["clean"]).items()]
    print(markdown_table(["attack", "ours", "torchattacks", "agree"], rows))


if __name__ == "__main__":
    main()
