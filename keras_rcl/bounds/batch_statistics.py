"""A network's pass in training mode that remembers each BatchNorm's moments, for bounds of what is being trained."""

import keras
from keras import ops

from keras_rcl.folding.fold import LAYERS
from keras_rcl.folding.graph_walk import propagate


def training_pass(network: keras.Model, images) -> tuple[dict, dict]:
    """Run a two-headed network in training mode, once.

    Bounds of an image's ball use the statistics of the batch's clean images, and gradients pass through them, as in
    Shi et al. 2021: a ball has no statistics of its own.

    Args:
        network: from `networks.build_network`, with layers of `folding.fold.LAYERS` on the way to its logits.
        images: [N, H, W, C].

    Returns:
        A dict of its outputs; and a dict from the path of each BatchNorm that is not frozen to the mean [C] and the
        variance [C] that it used.

    Raises:
        InvalidInputError: if a layer has no bounds.
    """
    values, statistics = {}, {}

    def call(layer, path: str, *inputs):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            (x,) = inputs
            statistics[path] = ops.moments(x, axes=list(range(len(x.shape) - 1)))
        values[path] = layer(list(inputs) if len(inputs) > 1 else inputs[0])
        return values[path]

    logits = propagate(network, dict.fromkeys(LAYERS, call), lambda _: images)
    unnormalized = network.get_layer("projector")(values["embedding"])
    return {
        "embedding": values["embedding"],
        "unnormalized_projection": unnormalized,
        "projection": network.get_layer("projection")(unnormalized),
        "logits": logits,
    }, statistics
