"""APGD for L1: steps that change few pixels, and fewer as the perturbation becomes sparse."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_rcl.attacks.norms import ascent, choose, length, normal, per_example, projection
from keras_rcl.vocabulary.attacks import AutoPGD

PER_STEP, SPARSER, SLOWER, SMALLEST_STEP = 1.5, 0.95, 1.5, 0.1
"""A step changes 1 / 1.5 of the changed pixels. The step size is epsilon again where fewer than 0.95 of them are left,
and is otherwise divided by 1.5, down to epsilon / 10."""
CHECK_EVERY = 0.04
"""The number of steps between two checkpoints, as a share of the number of steps."""


class _State(NamedTuple):
    """The state of the loop.

    Attributes:
        step: number of steps taken.
        images: the current points, [N, H, W, C].
        gradient: of the loss at `images`.
        fooled: bool [N], whether any point so far fooled the classifier.
        fooling: the last point that did, [N, H, W, C].
        best: the point of the highest loss so far, with its gradient and loss in `best_gradient` and `best_loss`.
        best_gradient: see `best`.
        best_loss: see `best`.
        step_size: in L1, [N].
        changed: number of changed entries of `best` at the last checkpoint, [N].
        zeros: sum of the shares of zero gradients, [N].
    """

    step: tf.Tensor | int
    images: tf.Tensor
    gradient: tf.Tensor
    fooled: tf.Tensor
    fooling: tf.Tensor
    best: tf.Tensor
    best_gradient: tf.Tensor
    best_loss: tf.Tensor
    step_size: tf.Tensor
    changed: tf.Tensor
    zeros: tf.Tensor


def auto_pgd_l1(evaluate: Callable, x: tf.Tensor, attack: AutoPGD, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """One round of APGD in L1, in a ball that shrinks from 3 epsilon over 2 epsilon to epsilon.

        x_{t+1} = P(x_t + eta_t s_t / ||s_t||_1),   s_t = sign of the gradient at its k_t largest entries, else 0
        k_t = (number of changed entries of the best point at the last checkpoint) / 1.5

    P is the projection to ball and box. At each checkpoint eta_t is epsilon, and the example continues from its best
    point, where the best point has become sparser; elsewhere eta_t is divided by 1.5.

    The last step in each ball is not the paper's: it goes from the best point to the point of ball and box where the
    linearised loss is highest, which counts if its loss is higher. The other steps move the largest entries of the
    gradient alike, and do not reach the optimum of a linear classifier.

    Args:
        evaluate: images [N, H, W, C] -> loss, gradient, share of zeros and whether they fool, as of `auto_pgd`.
        x: float32 images in [0, 1], [N, H, W, C].
        attack: the hyper-parameters. Its `stages` are the radii and the numbers of their steps.
        seeds: [N, 2], one stateless seed per example.

    Returns:
        For each example an image within epsilon that fooled the classifier; if none did, the one of the highest loss;
        and its share of zero gradients [N].

    References:
        Croce and Hein 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers"
        (arXiv:2103.01208), Algorithm 1 and section 3.2.
    """
    factors, counts = zip(*attack.stages, strict=True)
    radii, steps = tf.constant(factors) * attack.epsilon, tf.constant(counts)
    every = tf.constant([max(int(CHECK_EVERY * count), 1) for count in counts])

    def climb(number, images, zeros, *_):
        """All steps in one ball."""
        radius, num_steps, last = radii[number], steps[number], number == len(counts) - 1
        nearest, leap = projection(x, radius, "l1"), ascent(x, radius, "l1")
        (state,) = tf.while_loop(
            lambda state: (state.step < num_steps - 1) & ~(last & tf.reduce_all(state.fooled)),
            lambda state: (_check(_take_step(state, evaluate, nearest), x, radius, every[number]),),
            (_first_state(nearest(images), evaluate, x, radius),),
            maximum_iterations=max(counts),
        )
        state = _moved(state, leap(state.best, state.best_gradient, 2.0 * radius), evaluate)
        zeros += state.zeros / tf.cast(state.step + 1, tf.float32)
        return number + 1, state.best, zeros, state.fooled, state.fooling

    start = x + normal(x.shape[1:], seeds)
    none = tf.zeros_like(x[:, 0, 0, 0])
    _, best, zeros, fooled, fooling = tf.while_loop(
        lambda number, *_: number < len(counts),
        climb,
        (0, start, none, none > 0, x),
        maximum_iterations=len(counts),
    )
    return choose(fooled, fooling, best), zeros / len(counts)


def _first_state(images: tf.Tensor, evaluate: Callable, x: tf.Tensor, radius: tf.Tensor) -> _State:
    """The state before the first step in a ball, from the images where it begins."""
    found = evaluate(images)
    return _State(
        step=0,
        images=images,
        gradient=found.gradient,
        fooled=found.fooled,
        fooling=images,
        best=images,
        best_gradient=found.gradient,
        best_loss=found.loss,
        step_size=tf.zeros_like(found.loss) + radius,
        changed=_changed(images, x),
        zeros=found.zeros,
    )


def _changed(images: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The number of entries in which images differ from x, float32 [N]."""
    return tf.reduce_sum(tf.cast(images != x, tf.float32), axis=list(range(1, x.shape.rank)))


def _take_step(state: _State, evaluate: Callable, nearest: Callable) -> _State:
    """One step along the signs of the largest entries of the gradient."""
    gradient = state.gradient
    count = tf.maximum(tf.cast(tf.math.ceil(state.changed / PER_STEP), tf.int32), 1)
    ranked = tf.sort(tf.reshape(tf.abs(gradient), [tf.shape(gradient)[0], -1]), axis=1, direction="DESCENDING")
    smallest = tf.gather(ranked, count - 1, batch_dims=1)
    signs = tf.where(tf.abs(gradient) >= per_example(smallest, gradient), tf.sign(gradient), 0.0)
    size = tf.math.divide_no_nan(state.step_size, length(signs, "l1"))
    return _moved(state, nearest(state.images + per_example(size, gradient) * signs), evaluate)


def _moved(state: _State, images: tf.Tensor, evaluate: Callable) -> _State:
    """The state after a step to images [N, H, W, C]."""
    found = evaluate(images)
    better = found.loss > state.best_loss
    return state._replace(
        step=state.step + 1,
        images=images,
        gradient=found.gradient,
        fooled=state.fooled | found.fooled,
        fooling=choose(found.fooled, images, state.fooling),
        best=choose(better, images, state.best),
        best_gradient=choose(better, found.gradient, state.best_gradient),
        best_loss=tf.maximum(found.loss, state.best_loss),
        zeros=state.zeros + found.zeros,
    )


def _check(state: _State, x: tf.Tensor, radius: tf.Tensor, every: tf.Tensor) -> _State:
    """A checkpoint, where the number of steps is a multiple of `every`."""
    now = state.step % every == 0
    changed = _changed(state.best, x)
    sparser = now & (changed < SPARSER * state.changed)
    slower = tf.maximum(state.step_size / SLOWER, SMALLEST_STEP * radius)
    return state._replace(
        step_size=tf.where(sparser, radius, tf.where(now, slower, state.step_size)),
        changed=tf.where(now, changed, state.changed),
        images=choose(sparser, state.best, state.images),
        gradient=choose(sparser, state.best_gradient, state.gradient),
    )
