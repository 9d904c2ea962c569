"""Half precision: CLAF on digits as good as in float32, and pixels that are never rounded."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import runner, tiny_clafs, tiny_network

from keras_rcl import config
from keras_rcl.attacks import craft, craft_and_count
from keras_rcl.data import sources
from keras_rcl.networks import parts
from keras_rcl.training.run_context import RunContext, Validation
from keras_rcl.training.run_phases import run_phases
from keras_rcl.training.steps.step import StepInput
from keras_rcl.training.tensorboard import TensorBoardWriter
from keras_rcl.vocabulary.attacks import PGD, Noise
from keras_rcl.workflows.fit import build

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
HALVES = PRECISIONS[1:]
SHORT = [
    "method.warmup_epochs=0",
    "method.adversarial_epochs=2",
    "method.inner_epochs=1",
    "method.linear_epochs=10",
    "method.batch_size=128",
    "method.attack.num_steps=3",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """precision -> clean test accuracy in float32, largest share of zero attack gradients in any epoch, the weights."""

    def train(precision):
        experiment = config.load(None, "clafs", [*SHORT, f"precision={precision}"])
        data, folder = sources.load(experiment.dataset), tmp_path_factory.mktemp(precision)
        network = build(experiment, data)
        with TensorBoardWriter(folder) as writer:
            run_phases(
                network,
                experiment.method.phases(),
                data,
                RunContext(folder, writer),
                Validation(Noise()),
                compute=experiment.compute,
            )
        served = build(experiment, data, precision="float32")
        served.set_weights(network.get_weights())
        logits = served(data.test.images.astype("float32") / 255, training=False)["logits"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        zeros = {line["phase"]: line["zero_gradients"] for line in lines if "zero_gradients" in line}
        assert set(zeros) == {"inner classifier", "adversarial positives"}
        return float(np.mean(np.argmax(logits, axis=1) == data.test.labels)), max(zeros.values())

    return {precision: train(precision) for precision in PRECISIONS[:2]}


@pytest.mark.slow
def test_clafs_trains_as_well_in_float16_as_in_float32(trained):
    """The step of bfloat16 is tested below; it has float32's range."""
    (accuracy, zeros), (half_accuracy, half_zeros) = trained["float32"], trained["mixed_float16"]
    assert accuracy > 0.9
    assert abs(half_accuracy - accuracy) < 0.03
    assert zeros == 0.0
    assert half_zeros <= zeros


@pytest.mark.parametrize("precision", HALVES)
def test_a_confident_classifier_masks_no_gradient(precision, monkeypatch):
    x = np.random.default_rng(0).random((64, 8, 8, 1)).astype("float32")
    network = tiny_network(precision=precision)
    kernel, bias = parts(network)["classifier"].get_weights()
    parts(network)["classifier"].set_weights([20 * kernel, bias])
    labels = np.argmax(network(x, training=False)["logits"], axis=1)  # right, and sure of it

    def zeros():
        crafted = craft_and_count(PGD(num_steps=2), lambda v: network(v, training=False)["logits"], x, labels)
        return float(np.mean(crafted.zero_gradients))

    assert zeros() == 0.0
    if precision == "mixed_float16":  # bfloat16 has float32's range
        monkeypatch.setattr(sys.modules["keras_rcl.attacks.gradient_ascent"], "unit_gradient", tf.identity)
        assert zeros() > 0.05  # what scaling each example's gradient is there for


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_keeps_float32_variables_and_scales_the_loss_in_float16_only(precision):
    network = tiny_network(precision=precision)
    _, phase, _ = tiny_clafs().phases()
    steps = runner(network, phase, precision=precision)
    assert {variable.dtype for variable in network.variables} == {"float32"}
    inner = steps.optimizer
    if precision == "mixed_float16":
        assert isinstance(inner, keras.optimizers.LossScaleOptimizer)
        inner = inner.inner_optimizer
    assert type(inner) is keras.optimizers.Adam
    assert {v.dtype for v in inner.variables if len(v.shape)} == {"float32"}
    assert parts(network)["encoder"].get_layer("conv2").compute_dtype == keras.DTypePolicy(precision).compute_dtype


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("entrance", ["trainer", "network", "graph"])
def test_pixels_are_not_rounded_before_normalisation(precision, entrance, monkeypatch):
    network = tiny_network(precision=precision)
    _, phase, _ = tiny_clafs().phases()
    trainer = runner(network, phase, precision=precision).trainer
    normalize, seen = network.get_layer("normalize"), []
    normalise = normalize.call

    def spy(x):
        seen.append((x, normalise(x)))
        return seen[-1][1]

    monkeypatch.setattr(normalize, "call", spy)
    called = {
        "trainer": lambda x: trainer(StepInput(x, None), training=True),
        "network": lambda x: network(x, training=False),
        "graph": tf.function(lambda x: [trainer(StepInput(x, None), training=True), *seen[-1]][1:], autograph=False),
    }[entrance]
    x = np.full((2, 8, 8, 1), 0.7, "float32")
    results = []
    for pixels in (x, x + np.float32(1e-5)):  # float16 has a spacing of 5e-4 here
        returned = called(tf.constant(pixels))
        given, normalised = returned if entrance == "graph" else seen[-1]
        assert given.dtype == normalised.dtype == tf.float32
        np.testing.assert_array_equal(given, pixels)
        results.append(normalised.numpy())
    np.testing.assert_allclose(results[1] - results[0], 1e-5 / 0.3, rtol=0.02)


@pytest.mark.parametrize("precision", HALVES)
def test_heads_compute_in_float32_inside_the_trainer(precision):
    network = tiny_network(precision=precision)
    for head in ("inner_epochs", "online"):
        _, phase, _ = tiny_clafs(head=head).phases()
        images = tf.constant(np.random.default_rng(0).random((4, 8, 8, 1)), tf.float32)
        outputs = runner(network, phase, precision=precision).trainer(StepInput(images, None), training=True)
        kernel, bias = parts(network)["classifier"].get_weights()
        logits = np.float64(outputs["embedding"]) @ kernel + bias
        np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-5, atol=1e-5)
        assert np.abs(np.float64(outputs["embedding"]) @ np.float16(kernel) - logits).max() > 1e-4


@pytest.mark.parametrize("precision", HALVES)
def test_adversarial_images_are_float32(precision):
    network = tiny_network(precision=precision)
    x = np.random.default_rng(0).random((4, 8, 8, 1)).astype("float32")
    images = craft(PGD(epsilon=1e-5, num_steps=2), lambda v: network(v, training=False)["logits"], x, [0, 1, 2, 0])
    assert images.dtype == tf.float32
    assert 0 < np.abs(images - x).max() <= 1.01e-5
