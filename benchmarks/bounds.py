"""What bounds cost: a certified training step over a plain one, and bounds an image beside auto_LiRPA's.

    pip install torch && pip install --no-deps auto_LiRPA appdirs torchvision
    python -m benchmarks.bounds --network strided_cnn --images 32 --json results/benchmarks/bounds.json

A step is the gradient of a cross-entropy with respect to all weights: of the logits, or of the worst case by intervals
or CROWN-IBP, of the loss or of each margin. How the bounds of both agree is `benchmarks.bounds_reference`'s to say.
"""

import numpy as np

from keras_rcl.runtime.tensorflow import start_tensorflow

start_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from benchmarks.side_by_side import (  # noqa: E402
    alternate,
    installed,
    operations_per_image,
    options,
    random_data,
    random_network,
    rows_of,
    tell,
)
from keras_rcl.bounds import worst_case_margins, worst_case_outputs  # noqa: E402
from keras_rcl.folding import fold  # noqa: E402
from keras_rcl.vocabulary.threat import parse_pixels  # noqa: E402


def step(network, logits_of, images, labels):
    """The gradient of the mean cross-entropy of `logits_of(images, labels)`."""
    variables = [variable.value for variable in network.trainable_variables]

    @tf.function(autograph=False)
    def gradients(x, y):
        with tf.GradientTape() as tape:
            loss = keras.losses.sparse_categorical_crossentropy(y, logits_of(x, y), from_logits=True)
        return tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return lambda: gradients(images, labels)[0].numpy()


def bound(network, images, labels, epsilon, method):
    compiled = tf.function(lambda x, y: worst_case_margins(network, x, y, epsilon, method), autograph=False)
    return lambda: compiled(images, labels).numpy()


def auto_lirpa(network, images, labels, epsilon, method):
    from benchmarks.bounds_reference import BoundedModule, theirs, torch_network

    twin, before = torch_network(fold(network))
    bounded = BoundedModule(twin, before(images[:1]))
    return lambda: theirs(bounded, before, images, labels, epsilon, method, iterations=0, inner=False)


def main() -> None:
    parser = options(__doc__, images=32)
    parser.add_argument("--bounded", type=int, default=4, help="images whose bounds are taken at once; 4 by default")
    parser.add_argument("--epsilon", type=parse_pixels, default=2 / 255)
    arguments = parser.parse_args()
    network, part = random_network(arguments.network), random_data(arguments.images).train
    images, labels, epsilon = part.images.astype(np.float32) / 255, part.labels, arguments.epsilon
    some = images[: arguments.bounded], labels[: arguments.bounded]
    contenders = {"plain step": step(network, lambda x, y: network(x, training=True)["logits"], images, labels)}
    for method in ("ibp", "crown-ibp-fused", "crown-ibp"):
        worst = lambda x, y, method=method: worst_case_outputs(network, x, y, epsilon, method)["logits"]  # noqa: E731
        contenders[f"{method} step"] = step(network, worst, images, labels)
    there = installed("torch", "auto_LiRPA")
    for method in ("ibp", "crown-ibp", "crown"):
        contenders[f"{method} bounds"] = bound(network, *some, epsilon, method)
        if there == {"torch", "auto_LiRPA"} and arguments.network == "strided_cnn":  # its twin is a chain
            contenders[f"{method} bounds of auto_LiRPA"] = auto_lirpa(network, *some, epsilon, method)
    seconds, given = alternate(contenders, arguments.repeats, arguments.only)
    counts = {name: len(images) if name.endswith("step") else len(some[0]) for name in given}
    operations = {"plain step": 3 * operations_per_image(network) * len(images)}
    tell(arguments, rows_of(seconds, counts, operations), network=arguments.network, epsilon=epsilon)


if __name__ == "__main__":
    main()
