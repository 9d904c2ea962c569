"""PGD beside the peers' on the same weights and images: images a second at equal adversarial loss.

    pip install -e '.[peers]'
    python -m benchmarks.attack_throughput --network resnet18 --images 32 --json results/benchmarks/pgd.json

Every image is attacked to the end, from itself and not from a random start, so that all contenders have the same loss
to reach; the loss is measured by the Keras network. The plain loops are what anybody would write. PyTorch runs in
both of its memory layouts: NCHW is its default, NHWC (`channels_last`) what its tuning guide recommends on CPUs.

`matrix products alone` is not an attack: of each convolution and dense layer it multiplies matrices of the size that
the layer has as one product, forward and back. Windows are not cut out, their gradients not added up, and there is no
ReLU, loss or step. An attack that computes each layer by one product has at least this cost.
"""

import numpy as np

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from benchmarks.side_by_side import (  # noqa: E402
    CLASSES,
    alternate,
    installed,
    operations_per_image,
    options,
    random_data,
    random_network,
    rows_of,
    tell,
)
from keras_rcl.attacks import craft  # noqa: E402
from keras_rcl.folding import fold, folded  # noqa: E402
from keras_rcl.folding.fold import Conv, Dense  # noqa: E402
from keras_rcl.vocabulary.attacks import PGD  # noqa: E402

EPSILON, STEP_SIZE = 8 / 255, 2 / 255
PRODUCTS = "matrix products alone"


def ours(network, images, labels, steps, dtype="float32"):
    """As an evaluation crafts: on the folded network."""
    attack = PGD(epsilon=EPSILON, step_size=STEP_SIZE, num_steps=steps, random_start=False)
    logits_fn = folded(network, dtype=dtype)
    compiled = tf.function(lambda x, y: craft(attack, logits_fn, x, y), autograph=False)
    return lambda: compiled(images, labels).numpy()


def plain_tape(model, images, labels, steps):
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def attack(x, y):
        x_adv = tf.identity(x)
        for _ in range(steps):
            with tf.GradientTape() as tape:
                tape.watch(x_adv)
                loss = loss_fn(y, model(x_adv, training=False))
            x_adv = x_adv + STEP_SIZE * tf.sign(tape.gradient(loss, x_adv))
            x_adv = tf.clip_by_value(tf.clip_by_value(x_adv, x - EPSILON, x + EPSILON), 0.0, 1.0)
        return x_adv

    return lambda: attack(images, labels).numpy()


def products(network, count, steps):
    """The matrix products of `PRODUCTS`."""
    generator = tf.random.Generator.from_seed(0)
    pairs = []
    for step in fold(network):
        if isinstance(step.operation, (Conv, Dense)):
            *taps, filters = step.operation.kernel.shape
            rows = count * int(np.prod(step.shape[:-1]))
            read, written = generator.normal([rows, int(np.prod(taps))]), generator.normal([rows, filters])
            pairs.append((read, written, tf.reshape(step.operation.kernel, [-1, filters])))

    @tf.function(autograph=False)
    def one_pass():
        forward = [tf.matmul(read, kernel) for read, _, kernel in pairs]
        return forward, [tf.matmul(written, kernel, transpose_b=True) for _, written, kernel in pairs]

    def run():
        for _ in range(steps):
            one_pass()

    return run


def art(model, images, labels, steps):
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        model,
        nb_classes=CLASSES,
        input_shape=images.shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0.0, 1.0),
    )
    attack = ProjectedGradientDescent(
        classifier, eps=EPSILON, eps_step=STEP_SIZE, max_iter=steps, batch_size=len(images), verbose=False
    )
    return lambda: attack.generate(images, labels)


def foolbox(model, images, labels, steps):
    import foolbox

    bounded = foolbox.TensorFlowModel(model, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=steps, random_start=False)
    x, y = tf.constant(images), tf.constant(labels)
    return lambda: attack.run(bounded, x, foolbox.Misclassification(y), epsilon=EPSILON).numpy()


