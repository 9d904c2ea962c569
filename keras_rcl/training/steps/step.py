"""What a training step reads and what it gives."""

from typing import Any, NamedTuple

import tensorflow as tf

Gradients = list[tf.Tensor | None]
"""One gradient per trainable variable; None if the loss does not depend on the variable."""

Outputs = dict[str, Any]
"""Named outputs of the network, each [V * N, ...]; beside them those of a worst case under `worst_case`."""


class StepInput(NamedTuple):
    """V views of N images, stacked view by view.

    What is absent is an empty tuple: Keras before 3.14 does not accept None among the arrays of a call.

    Attributes:
        images: [V * N, H, W, C]; under a frozen encoder with fixed features their embeddings [V * N, E].
        labels: [V * N]; the forward pass reads them only for a worst case, so without one they may be absent.
        perturbation: What is added to each kernel under adversarial weight perturbation; empty without it.
        zero_gradients: The share of zero pixel gradients that the attacks met; empty if nothing is crafted.
        weights: Of the images in the losses [V * N]; empty: all are 1.
    """

    images: tf.Tensor
    labels: Any
    perturbation: tuple[tf.Tensor, ...] = ()
    zero_gradients: tf.Tensor | tuple[()] = ()
    weights: tf.Tensor | tuple[()] = ()


class StepResult(NamedTuple):
    """What a step reports of its batch, before the weights are updated.

    Attributes:
        labels: [V * N], of all replicas.
        outputs: Of all replicas.
        loss: The loss, unscaled.
        values: Scalars by name, whose means over the epoch are reported.
    """

    labels: tf.Tensor
    outputs: Outputs
    loss: tf.Tensor
    values: dict[str, tf.Tensor]
