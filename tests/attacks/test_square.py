"""Square against linear models whose optimum is known, models without a gradient, and hand-made tables."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Round, ascend
from keras_rcl.attacks.square import _hills, _mass_mover, _repaint, _shrinks_at, _sides, _stripes, _tiles, square
from keras_rcl.vocabulary.attacks import PGD, Square

pytestmark = pytest.mark.slow

EPSILON = {"linf": 0.1, "l2": 0.6}
norms = pytest.mark.parametrize("norm", EPSILON)
SHAPE = (10, 10, 2)
PIXELS = int(np.prod(SHAPE))
RNG = np.random.default_rng(0)
# Further from 0 and 1 than any ball's radius, so that the box does not bind.
INNER = RNG.uniform(0.45, 0.55, (12, *SHAPE)).astype("float32")
# A third of the pixels on the edge of the box.
EDGED = np.clip(RNG.uniform(-0.25, 1.25, (12, *SHAPE)), 0, 1).astype("float32")
SEEDS = RNG.integers(0, 2**60, (12, 2))
ZEROS = np.zeros(12, "int32")
LABELS = RNG.integers(0, 3, 12).astype("int32")
KERNEL = RNG.normal(size=(PIXELS, 3))
KERNEL2 = np.stack([KERNEL[:, 0], -KERNEL[:, 0]], axis=1)


def linear(kernel, x):
    """0 at middle grey; in float64, so that an example's logits do not hang on its place in the batch."""
    return tf.cast(tf.reshape(tf.cast(x, tf.float64) - 0.5, [-1, PIXELS]) @ kernel, tf.float32)


def largest_fall(norm):
    """By how much the ball lets the margin of class 0 over class 1 fall: epsilon times the weights' dual norm."""
    difference = KERNEL2[:, 0] - KERNEL2[:, 1]
    return EPSILON[norm] * (np.abs(difference).sum() if norm == "linf" else np.sqrt((difference**2).sum()))


def stubborn(x):
    """Logits of a classifier that is never fooled, with a margin that moves all the same."""
    return linear(KERNEL, x) + 1e3 * tf.one_hot(LABELS, 3)


def run(logits_fn, images, labels, attack, seeds=SEEDS):
    graph = tf.function(lambda x, y, s: square(logits_fn, x, y, attack, Round(s)).images, autograph=False)
    return graph(images, np.asarray(labels, "int32"), seeds).numpy()


def margins(logits_fn, images, labels):
    logits = logits_fn(tf.constant(images)).numpy().astype("float64")
    label = np.eye(logits.shape[1], dtype=bool)[labels]
    return logits[label] - np.where(label, -np.inf, logits).max(axis=1)


def lengths(delta, norm):
    flat = np.abs(np.asarray(delta, "float64")).reshape(len(delta), -1)
    return flat.max(axis=1) if norm == "linf" else np.sqrt((flat**2).sum(axis=1))


def counted(logits_fn):
    """The function, and how often it has been called."""
    calls = tf.Variable(0)

    def counting(x):
        calls.assign_add(1)
        return logits_fn(x)

    return counting, calls


@norms
@pytest.mark.parametrize("clear", [True, False])
def test_fools_a_linear_model_where_it_can_be_fooled_and_nowhere_else(norm, clear):
    """Images at a share of `largest_fall` from the border; l2 is slow on weights that are white noise."""
    fall = largest_fall(norm) * ({"linf": 0.9, "l2": 0.4}[norm] if clear else 1.001)
    ahead = fall - (linear(KERNEL2, INNER)[:, 0] - linear(KERNEL2, INNER)[:, 1])

    def logits(x):
        return linear(KERNEL2, x) + tf.stack([ahead, tf.zeros_like(ahead)], axis=1)

    np.testing.assert_allclose(margins(logits, INNER, ZEROS), fall, rtol=1e-5)
    attack = Square(norm=norm, epsilon=EPSILON[norm], num_queries=1000)
    fooled = margins(logits, run(logits, INNER, ZEROS, attack), ZEROS) < 0
    assert fooled.all() if clear else not fooled.any()


