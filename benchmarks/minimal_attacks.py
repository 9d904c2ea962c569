"""DDN, FMN and HopSkipJump beside adversarial-library's and foolbox's on the same weights and images.

    pip install -e '.[peers]'
    python -m benchmarks.minimal_attacks saved_models/cusin-augmentation-adversarial [--walks] --json ...

The exported network is walked layer by layer into PyTorch; the outputs are compared before anything is attacked. All
attack the test images that are classified correctly, with the same number of steps. Ours run as an evaluation runs
them, with its check of the outcomes; adversarial-library's DDN runs without its rounding to 256 levels. foolbox's
HopSkipJump runs first, and ours gets as many queries per image as it made; images of a class that all of 100 random
images have are left out there, since neither finds a start. A distance is infinite where the attack found nothing.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import adv_lib.attacks  # noqa: E402
import foolbox  # noqa: E402
import torch  # noqa: E402

from benchmarks.side_by_side import MATRIX, alternate, options, rows_of, tell  # noqa: E402
from benchmarks.torch_twin import TorchNetwork, channels_first, channels_last, check_twin  # noqa: E402
from keras_rcl.data import sources  # noqa: E402
from keras_rcl.evaluation.robustness import Evaluator  # noqa: E402
from keras_rcl.model_io.classifier import load_classifier  # noqa: E402
from keras_rcl.vocabulary.attacks import DDN, FMN, HopSkipJump  # noqa: E402
from keras_rcl.vocabulary.dataset import Dataset  # noqa: E402

ORDERS = {"l1": 1, "l2": 2, "linf": np.inf}
FOOLBOX_FMN = {"l1": "L1FMNAttack", "l2": "L2FMNAttack", "linf": "LInfFMNAttack"}
WALKED_AT_ONCE = 50
"""Images in a batch of HopSkipJump: foolbox draws the random directions of all of them at once."""


class Counted(torch.nn.Module):
    """A network that counts how often it is called."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x):
        self.calls += 1
        with torch.no_grad():
            return self.network(x)


