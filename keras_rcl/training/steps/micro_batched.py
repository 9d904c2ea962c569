"""The gradients of a batch of which only a part fits into memory; see `keras_rcl.training.micro_batches`."""

import tensorflow as tf

from keras_rcl.training.micro_batches import gradients_in_parts, in_parts
from keras_rcl.training.steps.step import Gradients, Outputs, StepInput, StepResult


def micro_batched_gradients(trainer, batch: StepInput) -> tuple[Gradients, StepResult]:
    """Two forward passes and one backward pass of a batch, each in micro-batches; the loss is of the whole batch.

    Args:
        trainer: The `RobustTrainer`; its `compute.micro_batch` divides the number of images.
        batch: Of V views.

    Returns:
        The gradients of the scaled loss, one per trainable variable, and the result.
    """
    network, size = trainer.network, trainer.compute.micro_batch

    def forward(images: tf.Tensor) -> Outputs:
        return trainer(StepInput(images, labels=()), training=True)

    rows = {name: tf.TensorSpec(output.shape[1:], output.dtype) for name, output in network.output.items()}
    before = [(variable, tf.identity(variable.value)) for variable in network.non_trainable_variables]
    outputs = in_parts(forward, size, batch.images, signature=rows)
    for variable, value in before:  # the statistics of BatchNorm move in the second pass, which is taped
        variable.assign(value)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss, values = trainer.loss_and_values(batch.labels, outputs, batch.weights)
        scaled = trainer.scale_loss(loss)
    cotangents = tape.gradient(scaled, outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    variables = [variable.value for variable in trainer.trainable_variables]
    gradients = gradients_in_parts(forward, size, batch.images, cotangents, variables)
    return gradients, StepResult(batch.labels, outputs, loss, values)
