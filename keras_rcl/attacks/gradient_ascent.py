"""One loop for FGSM, BIM and PGD: start, step, project."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_rcl.attacks.norms import project, random_start, steepest_step
from keras_rcl.attacks.surrogates import SURROGATES, unit_gradient
from keras_rcl.vocabulary.attack import Attack
from keras_rcl.vocabulary.word import Refused


class Crafted(NamedTuple):
    """Adversarial images [N, H, W, C], and the share of each one's pixel gradients that were zero or not finite [N]."""

    images: tf.Tensor
    zero_gradients: tf.Tensor


def gradient_attack(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: Attack, seeds: tf.Tensor, round: tf.Tensor
) -> Crafted:
    """One round of FGSM, BIM or PGD: `ascend` on the attack's surrogate loss; `round` only tells restarts apart."""
    direction = -1.0 if attack.targeted else 1.0

    def loss_fn(images):
        return direction * SURROGATES[attack.loss](labels, unit_gradient(logits_fn(images)))

    return ascend(loss_fn, x, attack, seeds)


def ascend(loss_fn: Callable, x: tf.Tensor, attack: Attack, seeds: tf.Tensor) -> Crafted:
    """Climb `loss_fn` from x within the ball.

        x_0 = x, or uniform in the ball;   x_{t+1} = project(x_t + step_size * steepest_step(grad loss(x_t)))

    Args:
        loss_fn: [N, H, W, C] -> [N], maximised. It is summed over the batch, so that examples do not interact.
        x: float32 images in [0, 1], [N, H, W, C].
        attack: the hyper-parameters.
        seeds: [N, 2], one stateless seed an example.

    The loop is a `tf.while_loop`: the graph does not grow with `num_steps`, and the tape sees nothing but pixels.

    Raises:
        Refused: if no gradient reaches the pixels.

    Sources: Goodfellow et al. 2015 (FGSM), Kurakin et al. 2017 (BIM), Madry et al. 2018 (PGD).
    """
    start = random_start(x, attack.epsilon, attack.norm, seeds) if attack.random_start else x

    def climb(step, x_adv, zeros):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x_adv)
            loss = tf.reduce_sum(loss_fn(x_adv))
        gradient, zero = usable_gradient(tape.gradient(loss, x_adv))
        x_adv = x_adv + attack.resolved_step_size * steepest_step(gradient, attack.norm)
        return step + 1, project(x_adv, x, attack.epsilon, attack.norm), zeros + zero

    _, x_adv, zeros = tf.while_loop(
        lambda step, *_: step < attack.num_steps,
        climb,
        (0, start, tf.zeros_like(x[:, 0, 0, 0])),
        maximum_iterations=attack.num_steps,
    )
    return Crafted(tf.stop_gradient(x_adv), zeros / attack.num_steps)


def usable_gradient(gradient: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """The gradient [N, ...] with 0 for what is not finite, and the share of each example's entries that are 0 [N].

    Raises:
        Refused: if there is no gradient.
    """
    if gradient is None:
        raise Refused(
            "no gradient reaches the pixels: the model is not differentiable with respect to float images; "
            "attack its float endpoint, or use a black-box attack such as square"
        )
    usable = tf.math.is_finite(gradient) & (gradient != 0)
    zeros = 1.0 - tf.reduce_mean(tf.cast(usable, tf.float32), axis=list(range(1, gradient.shape.rank)))
    return tf.where(usable, gradient, 0.0), zeros
