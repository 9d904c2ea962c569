"""Images from files and arrays, as float32 [N, H, W, C] in [0, 1].

Pixels are the unit everywhere: images that are neither 8-bit nor in [0, 1] are refused, never guessed.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.pixels import without_rounding

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp"),
    *(".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm"),
)
"""The image files that are read, by the ends of their names in lower case."""
ARRAY_SUFFIXES = (".npy", ".npz")
UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".tga", ".ico", ".exr", ".hdr"),
    *(".dng", ".cr2", ".nef", ".arw", ".raw", ".dcm"),
)
"""Image files that are not read, and are not left out without a word either."""
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_KINDS = "PNG, JPEG, BMP, WebP, TIFF, GIF or PNM"
Image.init()  # registers all of them; Pillow knows only some before it has met its first unknown file
_DEEP = ("has more than 8 bits per channel", "save it as 8-bit")
_GREYSCALE_MODES = ("1", "L", "LA")


def read_images(
    paths: list[Path], image_shape: tuple[int | None, ...], resize: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Read image files, folders of them (sorted, with their sub-folders) and `.npy` / `.npz` arrays.

    Args:
        paths: files and folders, in the order of the result. Hidden files in folders are left out.
        image_shape: (H, W, C) that every image must have, None for any size; the channels of image files are converted
            to grey (C = 1) or RGB (C = 3).
        resize: resize image files of another size (bilinear, antialiased) instead of refusing them.

    Returns:
        Images float32 [N, H, W, C] in [0, 1], and N names: the path, with `[i]` behind it for arrays.

    Raises:
        InvalidInputError: if a file is missing, empty, corrupt, animated or 16-bit, an image has another size, or the
            model reads neither 1 nor 3 channels and the file is not an array.
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
    for found, name in zip(images, names, strict=False):
        if found.shape[1:] != images[0].shape[1:]:
            raise InvalidInputError(
                f"{name} is {_by(found.shape[1:])}, and {names[0]} is {_by(images[0].shape[1:])}; give images of one "
                "size at a time"
            )
    return np.concatenate(images), names


def check_images(images: np.ndarray, image_shape: tuple[int | None, ...] | None = None) -> np.ndarray:
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
    if image_shape is not None and any(
        want not in (None, have) for want, have in zip(image_shape, images.shape[1:], strict=True)
    ):
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
    images = without_rounding(images)
    lowest, highest = float(images.min()), float(images.max())
    if highest > 1:
        hint = "divide by 255" if lowest >= 0 else "give pixels before any mean/std normalisation"
        raise InvalidInputError(f"images have values up to {highest:.9g}; images are floats in [0, 1] or uint8; {hint}")
    if lowest < 0:
        raise InvalidInputError(
            f"images have values down to {lowest:.9g}; images are floats in [0, 1] or uint8; "
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


def image_files(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Return the files below a folder whose names end in one of the suffixes, sorted.

    Sub-folders are searched, also through links; hidden files and folders and `__MACOSX` are left out.

    Raises:
        InvalidInputError: if a folder cannot be searched, or holds an image of a format that is not read.
    """

    def fail(error: OSError) -> None:
        raise InvalidInputError(f"{error.filename} cannot be searched: {error.strerror}; move it away") from None

    found, seen = [], set()
    for inner, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if (place := os.path.realpath(inner)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(place)
        for path in (Path(inner, name) for name in names if not is_hidden(name)):
            suffix = path.suffix.lower()
            if suffix in UNREAD_SUFFIXES:
                raise InvalidInputError(f"{path} has a format that is not read; save it as PNG or move it away")
            if suffix in suffixes:
                found.append(path)
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that systems add to others: `.name`, or macOS' `__MACOSX` in an archive."""
    return name.startswith(".") or name == "__MACOSX"


def open_image(path: Path) -> Image.Image:
    """Open an image file, of which only the header has been read.

    Raises:
        InvalidInputError: if the file is missing, not an image, animated, or of more than 8 bits per channel.
    """
    try:
        with _quiet(), contextlib.ExitStack() as stack:
            image = stack.enter_context(Image.open(path, formats=_FORMATS))
            image.filename = ""  # else Pillow maps an uncompressed TIFF into memory, wrongly where it must be turned
            # MPO is a JPEG with pictures behind it.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            stack.pop_all()
    except FileNotFoundError:
        raise InvalidInputError(f"{path} does not exist") from None
    except Exception:  # Pillow raises many kinds for a broken file
        raise InvalidInputError(f"{path} is not a readable {_KINDS} image; repair or remove it") from None
    deep = image.mode[0] in "IF" or any(";16" in str(tile) for tile in image.tile)
    if frames > 1 or deep:
        image.close()
        wrong, hint = (f"is animated ({frames} frames)", "give one image") if frames > 1 else _DEEP
        raise InvalidInputError(f"{path} {wrong}; {hint}")
    return image


def is_greyscale(image: Image.Image) -> bool:
    """Whether an opened image is stored without colour (a palette counts as colour)."""
    return image.mode in _GREYSCALE_MODES


_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what shows the stored image upright."""


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation of an opened image: 1 where it is stored upright, or EXIF is absent or damaged."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1  # Pillow turns a TIFF itself, and would decode a whole PNG to look for EXIF behind its pixels
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds for damaged EXIF
        return 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image as viewers show it, turned by EXIF's orientation."""
    return image.size[::-1] if _orientation(image) in (5, 6, 7, 8) else image.size


def decode(image: Image.Image, path: Path, channels: int) -> np.ndarray:
    """Decode an opened image to uint8 [H, W, C], C = 1 greyscale or 3 RGB, upright; transparency is dropped.

    Raises:
        InvalidInputError: if the file is truncated or corrupt; the message names `path`.
    """
    try:
        with image, _quiet():
            turn = _TURNED.get(_orientation(image))
            converted = image.convert("RGBA") if image.mode == "P" else image
            converted = converted if turn is None else converted.transpose(turn)
            pixels = np.asarray(converted.convert("L" if channels == 1 else "RGB"))
    except Exception:  # Pillow raises many kinds for a broken file
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
    """Replace each folder by the image and array files below it, sorted."""
    files = []
    for path in (Path(path).expanduser() for path in paths):
        if path.is_dir():
            inside = image_files(path, SUFFIXES + ARRAY_SUFFIXES)
            if not inside:
                raise InvalidInputError(f"{path} holds no {_KINDS} image and no .npy or .npz file; name another folder")
            files += inside
        else:
            files.append(path)
    return files


def _read_one(path: Path, image_shape: tuple[int | None, ...], resize: bool) -> np.ndarray:
    """One image file as uint8 [H, W, C]."""
    height, width, channels = image_shape
    if channels not in (None, 1, 3):
        raise InvalidInputError(
            f"{path} is read as grey or RGB, and the model reads {channels} channels; give an .npy array [N, H, W, "
            f"{channels}]"
        )
    image = open_image(path)
    own_width, own_height = upright_size(image)
    height, width = height or own_height, width or own_width
    if not resize and (own_height, own_width) != (height, width):
        image.close()
        raise InvalidInputError(
            f"{path} is {_by((own_height, own_width))}, expected {_by((height, width))}; resize it first"
        )
    return resized(decode(image, path, channels or 3), height, width)


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
    """A shape as the field writes it: 32x32x3, and ? for any size."""
    return "x".join("?" if size is None else str(size) for size in shape)
