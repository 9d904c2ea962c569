"""A batch in parts that fit into memory, with the gradient of the whole (GradCache).

What a contrastive loss compares are vectors of a few hundred numbers; what fills the memory is the pass that makes
them. So the batch passes in parts without a tape, the loss of all outputs is differentiated with respect to them, and
each part passes again, now taped, to carry its share of that gradient back to the weights:

    dL/dw = sum over parts of (d outputs / dw)^T (dL / d outputs)

Source: Gao, Zhang, Han and Callan 2021, "Scaling deep contrastive learning batch size under memory limited setup".
"""

from collections.abc import Callable, Sequence

import tensorflow as tf


def in_parts(fn: Callable, size: int, *arrays: tf.Tensor, signature):
    """`fn(*arrays)` for `size` rows at a time, one part after another.

    Args:
        fn: gives a structure of arrays, each row of which comes of the same row of the arguments.
        size: rows at a time; divides their number.
        *arrays: of one and the same number of rows.
        signature: the structure that `fn` gives, of the shapes of one row and the dtypes, as TensorSpec.
    """
    part = tf.nest.map_structure(lambda row: tf.TensorSpec([size, *row.shape], row.dtype), signature)
    parts = tuple(tf.reshape(array, [-1, size, *array.shape[1:]]) for array in arrays)
    found = tf.map_fn(lambda rows: fn(*rows), parts, fn_output_signature=part, parallel_iterations=1)
    return tf.nest.map_structure(lambda rows: tf.reshape(rows, [-1, *rows.shape[2:]]), found)


def gradients_in_parts(
    call: Callable, size: int, x: tf.Tensor, cotangents: dict[str, tf.Tensor], variables: Sequence
) -> list[tf.Tensor]:
    """The gradient of sum_rows <cotangents, call(x)> with respect to variables, with `size` rows taped at a time.

    Args:
        call: x -> named outputs, those of the cotangents among them.
        size: rows at a time; divides their number.
        x: the batch.
        cotangents: by output: dL / d output, of its shape.
        variables: tf.Variables.
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
