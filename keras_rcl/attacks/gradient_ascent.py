"""One loop for FGSM, BIM, MI-FGSM, PGD and the attacks on embeddings: start, step, project."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_rcl.attacks.norms import PIXEL_BOX, ascent, choose, normal, project, random_start
from keras_rcl.attacks.surrogates import (
    contrast_within,
    embedding_distance,
    supervised_contrastive,
    surrogate_of,
    unit_gradient,
)
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import BIM, FGSM, MIFGSM, PGD, AttackBase, Embedding, JointAttack, SupConAttack
from keras_rcl.vocabulary.threat import PROTOCOLS, Protocol

Ascent = FGSM | BIM | MIFGSM | PGD | Embedding | SupConAttack | JointAttack
"""The attacks that `ascend` runs."""


class Crafted(NamedTuple):
    """What an attack returns.

    Attributes:
        images: adversarial images, float32 [N, H, W, C].
        zero_gradients: the share of each image's pixel gradients that were zero or not finite, [N].
    """

    images: tf.Tensor
    zero_gradients: tf.Tensor


class Minimal(NamedTuple):
    """What an attack that minimises the perturbation returns.

    Attributes:
        images: the closest adversarial images found, float32 [N, H, W, C].
        distance: their distances from the clean images, [N]; infinity where none was found.
        zero_gradients: as of `Crafted`.
    """

    images: tf.Tensor
    distance: tf.Tensor
    zero_gradients: tf.Tensor

    def within(self, epsilon: tf.Tensor | float, x: tf.Tensor) -> Crafted:
        """The images that lie within epsilon, and the clean images x where none does; cut off from gradients."""
        images = choose(self.distance <= epsilon, self.images, x)
        return Crafted(tf.stop_gradient(images), self.zero_gradients)


class Numbers(NamedTuple):
    """The settings of an attack that its graph can read: attacks that differ in nothing else share one graph.

    Attributes:
        epsilon: radius of the ball, in the protocol's units.
        step_size: length of a step of `ascend`, in the protocol's units.
        num_steps: steps that `ascend` makes.
    """

    epsilon: tf.Tensor | float
    step_size: tf.Tensor | float = 0.0
    num_steps: tf.Tensor | int = 0

    def scaled(self, share: tf.Tensor | float) -> "Numbers":
        """The same number of steps in a smaller ball, with steps of the same share of its radius."""
        return self._replace(epsilon=share * self.epsilon, step_size=share * self.step_size)


NUMBERS = Numbers(*(tf.TensorSpec([], dtype) for dtype in (tf.float32, tf.float32, tf.int32)))
"""The signature of `Numbers` as inputs of a graph."""


class Round(NamedTuple):
    """One round of an attack: what it gets besides images and labels. Each attack uses what it needs.

    Attributes:
        seeds: int64 [N, 2], one stateless seed per example.
        number: int32 [N], or a scalar for all examples, below the attack's `num_rounds`; it tells target classes apart.
        start: images [N, H, W, C] of ball and box where BIM and PGD start; None for the attack's own start.
        support: labels [M] and projections [M, D] that the SupCon attack contrasts with; None for those of the batch.
        numbers: what replaces those of the attack, if `craft.sharing` gives any for it; None for those of the attack.
        width: how many images the model may be given at once, if an attack can use more than N; 0 for N.
    """

    seeds: Any = None
    number: tf.Tensor | int = 0
    start: tf.Tensor | None = None
    support: tuple[tf.Tensor, tf.Tensor] | None = None
    numbers: Numbers | None = None
    width: int = 0

    def epsilon(self, attack: AttackBase) -> tf.Tensor | float:
        """The radius of the attack's ball; infinity if the nearest adversarial image is wanted, wherever it is."""
        return attack.epsilon if self.numbers is None else self.numbers.epsilon

    def enough(self, attack: AttackBase) -> tf.Tensor | float:
        """The distance at which a search for the nearest adversarial image may end: 0 where epsilon is infinite."""
        epsilon = self.epsilon(attack)
        return tf.where(tf.math.is_inf(epsilon), 0.0, epsilon)


