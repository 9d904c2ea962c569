"""Branch and bound against the exact minimum, and its bounds of single domains against their own images."""

import functools
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from milp_oracle import affine_maps, exact_minimum
from test_tightness import NETWORKS, SLACK, functions
from tiny_networks import random_images, random_network

from keras_rcl.bounds.beta_crown import BranchAndBound
from keras_rcl.bounds.crown import LinearForms, lower_bounds
from keras_rcl.bounds.input_sets import Interval
from keras_rcl.bounds.interval import interval_bounds, past_scaling
from keras_rcl.folding import fold
from keras_rcl.folding.numpy_forward import evaluate

pytestmark = pytest.mark.usefixtures("unoptimized")

LONG = 1e5

IMAGES = 8
"""Of each network; each is verified against both other classes."""

SPLITTING = ("dense", "deep")
"""Those on which the bounds of the whole ball do not decide everything."""


def balanced(kind):
    """The network with logits of mean 0, so that each class is somewhere the largest and margins are close."""
    network = NETWORKS[kind]()
    bias, images = network.layers[-1].bias, random_images(200, 99, network.input_shape[1:])
    bias.assign(bias - np.mean(network(images, training=False), axis=0))
    return network


@functools.cache
def searched(kind):
    """The network and a search on it, of which each graph is traced once."""
    network = balanced(kind)
    return network, BranchAndBound(network, root_iterations=1, iterations=5)


def problems(network, count):
    """Images, each with its own class and a radius."""
    steps = fold(network, dtype="float64")
    for seed in range(count):
        image = random_images(1, seed, network.input_shape[1:])[0]
        epsilon = float(np.random.default_rng(seed).choice([0.05, 0.1, 0.2, 0.3, 0.5]))
        yield image, int(evaluate(steps, image[None]).argmax()), epsilon


def checker(network, label, wrong):
    steps = fold(network, dtype="float64")

    def check(image):
        (logits,) = evaluate(steps, image[None])
        return image if logits[wrong].max() > logits[label] else None

    return check


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_decides_as_the_exact_minimum_does(kind):
    network, decide = searched(kind)
    shape, shortcut = network.input_shape[1:], (0, 2) if kind == "residual" else None
    maps = affine_maps(functions(network), int(np.prod(shape)))
    decided, domains = [], []
    for image, label, epsilon in problems(network, IMAGES):
        center = image.ravel().astype("float64")
        low, high = np.maximum(center - epsilon, 0), np.minimum(center + epsilon, 1)
        for wrong in {0, 1, 2} - {label}:
            exact = exact_minimum(maps, np.eye(3)[label] - np.eye(3)[wrong], low, high, shortcut)
            found = decide(image, label, epsilon, wrong=[wrong], seconds=LONG, check=checker(network, label, [wrong]))
            assert found.safe == (exact > 0), (image, epsilon, wrong, exact, found)
            assert found.lower <= exact + SLACK
            if not found.safe:
                change = np.abs(found.counterexample - image)
                assert change.max() <= epsilon + 1e-6
                assert found.counterexample.min() >= 0 and found.counterexample.max() <= 1
            decided.append(found.safe)
            domains.append(found.domains)
    assert len(decided) == 2 * IMAGES and 0.1 < np.mean(decided) < 0.95
    assert kind not in SPLITTING or max(domains) > 2


@pytest.mark.slow
def test_functions_over_boxes_decide_as_the_exact_minimum_does():
    """Any linear function with an offset, over any box."""
    (network, search), rng, decided = searched("deep"), np.random.default_rng(0), []
    maps, steps = affine_maps(functions(network), 4), fold(network, dtype="float64")
    for _ in range(4):
        low = rng.uniform(-1, 1, 4)
        high, row = low + rng.uniform(0, 1, 4), rng.normal(size=3)
        exact = exact_minimum(maps, row, low, high, None)
        for offset in (0.05 - exact, -0.05 - exact):

            def check(image, row=row, offset=offset):
                return image if evaluate(steps, image[None])[0] @ row + offset < 0 else None

            box = [values.reshape(2, 2, 1) for values in (low, high)]
            asked = dict(deadline=time.monotonic() + LONG, check=check)
            found = search.decide(*box, row[None], np.array([offset]), **asked)
            assert found.safe == (offset + exact > 0)
            assert found.lower <= exact + offset + SLACK
            decided.append(found.safe)
    assert True in decided and False in decided