def cleverhans(model, images, labels, steps):
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    x, y = tf.constant(images), tf.constant(labels)
    settings = dict(clip_min=0.0, clip_max=1.0, y=y, rand_init=False, sanity_checks=False)
    return lambda: projected_gradient_descent(model, x, EPSILON, STEP_SIZE, steps, np.inf, **settings).numpy()


def torchattacks(twin, images, labels, steps, layout=None):
    import torch
    import torchattacks

    from benchmarks.torch_twin import channels_first, channels_last

    x, y = channels_first(images, layout), torch.tensor(labels)
    attack = torchattacks.PGD(twin, eps=EPSILON, alpha=STEP_SIZE, steps=steps, random_start=False)
    return lambda: channels_last(attack(x, y))


def plain_torch(twin, images, labels, steps, layout=None):
    import torch

    from benchmarks.torch_twin import channels_first, channels_last

    x, y = channels_first(images, layout), torch.tensor(labels)

    def attack():
        x_adv = x.clone()
        for _ in range(steps):
            x_adv.requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(twin(x_adv), y)
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + STEP_SIZE * gradient.sign()
            x_adv = torch.clamp(torch.min(torch.max(x_adv, x - EPSILON), x + EPSILON), 0, 1)
        return channels_last(x_adv)

    return attack


KERAS = {"plain tape": plain_tape, "art": art, "foolbox": foolbox, "cleverhans": cleverhans}
TORCH = {"torchattacks": torchattacks, "plain torch": plain_torch}
"""Contender -> what makes its run of a model, images, labels and steps; the second of a PyTorch twin."""


NEEDS = {"plain tape": None, "plain torch": "torch"}
"""Contender -> the module that it needs, where that is not its name."""


def main() -> None:
    parser = options(__doc__, images=32)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    network, part = random_network(arguments.network), random_data(arguments.images).train
    model = keras.Model(network.input, network.output["logits"])
    images, labels = part.images.astype(np.float32) / 255, part.labels
    there = installed("art", "foolbox", "cleverhans", "torch", "torchattacks")
    task = images, labels, arguments.steps
    contenders = {"ours": ours(network, *task), "ours, bfloat16": ours(network, *task, "bfloat16")}
    contenders |= {name: make(model, *task) for name, make in KERAS.items() if NEEDS.get(name, name) in {None, *there}}
    if "torch" in there:
        from benchmarks.torch_twin import TorchNetwork, check_twin

        twin = TorchNetwork(network).eval()
        check_twin(twin, images, model(images, training=False))
        makes = {name: make for name, make in TORCH.items() if NEEDS.get(name, name) in there}
        contenders |= {name: make(twin, *task) for name, make in makes.items()}
        contenders |= {f"{name}, NHWC": make(twin, *task, "channels_last") for name, make in makes.items()}
    contenders[PRODUCTS] = products(network, len(images), arguments.steps)
    seconds, given = alternate(contenders, arguments.repeats, arguments.only)
    each = 2 * arguments.steps * operations_per_image(network) * len(images)  # forward, and back to the image
    rows = rows_of(seconds, dict.fromkeys(given, len(images)), dict.fromkeys(given, each))
    given.pop(PRODUCTS, None)
    for name, adversarial in given.items():
        entropy = keras.losses.sparse_categorical_crossentropy(labels, model(adversarial, training=False), True)
        rows[name]["adversarial_loss"] = float(np.mean(entropy))
        rows[name]["largest_distance_255"] = float(np.abs(adversarial - images).max() * 255)
    losses = [rows[name]["adversarial_loss"] for name in given]
    apart = (max(losses) - min(losses)) / max(losses)
    facts = {"network": arguments.network, "images": len(images), "steps": arguments.steps}
    tell(arguments, rows, ["adversarial_loss", "largest_distance_255"], **facts, adversarial_losses_apart=apart)
    print(f"\nadversarial losses are {apart:.2%} apart, which is {'equal' if apart < 0.01 else 'NOT equal'} to 1 %")


if __name__ == "__main__":
    main()
