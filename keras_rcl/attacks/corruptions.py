"""Common corruptions: 15 kinds of noise, blur, weather and digital faults, each in 5 severities.

They are written from the description and the published parameters of Hendrycks and Dietterich 2019. Images whose
shorter side has at most 64 pixels are corrupted with the parameters of CIFAR-10-C, larger ones with those of
ImageNet-C. What differs from the published images:

- random numbers are of each image's own seed, which is its content and the seed of the evaluation;
- frost is drawn, as a fractal of bright ridges, and not cut out of photographs;
- blurs mirror or repeat the edge and keep the shape of images that are not square; motion blur rounds the pixels of its
  path, as ImageMagick does;
- results are float32 and not rounded to 8 bits, except by JPEG.

References:
    Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations"
    (arXiv:1903.12261).
"""

import functools
import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image
from scipy import ndimage

from keras_rcl.attacks.gradient_ascent import Crafted, Round
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.attacks import CORRUPTION_KINDS, Corruptions

SMALL = 64
"""The longest shorter side of an image that is corrupted with the parameters of CIFAR-10-C."""


def corrupted(logits_fn: Callable, x: tf.Tensor, labels: tf.Tensor, attack: Corruptions, round: Round) -> Crafted:
    """The images under one kind and severity; the classifier is not asked.

    Args:
        logits_fn: unused.
        x: float32 images in [0, 1], [N, H, W, C] with C = 1 or 3.
        labels: unused.
        attack: kind and severity.
        round: seeds of the images.

    Returns:
        The corrupted images, and 0 for the share of zero gradients, as none was taken.

    Raises:
        InvalidInputError: if the attack has no kind or no severity.
    """
    if attack.kind is None or attack.severity is None:
        raise InvalidInputError(
            f"{attack.label}: an image is corrupted by one kind in one severity; hint: give kind and severity, such as "
            "corruptions:kind=fog,severity=3"
        )
    kind, severity = attack.kind, attack.severity

    def run(images, seeds):
        return np.stack([corrupt(image, kind, severity, seed) for image, seed in zip(images, seeds, strict=True)])

    images = tf.ensure_shape(tf.numpy_function(run, [x, round.seeds], tf.float32), x.shape)
    return Crafted(tf.stop_gradient(images), tf.zeros_like(x[:, 0, 0, 0]))


def corrupt(image: np.ndarray, kind: str, severity: int, seed: np.ndarray) -> np.ndarray:
    """One image under one corruption.

    Args:
        image: float [H, W, C] in [0, 1], C = 1 or 3.
        kind: one of `CORRUPTION_KINDS`.
        severity: 1 to 5.
        seed: two integers; the same for all severities, so that they differ in strength alone.

    Returns:
        float32 [H, W, C] in [0, 1].
    """
    words = np.asarray(seed, np.int64).view(np.uint64)
    rng = np.random.default_rng([*map(int, words), CORRUPTION_KINDS.index(kind)])
    row = _ROWS[kind]
    parameters = (row.small if min(image.shape[:2]) <= SMALL else row.large)[severity - 1]
    given = parameters if isinstance(parameters, tuple) else (parameters,)
    return np.clip(row.run(image.astype(np.float64), rng, *given), 0.0, 1.0).astype(np.float32)


# Noise


def _gaussian_noise(x: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    return x + deviation * rng.standard_normal(x.shape)


def _shot_noise(x: np.ndarray, rng: np.random.Generator, photons: float) -> np.ndarray:
    """Poisson noise; a white pixel is this number of photons on average."""
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """This share of the values becomes 0 or 1, each half of the time."""
    hit, value = rng.random(x.shape) < share, rng.integers(0, 2, x.shape)
    return np.where(hit, value, x)


# Blur


def _filter(x: np.ndarray, kernel: np.ndarray, edge: str) -> np.ndarray:
    """Convolve each channel of x [H, W, C] with a kernel [2r + 1, 2r + 1], after padding by `edge` of `np.pad`."""
    from scipy.signal import oaconvolve  # half a second, which other attacks need not wait for

    reach = kernel.shape[0] // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode=edge)  # type: ignore[call-overload]
    return oaconvolve(padded, kernel[:, :, None], mode="valid", axes=(0, 1))


def _blur(x: np.ndarray, deviation: float) -> np.ndarray:
    """A Gaussian blur of the first two axes."""
    return ndimage.gaussian_filter(x, deviation, mode="nearest", axes=(0, 1))


def _defocus_blur(x: np.ndarray, rng: np.random.Generator, radius: float, softness: float) -> np.ndarray:
    """A disk whose border is softened by a small Gaussian."""
    taps = 1 if radius <= 8 else 2
    reach = math.floor(radius) + taps
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (rows**2 + columns**2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), softness, mode="constant", radius=taps)
    return _filter(x, kernel, "reflect")


