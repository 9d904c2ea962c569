"""Networks whose nearest adversarial image is known in closed form: every attack finds it, to within 5 %.

`linear` and `convex`: the label's margin over the other classes is the least of affine functions of the image,

    z_y - max_{j != y} z_j = -max_p (a_p . x + c_p),

and the image falls as soon as one piece p is positive. Its distance to the border is that to the nearest hyperplane,
with the dual norm q (1 for linf, 2 for l2):

    d(x) = min_p -(a_p . x + c_p) / ||a_p||_q

A linear model has a piece a_j = w_j - w_y for each other class j. The convex one has z_0 = 0 and
z_j = sum_h relu(v_h . x + c_h) - tau over hidden units of class j's own. As relu(s) = max(s, 0), that is the greatest
of the sums over subsets of the units: a piece for each subset of each class.

`boxed`: linear, where the box binds. For linf, piece p takes the r at which sum_i |a_pi| min(r, room_i) is what it
lacks.

`disjoint`: the other way round, z_0 = sum_h alpha_h relu(v_h . x + c_h) and z_j constant, with pixels of each unit's
own. With m_h = v_h . x + c_h > 0, n_h = ||v_h||_q and steps of size rho_h against v_h, the image falls where
sum_h alpha_h relu(m_h - rho_h n_h) is max_j z_j. A unit takes no more than m_h / n_h, so that

    linf:  rho_h = r                                     d = r
    l2:    rho_h = min(lambda alpha_h n_h, m_h / n_h)    d = sqrt(sum_h rho_h^2)

with the one r or lambda that gets there; the sum is piecewise linear in it.

A point between x and the point nearest to x of another class has that same nearest point. So images are brought to any
distance that they exceed: here to epsilon / 1.05, where they fall, and to epsilon / 0.95, where nothing can fool.
"""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linprog, minimize

from keras_rcl.attacks import carlini_wagner, craft, fab
from keras_rcl.attacks.gradient_ascent import Round
from keras_rcl.vocabulary.attacks import BIM, FAB, FGSM, MIFGSM, PGD, AutoAttack, AutoPGD, CarliniWagner, RayS, Square

SIDE, CLASSES, UNITS = 8, 4, 9
EPSILON = {"linf": 0.04, "l2": 0.3}
DUAL = {"linf": 1, "l2": 2}
norms = pytest.mark.parametrize("norm", EPSILON)


def length(step, norm):
    return np.linalg.norm(step, np.inf if norm == "linf" else 2, axis=-1)


def steepest(normal, norm):
    """The step of length 1 that lifts <normal, x> the most."""
    return np.sign(normal) if norm == "linf" else normal / np.linalg.norm(normal)


@dataclasses.dataclass
class Network:
    """relu(x @ kernel + bias) @ output + constants, or without a kernel x @ output + constants, in float64."""

    output: np.ndarray
    constants: np.ndarray
    kernel: np.ndarray | None = None
    bias: np.ndarray | None = None

    def __call__(self, x):
        return logits(x, *self.weights)

    @functools.cached_property
    def weights(self):
        """Kernel, bias, output and constants of UNITS hidden units, so that networks share a graph.

        A linear network has two for each class, as z = relu(z) - relu(-z).
        """
        kernel, bias, output = self.kernel, self.bias, self.output
        if kernel is None:
            kernel, bias = np.c_[output, -output], np.zeros(2 * len(output.T))
            output = np.r_[np.eye(len(output.T)), -np.eye(len(output.T))]
        silent = UNITS - len(bias)
        padded = np.pad(kernel, [(0, 0), (0, silent)]), np.pad(bias, (0, silent)), np.pad(output, [(0, silent), (0, 0)])
        return *padded, self.constants


def logits(x, kernel, bias, output, constants):
    """Those of a `Network` with these weights."""
    x = tf.cast(tf.reshape(x, [tf.shape(x)[0], -1]), tf.float64)
    return tf.cast(tf.nn.relu(x @ kernel + bias) @ output + constants, tf.float32)


