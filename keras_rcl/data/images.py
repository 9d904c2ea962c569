"""Images from files and arrays, as float32 [N, H, W, C] in [0, 1].

Pixels are the unit everywhere: images that are neither 8-bit nor in [0, 1] are refused, never guessed.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from keras_rcl.errors import InvalidInputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ARRAY_SUFFIXES = (".npy", ".npz")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
Image.init()  # registers all of them; Pillow knows only some before it has met its first unknown file
_DEEP = ("has more than 8 bits per channel", "save it as 8-bit")
_GREYSCALE_MODES = ("1", "L", "LA")


def read_images(
    paths: list[Path], image_shape: tuple[int | None, ...], resize: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Read image files, folders of them (sorted, not recursive) and `.npy` / `.npz` arrays.

    Args:
        paths: files and folders, in the order of the result.
        image_shape: (H, W, C) that every image must have; the channels of image files are converted.
        resize: resize image files of another size (bilinear, antialiased) instead of refusing them.

    Returns:
        Images float32 [N, H, W, C] in [0, 1], and N names: the path, with `[i]` behind it for arrays.

    Raises:
        InvalidInputError: if a file is missing, empty, corrupt, animated or 16-bit, or an image has another size.
    """
    images, names = [], []
    for path in _expand(paths):
        if path.suffix.lower() in ARRAY_SUFFIXES:
            found = _named(path, check_images, _read_array(path), image_shape)
            names += [f"{path}[{i}]" for i in range(len(found))]
        else:
            found = check_images(_read_one(path, image_shape, resize)[None])
            names.append(str(path))
        images.append(found)
    if not images:
        raise InvalidInputError("no images given; name image files, folders of them, or .npy / .npz arrays")
    return np.concatenate(images), names


def check_images(images: np.ndarray, image_shape: tuple[int, int, int] | None = None) -> np.ndarray:
    """Check that an array is a batch of images, and convert it to float32.

    Args:
        images: [N, H, W, C], uint8, or floating point in [0, 1].
        image_shape: (H, W, C) that the images must have; any when None.

    Returns:
        The images, float32 [N, H, W, C] in [0, 1].

    Raises:
        InvalidInputError: if the rank, shape, type or range is another one, or a value is not finite.
    """
    images = np.asarray(images)
    if images.ndim != 4:
        raise InvalidInputError(f"images have shape {list(images.shape)}; give [N, H, W, C]")
    if not images.size:
        raise InvalidInputError(f"images have shape {list(images.shape)}, which is empty; give at least one image")
    if image_shape is not None and images.shape[1:] != tuple(image_shape):
        raise InvalidInputError(
            f"images are {_by(images.shape[1:])}, expected {_by(image_shape)}; "
            f"{_hint_on_shapes(images.shape[1:], tuple(image_shape))}"
        )
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise InvalidInputError(f"images are {images.dtype}; give floats in [0, 1] or uint8")
    if not np.isfinite(images).all():
        raise InvalidInputError(
            "images have values that are not finite (NaN or infinity); give finite floats in [0, 1] or uint8"
        )
    lowest, highest = float(images.min()), float(images.max())
    if highest > 1:
        hint = "divide by 255" if lowest >= 0 else "give pixels before any mean/std normalisation"
        raise InvalidInputError(f"images have values up to {highest:g}; images are floats in [0, 1] or uint8; {hint}")
    if lowest < 0:
        raise InvalidInputError(
            f"images have values down to {lowest:g}; images are floats in [0, 1] or uint8; "
            "give pixels before any mean/std normalisation"
        )
    return images.astype(np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings of Pillow and NumPy about broken files, except that a picture of absurd size is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)
"""The exceptions that Pillow raises for a broken file."""


def open_image(path: Path) -> Image.Image:
    """Open an image file, of which only the header has been read.

    Raises:
        InvalidInputError: if the file is missing, not an image, animated, or of more than 8 bits per channel.
    """
    try:
        with _quiet():
            image = Image.open(path, formats=_FORMATS)
            # MPO is a JPEG with pictures behind it.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except FileNotFoundError:
        raise InvalidInputError(f"{path} does not exist") from None
    except _BROKEN:
        raise InvalidInputError(f"{path} is not a readable PNG, JPEG, BMP or WebP image; repair or remove it") from None
    deep = image.mode[0] in "IF" or any(";16" in str(tile) for tile in image.tile)
    if frames > 1 or deep:
        image.close()
        wrong, hint = (f"is animated ({frames} frames)", "give one image") if frames > 1 else _DEEP
        raise InvalidInputError(f"{path} {wrong}; {hint}")
    return image


