"""Crafts the adversarial views of a batch and stacks all views: the one room that calls another, `attacks`."""

import tensorflow as tf

from keras_rcl.attacks import craft_and_count
from keras_rcl.vocabulary.phase import Adversarial, Phase


def stack_views(network, phase: Phase, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor):
    """Turn the pipeline's views into one training batch.

    Args:
        network: the two-headed network; attacked in inference mode, so that BatchNorm statistics are used, not moved.
        phase: whose views these are.
        images: [V, N, H, W, C]; a view that is to be crafted arrives as the images that it starts from.
        labels: [N].
        seed: [2], of this step's attacks.

    Returns:
        images [V * N, H, W, C], labels [V * N], and the share of zero gradients that the attacks met (0 without one).
    """
    views, zeros = tf.unstack(images, len(phase.views)), []
    for index, view in enumerate(phase.views):
        if isinstance(view, Adversarial) and view.crafted:
            crafted = craft_and_count(
                view.attack,
                lambda x, view=view: _read(network(x, training=False), view.attack.reads),
                views[index],
                labels,
                seed=tf.random.experimental.stateless_fold_in(seed, index),
            )
            views[index] = crafted.images
            zeros.append(tf.reduce_mean(crafted.zero_gradients))
    share = tf.add_n(zeros) / len(zeros) if zeros else tf.zeros([])
    return tf.concat(views, axis=0), tf.tile(labels, [len(views)]), share


def _read(outputs: dict, reads: str | tuple[str, ...]):
    """What an attack looks at: one output of the network, or several."""
    return outputs[reads] if isinstance(reads, str) else tuple(outputs[name] for name in reads)
