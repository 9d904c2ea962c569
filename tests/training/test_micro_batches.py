"""A batch that passes in parts: the same gradient, the same examples, statistics that move once."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tiny import BATCH, image_data, runner, tiny_network

from keras_rcl.errors import InvalidInputError
from keras_rcl.networks import parts
from keras_rcl.runtime.progress import Silent
from keras_rcl.training.micro_batches import gradients_in_parts, in_parts
from keras_rcl.training.robust_trainer import RobustTrainer
from keras_rcl.vocabulary.attacks import PGD
from keras_rcl.vocabulary.compute import ComputeSettings
from keras_rcl.vocabulary.phase import (
    SGD,
    Adversarial,
    Clean,
    CrossEntropy,
    MarginContrastive,
    Phase,
    SupCon,
    WeightPerturbation,
    WorstCase,
)

PARTS = ("encoder", "projector", "classifier")


def phase_of(*views, terms, **fields) -> Phase:
    fields = {"optimizer": SGD(learning_rate=1.0, momentum=0.0), "batch_size": BATCH, "trains": PARTS, **fields}
    return Phase(name="large batches", epochs=1, views=views, terms=terms, **fields)


def uncoupled_network(precision: str = "float32") -> keras.Model:
    """Two heads and no BatchNorm, so that only a loss couples images."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1))
    convolved = layers.Conv2D(4, 3, strides=2, activation="relu", dtype=precision)(image)
    embedding = layers.Flatten(dtype="float32")(convolved)
    projected = layers.Dense(6)(embedding)
    outputs = {
        "embedding": embedding,
        "projection": layers.UnitNormalization()(projected),
        "unnormalized_projection": projected,
        "logits": layers.Dense(3)(embedding),
    }
    return keras.Model(image, outputs)


@pytest.fixture(scope="module")
def batch():
    """Two views of images, their labels, a seed: as the pipeline gives them."""
    images = np.random.default_rng(3).random((1, BATCH, 8, 8, 1), np.float32).repeat(2, axis=0)
    return tf.constant(images), tf.constant(np.arange(BATCH) % 3, tf.int32), tf.constant([1, 2])


def stepped(
    phase: Phase, micro_batch: int | None, batch, precision: str = "float32", *, graph: bool = True
) -> tuple[list[np.ndarray], dict[str, float]]:
    """The weights after one step of plain gradient descent with a rate of 1, and the metrics of the step.

    Without a graph, tracing takes no time.
    """
    network = uncoupled_network(precision)
    trainer = RobustTrainer(
        network, phase, ComputeSettings(precision=precision, micro_batch=micro_batch), steps_per_epoch=1
    )
    trainer.compile(optimizer=keras.optimizers.SGD(1.0), jit_compile=False)
    if graph:
        metrics = trainer.fit(tf.data.Dataset.from_tensors(batch), shuffle=False, verbose=0).history
    else:
        metrics = trainer.train_step(batch)
    return network.get_weights(), {name: float(np.squeeze(value)) for name, value in metrics.items()}


ATTACKED = (Clean(), Adversarial(attack=PGD(epsilon=8 / 255, num_steps=3)))


@pytest.mark.parametrize(
    ("phase", "micro_batch", "graph"),
    [
        (phase_of(Clean(), Clean(), terms=(SupCon(temperature=0.1), CrossEntropy(weight=0.01))), 1, True),
        (phase_of(*ATTACKED, terms=(SupCon(reduction="sum"), CrossEntropy(on="adversarial", weight=0.3))), 4, False),
        (phase_of(Clean(), Clean(), terms=(MarginContrastive(), CrossEntropy(weight=0.01))), 8, False),
    ],
    ids=["supcon", "supcon and cross-entropy", "margin"],
)
def test_a_step_equals_the_step_of_the_whole_batch(phase, micro_batch, graph, batch):
    whole, metrics = stepped(phase, None, batch, graph=graph)
    apart, metrics_apart = stepped(phase, micro_batch, batch, graph=graph)
    begun = uncoupled_network().get_weights()
    for before, a, b in zip(begun, whole, apart, strict=True):
        np.testing.assert_allclose(b - before, a - before, rtol=1e-5, atol=1e-5 * np.abs(a - before).max() + 1e-7)
    assert any(np.abs(a - before).max() > 1e-3 for before, a in zip(begun, whole, strict=True))
    assert metrics_apart == pytest.approx(metrics, rel=1e-5)


