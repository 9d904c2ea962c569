"""The geometry of embeddings: equal to loops of the equations, and to closed forms."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_score

from keras_rcl.measures.embedding_geometry import (
    alignment,
    clean_to_adversarial_distance,
    geometry,
    margin_violations,
    silhouette,
    uniformity,
)


def drawn(seed: int, count: int = 9, classes: int = 3, width: int = 4):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, width))
    return rng.integers(0, classes, count), points / np.linalg.norm(points, axis=1, keepdims=True)


def pairs_of(labels, same: bool):
    return [(i, j) for i, j in itertools.combinations(range(len(labels)), 2) if (labels[i] == labels[j]) == same]


@pytest.mark.parametrize("seed", range(5))
def test_alignment_and_uniformity_are_those_of_a_loop(seed):
    labels, z = drawn(seed)
    apart = [math.dist(z[i], z[j]) for i, j in pairs_of(labels, same=True)]
    for alpha in (1.0, 2.0):
        assert alignment(labels, z, alpha=alpha) == pytest.approx(sum(d**alpha for d in apart) / len(apart))
    potentials = [math.exp(-3.0 * math.dist(a, b) ** 2) for a, b in itertools.combinations(z, 2)]
    assert uniformity(z, t=3.0) == pytest.approx(math.log(sum(potentials) / len(potentials)))


@pytest.mark.parametrize("seed", range(5))
def test_margin_violations_are_those_of_a_loop(seed):
    labels, z = drawn(seed)
    near = [float(z[i] @ z[j]) < 0.5 for i, j in pairs_of(labels, same=True)]
    far = [float(z[i] @ z[j]) > 0.1 for i, j in pairs_of(labels, same=False)]
    assert margin_violations(labels, z) == pytest.approx((sum(near) / len(near), sum(far) / len(far)))


@pytest.mark.parametrize("seed", range(5))
def test_silhouette_is_that_of_a_loop(seed):
    labels, z = drawn(seed)
    values = []
    for i, label in enumerate(labels):
        mean_to = {}
        for other in set(labels):
            members = [j for j in range(len(z)) if labels[j] == other and j != i]
            if members:
                mean_to[other] = sum(math.dist(z[i], z[j]) for j in members) / len(members)
        if label not in mean_to:
            values.append(0.0)
            continue
        a, b = mean_to[label], min(mean for other, mean in mean_to.items() if other != label)
        values.append((b - a) / max(a, b))
    assert silhouette(labels, z) == pytest.approx(sum(values) / len(values))


@pytest.mark.parametrize("classes", [2, 30])
def test_silhouette_is_that_of_scikit_learn(classes):
    """Of points of any length, some of them equal, and classes of one point."""
    rng = np.random.default_rng(classes)
    labels, z = np.concatenate([rng.integers(classes, size=60), [classes]]), rng.normal(size=(61, 5))
    z[:4] = z[4]
    assert silhouette(labels, z) == pytest.approx(silhouette_score(z, labels), abs=1e-8)
    assert silhouette(np.zeros(61), z) is None and silhouette(np.arange(61), z) is None


def test_a_simplex_of_collapsed_classes_has_its_closed_form():
    """K classes, each in one corner of a regular simplex: all cosines between classes are -1 / (K - 1)."""
    count, each = 4, 5
    corners = np.eye(count) - 1 / count
    labels = np.repeat(np.arange(count), each)
    found = geometry(labels, 3.0 * corners[labels])
    squared = 2 + 2 / (count - 1)
    same, pairs = count * math.comb(each, 2), math.comb(count * each, 2)
    assert found["alignment"] == pytest.approx(0, abs=1e-12) and found["silhouette"] == pytest.approx(1)
    assert found["uniformity"] == pytest.approx(
        math.log((same + (pairs - same) * math.exp(-2 * squared)) / pairs), abs=1e-9
    )
    assert found["positive_margin_violations"] == found["negative_margin_violations"] == 0


def test_collapsed_embeddings_show():
    found = geometry(np.array([0, 0, 1, 1]), np.ones((4, 3)))
    assert found["alignment"] == pytest.approx(0) and found["uniformity"] == pytest.approx(0)
    assert found["positive_margin_violations"] == 0 and found["negative_margin_violations"] == 1
    assert found["silhouette"] == 0 and found["clean_to_adversarial_distance"] is None


def test_an_attack_to_the_other_side_of_the_sphere_has_distance_2():
    labels, z = drawn(0)
    assert clean_to_adversarial_distance(z, -z) == pytest.approx(2)
    assert geometry(labels, 5 * z, -0.1 * z)["clean_to_adversarial_distance"] == pytest.approx(2)
    moved = np.roll(z, 1, axis=0)
    loop = [math.dist(a, b) for a, b in zip(z, moved, strict=True)]
    assert clean_to_adversarial_distance(z, moved) == pytest.approx(sum(loop) / len(loop))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_rotation_order_and_length_do_not_matter(seed):
    labels, z = drawn(seed)
    rng = np.random.default_rng(seed + 1)
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    order = rng.permutation(len(z))
    lengths = rng.uniform(0.1, 10, (len(z), 1))
    moved = drawn(seed + 2)[1]
    before, after = geometry(labels, z, moved), geometry(labels[order], ((lengths * z) @ rotation)[order])
    for name, value in after.items():
        if name != "clean_to_adversarial_distance":
            assert value == pytest.approx(before[name], abs=1e-9)


def test_points_that_are_not_finite_have_no_geometry():
    assert set(geometry(np.array([0, 1]), np.array([[np.nan, 0], [1, 0]])).values()) == {None}


def test_what_has_no_pairs_is_none_and_not_nan():
    one = geometry(np.array([0]), np.ones((1, 2)))
    assert set(one.values()) == {None}
    alone = geometry(np.array([0, 1]), np.eye(2))
    assert alone["alignment"] is None and alone["silhouette"] is None and alone["positive_margin_violations"] is None
    assert alone["uniformity"] == pytest.approx(-4) and alone["negative_margin_violations"] == 0
    assert geometry(np.array([0, 0]), np.eye(2))["negative_margin_violations"] is None