def gradient_attack(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: FGSM | BIM | MIFGSM | PGD, round: Round
) -> Crafted:
    """One round of FGSM, BIM, MI-FGSM or PGD: `ascend` on the surrogate that `attack.loss` names.

    Args:
        logits_fn: images [N, H, W, C] -> float32 logits [N, K].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes; for a targeted attack the classes to reach.
        attack: the hyper-parameters.
        round: seeds of the random start, or the start itself.

    Returns:
        The images after the last step, and their shares of zero gradients.

    Raises:
        InvalidInputError: as of `ascend`.

    References:
        Those of `ascend`.
    """
    surrogate = surrogate_of(attack.loss, labels, attack.targeted, lambda: logits_fn(x))
    scaled = scaling(attack.eot_iter)

    def loss_fn(images):
        return surrogate(scaled(logits_fn(images)))

    return ascend(loss_fn, x, attack, round)


def embedding_attack(
    embedding_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: Embedding, round: Round
) -> Crafted:
    """One round of the embedding attack, which maximises the mean squared distance to the clean image's embedding.

        L(x') = mean_i (h_i(x') - h_i(x))^2

    Args:
        embedding_fn: images [N, H, W, C] -> float32 embeddings h [N, D].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: unused.
        attack: the hyper-parameters.
        round: seeds of the random start.

    Returns:
        The images after the last step, and their shares of zero gradients.

    Raises:
        InvalidInputError: as of `ascend`.

    References:
        Landsman et al. 2020, the "SC" attack.
    """
    clean = tf.stop_gradient(embedding_fn(x))
    return ascend(lambda images: embedding_distance(clean, embedding_fn(images)), x, attack, round)


def supcon_attack(
    projection_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: SupConAttack, round: Round
) -> Crafted:
    """One round of the SupCon attack, which maximises `supervised_contrastive` of each image against fixed samples.

    Args:
        projection_fn: images [N, H, W, C] -> float32 projections [N, D], normalised here.
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes.
        attack: the hyper-parameters.
        round: seeds of the random start, and the support: labels [M] and projections [M, D] to contrast with, those of
            x itself if None.

    Returns:
        The images after the last step, and their shares of zero gradients.

    Raises:
        InvalidInputError: if a support is given, and `attack.positives` is `image` or `attack.contrast` is `attacked`;
            otherwise as of `ascend`.

    References:
        Khosla et al. 2020, "Supervised contrastive learning" (the loss).
    """
    support = round.support
    if support is not None and (attack.positives == "image" or attack.contrast == "attacked"):
        raise InvalidInputError(
            f"{attack.label} contrasts an image with its batch, in training; use positives=class and contrast=clean"
        )
    if attack.positives == "image":
        labels = tf.range(tf.shape(x)[0])

    def project(images):
        return tf.math.l2_normalize(projection_fn(images), axis=1)

    if attack.contrast == "attacked":
        return ascend(lambda images: contrast_within(labels, project(images), attack.temperature), x, attack, round)
    support_labels, projections = (labels, project(x)) if support is None else support
    contrast = support_labels, tf.stop_gradient(tf.math.l2_normalize(projections, axis=1)), attack.temperature

    def loss_fn(images):
        return supervised_contrastive(labels, project(images), *contrast)

    return ascend(loss_fn, x, attack, round)


def joint_attack(outputs_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: JointAttack, round: Round) -> Crafted:
    """One round of the joint attack, which maximises a surrogate of the logits plus SupCon against the clean batch.

        L(x') = surrogate(logits(x')) + weight * supervised_contrastive(projection(x'))

    The gradient of the logits is not rescaled, as that would change the weights of the sum.

    Args:
        outputs_fn: images [N, H, W, C] -> float32 logits [N, K] and projections [N, D].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes.
        attack: the hyper-parameters.
        round: seeds of the random start.

    Returns:
        The images after the last step, and their shares of zero gradients.

    Raises:
        InvalidInputError: as of `ascend`.
    """
    logits, projection = outputs_fn(x)
    surrogate = surrogate_of(attack.loss, labels, clean_logits=lambda: logits)
    contrast = labels, tf.stop_gradient(tf.math.l2_normalize(projection, axis=1)), attack.temperature

    def loss_fn(images):
        logits, projection = outputs_fn(images)
        apart = supervised_contrastive(labels, tf.math.l2_normalize(projection, axis=1), *contrast)
        return surrogate(logits) + attack.weight * apart

    return ascend(loss_fn, x, attack, round)


