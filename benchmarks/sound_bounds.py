"""`verify` with and without `--sound` on the same images: the cost, and how many verdicts change.

    python -m benchmarks.sound_bounds saved_models/cusin-augmentation-certified --epsilon 1/255 --images 100 --json ...

`bounds` is `verify --method alpha-crown`, `branch and bound` is `verify --timeout 20` on the first images that are
classified correctly. Neither attacks. First runs, which trace, are not counted.
"""

from functools import partial
from pathlib import Path

import numpy as np

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

from benchmarks.side_by_side import MATRIX, alternate, options, rows_of, tell  # noqa: E402
from keras_rcl.data import sources  # noqa: E402
from keras_rcl.evaluation.certification import Certifier  # noqa: E402
from keras_rcl.model_io.classifier import load_classifier  # noqa: E402
from keras_rcl.vocabulary.dataset import Dataset  # noqa: E402
from keras_rcl.vocabulary.threat import parse_pixels  # noqa: E402

VERIFIED = ("safe", "safe-incomplete")


def main() -> None:
    parser = options(__doc__, images=50, repeats=3, network=False)
    parser.add_argument("model", type=Path)
    parser.add_argument("--epsilon", type=parse_pixels, default=1 / 255, help="1/255 by default")
    parser.add_argument("--searched", type=int, default=10, help="images of branch and bound; 10 by default")
    parser.add_argument("--timeout", type=float, default=20, help="seconds of branch and bound per image")
    arguments = parser.parse_args()
    classifier = load_classifier(arguments.model)
    part = sources.load(Dataset(**classifier.contract["config"]["dataset"])).test
    images = part.images[: 4 * arguments.images].astype(np.float32) / 255
    right = classifier.logits(images).numpy().argmax(1) == part.labels[: len(images)]
    images, labels = images[right][: arguments.images], part.labels[: len(right)][right][: arguments.images]

    runs, counts = {}, {}
    for name, method, count in (
        ("bounds", "alpha-crown", len(labels)),
        ("branch and bound", "branch-and-bound", min(arguments.searched, len(labels))),
    ):
        for sound in (False, True):
            settings = dict(method=method, attacks=(), timeout=arguments.timeout, sound=sound)
            certifier = Certifier(classifier.model.layers, (arguments.epsilon,), **settings)
            label = f"{name}, sound" if sound else name
            runs[label], counts[label] = partial(certifier, images[:count], labels[:count]), count
    seconds, given = alternate(runs, arguments.repeats, arguments.only)
    rows = rows_of(seconds, counts, {})
    del rows[MATRIX]
    for name, found in given.items():
        verified = np.isin(found.statuses[0], VERIFIED)
        plain = given.get(name.removesuffix(", sound"), found)
        rows[name] |= {
            "images": counts[name],
            "verified": int(verified.sum()),
            "unsafe": int((found.statuses[0] == "unsafe").sum()),
            "changed": int((found.statuses[0] != plain.statuses[0]).sum()),
            "times_plain": rows[name]["seconds"] / rows[name.removesuffix(", sound")]["seconds"],
        }
    facts = {"protocol": "pixel", "model": arguments.model.name, "model_hash": classifier.model_hash}
    measures = ["images", "verified", "unsafe", "changed", "times_plain"]
    tell(arguments, rows, measures, **facts, epsilon=arguments.epsilon)


if __name__ == "__main__":
    main()
