"""L1: the projection to ball and box against bisection, and linear classifiers, whose worst case is a knapsack."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.attacks import craft
from keras_rcl.attacks.fab import to_hyperplane
from keras_rcl.attacks.norms import project, random_start
from keras_rcl.attacks.square import _mass_mover, _tiles
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import (
    BIM,
    FAB,
    FGSM,
    FMN,
    MIFGSM,
    PGD,
    AutoPGD,
    Square,
    describe,
    parse_attack,
    to_cli,
)
from keras_rcl.vocabulary.claim import Claim
from keras_rcl.vocabulary.threat import ThreatModel

SHAPE, PIXELS, CLASSES = (4, 4, 3), 48, 3
RNG = np.random.default_rng(0)
# A third of the pixels on the edge of the box.
IMAGES = np.clip(RNG.uniform(-0.25, 1.25, (24, *SHAPE)), 0, 1).astype("float32")
KERNEL = RNG.normal(size=(PIXELS, CLASSES)).astype("float32")
LABELS = (IMAGES.reshape(-1, PIXELS) @ KERNEL).argmax(axis=1)


def sums(delta):
    return np.abs(np.asarray(delta, "float64")).reshape(len(delta), -1).sum(axis=1)


def bisected(x_adv, x, epsilon):
    """The nearest points of ball and box, by 100 halvings of what each pixel's move is shortened by, in float64."""
    delta = x_adv.astype("float64") - x
    size, room = np.abs(delta), np.where(delta > 0, 1 - x.astype("float64"), x)
    low, high = np.zeros((len(x), 1)), size.max(axis=1, keepdims=True)
    for _ in range(100):
        middle = (low + high) / 2
        longer = np.clip(size - middle, 0, room).sum(axis=1, keepdims=True) > epsilon
        low, high = np.where(longer, middle, low), np.where(longer, high, middle)
    inside = np.minimum(size, room).sum(axis=1, keepdims=True) <= epsilon
    return x + np.sign(delta) * np.clip(size - np.where(inside, 0, high), 0, room)


def test_the_projection_to_ball_and_box_is_that_of_a_bisection():
    """10,000 cases: centers on corners, faces and inside; points near and far, on the center in part, and with ties."""
    rng, count, width = np.random.default_rng(1), 10_000, 30
    x = np.clip(rng.uniform(-0.5, 1.5, (count, width)), 0, 1)
    x[::5] = rng.uniform(0, 1, (2000, width))
    x[1::5] = rng.integers(0, 2, (2000, width))
    x_adv = x + rng.normal(size=x.shape) * 10.0 ** rng.uniform(-3, 0, (count, 1))
    x_adv[2::5] = np.where(rng.random((2000, width)) < 0.5, x[2::5], x_adv[2::5])
    x, x_adv = x.astype("float32"), x_adv.astype("float32")
    x_adv[3::5] = np.round(4 * x_adv[3::5]) / 4
    epsilon = (10.0 ** rng.uniform(-2, 1.5, (count, 1))).astype("float32")
    epsilon[::50] = 0
    compiled = tf.function(lambda x_adv, x, epsilon: project(x_adv, x, epsilon, "l1"), autograph=False)
    found = compiled(*(tf.reshape(values, [count, -1, 1, 1]) for values in (x_adv, x, epsilon))).numpy()[..., 0, 0]
    np.testing.assert_allclose(found, bisected(x_adv, x, epsilon), rtol=0, atol=1e-6)
    assert found.min() >= 0 and found.max() <= 1
    assert (sums(found - x.astype("float64")) <= epsilon[:, 0] + 1e-6).all()
    np.testing.assert_array_equal(found[::50], x[::50])
    # Both constraints bind, one of them, or none.
    changed = np.abs(bisected(x_adv, x, epsilon) - x).sum(axis=1)
    assert 2000 < (changed > epsilon[:, 0] * (1 - 1e-6)).sum() < 8000


def knapsack(x, slope, epsilon):
    """The largest <slope, z - x> of a point z of ball and box, and z: the steepest pixels first, each to its edge."""
    z, left = x.astype("float64").copy(), epsilon
    for pixel in np.argsort(-np.abs(slope)):
        move = min(left, 1 - z[pixel] if slope[pixel] > 0 else z[pixel])
        z[pixel] += move * np.sign(slope[pixel])
        left -= move
    return slope @ (z - x), z


def worst_margins(epsilon):
    """[N], the largest logit margin within ball and box, over all classes to aim at."""
    found = []
    for image, label in zip(IMAGES.reshape(-1, PIXELS).astype("float64"), LABELS, strict=True):
        others = [k for k in range(CLASSES) if k != label]
        slopes = [KERNEL[:, k].astype("float64") - KERNEL[:, label] for k in others]
        found.append(max(image @ slope + knapsack(image, slope, epsilon)[0] for slope in slopes))
    return np.array(found)


