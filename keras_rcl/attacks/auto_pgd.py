"""APGD: projected gradient ascent with momentum that halves its own step size when the loss stops rising."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_rcl.attacks.auto_pgd_l1 import auto_pgd_l1
from keras_rcl.attacks.gradient_ascent import Crafted, Round, mean_gradient, scaling
from keras_rcl.attacks.norms import Radius, boundary_start, choose, per_example, projection, steepest_step
from keras_rcl.attacks.surrogates import SURROGATES, dlr_targeted, fools, top_wrong_class
from keras_rcl.vocabulary.attacks import AutoPGD

MOMENTUM = 0.75
FIRST_WINDOW, SHORTEST_WINDOW, WINDOW_SHRINKS = 0.22, 0.06, 0.03
"""As shares of the number of steps: the checkpoints are p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""


class _Evaluation(NamedTuple):
    """What the classifier says of some images.

    Attributes:
        loss: [N].
        gradient: of the loss, [N, H, W, C].
        zeros: share of the gradient's entries that are 0, [N].
        fooled: bool [N], True where the predicted class is not the label.
    """

    loss: tf.Tensor
    gradient: tf.Tensor
    zeros: tf.Tensor
    fooled: tf.Tensor


class _State(NamedTuple):
    """The state of the loop.

    Attributes:
        step: number of steps taken.
        images: the current points x_t, [N, H, W, C]; `previous` holds x_{t-1}.
        previous: see `images`.
        gradient: at `images`.
        loss: at `images`, [N].
        fooled: bool [N], whether any point so far fooled the classifier.
        fooling: the first point that did, [N, H, W, C].
        best: the point of the highest loss so far, with its gradient and loss in `best_gradient` and `best_loss`.
        best_gradient: see `best`.
        best_loss: see `best`.
        step_size: eta, [N].
        window: number of steps between the last checkpoint and the next.
        since_check: number of steps since the last checkpoint.
        raises: how many of those steps raised the loss, [N].
        checked_loss: the best loss at the last checkpoint, [N].
        just_halved: bool [N], whether eta was halved there.
        zeros: sum of the shares of zero gradients, [N].
    """

    step: tf.Tensor | int
    images: tf.Tensor
    previous: tf.Tensor
    gradient: tf.Tensor
    loss: tf.Tensor
    fooled: tf.Tensor
    fooling: tf.Tensor
    best: tf.Tensor
    best_gradient: tf.Tensor
    best_loss: tf.Tensor
    step_size: tf.Tensor
    window: tf.Tensor | int
    since_check: tf.Tensor | int
    raises: tf.Tensor
    checked_loss: tf.Tensor
    just_halved: tf.Tensor
    zeros: tf.Tensor


def auto_pgd(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: AutoPGD, round: Round) -> Crafted:
    """One round of APGD, which maximises `attack.loss`: cross-entropy, DLR, targeted DLR or the logit margin.

        z_{t+1} = P(x_t + eta_t * steepest_step(grad L(x_t)))
        x_{t+1} = P(x_t + 0.75 * (z_{t+1} - x_t) + 0.25 * (x_t - x_{t-1})),    eta_0 = 2 epsilon

    At each checkpoint an example's eta is halved, and the example continues from its best point, if fewer than `rho` of
    the steps since the last checkpoint raised the loss, or if eta was not halved there and the best loss has not risen.
    For l1 the steps are those of `auto_pgd_l1`.

    Args:
        logits_fn: images [N, H, W, C] -> float32 logits [N, K].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes.
        attack: the hyper-parameters.
        round: its seeds choose the start on the boundary of the ball. Its number chooses the target of the targeted
            loss: 0 is the wrong class of the largest logit.

    Returns:
        For each example, the first image that fooled the classifier; if none did, the one of the highest loss. The loop
        ends when every example has fooled the classifier.

    Raises:
        InvalidInputError: if no gradient reaches the pixels.

    References:
        Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks" (arXiv:2003.01690), Algorithm 1.
    """
    evaluate = _evaluation(logits_fn, x, labels, attack, round)
    if attack.norm == "l1":
        images, zeros = auto_pgd_l1(evaluate, x, attack, round.seeds)
        return Crafted(tf.stop_gradient(images), zeros)
    epsilon = round.epsilon(attack)
    nearest = projection(x, epsilon, attack.norm)
    first_window, shortest_window, shrinks = (
        max(int(share * attack.num_steps), 1) for share in (FIRST_WINDOW, SHORTEST_WINDOW, WINDOW_SHRINKS)
    )

    def climb(state: _State) -> tuple[_State]:
        state = _take_step(state, evaluate, nearest, attack)
        return (
            tf.cond(
                state.since_check == state.window,
                lambda: _check(state, attack.rho, shrinks, shortest_window),
                lambda: state,
            ),
        )

    start = boundary_start(x, epsilon, attack.norm, round.seeds)
    (state,) = tf.while_loop(
        lambda state: (state.step < attack.num_steps) & ~tf.reduce_all(state.fooled),
        climb,
        (_first_state(start, evaluate(start), epsilon, first_window),),
        maximum_iterations=attack.num_steps,
    )
    images = choose(state.fooled, state.fooling, state.best)
    return Crafted(tf.stop_gradient(images), state.zeros / tf.cast(state.step + 1, tf.float32))