class Affine(Network):
    """A margin that is the least of affine functions."""

    def pieces(self, label):
        """Normals [P, D] and offsets [P]."""
        others = [j for j in range(len(self.constants)) if j != label]
        if self.kernel is None:
            return (
                (self.output[:, others] - self.output[:, [label]]).T,
                self.constants[others] - self.constants[label],
            )
        assert label == 0
        normals, offsets = [], []
        for j in others:
            units = np.flatnonzero(self.output[:, j])
            for count in range(len(units) + 1):
                for chosen in map(list, itertools.combinations(units, count)):
                    normals.append(self.kernel[:, chosen].sum(axis=1))
                    offsets.append(self.bias[chosen].sum() + self.constants[j])
        return np.array(normals), np.array(offsets)

    def nearest(self, x, label, norm):
        """The nearest point [D] of another class, and its distance."""
        normals, offsets = self.pieces(label)
        with np.errstate(divide="ignore"):  # the empty subset
            distances = -(normals @ x + offsets) / np.linalg.norm(normals, DUAL[norm], axis=1)
        best = np.argmin(distances)
        return x + distances[best] * steepest(normals[best], norm), distances[best]


class Boxed(Affine):
    """Within the box, for linf: in the order in which pixels reach it, each stretch gains as much as it is long."""

    def nearest(self, x, label, norm):
        candidates = []
        for normal, offset in zip(*self.pieces(label), strict=True):
            room = np.where(normal > 0, 1 - x, x)
            rooms = np.sort(room)
            gains = [np.abs(normal) @ np.minimum(r, room) for r in rooms]
            lack = -(normal @ x + offset)
            distance = np.interp(lack, [0, *gains], [0, *rooms], right=np.inf)
            candidates.append((distance, np.clip(x + distance * np.sign(normal), 0, 1)))
        distance, point = min(candidates, key=lambda candidate: candidate[0])
        return point, distance


class Disjoint(Network):
    """The logit of class 0 is a sum over hidden units with pixels of their own; the others are constants."""

    def nearest(self, x, label, norm):
        m, n, alpha = x @ self.kernel + self.bias, np.linalg.norm(self.kernel, DUAL[norm], axis=0), self.output[:, 0]
        assert label == 0 and np.all(m > 0)
        speed = np.ones_like(n) if norm == "linf" else alpha * n
        # The multipliers r or lambda from which on a unit gives nothing more, and what the sum is there.
        ends = np.sort(m / n / speed)[::-1]
        sums = [alpha @ np.maximum(m - end * speed * n, 0) for end in ends]
        multiplier = np.interp(self.constants.max(), [*sums, alpha @ m], [*ends, 0])
        steps = multiplier * speed if norm == "linf" else np.minimum(multiplier * speed, m / n)
        step = -sum(rho * steepest(v, norm) for rho, v in zip(steps, self.kernel.T, strict=True))
        return x + step, length(step, norm)


def linear(rng, pixels, classes=CLASSES, cls=Affine):
    """Random weights, and a draw of all classes at middle grey."""
    output = rng.normal(size=(pixels, classes))
    return cls(output, -0.5 * output.sum(axis=0))


def convex(rng, pixels, classes=CLASSES, units=3, templates=None, spread=0.5):
    """Of each class but 0 a few units that look for much the same; at middle grey the first is active alone."""
    templates = rng.normal(size=(pixels, classes - 1)) if templates is None else templates
    kernel = np.repeat(templates, units, axis=1)
    kernel = kernel + spread * rng.normal(size=kernel.shape)
    bias = np.tile([3.0, *-np.arange(1.0, units)], classes - 1) - 0.5 * kernel.sum(axis=0)
    output = np.eye(classes)[np.repeat(np.arange(1, classes), units)]
    return Affine(output, np.r_[0.0, np.full(classes - 1, -12.0)], kernel, bias)


