"""Square: random search with square patches, from the logits alone."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted, Round
from keras_rcl.attacks.norms import Radius, choose, projection, steepest_step, uniform
from keras_rcl.attacks.surrogates import fools, logit_margin
from keras_rcl.vocabulary.attacks import Square
from keras_rcl.vocabulary.threat import Norm

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Numbers of queries, of 10,000, after which the share of pixels in a patch is halved."""

SMALLEST_SIDE = {"linf": 1, "l2": 3, "l1": 3}
DECAY = {"l2": 2, "l1": 4}
"""The power at which the rings of `_hills` fall: 1 / j^2 in the paper, 1 / j^4 in the version for l1."""


def square(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: Square, round: Round) -> Crafted:
    """One round of Square, a random search that minimises the logit margin L.

        x_1 = stripes (linf) or tiles (l2, l1);   x_{q+1} = z if L(z) < L(x_q) or z fools, else x_q,   z = moved(x_q)
        L(x) = f_y(x) - max_{k != y} f_k(x)

    A move changes one square window, of a side that shrinks from query to query, at a random place of each example
    (Algorithm 2 for linf, 3 for l2 and, with lengths in L1, for l1). An example that fools the classifier stays as it
    is; the loop ends once all do.
    Each example takes at most `num_queries` queries, of which x_1 is the first.

    Most moves fail. So the model is asked for the next moves of an example from the same x_q at once, as many as
    `round.width` has room for. The first of them that is accepted counts, and those after it are drawn again from
    there: what is found is the same as one query at a time finds.

    Args:
        logits_fn: [N, H, W, C] -> [N, K] float32; it need not be differentiable.
        x: float32 images in [0, 1], [N, H, W, C].
        labels: [N], the true classes.
        attack: the hyper-parameters.
        round: seeds of the start and of the windows, and its `width`.

    Returns:
        The last image that was accepted, and 0 for the share of zero gradients, as none was taken.

    References:
        Andriushchenko et al. 2020, "Square attack: a query-efficient black-box adversarial attack via random search"
        (arXiv:1912.00049), Algorithm 1; Croce and Hein 2021, "Mind the box" (l1).
    """
    height, width, channels = x.shape[1:].as_list()
    sides = tf.constant(_sides(attack, height, width))
    shrinks_at = tf.constant(_shrinks_at(attack.num_queries))
    epsilon = round.epsilon(attack)
    ahead = _moves_at_once(round.width, x)
    centers, of_rows = (tf.repeat(values, ahead, axis=0) for values in (x, labels))
    nearest = projection(centers, epsilon, attack.norm)
    # The numbers of all queries are drawn at once. `start` uses the seeds themselves.
    numbers = uniform([attack.num_queries - 1, {"linf": 2, "l2": 5, "l1": 5}[attack.norm] + channels], round.seeds + 1)

    def moved(images, side, drawn):
        if attack.norm == "linf":
            return _repaint(images, nearest, side, drawn)
        return nearest(centers + _move_mass(images - centers, epsilon, attack.norm, side, drawn))

    def loss_of(images, labels):
        """The margin [N], and -inf where the image fools, so that nothing is lower."""
        logits = logits_fn(images)
        fooled = fools(logits, labels)
        return tf.where(fooled, -np.inf, -logit_margin(labels, logits))

    def ask(query, images, loss):
        queries = query[:, None] + tf.range(ahead)
        side = tf.gather(sides, tf.reduce_sum(tf.cast(queries[..., None] >= shrinks_at, tf.int32), axis=2))
        drawn = tf.gather(numbers, tf.minimum(queries, attack.num_queries - 1) - 1, batch_dims=1)
        drawn = tf.reshape(drawn, [-1, drawn.shape[2]])
        candidates = moved(tf.repeat(images, ahead, axis=0), tf.reshape(side, [-1]), drawn)
        losses = tf.reshape(loss_of(candidates, of_rows), tf.shape(queries))
        better = (losses < loss[:, None]) & (queries < attack.num_queries)
        first, accepted = tf.argmax(better, axis=1, output_type=tf.int32), tf.reduce_any(better, axis=1)
        found = tf.gather(candidates, first + ahead * tf.range(tf.shape(first)[0]))
        loss = tf.where(accepted, tf.gather(losses, first, batch_dims=1), loss)
        return query + tf.where(accepted, first + 1, ahead), choose(accepted, found, images), loss

    start = _stripes(x, round.seeds) if attack.norm == "linf" else _tiles(x, attack.norm, round.seeds)
    start = x + (start if attack.norm == "l1" else epsilon * start)
    images = projection(x, epsilon, attack.norm)(start)
    _, images, _ = tf.while_loop(
        lambda query, images, loss: tf.reduce_any((query < attack.num_queries) & (loss > -np.inf)),
        ask,
        (tf.ones_like(labels), images, loss_of(images, labels)),
        maximum_iterations=attack.num_queries - 1,
    )
    return Crafted(tf.stop_gradient(images), tf.zeros_like(x[:, 0, 0, 0]))


