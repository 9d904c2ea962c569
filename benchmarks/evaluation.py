"""A model's robust accuracy by each tool's own evaluation, beside ours: seconds at equal accuracy.

    pip install -e '.[peers]'
    python -m benchmarks.evaluation saved_models/cifar10-at --images 1000 --repeats 5
    python -m benchmarks.evaluation saved_models/cifar10-at --images 1000 --repeats 1 --protocol autoattack

`pgd` is PGD-40 with 5 random restarts, each tool with what it has for restarts: ART an argument, foolbox `repeat`,
torchattacks `MultiAttack`, which continues with the survivors; cleverhans and the plain loop repeat the attack by hand.
`autoattack` is the four standard attacks on survivors at the published budgets, torchattacks' called one by one, for
its own AutoAttack takes 10 steps; pyautoattack is the code of the authors. `autoattack-l2` is the same in L2 at 0.5.
Operations are reported only for ours, where they are counted: each tool chooses how much it does to which image.
`times_its_passes` is our time divided by what the counted passes forward and back cost by themselves, in batches of the
same size, measured after each round. PyTorch runs PGD in both of its memory layouts, see
`benchmarks.attack_throughput`.
"""

import statistics
import time
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from benchmarks.side_by_side import alternate, installed, operations_per_image, options, rows_of, tell  # noqa: E402
from keras_rcl.data import sources  # noqa: E402
from keras_rcl.evaluation.robustness import Evaluator  # noqa: E402
from keras_rcl.model_io.classifier import load_classifier  # noqa: E402
from keras_rcl.vocabulary.attacks import PGD, AutoAttack  # noqa: E402
from keras_rcl.workflows.inputs import dataset_of, pixels  # noqa: E402

EPSILON, STEP_SIZE, STEPS, RESTARTS, BATCH = 8 / 255, 2 / 255, 40, 5, 250

BALLS = {"autoattack": ("linf", EPSILON), "autoattack-l2": ("l2", 0.5)}
"""Protocol -> norm and epsilon of AutoAttack."""

OURS = {"ours": "float32", "ours, bfloat16": "bfloat16"}
"""Contender -> what its attack is computed in; the second is `attack --attack-dtype bfloat16`."""


def accuracy_of(attacked, images, labels) -> float:
    """The share of images that stay right: `attacked` is images [N, H, W, C], labels [N] -> bool [N]."""
    batches = [slice(start, start + BATCH) for start in range(0, len(labels), BATCH)]
    return float(np.concatenate([attacked(images[batch], labels[batch]) for batch in batches]).mean())


class Ours:
    """Our evaluation, as `attack` runs it, and how many passes of one image it took, forward or back to the image."""

    def __init__(self, classifier, images, labels, attack, dtype="float32"):
        gradient_fn = classifier.gradient_fn(images[:32], dtype)
        self.evaluator = Evaluator(classifier.logits, [attack], batch_size=BATCH, gradient_fn=gradient_fn)
        self.gradient_fn = gradient_fn
        self.images, self.labels, self.forwards, self.backwards = images, labels, 0, 0

    @property
    def passes(self) -> int:
        return self.forwards + self.backwards

    def __call__(self) -> float:
        survival = self.evaluator(self.images, self.labels)
        self.forwards, self.backwards = int(survival.forwards.sum()), int(survival.backwards.sum())
        return float(survival.survived[0].mean())

    @cached_property
    def calls(self) -> tuple:
        """The logits of a batch, and their gradient, each a traced function."""

        @tf.function(autograph=False)
        def gradient(x):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                total = tf.reduce_sum(self.gradient_fn(x)[:, 0])
            return tape.gradient(total, x)

        return tf.function(self.gradient_fn, autograph=False), gradient

    def seconds_of_passes(self, repeats: int = 9) -> float:
        """What the counted passes take by themselves: medians of single batches, of the evaluation's size."""
        x = tf.constant(np.resize(self.images, (BATCH, *self.images.shape[1:])))
        medians = []
        for call in self.calls:
            call(x)
            runs = []
            for _ in range(repeats):
                started = time.perf_counter()
                call(x).numpy()
                runs.append(time.perf_counter() - started)
            medians.append(statistics.median(runs) / len(x))
        ahead, both = medians
        return self.backwards * both + (self.forwards - self.backwards) * ahead


