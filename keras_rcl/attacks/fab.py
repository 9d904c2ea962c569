"""FAB and FAB-T: walk along the decision boundary toward the image, and keep the closest adversarial point passed."""

from collections.abc import Callable

import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted, usable_gradient
from keras_rcl.attacks.norms import boundary_start, choose, length, per_example
from keras_rcl.attacks.surrogates import top_wrong_class
from keras_rcl.vocabulary.attacks import FAB
from keras_rcl.vocabulary.threat import Norm


def fab(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: FAB, seeds: tf.Tensor, round) -> Crafted:
    """The closest adversarial images that one round finds, where they lie within `attack.epsilon`; elsewhere x itself.

    The arguments are those of `minimal_perturbation`. What is returned is the very point that was seen to fool the
    classifier, unrounded and unprojected: its distance is at most `epsilon` to within float32.
    """
    images, distance, zeros = _search(logits_fn, x, labels, attack, seeds, round)
    return Crafted(tf.stop_gradient(choose(distance <= attack.epsilon, images, x)), zeros)


def minimal_perturbation(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: FAB, seeds: tf.Tensor, round
) -> tuple[tf.Tensor, tf.Tensor]:
    """The closest adversarial images that one round finds, however far they are.

    With f = logit of the target - logit of the label, w = grad f(x_t), the hyperplane of its linearisation
    {z: f(x_t) + <w, z - x_t> = 0} and `to(z)` the step from z to the nearest point of hyperplane and box:

        alpha   = min(|to(x_t)| / (|to(x_t)| + |to(x)|), alpha_max)
        x_{t+1} = clip((1 - alpha) (x_t + eta to(x_t)) + alpha (x + eta to(x)), 0, 1)
        x_{t+1} = x + beta (x_{t+1} - x)   where x_{t+1} is adversarial, after it was compared with the closest so far

    Args:
        logits_fn: images [N, H, W, C] -> float32 logits [N, K].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes. Adversarial is what the classifier takes for any other class.
        attack: the hyper-parameters; `epsilon` bears on the random starts alone.
        seeds: [N, 2], one stateless seed an example.
        round: int32 scalar. The target is the wrong class whose logit at x ranks `round % num_targets`-th, from 0
            (the last one, where there are fewer). Restart `round // num_targets` starts from x itself if it is 0, else
            at a random point epsilon / 2 away. Without `multi_targeted` each round is a restart, and the target of
            each step is the class whose hyperplane is nearest to x_t, box aside: least |f(x_t)| / |w| in the dual norm.

    Returns:
        Images [N, H, W, C], and their distances from x [N]: 0 where x is misclassified as it is, and x with a distance
        of infinity where nothing was found.

    The paper's final search on the segment between x and the closest point is left out, as in AutoAttack's FAB-T.

    Raises:
        InvalidInputError: if no gradient reaches the pixels.

    Sources: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
    Algorithm 1 (the attack); "Reliable evaluation of adversarial robustness" (its targeted version, as of AutoAttack).
    """
    return _search(logits_fn, x, labels, attack, seeds, round)[:2]


