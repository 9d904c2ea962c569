"""DeepFool, DDN and FMN: gradient attacks that look for the nearest adversarial image."""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_rcl.attacks.fab import to_hyperplane
from keras_rcl.attacks.gradient_ascent import Crafted, Minimal, Round, usable_gradient
from keras_rcl.attacks.norms import DUAL, choose, length, per_example, project, steepest_step
from keras_rcl.attacks.surrogates import cross_entropy, fools, logit_margin, top_wrong_class, unit_gradient
from keras_rcl.vocabulary.attacks import DDN, FMN, DeepFool
from keras_rcl.vocabulary.threat import Norm


class _State(NamedTuple):
    """The state of a search.

    Attributes:
        step: number of steps taken.
        delta: the current perturbations, [N, H, W, C].
        radius: the radius of the ball in which each search is now, [N].
        closest: the closest adversarial images so far, [N, H, W, C].
        distance: of `closest` from x, [N]; infinity where there is none.
        zeros: sum of the shares of zero gradients, [N].
    """

    step: tf.Tensor | int
    delta: tf.Tensor
    radius: tf.Tensor
    closest: tf.Tensor
    distance: tf.Tensor
    zeros: tf.Tensor

    def compared(self, images: tf.Tensor, adversarial: tf.Tensor, distance: tf.Tensor) -> "_State":
        """The state after images [N, ...] were compared with the closest ones."""
        closer = adversarial & (distance < self.distance)
        return self._replace(
            closest=choose(closer, images, self.closest), distance=tf.where(closer, distance, self.distance)
        )


def within(search: Callable) -> Callable:
    """The attack that a search for the nearest adversarial image is, if only images within epsilon count."""

    def attack_within(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack, round: Round) -> Crafted:
        return search(logits_fn, x, labels, attack).within(round.epsilon(attack), x)

    return attack_within


def deepfool(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: DeepFool) -> Minimal:
    """DeepFool: to the nearest border of the linearised classifier, again and again, until the image is adversarial.

    With f_k = logit of class k - logit of the label at x_t, w_k its gradient and q the dual norm, the step goes beyond
    the border of the class of the least |f_k| / ||w_k||_q:

        x_{t+1} = x_t + (1 + overshoot) r_t,   r_t = |f_k| / ||w_k||_2^2 w_k      (l2)
                                                   = |f_k| / ||w_k||_1 sign(w_k)  (linf)

    where the box does not bind, and otherwise the shortest step to that border within the box. Clipping the step
    instead would approach a border without crossing it.

    Args:
        logits_fn: images [N, H, W, C] -> float32 logits [N, K].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes. An image is adversarial if the classifier assigns it any other class.
        attack: the hyper-parameters.

    Returns:
        The first adversarial image of each search, its distance from x, and the share of zero gradients.

    Raises:
        InvalidInputError: if no gradient reaches the pixels.

    References:
        Moosavi-Dezfooli, Fawzi and Frossard 2016, "DeepFool: a simple and accurate method to fool deep neural
        networks", Algorithm 2 and section 3.3.
    """
    logits = logits_fn(x)
    count = min(attack.num_targets, logits.shape[1] - 1)
    candidates = tf.stack([top_wrong_class(labels, logits, rank) for rank in range(count)])
    linearise = _nearest_border(logits_fn, labels, candidates, attack.norm)

    def step(state: _State) -> _State:
        value, gradient, zero = linearise(x + state.delta)
        to_border = to_hyperplane(x + state.delta, gradient, -value, attack.norm)
        images = tf.clip_by_value(x + state.delta + (1.0 + attack.overshoot) * to_border, 0.0, 1.0)
        searching = tf.math.is_inf(state.distance)
        found = searching & fools(logits_fn(images), labels)
        state = state._replace(delta=choose(searching, images - x, state.delta), zeros=state.zeros + zero)
        return state.compared(images, found, length(images - x, attack.norm))

    return _search(step, logits_fn, x, labels, attack)


def ddn(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: DDN) -> Minimal:
    """DDN: steps of cross-entropy on a sphere that shrinks while the image is adversarial and grows while it is not.

        delta <- delta + alpha_t g / ||g||_2,    g = gradient of the cross-entropy at x + delta
        epsilon_t <- (1 - gamma) epsilon_t if x + delta was adversarial, else (1 + gamma) epsilon_t
        delta <- epsilon_t delta / ||delta||_2, clipped to the box

    Args:
        logits_fn: as of `deepfool`, like the arguments that are not described here.
        x: see `deepfool`.
        labels: see `deepfool`.
        attack: the hyper-parameters. alpha_t falls from 1 to 0.01 along a cosine.

    Returns:
        The closest adversarial images that were seen, their distances, and the shares of zero gradients.

    Raises:
        InvalidInputError: if no gradient reaches the pixels.

    References:
        Rony et al. 2019, "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and
        defenses", Algorithm 1; without its rounding to 256 levels.
    """

    def loss(logits):
        return cross_entropy(labels, unit_gradient(logits))

    def step(state: _State) -> _State:
        images = x + state.delta
        logits, gradient = _loss_gradient(logits_fn, images, loss)
        gradient, zero = usable_gradient(gradient)
        adversarial = fools(logits, labels)
        delta = state.delta + _cosine(state.step, attack.num_steps, 1.0, 0.01) * steepest_step(gradient, "l2")
        radius = state.radius * tf.where(adversarial, 1.0 - attack.gamma, 1.0 + attack.gamma)
        delta = per_example(radius, x) * steepest_step(delta, "l2")
        delta = tf.clip_by_value(x + delta, 0.0, 1.0) - x
        state = state.compared(images, adversarial, length(state.delta, "l2"))
        return state._replace(delta=delta, radius=radius, zeros=state.zeros + zero)

    return _search(step, logits_fn, x, labels, attack, radius=attack.initial_epsilon)


