"""CW: gradient descent on distance plus a constant times the margin, and a binary search for the constant."""

from collections.abc import Callable

import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted, usable_gradient
from keras_rcl.attacks.norms import choose, length, per_example
from keras_rcl.attacks.surrogates import logit_margin
from keras_rcl.vocabulary.attacks import CarliniWagner

FIRST_DECAY, SECOND_DECAY, SMALLEST_ROOT = 0.9, 0.999, 1e-8
"""Adam's beta_1, beta_2 and epsilon."""

SHRINK = 0.999999
"""Toward middle grey, by which the start is moved: atanh of a pixel of 0 or 1 is infinite."""

CHECKS, LEAST_FALL = 10, 1e-4
"""How often in a descent it is asked whether to go on, and by which share the objective has to have fallen for that."""


def carlini_wagner(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: CarliniWagner, seeds: tf.Tensor, round: tf.Tensor
) -> Crafted:
    """The closest adversarial images found, where they lie within `attack.epsilon`; elsewhere x itself.

    The arguments are those of `minimal_perturbation`, and `seeds` and `round`, unused: nothing is random. What is
    returned is the very point that was seen to fool the classifier, unrounded and unprojected.
    """
    images, distance, zeros = _search(logits_fn, x, labels, attack)
    within = per_example(distance <= attack.epsilon, x)
    return Crafted(tf.stop_gradient(tf.where(within, images, x)), zeros)


def minimal_perturbation(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: CarliniWagner
) -> tuple[tf.Tensor, tf.Tensor]:
    """The closest adversarial images found, however far they are.

        minimise over w   ||x' - x||_2^2 + c max(z_y(x') - max_{j != y} z_j(x'), -confidence),   x' = (tanh(w) + 1) / 2

    by Adam from w = atanh(2 x - 1), afresh for each constant c. Of all the x' on the way the closest one that fools
    counts. With `low` the largest constant that failed and `high` the smallest that fooled, the next one is

        c = (low + high) / 2,   or 10 c until one has fooled

    Adam's first step moves pixels by up to learning_rate / 2. What lies nearer than learning_rate / 2 sqrt(HWC) is
    stepped over whatever the constant is, and takes a smaller rate to find. A pixel of 0 or 1 starts at |w| = 7.3: to
    leave takes it about 7.3 / learning_rate steps.

    Every image has its own constant. It is done with one once the objective falls by less than 1 in 10,000 during a
    tenth of the steps; the loop ends when all are.

    Args:
        logits_fn: images [N, H, W, C] -> float32 logits [N, K].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes. What fools is what the classifier takes for any other class, with a logit
            that is ahead by `confidence`.
        attack: the hyper-parameters; `epsilon` has no bearing.

    Returns:
        Images [N, H, W, C], and their distances from x [N]: 0 where x fools as it is, and x with a distance of infinity
        where nothing was found.

    Raises:
        InvalidInputError: if no gradient reaches the pixels.

    Sources: Carlini and Wagner 2017, arXiv:1608.04644, section VI-A, with their f_6, untargeted. When to stop and how
    the constant moves are from the authors' code.
    """
    return _search(logits_fn, x, labels, attack)[:2]


def _search(logits_fn, x, labels, attack):
    """(closest [N, H, W, C], distance [N], zero_gradients [N])."""
    start = tf.atanh(SHRINK * (2.0 * x - 1.0))
    check_every = max(attack.num_steps // CHECKS, 1)

    def fools(logits):
        handicap = attack.confidence * tf.one_hot(labels, logits.shape[1])
        return tf.argmax(logits + handicap, axis=1, output_type=tf.int32) != labels

    def descend(s):
        """One step of Adam; an image that is done is neither compared nor counted."""
        images = (tf.tanh(s["w"]) + 1.0) / 2.0
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            logits = logits_fn(images)
            margin = logit_margin(labels, logits)
            total = tf.reduce_sum(margin)
        rise, zero = usable_gradient(tape.gradient(total, images))

        now = length(images - x, "l2")
        closer = ~s["done"] & fools(logits) & (now < s["distance"])
        lacks = tf.nn.relu(attack.confidence - margin)
        objective = now**2 + s["constant"] * lacks
        check = s["step"] % check_every == 0
        done = s["done"] | (check & (objective > (1.0 - LEAST_FALL) * s["checked"]))

        pull = tf.where(lacks > 0, s["constant"], 0.0)
        # d x' / d w = (1 - tanh(w)^2) / 2
        gradient = (2.0 * (images - x) - per_example(pull, x) * rise) * 2.0 * images * (1.0 - images)
        first = FIRST_DECAY * s["first"] + (1.0 - FIRST_DECAY) * gradient
        second = SECOND_DECAY * s["second"] + (1.0 - SECOND_DECAY) * gradient**2
        taken = tf.cast(s["step"] + 1, tf.float32)
        root = tf.sqrt(second / (1.0 - SECOND_DECAY**taken)) + SMALLEST_ROOT
        counts = tf.cast(~s["done"], tf.float32)
        s = {
            **s,
            "step": s["step"] + 1,
            "w": s["w"] - attack.learning_rate * first / (1.0 - FIRST_DECAY**taken) / root,
            "first": first,
            "second": second,
            "closest": choose(closer, images, s["closest"]),
            "distance": tf.where(closer, now, s["distance"]),
            "fooled": s["fooled"] | (~s["done"] & fools(logits)),
            "done": done,
            "checked": tf.where(check, objective, s["checked"]),
            "zeros": s["zeros"] + counts * zero,
            "steps": s["steps"] + counts,
        }
        return (s,)

    def search(s):
        """One descent, and the next constant."""
        afresh = {
            "step": 0,
            "w": start,
            "first": tf.zeros_like(x),
            "second": tf.zeros_like(x),
            "fooled": tf.zeros_like(labels, tf.bool),
            "done": tf.zeros_like(labels, tf.bool),
            "checked": tf.fill(tf.shape(labels), float("inf")),
        }
        found = {key: s[key] for key in ("constant", "closest", "distance", "zeros", "steps")}
        (found,) = tf.while_loop(
            lambda s: (s["step"] < attack.num_steps) & ~tf.reduce_all(s["done"]),
            descend,
            ({**afresh, **found},),
            maximum_iterations=attack.num_steps,
        )
        low = tf.where(found["fooled"], s["low"], s["constant"])
        high = tf.where(found["fooled"], s["constant"], s["high"])
        constant = tf.where(tf.math.is_inf(high), 10.0 * s["constant"], (low + high) / 2.0)
        kept = {key: found[key] for key in ("closest", "distance", "zeros", "steps")}
        return ({"number": s["number"] + 1, "constant": constant, "low": low, "high": high, **kept},)

    nothing = tf.zeros_like(x[:, 0, 0, 0])
    distance = tf.where(fools(logits_fn(x)), 0.0, nothing + float("inf"))
    state = {
        "number": 0,
        "constant": nothing + attack.initial_const,
        "low": nothing,
        "high": nothing + float("inf"),
        "closest": x,
        "distance": distance,
        "zeros": nothing,
        "steps": nothing,
    }
    (s,) = tf.while_loop(
        lambda s: s["number"] < attack.binary_search_steps,
        search,
        (state,),
        maximum_iterations=attack.binary_search_steps,
    )
    return tf.stop_gradient(s["closest"]), tf.stop_gradient(s["distance"]), s["zeros"] / s["steps"]
