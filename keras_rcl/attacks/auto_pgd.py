"""APGD: projected gradient ascent with momentum that halves its own step size when it stops paying."""

from collections.abc import Callable

import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted, mean_gradient, scaling
from keras_rcl.attacks.norms import boundary_start, choose, per_example, projection, steepest_step
from keras_rcl.attacks.surrogates import SURROGATES, dlr_targeted, top_wrong_class
from keras_rcl.vocabulary.attacks import AutoPGD

MOMENTUM = 0.75
FIRST_WINDOW, SHORTEST_WINDOW, WINDOW_SHRINKS = 0.22, 0.06, 0.03
"""Of the number of steps: the checkpoints are p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""


def auto_pgd(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: AutoPGD, seeds: tf.Tensor, round: tf.Tensor
) -> Crafted:
    """One round of APGD (Croce and Hein 2020, arXiv:2003.01690, Algorithm 1).

        z_{t+1} = P(x_t + eta_t * steepest_step(grad L(x_t)))
        x_{t+1} = P(x_t + 0.75 * (z_{t+1} - x_t) + 0.25 * (x_t - x_{t-1})),    eta_0 = 2 epsilon

    At each checkpoint an example's eta is halved, and it goes on from its best point, if fewer than `rho` of the steps
    since the last one raised the loss, or if eta was not halved there and the best loss is still the same.

    Args:
        logits_fn: [N, H, W, C] -> [N, K] float32.
        x: float32 images in [0, 1], [N, H, W, C].
        labels: [N], the true classes.
        attack: the hyper-parameters.
        seeds: [N, 2], one stateless seed an example, for the start on the boundary of the ball.
        round: which target the targeted loss goes for, 0 the likeliest wrong class; scalar.

    Returns:
        For each example the first image that fooled the classifier, or else the one of highest loss. The loop ends when
        every example has fooled it.
    """
    if attack.loss == "dlr_targeted":
        targets = top_wrong_class(labels, logits_fn(x), round % attack.num_targets)
    scale = scaling(attack.eot_iter)

    def once(images):
        """The gradient of the loss [N, ...], the loss [N], whether the image fools [N]."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            logits = logits_fn(images)
            scaled = scale(logits)
            if attack.loss == "dlr_targeted":
                loss = dlr_targeted(labels, scaled, targets)
            else:
                loss = SURROGATES[attack.loss](labels, scaled)
            total = tf.reduce_sum(loss)
        return tape.gradient(total, images), loss, tf.argmax(logits, axis=1, output_type=tf.int32) != labels

    def evaluate(images):
        """Loss [N], gradient, share of its zeros [N], whether the image fools [N]; loss and class of the last pass."""
        gradient, zeros, loss, fooled = mean_gradient(lambda: once(images), attack.eot_iter)
        return loss, gradient, zeros, fooled

    nearest = projection(x, attack.epsilon, attack.norm)
    first_window = max(int(FIRST_WINDOW * attack.num_steps), 1)
    shortest_window = max(int(SHORTEST_WINDOW * attack.num_steps), 1)
    shrinks = max(int(WINDOW_SHRINKS * attack.num_steps), 1)

    start = boundary_start(x, attack.epsilon, attack.norm, seeds)
    loss, gradient, zeros, fooled = evaluate(start)
    state = {
        "step": 0,
        "images": start,
        "previous": start,
        "gradient": gradient,
        "loss": loss,
        "fooled": fooled,
        "fooling": start,
        "best": start,
        "best_gradient": gradient,
        "best_loss": loss,
        "step_size": tf.fill(tf.shape(loss), 2.0 * attack.epsilon),
        "window": first_window,
        "since_check": 0,
        "raises": tf.zeros_like(loss),
        "checked_loss": loss,
        "just_halved": tf.ones_like(fooled),  # so that the first checkpoint asks only how often the loss rose
        "zeros": zeros,
    }

    def climb(s):
        size = per_example(s["step_size"], x)
        z = nearest(s["images"] + size * steepest_step(s["gradient"], attack.norm))
        share = tf.where(s["step"] == 0, 1.0, MOMENTUM)
        step = share * (z - s["images"]) + (1.0 - share) * (s["images"] - s["previous"])
        images = nearest(s["images"] + step)
        loss, gradient, zeros, fooled = evaluate(images)
        better = loss > s["best_loss"]
        s = {
            **s,
            "step": s["step"] + 1,
            "images": images,
            "previous": s["images"],
            "gradient": gradient,
            "raises": s["raises"] + tf.cast(loss > s["loss"], tf.float32),
            "loss": loss,
            "fooled": s["fooled"] | fooled,
            "fooling": choose(s["fooled"], s["fooling"], images),
            "best": choose(better, images, s["best"]),
            "best_gradient": choose(better, gradient, s["best_gradient"]),
            "best_loss": tf.maximum(loss, s["best_loss"]),
            "since_check": s["since_check"] + 1,
            "zeros": s["zeros"] + zeros,
        }
        return (tf.cond(s["since_check"] == s["window"], lambda: check(s), lambda: s),)

    def check(s):
        oscillates = s["raises"] <= attack.rho * tf.cast(s["window"], tf.float32)
        stuck = ~s["just_halved"] & (s["checked_loss"] >= s["best_loss"])
        halve = oscillates | stuck
        return {
            **s,
            "step_size": tf.where(halve, s["step_size"] / 2.0, s["step_size"]),
            "images": choose(halve, s["best"], s["images"]),
            "gradient": choose(halve, s["best_gradient"], s["gradient"]),
            "window": tf.maximum(s["window"] - shrinks, shortest_window),
            "since_check": 0,
            "raises": tf.zeros_like(s["raises"]),
            "checked_loss": s["best_loss"],
            "just_halved": halve,
        }

    (s,) = tf.while_loop(
        lambda s: (s["step"] < attack.num_steps) & ~tf.reduce_all(s["fooled"]),
        climb,
        (state,),
        maximum_iterations=attack.num_steps,
    )
    images = choose(s["fooled"], s["fooling"], s["best"])
    return Crafted(tf.stop_gradient(images), s["zeros"] / tf.cast(s["step"] + 1, tf.float32))
