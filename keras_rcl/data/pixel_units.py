"""The unit of images that somebody else stored or made: found out from their dtype and their values."""

import numpy as np

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.pixels import check_pixel_range, without_rounding


def to_pixels(images: np.ndarray) -> tuple[np.ndarray, str]:
    """Return images as float32 in [0, 1], and the range that they were given in.

    Args:
        images: [N, H, W, C]: integers in 0..255, or floats in 0..1, in -1..1 or in 0..255.

    Raises:
        InvalidInputError: If they are of another range or dtype, or not finite.
    """
    if images.dtype == np.bool_ or images.dtype.kind not in "iuf" and images.dtype.name != "bfloat16":
        raise InvalidInputError(f"images are {images.dtype.name}; hint: give uint8, or floats in 0..1")
    if not images.size:
        return images.astype(np.float32), "0..1"
    low, high = float(images.min()), float(images.max())
    if images.dtype.kind in "iu":
        if low < 0 or high > 255:
            raise InvalidInputError(f"images are {images.dtype.name} from {low:g} to {high:g}; hint: give 0 to 255")
        return images.astype(np.float32) / np.float32(255), "0..255"
    images = without_rounding(images.astype(np.float32))
    if 0 <= low and 2 < high <= 255:
        return images / np.float32(255), "0..255"
    if -1 <= low < -1e-3 and high <= 1 + 1e-6:
        return np.clip((images + 1) / 2, 0, 1), "-1..1"
    check_pixel_range(float(images.min()), float(images.max()), images.dtype.name)
    return images, "0..1"