def two(images):
    return tf.reshape(images, [-1, PIXELS]) @ KERNEL[:, :2]


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("epsilon", [4.0, 40.0])
@pytest.mark.parametrize(
    "attack", [FGSM(), AutoPGD(num_steps=12), PGD(), BIM(), MIFGSM(num_steps=20)], ids=lambda attack: attack.name
)
def test_the_worst_case_of_a_linear_classifier_is_reached(attack, epsilon):
    attack, labels = dataclasses.replace(attack, norm="l1", epsilon=epsilon), np.arange(24) % 2
    # Nothing fools, so that no attack ends early.
    safe = tf.one_hot(labels, 2)
    run = tf.function(
        lambda x: craft(attack, lambda images: two(images) / 100 + safe, x, labels, seed=1), autograph=False
    )
    found = run(IMAGES).numpy()
    for image, adversarial, label in zip(IMAGES.reshape(-1, PIXELS), found.reshape(-1, PIXELS), labels, strict=True):
        slope = (KERNEL[:, 1 - label] - KERNEL[:, label]).astype("float64")
        best, point = knapsack(image, slope, epsilon)
        assert slope @ (adversarial.astype("float64") - image) == pytest.approx(best, rel=1e-4)
        np.testing.assert_allclose(adversarial, point, atol=1e-4)


def four(images):
    """Three classes and one that is never likely, as targeted DLR needs four."""
    found = tf.reshape(images, [-1, PIXELS]) @ KERNEL
    return tf.concat([found, tf.reduce_min(found, axis=1, keepdims=True) - 20.0], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        FMN(num_steps=200),
        FAB(num_steps=10, num_targets=2),
        FAB(num_steps=10, multi_targeted=False),
        AutoPGD(num_steps=20, loss="dlr_targeted", num_targets=2),
        Square(num_queries=400),
    ],
    ids=lambda attack: attack.label,
)
def test_images_break_where_the_worst_case_is_beyond_the_border(attack):
    epsilon = 1.0
    margins, attack = worst_margins(epsilon), dataclasses.replace(attack, norm="l1", epsilon=epsilon)
    found = tf.function(lambda x: craft(attack, four, x, LABELS), autograph=False)(IMAGES).numpy()
    assert sums(found - IMAGES).max() <= epsilon + 1e-5
    broken = four(found).numpy().argmax(axis=1) != LABELS
    assert 4 < (margins > 0.05).sum() < 20
    assert not broken[margins < -1e-4].any()
    if attack.name != "square":  # which reads no gradient
        assert broken[margins > 0.05].all()


def test_the_step_to_a_hyperplane_moves_the_steepest_pixels_first():
    rng = np.random.default_rng(5)
    normal = rng.normal(size=(24, *SHAPE)).astype("float32")
    normal[::4] = np.round(normal[::4])  # with ties and zeros
    rise = (rng.normal(size=24) * 6).astype("float32")
    steps = to_hyperplane(tf.constant(IMAGES), tf.constant(normal), tf.constant(rise), "l1").numpy().astype("float64")
    for x, slope, wanted, step in zip(*(v.reshape(24, -1) for v in (IMAGES, normal, rise, steps)), strict=True):
        slope, left, length = slope.astype("float64") * np.sign(wanted), abs(float(wanted[0])), 0.0
        for pixel in np.argsort(-np.abs(slope)):
            room = 1.0 - x[pixel] if slope[pixel] > 0 else x[pixel]
            move = min(room, left / abs(slope[pixel])) if slope[pixel] else 0.0
            left, length = left - move * abs(slope[pixel]), length + move
        assert np.abs(step).sum() == pytest.approx(length, rel=1e-5)
        assert slope @ step == pytest.approx(abs(float(wanted[0])) - left, abs=1e-4)
        assert (x + step >= -1e-6).all() and (x + step <= 1 + 1e-6).all()


@pytest.mark.slow
def test_random_starts_are_uniform_in_the_ball():
    """In d dimensions the share of the ball within radius r is r^d, and a coordinate's mean square is
    2 / ((d + 1) (d + 2))."""
    seeds = np.stack([np.arange(1500), np.zeros(1500)], axis=1).astype("int64")
    start = tf.function(lambda x, seeds: random_start(x, 0.25, "l1", seeds), autograph=False)
    found = (start(tf.fill([1500, 2, 2, 1], 0.5), seeds).numpy() - 0.5).reshape(1500, 4) / 0.25
    radius = np.sort(np.abs(found).sum(axis=1))
    assert radius[-1] <= 1 + 1e-5
    # Kolmogorov and Smirnov: a uniform sample stays below 1.95 / sqrt(n) in 999 of 1000 cases.
    assert np.abs(radius**4 - np.arange(1500) / 1500).max() < 1.95 / np.sqrt(1500)
    np.testing.assert_allclose((found**2).mean(axis=0), 2 / 30, atol=0.01)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.04)


