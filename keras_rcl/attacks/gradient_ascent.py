"""One loop for FGSM, BIM, MI-FGSM, PGD and the attacks on embeddings: start, step, project."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_rcl.attacks.norms import PIXEL_BOX, choose, projection, random_start, steepest_step
from keras_rcl.attacks.surrogates import (
    SURROGATES,
    embedding_distance,
    kl_to_clean,
    supervised_contrastive,
    unit_gradient,
)
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.threat import PROTOCOLS, Protocol


class Crafted(NamedTuple):
    """Adversarial images [N, H, W, C], and the share of each one's pixel gradients that were zero or not finite [N]."""

    images: tf.Tensor
    zero_gradients: tf.Tensor


def gradient_attack(
    logits_fn: Callable,
    x: tf.Tensor,
    labels: tf.Tensor,
    attack: Attack,
    seeds: tf.Tensor,
    round: tf.Tensor,
    start: tf.Tensor | None = None,
) -> Crafted:
    """One round of FGSM, BIM, MI-FGSM or PGD: `ascend` on the attack's surrogate; `round` only tells restarts apart."""
    direction = -1.0 if attack.targeted else 1.0
    reference = tf.stop_gradient(logits_fn(x)) if attack.loss == "kl_to_clean" else labels
    surrogate = kl_to_clean if attack.loss == "kl_to_clean" else SURROGATES[attack.loss]
    scaled = scaling(attack.eot_iter)

    def loss_fn(images):
        return direction * surrogate(reference, scaled(logits_fn(images)))

    def fooled_fn(images):
        reached = tf.equal(tf.argmax(logits_fn(images), axis=1, output_type=labels.dtype), labels)
        return reached if attack.targeted else ~reached

    return ascend(loss_fn, x, attack, seeds, fooled_fn, start)


def embedding_attack(
    embedding_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: Attack, seeds: tf.Tensor, round: tf.Tensor
) -> Crafted:
    """One round of the embedding attack: away from where an encoder, images -> [N, D], puts the image itself."""
    clean = tf.stop_gradient(embedding_fn(x))
    return ascend(lambda images: embedding_distance(clean, embedding_fn(images)), x, attack, seeds)


def supcon_attack(
    projection_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: Attack, seeds: tf.Tensor, support: tuple | None
) -> Crafted:
    """One round of the SupCon attack, with the `support`'s labels [M] and projections [M, D] to contrast with.

    Raises:
        InvalidInputError: if each image is to have its own as its positive, and a support of other images is given.
    """
    if attack.positives == "image":
        if support is not None:
            raise InvalidInputError(
                f"{attack.label} contrasts an image with its batch, in training; use positives=class"
            )
        labels = tf.range(tf.shape(x)[0])

    def project(images):
        return tf.math.l2_normalize(projection_fn(images), axis=1)

    support_labels, projections = (labels, project(x)) if support is None else support
    contrast = support_labels, tf.stop_gradient(tf.math.l2_normalize(projections, axis=1)), attack.temperature

    def loss_fn(images):
        return supervised_contrastive(labels, project(images), *contrast)

    return ascend(loss_fn, x, attack, seeds)


def joint_attack(
    outputs_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: Attack, seeds: tf.Tensor, round: tf.Tensor
) -> Crafted:
    """One round of the joint attack: up a surrogate of the logits, and SupCon of the projection against the batch's.

    `outputs_fn` gives both: [N, K] and [N, D]. The logits' gradient is not scaled, which would weigh the sum anew.
    """
    logits, projection = outputs_fn(x)
    surrogate, reference = SURROGATES["cross_entropy"], labels
    if attack.loss == "kl_to_clean":
        surrogate, reference = kl_to_clean, tf.stop_gradient(logits)
    contrast = labels, tf.stop_gradient(tf.math.l2_normalize(projection, axis=1)), attack.temperature

    def loss_fn(images):
        logits, projection = outputs_fn(images)
        apart = supervised_contrastive(labels, tf.math.l2_normalize(projection, axis=1), *contrast)
        return surrogate(reference, logits) + attack.weight * apart

    return ascend(loss_fn, x, attack, seeds)


