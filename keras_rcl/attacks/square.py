"""Square: random search with square patches, from the logits alone."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted, Round
from keras_rcl.attacks.norms import PIXEL_BOX, Radius, choose, per_example, projection, steepest_step, uniform
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
    sides = _sides(attack, height, width)
    shrinks_at = tf.constant(_shrinks_at(attack.num_queries))
    epsilon = round.epsilon(attack)
    ahead = _moves_at_once(round.width, x)
    nearest = projection(_repeated(x, ahead), epsilon, attack.norm)
    of_rows = tf.repeat(labels, ahead)
    # The numbers of all queries are drawn at once. `start` uses the seeds themselves.
    numbers = uniform([attack.num_queries - 1, {"linf": 2, "l2": 5, "l1": 5}[attack.norm] + channels], round.seeds + 1)
    move_mass = None if attack.norm == "linf" else _mass_mover(x, sides, epsilon, attack.norm)

    def moved(images, halvings, drawn):
        if move_mass is None:
            side = tf.reshape(tf.gather(sides, halvings), [-1])
            return _repaint(_repeated(images, ahead), nearest, side, tf.reshape(drawn, [-1, 2 + channels]))
        candidates = move_mass(images, halvings, drawn)
        return nearest(candidates) if attack.norm == "l1" else candidates

    def loss_of(images, labels):
        """The margin [N], and -inf where the image fools, so that nothing is lower."""
        logits = logits_fn(images)
        fooled = fools(logits, labels)
        return tf.where(fooled, -np.inf, -logit_margin(labels, logits))

    def ask(query, images, loss):
        queries = query[:, None] + tf.range(ahead)
        halvings = tf.reduce_sum(tf.cast(queries[..., None] >= shrinks_at, tf.int32), axis=2)
        drawn = tf.gather(numbers, tf.minimum(queries, attack.num_queries - 1) - 1, batch_dims=1)
        candidates = moved(images, halvings, drawn)
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


def _repeated(images: tf.Tensor, times: tf.Tensor | int) -> tf.Tensor:
    """Each image `times` times in a row, as by `tf.repeat`, which takes ten times as long to copy images."""
    return tf.gather(images, tf.range(tf.shape(images)[0] * times) // times)


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


def _mass_mover(x: tf.Tensor, sides: np.ndarray, epsilon: Radius, norm: Norm) -> Callable:
    """The function that makes moves of Algorithm 3: the change in a second window moves into a first one.

    There it bulges. With delta the change and eta the `_hills`, in each channel c

        b_c = +-eta / ||eta|| + delta_{1,c} / ||delta_{1,c}||
        delta_{1,c} = b_c / ||b_c|| sqrt(||delta_{1 or 2,c}||^2 + (epsilon^2 - ||delta||^2) / C),   delta_{2,c} = 0

    so that the length is epsilon again. For l1, with lengths in L1,

        delta_{1,c} = b_c / ||b_c|| (C ||delta_{1 or 2,c}|| + epsilon - ||delta||),   delta_{2,c} = 0

    which may be longer: the projection to the ball takes the smallest changes away.

    Args:
        x: the centers, [N, H, W, C].
        sides: a window's side after each number of halvings, from 0.
        epsilon: radius in pixels.
        norm: `l2` or `l1`.

    Returns:
        A function of images within ball and box [N, H, W, C], of the number of halvings for each of M moves of each
        image [N, M], and of numbers [N, M, 5 + C] in [0, 1): the windows' places, upright or lying, and a sign per
        channel. It returns [N * M, H, W, C], for l2 within ball and box up to rounding.
    """
    _, height, width, channels = x.shape
    hills, sides, largest = _unit_hills(sides, norm), tf.constant(sides), int(sides.max())

    def moved(images, halvings, numbers):
        ahead = tf.shape(halvings)[1]
        halvings, numbers = tf.reshape(halvings, [-1]), tf.reshape(numbers, [-1, 5 + channels])
        side = tf.gather(sides, halvings)
        # As few pixels as possible; XLA has to know how many.
        size = tf.reduce_max(side) if x.shape[0] is None else largest
        pixels, counted = _two_windows(tf.reshape(numbers[:, :4], [-1, 2, 2]), side, size, height, width)
        image = tf.range(tf.size(side))[:, None, None, None]
        first, second = tf.unstack(pixels + image * (height * width), axis=1)
        pixels += image // ahead * (height * width)
        delta = images - x
        centers, changes = (tf.gather(tf.reshape(values, [-1, channels]), pixels) for values in (x, delta))

        eta = tf.gather(hills[:, :, :size, :size], halvings)
        eta = choose(numbers[:, 4] < 0.5, eta[:, 0], eta[:, 1]) * _signs(numbers[:, None, None, 5:])
        unused = epsilon ** (2 if norm == "l2" else 1) - tf.reduce_sum(_power(delta, norm), axis=(1, 2, 3))
        bulging = centers[:, 0] + _bulge(eta, changes, counted, per_example(tf.repeat(unused, ahead), eta), norm)
        if norm == "l2":
            bulging = tf.clip_by_value(bulging, *PIXEL_BOX)
        # Where the windows overlap, the first one stays.
        candidates = tf.reshape(_repeated(images, ahead), [-1, channels])
        candidates = tf.tensor_scatter_nd_update(candidates, second[..., None], centers[:, 1])
        candidates = tf.tensor_scatter_nd_update(candidates, first[..., None], bulging)
        return tf.reshape(candidates, [-1, height, width, channels])

    return moved


def _bulge(eta: tf.Tensor, changes: tf.Tensor, counted: tf.Tensor, unused: tf.Tensor, norm: Norm) -> tf.Tensor:
    """delta_1 of `_mass_mover`, [N, S, S, C].

    Args:
        eta: of length 1 or -1 in each channel, [N, S, S, C].
        changes: delta in both windows, [N, 2, S, S, C].
        counted: as of `_two_windows`.
        unused: what delta leaves of the ball, epsilon^2 - ||delta||^2 for l2, [N, 1, 1, 1].
        norm: `l2` or `l1`.
    """
    channels = changes.shape[4]
    masses = _mass(changes, counted, norm)
    mass = tf.reduce_sum(masses, axis=1)
    bulge = eta + tf.math.divide_no_nan(changes[:, 0], _length(masses[:, 0], norm))
    size = tf.sqrt(tf.nn.relu(mass + unused / channels)) if norm == "l2" else channels * mass + tf.nn.relu(unused)
    return bulge * tf.math.divide_no_nan(size, _length(_mass(bulge, counted[:, 0], norm), norm))


def _two_windows(places: tf.Tensor, side: tf.Tensor, size: tf.Tensor | int, height: int, width: int) -> tuple:
    """The pixels of two square windows of an image, as arrays of one size S for all images.

    A window that is smaller than S repeats its last row and its last column.

    Args:
        places: [N, 2, 2] in [0, 1): the corner of each window, as a share of the rows and columns that it can be at.
        side: the windows', [N].
        size: S, the largest of the sides.
        height: the image's.
        width: the image's.

    Returns:
        Each pixel's place among the H W pixels of the image, [N, 2, S, S]; and what is counted, [N, 2, S, S, 1]: 0
        where a pixel is repeated or is in the first window too, otherwise 1.
    """
    side = side[:, None, None]
    corners = tf.cast(places * tf.cast([height + 1, width + 1] - side, tf.float32), tf.int32)
    along = tf.range(size)
    new = (along[:, None] < side) & (along < side)
    along = tf.minimum(along, side - 1)
    rows, columns = tf.unstack(corners[..., None] + along[:, None], axis=2)
    from_first = (corners[:, 1] - corners[:, 0])[..., None] + along
    shared = (from_first >= 0) & (from_first < side)
    shared = shared[:, 0, :, None] & shared[:, 1, None, :]
    counted = tf.cast(tf.stack([new, new & ~shared], axis=1), tf.float32)
    return rows[..., None] * width + columns[:, :, None], counted[..., None]


def _unit_hills(sides: np.ndarray, norm: Norm) -> tf.Tensor:
    """`_hills` of length 1 for each of K sides, upright and lying: [K, 2, S, S, 1], where S is the largest side.

    Those of a smaller side repeat the last row and the last column.
    """
    side = tf.constant(sides)[:, None, None]
    along = tf.range(int(sides.max()))
    new = tf.cast((along[:, None] < side) & (along < side), tf.float32)[..., None]
    hills = _hills(tf.minimum(along[:, None], side - 1), tf.minimum(along, side - 1), side, norm)[..., None]
    hills /= _length(_mass(hills, new, norm), norm)
    return tf.stack([hills, tf.transpose(hills, [0, 2, 1, 3])], axis=1)


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


def _power(values: tf.Tensor, norm: Norm) -> tf.Tensor:
    """What a length adds up of each entry: its square for l2, its size for l1."""
    return tf.square(values) if norm == "l2" else tf.abs(values)


def _mass(values: tf.Tensor, counted: tf.Tensor, norm: Norm) -> tf.Tensor:
    """The sum over a window of each channel: [..., S, S, C] -> [..., 1, 1, C].

    In float64, so that it does not hang on S, and so on the other images.
    """
    terms = tf.cast(counted * _power(values, norm), tf.float64)
    return tf.cast(tf.reduce_sum(terms, axis=(-3, -2), keepdims=True), tf.float32)


def _length(mass: tf.Tensor, norm: Norm) -> tf.Tensor:
    return tf.sqrt(mass) if norm == "l2" else mass


def _signs(numbers: tf.Tensor) -> tf.Tensor:
    """-1 or 1 with equal probability, from numbers uniform on [0, 1)."""
    return tf.where(numbers < 0.5, -1.0, 1.0)
