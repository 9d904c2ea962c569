"""What an attacker maximises: (labels [N], logits [N, K]) -> [N], in float32."""

import tensorflow as tf


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log softmax(logits)[label]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def logit_margin(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """max_{j != y} z_j - z_y: positive exactly where the classifier is wrong (Carlini and Wagner 2017, f_6)."""
    label = tf.one_hot(labels, tf.shape(logits)[1], dtype=tf.bool, on_value=True, off_value=False)
    others = tf.reduce_max(tf.where(label, logits.dtype.min, logits), axis=1)
    return others - tf.reduce_sum(tf.where(label, logits, 0.0), axis=1)


SURROGATES = {"cross_entropy": cross_entropy, "logit_margin": logit_margin}


@tf.custom_gradient
def unit_gradient(logits: tf.Tensor):
    """The logits unchanged; each example's gradient with respect to them scaled to a largest entry of 1.

    A confident classifier's gradient is tiny and underflows in half precision, where sign(0) = 0 masks the attack
    (SPEC section 8, lesson 3). A per-example positive factor moves neither the sign nor the direction that a
    steepest step takes, so the attack is the same one, without the underflow.
    """

    def backward(upstream):
        largest = tf.reduce_max(tf.abs(upstream), axis=1, keepdims=True)
        return tf.math.divide_no_nan(upstream, largest)

    return logits, backward