@norms
def test_comes_near_the_optimum(norm):
    def logits(x):
        return linear(KERNEL2, x) + [100.0, 0.0]

    attack = Square(norm=norm, epsilon=EPSILON[norm], num_queries=3000)
    fall = margins(logits, INNER, ZEROS) - margins(logits, run(logits, INNER, ZEROS, attack), ZEROS)
    share = fall / largest_fall(norm)
    assert np.all(share <= 1 + 1e-5)
    assert np.mean(share) > {"linf": 0.99, "l2": 0.6}[norm]


@norms
@pytest.mark.parametrize("images", [INNER, EDGED], ids=["inner", "edged"])
def test_in_the_ball_and_in_the_box_and_not_worse_than_the_start(norm, images):
    attack = Square(norm=norm, epsilon=EPSILON[norm], num_queries=200)
    x_adv = run(stubborn, images, LABELS, attack)
    assert x_adv.dtype == np.float32 and x_adv.shape == images.shape
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    found = lengths(x_adv.astype("float64") - images, norm)
    assert found.max() <= attack.epsilon + 1e-6
    if images is INNER:
        np.testing.assert_allclose(found, attack.epsilon, rtol=1e-5)
        if norm == "linf":
            np.testing.assert_allclose(np.abs(x_adv - images), attack.epsilon, atol=1e-6)
    start = run(stubborn, images, LABELS, Square(norm=norm, epsilon=EPSILON[norm], num_queries=1))
    assert np.all(margins(stubborn, x_adv, LABELS) < margins(stubborn, start, LABELS))
    assert np.all(margins(stubborn, x_adv, LABELS) < margins(stubborn, images, LABELS))


@norms
def test_epsilon_0_returns_the_image(norm):
    attack = Square(norm=norm, epsilon=0.0, num_queries=20)
    assert run(stubborn, EDGED, LABELS, attack).tobytes() == EDGED.tobytes()


@norms
@pytest.mark.parametrize("num_queries", [1, 2, 57])
def test_asks_as_often_as_it_may(norm, num_queries):
    logits, calls = counted(stubborn)
    run(logits, INNER, LABELS, Square(norm=norm, epsilon=EPSILON[norm], num_queries=num_queries))
    assert calls.numpy() == num_queries


@norms
def test_stops_once_every_example_is_fooled_and_leaves_those_that_are(norm):
    """A threshold on a linear score, so that examples fall one after the other."""
    score = KERNEL[:, :1]

    def logits(x):
        rise = linear(score, x) - linear(score, INNER)
        return tf.concat([tf.fill(tf.shape(rise), 0.3 * EPSILON[norm]), rise / 10.0], axis=1)

    attack = Square(norm=norm, epsilon=EPSILON[norm], num_queries=2000)
    counting, calls = counted(logits)
    x_adv = run(counting, INNER, ZEROS, attack)
    assert np.all(margins(logits, x_adv, ZEROS) < 0)
    assert 1 < calls.numpy() < 500

    seen = []

    def recorded(x):
        seen.append(np.array(x))
        return logits(x)

    square(recorded, tf.constant(INNER), tf.constant(ZEROS), attack, Round(tf.constant(SEEDS)))
    assert len(seen) == calls.numpy()
    for example in range(len(INNER)):
        first = next(x[example] for x in seen if margins(logits, x, ZEROS)[example] < 0)
        np.testing.assert_allclose(first, x_adv[example], rtol=0, atol=1e-6)  # a graph's sums round elsewhere


