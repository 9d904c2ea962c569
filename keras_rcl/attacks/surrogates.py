"""What an attacker maximises: (labels [N], logits [N, K]) -> [N], in float32."""

import functools
from collections.abc import Callable

import tensorflow as tf

from keras_rcl.runtime.gradients import custom_gradient


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log softmax(logits)[label]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def logit_margin(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """max_{j != y} z_j - z_y: positive exactly where the classifier is wrong (Carlini and Wagner 2017, f_6)."""
    label = tf.one_hot(labels, tf.shape(logits)[1], dtype=tf.bool, on_value=True, off_value=False)
    others = tf.reduce_max(tf.where(label, logits.dtype.min, logits), axis=1)
    return others - tf.reduce_sum(tf.where(label, logits, 0.0), axis=1)


def dlr(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6): (max_{j != y} z_j - z_y) / (z_(1) - z_(3)).

    z_(i) is the i-th largest logit, so K is at least 3. Neither shift nor scale of the logits changes it.
    """
    largest = tf.math.top_k(logits, 3).values
    return logit_margin(labels, logits) / (largest[:, 0] - largest[:, 2] + SMALLEST_RANGE)


def dlr_targeted(labels: tf.Tensor, logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Targeted DLR (Croce and Hein 2020, eq. 7): (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2); K is at least 4."""
    largest = tf.math.top_k(logits, 4).values
    reach = tf.gather(logits, targets, batch_dims=1) - tf.gather(logits, labels, batch_dims=1)
    return reach / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2.0 + SMALLEST_RANGE)


def kl_to_clean(clean_logits: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """KL(p(clean) || p(adversarial)), p = softmax of [N, K]: what TRADES' attack maximises (Zhang et al. 2019)."""
    clean = tf.nn.log_softmax(clean_logits)
    return tf.reduce_sum(tf.exp(clean) * (clean - tf.nn.log_softmax(logits)), axis=1)


def embedding_distance(clean_embedding: tf.Tensor, embedding: tf.Tensor) -> tf.Tensor:
    """Mean squared distance of embeddings [N, ...]: what the embedding ("SC") attack maximises (Landsman et al.)."""
    squared = tf.math.squared_difference(embedding, clean_embedding)
    return tf.reduce_mean(tf.reshape(squared, [tf.shape(squared)[0], -1]), axis=1)


def supervised_contrastive(
    labels: tf.Tensor, projection: tf.Tensor, support_labels: tf.Tensor, support: tf.Tensor, temperature: float
) -> tf.Tensor:
    """SupCon of each anchor against fixed samples: what the SupCon attack maximises (Cusin; Khosla et al. 2020).

        -1 / |P(i)| sum_{p in P(i)} log( exp(z_i . z_p / tau) / sum_a exp(z_i . z_a / tau) )

    Args:
        labels: [N], the anchors' classes.
        projection: [N, D], the anchors z_i, of unit length.
        support_labels: [M], the samples' classes; P(i) are the samples of the anchor's class.
        support: [M, D], the samples z_a, of unit length.
        temperature: tau.

    Returns:
        [N]; 0 where an anchor has no positive.
    """
    similarity = tf.linalg.matmul(projection, support, transpose_b=True) / temperature
    positive = tf.equal(labels[:, None], tf.cast(support_labels, labels.dtype)[None, :])
    return _contrasted(similarity, positive)


def contrast_within(labels: tf.Tensor, projection: tf.Tensor, temperature: float) -> tf.Tensor:
    """SupCon of each row against all others, which move with it (Cusin's published code).

    Args:
        labels: [N], the classes.
        projection: [N, D], of unit length.
        temperature: tau.

    Returns:
        [N]; 0 where a row has no positive.
    """
    similarity = tf.linalg.matmul(projection, projection, transpose_b=True) / temperature
    itself = tf.eye(tf.shape(labels)[0], dtype=tf.bool)
    positive = tf.equal(labels[:, None], labels[None, :]) & ~itself
    return _contrasted(tf.where(itself, similarity.dtype.min, similarity), positive)


def _contrasted(similarity: tf.Tensor, positive: tf.Tensor) -> tf.Tensor:
    """-mean over the positives of the log of their share in the softmax of [N, M]; 0 for a row without any."""
    log_share = tf.nn.log_softmax(similarity, axis=1)
    count = tf.reduce_sum(tf.cast(positive, tf.float32), axis=1)
    return -tf.math.divide_no_nan(tf.reduce_sum(tf.where(positive, log_share, 0.0), axis=1), count)


def fools(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Bool [N], whether the predicted class is not the label."""
    return tf.argmax(logits, axis=1, output_type=tf.int32) != labels


def top_wrong_class(labels: tf.Tensor, logits: tf.Tensor, rank: tf.Tensor) -> tf.Tensor:
    """The wrong classes of a given rank.

    Args:
        labels: [N], the true classes.
        logits: [N, K].
        rank: scalar, or one per row [N]; 0 is the wrong class of the largest logit.

    Returns:
        int32 [N].
    """
    label = tf.one_hot(labels, logits.shape[1], dtype=tf.bool, on_value=True, off_value=False)
    order = tf.argsort(tf.where(label, logits.dtype.min, logits), axis=1, direction="DESCENDING", stable=True)
    return tf.gather(order, tf.broadcast_to(rank, tf.shape(labels)), batch_dims=1)


SMALLEST_RANGE = 1e-12
"""Added to a range of logits that is divided by."""

SURROGATES = {"cross_entropy": cross_entropy, "logit_margin": logit_margin, "dlr": dlr}
"""Name of a loss of labels and logits -> its function `(labels [N], logits [N, K]) -> [N]`."""


def surrogate_of(
    loss: str, labels: tf.Tensor, targeted: bool = False, clean_logits: Callable[[], tf.Tensor] | None = None
) -> Callable:
    """What an attack increases, as a function of the adversarial logits alone.

    Args:
        loss: a name in `SURROGATES`, or `kl_to_clean`.
        labels: [N], the true classes; with `targeted` the classes to reach.
        targeted: whether the classes are to be reached: the negative loss of these classes, for `dlr` `dlr_targeted`
            away from the likeliest other class, which is the label of a correctly classified image until it changes.
        clean_logits: gives the logits [N, K] of the clean images; called for `kl_to_clean` alone.

    Returns:
        logits [N, K] -> [N].
    """
    if loss == "kl_to_clean" and clean_logits is not None:
        return functools.partial(kl_to_clean, tf.stop_gradient(clean_logits()))
    if targeted and loss == "dlr":
        return lambda logits: dlr_targeted(top_wrong_class(labels, logits, 0), logits, labels)
    surrogate = functools.partial(SURROGATES[loss], labels)
    return (lambda logits: -surrogate(logits)) if targeted else surrogate


@custom_gradient
def unit_gradient(logits: tf.Tensor):
    """The logits unchanged; each example's gradient with respect to them scaled to a largest entry of 1.

    A confident classifier's gradient is tiny and underflows in half precision, where sign(0) = 0 masks the attack.
    A positive factor per example changes neither the sign nor the direction of a steepest step: the attack is the same
    one, without the underflow.
    """

    def backward(upstream):
        largest = tf.reduce_max(tf.abs(upstream), axis=1, keepdims=True)
        return tf.math.divide_no_nan(upstream, largest)

    return logits, backward