MOST_AT_ONCE = 4
"""The largest number of moves of one example at once: the more, the more of them are asked for in vain."""


def _moves_at_once(width: int, x: tf.Tensor) -> tf.Tensor | int:
    """How many moves of each of the examples x are images enough for a model that is given `width` at once."""
    if x.shape[0] is not None:
        return min(max(1, width // x.shape[0]), MOST_AT_ONCE)
    return tf.clip_by_value(width // tf.shape(x)[0], 1, MOST_AT_ONCE)


def _shrinks_at(num_queries: int) -> list[int]:
    """The queries, from 0, at which the share is halved again: the first q with q * 10,000 // num_queries > i."""
    return [-(-(after + 1) * num_queries // 10_000) for after in HALVINGS]


def _sides(attack: Square, height: int, width: int) -> np.ndarray:
    """The window's side after 0 to 9 halvings of p: the integer nearest to sqrt(p H W) that leaves it room to move."""
    shares = attack.p_init / 2.0 ** np.arange(len(HALVINGS) + 1)
    sides = np.maximum(np.rint(np.sqrt(shares * height * width)), SMALLEST_SIDE[attack.norm])
    return np.clip(sides, 1, max(1, min(height, width) - 1)).astype("int32")


def _stripes(x: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """-1 or 1, one sign per column and channel: [N, 1, W, C]."""
    return _signs(uniform([1, *x.shape[2:]], seeds))


def _repaint(images: tf.Tensor, nearest: Callable, side: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Algorithm 2: the window moves to one end of ball and box, the same end within a channel.

    The paper adds -2 epsilon or 2 epsilon and projects. Adding -2 or 2 gives the same from within ball and box, as the
    box is narrower. A window is the product of its rows and its columns, which are multiplied last, once per entry.

    Args:
        images: [N, H, W, C], each within ball and box.
        nearest: `projection` to ball and box.
        side: the window's, [N] or a scalar.
        numbers: [N, 2 + C] in [0, 1): the window's place, and an end per channel.
    """
    _, _, width, channels = images.shape
    side = tf.reshape(side, [-1, 1])
    rows, columns = (tf.cast(_inside(offsets, side), tf.float32) for offsets in _offsets(images, side, numbers[:, :2]))
    ends = 2.0 * columns[:, :, None] * _signs(numbers[:, None, 2:])
    change = rows[:, :, None] * tf.reshape(ends, [-1, 1, width * channels])
    return nearest(images + tf.reshape(change, tf.shape(images)))


def _tiles(x: tf.Tensor, norm: Norm, seeds: tf.Tensor) -> tf.Tensor:
    """Tiles of a fifth of the image side, each `_hills`, upright or lying, a sign per channel.

    For l2 all of them have length 1; for l1 each one of each channel, so that the projection to the ball leaves peaks.
    """
    _, height, width, channels = x.shape
    side = max(1, min(height, width) // 5)
    down, across = height // side, width // side
    numbers = uniform([down, 1, across, 1, 1 + channels], seeds)
    along = tf.range(side)
    hills = _hills(along[:, None], along[None, :], side, norm)[:, None, :, None]
    if norm == "l1":
        hills /= tf.reduce_sum(tf.abs(hills))
    tiles = tf.where(numbers[..., :1] < 0.5, hills, tf.transpose(hills, [2, 1, 0, 3])) * _signs(numbers[..., 1:])
    tiles = tf.reshape(tiles, [-1, down * side, across * side, channels])
    tiles = tf.image.pad_to_bounding_box(tiles, height % side // 2, width % side // 2, height, width)
    return tiles if norm == "l1" else steepest_step(tiles, "l2")


def _move_mass(delta: tf.Tensor, epsilon: Radius, norm: Norm, side: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Algorithm 3: the change in a second window moves into a first one, where it bulges. In each channel c

        b_c = +-eta / ||eta|| + delta_{1,c} / ||delta_{1,c}||
        delta_{1,c} = b_c / ||b_c|| sqrt(||delta_{1 or 2,c}||^2 + (epsilon^2 - ||delta||^2) / C),   delta_{2,c} = 0

    so that the length is epsilon again; eta are `_hills`. For l1, with lengths in L1,

        delta_{1,c} = b_c / ||b_c|| (C ||delta_{1 or 2,c}|| + epsilon - ||delta||),   delta_{2,c} = 0

    which may be longer: the projection to the ball takes the smallest changes away.

    Args:
        delta: [N, H, W, C], each within the ball.
        epsilon: radius in pixels.
        norm: `l2` or `l1`.
        side: the windows', [N] or a scalar.
        numbers: [N, 5 + C] in [0, 1): the windows' places, upright or lying, and a sign per channel.
    """

    def window(place):
        """Rows [N, H, 1] and columns [N, 1, W] from its corner, and what is inside [N, H, W, 1]."""
        rows, columns = _offsets(delta, side[:, :, 0], place)
        rows, columns = rows[:, :, None], columns[:, None, :]
        return rows, columns, (_inside(rows, side) & _inside(columns, side))[..., None]

    side = tf.reshape(side, [-1, 1, 1])
    rows, columns, first = window(numbers[:, :2])
    _, _, second = window(numbers[:, 2:4])
    upright = numbers[:, 4, None, None] < 0.5
    eta = _hills(tf.where(upright, rows, columns), tf.where(upright, columns, rows), side, norm)
    either = first | second

    bulge = _unit(tf.where(first, eta[..., None], 0.0), norm) * _signs(numbers[:, None, None, 5:])
    bulge += _unit(tf.where(first, delta, 0.0), norm)
    power = 2 if norm == "l2" else 1
    masses = tf.abs(delta) ** power
    mass = tf.reduce_sum(tf.where(either, masses, 0.0), axis=(1, 2), keepdims=True)
    unused = tf.nn.relu(epsilon**power - tf.reduce_sum(masses, axis=(1, 2, 3), keepdims=True))
    channels = delta.shape[3]
    size = tf.sqrt(mass + unused / channels) if norm == "l2" else channels * mass + unused
    return tf.where(either, _unit(bulge, norm) * size, delta)


def _hills(rows: tf.Tensor, columns: tf.Tensor, side: tf.Tensor, norm: Norm) -> tf.Tensor:
    """The paper's eta (eq. 2) within a square window: a hill on its upper half, the same downward on the lower one.

    With n = side // 2, at Chebyshev distance d from the middle of its half a pixel has sum_{j=d}^n 1 / (j + 1)^2,
    and ^4 for l1.

    Args:
        rows: a pixel's row from the window's corner, from 0.
        columns: its column, of a shape that broadcasts with that of `rows`.
        side: the window's, of a shape that broadcasts with those.
        norm: `l2` or `l1`.
    """
    half = side // 2
    size = max(tf.broadcast_static_shape(rows.shape, columns.shape)[-2:])
    sums = tf.constant(np.cumsum([0.0, *(1.0 / np.arange(1.0, size + 2) ** DECAY[norm])]), tf.float32)
    lower = rows >= half
    middle = tf.where(lower, half + (side - half) // 2, half // 2)
    distance = tf.maximum(tf.abs(rows - middle), tf.abs(columns - half))
    heights = tf.gather(sums, half + 1) - tf.gather(sums, tf.minimum(distance, half + 1))
    return tf.where(lower, -heights, heights)


def _offsets(like: tf.Tensor, side: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows [N, H] and columns [N, W], counted from the corner of a square window, one window per example.

    Args:
        like: [N, H, W, C].
        side: the window's, [N, 1] or [1, 1].
        place: [N, 2] in [0, 1), its corner as a share of the places that it can be at.
    """
    _, height, width, _ = like.shape
    room = tf.concat([height - side + 1, width - side + 1], axis=1)
    corner = tf.cast(place * tf.cast(room, tf.float32), tf.int32)
    return tf.range(height) - corner[:, :1], tf.range(width) - corner[:, 1:]


def _inside(offsets: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    """Which rows, or columns, are inside the window."""
    return (offsets >= 0) & (offsets < side)


def _unit(values: tf.Tensor, norm: Norm) -> tf.Tensor:
    """Each channel of each example scaled to length 1, or 0 where it is 0: [N, H, W, C]."""
    if norm == "l1":
        return tf.math.divide_no_nan(values, tf.reduce_sum(tf.abs(values), axis=(1, 2), keepdims=True))
    return tf.math.divide_no_nan(values, tf.norm(values, axis=(1, 2), keepdims=True))


def _signs(numbers: tf.Tensor) -> tf.Tensor:
    """-1 or 1 with equal probability, from numbers uniform on [0, 1)."""
    return tf.where(numbers < 0.5, -1.0, 1.0)
