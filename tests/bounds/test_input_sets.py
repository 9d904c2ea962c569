"""Minima of linear functions over L1 and L2 balls in a box: closed forms, other solvers, points that attain them."""

import keras
import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from keras_rcl.bounds import Method, output_bounds, worst_case_margins
from keras_rcl.bounds.beta_crown import BranchAndBound
from keras_rcl.bounds.input_sets import largest_fall, largest_moves
from keras_rcl.errors import InvalidInputError

METHODS = Method.__args__
ORDER, DUAL = {"l2": 2, "l1": 1}, {"linf": 1, "l2": 2, "l1": np.inf}
norms = pytest.mark.parametrize("norm", ORDER)


def problems(size, count=40):
    """Values and rooms of float64; some values and rooms are 0, some rows have room for less than the ball."""
    rng = np.random.default_rng(size)
    values = np.abs(rng.normal(size=(count, size))) * rng.integers(0, 2, (count, size))
    rooms = np.clip(rng.uniform(-0.5, 1.5, (count, size)), 0, 1) * rng.choice([1, 0.3, 0.01], size=(count, 1))
    return values, rooms


def solved(values, rooms, norm):
    """The largest <v, t> by SciPy: a linear program, or sequential quadratic programming."""
    bounds = [(0, room) for room in rooms]
    if norm == "l1":
        return -linprog(-values, A_ub=np.ones((1, len(rooms))), b_ub=[1], bounds=bounds).fun
    inside = {"type": "ineq", "fun": lambda t: 1 - t @ t, "jac": lambda t: -2 * t}
    start = rooms / max(1, np.linalg.norm(rooms))
    options = dict(method="SLSQP", bounds=bounds, constraints=inside, options={"ftol": 1e-12, "maxiter": 500})
    return -minimize(lambda t: -values @ t, start, jac=lambda t: -values, **options).fun


@norms
@pytest.mark.parametrize("size", [3, 40])
def test_the_largest_fall_is_that_of_another_solver(norm, size):
    values, rooms = problems(size)
    expected = [solved(*row, norm) for row in zip(values, rooms, strict=True)]
    np.testing.assert_allclose(largest_fall(values, rooms, norm), expected, atol=1e-6)


@norms
def test_moves_are_within_ball_and_box_and_attain_the_fall(norm):
    values, rooms = problems(200)
    moves = np.asarray(largest_moves(values, rooms, norm))
    assert np.all((moves >= 0) & (moves <= rooms))
    assert np.all(np.linalg.norm(moves, ORDER[norm], axis=1) <= 1 + 1e-12)
    np.testing.assert_allclose((values * moves).sum(axis=1), largest_fall(values, rooms, norm), atol=1e-6)


@norms
def test_no_point_falls_further(norm):
    """Random points, and corners of the box that are drawn into the ball."""
    rng, (values, rooms) = np.random.default_rng(0), problems(10)
    few = rng.integers(0, 2, (500, *rooms.shape))
    for share in (rng.uniform(size=few.shape), few):
        points = share * rooms
        points = points / np.maximum(1, np.linalg.norm(points, ORDER[norm], axis=2, keepdims=True))
        assert np.all((points * values).sum(axis=2).max(axis=0) <= np.asarray(largest_fall(values, rooms, norm)) + 1e-9)


def linear_network():
    """Three classes of two channels that are scaled apart: the network, and its weights and biases by pixel."""
    rng, image = np.random.default_rng(1), keras.Input((2, 3, 2))
    kernel, bias = (rng.normal(size=shape).astype("float32").astype("float64") for shape in ((12, 3), 3))
    factor, offset = np.array([3.0, -0.5]), 0.25
    x = keras.layers.Rescaling(factor, offset)(image)
    network = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    network.layers[-1].set_weights([kernel, bias])
    weights = kernel.reshape(2, 3, 2, 3) * factor[:, None]
    return network, weights.reshape(12, 3), bias + offset * kernel.sum(axis=0)