def art(model, images, labels):
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classes = model.output_shape[-1]
    classifier = TensorFlowV2Classifier(model, classes, images.shape[1:], loss_object=loss, clip_values=(0.0, 1.0))
    settings = dict(eps=EPSILON, eps_step=STEP_SIZE, max_iter=STEPS, num_random_init=RESTARTS, batch_size=BATCH)
    attack = ProjectedGradientDescent(classifier, **settings, verbose=False)

    def accuracy():
        right = classifier.predict(images).argmax(1) == labels
        return float((right & (classifier.predict(attack.generate(images, labels)).argmax(1) == labels)).mean())

    return accuracy


def foolbox(model, images, labels):
    import foolbox

    bounded = foolbox.TensorFlowModel(model, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS).repeat(RESTARTS)

    def survives(x, y):
        fell = attack(bounded, tf.constant(x), foolbox.Misclassification(tf.constant(y)), epsilons=EPSILON)[2]
        return ~fell.numpy()

    return lambda: accuracy_of(survives, images, labels)


def cleverhans(model, images, labels):
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    def survives(x, y):
        right = model(x, training=False).numpy().argmax(1) == y
        for _ in range(RESTARTS):
            settings = dict(clip_min=0.0, clip_max=1.0, y=tf.constant(y), rand_init=True, sanity_checks=False)
            x_adv = projected_gradient_descent(
                model, tf.constant(x), EPSILON, STEP_SIZE, STEPS, np.inf, rand_minmax=EPSILON, **settings
            )
            right &= model(x_adv, training=False).numpy().argmax(1) == y
        return right

    return lambda: accuracy_of(survives, images, labels)


def torchattacks(twin, images, labels, layout=None):
    import torch
    import torchattacks

    from benchmarks.torch_twin import channels_first

    pgd = [torchattacks.PGD(twin, EPSILON, STEP_SIZE, STEPS, random_start=True) for _ in range(RESTARTS)]
    attack = torchattacks.MultiAttack(pgd)

    def survives(x, y):
        x = channels_first(x, layout)
        x_adv = attack(x, torch.tensor(y))
        with torch.no_grad():
            return (twin(x).argmax(1).numpy() == y) & (twin(x_adv).argmax(1).numpy() == y)

    return lambda: accuracy_of(survives, images, labels)


