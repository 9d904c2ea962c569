"""Gradient functions end with their graph; what is repeated in one process leaves nothing behind."""

import gc
import re
import weakref
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops

import keras_rcl
from keras_rcl.attacks.surrogates import unit_gradient
from keras_rcl.folding import input_gradient, winograd
from keras_rcl.runtime.gradients import _TABLE, custom_gradient, registering
from keras_rcl.workflows import verify


@custom_gradient
def tenfold(x):
    """x, with ten times its gradient."""
    return tf.identity(x), lambda upstream: 10 * upstream


def traced(function):
    """x -> the gradient of the sum of a function, in a graph."""

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(function(x))
        return tape.gradient(value, x)

    return gradient


CONVOLUTIONS = {
    "tenfold": (tenfold, (2, 3)),
    "unit gradient": (unit_gradient, (2, 3)),
    "convolution": (input_gradient.convolution(tf.ones((3, 3, 1, 2)), tf.zeros(2), 1, ((1, 1), (1, 1))), (2, 6, 6, 1)),
    "winograd": (winograd.convolution(tf.ones((3, 3, 1, 2))), (6, 6, 2, 1)),
}


@pytest.mark.parametrize(("function", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_graph_that_is_gone_leaves_no_gradient_function(function, shape):
    def once():
        gradient = traced(function)
        assert np.isfinite(gradient(tf.ones(shape))).all()
        return weakref.ref(gradient.get_concrete_function(tf.ones(shape)).graph)

    gc.collect()
    before = set(_TABLE)
    graph = once()
    gc.collect()
    assert graph() is None and set(_TABLE) <= before


def test_a_graph_that_lives_keeps_its_gradient():
    """Its function is called again in other graphs, also in a loop, after all that can be collected was."""
    inner = tf.function(tenfold, autograph=False)
    inner(tf.ones(2))
    gc.collect()

    def looped(x):
        return tf.while_loop(lambda step, _: step < 3, lambda step, y: (step + 1, inner(y)), (0, x))[1]

    for function, expected in ((inner, 10.0), (looped, 1000.0)):
        gc.collect()
        np.testing.assert_array_equal(traced(function)(tf.ones(2)), [expected, expected])
    with tf.GradientTape() as tape:
        x = tf.ones(2)
        tape.watch(x)
        y = tenfold(x)
    np.testing.assert_array_equal(tape.gradient(y, x), [10.0, 10.0])


def test_a_loaded_model_keeps_its_gradients_as_long_as_it_lives(tmp_path):
    module = tf.Module()
    module.call = tf.function(
        tf.custom_gradient(lambda x: (x, lambda up: 7 * up)), [tf.TensorSpec([2])], autograph=False
    )
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    tf.saved_model.save(module, str(tmp_path / "model"), options=options)
    gc.collect()
    before = set(_TABLE)
    loaded = registering(tf.saved_model.load, str(tmp_path / "model"))
    gc.collect()
    assert len(set(_TABLE) - before) == 1
    np.testing.assert_array_equal(traced(loaded.call)(tf.ones(2)), [7.0, 7.0])
    del loaded
    gc.collect()
    assert not set(_TABLE) - before


def test_every_custom_gradient_and_loader_of_the_package_is_registered_this_way():
    package = Path(keras_rcl.__file__).parent
    found = {
        str(path.relative_to(package)): match
        for path in package.rglob("*.py")
        for match in re.findall(r"(?:tf|ops)\.custom_gradient|saved_model\.load\(", path.read_text(encoding="utf-8"))
    }
    assert found == {"runtime/gradients.py": "tf.custom_gradient"}


def calls_on(model: Path) -> dict:
    """A short call of each command, on a model in a file; `audit` attacks as `attack` does."""

    def given(command):
        return dict(dataset={"name": "digits", "limit": 40}, output_dir=model.parent / command, overwrite=True)

    def craft():
        network = keras.saving.load_model(model)
        attack = keras_rcl.PGD(num_steps=2, loss="logit_margin")
        images = np.full((4, 8, 8, 1), 0.5, "float32")
        tf.function(lambda x, y: keras_rcl.craft(attack, network, x, y))(images, [0, 1, 2, 3])

    def audit():
        short = dict(num_steps=2, num_restarts=1, num_queries=5, num_draws=1)
        budget = keras_rcl.AuditBudget(num_images=10, verifier=keras_rcl.PGD(num_steps=2), **short)
        keras_rcl.audit_model(model, claim=keras_rcl.Claim(robust_accuracy=0.01), budget=budget, **given("audit"))

    return {
        "verify": lambda: keras_rcl.verify_model(model, [1 / 255], count=1, timeout=1, **given("verify")),
        "craft": craft,
        "audit": audit,
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("repeated") / "model.keras"
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("command", ["craft", "verify", "audit"])
def test_a_call_that_is_repeated_leaves_nothing_behind(model, command, monkeypatch):
    """13 graphs a call were left."""
    monkeypatch.setattr(verify, "ATTACKS", (keras_rcl.AutoPGD(num_steps=2),))
    call, left = calls_on(model)[command], []
    for _ in range(3):
        call()
        gc.collect()
        objects = gc.get_objects()
        left.append(
            (sum(isinstance(one, ops.Graph) for one in objects), len(ops.gradient_registry._registry), len(objects))
        )
        del objects
    (_, second, third) = left
    assert third[:2] == second[:2], left
    assert third[2] - second[2] < 1000, left