@norms
def test_neither_order_nor_neighbours_matter(norm):
    def logits(x):
        return linear(KERNEL, x)

    labels = np.argmax(logits(INNER), axis=1)
    attack = Square(norm=norm, epsilon=EPSILON[norm] / 40, num_queries=100)
    together = run(logits, INNER, labels, attack)
    fooled = np.argmax(logits(together), axis=1) != labels
    assert fooled.any() and not fooled.all()
    order = np.random.default_rng(1).permutation(len(INNER))
    permuted = run(logits, INNER[order], labels[order], attack, SEEDS[order])
    assert permuted.tobytes() == together[order].tobytes()
    for part in (slice(0, 1), slice(3, 8)):
        assert run(logits, INNER[part], labels[part], attack, SEEDS[part]).tobytes() == together[part].tobytes()


@norms
def test_several_moves_at_once_find_what_one_at_a_time_finds(norm):
    attack = Square(norm=norm, epsilon=EPSILON[norm] / 40, num_queries=100)
    labels = np.argmax(linear(KERNEL, INNER), axis=1).astype("int32")
    expected = run(lambda x: linear(KERNEL, x), INNER, labels, attack)
    logits, calls = counted(lambda x: linear(KERNEL, x))
    for width in (40, 1000):  # 3 and 4 moves of 12 images
        graph = tf.function(
            lambda x, y, s, w=width: square(logits, x, y, attack, Round(s, width=w)).images, autograph=False
        )
        calls.assign(0)
        found = graph(INNER, labels, SEEDS).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert calls.numpy() < 80


@norms
def test_the_seed_decides(norm):
    attack = Square(norm=norm, epsilon=EPSILON[norm], num_queries=30)
    first = run(stubborn, INNER, LABELS, attack)
    assert run(stubborn, INNER, LABELS, attack).tobytes() == first.tobytes()
    for change in ((1, 0), (0, 1), (0, 2**32)):
        other = run(stubborn, INNER, LABELS, attack, SEEDS + np.array(change))
        assert np.any(other != first, axis=(1, 2, 3)).all()


@norms
def test_fools_a_model_that_gives_no_gradient(norm):
    """Pixels rounded to 1/50: a gradient attack sees zeros only."""

    def logits(x):
        return linear(KERNEL, tf.round(x * 50.0) / 50.0 + 0.0 * x)

    labels = np.argmax(logits(INNER), axis=1).astype("int32")
    pgd = PGD(norm=norm, epsilon=EPSILON[norm], num_steps=10, random_start=False)

    def loss_fn(x):
        return -tf.gather(logits(x), labels, batch_dims=1)

    ascended = ascend(loss_fn, tf.constant(INNER), pgd, Round(tf.constant(SEEDS)))
    assert np.all(ascended.zero_gradients == 1) and np.all(np.argmax(logits(ascended.images), axis=1) == labels)
    x_adv = run(logits, INNER, labels, Square(norm=norm, epsilon=EPSILON[norm], num_queries=1000))
    assert np.mean(np.argmax(logits(x_adv), axis=1) != labels) > 0.9


def test_a_tie_that_argmax_gives_to_the_label_fools_nobody():
    """Two equal logits: the first class wins, so label 0 is robust and label 1 is broken."""
    logits, calls = counted(lambda x: tf.zeros([tf.shape(x)[0], 2]))
    attack = Square(num_queries=10)
    run(logits, INNER, ZEROS, attack)
    assert calls.numpy() == 10
    run(logits, INNER, ZEROS + 1, attack)
    assert calls.numpy() == 11


def test_the_weights_are_untouched_and_no_gradient_comes_back():
    kernel = tf.Variable(KERNEL)
    images = tf.constant(INNER)
    with tf.GradientTape() as tape:
        tape.watch(images)
        crafted = square(
            lambda x: linear(kernel, x), images, tf.constant(LABELS), Square(num_queries=5), Round(tf.constant(SEEDS))
        )
        total = tf.reduce_sum(crafted.images)
    assert tape.gradient(total, [kernel, images]) == [None, None]
    assert kernel.numpy().tobytes() == KERNEL.tobytes()
    assert crafted.zero_gradients.numpy().tolist() == [0.0] * len(INNER)


