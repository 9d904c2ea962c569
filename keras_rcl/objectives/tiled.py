"""Sums over pairs of anchors in O(M D) memory: the M x M similarities exist only a block of rows at a time.

Each block of rows is compared with all M anchors. Its values are kept. Its similarities are discarded, and they are
computed again for the gradient. A value depends on s_ij = z_i . z_j for all j, and s is symmetric, so the gradient of
row i needs only the similarities of row i:

    dL/dz_i = sum over j of (dL/ds_ij + dL/ds_ji) z_j

Rows are therefore independent, in the value and in the gradient. With `sharded_rows`, each replica computes its own.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

from keras import ops

from keras_rcl.objectives.labels import Groups
from keras_rcl.objectives.tensors import Tensor
from keras_rcl.runtime.gradients import custom_gradient

SELF = 1e30
"""Replaces the similarity of an anchor to itself, with the sign for which the pair counts for nothing."""
BLOCK_ELEMENTS = 2**20
"""Similarities in one block: 4 MB of float32, which fit into the cache of a core."""


class RowShards(NamedTuple):
    """How the rows are divided among replicas.

    Attributes:
        own: Takes the rows of this replica from those of all: [M, ...] -> [m, ...].
        gather: Puts the values of the rows of all replicas together: [m] -> [M], in the order of `own`.
    """

    own: Callable[[Tensor], Tensor]
    gather: Callable[[Tensor], Tensor]


_shards: ContextVar[RowShards | None] = ContextVar("row_shards", default=None)


@contextlib.contextmanager
def sharded_rows(shards: RowShards) -> Iterator[None]:
    """Within this context each replica computes its own rows only.

    Values are gathered. A gradient is right in the rows of this replica and 0 in the others.
    """
    token = _shards.set(shards)
    try:
        yield
    finally:
        _shards.reset(token)


def sum_over_group(rows: Tensor, groups: Groups) -> Tensor:
    """The sum of the rows of each anchor's group, the anchor included: [M, D] -> [M, D]."""
    return ops.take(ops.segment_sum(rows, groups.segments, ops.shape(rows)[0]), groups.segments, axis=0)


def log_sum_exp_of_others(rows: Tensor, temperature: float) -> Tensor:
    """log( sum_{a != i} exp(z_i . z_a / tau) ) of each anchor.

    Args:
        rows: float32 [M, D].
        temperature: tau, positive.

    Returns:
        float32 [M].
    """

    def value(similarity, _):
        top = ops.max(similarity, axis=1, keepdims=True)
        return (top + ops.log(ops.sum(ops.exp(similarity - top), axis=1, keepdims=True)))[:, 0]

    def weights(similarity, mine, all_):
        (own_value, own_gradient), (values, gradients) = mine, all_
        own = own_gradient[:, None] * ops.exp(similarity - own_value[:, None])
        return own + gradients * ops.exp(similarity - values)

    @custom_gradient
    def function(rows):
        scaled = rows / math.sqrt(temperature)
        values = _gathered(_by_blocks(value, scaled, -SELF))

        def gradient(*given, upstream=None):
            upstream = given[0] if upstream is None else upstream
            return _pairs_gradient(weights, scaled, -SELF, (values, upstream)) / math.sqrt(temperature)

        return values, gradient

    return function(rows)


def margin_sums(rows: Tensor, groups: Groups, positive_margin: float, negative_margin: float) -> Tensor:
    """mean_{p in P(i)} max(0, m_p - z_i . z_p) + mean_{n in N(i)} max(0, z_i . z_n - m_n) of each anchor.

    Args:
        rows: float32 [M, D].
        groups: Of the labels.
        positive_margin: m_p.
        negative_margin: m_n.

    Returns:
        float32 [M].
    """
    total = ops.cast(ops.shape(rows)[0], "float32")
    per_positive = ops.divide_no_nan(1.0, groups.sizes - 1)
    per_negative = ops.divide_no_nan(1.0, total - groups.sizes)
    shares = (groups.segments, per_positive, per_negative)

    def value(similarity, mine):
        segment, positive, negative = (each[:, None] for each in mine)
        too_far = positive * ops.relu(positive_margin - similarity)
        too_near = negative * ops.relu(similarity - negative_margin)
        return ops.sum(ops.where(segment == groups.segments, too_far, too_near), axis=1)

    def weights(similarity, mine, all_):
        segment, positive, negative = (each[:, None] for each in mine[:3])
        own, others = mine[3][:, None], all_[3]
        pull = ops.where(similarity < positive_margin, -(positive * own + per_positive * others), 0.0)
        push = ops.where(similarity > negative_margin, negative * own + per_negative * others, 0.0)
        return ops.where(segment == groups.segments, pull, push)

    @custom_gradient
    def function(rows):
        values = _gathered(_by_blocks(value, rows, SELF, shares))

        def gradient(*given, upstream=None):
            upstream = given[0] if upstream is None else upstream
            return _pairs_gradient(weights, rows, SELF, (*shares, upstream))

        return values, gradient

    return function(rows)


def _by_blocks(fn: Callable, rows: Tensor, own: float, *beside: tuple[Tensor, ...]) -> Tensor:
    """Compute `fn(similarities [B, M], arrays of the block)` for this replica's rows, a block at a time.

    Args:
        fn: Returns one row per row of the block.
        rows: [M, D].
        own: The value of a row's similarity to itself.
        *beside: At most one tuple of arrays [M], of which `fn` receives the rows of the block.
    """
    count, dimension = ops.shape(rows)[0], rows.shape[1]
    arrays = [rows, ops.arange(count), *(beside[0] if beside else ())]
    arrays = [_own(array) for array in arrays]
    mine = ops.shape(arrays[0])[0]
    height = ops.maximum(1, ops.minimum(mine, BLOCK_ELEMENTS // count))
    blocks = (mine + height - 1) // height
    padding = blocks * height - mine

    def in_blocks(array):
        padded = ops.concatenate([array, ops.zeros((padding, *array.shape[1:]), array.dtype)])
        return ops.reshape(padded, (blocks, height, *array.shape[1:]))

    columns = ops.transpose(rows)

    def one(block):
        part, index, *others = block
        similarity = ops.matmul(ops.reshape(part, (-1, dimension)), columns)
        places = ops.stack([ops.arange(ops.shape(index)[0]), index], axis=1)
        similarity = ops.scatter_update(similarity, places, ops.full(ops.shape(index), own, "float32"))
        return fn(similarity, tuple(others))

    found = ops.map(one, tuple(in_blocks(array) for array in arrays))
    return ops.reshape(found, (-1, *found.shape[2:]))[:mine]


def _pairs_gradient(weights: Callable, rows: Tensor, own: float, arrays: tuple[Tensor, ...]) -> Tensor:
    """sum over j of w_ij z_j of this replica's rows, with 0 in the rows of the other replicas: [M, D]."""

    def block(similarity, mine):
        return ops.matmul(weights(similarity, mine, arrays), rows)

    found = _by_blocks(block, rows, own, arrays)
    shards = _shards.get()
    if shards is None:
        return found
    places = shards.own(ops.arange(ops.shape(rows)[0]))
    return ops.scatter(places[:, None], found, ops.shape(rows))


def _own(array: Tensor) -> Tensor:
    shards = _shards.get()
    return array if shards is None else shards.own(array)


def _gathered(values: Tensor) -> Tensor:
    shards = _shards.get()
    return values if shards is None else shards.gather(values)