def _glass_blur(x: np.ndarray, rng: np.random.Generator, deviation: float, reach: int, repeats: int) -> np.ndarray:
    """Pixels take the place of neighbours, between two blurs.

    From the last pixel on, each becomes a copy of one that is at most `reach` rows and columns away. The paper says
    that pixels are exchanged; the published code copies one over the other.
    """
    height, width, channels = x.shape
    places = list(range(height * width))
    for _ in range(repeats):
        rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
        shifts = rng.integers(-reach, reach, (len(rows), len(columns), 2)) @ np.array([width, 1])
        for row, in_row in zip(rows, shifts.tolist(), strict=True):
            for column, shift in zip(columns, in_row, strict=True):
                here = row * width + column
                places[here] = places[here + shift]
    shuffled = _blur(x, deviation).reshape(-1, channels)[places].reshape(x.shape)
    return _blur(shuffled, deviation)


def motion(x: np.ndarray, angle: float, radius: int, deviation: float) -> np.ndarray:
    """The mean along a path that ends at each pixel, with one half of a Gaussian as weights.

    Args:
        x: [H, W, C].
        angle: in radians; 0 moves a dot to the right, pi/2 down.
        radius: half of the number of steps along the path, each one pixel long.
        deviation: of the Gaussian, in pixels.

    Returns:
        [H, W, C].
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    rows, columns = (np.floor(steps * way + 0.5).astype(int) for way in (math.sin(angle), math.cos(angle)))
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1))
    np.add.at(kernel, (2 * radius + rows, 2 * radius + columns), weights / weights.sum())
    return _filter(x, kernel, "edge")


def _motion_blur(x: np.ndarray, rng: np.random.Generator, radius: int, deviation: float) -> np.ndarray:
    return motion(x, math.radians(rng.uniform(-45, 45)), radius, deviation)


@functools.lru_cache(maxsize=128)
def _zoom_matrix(size: int, factor: float) -> np.ndarray:
    """[size, size]: linear interpolation of the center of a line, enlarged to the line."""
    center = (size - 1) / 2
    places = center + (np.arange(size) - center) / factor
    before = np.minimum(places.astype(int), size - 2)
    matrix = np.zeros((size, size))
    matrix[np.arange(size), before] = 1 - (places - before)
    matrix[np.arange(size), before + 1] = places - before
    return matrix


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """The center of x enlarged to the size of x, with bilinear interpolation."""
    height, width, _ = x.shape
    rows = (_zoom_matrix(height, factor) @ x.reshape(height, -1)).reshape(x.shape)
    return _zoom_matrix(width, factor) @ rows


def _zoom_blur(x: np.ndarray, rng: np.random.Generator, largest: float, step: float) -> np.ndarray:
    """The mean of the image and of itself zoomed by 1, 1 + step, ... up to `largest`."""
    factors = 1 + step * np.arange(round((largest - 1) / step) + 1)
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


# Weather


def _plasma(shape: tuple[int, int], rng: np.random.Generator, decay: float) -> np.ndarray:
    """A fractal in [0, 1] of the diamond-square algorithm on a torus; noise falls by decay^2 from level to level."""
    side = 2 ** max(1, (max(shape) - 1).bit_length())
    field, step, size = np.zeros((side, side)), side, 1.0
    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        beside = corners + np.roll(corners, -1, axis=1)
        centers = (beside + np.roll(beside, -1, axis=0)) / 4 + size * rng.uniform(-1, 1, corners.shape)
        field[half::step, half::step] = centers
        above, left = centers + np.roll(centers, 1, axis=0), centers + np.roll(centers, 1, axis=1)
        field[::step, half::step] = (beside + above) / 4 + size * rng.uniform(-1, 1, corners.shape)
        below = corners + np.roll(corners, -1, axis=0)
        field[half::step, ::step] = (below + left) / 4 + size * rng.uniform(-1, 1, corners.shape)
        step, size = half, size / decay**2
    field -= field.min()
    return (field / field.max())[: shape[0], : shape[1]]


def _grey(x: np.ndarray) -> np.ndarray:
    """Luminance [H, W, 1]."""
    return x if x.shape[2] == 1 else x @ np.array([[0.299], [0.587], [0.114]])


# Nine parameters: those of the paper.
def _snow(
    x: np.ndarray,
    rng: np.random.Generator,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: int,
    blur: float,
    kept: float,
) -> np.ndarray:
    """Bright flakes: zoomed noise above a threshold, blurred along a steep path, and a whitened image."""
    flakes = _zoomed(rng.normal(mean, deviation, (*x.shape[:2], 1)), zoom)
    flakes = np.clip(np.where(flakes < threshold, 0.0, flakes), 0.0, 1.0)
    flakes = motion(flakes, math.radians(rng.uniform(-135, -45)), radius, blur)
    whitened = kept * x + (1 - kept) * np.maximum(x, 1.5 * _grey(x) + 0.5)
    return whitened + flakes + flakes[::-1, ::-1]


def _frost(x: np.ndarray, rng: np.random.Generator, kept: float, amount: float) -> np.ndarray:
    """Bluish crystals: bright ridges where a fractal crosses its middle, over a second, smoother fractal."""
    ridges = 1 - np.abs(2 * _plasma(x.shape[:2], rng, 1.3) - 1)
    ice = 0.25 + 0.45 * _plasma(x.shape[:2], rng, 1.8) + 0.5 * ridges**4
    tint = np.array([0.85, 0.95, 1.0]) if x.shape[2] == 3 else np.array([0.95])
    return kept * x + amount * np.clip(ice, 0.0, 1.0)[:, :, None] * tint


def _fog(x: np.ndarray, rng: np.random.Generator, amount: float, decay: float) -> np.ndarray:
    """A fractal is added; what is left of the image keeps its largest value."""
    largest = x.max()
    return (x + amount * _plasma(x.shape[:2], rng, decay)[:, :, None]) * largest / (largest + amount)


def _brightness(x: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """The value of hue, saturation and value rises; hue and saturation stay."""
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + amount, 1.0)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1.0), raised)


# Digital


def _contrast(x: np.ndarray, rng: np.random.Generator, factor: float) -> np.ndarray:
    means = x.mean(axis=(0, 1), keepdims=True)
    return means + factor * (x - means)


def _elastic_transform(
    x: np.ndarray, rng: np.random.Generator, amount: float, smoothness: float, affine: float
) -> np.ndarray:
    """A random affine map of three points, then a random smooth displacement; all lengths are shares of the side."""
    height, width, channels = x.shape
    side = min(height, width)
    center, arm = np.array([height // 2, width // 2]), side // 3
    points = center + arm * np.array([[1, 1], [-1, 1], [-1, -1]])
    moved = points + affine * side * rng.uniform(-1, 1, points.shape)
    # Each pixel reads the place that the map moves to it: moved point -> point, in homogeneous coordinates.
    matrix = np.linalg.lstsq(np.column_stack([moved, np.ones(3)]), points, rcond=None)[0].T
    planes = [
        ndimage.affine_transform(x[:, :, c], matrix[:, :2], matrix[:, 2], order=1, mode="mirror")
        for c in range(channels)
    ]
    field = rng.uniform(-1, 1, (2, height, width))
    shift = amount * side * ndimage.gaussian_filter(field, smoothness * side, mode="reflect", truncate=3.0, axes=(1, 2))
    places = np.mgrid[:height, :width] + shift
    return np.stack([ndimage.map_coordinates(plane, places, order=1, mode="reflect") for plane in planes], axis=2)


def _pixelate(x: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """The mean of boxes: the image is made smaller to this share of its sides, and enlarged again."""
    height, width, channels = x.shape
    small = max(1, int(width * share)), max(1, int(height * share))
    planes = [Image.fromarray(x[:, :, c].astype(np.float32)) for c in range(channels)]
    box = Image.Resampling.BOX
    return np.stack([np.asarray(plane.resize(small, box).resize((width, height), box)) for plane in planes], axis=2)


def _jpeg_compression(x: np.ndarray, rng: np.random.Generator, quality: int) -> np.ndarray:
    levels, file = np.round(255 * x).astype(np.uint8), io.BytesIO()
    Image.fromarray(levels[:, :, 0] if x.shape[2] == 1 else levels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float64).reshape(x.shape) / 255


class _Row(NamedTuple):
    """One kind: its function, and the parameters of severities 1 to 5.

    Attributes:
        run: a function of x [H, W, C], random numbers and parameters; the caller clips its result to [0, 1].
        small: of CIFAR-10-C.
        large: of ImageNet-C.
    """

    run: Callable[..., np.ndarray]
    small: tuple
    large: tuple


_ROWS: dict[str, _Row] = {
    "gaussian_noise": _Row(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": _Row(_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": _Row(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": _Row(
        _defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": _Row(
        _glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": _Row(
        _motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    ),
    "zoom_blur": _Row(
        _zoom_blur,
        ((1.05, 0.01), (1.10, 0.01), (1.15, 0.01), (1.20, 0.01), (1.25, 0.01)),
        ((1.10, 0.01), (1.15, 0.01), (1.20, 0.02), (1.24, 0.02), (1.30, 0.03)),
    ),
    "snow": _Row(
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": _Row(
        _frost,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": _Row(
        _fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": _Row(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": _Row(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": _Row(
        _elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    ),
    "pixelate": _Row(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": _Row(_jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
