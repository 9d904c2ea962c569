"""CW: gradient descent on distance plus a constant times the margin, and a binary search for the constant."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_rcl.attacks.gradient_ascent import Crafted, Minimal, Round, usable_gradient
from keras_rcl.attacks.norms import choose, length, per_example
from keras_rcl.attacks.surrogates import logit_margin
from keras_rcl.vocabulary.attacks import CarliniWagner

FIRST_DECAY, SECOND_DECAY, SMALLEST_ROOT = 0.9, 0.999, 1e-8
"""Adam's beta_1, beta_2 and epsilon."""

SHRINK = 0.999999
"""Factor by which the start is moved toward middle grey: atanh of a pixel of 0 or 1 is infinite."""

CHECKS, LEAST_FALL = 10, 1e-4
"""Number of checks per descent, and the share by which the objective must fall between two checks to continue."""


class _Descent(NamedTuple):
    """The state of one descent.

    Attributes:
        step: number of Adam steps taken.
        w: the variables, images = (tanh(w) + 1) / 2, [N, H, W, C].
        first: Adam's first moment, [N, H, W, C].
        second: Adam's second moment, [N, H, W, C].
        fooled: bool [N], whether this descent has fooled the classifier.
        done: bool [N], whether the objective has stopped falling.
        checked: the objective at the last check, [N].
        closest: the closest images that fooled the classifier, over all descents, [N, H, W, C].
        distance: of `closest` from x, [N].
        zeros: sum of the shares of zero gradients, over all descents, [N].
        steps: number of steps that count, over all descents, [N].
    """

    step: tf.Tensor | int
    w: tf.Tensor
    first: tf.Tensor
    second: tf.Tensor
    fooled: tf.Tensor
    done: tf.Tensor
    checked: tf.Tensor
    closest: tf.Tensor
    distance: tf.Tensor
    zeros: tf.Tensor
    steps: tf.Tensor


class _Search(NamedTuple):
    """The state of the binary search for the constant.

    Attributes:
        number: number of descents done.
        constant: of the next descent, [N].
        low: the largest constant that failed, [N].
        high: the smallest constant that fooled the classifier, [N].
        closest: as of `_Descent`, like the fields after it.
        distance: see `closest`.
        zeros: see `closest`.
        steps: see `closest`.
    """

    number: tf.Tensor | int
    constant: tf.Tensor
    low: tf.Tensor
    high: tf.Tensor
    closest: tf.Tensor
    distance: tf.Tensor
    zeros: tf.Tensor
    steps: tf.Tensor


def carlini_wagner(
    logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: CarliniWagner, round: Round
) -> Crafted:
    """The closest adversarial images found, where they lie within `attack.epsilon`; elsewhere x itself.

    Args:
        logits_fn: images [N, H, W, C] -> float32 logits [N, K].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes.
        attack: the hyper-parameters.
        round: only its radius is used, as nothing is random.

    Returns:
        The points that were seen to fool the classifier, neither rounded nor projected.

    Raises:
        InvalidInputError: if no gradient reaches the pixels.

    References:
        Those of `minimal_perturbation`.
    """
    found = minimal_perturbation(logits_fn, x, labels, attack)
    return found.within(round.epsilon(attack), x)