def numbers_of(attack: Ascent) -> Numbers:
    """The numbers of an attack that `ascend` runs."""
    return Numbers(attack.epsilon, attack.resolved_step_size, attack.num_steps - attack.loses_last_step)


def ascend(loss_fn: Callable, x: tf.Tensor, attack: Ascent, round: Round) -> Crafted:
    """Maximise `loss_fn` from x within the ball.

        u_0 = u(x), or random in the ball;   u_{t+1} = project(u_t + step_size * steepest_step(d_t)), for l1 `ascent`
        d_t = grad loss(u_t), or with momentum   d_t = momentum * d_{t-1} + grad / ||grad||_1

    in the coordinates u of the attack's protocol, which for `pixel` are x themselves.

    Args:
        loss_fn: [N, H, W, C] -> [N], maximised. It is summed over the batch, so that examples do not interact, unless
            the loss itself contrasts them.
        x: float32 images in [0, 1], [N, H, W, C].
        attack: the hyper-parameters.
        round: seeds of the random start, or the start itself, and numbers in place of those of the attack.

    Returns:
        The images after the last step, cut off from any tape, and their shares of zero gradients. The loop is a
        `tf.while_loop`: the graph does not grow with `num_steps`, and the tape watches nothing but pixels.

    Raises:
        InvalidInputError: if no gradient reaches the pixels, or the protocol does not allow this number of channels.

    References:
        Goodfellow et al. 2015 (FGSM), Kurakin et al. 2017 (BIM), Madry et al. 2018 (PGD), Dong et al. 2018 (momentum).
    """
    to_units, to_pixels, box = coordinates(attack.protocol, x.shape[-1])
    origin = start = to_units(x)
    epsilon, step_size, num_steps = round.numbers or numbers_of(attack)
    if round.start is not None:
        start = to_units(round.start)
    elif attack.start_deviation is not None:
        start = origin + attack.start_deviation * normal(x.shape[1:], round.seeds)
        start = project(start, origin, epsilon, attack.norm, box)
    elif attack.random_start:
        start = random_start(origin, epsilon, attack.norm, round.seeds, box)
    step_up = ascent(origin, epsilon, attack.norm, box)

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
        moved = step_up(u, direction, step_size)
        return step + 1, moved, direction, zeros + zero

    _, u, _, zeros = tf.while_loop(
        lambda step, *_: step < num_steps,
        climb,
        (0, start, tf.zeros_like(x), tf.zeros_like(x[:, 0, 0, 0])),
        maximum_iterations=num_steps,
    )
    return Crafted(tf.stop_gradient(to_pixels(u)), zeros / tf.cast(num_steps, tf.float32))


def coordinates(protocol: Protocol, channels: int) -> tuple[Callable, Callable, tuple]:
    """The coordinates u in which a protocol measures and clips perturbations.

    Args:
        protocol: a name in `PROTOCOLS`, or `pixel`.
        channels: 1 or 3; any number for `pixel`.

    Returns:
        The functions pixels -> u and u -> pixels, and the box (low, high) of u.

    Raises:
        InvalidInputError: if the protocol does not allow this number of channels.
    """
    if protocol == "pixel":
        return tf.identity, tf.identity, PIXEL_BOX
    if channels not in (1, 3):
        raise InvalidInputError(f"protocol {protocol} needs images of 1 or 3 channels, not {channels}; use pixel")
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
    """What to apply to logits before a loss: `unit_gradient` for one pass, whose scale would weight several passes."""
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
