"""A Keras network as a PyTorch module of the same layers and weights, for the benchmarks' peers."""

from collections.abc import Callable

import keras
import numpy as np
import torch
from torch.nn import functional

from keras_rcl.folding.graph_walk import propagate

L = keras.layers


class _PlainGradient(torch.autograd.Function):
    """The identity, whose gradient lies in memory as torchattacks' FAB expects it."""

    @staticmethod
    def forward(context, x):
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient):
        return gradient.contiguous()


class TorchNetwork(torch.nn.Module):
    """[N, C, H, W] in [0, 1] -> logits of a functional Keras network, at inference."""

    def __init__(self, network: keras.Model):
        super().__init__()
        self.steps: list[tuple[Callable, tuple[int, ...]]] = []
        propagate(network, dict.fromkeys(TWINS, self._translate), lambda image: 0)

    def _translate(self, layer, path: str, *inputs: int) -> int:
        self.steps.append((TWINS[type(layer)](layer), inputs))
        return len(self.steps)

    def forward(self, x):
        values = [_PlainGradient.apply(x)]
        for function, inputs in self.steps:
            values.append(function(*(values[number] for number in inputs)))
        return values[-1]


def _tensor(value):
    return torch.tensor(keras.ops.convert_to_numpy(value))


def _normalization(layer):
    mean, std = (_tensor(v).reshape(1, -1, 1, 1) for v in (layer.mean, np.sqrt(layer.variance)))
    return lambda x: (x - mean) / std


def _zero_padding(layer):
    (top, bottom), (left, right) = layer.padding
    return lambda x: functional.pad(x, (left, right, top, bottom))


def _conv(layer):
    even = layer.padding == "same" and layer.strides == (1, 1) and layer.kernel_size[0] % 2 == 1
    assert even or layer.padding == "valid", f"no PyTorch twin for padding {layer.padding} of {layer.name}"
    kernel = _tensor(layer.kernel).permute(3, 2, 0, 1).contiguous()
    bias = _tensor(layer.bias) if layer.use_bias else None
    return lambda x: functional.conv2d(x, kernel, bias, stride=layer.strides, padding=layer.padding)


def _batch_norm(layer):
    values = [_tensor(v) for v in (layer.moving_mean, layer.moving_variance, layer.gamma, layer.beta)]
    return lambda x: functional.batch_norm(x, *values, eps=layer.epsilon)


def _dense(layer):
    kernel, bias = _tensor(layer.kernel), _tensor(layer.bias)
    return lambda x: x @ kernel + bias


TWINS: dict[type, Callable] = {
    L.Normalization: _normalization,
    L.ZeroPadding2D: _zero_padding,
    L.Conv2D: _conv,
    L.BatchNormalization: _batch_norm,
    L.ReLU: lambda layer: torch.relu,
    L.Activation: lambda layer: {"linear": lambda x: x, "relu": torch.relu}[layer.activation.__name__],
    L.Add: lambda layer: lambda *x: sum(x[1:], x[0]),
    L.GlobalAveragePooling2D: lambda layer: lambda x: x.mean((2, 3)),
    L.Flatten: lambda layer: lambda x: x.permute(0, 2, 3, 1).flatten(1),
    L.Dense: _dense,
}
"""Layer type -> what makes its PyTorch operation; NCHW, and NHWC order where the layer flattens."""


def channels_first(images: np.ndarray, layout: str | None = None) -> torch.Tensor:
    """NHWC -> NCHW; `channels_last` lies in memory as NHWC does."""
    tensor = torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return tensor.to(memory_format=getattr(torch, layout)) if layout else tensor


def channels_last(images: torch.Tensor) -> np.ndarray:
    return images.detach().numpy().transpose(0, 2, 3, 1)


def check_twin(twin: TorchNetwork, images: np.ndarray, logits) -> None:
    """See that both networks give the same."""
    with torch.no_grad():
        difference = np.abs(twin(channels_first(images)).numpy() - np.asarray(logits)).max()
    assert difference < 1e-3, f"the two networks differ by {difference}"
