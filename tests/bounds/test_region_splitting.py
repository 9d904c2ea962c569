"""Regions against the exact minimum, their bounds against their own inputs, and the ReLU that divides them."""

import functools
import time

import numpy as np
import pytest
from milp_oracle import affine_maps, exact_minimum
from test_beta_crown import balanced
from test_tightness import SLACK, functions

from keras_rcl.bounds import region_splitting
from keras_rcl.bounds.region_splitting import REGION_STEPS, RegionSplitting
from keras_rcl.folding import fold
from keras_rcl.folding.fold import Dense, Image, ReLU, SShaped, Step
from keras_rcl.folding.numpy_forward import evaluate

pytestmark = pytest.mark.usefixtures("unoptimized")

LONG = 1e5


@functools.cache
def searched():
    """A network of two layers of ReLUs, its steps in float64, and a search on it."""
    network = balanced("deep")
    return network, fold(network, dtype="float64"), RegionSplitting(fold(network), root_iterations=5, iterations=5)


def boxes(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        low = rng.uniform(-1, 1, 4)
        yield low, low + rng.uniform(0, 1, 4), rng.normal(size=3)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_regions_decide_as_the_exact_minimum_does(share, monkeypatch):
    """Any linear function with an offset, over any box; without time for a search, regions alone decide."""
    for name in ("REGION_SHARE", "WHOLE_SHARE"):
        monkeypatch.setattr(region_splitting, name, share)
    network, steps, search = searched()
    maps, decided, domains = affine_maps(functions(network), 4), [], []
    for low, high, row in boxes(6):
        exact = exact_minimum(maps, row, low, high, None)
        for offset in (0.05 - exact, -0.05 - exact):

            def check(image, row=row, offset=offset):
                return image if evaluate(steps, image[None])[0] @ row + offset < 0 else None

            box, question = [values.reshape(2, 2, 1) for values in (low, high)], (row[None], np.array([offset]))
            found = search.decide_in_regions(*box, *question, deadline=time.monotonic() + LONG, check=check)
            assert found.safe == (offset + exact > 0)
            assert found.lower <= exact + offset + SLACK
            decided.append(found.safe)
            domains.append(found.domains)
    assert True in decided and False in decided and max(domains) > 2


def test_bounds_of_a_region_hold_where_its_relus_have_these_signs():
    _, steps, search = searched()
    rng, relus = np.random.default_rng(1), [n for n, step in enumerate(steps) if isinstance(step.operation, ReLU)]
    narrower = 0
    for low, high, row in boxes(3):
        low, high = low.reshape(2, 2, 1).astype("float32"), high.reshape(2, 2, 1).astype("float32")
        box, asked = search._question(low, high, row[None], np.array([0.5]))
        around = search._root(box, asked, np.inf)[-1]
        points = rng.uniform(low, high, (4000, 2, 2, 1))
        values = {n: np.concatenate([evaluate(steps[: n + 1], points)]) for n in search._read}
        inputs = np.concatenate([values[steps[n].inputs[0]].reshape(len(points), -1) for n in relus], axis=1)
        crossing = np.flatnonzero((inputs.min(axis=0) < 0) & (inputs.max(axis=0) > 0))
        for relu, sign in ((crossing[0], 1), (crossing[0], -1), (crossing[-1], 1)):
            signs = np.zeros((1, inputs.shape[1]), "float32")
            signs[0, relu] = sign
            bounds, *_, known = search._bound_region(around, asked, signs, -1, REGION_STEPS, np.inf)
            inside = inputs[:, relu] * sign >= 0
            outputs = evaluate(steps, points[inside]) @ row + 0.5
            assert bounds.numpy()[0] <= outputs.min() + SLACK
            for number, ends, whole in zip(search._read, known[1:], around[1:], strict=True):
                lower, upper = (end.numpy()[0] for end in ends)
                assert np.all(values[number][inside] >= lower - SLACK) and np.all(
                    values[number][inside] <= upper + SLACK
                )
                narrower += np.any(upper - lower < (whole[1] - whole[0]).numpy()[0] - 1e-3)
    assert narrower > 3


def test_the_share_of_a_relu_is_its_part_of_the_gap_of_the_bound():
    """Two inputs in [-1, 1], z = W x + b, the function <a, relu(z)>: it loses max(-a, 0) u (-l) / (u - l)."""
    weights, bias = np.array([[1.0, 2.0, -1.0, 0.5], [0.5, -1.0, 1.0, 0.25]]), np.array([0.5, 0.0, 1.0, 2.0])
    a = np.array([-1.0, -2.0, 1.0, -3.0])
    steps = [
        Step(Image(), (), (2,), "image"),
        Step(Dense(weights.astype("float32"), bias.astype("float32")), (0,), (4,), "hidden"),
        Step(ReLU(), (1,), (4,), "relu"),
        Step(Dense(a[:, None].astype("float32"), np.zeros(1, "float32")), (2,), (1,), "output"),
    ]
    search = RegionSplitting(steps)
    box, asked = search._question(np.full(2, -1.0), np.ones(2), np.ones((1, 1)), None)
    *state, _, known = search._root(box, asked, np.inf)
    radius = np.abs(weights).sum(axis=0)
    low, high = bias - radius, bias + radius
    costs = np.where((low < 0) & (high > 0), np.maximum(-a, 0) * high * -low / (high - low), 0)
    assert np.count_nonzero(costs) == 2  # the third has a > 0, the fourth is positive
    np.testing.assert_allclose(search._shares(known, asked, *state[1:]), costs / costs.sum(), rtol=1e-4)


def test_a_network_without_relus_ends_at_once():
    """sigmoid(x) - sigmoid(x) over [-1, 1] is 0: above -1 by any lines, above -0.001 only by splits of curves."""
    steps = [
        Step(Image(), (), (1,), "image"),
        Step(Dense(np.ones((1, 2), "float32"), np.zeros(2, "float32")), (0,), (2,), "hidden"),
        Step(SShaped("sigmoid"), (1,), (2,), "sigmoid"),
        Step(Dense(np.array([[1.0], [-1.0]], "float32"), np.zeros(1, "float32")), (2,), (1,), "output"),
    ]
    search, begun = RegionSplitting(steps), time.monotonic()
    asked = dict(deadline=begun + LONG, check=lambda image: None)
    for offset, safe in ((1.0, True), (0.001, None)):
        found = search.decide_in_regions(-np.ones(1), np.ones(1), np.ones((1, 1)), np.array([offset]), **asked)
        assert found.safe is safe and found.lower <= offset