@pytest.mark.parametrize("norm", DUAL)
def test_of_a_linear_classifier_every_bound_is_the_closed_form(norm):
    """Far from the box: the margin at the center minus epsilon times the dual norm of the weights' difference."""
    network, weights, bias = linear_network()
    images, labels, epsilon = np.random.default_rng(2).uniform(0.4, 0.6, (5, 2, 3, 2)), np.arange(5) % 3, 0.3
    own = weights[:, labels].T[:, :, None] - weights
    expected = np.einsum("nd,ndk->nk", images.reshape(5, 12), own) + bias[labels][:, None] - bias
    expected -= epsilon * np.linalg.norm(own, DUAL[norm], axis=1)
    for method in METHODS:
        found = worst_case_margins(network, images, labels, epsilon, method, norm=norm, iterations=2)
        np.testing.assert_allclose(found, expected, atol=1e-9)
    bounds = output_bounds(network, images, epsilon, "ibp", norm=norm)
    logits = images.reshape(5, 12) @ weights + bias
    radius = epsilon * np.linalg.norm(weights, DUAL[norm], axis=0)
    np.testing.assert_allclose(bounds.lower, logits - radius, atol=1e-9)
    np.testing.assert_allclose(bounds.upper, logits + radius, atol=1e-9)


@norms
def test_the_box_makes_the_bound_of_a_linear_classifier_tighter(norm):
    network, weights, bias = linear_network()
    image, epsilon = np.random.default_rng(3).uniform(size=(1, 2, 3, 2)).round(), 1.5
    function = weights[:, 0] - weights[:, 1]
    room = np.where(function > 0, image.ravel(), 1 - image.ravel())
    expected = image.ravel() @ function + bias[0] - bias[1]
    expected -= epsilon * solved(np.abs(function), room / epsilon, norm)
    found = np.asarray(worst_case_margins(network, image, [0], epsilon, norm=norm))[0, 1]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found > image.ravel() @ function + bias[0] - bias[1] - epsilon * np.linalg.norm(function, DUAL[norm]) + 0.1


@pytest.mark.slow
def test_the_complete_search_in_l1_contradicts_no_point_of_the_ball():
    """Balls that end before the nearest of many random points of the other class, and beyond it."""
    rng, image = np.random.default_rng(0), keras.Input((2, 2, 1))
    hidden = keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(image))
    network = keras.Model(image, keras.layers.Dense(2)(hidden))
    weights = [rng.normal(size=v.shape).astype("float32") for v in network.weights]

    def logits(x):
        (kernel, bias, last, offset) = weights
        return np.maximum(x.reshape(-1, 4) @ kernel + bias, 0) @ last + offset

    points = rng.uniform(size=(50_000, 4))
    weights[-1] = (-logits(points) + weights[-1]).mean(axis=0).astype("float32")
    network.set_weights(weights)
    decide, answers = BranchAndBound(network, norm="l1", root_iterations=1, iterations=5), []
    classes = logits(points).argmax(axis=1)
    assert 0.1 < classes.mean() < 0.9
    for center in rng.uniform(size=(2, 4)).astype("float32"):
        label = int(logits(center).argmax())
        length = np.abs(points - center).sum(axis=1)
        for share in (0.5, 0.9, 1.3):
            epsilon = share * length[classes != label].min()

            def check(found, label=label):
                return found if logits(found.astype("float64")).argmax() != label else None

            found = decide(center.reshape(2, 2, 1), label, epsilon, wrong=[1 - label], seconds=2, check=check)
            inside = logits(points[length <= epsilon])
            margins = inside[:, label] - inside[:, 1 - label]
            assert found.lower <= margins.min(initial=np.inf) + 1e-5
            if found.safe is False:
                change = np.abs(found.counterexample.ravel() - center).sum()
                assert change <= epsilon * (1 + 1e-5)
                assert found.counterexample.min() >= 0 and found.counterexample.max() <= 1
            answers.append((share, found.safe, found.domains))
    assert {(share, safe) for share, safe, _ in answers} >= {(0.5, True), (1.3, False)}
    assert not any(safe for share, safe, _ in answers if share > 1) and max(count for *_, count in answers) > 2


def test_an_unknown_norm_is_refused():
    network, *_ = linear_network()
    with pytest.raises(InvalidInputError, match="unknown norm 'l3'; choose from linf, l2, l1"):
        worst_case_margins(network, np.zeros((1, 2, 3, 2)), [0], 0.1, norm="l3")