@pytest.mark.slow
def test_half_precision_scales_the_loss_and_not_the_step(batch):
    phase = phase_of(*ATTACKED, terms=(SupCon(temperature=0.5), CrossEntropy()))
    begun = uncoupled_network().get_weights()
    changes = [
        np.concatenate([np.ravel(after - before) for before, after in zip(begun, weights, strict=True)])
        for weights, _ in (stepped(phase, None, batch), stepped(phase, 4, batch, "mixed_float16"))
    ]
    assert 0 < np.linalg.norm(changes[1] - changes[0]) < 0.01 * np.linalg.norm(changes[0])


@pytest.mark.slow
def test_statistics_move_once_per_micro_batch():
    phase = phase_of(
        Clean(), Clean(), terms=(SupCon(), CrossEntropy()), optimizer=SGD(learning_rate=1e-12, momentum=0.0)
    )
    network = tiny_network()
    steps = runner(network, phase, image_data(BATCH), micro_batch=8)
    ((images, _, _),) = steps.batches.dataset
    normalized = (images.numpy().reshape(-1, 8, 8, 8, 1) - 0.35) / 0.3  # [parts, images, H, W, C]
    conv, norm = (parts(network)["encoder"].get_layer(name) for name in ("conv1", "conv1_norm"))
    expected = np.zeros(norm.moving_mean.shape)
    for part in normalized:
        padded = np.pad(part, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float32)  # by a layer before the convolution
        batch_mean = np.asarray(conv(padded)).mean(axis=(0, 1, 2))
        expected = norm.momentum * expected + (1 - norm.momentum) * batch_mean
    steps.run_epoch(Silent(), "")
    assert len(normalized) == 4
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-4, atol=1e-6)


def test_parts_come_back_in_order():
    x, y = tf.reshape(tf.range(24.0), [6, 4]), tf.range(6)
    rows = {"sum": tf.TensorSpec([], tf.float32), "next": tf.TensorSpec([], tf.int32)}
    found = in_parts(
        lambda a, b: {"sum": tf.reduce_sum(a, axis=1), "next": b + 1 + 0 * len(a)}, 2, x, y, signature=rows
    )
    np.testing.assert_array_equal(found["sum"], x.numpy().sum(axis=1))
    np.testing.assert_array_equal(found["next"], range(1, 7))


def test_a_gradient_in_parts_is_the_transposed_product():
    # d<c, x w>/dw = x^T c.
    rng = np.random.default_rng(0)
    x, cotangents = rng.random((6, 3), np.float32), rng.random((6, 2), np.float32)
    weight, unused = tf.Variable(rng.random((3, 2), np.float32)), tf.Variable([1.0])
    found = gradients_in_parts(
        lambda rows: {"y": rows @ weight}, 2, tf.constant(x), {"y": tf.constant(cotangents)}, [weight, unused]
    )
    np.testing.assert_allclose(found[0], x.T @ cotangents, rtol=1e-6)
    np.testing.assert_array_equal(found[1], [0.0])


def test_a_micro_batch_that_does_not_fit_raises():
    with pytest.raises(
        InvalidInputError, match=r"micro-batches of 5 images do not fill large batches's batches of 16.*-batch 4$"
    ):
        runner(tiny_network(), phase_of(Clean(), terms=(SupCon(),)), micro_batch=5)
    perturbed = phase_of(Clean(), terms=(CrossEntropy(),), awp=WeightPerturbation(gamma=0.01))
    with pytest.raises(InvalidInputError, match="its awp from the whole batch; hint: leave out --micro-batch, or awp"):
        runner(tiny_network(), perturbed, micro_batch=4)
    bounded = phase_of(Clean(), WorstCase(epsilon=1 / 255), terms=(CrossEntropy(on="worst_case"),))
    with pytest.raises(InvalidInputError, match="computes its bounds from the whole batch"):
        runner(tiny_network(), bounded, micro_batch=4)


def test_a_micro_batch_as_large_as_the_batch_changes_nothing():
    phase = phase_of(Clean(), terms=(SupCon(),))
    assert runner(tiny_network(), phase, micro_batch=BATCH).trainer.compute.micro_batch is None
