"""Convolutions of 3 x 3 in fewer multiplications, for images of few pixels and many channels.

Along an axis, four outputs of three taps need six multiplications instead of twelve (Winograd's minimal filtering):

    y_i = sum_j g_j d_{i+j},  i < 4:        y = A^T [(G g) * (B^T d)]

with the values of polynomials at the points 0, 1, -1, 2, -2 and infinity (Toom and Cook). Along both axes that is 36 in
place of 144: sums over channels are taken at each of 6 x 6 points, by one matrix product per point. Images are laid out
[H, W, N, C], so that the transforms of an axis, all its tiles at once, are products with constant matrices too.

Sources: Winograd 1980, "Arithmetic complexity of computations"; Lavin and Gray 2016, arXiv:1509.09308.
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_rcl.runtime.gradients import custom_gradient

OUTPUTS, TAPS = 4, 3
POINTS = OUTPUTS + TAPS - 1


def winograd_matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A [POINTS, OUTPUTS], G [POINTS, TAPS], B [POINTS, POINTS] of the equation above, its B transposed."""
    at = np.array([0.0, 1.0, -1.0, 2.0, -2.0])

    def values(coefficients: int) -> np.ndarray:
        """Of each power at each point; the last, at infinity, is of the leading one."""
        infinity = np.eye(coefficients)[-1:]
        return np.concatenate([at[:, None] ** np.arange(coefficients), infinity])

    return values(OUTPUTS), values(TAPS), np.linalg.inv(values(POINTS)).T


@functools.cache
def axis_transforms(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The transforms of an axis of `size` pixels, with a zero before and after.

    T tiles of OUTPUTS pixels cover the axis; those of one point are adjacent.

    Returns:
        The transform to points [POINTS * T, size], and back [size, POINTS * T].
    """
    to_outputs, _, to_points = winograd_matrices()
    tiles = -(-size // OUTPUTS)
    there, back = np.zeros((POINTS, tiles, size), np.float32), np.zeros((size, POINTS, tiles), np.float32)
    for tile in range(tiles):
        for offset in range(POINTS):
            if 0 <= (pixel := OUTPUTS * tile + offset - 1) < size:
                there[:, tile, pixel] = to_points[:, offset]
        for offset in range(min(OUTPUTS, size - OUTPUTS * tile)):
            back[OUTPUTS * tile + offset, :, tile] = to_outputs[:, offset]
    return there.reshape(-1, size), back.reshape(size, -1)


def at_points(kernel: tf.Tensor) -> tf.Tensor:
    """A kernel [3, 3, C, F] -> [POINTS, 1, POINTS, C, F]."""
    _, to_points, _ = winograd_matrices()
    channels, filters = kernel.shape[2:]
    both = np.kron(to_points, to_points).astype(np.float32)
    found = tf.matmul(both, tf.reshape(kernel, [TAPS * TAPS, channels * filters]))
    return tf.reshape(found, [POINTS, 1, POINTS, channels, filters])


def convolution(kernel: tf.Tensor) -> Callable:
    """images [H, W, N, C] -> [H, W, N, F]: the convolution of stride 1, zeros around, with a kernel [3, 3, C, F].

    To float32 rounding, a few times that of an ordinary convolution; differentiable with respect to images alone.
    """
    kernel = at_points(kernel)

    @custom_gradient
    def convolve(x):
        rows, columns = axis_transforms(x.shape[0]), axis_transforms(x.shape[1])

        def gradient(upstream):
            (there, back), (along, back_along) = rows, columns
            return _through_points(upstream, kernel, (back.T, there.T), (back_along.T, along.T), transpose=True)

        return _through_points(x, kernel, rows, columns), gradient

    return convolve


def _through_points(x, kernel, rows, columns, *, transpose: bool = False) -> tf.Tensor:
    """[H, W, N, C] to points, a product over channels at each, and back [H, W, N, F]; with `transpose` from F to C."""
    (to_rows, from_rows), (to_columns, from_columns) = rows, columns
    height, width = x.shape[:2]
    count = tf.shape(x)[2] if x.shape[2] is None else x.shape[2]
    channels, filters = kernel.shape[:-3:-1] if transpose else kernel.shape[-2:]
    at_rows, at_columns = len(to_rows), len(to_columns)
    x = tf.matmul(to_rows, tf.reshape(x, [height, width * count * channels]))
    x = tf.matmul(to_columns, tf.reshape(x, [at_rows, width, count * channels]))
    x = tf.reshape(x, [POINTS, at_rows // POINTS, POINTS, at_columns // POINTS * count, channels])
    x = tf.matmul(x, kernel, transpose_b=transpose)
    x = tf.matmul(from_columns, tf.reshape(x, [at_rows, at_columns, count * filters]))
    x = tf.matmul(from_rows, tf.reshape(x, [at_rows, width * count * filters]))
    return tf.reshape(x, [height, width, count, filters])
