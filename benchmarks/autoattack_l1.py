"""AutoAttack in L1 beside the code of its authors, on one network and the same images: a development check, not a test.

    pip install torch pyautoattack
    python -m benchmarks.autoattack_l1 --epsilon 2 --json results/benchmarks/autoattack_l1-digits.json
    python -m benchmarks.autoattack_l1 saved_models/cusin-augmentation-adversarial --epsilon 6 --json ...

An exported network on its own data set, or a small one that is trained on the digits of scikit-learn, is walked layer
by layer into PyTorch; the outputs are compared before anything is attacked. Both run the standard version in L1: APGD
with 5 restarts and targeted APGD with 5 classes, which begin in larger balls, FAB-T and Square, each on the images that
survived the attacks before.
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

import keras  # noqa: E402
import pyautoattack  # noqa: E402
import torch  # noqa: E402

from benchmarks.torch_twin import TorchNetwork, channels_first, check_twin  # noqa: E402
from keras_rcl.data import sources  # noqa: E402
from keras_rcl.evaluation.robustness import Evaluator  # noqa: E402
from keras_rcl.model_io.classifier import load_classifier  # noqa: E402
from keras_rcl.report.tables import markdown_table, percent  # noqa: E402
from keras_rcl.vocabulary.attacks import AutoAttack  # noqa: E402
from keras_rcl.vocabulary.dataset import Dataset  # noqa: E402

L = keras.layers


def trained(images: np.ndarray, labels: np.ndarray) -> keras.Model:
    """A convolutional network on 8x8 digits, which gives logits."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(images.shape[1:])
    x = L.ReLU()(L.Conv2D(16, 3, padding="same")(inputs))
    x = L.ReLU()(L.Conv2D(32, 3, padding="same")(x))
    x = L.ReLU()(L.Dense(64)(L.Flatten()(x)))
    model = keras.Model(inputs, L.Dense(10)(x))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    model.fit(images, labels, batch_size=64, epochs=12, verbose=0)
    return model


def subject(path: Path | None, limit: int) -> tuple:
    """The Keras network, its logits, what attacks read, and test images [N, H, W, C] with their labels [N]."""
    if path is None:
        data = sources.load(Dataset(name="digits"))
        network = trained(data.train.images.astype(np.float32) / 255, data.train.labels)
        part = data.test.limited(limit)
        return network, network, None, part.images.astype(np.float32) / 255, part.labels
    classifier = load_classifier(path)
    part = sources.load(Dataset(**classifier.contract["config"]["dataset"])).test.limited(limit)
    images = part.images.astype(np.float32) / 255
    return classifier.model.layers, classifier.logits, classifier.gradient_fn(images[:32]), images, part.labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="an exported network; one trained on digits by default")
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--json", type=Path, help="the file to write")
    arguments = parser.parse_args()

    network, logits_fn, gradient_fn, images, labels = subject(arguments.model, arguments.limit)
    twin, theirs_in = TorchNetwork(network).eval(), channels_first(images)
    check_twin(twin, images, logits_fn(images))

    started = time.perf_counter()
    attack = AutoAttack(norm="l1", epsilon=arguments.epsilon)
    survival = Evaluator(logits_fn, [attack], batch_size=len(labels), gradient_fn=gradient_fn)(images, labels)
    seconds = {"ours": round(time.perf_counter() - started, 1)}
    ours = survival.survived[0]

    torch_labels = torch.tensor(labels, dtype=torch.int64)
    started = time.perf_counter()
    theirs = pyautoattack.AutoAttack(twin, norm="L1", eps=arguments.epsilon, seed=0)
    _, predicted = theirs.run_standard_evaluation(theirs_in, torch_labels, batch_size=len(labels))
    seconds["pyautoattack"] = round(time.perf_counter() - started, 1)
    robust = predicted.numpy() == labels

    record = {
        "command": command_line(),
        "protocol": "pixel",
        "model": "digits" if arguments.model is None else arguments.model.name,
        "norm": "l1",
        "epsilon": arguments.epsilon,
        "images": len(labels),
        "versions": {"keras": keras.__version__, "torch": torch.__version__, "pyautoattack": pyautoattack.__version__},
        "clean": float(survival.clean_accuracy),
        "stages": dict(survival.stages[0]),
        "summary": {
            "ours": float(ours.mean()),
            "pyautoattack": float(robust.mean()),
            "agreement": float((ours == robust).mean()),
        },
        "seconds": seconds,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    print(markdown_table(["ours", "pyautoattack", "agree"], [[percent(v) for v in record["summary"].values()]]))
    print(json.dumps(record, indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