def plain_torch(twin, images, labels, layout=None):
    import torch

    from benchmarks.torch_twin import channels_first

    def pgd(x, y):
        x_adv = (x + torch.empty_like(x).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
        for _ in range(STEPS):
            x_adv.requires_grad_(True)
            (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(twin(x_adv), y), x_adv)
            x_adv = x_adv.detach() + STEP_SIZE * gradient.sign()
            x_adv = torch.clamp(torch.min(torch.max(x_adv, x - EPSILON), x + EPSILON), 0, 1)
        return x_adv.detach()

    @torch.no_grad()
    def right(x, y):
        return twin(x).argmax(1) == y

    def survives(x, y):
        x, y = channels_first(x, layout), torch.tensor(y)
        standing = right(x, y)
        for _ in range(RESTARTS):
            standing &= right(pgd(x, y), y)
        return standing.numpy()

    return lambda: accuracy_of(survives, images, labels)


def torchattacks_ensemble(twin, images, labels, norm, epsilon):
    """The four members one after the other, on what survives."""
    from benchmarks.attack_reference import members, survivors_of_torch
    from benchmarks.torch_twin import channels_first

    makes = [members(norm, epsilon)[name][1] for name in ("APGD-CE", "APGD-T", "FAB-T", "Square")]
    x = channels_first(images)

    def accuracy():
        right = np.concatenate(
            [twin(x[start : start + BATCH]).argmax(1).numpy() for start in range(0, len(labels), BATCH)]
        )
        standing = right == labels
        for make in makes:
            standing = survivors_of_torch(make, twin, x, labels, standing, BATCH)
        return float(standing.mean())

    return accuracy


def original(twin, images, labels, norm, epsilon):
    """The code of AutoAttack's authors, as a package."""
    import pyautoattack
    import torch

    from benchmarks.torch_twin import channels_first

    x, y = channels_first(images), torch.tensor(labels)

    def accuracy():
        attack = pyautoattack.AutoAttack(twin, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, seed=0)
        _, predicted = attack.run_standard_evaluation(x, y, batch_size=BATCH)
        return float((predicted.numpy() == labels).mean())

    return accuracy


def main() -> None:
    parser = options(__doc__, images=1000, network=False)
    parser.add_argument("model", type=Path)
    parser.add_argument("--protocol", choices=["pgd", *BALLS], default="pgd")
    arguments = parser.parse_args()
    classifier = load_classifier(arguments.model)
    network = classifier.model.layers
    part = sources.load(dataset_of(classifier, {}), "test").test.limited(arguments.images)
    images, labels = pixels(part.images), part.labels
    task = images, labels
    if arguments.protocol == "pgd":
        there = installed("art", "foolbox", "cleverhans", "torch", "torchattacks")
        attack = PGD(epsilon=EPSILON, step_size=STEP_SIZE, num_steps=STEPS, num_restarts=RESTARTS)
        model = keras.Model(network.input, network.output["logits"])
        makes = {"art": art, "foolbox": foolbox, "cleverhans": cleverhans}
        contenders = {name: make(model, *task) for name, make in makes.items() if name in there}
        torch_makes = {"torchattacks": torchattacks, "plain torch": plain_torch}
    else:
        there = installed("torch", "torchattacks", "pyautoattack")
        norm, epsilon = BALLS[arguments.protocol]
        attack, contenders = AutoAttack(norm=norm, epsilon=epsilon), {}
        makes = {"torchattacks": torchattacks_ensemble, "pyautoattack": original}
        torch_makes = {name: partial(make, norm=norm, epsilon=epsilon) for name, make in makes.items()}
    ours = {name: Ours(classifier, *task, attack, dtype) for name, dtype in OURS.items()}
    contenders = {**ours, **contenders}
    if "torch" in there:
        from benchmarks.torch_twin import TorchNetwork, check_twin

        twin = TorchNetwork(network).eval()
        check_twin(twin, images[:BATCH], classifier.logits(images[:BATCH]))
        needs = {"plain torch": "torch"}
        torch_makes = {n: make for n, make in torch_makes.items() if needs.get(n, n) in there}
        contenders |= {n: make(twin, *task) for n, make in torch_makes.items()}
        if arguments.protocol == "pgd":
            contenders |= {f"{n}, NHWC": make(twin, *task, "channels_last") for n, make in torch_makes.items()}
    passes: list[float] = []
    seconds, accuracies = alternate(
        contenders, arguments.repeats, arguments.only, lambda: passes.append(ours["ours"].seconds_of_passes())
    )
    contenders = accuracies
    operations = {name: one.passes * operations_per_image(network) for name, one in ours.items()}
    rows = rows_of(seconds, dict.fromkeys(contenders, len(labels)), operations)
    for name in contenders:
        rows[name]["robust_accuracy"] = accuracies[name]
    apart = 100 * (max(accuracies[n] for n in contenders) - min(accuracies[n] for n in contenders))
    facts = {"model_hash": classifier.model_hash, "images": len(labels), "protocol": "pixel"}
    facts["attacks"] = arguments.protocol
    if "ours" in contenders:
        alone = statistics.median(passes or [ours["ours"].seconds_of_passes()])
        facts["times_its_passes"] = rows["ours"]["seconds"] / alone
        print(f"our time is {facts['times_its_passes']:.2f} times that of its passes")
    tell(arguments, rows, ["robust_accuracy"], **facts, robust_accuracies_apart=apart)
    print(f"\nrobust accuracies are {apart:.2f} points apart, {'' if apart <= 0.5 else 'NOT '}within 0.5")


if __name__ == "__main__":
    main()
