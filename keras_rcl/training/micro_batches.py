"""Process a batch in micro-batches that fit into memory, with the gradient of the whole batch (GradCache).

A contrastive loss compares vectors of a few hundred numbers; the pass that computes them fills the memory. So all
micro-batches pass without a tape, the loss of all outputs is differentiated with respect to the outputs, and each
micro-batch passes again under a tape, which carries its share of that gradient back to the weights:

    dL/dw = sum over micro-batches of (d outputs / dw)^T (dL / d outputs)

References: Gao, Zhang, Han and Callan 2021, "Scaling deep contrastive learning batch size under memory limited setup".
"""

from collections.abc import Callable, Sequence

import tensorflow as tf


def in_parts(fn: Callable, size: int, *arrays: tf.Tensor, signature):
    """Compute `fn(*arrays)` for `size` rows at a time, one micro-batch after another.

    Args:
        fn: Returns a structure of arrays, each row of which depends on the same row of the arguments only.
        size: Rows at a time; divides their number.
        *arrays: All with the same number of rows.
        signature: The structure that `fn` returns, as a `tf.TensorSpec` of one row of each array.

    Returns:
        The structure for all rows.
    """
    part = tf.nest.map_structure(lambda row: tf.TensorSpec([size, *row.shape], row.dtype), signature)
    parts = tuple(tf.reshape(array, [-1, size, *array.shape[1:]]) for array in arrays)
    found = tf.map_fn(lambda rows: fn(*rows), parts, fn_output_signature=part, parallel_iterations=1)
    return tf.nest.map_structure(lambda rows: tf.reshape(rows, [-1, *rows.shape[2:]]), found)


def gradients_in_parts(
    call: Callable, size: int, x: tf.Tensor, cotangents: dict[str, tf.Tensor], variables: Sequence
) -> list[tf.Tensor]:
    """Compute the gradient of sum_rows <cotangents, call(x)>, with `size` rows under a tape at a time.

    Args:
        call: Maps rows of x to named outputs, among them those of the cotangents.
        size: Rows at a time; divides their number.
        x: The batch.
        cotangents: dL / d output by the name of the output.
        variables: The gradient is with respect to these.

    Returns:
        One gradient per variable.
    """

    def add(start, sums):
        end = start + size
        with tf.GradientTape() as tape:
            outputs = call(tf.ensure_shape(x[start:end], [size, *x.shape[1:]]))
            pulled = tf.add_n([tf.reduce_sum(outputs[name] * rows[start:end]) for name, rows in cotangents.items()])
        found = tape.gradient(pulled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return end, [total + one for total, one in zip(sums, found, strict=True)]

    zeros = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    _, sums = tf.while_loop(lambda start, _: start < x.shape[0], add, (0, zeros), parallel_iterations=1)
    return sums
