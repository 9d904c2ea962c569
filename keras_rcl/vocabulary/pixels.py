"""The range of pixels, [0, 1]: what counts as rounding, and what is said of other values."""

import numpy as np

from keras_rcl.errors import InvalidInputError

ROUNDING = {"float16": 2e-3, "bfloat16": 1.6e-2}
"""By how much pixels of a dtype may be outside [0, 1] by rounding, as resizing leaves them; they are clipped."""

_ROUNDING = 5e-7


def without_rounding(images: np.ndarray) -> np.ndarray:
    """Return pixels, of which those that are outside [0, 1] by rounding are clipped; all others are as they were."""
    rounding = ROUNDING.get(images.dtype.name, _ROUNDING)
    images = np.where((images > 1) & (images <= 1 + rounding), 1, images)
    return np.where((images < 0) & (images >= -rounding), 0, images)


def check_pixel_range(low: float, high: float, dtype: str) -> None:
    """Check that pixels are in [0, 1] up to rounding.

    Args:
        low: The smallest pixel.
        high: The largest pixel.
        dtype: The name of the pixels' dtype.

    Raises:
        InvalidInputError: If they are not, with a hint that fits the range.
    """
    rounding = ROUNDING.get(dtype, _ROUNDING)
    if -rounding <= low and high <= 1 + rounding:
        return
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        hint = "give finite pixels"
    elif low >= -0.5 and high <= 1.5:
        hint = "clip them to [0, 1]"
    elif low >= 0 and high <= 255:
        hint = (
            "divide 0-255 by 255; if the model reads 0-255 itself, call keras_rcl.evaluate, or attack "
            "`lambda images: model(255 * images)`"
        )
    elif low >= -1 and high <= 1:
        hint = (
            "give (images + 1) / 2; if the model reads -1..1 itself, call keras_rcl.evaluate, or attack "
            "`lambda images: model(2 * images - 1)`"
        )
    else:
        hint = "give pixels, and put mean/std normalisation inside the model"
    raise InvalidInputError(f"images span [{_text(low)}, {_text(high)}]; attacks run on pixels in [0, 1]; hint: {hint}")


def _text(value: float) -> str:
    """A pixel with six digits, or with nine if six would hide that it is outside [0, 1]."""
    text = f"{value:g}"
    return text if 0 <= float(text) <= 1 and 0 <= value <= 1 or not 0 <= float(text) <= 1 else f"{value:.9g}"
