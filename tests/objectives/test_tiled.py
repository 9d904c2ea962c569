"""Contrastive objectives by blocks of rows against the papers' loops, for any number of rows per block."""

import numpy as np
import pytest
import tensorflow as tf
from reference import objectives as reference

from keras_rcl.objectives import contrastive, has_positive, margin_contrastive, supervised_contrastive, tiled

NUM_ANCHORS = 11
OBJECTIVES = {
    "supcon": (
        lambda labels, z: supervised_contrastive(labels, z, temperature=0.1),
        lambda labels, z: reference.supcon(labels, z, 0.1),
    ),
    "margin": (margin_contrastive, lambda labels, z: reference.margin(labels, z, 0.5, 0.1)),
}


@pytest.fixture(params=(1, 3 * NUM_ANCHORS, 2**20), ids=("one row", "three rows", "all rows"))
def by_blocks(request, monkeypatch):
    """Every batch is computed by blocks, of this number of similarities."""
    monkeypatch.setattr(contrastive, "TILED_FROM", 0)
    monkeypatch.setattr(tiled, "BLOCK_ELEMENTS", request.param)


def batch(seed=0, num_anchors=NUM_ANCHORS):
    """Labels, one of them alone in its class, and unit projections, two of them equal."""
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(0, 3, num_anchors - 1), 2**24 + 1)
    projection = rng.normal(size=(num_anchors, 4))
    projection[1:2] = projection[:1]
    return labels, (projection / np.linalg.norm(projection, axis=1, keepdims=True)).astype("float32")


def weighted_gradient(objective, labels, projection, weights):
    """The gradient of sum_i w_i L_i."""
    z = tf.constant(projection)
    with tf.GradientTape() as tape:
        tape.watch(z)
        total = tf.reduce_sum(weights * objective(labels, z))
    return tape.gradient(total, z)


def difference_quotients(objective, labels, projection, weights, step=1e-6):
    """The same gradient of a float64 loop, by central differences."""
    projection, found = projection.astype("float64"), np.zeros(projection.shape)
    for place in np.ndindex(projection.shape):
        moved = [projection.copy(), projection.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (weights @ np.array(objective(labels, rows)) for rows in moved)
        found[place] = (up - down) / (2 * step)
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_and_gradients_are_those_of_the_papers_loop(by_blocks, name):
    objective, loop = OBJECTIVES[name]
    labels, projection = batch()
    weights = np.linspace(-1, 2, NUM_ANCHORS).astype("float32")
    np.testing.assert_allclose(objective(labels, projection), loop(labels, projection), rtol=1e-6, atol=1e-6)
    found = weighted_gradient(objective, labels, projection, weights)
    np.testing.assert_allclose(found, difference_quotients(loop, labels, projection, weights), rtol=1e-4, atol=1e-5)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize(("jit_compile", "name"), [(jit, name) for jit in (False, True) for name in OBJECTIVES])
def test_a_graph_of_unknown_batch_size_computes_by_blocks(monkeypatch, name, jit_compile):
    monkeypatch.setattr(tiled, "BLOCK_ELEMENTS", 3 * NUM_ANCHORS)
    objective, loop = OBJECTIVES[name]
    signature = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 4])]

    @tf.function(input_signature=signature, jit_compile=jit_compile, autograph=False)
    def both(labels, projection):
        with tf.GradientTape() as tape:
            tape.watch(projection)
            values = objective(labels, projection)
        return values, tape.gradient(values, projection)

    for num_anchors in (NUM_ANCHORS, 4):
        labels, projection = batch(num_anchors=num_anchors)
        values, gradient = both(labels, projection)
        np.testing.assert_allclose(values, loop(labels, projection), rtol=1e-6, atol=2e-6)
        expected = difference_quotients(loop, labels, projection, np.ones(num_anchors))
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_is_computed_in_float32(by_blocks):
    labels, projection = batch()
    half = projection.astype("float16")
    for objective, loop in OBJECTIVES.values():
        values = objective(labels, half)
        assert values.dtype == "float32"
        np.testing.assert_allclose(values, loop(labels, half.astype("float32")), rtol=1e-6, atol=1e-6)
        assert weighted_gradient(objective, labels, half, np.ones(NUM_ANCHORS, "float32")).dtype == "float16"


def test_batches_without_positives_and_of_one_anchor_are_zero_and_finite(by_blocks):
    for num_anchors in (1, 5):
        labels, projection = np.arange(num_anchors), batch(num_anchors=num_anchors)[1]
        values = supervised_contrastive(labels, projection, temperature=0.1)
        np.testing.assert_array_equal(values, np.zeros(num_anchors))
        for objective, _ in OBJECTIVES.values():
            assert np.isfinite(weighted_gradient(objective, labels, projection, np.ones(num_anchors, "float32"))).all()
        assert not np.array(has_positive(labels)).any()


def test_no_array_of_a_traced_step_holds_all_similarities(monkeypatch):
    """The graph of value and gradient has no tensor of M x M elements."""
    monkeypatch.setattr(contrastive, "TILED_FROM", 0)
    monkeypatch.setattr(tiled, "BLOCK_ELEMENTS", 64)
    labels, projection = batch(num_anchors=32)

    @tf.function
    def step(labels, projection):
        with tf.GradientTape() as tape:
            tape.watch(projection)
            total = tf.add_n([tf.reduce_sum(objective(labels, projection)) for objective, _ in OBJECTIVES.values()])
        return tape.gradient(total, projection)

    graph = step.get_concrete_function(labels, tf.constant(projection)).graph
    functions = [graph, *(graph._get_function(name).graph for name in graph._functions)]
    sizes = [
        tensor.shape.num_elements() or 0 for each in functions for op in each.get_operations() for tensor in op.outputs
    ]
    assert max(sizes) < 32 * 32