def ascend(
    loss_fn: Callable,
    x: tf.Tensor,
    attack: Attack,
    seeds: tf.Tensor,
    fooled_fn: Callable | None = None,
    start: tf.Tensor | None = None,
) -> Crafted:
    """Climb `loss_fn` from x within the ball.

        u_0 = u(x), or uniform in the ball;   u_{t+1} = project(u_t + step_size * steepest_step(d_t))
        d_t = grad loss(u_t), or with momentum   d_t = momentum * d_{t-1} + grad / ||grad||_1

    in the coordinates u of the attack's protocol, which for `pixel` are x themselves.

    Args:
        loss_fn: [N, H, W, C] -> [N], maximised. It is summed over the batch, so that examples do not interact.
        x: float32 images in [0, 1], [N, H, W, C].
        attack: the hyper-parameters.
        seeds: [N, 2], one stateless seed an example.
        fooled_fn: [N, H, W, C] -> [N] bool, whether an image has done its work; asked where the attack stops early.
        start: images [N, H, W, C] of ball and box to climb from; the attack's own start where not given.

    The loop is a `tf.while_loop`: the graph does not grow with `num_steps`, and the tape sees nothing but pixels.

    Raises:
        InvalidInputError: if no gradient reaches the pixels, or the protocol is not one of images of so many channels.

    Sources: Goodfellow et al. 2015 (FGSM), Kurakin et al. 2017 (BIM), Madry et al. 2018 (PGD), Dong et al. 2018
    (momentum).
    """
    to_units, to_pixels, box = coordinates(attack.protocol, x.shape[-1])
    origin = to_units(x)
    if start is not None:
        start = to_units(start)
    else:
        start = random_start(origin, attack.epsilon, attack.norm, seeds, box) if attack.random_start else origin
    num_steps = attack.num_steps - attack.stops_early
    nearest = projection(origin, attack.epsilon, attack.norm, box)

    def gradient_at(u):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(u)
            loss = tf.reduce_sum(loss_fn(to_pixels(u)))
        return (tape.gradient(loss, u),)

    def climb(step, u, direction, zeros):
        gradient, zero = mean_gradient(lambda: gradient_at(u), attack.eot_iter)
        if attack.momentum:
            size = tf.reduce_sum(tf.abs(gradient), axis=list(range(1, gradient.shape.rank)), keepdims=True)
            direction = attack.momentum * direction + tf.math.divide_no_nan(gradient, size)
        else:
            direction = gradient
        moved = nearest(u + attack.resolved_step_size * steepest_step(direction, attack.norm))
        if attack.stops_early:
            moved = choose(fooled_fn(to_pixels(u)), u, moved)
        return step + 1, moved, direction, zeros + zero

    _, u, _, zeros = tf.while_loop(
        lambda step, *_: step < num_steps,
        climb,
        (0, start, tf.zeros_like(x), tf.zeros_like(x[:, 0, 0, 0])),
        maximum_iterations=num_steps,
    )
    return Crafted(tf.stop_gradient(to_pixels(u)), zeros / num_steps)


def coordinates(protocol: Protocol, channels: int) -> tuple[Callable, Callable, tuple]:
    """(pixels -> u, u -> pixels, box of u) of a protocol, for images of 1 or 3 channels; for `pixel` any number."""
    if protocol == "pixel":
        return tf.identity, tf.identity, PIXEL_BOX
    if channels not in (1, 3):
        raise InvalidInputError(f"protocol {protocol} is of images with 3 channels or 1, not {channels}; use pixel")
    found = PROTOCOLS[protocol]
    shift, scale = (np.array(values, np.float32) for values in (found.shift, found.scale))
    if channels == 1:
        shift, scale = shift.mean(keepdims=True), scale.mean(keepdims=True)
    box = found.box or ((0.0 - shift) / scale, (1.0 - shift) / scale)
    return lambda x: (x - shift) / scale, lambda u: tf.clip_by_value(u * scale + shift, 0.0, 1.0), box


def mean_gradient(once: Callable, passes: int) -> tuple[tf.Tensor, ...]:
    """The expectation over a classifier's own randomness (EOT, Athalye et al. 2018).

    Args:
        once: () -> tensors, of which the first is a gradient.
        passes: how often it is called, in a loop: the graph does not grow with it.

    Returns:
        The mean of the gradients, each as `usable_gradient` makes it, and its share of zeros; then the other tensors
        as the last call gave them.
    """

    def usable():
        gradient, *others = once()
        return *usable_gradient(gradient), *others

    if passes == 1:
        return usable()
    gradient, _, *others = usable()

    def again(number, total, *_):
        gradient, _, *others = usable()
        return number + 1, total + gradient, *others

    _, total, *others = tf.while_loop(
        lambda number, *_: number < passes, again, (1, gradient, *others), maximum_iterations=passes - 1
    )
    return *usable_gradient(total / passes), *others


def scaling(passes: int) -> Callable:
    """What to do to logits before a loss: `unit_gradient`, but where factors of its own would weigh several passes."""
    return unit_gradient if passes == 1 else tf.identity


def usable_gradient(gradient: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """The gradient [N, ...] with 0 for what is not finite, and the share of each example's entries that are 0 [N].

    Raises:
        InvalidInputError: if there is no gradient.
    """
    if gradient is None:
        raise InvalidInputError(
            "no gradient reaches the pixels: the model is not differentiable with respect to float images; "
            "attack its float endpoint, or use a black-box attack such as square"
        )
    usable = tf.cast(tf.math.is_finite(gradient) & (gradient != 0), gradient.dtype)
    zeros = 1.0 - tf.reduce_mean(usable, axis=list(range(1, gradient.shape.rank)))
    return tf.math.multiply_no_nan(gradient, usable), zeros
