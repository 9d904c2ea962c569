"""Images as pictures on a screen: RGB tiles, amplified perturbations, and grids of them."""

import numpy as np

from keras_rcl.errors import InvalidInputError

TILE = 48
"""The least side of a tile in a picture grid, in screen pixels."""
GAP = 2
"""The white line between two tiles, in screen pixels."""


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] in [0, 1], C = 1 or 3, as uint8 RGB [N, H, W, 3].

    Raises:
        InvalidInputError: if C is neither 1 nor 3.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InvalidInputError(
            f"images of shape {images.shape} cannot be shown; they must be [N, H, W, 1] or [N, H, W, 3]"
        )
    pixels = np.round(np.clip(images, 0.0, 1.0) * 255).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))


def amplify(perturbation: np.ndarray) -> np.ndarray:
    """A perturbation [N, H, W, C] made visible: grey where it is 0, black and white at each image's own extreme."""
    extreme = np.abs(perturbation).max(axis=(1, 2, 3), keepdims=True)
    return 0.5 + perturbation / np.where(extreme > 0, 2 * extreme, 1.0)


def picture_grid(
    clean: np.ndarray, adversarial: np.ndarray, *, columns: int = 8, scale: int | None = None
) -> np.ndarray:
    """Clean images, their adversarial versions and the amplified perturbations, one below the other.

    Args:
        clean: [N, H, W, C] in [0, 1].
        adversarial: [N, H, W, C] in [0, 1], of the same images.
        columns: images side by side; more images follow below, three rows each time.
        scale: screen pixels a pixel, nearest-neighbour; the least that makes a tile 48 wide and high when not given.

    Returns:
        uint8 RGB [h, w, 3], white between the tiles.

    Raises:
        InvalidInputError: if C is neither 1 nor 3.
    """
    count, height, width, _ = clean.shape
    columns = min(columns, count)
    blocks = -(-count // columns)
    scale = scale or max(1, -(-TILE // min(height, width)))
    rows = np.stack([to_rgb(clean), to_rgb(adversarial), to_rgb(amplify(adversarial - clean))])
    tiles = rows.repeat(scale, axis=2).repeat(scale, axis=3)  # [3, N, H', W', 3]
    missing = blocks * columns - count
    tiles = np.pad(tiles, ((0, 0), (0, missing), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    tiles[:, count:] = 255
    _, _, height, width, _ = tiles.shape
    grid = tiles.reshape(3, blocks, columns, height, width, 3).transpose(1, 0, 3, 2, 4, 5)
    return grid.reshape(blocks * 3 * height, columns * width, 3)[:-GAP, :-GAP]
