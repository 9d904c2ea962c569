"""FAB and FAB-T: walk along the decision boundary toward the image, and keep the closest adversarial point found."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted, Minimal, Round, usable_gradient
from keras_rcl.attacks.norms import DUAL, boundary_start, choose, fill, length, per_example
from keras_rcl.attacks.surrogates import fools, top_wrong_class
from keras_rcl.vocabulary.attacks import FAB
from keras_rcl.vocabulary.threat import Norm


class _State(NamedTuple):
    """The state of the walk.

    Attributes:
        step: number of steps taken.
        x_t: the current points, [N, H, W, C].
        closest: the closest adversarial points so far, [N, H, W, C].
        distance: of `closest` from x, [N].
        zeros: sum of the shares of zero gradients, [N].
    """

    step: tf.Tensor | int
    x_t: tf.Tensor
    closest: tf.Tensor
    distance: tf.Tensor
    zeros: tf.Tensor


def fab(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: FAB, round: Round) -> Crafted:
    """The closest adversarial images that one round finds, where they lie within `attack.epsilon`; elsewhere x itself.

    Args:
        logits_fn: images [N, H, W, C] -> float32 logits [N, K].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes.
        attack: the hyper-parameters.
        round: as of `minimal_perturbation`.

    Returns:
        The points that were seen to fool the classifier, neither rounded nor projected: their distances are at most
        `epsilon` to within float32.

    Raises:
        InvalidInputError: if no gradient reaches the pixels.

    References:
        Those of `minimal_perturbation`.
    """
    found = minimal_perturbation(logits_fn, x, labels, attack, round)
    return found.within(round.epsilon(attack), x)


def minimal_perturbation(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: FAB, round: Round) -> Minimal:
    """The closest adversarial images that one round finds, at any distance.

    With f = logit of the target - logit of the label, w = grad f(x_t), the hyperplane of its linearisation
    {z: f(x_t) + <w, z - x_t> = 0} and `to(z)` the step from z to the nearest point of hyperplane and box:

        alpha   = min(|to(x_t)| / (|to(x_t)| + |to(x)|), alpha_max)
        x_{t+1} = clip((1 - alpha) (x_t + eta to(x_t)) + alpha (x + eta to(x)), 0, 1)
        x_{t+1} = x + beta (x_{t+1} - x)   where x_{t+1} is adversarial, after it was compared with the closest so far

    The paper's final search on the segment between x and the closest point is left out, as in AutoAttack's FAB-T.

    Args:
        logits_fn: images [N, H, W, C] -> float32 logits [N, K].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes. An image is adversarial if the classifier assigns it any other class.
        attack: the hyper-parameters; `epsilon` affects the random starts alone.
        round: its seeds choose the random start. Its number chooses the target: the wrong class whose logit at x ranks
            `number % num_targets`-th, from 0 (the last one, if there are fewer). Restart `number // num_targets` starts
            from x itself if it is 0, otherwise at a random point epsilon / 2 away. Without `multi_targeted` each round
            is a restart, and the target of each step is the class whose hyperplane is nearest to x_t, without the box:
            the least |f(x_t)| / |w| in the dual norm.

    Returns:
        The images, their distances from x, and their shares of zero gradients. The distance is 0 where x itself is
        misclassified; where nothing was found, the image is x and the distance infinity.

    Raises:
        InvalidInputError: if no gradient reaches the pixels.

    References:
        Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", Algorithm
        1 (the attack); "Reliable evaluation of adversarial robustness" (its targeted version, as in AutoAttack).
    """
    logits = logits_fn(x)
    targets = attack.num_targets if attack.multi_targeted else 1
    number = round.number
    if attack.multi_targeted:
        linearise = _toward_target(logits_fn, labels, logits, number % targets)
    else:
        linearise = _toward_nearest(logits_fn, labels, logits.shape[1], attack.norm)
    drawn = boundary_start(x, round.epsilon(attack) / 2, attack.norm, round.seeds)
    start = tf.where(tf.reshape(number // targets > 0, [-1, 1, 1, 1]), drawn, x)
    pixels = list(range(1, x.shape.rank))

    def walk(state: _State) -> tuple[_State]:
        x_t = state.x_t
        value, gradient = linearise(x_t)
        gradient, zero = usable_gradient(gradient)

        from_here = to_hyperplane(x_t, gradient, -value, attack.norm)
        at_x = value + tf.reduce_sum(gradient * (x - x_t), axis=pixels)
        from_x = to_hyperplane(x, gradient, -at_x, attack.norm)
        here, there = (tf.maximum(length(delta, attack.norm), 1e-8) for delta in (from_here, from_x))
        alpha = per_example(tf.minimum(here / (here + there), attack.alpha_max), x)
        x_t = (1.0 - alpha) * (x_t + attack.eta * from_here) + alpha * (x + attack.eta * from_x)
        x_t = tf.clip_by_value(x_t, 0.0, 1.0)

        adversarial, distance = fools(logits_fn(x_t), labels), length(x_t - x, attack.norm)
        closer = adversarial & (distance < state.distance)
        closest = choose(closer, x_t, state.closest)
        x_t = choose(adversarial, x + attack.beta * (x_t - x), x_t)
        return (_State(state.step + 1, x_t, closest, tf.where(closer, distance, state.distance), state.zeros + zero),)

    nowhere = tf.where(fools(logits, labels), 0.0, float("inf"))
    (state,) = tf.while_loop(
        lambda state: state.step < attack.num_steps,
        walk,
        (_State(0, start, x, nowhere, tf.zeros_like(nowhere)),),
        maximum_iterations=attack.num_steps,
    )
    return Minimal(tf.stop_gradient(state.closest), tf.stop_gradient(state.distance), state.zeros / attack.num_steps)


def _toward_target(logits_fn: Callable, labels: tf.Tensor, logits: tf.Tensor, rank: tf.Tensor) -> Callable:
    """The function x_t -> (f(x_t) [N], its gradient [N, ...]) for the wrong class of a given rank at x."""
    classes = logits.shape[1]
    target = top_wrong_class(labels, logits, tf.minimum(rank, classes - 2))
    direction = tf.one_hot(target, classes) - tf.one_hot(labels, classes)

    def linearise(x_t):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x_t)
            value = tf.reduce_sum(direction * logits_fn(x_t), axis=1)
            total = tf.reduce_sum(value)
        return value, tape.gradient(total, x_t)

    return linearise


def _toward_nearest(logits_fn: Callable, labels: tf.Tensor, classes: int, norm: Norm) -> Callable:
    """The function x_t -> (f(x_t) [N], its gradient [N, ...]) for the class whose hyperplane is nearest to x_t."""

    def pick(of_classes, chosen):
        """[K, N, ...] -> [N, ...], for each example the entry of its chosen class."""
        return tf.gather(tf.einsum("kn...->nk...", of_classes), chosen, batch_dims=1)

    def linearise(x_t):
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            tape.watch(x_t)
            logits = logits_fn(x_t)

        @tf.autograph.experimental.do_not_convert  # AutoGraph would hide an InvalidInputError
        def gradient_of(number):
            upstream = tf.broadcast_to(tf.one_hot(number, classes), tf.shape(logits))
            return usable_gradient(tape.gradient(logits, x_t, output_gradients=upstream))[0]

        gradients = tf.map_fn(gradient_of, tf.range(classes), fn_output_signature=tf.float32)
        gradients -= pick(gradients, labels)
        values = tf.transpose(logits) - tf.gather(logits, labels, batch_dims=1)
        size = tf.reshape(length(tf.reshape(gradients, [-1, *x_t.shape[1:]]), DUAL[norm]), [classes, -1])
        away = tf.where(size > 0, tf.abs(values) / size, float("inf"))
        nearest = tf.argmin(away, axis=0, output_type=tf.int32)
        return pick(values, nearest), pick(gradients, nearest)

    return linearise


def to_hyperplane(x: tf.Tensor, normal: tf.Tensor, rise: tf.Tensor, norm: Norm) -> tf.Tensor:
    """The smallest step from x to a hyperplane within the box: argmin |d| over <normal, d> = rise, 0 <= x + d <= 1.

    Pixel i moves by min(r a_i, room_i) in the direction that the rise needs. Here a_i = 1 (linf) or |normal_i| (l2),
    and room_i is its distance to the box. The gain of a multiplier r is concave, increasing and piecewise linear, with
    a kink where a pixel stops at the box:

        gain(r) = P(r) + r S(r),   P(r) = sum_{stopped} |normal_i| room_i,   S(r) = sum_{moving} |normal_i| a_i

    Each tangent lies above the gain. So Newton's method from r = 0, r <- (|rise| - P(r)) / S(r), rises to the solution
    and reaches it after finitely many kinks. No pixels are sorted.

    For l1 the pixels of the largest |normal_i| move first, each up to the box, until the rise is reached.

    Args:
        x: points of the box [0, 1], [N, ...].
        normal: [N, ...]; where all of it is 0, the step is 0.
        rise: [N], by how much the step must change <normal, x>.
        norm: `linf`, `l2` or `l1`, that of the step.

    Returns:
        Steps [N, ...]. Where the hyperplane misses the box, the step to the corner that is closest to it.

    References:
        The projections of Croce and Hein 2020 (FAB); one formula for linf and l2, derived here.
    """
    batch = tf.shape(x)[0]
    point, normal = tf.reshape(x, [batch, -1]), tf.reshape(normal, [batch, -1])
    upward = tf.sign(normal) * tf.sign(rise)[:, None]
    room = tf.abs(tf.nn.relu(upward) - point)
    # Scaled by its largest entry, so that the squares of a tiny normal do not underflow.
    scale = tf.reduce_max(tf.abs(normal), axis=1)
    weight = tf.math.divide_no_nan(tf.abs(normal), scale[:, None])
    rise = tf.math.divide_no_nan(tf.abs(rise), scale)
    if norm == "l1":
        return tf.reshape(upward * fill(weight, room, weight, rise), tf.shape(x))
    speed = tf.sign(weight) if norm == "linf" else weight
    full, gains = weight * room, weight if norm == "linf" else weight * weight

    def newton(multiplier, _):
        # Passes over memory are what this costs: for linf a pixel of speed 0 counts as stopped, which adds 0.
        reached = multiplier[:, None] if norm == "linf" else multiplier[:, None] * speed
        stopped = tf.cast(reached >= room, full.dtype)
        missing = rise - tf.reduce_sum(stopped * full, axis=1)
        moving = tf.reduce_sum((1.0 - stopped) * gains, axis=1)
        higher = tf.maximum(multiplier, tf.math.divide_no_nan(missing, moving))
        return higher, tf.reduce_any(higher > multiplier * (1.0 + CONVERGED))

    start = tf.math.divide_no_nan(rise, tf.reduce_sum(gains, axis=1))
    multiplier, _ = tf.while_loop(lambda _, rises: rises, newton, (start, tf.constant(True)))
    return tf.reshape(upward * tf.minimum(multiplier[:, None] * speed, room), tf.shape(x))


CONVERGED = 1e-6
"""A multiplier that rises by less than this, relatively, is solved: float32's own rounding."""
