"""The two-headed network: outputs, precision, parts, saving, seeds."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.networks import UnitNorm, build_network, parts, reinitialize
from keras_rcl.vocabulary.network import Network

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
SMALL = Network(projection_hidden=8, projection_dim=6, normalization="minus1to1")


def images(*shape):
    return np.random.default_rng(0).random(shape or (5, 8, 8, 1)).astype("float32")


def outputs(network, x):
    return {name: np.array(value) for name, value in network(x, training=False).items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_outputs_are_float32_under_every_policy(precision):
    network = build_network(SMALL, (8, 8, 1), 3, precision=precision)
    found = outputs(network, images())
    shapes = {"embedding": (5, 64), "unnormalized_projection": (5, 6), "projection": (5, 6), "logits": (5, 3)}
    assert {name: value.shape for name, value in found.items()} == shapes
    assert {value.dtype.name for value in found.values()} == {"float32"}
    assert network.get_layer("encoder").output.dtype == keras.DTypePolicy(precision).compute_dtype
    assert network.dtype_policy.name == precision
    np.testing.assert_allclose(np.linalg.norm(found["projection"], axis=1), 1, atol=1e-6)
    lengths = np.linalg.norm(found["unnormalized_projection"], axis=1, keepdims=True)
    np.testing.assert_allclose(found["projection"] * lengths, found["unnormalized_projection"], atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_weights_carry_over_between_policies(precision):
    full = build_network(SMALL, (8, 8, 1), 3, seed=1)
    half = build_network(SMALL, (8, 8, 1), 3, seed=2, precision=precision)
    described = [[(w.path, w.shape, w.dtype) for w in network.weights] for network in (full, half)]
    assert described[0] == described[1]
    half.set_weights(full.get_weights())
    expected = outputs(full, images())["embedding"]
    np.testing.assert_allclose(outputs(half, images())["embedding"], expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_trains_under_every_policy(precision):
    network = build_network(SMALL, (8, 8, 1), 3, precision=precision)
    network.compile(
        keras.optimizers.SGD(0.01),
        loss={
            "logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "projection": "cosine_similarity",
        },
        jit_compile=False,
    )
    targets = {"logits": np.array([0, 1, 2, 0, 1]), "projection": np.ones((5, 6), "float32")}
    before = network.get_weights()
    assert np.isfinite(network.fit(images(), targets, verbose=0).history["loss"]).all()
    assert all(np.isfinite(weight).all() for weight in network.get_weights())
    assert any((a != b).any() for a, b in zip(before, network.get_weights(), strict=True))


def test_parts_hold_all_weights_and_are_named():
    network = build_network(SMALL, (8, 8, 1), 3)
    found = parts(network)
    assert list(found) == ["encoder", "projector", "classifier"]
    assert all(part.name == name for name, part in found.items())
    assert sum(len(part.weights) for part in found.values()) == len(network.weights)
    assert [layer.name for layer in network.layers[:3]] == ["image", "normalize", "encoder"]


@pytest.mark.parametrize(
    ("hidden", "dim", "weights", "width"), [(8, 6, 4, 6), (None, 6, 2, 6), (None, None, 0, 64), (8, None, 0, 64)]
)
def test_projection_heads(hidden, dim, weights, width):
    head = Network(projection_hidden=hidden, projection_dim=dim, normalization="none")
    network = build_network(head, (8, 8, 1), 3)
    assert len(parts(network)["projector"].weights) == weights
    found = outputs(network, images())
    assert found["projection"].shape == (5, width)
    if dim is None:
        np.testing.assert_array_equal(found["unnormalized_projection"], found["embedding"])


def test_the_constants_of_clafs_code_are_a_normalization():
    spec = dataclasses.replace(SMALL, normalization="claf-repo")
    normalize = build_network(spec, (8, 8, 3), 3).get_layer("normalize")
    grey = np.full((1, 8, 8, 3), 0.5, np.float32)
    expected = [(0.5 - 0.4914) / 0.2023, (0.5 - 0.4822) / 0.1994, (0.5 - 0.4465) / 0.2010]
    np.testing.assert_allclose(np.asarray(normalize(grey))[0, 0, 0], expected, rtol=1e-5)


def test_normalization_is_inside_the_network():
    x, (mean, std) = images(4, 8, 8, 3), ([0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
    bare = build_network(Network(normalization="none"), (8, 8, 3), 3, seed=1)
    scaled = build_network(Network(normalization="mean_std"), (8, 8, 3), 3, mean=mean, std=std, seed=1)
    centred = build_network(Network(normalization="minus1to1"), (8, 8, 3), 3, seed=1)
    bare_logits = outputs(bare, ((x - np.float32(mean)) / np.float32(std)))["logits"]
    np.testing.assert_allclose(outputs(scaled, x)["logits"], bare_logits, atol=1e-4)
    np.testing.assert_allclose(outputs(centred, x)["logits"], outputs(bare, 2 * x - 1)["logits"], atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "classifier"), [*((name, "linear") for name in PRECISIONS[:2]), ("float32", "cosine")]
)
def test_saved_network_gives_equal_outputs(tmp_path, precision, classifier):
    head = Network(projection_hidden=8, projection_dim=6, classifier=classifier)
    network = build_network(head, (8, 8, 1), 3, mean=np.array([0.3]), std=np.array([0.2]), precision=precision)
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras", safe_mode=True)
    expected = outputs(network, images())
    for name, value in outputs(loaded, images()).items():
        np.testing.assert_array_equal(value, expected[name])
    reinitialize(parts(loaded)["classifier"], seed=0)
    np.testing.assert_array_equal(outputs(loaded, images())["logits"], expected["logits"])


def test_same_seed_same_weights():
    first, again, other = (build_network(SMALL, (8, 8, 1), 3, seed=seed).get_weights() for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_pytorchs_initialization_is_uniform_within_one_over_the_root_of_what_a_unit_reads():
    """torch.nn.Linear and Conv2d: kaiming_uniform_(a=sqrt(5)) is U(-1/sqrt(n), 1/sqrt(n)), and so are biases."""
    spec = dataclasses.replace(SMALL, initialization="pytorch")
    network = build_network(spec, (8, 8, 1), 3)
    layers = [layer for part in parts(network).values() for layer in part.layers if hasattr(layer, "kernel")]
    assert len(layers) == 6
    for layer in layers:
        kernel, bias = (np.asarray(variable) for variable in (layer.kernel, layer.bias))
        bound = 1 / np.sqrt(np.prod(kernel.shape[:-1]))
        for values in (kernel, bias):
            assert bound / 3 < np.abs(values).max() <= bound and len(np.unique(values)) > 1
        if kernel.size > 300:
            assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.1) and np.abs(kernel).max() > 0.98 * bound
        assert not np.isclose(bias[0], kernel.ravel()[0])


PYTORCH = dataclasses.replace(SMALL, initialization="pytorch")
COSINE = dataclasses.replace(SMALL, classifier="cosine", logit_scale=4.0)


def test_logits_of_a_cosine_classifier_are_scaled_cosines():
    network = build_network(COSINE, (8, 8, 1), 3)
    (kernel,) = parts(network)["classifier"].get_weights()
    found = outputs(network, images())
    for row, embedding in zip(found["logits"], found["embedding"], strict=True):
        for logit, weights in zip(row, kernel.T, strict=True):
            cosine = np.dot(embedding, weights) / (np.linalg.norm(embedding) * np.linalg.norm(weights))
            assert logit == pytest.approx(4 * cosine, abs=1e-5)
    assert np.ptp(found["logits"]) > 0.1


@pytest.mark.parametrize(
    ("name", "spec"),
    [*((name, SMALL) for name in ("encoder", "projector", "classifier")), ("encoder", PYTORCH), ("classifier", COSINE)],
)
def test_reinitialize_draws_one_part_as_a_new_network_would(name, spec):
    network, fresh = (build_network(spec, (8, 8, 1), 3, seed=seed) for seed in (0, 7))
    network.set_weights([np.full_like(weight, 0.5) for weight in network.get_weights()])
    reinitialize(parts(network)[name], seed=7)
    for other, part in parts(network).items():
        for found, drawn in zip(part.get_weights(), parts(fresh)[other].get_weights(), strict=True):
            np.testing.assert_array_equal(found, drawn if other == name else np.full_like(found, 0.5))


@pytest.mark.parametrize("length", [0.0, 1e-20, 1e-6, 1.0, 1e6])
def test_unit_norm_is_finite_with_its_gradient(length):
    z = tf.constant(np.array([[0.6, 0.8]], "float32") * np.float32(length))
    with tf.GradientTape() as tape:
        tape.watch(z)
        unit = UnitNorm(dtype="float32")(z)
        value = tf.reduce_sum(unit * tf.constant([[1.0, 2.0]]))
    assert np.isfinite(tape.gradient(value, z)).all() and np.isfinite(unit).all()
    if length >= 1e-6:
        np.testing.assert_allclose(unit, [[0.6, 0.8]], rtol=1e-5)


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (Network(), {}, "needs mean and std of the training images"),
        (Network(), {"mean": [0.5], "std": [0.2, 0.2, 0.2]}, "do not fit images of 3 channels"),
        (Network(), {"mean": [0.5] * 3, "std": [0.2, 0.0, 0.2]}, "never varies"),
        (SMALL, {"precision": "float16"}, "unknown precision 'float16'; choose from float32"),
        (SMALL, {"num_classes": 1}, "num_classes 1"),
        (SMALL, {"image_shape": (7, 8, 3)}, "a 7x8 image is too small for small_cnn"),
    ],
)
def test_refusals(network, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        build_network(network, **{"image_shape": (8, 8, 3), "num_classes": 3, **arguments})
