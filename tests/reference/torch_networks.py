"""The networks of published checkpoints as NumPy functions [N, C, H, W] -> logits, from the text of their papers.

Each reads its parameters by PyTorch's names from a `Parameters`, which draws one when it is first read. So a forward
pass both makes a checkpoint and says what the network answers.
"""

import numpy as np


class Parameters(dict):
    """Name -> float32 array, drawn when it is first read."""

    def __init__(self, seed=0):
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def draw(self, name, shape, scale, middle=0.0):
        if name not in self:
            self[name] = (middle + scale * self.rng.uniform(-1, 1, shape)).astype(np.float32)
        return self[name].astype(np.float64)


def conv(p, x, name, filters, kernel, stride=1, padding=None, bias=False):
    padding = kernel // 2 if padding is None else padding
    weight = p.draw(f"{name}.weight", (filters, x.shape[1], kernel, kernel), (6 / x.shape[1] / kernel**2) ** 0.5)
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]
    result = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
    return result + (p.draw(f"{name}.bias", filters, 0.3)[:, None, None] if bias else 0)


def norm(p, x, name):
    width = x.shape[1]
    drawn = p.draw(f"{name}.weight", width, 0.3, 1.0), p.draw(f"{name}.bias", width, 0.3)
    drawn += p.draw(f"{name}.running_mean", width, 0.3), p.draw(f"{name}.running_var", width, 0.5, 1.0)
    p.setdefault(f"{name}.num_batches_tracked", np.array(7))
    gamma, beta, mean, variance = (value.reshape(-1, *[1] * (x.ndim - 2)) for value in drawn)
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def dense(p, x, name, units):
    weight = p.draw(f"{name}.weight", (units, x.shape[1]), (6 / x.shape[1]) ** 0.5)
    return x @ weight.T + p.draw(f"{name}.bias", units, 0.3)


def relu(x):
    return np.maximum(x, 0)


def max_pool(x):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2].max(axis=(4, 5))


def resnet(p, x, classes, *, depths=(2, 2, 2, 2), bottleneck=False, imagenet=False):
    """He et al. 2016; the stride of a bottleneck is that of its 3x3 convolution, as in PyTorch."""
    shortcut, classifier = ("downsample", "fc") if imagenet else ("shortcut", "linear")
    x = relu(norm(p, conv(p, x, "conv1", 64, *((7, 2) if imagenet else (3, 1))), "bn1"))
    x = max_pool(x) if imagenet else x
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            convs = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
            convs = convs if bottleneck else ((width, 3, stride), (width, 3, 1))
            inner, outer = x, x
            for index, (filters, kernel, step) in enumerate(convs, 1):
                inner = norm(p, conv(p, inner, f"{name}.conv{index}", filters, kernel, step), f"{name}.bn{index}")
                inner = relu(inner) if index < len(convs) else inner
            if inner.shape != outer.shape:
                outer = conv(p, outer, f"{name}.{shortcut}.0", inner.shape[1], 1, stride)
                outer = norm(p, outer, f"{name}.{shortcut}.1")
            x = relu(inner + outer)
    return dense(p, x.mean(axis=(2, 3)), classifier, classes)


def preact_block(p, x, name, width, stride, shortcut, *, raw=False):
    activated = relu(norm(p, x, f"{name}.bn1"))
    inner = conv(p, activated, f"{name}.conv1", width, 3, stride)
    inner = conv(p, relu(norm(p, inner, f"{name}.bn2")), f"{name}.conv2", width, 3)
    if inner.shape == x.shape:
        return inner + x
    return inner + conv(p, x if raw else activated, f"{name}.{shortcut}", width, 1, stride)


def preact_resnet18(p, x, classes, *, closing=True, raw=False):
    """He et al. 2016b; `raw`: shortcuts read the block's input, as in Wong et al. 2020's code."""
    x = conv(p, x, "conv1", 64, 3)
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and not block else 1
            x = preact_block(p, x, f"layer{stage + 1}.{block}", 64 * 2**stage, stride, "shortcut.0", raw=raw)
    x = relu(norm(p, x, "bn")) if closing else x
    return dense(p, x.mean(axis=(2, 3)), "linear", classes)


def wide_resnet_28_10(p, x, classes):
    """Zagoruyko and Komodakis 2016."""
    x = conv(p, x, "conv1", 16, 3)
    for stage in range(3):
        for block in range(4):
            stride = 2 if stage and not block else 1
            x = preact_block(p, x, f"block{stage + 1}.layer.{block}", 160 * 2**stage, stride, "convShortcut")
    return dense(p, relu(norm(p, x, "bn1")).mean(axis=(2, 3)), "fc", classes)


def cusin_cnn(p, x, classes):
    """Cusin and Serafini 2026: three convolutions of stride 2, two fully connected layers, a BatchNorm."""
    for index, filters in enumerate((32, 64, 128)):
        x = conv(p, x, f"encoder.encoder.{3 * index}", filters, 3, 2, bias=True)
        x = relu(norm(p, x, f"encoder.encoder.{3 * index + 1}"))
    x = relu(dense(p, x.reshape(len(x), -1), "encoder.proj.0", 256))
    x = norm(p, dense(p, x, "encoder.proj.2", 128), "encoder.proj.3")
    return dense(p, x, "classifier.classifier", classes)