def _search(logits_fn, x, labels, attack, seeds, round):
    """(closest [N, H, W, C], distance [N], zero_gradients [N])."""
    logits = logits_fn(x)
    classes = logits.shape[1]
    targets = attack.num_targets if attack.multi_targeted else 1
    target = top_wrong_class(labels, logits, tf.minimum(round % targets, classes - 2))
    direction = tf.one_hot(target, classes) - tf.one_hot(labels, classes)
    pixels = list(range(1, x.shape.rank))

    def fools(logits):
        return tf.argmax(logits, axis=1, output_type=tf.int32) != labels

    drawn = boundary_start(x, attack.epsilon / 2, attack.norm, seeds)
    start = tf.where(round // targets > 0, drawn, x)

    def toward_target(x_t):
        """f(x_t) [N] and w [N, ...]."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x_t)
            value = tf.reduce_sum(direction * logits_fn(x_t), axis=1)
            total = tf.reduce_sum(value)
        return value, tape.gradient(total, x_t)

    def toward_nearest(x_t):
        """The same of the class whose hyperplane is nearest."""
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            tape.watch(x_t)
            logits = logits_fn(x_t)

        @tf.autograph.experimental.do_not_convert  # which would hide a refusal
        def gradient_of(number):
            upstream = tf.broadcast_to(tf.one_hot(number, classes), tf.shape(logits))
            return usable_gradient(tape.gradient(logits, x_t, output_gradients=upstream))[0]

        def pick(of_classes, chosen):
            """[K, N, ...] -> [N, ...], each example's class of those chosen."""
            return tf.gather(tf.einsum("kn...->nk...", of_classes), chosen, batch_dims=1)

        gradients = tf.map_fn(gradient_of, tf.range(classes), fn_output_signature=tf.float32)
        gradients -= pick(gradients, labels)
        values = tf.transpose(logits) - tf.gather(logits, labels, batch_dims=1)
        size = tf.norm(tf.reshape(gradients, [classes, tf.shape(x)[0], -1]), 1 if attack.norm == "linf" else 2, axis=2)
        away = tf.where(size > 0, tf.abs(values) / size, float("inf"))
        nearest = tf.argmin(away, axis=0, output_type=tf.int32)
        return pick(values, nearest), pick(gradients, nearest)

    def walk(step, x_t, closest, distance, zeros):
        value, gradient = (toward_target if attack.multi_targeted else toward_nearest)(x_t)
        gradient, zero = usable_gradient(gradient)

        from_here = to_hyperplane(x_t, gradient, -value, attack.norm)
        at_x = value + tf.reduce_sum(gradient * (x - x_t), axis=pixels)
        from_x = to_hyperplane(x, gradient, -at_x, attack.norm)
        here, there = (tf.maximum(length(delta, attack.norm), 1e-8) for delta in (from_here, from_x))
        alpha = per_example(tf.minimum(here / (here + there), attack.alpha_max), x)
        x_t = (1.0 - alpha) * (x_t + attack.eta * from_here) + alpha * (x + attack.eta * from_x)
        x_t = tf.clip_by_value(x_t, 0.0, 1.0)

        adversarial, now = fools(logits_fn(x_t)), length(x_t - x, attack.norm)
        closer = adversarial & (now < distance)
        closest = choose(closer, x_t, closest)
        x_t = choose(adversarial, x + attack.beta * (x_t - x), x_t)
        return step + 1, x_t, closest, tf.where(closer, now, distance), zeros + zero

    nowhere = tf.where(fools(logits), 0.0, float("inf"))
    _, _, closest, distance, zeros = tf.while_loop(
        lambda step, *_: step < attack.num_steps,
        walk,
        (0, start, x, nowhere, tf.zeros_like(nowhere)),
        maximum_iterations=attack.num_steps,
    )
    return tf.stop_gradient(closest), tf.stop_gradient(distance), zeros / attack.num_steps


def to_hyperplane(x: tf.Tensor, normal: tf.Tensor, rise: tf.Tensor, norm: Norm) -> tf.Tensor:
    """The smallest step from x to a hyperplane within the box: argmin |d| over <normal, d> = rise, 0 <= x + d <= 1.

    Pixel i moves up or down as the rise asks, by min(r a_i, room_i), with a_i = 1 (linf) or |normal_i| (l2) and room_i
    the way to the box. What a multiplier r gains is concave, rising and piecewise linear, with a kink where a pixel
    stops at the box:

        gain(r) = P(r) + r S(r),   P(r) = sum_{stopped} |normal_i| room_i,   S(r) = sum_{moving} |normal_i| a_i

    so that Newton's method from r = 0, where each tangent lies above gain, rises to the solution and is there after
    finitely many kinks: r <- (|rise| - P(r)) / S(r). No pixels are sorted.

    Args:
        x: points of the box [0, 1], [N, ...].
        normal: [N, ...]; where all of it is 0, the step is 0.
        rise: [N], by how much the step has to lift <normal, x>.
        norm: `linf` or `l2`, that of the step.

    Returns:
        Steps [N, ...]. Where the hyperplane misses the box, the one to the corner that comes closest to it.

    Source: the projections of Croce and Hein 2020 (FAB); both norms by one formula, derived here.
    """
    batch = tf.shape(x)[0]
    point, normal = tf.reshape(x, [batch, -1]), tf.reshape(normal, [batch, -1])
    upward = tf.sign(normal) * tf.sign(rise)[:, None]
    room = tf.abs(tf.cast(upward > 0, point.dtype) - point)
    # Scaled by its largest entry, so that the squares of a tiny normal do not underflow.
    scale = tf.reduce_max(tf.abs(normal), axis=1)
    weight = tf.math.divide_no_nan(tf.abs(normal), scale[:, None])
    rise = tf.math.divide_no_nan(tf.abs(rise), scale)
    speed = tf.sign(weight) if norm == "linf" else weight
    full, gains = weight * room, weight * speed

    def newton(multiplier, _):
        stopped = tf.cast(multiplier[:, None] * speed >= room, full.dtype)
        missing = rise - tf.reduce_sum(stopped * full, axis=1)
        moving = tf.reduce_sum((1.0 - stopped) * gains, axis=1)
        higher = tf.maximum(multiplier, tf.math.divide_no_nan(missing, moving))
        return higher, tf.reduce_any(higher > multiplier * (1.0 + CONVERGED))

    start = tf.math.divide_no_nan(rise, tf.reduce_sum(gains, axis=1))
    multiplier, _ = tf.while_loop(lambda _, rises: rises, newton, (start, tf.constant(True)))
    return tf.reshape(upward * tf.minimum(multiplier[:, None] * speed, room), tf.shape(x))


CONVERGED = 1e-6
"""By how much, relatively, a multiplier rises that is taken for solved: float32's own rounding."""