def minimal_perturbation(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: CarliniWagner) -> Minimal:
    """The closest adversarial images found, at any distance.

        minimise over w   ||x' - x||_2^2 + c max(z_y(x') - max_{j != y} z_j(x'), -confidence),   x' = (tanh(w) + 1) / 2

    by Adam from w = atanh(2 x - 1), which starts again for each constant c. Of all the x' on the way the closest one
    that fools the classifier counts. With `low` the largest constant that failed and `high` the smallest that fooled
    the classifier, the next constant is

        c = (low + high) / 2,   or 10 c until one has fooled it

    Adam's first step moves pixels by up to learning_rate / 2. An adversarial image nearer than
    learning_rate / 2 sqrt(HWC) is stepped over for every constant; a smaller rate finds it. A pixel of 0 or 1 starts at
    |w| = 7.3 and needs about 7.3 / learning_rate steps to leave it.

    Every image has its own constant. A descent ends for an image once its objective falls by less than 1 in 10,000
    during a tenth of the steps; the loop ends when it has ended for all images.

    Args:
        logits_fn: images [N, H, W, C] -> float32 logits [N, K].
        x: float32 images in [0, 1], [N, H, W, C].
        labels: int32 [N], the true classes. The classifier is fooled by an image to which it assigns any other class,
            with a logit that exceeds the label's by `confidence`.
        attack: the hyper-parameters; `epsilon` has no effect.

    Returns:
        The images, their L2 distances from x, and their shares of zero gradients. The distance is 0 where x itself is
        misclassified; where nothing was found, the image is x and the distance infinity.

    Raises:
        InvalidInputError: if no gradient reaches the pixels.

    References:
        Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks" (arXiv:1608.04644), section
        VI-A, with their f_6, untargeted. The stopping rule and the search for the constant are those of the authors'
        code.
    """
    start = tf.atanh(SHRINK * (2.0 * x - 1.0))

    def search(state: _Search) -> tuple[_Search]:
        """One descent, and the next constant."""
        (found,) = tf.while_loop(
            lambda descent: (descent.step < attack.num_steps) & ~tf.reduce_all(descent.done),
            lambda descent: (_descend(descent, logits_fn, x, labels, attack, state.constant),),
            (_first_descent(start, labels, state),),
            maximum_iterations=attack.num_steps,
        )
        low = tf.where(found.fooled, state.low, state.constant)
        high = tf.where(found.fooled, state.constant, state.high)
        constant = tf.where(tf.math.is_inf(high), 10.0 * state.constant, (low + high) / 2.0)
        return (
            _Search(state.number + 1, constant, low, high, found.closest, found.distance, found.zeros, found.steps),
        )

    nothing = tf.zeros_like(x[:, 0, 0, 0])
    infinite = nothing + float("inf")
    first = _Search(
        number=0,
        constant=nothing + attack.initial_const,
        low=nothing,
        high=infinite,
        closest=x,
        distance=tf.where(_fools(logits_fn(x), labels, attack.confidence), 0.0, infinite),
        zeros=nothing,
        steps=nothing,
    )
    (state,) = tf.while_loop(
        lambda state: state.number < attack.binary_search_steps,
        search,
        (first,),
        maximum_iterations=attack.binary_search_steps,
    )
    return Minimal(tf.stop_gradient(state.closest), tf.stop_gradient(state.distance), state.zeros / state.steps)


def _fools(logits: tf.Tensor, labels: tf.Tensor, confidence: float) -> tf.Tensor:
    """Bool [N], whether another logit exceeds the label's by `confidence`."""
    handicap = confidence * tf.one_hot(labels, logits.shape[1])
    return tf.argmax(logits + handicap, axis=1, output_type=tf.int32) != labels


def _first_descent(start: tf.Tensor, labels: tf.Tensor, search: _Search) -> _Descent:
    """The state before the first step of a descent from w = `start`."""
    return _Descent(
        step=0,
        w=start,
        first=tf.zeros_like(start),
        second=tf.zeros_like(start),
        fooled=tf.zeros_like(labels, tf.bool),
        done=tf.zeros_like(labels, tf.bool),
        checked=tf.fill(tf.shape(labels), float("inf")),
        closest=search.closest,
        distance=search.distance,
        zeros=search.zeros,
        steps=search.steps,
    )


def _descend(
    state: _Descent,
    logits_fn: Callable,
    x: tf.Tensor,
    labels: tf.Tensor,
    attack: CarliniWagner,
    constant: tf.Tensor,
) -> _Descent:
    """One step of Adam; an image that is done is neither compared nor counted."""
    images = (tf.tanh(state.w) + 1.0) / 2.0
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = logits_fn(images)
        margin = logit_margin(labels, logits)
        total = tf.reduce_sum(margin)
    rise, zero = usable_gradient(tape.gradient(total, images))

    fools = _fools(logits, labels, attack.confidence)
    distance = length(images - x, "l2")
    closer = ~state.done & fools & (distance < state.distance)
    lacks = tf.nn.relu(attack.confidence - margin)
    objective = distance**2 + constant * lacks
    check = state.step % max(attack.num_steps // CHECKS, 1) == 0
    done = state.done | (check & (objective > (1.0 - LEAST_FALL) * state.checked))

    pull = tf.where(lacks > 0, constant, 0.0)
    # d x' / d w = (1 - tanh(w)^2) / 2
    gradient = (2.0 * (images - x) - per_example(pull, x) * rise) * 2.0 * images * (1.0 - images)
    first = FIRST_DECAY * state.first + (1.0 - FIRST_DECAY) * gradient
    second = SECOND_DECAY * state.second + (1.0 - SECOND_DECAY) * gradient**2
    taken = tf.cast(state.step + 1, tf.float32)
    root = tf.sqrt(second / (1.0 - SECOND_DECAY**taken)) + SMALLEST_ROOT
    counts = tf.cast(~state.done, tf.float32)
    return _Descent(
        step=state.step + 1,
        w=state.w - attack.learning_rate * first / (1.0 - FIRST_DECAY**taken) / root,
        first=first,
        second=second,
        fooled=state.fooled | (~state.done & fools),
        done=done,
        checked=tf.where(check, objective, state.checked),
        closest=choose(closer, images, state.closest),
        distance=tf.where(closer, distance, state.distance),
        zeros=state.zeros + counts * zero,
        steps=state.steps + counts,
    )