@pytest.mark.slow
def test_all_classes_at_once_are_each_of_them():
    (network, decide), answers = searched("conv"), []
    for image, label, epsilon in problems(network, 15):
        wrong = [j for j in range(3) if j != label]
        alone = [
            decide(image, label, epsilon, wrong=[j], seconds=LONG, check=checker(network, label, [j])).safe
            for j in wrong
        ]
        found = decide(image, label, epsilon, wrong=wrong, seconds=LONG, check=checker(network, label, wrong))
        assert found.safe is all(alone)
        answers.append(found.safe)
        if len(answers) >= 5 and True in answers and False in answers:
            break
    assert True in answers and False in answers


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_domains_bound_is_below_all_of_its_images(dtype):
    """Whatever the slopes and the multipliers are; the signs are those of one image, so that no domain is empty."""
    network, rng = random_network(["conv", "add", "max_pooling"], seed=4), np.random.default_rng(0)
    search, steps = BranchAndBound(network, dtype=dtype, root_iterations=1), fold(network, dtype="float64")
    image, epsilon = random_images(1, 3)[0].astype(dtype), 0.2
    function = np.eye(3)[[0]].astype(dtype) - np.eye(3)[[1]].astype(dtype)
    low, high = (np.clip(image + sign * np.asarray(epsilon, dtype), 0, 1) for sign in (-1, 1))
    with_offset = np.append(function, np.zeros((1, 1), dtype), axis=1)
    *_, ends = search._root_bounds([tf.constant(low[None]), tf.constant(high[None])], with_offset)
    total = sum(search._sizes)
    images = rng.uniform(low, high, (4000, *image.shape))
    margins = evaluate(steps, images) @ function[0]
    read = np.concatenate([_values(steps, n, images) for n in search._relus], axis=1)
    tighter = 0
    for trial in range(6):
        few = rng.permutation(total) < 5
        signs = np.where(few, np.sign(read[trial]), 0)
        inside = np.all(signs * read >= 0, axis=1)
        slopes, multipliers = rng.uniform(size=total), rng.uniform(size=total) * 10 ** rng.uniform(-3, -0.5)
        rows = [tf.constant(values[None].astype(dtype)) for values in (signs, slopes, multipliers)]
        assert float(search._lower(ends, with_offset, *rows)[0]) <= margins[inside].min() + SLACK
        if trial < 2:
            signs, slopes, nothing = rows[0], rows[1], 0 * rows[2]
            best, slopes, multipliers, _ = search._ascended(ends, with_offset, signs, slopes, nothing, 10)
            with_them, without = (search._lower(ends, with_offset, signs, slopes, b) for b in (multipliers, nothing))
            assert max(float(best[0]), float(with_them[0])) <= margins[inside].min() + SLACK
            tighter += float(with_them[0]) > float(without[0]) + SLACK
    assert 0 < tighter, "multipliers are seen at work"


def _values(steps, number, images):
    """[N, size], what a ReLU reads."""
    return evaluate(steps[: steps[number].inputs[0] + 1], images).reshape(len(images), -1)


@pytest.mark.slow
def test_out_of_time():
    (network, decide), answers = searched("deep"), []
    for image, label, epsilon in problems(network, 10):
        wrong = [j for j in range(3) if j != label]
        answers.append(decide(image, label, epsilon, wrong=wrong, seconds=0, check=lambda image: None))
    given_up = [found for found in answers if found.safe is None]
    assert given_up and all(found.lower <= 0 and found.counterexample is None for found in given_up)
    assert all(found.domains == 2 for found in answers), "only the whole ball was bounded, once per class"


def test_a_linear_network_has_nothing_to_split():
    image = keras.Input((1, 2, 1))
    network = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(image)))
    network.layers[-1].set_weights([np.array([[1.0, 0.0], [-3.0, 0.0]]), np.array([1.0, 0.0])])
    decide, at = BranchAndBound(network), np.array([0.5, 0.25], "float32").reshape(1, 2, 1)
    # 1 + x_1 - 3 x_2 is 0.75 there, and falls by 4 epsilon.
    for epsilon, safe in ((0.15, True), (0.2, False)):
        found = decide(at, 0, epsilon, wrong=[1], seconds=LONG, check=checker(network, 0, [1]))
        assert found.safe is safe and found.lower == pytest.approx(0.75 - 4 * epsilon, abs=1e-6)


@pytest.mark.slow
def test_bounds_stop_when_time_is_up():
    """Without time, the loops are left at once: what remains is CROWN from intervals, which is sound."""
    network, search = searched("deep")
    steps, rng = fold(network, dtype="float64"), np.random.default_rng(0)
    low = rng.uniform(-1, 1, (2, 2, 1)).astype("float32")
    high, row = low + np.float32(0.3), np.array([[1.0, -1.0, 0.0]])
    folded = fold(network)
    rest, box = past_scaling(folded, Interval(tf.constant(low[None]), tf.constant(high[None])))
    rows = LinearForms(tf.constant(row, tf.float32))
    expected = float(lower_bounds(rest, rows, interval_bounds(rest, box))[0])
    asked = dict(offsets=np.array([-expected - 1e-3]), check=lambda image: None)
    late = search.decide(low, high, row, deadline=time.monotonic() - 1, **asked)
    assert late.safe is None and late.domains == 1 and late.lower == pytest.approx(-1e-3, abs=1e-5)
    in_time = search.decide(low, high, row, deadline=time.monotonic() + LONG, **asked)
    images = rng.uniform(low, high, (2000, *low.shape))
    lowest = (evaluate(steps, images) @ row[0]).min() - expected - 1e-3
    assert in_time.safe is True and 0 < in_time.lower <= lowest + SLACK