def _evaluation(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: AutoPGD, round: Round
) -> Callable[[tf.Tensor], _Evaluation]:
    """The function from images [N, H, W, C] to the classifier's loss and gradient there, averaged over EOT passes."""
    targeted = attack.loss == "dlr_targeted"
    targets = top_wrong_class(labels, logits_fn(x), round.number % attack.num_targets) if targeted else None
    scale = scaling(attack.eot_iter)

    def once(images):
        """The gradient of the loss [N, ...], the loss [N], whether the image fools [N]."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            logits = logits_fn(images)
            scaled = scale(logits)
            loss = dlr_targeted(labels, scaled, targets) if targeted else SURROGATES[attack.loss](labels, scaled)
            total = tf.reduce_sum(loss)
        return tape.gradient(total, images), loss, fools(logits, labels)

    def evaluate(images):
        gradient, zeros, loss, fooled = mean_gradient(lambda: once(images), attack.eot_iter)
        return _Evaluation(loss, gradient, zeros, fooled)

    return evaluate


def _first_state(start: tf.Tensor, found: _Evaluation, epsilon: Radius, window: int) -> _State:
    """The state before the first step, from the images where it begins and their evaluation."""
    return _State(
        step=0,
        images=start,
        previous=start,
        gradient=found.gradient,
        loss=found.loss,
        fooled=found.fooled,
        fooling=start,
        best=start,
        best_gradient=found.gradient,
        best_loss=found.loss,
        step_size=tf.fill(tf.shape(found.loss), 2.0 * epsilon),
        window=window,
        since_check=0,
        raises=tf.zeros_like(found.loss),
        checked_loss=found.loss,
        just_halved=tf.ones_like(found.fooled),  # the first checkpoint asks only how often the loss rose
        zeros=found.zeros,
    )


def _take_step(state: _State, evaluate: Callable, nearest: Callable, attack: AutoPGD) -> _State:
    """One step with momentum; the first step has none."""
    size = per_example(state.step_size, state.images)
    z = nearest(state.images + size * steepest_step(state.gradient, attack.norm))
    share = tf.where(state.step == 0, 1.0, MOMENTUM)
    step = share * (z - state.images) + (1.0 - share) * (state.images - state.previous)
    images = nearest(state.images + step)
    found = evaluate(images)
    better = found.loss > state.best_loss
    return state._replace(
        step=state.step + 1,
        images=images,
        previous=state.images,
        gradient=found.gradient,
        raises=state.raises + tf.cast(found.loss > state.loss, tf.float32),
        loss=found.loss,
        fooled=state.fooled | found.fooled,
        fooling=choose(state.fooled, state.fooling, images),
        best=choose(better, images, state.best),
        best_gradient=choose(better, found.gradient, state.best_gradient),
        best_loss=tf.maximum(found.loss, state.best_loss),
        since_check=state.since_check + 1,
        zeros=state.zeros + found.zeros,
    )


def _check(state: _State, rho: float, shrinks: int, shortest_window: int) -> _State:
    """A checkpoint: halve the step size, and return to the best point, where the loss rose too seldom or not at all."""
    oscillates = state.raises <= rho * tf.cast(state.window, tf.float32)
    stuck = ~state.just_halved & (state.checked_loss >= state.best_loss)
    halve = oscillates | stuck
    return state._replace(
        step_size=tf.where(halve, state.step_size / 2.0, state.step_size),
        images=choose(halve, state.best, state.images),
        gradient=choose(halve, state.best_gradient, state.gradient),
        window=tf.maximum(state.window - shrinks, shortest_window),
        since_check=0,
        raises=tf.zeros_like(state.raises),
        checked_loss=state.best_loss,
        just_halved=halve,
    )