def is_greyscale(image: Image.Image) -> bool:
    """Whether an opened image is stored without colour (a palette counts as colour)."""
    return image.mode in _GREYSCALE_MODES


def decode(image: Image.Image, path: Path, channels: int) -> np.ndarray:
    """Decode an opened image to uint8 [H, W, C], C = 1 greyscale or 3 RGB; transparency is dropped.

    Raises:
        InvalidInputError: if the file is truncated or corrupt; the message names `path`.
    """
    try:
        with image, _quiet():
            converted = image.convert("RGBA") if image.mode == "P" else image
            pixels = np.asarray(converted.convert("L" if channels == 1 else "RGB"))
    except _BROKEN:
        raise InvalidInputError(f"{path} is truncated or corrupt; repair or remove it") from None
    return pixels[..., None] if channels == 1 else pixels


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize one image uint8 [H, W, C] to uint8 [height, width, C]: bilinear, antialiased, aspect not kept."""
    if image.shape[:2] == (height, width):
        return image
    plain = image[..., 0] if image.shape[-1] == 1 else image
    pixels = np.asarray(Image.fromarray(plain).resize((width, height), Image.Resampling.BILINEAR))
    return pixels.reshape(height, width, image.shape[-1])


def _expand(paths: list[Path]) -> list[Path]:
    """Replace each folder by its image and array files, sorted by name."""
    files = []
    for path in (Path(path).expanduser() for path in paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES + ARRAY_SUFFIXES)
            if not inside:
                raise InvalidInputError(f"{path} holds no PNG, JPEG, BMP, WebP, .npy or .npz file; name another folder")
            files += inside
        else:
            files.append(path)
    return files


def _read_one(path: Path, image_shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    """One image file as uint8 [H, W, C]."""
    height, width, channels = image_shape
    image = open_image(path)
    if not resize and image.size != (width, height):
        image.close()
        raise InvalidInputError(f"{path} is {_by(image.size[::-1])}, expected {_by((height, width))}; resize it first")
    return resized(decode(image, path, channels), height, width)


def _read_array(path: Path) -> np.ndarray:
    """The array of a `.npy` file; of a `.npz` file `images`, or its only array."""
    try:
        with path.open("rb") as stream, _quiet():  # NumPy leaves a file open that it cannot read
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            key = loaded.files[0] if len(loaded.files) == 1 else "images"
            if key not in loaded.files:
                raise InvalidInputError(f"{path} holds the arrays {loaded.files}; name the images `images`")
            return loaded[key]
    except FileNotFoundError:
        raise InvalidInputError(f"{path} does not exist") from None
    except InvalidInputError:
        raise
    except Exception:  # np.load raises EOFError, ValueError, BadZipFile, OSError ... on corrupt files
        raise InvalidInputError(f"{path} is not a readable NumPy array (arrays of objects are never loaded)") from None


def _named(path: Path, function, *arguments):
    """Call a function, and put the path before the message of an InvalidInputError."""
    try:
        return function(*arguments)
    except InvalidInputError as refused:
        raise InvalidInputError(f"{path}: {refused}") from None


def _hint_on_shapes(given: tuple[int, ...], wanted: tuple[int | None, ...]) -> str:
    """What makes an array of images of one shape (H, W, C) one of another."""
    if given != wanted and given == (wanted[2], wanted[0], wanted[1]):
        return "the channels are first; hint: np.moveaxis(images, 1, -1)"
    if wanted[2] in (None, given[2]):
        return "resize them first"
    if given[2] == 1:
        return f"the channels differ; hint: np.repeat(images, {wanted[2]}, axis=-1) makes colour images of grey ones"
    if wanted[2] == 1 and given[2] in (3, 4):
        return "the channels differ; hint: convert the images to greyscale"
    return f"the channels differ; hint: give images of {wanted[2]} channels"


def _by(shape) -> str:
    """A shape as the field writes it: 32x32x3."""
    return "x".join(str(size) for size in shape)