class Task:
    """One network and its PyTorch twin, and the images [N, H, W, C] with labels [N] that both classify correctly."""

    def __init__(self, path: Path, limit: int):
        self.classifier = load_classifier(path)
        dataset = Dataset(**self.classifier.contract["config"]["dataset"])
        part = sources.load(dataset).test.limited(limit)
        images = part.images.astype(np.float32) / 255
        self.twin = TorchNetwork(self.classifier.model.layers).eval()
        check_twin(self.twin, images, self.classifier.logits(images))
        right = self.predicted(images) == part.labels
        self.images, self.labels = images[right], part.labels[right]

    def predicted(self, images: np.ndarray) -> np.ndarray:
        """The classes that the twin gives images."""
        with torch.no_grad():
            return self.twin(channels_first(images)).argmax(1).numpy()

    def startable(self) -> np.ndarray:
        """[N] bool: whether any of 100 random images is of another class than the image."""
        noise = np.random.default_rng(0).uniform(size=(100, *self.images.shape[1:])).astype(np.float32)
        return np.array([(self.predicted(noise) != label).any() for label in self.labels])

    def ours(self, make_attack: Callable, chosen=slice(None), batch_size: int = 1000) -> Callable:
        """The run of our attack, which returns the distances [N]; infinity where it found nothing."""
        evaluators: list[Evaluator] = []

        def run():
            if not evaluators:  # an attack of several epsilons is run to its end
                attacks = [make_attack().with_epsilon(epsilon) for epsilon in (0.0, 0.001)]
                read = self.classifier.gradient_fn(self.images[:32])
                evaluators.append(Evaluator(self.classifier.logits, attacks, batch_size=batch_size, gradient_fn=read))
            return evaluators[0](self.images[chosen], self.labels[chosen]).nearest[0]

        return run

    def theirs(self, attack: Callable, norm: str, chosen=slice(None), batch_size: int = 1000) -> Callable:
        """The run of a peer's attack of images and labels, which returns the distances [N]."""

        def run():
            torch.manual_seed(0)
            found = []
            for start in range(0, len(self.labels[chosen]), batch_size):
                part = slice(start, start + batch_size)
                images, labels = self.images[chosen][part], self.labels[chosen][part]
                adversarial = channels_last(attack(channels_first(images), torch.tensor(labels, dtype=torch.int64)))
                change = (adversarial.astype(np.float64) - images).reshape(len(labels), -1)
                fooled = self.predicted(adversarial) != labels
                found.append(np.where(fooled, np.linalg.norm(change, ORDERS[norm], axis=1), np.inf))
            return np.concatenate(found)

        return run

    def foolbox(self, attack, twin=None) -> Callable:
        """The function of images and labels that runs an attack of foolbox."""
        model = foolbox.PyTorchModel(twin or self.twin, bounds=(0, 1), device="cpu")
        return lambda x, y: attack.run(model, x, foolbox.Misclassification(y))

    def gradient_attacks(self, steps: int) -> dict[str, Callable]:
        """Contender -> its run: DDN and FMN."""
        ddn = foolbox.attacks.DDNAttack(steps=steps)
        runs = {
            "ours, DDN l2": self.ours(lambda: DDN(num_steps=steps)),
            "adv_lib, DDN l2": self.theirs(
                lambda x, y: adv_lib.attacks.ddn(self.twin, x, y, steps=steps, levels=None), "l2"
            ),
            "foolbox, DDN l2": self.theirs(self.foolbox(ddn), "l2"),
        }
        for norm, order in ORDERS.items():
            fmn = getattr(foolbox.attacks, FOOLBOX_FMN[norm])(steps=steps)
            runs[f"ours, FMN {norm}"] = self.ours(lambda norm=norm: FMN(norm=norm, num_steps=steps))
            runs[f"adv_lib, FMN {norm}"] = self.theirs(
                lambda x, y, order=order: adv_lib.attacks.fmn(self.twin, x, y, norm=order, steps=steps), norm
            )
            runs[f"foolbox, FMN {norm}"] = self.theirs(self.foolbox(fmn), norm)
        return runs

    def walks(self, steps: int, queries: dict[str, int]) -> dict[str, Callable]:
        """Contender -> its run: HopSkipJump. The queries per image of the first run are written to `queries`."""
        chosen, runs = self.startable(), {}
        for norm in ("l2", "linf"):
            walk = foolbox.attacks.HopSkipJumpAttack(steps=steps, constraint=norm)
            name = f"HopSkipJump {norm}"

            def counted(x, y, walk=walk, name=name):
                twin = Counted(self.twin).eval()
                found = self.foolbox(walk, twin)(x, y)
                queries[name] = min(twin.calls, queries.get(name, twin.calls))
                return found

            runs[f"foolbox, {name}"] = self.theirs(counted, norm, chosen, WALKED_AT_ONCE)
            runs[f"ours, {name}"] = self.ours(
                lambda norm=norm, name=name: HopSkipJump(norm=norm, num_queries=queries[name]), chosen, WALKED_AT_ONCE
            )
        return runs


def main() -> None:
    parser = options(__doc__, images=200, repeats=3, network=False)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=100, help="of DDN and FMN; 100 by default")
    parser.add_argument("--walks", action="store_true", help="run HopSkipJump instead of DDN and FMN")
    parser.add_argument("--walk-steps", type=int, default=8, help="of foolbox's HopSkipJump; 8 by default")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    task, queries = Task(arguments.model, arguments.images), {}
    runs = task.walks(arguments.walk_steps, queries) if arguments.walks else task.gradient_attacks(arguments.steps)
    seconds, given = alternate(runs, arguments.repeats, arguments.only)
    rows = rows_of(seconds, {name: len(found) for name, found in given.items()}, {})
    for name, found in given.items():
        rows[name] |= {
            "median_distance": float(np.median(found)),
            "images": len(found),
            "broken": int(np.isfinite(found).sum()),
            "budget": queries.get(name.partition(", ")[2], arguments.steps),
        }
    del rows[MATRIX]
    facts = {"protocol": "pixel", "model": arguments.model.name, "model_hash": task.classifier.model_hash}
    tell(arguments, rows, ["median_distance", "images", "broken", "budget"], **facts)


if __name__ == "__main__":
    main()