@pytest.mark.slow
def test_square_moves_mass_in_l1():
    """One example in NumPy: rings that fall by the fourth power, lengths in L1."""
    side, epsilon = 4, 3.0
    delta = np.random.default_rng(3).normal(size=(10, 10, 2))
    delta *= 2.5 / np.abs(delta).sum()
    numbers = tf.constant([[[1.5 / 7, 2.5 / 7, 3.5 / 7, 5.5 / 7, 0.1, 0.2, 0.9]]])  # corners (1, 2), (3, 5), upright
    moved = _mass_mover(tf.zeros([1, 10, 10, 2]), np.array([side], "int32"), epsilon, "l1")
    found = moved(tf.constant(delta[None], tf.float32), tf.constant([[0]]), numbers)[0].numpy()
    # Half windows of 2 x 4 pixels: at distance d from the middle, which is row 2 and column 3 of each, the sum over
    # the rings j = d ... 2 of 1 / (j + 1)^4.
    rings = [1 + 1 / 16 + 1 / 81, 1 / 16 + 1 / 81, 1 / 81]
    upper = np.array([[rings[max(abs(row - 1), abs(column - 2))] for column in range(4)] for row in range(2)])
    eta = np.concatenate([upper, -upper]) / (2 * upper.sum())
    first, second = np.s_[1:5, 2:6], np.s_[3:7, 5:9]
    union = np.zeros((10, 10), bool)
    union[first] = union[second] = True
    expected = delta.copy()
    for channel, sign in enumerate((-1, 1)):
        old = delta[first][..., channel]
        bulge = sign * eta + old / np.abs(old).sum()
        available = 2 * np.abs(delta[union][:, channel]).sum() + (epsilon - 2.5)
        expected[second][..., channel] = 0
        expected[first][..., channel] = bulge / np.abs(bulge).sum() * available
    np.testing.assert_allclose(found, expected, atol=1e-5)
    tiles = _tiles(tf.zeros([2, 32, 32, 3]), "l1", tf.zeros([2, 2], tf.int64)).numpy()
    np.testing.assert_allclose(np.abs(tiles).sum(axis=(1, 2)), 25, rtol=1e-5)


def test_the_budgets_of_the_published_version():
    """Croce and Hein's `set_version`: members in their order, steps or queries, restarts times targets."""
    members = parse_attack("autoattack:norm=l1,epsilon=12").members
    assert [(m.label, getattr(m, m.steps_field), m.num_rounds) for m in members] == [
        ("APGD-CEx5", 100, 5),
        ("APGD-T", 100, 5),
        ("FAB-T", 100, 9),
        ("Square-5000", 5000, 1),
    ]
    assert {(member.norm, member.epsilon) for member in members} == {("l1", 12.0)}
    assert members[0].stages == ((3.0, 30), (2.0, 30), (1.0, 40))
    assert members[0].num_passes == (103, 103)
    assert AutoPGD(norm="l1", epsilon=1, num_steps=3).stages == ((1.0, 3),)
    assert AutoPGD().stages == ((1.0, 100),)


def test_on_the_command_line():
    attack = parse_attack("pgd-40:norm=l1,epsilon=12")
    assert attack == PGD(num_steps=40, norm="l1", epsilon=12)
    assert describe(attack) == "PGD-40 l1 12"
    assert parse_attack(to_cli(attack)) == attack
    with pytest.raises(InvalidInputError) as caught:
        parse_attack("deepfool:norm=l1")
    assert "norm: Input should be 'linf' or 'l2'" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("epsilon", "said"),
    [
        ("12/255", "epsilon 12/255 in l1 is less than the range of one pixel; hint: .* such as epsilon=12"),
        (8 / 255, "epsilon 8/255 in l1 is less"),
        (49, "epsilon 49 in l1 is larger than 48, the largest distance of two 4x4x3 images"),
    ],
)
def test_radii_in_other_units_are_refused_in_one_line(epsilon, said):
    attack = PGD(norm="l1", epsilon=epsilon)
    with pytest.raises(InvalidInputError, match=said) as caught:
        attack.check_images(SHAPE)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InvalidInputError, match=said):
        craft(attack, two, IMAGES, np.zeros(24, int))


def test_other_radii_are_accepted():
    for epsilon in (0, 0.2, 0.5, "1/2", 1, 12, "255/255", 48):
        PGD(norm="l1", epsilon=epsilon).check_images(SHAPE)
    PGD(norm="l1", epsilon=12, step_size="1/255").check_images(SHAPE)
    with pytest.raises(ValueError, match="epsilon 30600 in l1 is larger than 10000; .*did you mean 120"):
        ThreatModel(norm="l1", epsilon=30600)
    assert Claim(robust_accuracy=0.5, norm="l1", epsilon=12).epsilon == 12