def fmn(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: FMN) -> Minimal:
    """FMN: steps of the logit margin in a ball whose radius follows the distance to the border.

        epsilon_t = min((1 - gamma_t) epsilon_t, closest distance)    if x + delta is adversarial
                  = (1 + gamma_t) epsilon_t                           if it is not, but an earlier one was
                  = (1 + gamma_t) (||delta||_p + |margin| / ||g||_q)  otherwise, q the dual norm of p
        delta <- projection of delta + alpha_t g / ||g||_2 to the ball of radius epsilon_t and to the box

    Args:
        logits_fn: as of `deepfool`, like the arguments that are not described here.
        x: see `deepfool`.
        labels: see `deepfool`.
        attack: the hyper-parameters. alpha_t falls from 1 to 0.01, gamma_t from `gamma` to 0.001 along a cosine.

    Returns:
        As of `ddn`.

    Raises:
        InvalidInputError: if no gradient reaches the pixels.

    References:
        Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints", Algorithm 1.
        Its factor in the last case is 1, which reaches the border of a linear classifier and does not cross it.
    """

    def step(state: _State) -> _State:
        images = x + state.delta
        logits, gradient = _loss_gradient(logits_fn, images, lambda logits: logit_margin(labels, logits))
        adversarial, size = fools(logits, labels), length(state.delta, attack.norm)
        state = state.compared(images, adversarial, size)
        gradient, zero = usable_gradient(gradient)
        gamma = _cosine(state.step, attack.num_steps, attack.gamma, 0.001)
        border = tf.math.divide_no_nan(tf.abs(logit_margin(labels, logits)), length(gradient, DUAL[attack.norm]))
        outside = tf.where(tf.math.is_inf(state.distance), size + border, state.radius) * (1.0 + gamma)
        radius = tf.where(adversarial, tf.minimum(state.radius * (1.0 - gamma), state.distance), outside)
        delta = state.delta + _cosine(state.step, attack.num_steps, 1.0, 0.01) * steepest_step(gradient, "l2")
        delta = project(x + delta, x, per_example(radius, x), attack.norm) - x
        return state._replace(delta=delta, radius=radius, zeros=state.zeros + zero)

    return _search(step, logits_fn, x, labels, attack, radius=float("inf"))


def _search(
    step: Callable, logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack, radius: float = 0.0
) -> Minimal:
    """Run `attack.num_steps` steps of a search from x, then look at where it ended."""
    nowhere = tf.where(fools(logits_fn(x), labels), 0.0, float("inf"))
    none = tf.zeros_like(nowhere)
    (state,) = tf.while_loop(
        lambda state: state.step < attack.num_steps,
        lambda state: (step(state)._replace(step=state.step + 1),),
        (_State(0, tf.zeros_like(x), none + radius, x, nowhere, none),),
        maximum_iterations=attack.num_steps,
    )
    last = tf.clip_by_value(x + state.delta, 0.0, 1.0)
    state = state.compared(last, fools(logits_fn(last), labels), length(last - x, attack.norm))
    return Minimal(tf.stop_gradient(state.closest), tf.stop_gradient(state.distance), state.zeros / attack.num_steps)


def _nearest_border(logits_fn: Callable, labels: tf.Tensor, candidates: tf.Tensor, norm: Norm) -> Callable:
    """The function of images [N, ...] that finds the nearest linearised border.

    Args:
        logits_fn: images [N, H, W, C] -> float32 logits [N, K].
        labels: int32 [N], the true classes.
        candidates: int32 [T, N], wrong classes of each image.
        norm: of the distance.

    Returns:
        A function that returns the difference of logits that is 0 there [N], its gradient [N, ...], and the share of
        the gradient's entries that are 0 [N].
    """

    def linearise(images):
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            tape.watch(images)
            logits = logits_fn(images)

        @tf.autograph.experimental.do_not_convert  # AutoGraph would hide an InvalidInputError
        def border(targets):
            toward = tf.one_hot(targets, logits.shape[1]) - tf.one_hot(labels, logits.shape[1])
            gradient, zero = usable_gradient(tape.gradient(logits, images, output_gradients=toward))
            return tf.reduce_sum(toward * logits, axis=1), gradient, zero, length(gradient, DUAL[norm])

        *found, sizes = tf.map_fn(border, candidates, fn_output_signature=(tf.float32,) * 4)
        away = tf.where(sizes > 0, tf.math.divide_no_nan(tf.abs(found[0]), sizes), float("inf"))
        nearest = tf.argmin(away, axis=0, output_type=tf.int32)

        def chosen(of_candidates):
            return tf.gather(tf.einsum("tn...->nt...", of_candidates), nearest, batch_dims=1)

        return tuple(chosen(each) for each in found)

    return linearise


def _loss_gradient(logits_fn: Callable, images: tf.Tensor, loss: Callable) -> tuple[tf.Tensor, tf.Tensor]:
    """The logits [N, K] of images, and the gradient [N, ...] of a loss of the logits."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = logits_fn(images)
        total = tf.reduce_sum(loss(logits))
    return logits, tape.gradient(total, images)


def _cosine(step: tf.Tensor, num_steps: int, first: float, last: float) -> tf.Tensor:
    """A value that falls from `first` to `last` along half a cosine over the steps."""
    share = tf.cast(step, tf.float32) / num_steps
    return last + (first - last) * (1.0 + tf.cos(math.pi * share)) / 2.0
