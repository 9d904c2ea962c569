"""The folded network computes what the network does; what has no bounds is refused by its path."""

import keras
import numpy as np
import pytest
from tiny_networks import IMAGE_BLOCKS, TAILS, random_images, random_network, randomize

from keras_rcl.bounds.input_sets import Interval
from keras_rcl.bounds.interval import interval_bounds
from keras_rcl.errors import InvalidInputError
from keras_rcl.folding import fold
from keras_rcl.folding.fold import Conv, Dense, Max, Scale
from keras_rcl.networks import build_network
from keras_rcl.vocabulary.network import Network

L = keras.layers


def folded_output(network, images, output="logits"):
    """What the steps compute of single points."""
    bounds = interval_bounds(fold(network, output), Interval(images, images))[-1]
    np.testing.assert_array_equal(bounds.lower, bounds.upper)
    return bounds.lower


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("block", IMAGE_BLOCKS)
def test_the_steps_compute_what_the_layers_do(block, tail):
    for seed in range(3):
        network, images = random_network([block, "conv", block], tail, seed), random_images(5, seed)
        expected = np.asarray(network(images, training=False))
        np.testing.assert_allclose(folded_output(network, images), expected, atol=1e-5 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("encoder", ["small_cnn", "strided_cnn", "resnet18", "preact_resnet18"])
def test_our_networks_fold(encoder):
    network = build_network(Network(encoder=encoder, normalization="minus1to1"), (8, 8, 3), 4)
    images = random_images(3, shape=(8, 8, 3))
    outputs = network(images, training=False)
    for name in ("logits", "embedding", "unnormalized_projection"):
        expected = np.asarray(outputs[name])
        slack = 1e-5 * (1 + np.abs(expected).max())
        np.testing.assert_allclose(folded_output(network, images, name), expected, atol=slack)
    kinds = [type(step.operation) for step in fold(network)]
    assert kinds.count(Scale) == (1 if encoder != "preact_resnet18" else 1 + 8), "BatchNorm is folded where it can be"


def test_the_linear_tail_is_one_step():
    """Cusin's network: dense, BatchNorm and the classifier."""
    network = build_network(Network(encoder="strided_cnn"), (32, 32, 3), 10, mean=[0.5] * 3, std=[0.2] * 3)
    steps = fold(network)
    assert [step.path for step in steps if isinstance(step.operation, Dense)] == ["encoder/dense1", "classifier/logits"]
    assert steps[-1].operation.kernel.shape == (256, 10)
    assert sum(isinstance(step.operation, Conv) for step in steps) == 3


def test_a_step_that_is_read_twice_is_kept():
    image = keras.Input((4, 4, 1))
    x = L.Conv2D(2, 3)(image)
    network = keras.Model(image, L.Flatten()(L.Add()([x, L.BatchNormalization()(x)])))
    randomize(network, np.random.default_rng(0))
    images = random_images(4, shape=(4, 4, 1))
    np.testing.assert_allclose(folded_output(network, images), network(images, training=False), atol=1e-5)


def test_a_submodel_with_two_outputs_and_a_shared_layer():
    inner = keras.Input((6,))
    shared = L.Dense(6, activation="relu")
    pair = keras.Model(inner, [shared(inner), shared(shared(inner))])
    image = keras.Input((2, 3, 1))
    first, second = pair(L.Flatten()(image))
    network = keras.Model(image, L.Dense(2)(L.Add()([first, second])))
    randomize(network, np.random.default_rng(0))
    images = random_images(4, shape=(2, 3, 1))
    np.testing.assert_allclose(folded_output(network, images), network(images, training=False), atol=1e-5)


def test_a_sequential_model():
    network = keras.Sequential([keras.Input((2, 2, 1)), L.Flatten(), keras.Sequential([L.Dense(3)]), L.ReLU()])
    images = random_images(4, shape=(2, 2, 1))
    np.testing.assert_allclose(folded_output(network, images), network(images, training=False), atol=1e-6)


def after(layer, shape=(4, 4, 2)):
    """A network whose submodel `encoder` has the layer, called `odd`."""
    inner = keras.Input(shape)
    encoder = keras.Model(inner, layer(inner), name="encoder")
    image = keras.Input(shape)
    return keras.Model(image, encoder(image))


class Doubled(L.Dense):
    def call(self, x):
        return 2 * super().call(x)


@pytest.mark.parametrize(
    "layer, what",
    [
        (L.Softmax(name="odd"), r"\(Softmax\) has no bounds; if it is the last one, leave it out"),
        (L.Activation("softmax", name="odd"), "has activation softmax.*if it is the last one, leave it out"),
        (Doubled(2, name="odd"), r"\(Doubled\) has no bounds; replace it by one of: Activation, Add"),
        (L.Activation("silu", name="odd"), "has activation silu.*use relu, sigmoid or tanh"),
        (L.Conv2D(2, 3, activation="gelu", name="odd"), "has activation gelu"),
        (L.Conv2D(2, 3, groups=2, name="odd"), "has 2 groups"),
        (L.ReLU(max_value=6, name="odd"), "not a plain ReLU"),
        (L.ReLU(negative_slope=0.1, name="odd"), "not a plain ReLU"),
        (L.BatchNormalization(axis=1, name="odd"), "normalises axis 1"),
        (L.Normalization(axis=(1, 2, 3), mean=np.zeros((4, 4, 2)), variance=np.ones((4, 4, 2)), name="odd"), "apart"),
        (L.Flatten(data_format="channels_first", name="odd"), "channels_first"),
    ],
)
def test_what_has_no_bounds_is_named_with_its_path(layer, what):
    with pytest.raises(InvalidInputError, match=f"layer encoder/odd .*{what}"):
        fold(after(layer))


def test_layers_that_the_output_does_not_depend_on_need_no_bounds():
    image = keras.Input((3,))
    network = keras.Model(image, {"logits": L.Dense(2)(image), "probabilities": L.Softmax(name="odd")(image)})
    assert len(fold(network)) == 2
    with pytest.raises(InvalidInputError, match="layer odd"):
        fold(network, "probabilities")
    with pytest.raises(InvalidInputError, match="no output 'logit' but logits, probabilities"):
        fold(network, "logit")


def test_models_without_a_graph_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(InvalidInputError, match="no graph to walk"):
        fold(Own())
    inputs = [keras.Input((2,)), keras.Input((2,))]
    with pytest.raises(InvalidInputError, match="2 inputs"):
        fold(keras.Model(inputs, L.Add()(inputs)))


def test_the_stem_for_large_images_has_bounds():
    """Its maximum pooling: no other network of ours has one."""
    steps = fold(build_network(Network(encoder="resnet18", normalization="none"), (72, 72, 1), 2))
    assert any(isinstance(step.operation, Max) for step in steps)
