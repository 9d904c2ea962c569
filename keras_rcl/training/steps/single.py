"""The gradients of a whole batch on one device."""

import tensorflow as tf

from keras_rcl.training.steps.step import Gradients, StepInput, StepResult


def whole_batch_gradients(trainer, batch: StepInput) -> tuple[Gradients, StepResult]:
    """One forward and one backward pass of a batch.

    Args:
        trainer: The `RobustTrainer`.
        batch: Of V views.

    Returns:
        The gradients of the scaled loss, one per trainable variable, and the result.
    """
    with tf.GradientTape() as tape:
        outputs = trainer(batch, training=True)
        loss, values = trainer.loss_and_values(batch.labels, outputs, batch.weights)
        scaled = trainer.scale_loss(loss)
    gradients = tape.gradient(scaled, trainer.trainable_variables)
    return gradients, StepResult(batch.labels, outputs, loss, values)
