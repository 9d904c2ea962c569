"""Convolutions whose gradient with respect to their images is itself taken by a convolution.

With stride s, p zeros before the image and a kernel w of K taps an axis, y_i = sum_k w_k x_{s i + k - p}, so that

    dx_{s m + q} = sum_o w_{q + p - s o} dy_{m + o},   q < s:

a convolution of dy, of stride 1, whose filters are the s phases of each axis; they are laid side by side afterwards.
oneDNN uses a processor's matrix units (AMX) in bfloat16 for the forward convolution. It does not use them for the
gradient, which takes up to hundreds of times as long. In float32 its gradient of a convolution of stride 1 takes longer
than the forward convolution too; with a larger stride, the phases have taps of 0 that cost more than they save.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_rcl.runtime.gradients import custom_gradient

Padding = Sequence[tuple[int, int]]
"""Zeros (before, after) the rows and the columns of an image."""


def convolution(kernel: tf.Tensor, bias: tf.Tensor, stride: int, padding: Padding) -> Callable:
    """images [N, H, W, C] -> [N, H', W', F]: the convolution with a kernel [K, L, C, F], and a bias [F], in its dtype.

    Zeros on a side are fewer than the taps of their axis. Differentiable with respect to the images alone.
    """
    size, channels = kernel.shape[:2], kernel.shape[2]
    edges = [[0, 0], *map(list, padding), [0, 0]]
    axes = [axis_taps(taps, stride, before) for taps, (before, _) in zip(size, padding, strict=True)]
    rows, columns = (tf.constant(met, kernel.dtype) for _, met in axes)
    phases = tf.einsum("aqk,brl,klcf->abfqrc", rows, columns, kernel)
    phases = tf.reshape(phases, [*phases.shape[:3], stride * stride * channels])

    @custom_gradient
    def convolve(x):
        height, width = x.shape[1:3]

        def gradient(upstream):
            reach = [
                [-offsets[0], -(-pixels // stride) + offsets[-1] - outputs]
                for (offsets, _), pixels, outputs in zip(axes, (height, width), upstream.shape[1:3], strict=True)
            ]
            pixels = tf.nn.conv2d(upstream, phases, 1, [[0, 0], *reach, [0, 0]])
            pixels = tf.nn.depth_to_space(pixels, stride) if stride > 1 else pixels
            return pixels[:, :height, :width]

        return tf.nn.bias_add(tf.nn.conv2d(x, kernel, stride, edges), bias), gradient

    return convolve


def axis_taps(taps: int, stride: int, before: int) -> tuple[range, np.ndarray]:
    """Of the equation above, each o that meets a tap; and [O, stride, taps], 1 where o and q meet tap q + p - s o."""
    offsets = range(-((taps - 1 - before) // stride), (stride - 1 + before) // stride + 1)
    o, q, k = np.ix_(offsets, range(stride), range(taps))
    return offsets, (k == q + before - stride * o).astype(np.float32)
