"""Crafts the adversarial views of a batch and stacks all views: the one room that calls another, `attacks`."""

import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_rcl.attacks import craft_and_count
from keras_rcl.folding import at_inference
from keras_rcl.training.micro_batches import in_parts
from keras_rcl.training.warm_starts import WarmStarts
from keras_rcl.vocabulary.attacks import Attack
from keras_rcl.vocabulary.compute import DEFAULT_COMPUTE, ComputeSettings
from keras_rcl.vocabulary.phase import Adversarial, Phase


def stack_views(
    network,
    phase: Phase,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    indices: tf.Tensor | None = None,
    *,
    warm_starts: dict[int, WarmStarts] | None = None,
    compute: ComputeSettings = DEFAULT_COMPUTE,
):
    """Turn the pipeline's views into one training batch.

    Args:
        network: the two-headed network; attacked in inference mode, so that BatchNorm statistics are used, not moved.
        phase: whose views these are.
        images: [V, N, H, W, C]; a view that is to be crafted arrives as the images that it starts from.
        labels: [N].
        seed: [2], of this step's attacks.
        indices: [N], of the training images that they are; needed by `warm_starts`.
        warm_starts: by the place of a view, where its attacks start.
        compute: of which `micro_batch` says how many images are attacked at once (it divides N; an attack that
            contrasts images contrasts these), and `attack_dtype` in which dtype.

    Returns:
        images [V * N, H, W, C], labels [V * N], and the share of zero gradients that the attacks met (0 without one).
    """
    micro_batch = compute.micro_batch
    views, zeros = tf.unstack(images, len(phase.views)), []
    for index, view in enumerate(phase.views):
        if isinstance(view, Adversarial) and view.crafted:
            view_seed = tf.random.experimental.stateless_fold_in(seed, index)
            rows = tf.TensorSpec(images.shape[2:], images.dtype), tf.TensorSpec([], tf.float32)

            def craft(attack, *of_images, view_seed=view_seed, rows=rows):
                once = functools.partial(attacked, network, attack, view_seed, dtype=compute.attack_dtype)
                return in_parts(once, micro_batch, *of_images, signature=rows) if micro_batch else once(*of_images)

            if index in phase.warm_views:
                views[index], shares = warm_starts[index](craft, view, views[index], labels, indices)
            else:
                views[index], shares = craft(view.attack, views[index], labels)
            zeros.append(tf.reduce_mean(shares))
    share = tf.add_n(zeros) / len(zeros) if zeros else tf.zeros([])
    return tf.concat(views, axis=0), tf.tile(labels, [len(views)]), share


def attacked(network, attack: Attack, seed: tf.Tensor, images: tf.Tensor, labels: tf.Tensor, start=None, *, dtype: str):
    """The images [N, H, W, C] under attack, and the share of zero gradients that each met [N]."""
    crafted = craft_and_count(
        attack, crafted_on(network, attack.target_output, dtype), images, labels, seed=seed, start=start
    )
    return crafted.images, crafted.zero_gradients


def crafted_on(network: keras.Model, reads: str | tuple[str, ...], dtype: str = "float32") -> Callable:
    """images -> what an attack looks at: one output of the network at inference, or several.

    BatchNorm is folded into convolutions, once a batch, where all is float32 and has a rule; the attack then sees the
    network to rounding, to that of `dtype`.
    """
    if isinstance(reads, str) and network.dtype_policy.compute_dtype == "float32":
        return at_inference(network, reads, dtype)

    def outputs(images):
        found = network(images, training=False)
        return found[reads] if isinstance(reads, str) else tuple(found[name] for name in reads)

    return outputs
