"""Craft the adversarial views of a batch, add noise, and stack all views."""

import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_rcl.attacks import craft_and_count
from keras_rcl.attacks.craft import example_seeds
from keras_rcl.attacks.gradient_ascent import numbers_of
from keras_rcl.attacks.smoothed import noise_draw
from keras_rcl.folding import at_inference
from keras_rcl.training.micro_batches import in_parts
from keras_rcl.training.ramps import value_at
from keras_rcl.training.warm_starts import WarmStarts
from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.compute import DEFAULT_COMPUTE, ComputeSettings
from keras_rcl.vocabulary.phase import Adversarial, Phase

_fold_in = tf.random.experimental.stateless_fold_in


# Nine parameters: the batch, and what its attacks depend on, each with a default.
def stack_views(
    network: keras.Model,
    phase: Phase,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    indices: tf.Tensor | None = None,
    *,
    epochs: tf.Tensor | float = 0.0,
    warm_starts: dict[int, WarmStarts] | None = None,
    compute: ComputeSettings = DEFAULT_COMPUTE,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Craft the adversarial views of a batch, add the noise of the phase, and stack all views.

    Args:
        network: The two-headed network; attacked in inference mode, so that BatchNorm statistics are read, not moved.
        phase: Its views.
        images: [V, N, H, W, C]; the images of a view that is to be crafted are those at which its attack starts.
        labels: [N].
        seed: [2], of the attacks of this step.
        indices: Indices [N] of the images in the training split; needed by `warm_starts`.
        epochs: How many epochs of the phase are done, on which the radius of an attack that grows depends.
        warm_starts: By the place of a view, where its attacks start.
        compute: Its `micro_batch` is the number of images that are attacked at once; it divides N, and an attack that
            contrasts images contrasts those. Its `attack_dtype` is the dtype of the attacks.

    Returns:
        images [V * N, H, W, C], labels [V * N], and the share of zero gradients that the attacks met (0 without one).
    """
    micro_batch = compute.micro_batch
    starts, zeros = tf.unstack(images, len(phase.views)), []
    views = list(starts)
    for index, view in enumerate(phase.views):
        if (first := phase.first_of_equals(index)) < index:
            views[index] = views[first]
        elif isinstance(view, Adversarial) and view.crafted:
            view_seed = _fold_in(seed, index)
            rows = tf.TensorSpec(images.shape[2:], images.dtype), tf.TensorSpec([], tf.float32)

            grown = value_at(view.growth, epochs) if view.growth else None

            def craft(attack, *of_images, view_seed=view_seed, rows=rows, grown=grown):
                once = functools.partial(attacked, network, attack, view_seed, dtype=compute.attack_dtype, share=grown)
                return in_parts(once, micro_batch, *of_images, signature=rows) if micro_batch else once(*of_images)

            if warm_starts and index in warm_starts:
                views[index], shares = warm_starts[index](craft, view, views[index], labels, indices)
            else:
                views[index], shares = craft(view.attack, views[index], labels)
            zeros.append(tf.reduce_mean(shares))
    if phase.worst_case and phase.worst_case.share < 1:
        kinds = [view.kind for view in phase.views]
        views[-1] = views[kinds.index("adversarial")]
    if phase.noise:
        views = _noisy(phase, views, starts, seed)
    share = tf.add_n(zeros) / len(zeros) if zeros else tf.zeros([])
    return tf.concat(views, axis=0), tf.tile(labels, [len(views)]), share


def _noisy(phase: Phase, views: list[tf.Tensor], starts: list[tf.Tensor], seed: tf.Tensor) -> list[tf.Tensor]:
    """Add the noise of a phase to its views. The k-th of several equal views has the k-th draw of the first one's seed.

    The seeds are those that the attacks of the views had, so that a smoothed attack saw the same draws.
    """
    firsts = [phase.first_of_equals(index) for index in range(len(views))]
    noisy = []
    for index, (view, start, first) in enumerate(zip(views, starts, firsts, strict=True)):
        seeds = example_seeds(start, _fold_in(seed, first))
        noisy.append(view + phase.noise * noise_draw(view, seeds, firsts[:index].count(first)))
    return noisy


def attacked(
    network: keras.Model,
    attack: Attack,
    seed: tf.Tensor,
    images: tf.Tensor,
    labels: tf.Tensor,
    start: tf.Tensor | None = None,
    *,
    dtype: str,
    share: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Attack a network in inference mode.

    Args:
        network: The two-headed network.
        attack: Which attack.
        seed: [2].
        images: [N, H, W, C].
        labels: [N].
        start: Where the attack starts, [N, H, W, C], if not at its own start.
        dtype: The dtype of the attack.
        share: The share of the attack's epsilon and step size that it has; None for all of them.

    Returns:
        The images under attack [N, H, W, C], and the share of zero gradients that each met [N].
    """
    gradients = gradient_fn(network, attack.target_output, dtype)
    attack = attack.for_training()
    numbers = None if share is None else numbers_of(attack).scaled(share)
    crafted = craft_and_count(attack, gradients, images, labels, seed=seed, start=start, numbers=numbers)
    return crafted.images, crafted.zero_gradients


def gradient_fn(network: keras.Model, output: str | tuple[str, ...], dtype: str = "float32") -> Callable:
    """The function that an attack differentiates: images -> one output of the network at inference, or several.

    If the network is float32, one output is computed by the folded network: BatchNorm is folded into convolutions once
    per batch. It equals the output of the network up to rounding in `dtype`.

    Args:
        network: The two-headed network.
        output: The name of an output, or several names.
        dtype: Of the folded network.
    """
    if isinstance(output, str) and network.dtype_policy.compute_dtype == "float32":
        return at_inference(network, output, dtype)

    def outputs(images):
        named = network(images, training=False)
        return named[output] if isinstance(output, str) else tuple(named[name] for name in output)

    return outputs