def disjoint(rng, pixels, classes=CLASSES, units=4):
    """2 from each unit at middle grey, of which the sum has to lose more than half."""
    kernel = rng.normal(size=(pixels, units)) * np.eye(units)[np.arange(pixels) * units // pixels]
    output = np.zeros((units, classes))
    output[:, 0] = np.linspace(1.0, 2.0, units)
    constants = np.r_[0.0, 0.8 * output.sum() - np.arange(classes - 1.0)]
    return Disjoint(output, constants, kernel, 2.0 - 0.5 * kernel.sum(axis=0))


def hills():
    """[D, 3]: templates of one window each, shaped as Square's l2 moves are. From windows it builds any linf step."""
    found = np.zeros((SIDE, SIDE, 3))
    for j, (row, column) in enumerate([(0, 0), (1, 4), (5, 2)]):
        found[row : row + 3, column : column + 3, j] = [[1, 5, 1], [-1, -1, -1], [-1, -5, -1]]
    return found.reshape(-1, 3)


def linear_hills(rng, pixels):
    return Affine(np.c_[np.zeros(pixels), hills()], np.r_[3.0, np.zeros(3)])


def convex_hills(rng, pixels):
    return convex(rng, pixels, templates=hills(), spread=0.0)


MODELS = {
    "linear": linear,
    "boxed": functools.partial(linear, cls=Boxed),
    "convex": convex,
    "disjoint": disjoint,
    "linear hills": linear_hills,
    "convex hills": convex_hills,
}


@functools.cache
def problem(name, norm):
    """(network, images, labels, the images' distances): half of them at epsilon / 1.05, half at epsilon / 0.95.

    They come from three times as far. Between two classes equally near, a gradient attack may follow the wrong one.
    """
    rng = np.random.default_rng(0)
    network = MODELS[name](rng, SIDE**2)
    images, labels, distances = [], [], []
    while len(images) < 16:
        x = rng.choice([0, 0.02, 0.5, 0.98, 1], SIDE**2) if name == "boxed" else rng.uniform(0.4, 0.6, SIDE**2)
        label = int(np.argmax(network(x[None])))
        if label and name not in ("linear", "boxed"):
            continue
        point, distance = network.nearest(x, label, norm)
        for _ in range(40):
            if distance >= 3 * EPSILON[norm]:
                break
            x = np.clip(x - (point - x) * EPSILON[norm] / 2 / distance, 0, 1)
            point, distance = network.nearest(x, label, norm)
        if distance < 3 * EPSILON[norm] or (name != "boxed" and (point.min() < 0 or point.max() > 1)):
            continue
        for ratio in (1.05, 0.95):
            image = (point + (x - point) * EPSILON[norm] / ratio / distance).astype("float32")
            images.append(image.reshape(SIDE, SIDE, 1))
            labels.append(label)
            distances.append(network.nearest(image.astype("float64"), label, norm)[1])
    np.testing.assert_allclose(distances, EPSILON[norm] / np.tile([1.05, 0.95], 8), rtol=1e-4)
    assert np.min(images) >= 0 and np.max(images) <= 1
    return network, np.array(images), np.array(labels), np.array(distances)


# The closed forms


def by_pattern(network, x, label, norm):
    """The least distance over all activation patterns, within each of which the network is affine."""
    hidden, best = len(network.bias), np.inf
    for pattern in itertools.product([0, 1], repeat=hidden):
        sign = 1 - 2 * np.array(pattern)
        weights = network.kernel * pattern @ network.output
        constants = network.bias * pattern @ network.output + network.constants
        for j in set(range(len(constants))) - {label}:
            # rows @ x' <= limits: each unit keeps its sign, and class j is ahead.
            rows = np.vstack([(network.kernel * sign).T, weights[:, label] - weights[:, j]])
            limits = np.r_[-network.bias * sign, constants[j] - constants[label]]
            best = min(best, least(x, rows, limits, norm))
    return best


def least(x, rows, limits, norm):
    """min ||x' - x|| over rows @ x' <= limits, infinity where there is none."""
    pixels = len(x)
    eye, ones = np.eye(pixels), np.ones((pixels, 1))
    solved = linprog(
        np.r_[np.zeros(pixels), 1],
        A_ub=np.block([[rows, np.zeros((len(rows), 1))], [eye, -ones], [-eye, -ones]]),
        b_ub=np.r_[limits, x, -x],
        bounds=[(None, None)] * (pixels + 1),
    )
    if solved.status != 0 or norm == "linf":
        return solved.fun if solved.status == 0 else np.inf
    solved = minimize(
        lambda moved: ((moved - x) ** 2).sum(),
        solved.x[:-1],
        jac=lambda moved: 2 * (moved - x),
        constraints={"type": "ineq", "fun": lambda moved: limits - rows @ moved, "jac": lambda moved: -rows},
        options={"ftol": 1e-12},
    )
    assert solved.success and np.all(rows @ solved.x <= limits + 1e-6)
    return np.sqrt(solved.fun)


@norms
@pytest.mark.parametrize("name, units", [("convex", 2), ("disjoint", 3)])
def test_the_closed_form_is_the_least_over_all_activation_patterns(name, units, norm):
    rng = np.random.default_rng(1)
    network = MODELS[name](rng, 6, classes=3, units=units)
    kinked = 0
    for x in rng.uniform(0.35, 0.65, (3, 6)):
        assert np.argmax(network(x[None])) == 0
        point, distance = network.nearest(x, 0, norm)
        assert distance == pytest.approx(by_pattern(network, x, 0, norm), rel=1e-5)
        assert length(point - x, norm) == pytest.approx(distance)
        np.testing.assert_allclose(*np.sort(network(point[None])[0])[:-3:-1], atol=1e-5)
        here, there = (z @ network.kernel + network.bias > 1e-9 for z in (x, point))
        kinked += np.any(here != there)
    assert kinked


def test_the_box_by_linear_programming():
    network, images, labels, distances = problem("boxed", "linf")
    held = []
    for image, label, distance in list(zip(images, labels, distances, strict=True))[:4]:
        x = image.reshape(-1).astype("float64")
        walls = np.vstack([np.eye(len(x)), -np.eye(len(x))]), np.r_[np.ones(len(x)), np.zeros(len(x))]
        expected = min(
            least(x, np.vstack([-normal, walls[0]]), np.r_[offset, walls[1]], "linf")
            for normal, offset in zip(*network.pieces(label), strict=True)
        )
        assert distance == pytest.approx(expected, rel=1e-6)
        point = network.nearest(x, label, "linf")[0]
        held.append(np.mean(np.abs(point - x) < 0.9 * distance))
    assert np.mean(held) > 0.2


# The attacks


def compiled(attacked):
    """A function of a network, images and labels from `attacked(logits_fn, x, y)`, with one graph for all networks."""
    graph = tf.function(lambda x, y, weights: attacked(lambda images: logits(images, *weights), x, y), autograph=False)
    return lambda network, x, y: [part.numpy() for part in tf.nest.flatten(graph(x, y, network.weights))]


BUDGET = {
    "bim": BIM(num_steps=20),
    "pgd": PGD(num_steps=40),
    "pgd logit_margin": PGD(num_steps=40, loss="logit_margin"),
    "apgd-ce": AutoPGD(),
    "apgd-dlr": AutoPGD(loss="dlr"),
    "apgd-t": AutoPGD(loss="dlr_targeted"),
    "square": Square(),
    "autoattack": AutoAttack(),
    "pgd dlr": PGD(num_steps=40, loss="dlr"),
    "fgsm": FGSM(),
    "mifgsm": MIFGSM(),
    "rays": RayS(num_queries=2000, tolerance=1e-5),
}
ONE_STEP = {("linear", "linf"), ("linear", "l2"), ("boxed", "linf"), ("disjoint", "linf")}
"""Where the gradient's direction, or all that the norm keeps of it, is the same all the way."""


CASES = [
    (name, norm, attack)
    for name, norm, attack in itertools.product(MODELS, EPSILON, BUDGET)
    if (name, norm) != ("boxed", "l2")
    # Steps of epsilon / num_steps reach the border only where all go the same way.
    and (attack not in ("fgsm", "mifgsm") or (name, norm) in ONE_STEP)
    and (attack != "rays" or (name, norm) == ("linear", "linf"))
    # Slow, and its members are everywhere.
    and (attack != "autoattack" or (name, norm) == ("linear", "linf"))
    # Square's l2 moves are hills; of white noise they build 0.6 of the best step, as in `test_square`.
    and ("hills" in name) == (norm == "l2" and attack == "square")
]


@functools.cache
def crafting(attack):
    return compiled(functools.partial(craft, attack, seed=1))


def broken(name, norm, attack):
    network, images, labels, _ = problem(name, norm)
    attack = dataclasses.replace(attack, norm=norm).with_epsilon(EPSILON[norm])
    [x_adv] = crafting(attack)(network, images, labels)
    return np.argmax(network(x_adv), axis=1) != labels


@pytest.mark.slow_after(5)
@pytest.mark.parametrize("name, norm, attack", CASES)
def test_succeeds_exactly_where_success_is_possible(name, norm, attack):
    """All images at epsilon / 1.05 fall, and none at epsilon / 0.95."""
    assert broken(name, norm, BUDGET[attack]).tolist() == [True, False] * 8


def test_one_step_does_not_suffice_everywhere():
    """What a weaker attack than the rest gets: some of the images."""
    assert 0 < broken("disjoint", "l2", FGSM()).sum() < 8


@pytest.mark.parametrize(
    "name, norm", [*itertools.product(["linear", "convex", "disjoint"], EPSILON), ("boxed", "linf")]
)
def test_fab_is_within_5_percent(name, norm):
    network, images, labels, expected = problem(name, norm)
    check(network, images, labels, expected, fab_of(norm)(network, images, labels.astype("int32")), norm)


@functools.cache
def fab_of(norm):
    """Images and distances of each round of FAB, by turns."""
    attack = FAB(norm=norm).for_classes(CLASSES)

    def nearest(logits_fn, x, y):
        rounds = [Round(tf.zeros([x.shape[0], 2], tf.int64), number) for number in range(attack.num_rounds)]
        return [fab.minimal_perturbation(logits_fn, x, y, attack, round)[:2] for round in rounds]

    return compiled(nearest)


@pytest.mark.parametrize("name", ["linear", "convex", "disjoint"])
def test_carlini_wagner_is_within_5_percent(name):
    network, images, labels, expected = problem(name, "l2")
    check(network, images, labels, expected, carlini_wagner_of()(network, images, labels.astype("int32")), "l2")


@functools.cache
def carlini_wagner_of():
    """The nearest images and their distances."""
    return compiled(lambda *given: carlini_wagner.minimal_perturbation(*given, CarliniWagner())[:2])


def check(network, images, labels, expected, found, norm):
    """`found`: images and distances by turns. Each is that of its image, and the least is near the least possible."""
    for closest, distance in zip(found[::2], found[1::2], strict=True):
        fooled = np.isfinite(distance)
        np.testing.assert_array_equal(np.argmax(network(closest), axis=1) != labels, fooled)
        true = length((closest.astype("float64") - images).reshape(len(images), -1), norm)
        np.testing.assert_allclose(true[fooled], distance[fooled], rtol=1e-5)
    ratio = np.min(found[1::2], axis=0) / expected
    assert np.all(ratio > 1 - 1e-3) and np.all(ratio <= 1.05)