@norms
def test_the_graph_does_not_grow_with_the_queries(norm):
    def nodes(num_queries):
        attack = Square(norm=norm, num_queries=num_queries)
        function = tf.function(
            lambda x, y, s: square(lambda z: linear(KERNEL, z), x, y, attack, Round(s)).images, autograph=False
        )
        graph = function.get_concrete_function(INNER, LABELS, SEEDS).graph.as_graph_def()
        return len(graph.node) + sum(len(part.node_def) for part in graph.library.function)

    assert nodes(10) == nodes(5000)


def test_the_schedule_is_the_papers():
    """First query, from 0, of each share p_init / 2, / 4, ..., / 512; sides at p_init = 0.8."""
    assert _shrinks_at(10_000) == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert _shrinks_at(5000) == [6, 26, 101, 251, 501, 1001, 2001, 3001, 4001]
    assert _shrinks_at(100) == [1, 1, 3, 6, 11, 21, 41, 61, 81]
    sides = [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
    assert _sides(Square(), 32, 32).tolist() == sides
    assert _sides(Square(norm="l2"), 32, 32).tolist() == [max(side, 3) for side in sides]
    assert _sides(Square(), 28, 28).tolist() == [25, 18, 13, 9, 6, 4, 3, 2, 2, 1]
    assert _sides(Square(p_init=1.0), 8, 40).tolist() == [7, 7, 7, 6, 4, 3, 2, 2, 1, 1]
    assert _sides(Square(norm="l2"), 1, 1).tolist() == [1] * 10


def test_stripes_and_windows_of_one_sign():
    """A start of whole columns; a move that paints one whole window, anywhere that it fits, a channel in one sign."""
    start = 0.1 * _stripes(tf.constant(INNER), tf.constant(SEEDS)).numpy()
    assert start.shape == (12, 1, 10, 2) and np.unique(np.abs(start)).tolist() == [np.float32(0.1)]
    assert 0.3 < np.mean(start > 0) < 0.7

    count, side = 2000, 7
    numbers = np.random.default_rng(0).uniform(size=(count, 4)).astype("float32")
    numbers[0, :2], numbers[1, :2] = 0, 1 - 2**-24
    blank = tf.zeros([count, *SHAPE])
    delta = _repaint(blank, lambda x: tf.clip_by_value(x, -0.1, 0.1), tf.constant(side), tf.constant(numbers)).numpy()
    corners = set()
    for change in delta:
        rows, columns = (np.flatnonzero(np.any(change != 0, axis=axes)) for axes in ((1, 2), (0, 2)))
        window = change[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert window.shape == (side, side, 2) and np.all(window == window[0, 0])
        corners.add((rows[0], columns[0]))
    assert corners == {(row, column) for row in range(4) for column in range(4)}


@pytest.mark.parametrize("side", [1, 2, 3, 6, 7])
def test_hills_are_the_papers_eta(side):
    """Equation 2, written out with the paper's indices from 1."""

    def eta(high, wide):
        n = max(high, wide) // 2
        found = np.zeros((high, wide))
        for r in range(1, high + 1):
            for s in range(1, wide + 1):
                last = n - max(abs(r - high // 2 - 1), abs(s - wide // 2 - 1))
                found[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(last + 1))
        return found

    expected = np.concatenate([eta(side // 2, side), -eta(side - side // 2, side)])
    along = tf.range(side)
    np.testing.assert_allclose(_hills(along[:, None], along[None], tf.constant(side), "l2"), expected, atol=1e-6)


def test_tiles_have_length_epsilon_and_both_orientations():
    delta = 0.5 * _tiles(tf.zeros([12, 32, 32, 3]), "l2", tf.constant(SEEDS)).numpy()
    np.testing.assert_allclose(lengths(delta, "l2"), 0.5, rtol=1e-5)
    assert not np.any(delta[:, [0, 31]]) and not np.any(delta[:, :, [0, 31]])
    tiles = delta[:, 1:31, 1:31].reshape(12, 5, 6, 5, 6, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 6, 6)
    kinds = np.unique(np.round(tiles, 6), axis=0)
    assert len(kinds) == 4
    assert {kind.tobytes() for kind in kinds} == {(-kind + 0.0).tobytes() for kind in kinds}
    assert any(np.array_equal(kinds[0].T, kind) for kind in kinds[1:])


def in_numpy(image, center, epsilon, norm, side, numbers):
    """One move of Algorithm 3, window by window; for l1 before the projection."""
    height, width, channels = image.shape
    delta, power = image.astype("float64") - center, {"l2": 2, "l1": 1}[norm]

    def size(values):
        return (np.abs(values) ** power).sum() ** (1 / power)

    def window(down, across):
        row, column = (int(np.float32(p) * np.float32(n - side + 1)) for p, n in ((down, height), (across, width)))
        return np.s_[row : row + side, column : column + side]

    along = tf.range(side)
    eta = _hills(along[:, None], along[None], tf.constant(side), norm).numpy().astype("float64")
    eta = eta if numbers[4] < 0.5 else eta.T
    first, second = window(*numbers[:2]), window(*numbers[2:4])
    union = np.zeros((height, width), bool)
    union[first] = union[second] = True
    unused, moved = epsilon**power - (np.abs(delta) ** power).sum(), delta.copy()
    for channel in range(channels):
        old, sign = delta[first][..., channel], -1 if numbers[5 + channel] < 0.5 else 1
        bulge = sign * eta / size(eta) + (old / size(old) if size(old) else 0)
        mass = (np.abs(delta[union][:, channel]) ** power).sum()
        available = np.sqrt(mass + unused / channels) if norm == "l2" else channels * mass + unused
        moved[second][..., channel] = 0
        moved[first][..., channel] = bulge / size(bulge) * available
    return np.clip(center + moved, 0, 1) if norm == "l2" else center + moved


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize(("shape", "sides"), [((9, 12, 2), [7, 5, 3]), ((6, 5, 1), [5, 3]), ((4, 4, 3), [4])])
def test_mass_moves_from_one_window_to_the_other(shape, sides, norm, known):
    """Windows of several sizes in a batch, apart and one over the other, as large as the image, at a box that binds.

    Where the number of images is unknown, arrays are as large as its largest window; an image alone moves alike.
    """
    rng, count, ahead, epsilon = np.random.default_rng(5), 40, 3, 0.7
    x = np.clip(rng.uniform(-0.2, 1.2, (count, *shape)), 0, 1).astype("float32")
    delta = rng.normal(size=x.shape) * (rng.uniform(size=x.shape) < 0.7)
    delta[:4] = 0
    delta *= 0.6 / np.maximum((np.abs(delta) ** {"l2": 2, "l1": 1}[norm]).sum(axis=(1, 2, 3), keepdims=True), 0.6)
    images = np.clip(x + delta, 0, 1).astype("float32")
    halvings = rng.integers(len(sides), size=(count, ahead)).astype("int32")
    numbers = rng.uniform(size=(count, ahead, 5 + shape[2])).astype("float32")
    batch = [count if known else None]
    specs = [tf.TensorSpec([*batch, *values.shape[1:]], values.dtype) for values in (x, images, halvings, numbers)]
    moved = tf.function(lambda x, *given: _mass_mover(x, np.array(sides, "int32"), epsilon, norm)(*given), specs)
    found = moved(x, images, halvings, numbers).numpy().reshape(count, ahead, *shape)
    for i, m in np.ndindex(count, ahead):
        expected = in_numpy(images[i], x[i], epsilon, norm, sides[halvings[i, m]], numbers[i, m])
        np.testing.assert_allclose(found[i, m], expected, rtol=0, atol=2e-6)
    if not known:
        for i in range(count):
            alone = moved(*(values[i : i + 1] for values in (x, images, halvings, numbers))).numpy()
            assert alone.tobytes() == found[i].tobytes()
