"""Images from files and arrays: converted where it is plain, refused by name where it is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from keras_rcl.data.images import check_images, image_files, read_images, resized
from keras_rcl.errors import InvalidInputError

SHAPE = (4, 5, 3)


def pixels(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_lossless_files(tmp_path, suffix):
    path = save(tmp_path / f"x.{suffix}", pixels(), **({"lossless": True} if suffix == "webp" else {}))
    images, names = read_images([path], SHAPE)
    assert images.dtype == np.float32 and names == [str(path)]
    np.testing.assert_allclose(images[0], pixels() / 255, atol=1e-7)


def test_jpeg_of_one_colour(tmp_path):
    path = save(tmp_path / "x.jpg", np.full(SHAPE, 128, np.uint8))
    np.testing.assert_allclose(read_images([path], SHAPE)[0], 128 / 255, atol=0.01)


def test_channels_are_converted(tmp_path):
    grey, colour = pixels((4, 5)), np.full(SHAPE, [255, 0, 0], np.uint8)
    paths = [save(tmp_path / "grey.png", grey), save(tmp_path / "colour.png", colour)]
    as_rgb, _ = read_images(paths, SHAPE)
    np.testing.assert_allclose(as_rgb[0], np.repeat(grey[..., None], 3, axis=-1) / 255, atol=1e-7)
    as_grey, _ = read_images(paths, (4, 5, 1))
    np.testing.assert_allclose(as_grey[1], 0.299, atol=0.003)


def test_transparency_and_palettes(tmp_path):
    solid = np.concatenate([pixels(), np.full((4, 5, 1), 255, np.uint8)], axis=-1)
    path = save(tmp_path / "rgba.png", solid)
    np.testing.assert_allclose(read_images([path], SHAPE)[0][0], pixels() / 255, atol=1e-7)
    palette = Image.fromarray(np.full(SHAPE, [0, 0, 255], np.uint8)).convert("P")
    palette.save(tmp_path / "p.png", transparency=bytes([255] * 8))
    np.testing.assert_allclose(read_images([tmp_path / "p.png"], SHAPE)[0][0, 0, 0], [0, 0, 1], atol=1e-7)


def test_a_folder_is_sorted_with_its_sub_folders_and_without_hidden_files(tmp_path):
    hidden = ("._a.png", ".cache/x.png", "__MACOSX/._b.png")
    for name in ("b.png", "a.PNG", "c.txt", "sub/d.png", *hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.lower().endswith("png"):
            save(tmp_path / name, pixels())
        else:
            (tmp_path / name).write_text("no image")
    _, names = read_images([tmp_path], SHAPE)
    assert names == [str(tmp_path / name) for name in ("a.PNG", "b.png", "sub/d.png")]
    (tmp_path / "sub/above").symlink_to(tmp_path)  # a loop is searched once
    assert len(read_images([tmp_path], SHAPE)[1]) == 3
    (tmp_path / "sub/e.heic").touch()
    with pytest.raises(InvalidInputError, match="e.heic has a format that is not read; save it as PNG"):
        read_images([tmp_path], SHAPE)


@pytest.mark.parametrize("name", ["x.jfif", "x.tif", "x.gif", "x.webp", "x.ppm"])
def test_further_formats(tmp_path, name):
    grey = np.full((4, 5), 128, np.uint8)
    path = save(tmp_path / name, grey if name == "x.gif" else np.repeat(grey[..., None], 3, axis=-1))
    np.testing.assert_allclose(read_images([tmp_path], SHAPE)[0], 128 / 255, atol=0.01)
    assert image_files(tmp_path) == [path]


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}
"""EXIF's orientation -> how its standard shows the stored array."""


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_photograph_is_turned_as_viewers_turn_it(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.kron(np.arange(8).reshape(4, 2) * 30, np.ones((8, 8), int)).astype(np.uint8)
    Image.fromarray(stored).save(tmp_path / f"x.{suffix}", exif=exif)
    shown = TURNED[orientation](stored)
    found, _ = read_images([tmp_path / f"x.{suffix}"], (*shown.shape, 1))
    np.testing.assert_allclose(found[0, ..., 0], shown / 255, atol=0.02 if suffix == "jpg" else 1e-7)


def test_damaged_exif_is_ignored(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "x.png", exif=b"Exif\0\0" + bytes(range(60)))
    np.testing.assert_allclose(read_images([tmp_path / "x.png"], SHAPE)[0][0], pixels() / 255, atol=1e-7)


def test_models_of_any_size_and_of_other_channels(tmp_path):
    path = save(tmp_path / "x.png", pixels())
    other = save(tmp_path / "y.png", pixels((8, 8, 3)))
    assert read_images([path], (None, None, 1))[0].shape == (1, 4, 5, 1)
    assert read_images([path], (None, 10, 3), resize=True)[0].shape == (1, 4, 10, 3)
    with pytest.raises(InvalidInputError, match="y.png is 8x8x3, and .*x.png is 4x5x3; give images of one size"):
        read_images([path, other], (None, None, 3))
    for channels in (2, 4):
        with pytest.raises(InvalidInputError, match=f"the model reads {channels} channels; give an .npy array"):
            read_images([path], (4, 5, channels))
        np.save(tmp_path / "x.npy", np.zeros((2, 4, 5, channels), np.uint8))
        assert read_images([tmp_path / "x.npy"], (None, 5, channels))[0].shape == (2, 4, 5, channels)


def test_arrays(tmp_path):
    batch = pixels((3, *SHAPE))
    np.save(tmp_path / "u.npy", batch)
    np.save(tmp_path / "f.npy", batch / 255)
    np.savez(tmp_path / "one.npz", anything=batch)
    np.savez(tmp_path / "named.npz", images=batch, labels=np.arange(3))
    for name in ("u.npy", "f.npy", "one.npz", "named.npz"):
        images, names = read_images([tmp_path / name], SHAPE)
        assert images.dtype == np.float32 and names[2] == f"{tmp_path / name}[2]"
        np.testing.assert_allclose(images, batch / 255, atol=1e-7)
    assert len(read_images([tmp_path], SHAPE)[0]) == 12
    np.savez(tmp_path / "which.npz", a=batch, b=batch)
    with pytest.raises(InvalidInputError, match="which.npz holds the arrays"):
        read_images([tmp_path / "which.npz"], SHAPE)
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    with pytest.raises(InvalidInputError, match="objects.npy is not a readable NumPy array"):
        read_images([tmp_path / "objects.npy"], SHAPE)


def test_sizes(tmp_path):
    path = save(tmp_path / "x.png", pixels((8, 10, 3)))
    with pytest.raises(InvalidInputError, match="x.png is 8x10, expected 4x5"):
        read_images([path], SHAPE)
    images, _ = read_images([path], SHAPE, resize=True)
    assert images.shape == (1, *SHAPE)


def test_resizing_is_antialiased():
    """Halving a checkerboard averages it; without antialiasing it would keep one colour."""
    board = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    inner = resized(board, 4, 4)[1:-1, 1:-1]
    assert inner.shape == (2, 2, 1) and np.abs(inner.astype(int) - 127).max() <= 1


def broken(tmp_path, name):
    """A file that must be refused."""
    path = tmp_path / name
    if name == "empty.png":
        path.write_bytes(b"")
    elif name == "text.jpg":
        path.write_text("no image")
    elif name == "truncated.png":
        path.write_bytes(save(tmp_path / "whole.png", pixels((64, 64, 3))).read_bytes()[:-5000])
    elif name == "truncated.jpg":
        path.write_bytes(save(tmp_path / "whole.jpg", pixels((64, 64, 3))).read_bytes()[:-500])
    elif name == "moving.webp":
        frames = [Image.fromarray(pixels(SHAPE, seed)) for seed in range(3)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    elif name == "moving.png":
        frames = [Image.fromarray(pixels(SHAPE, seed)) for seed in range(3)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    elif name == "deep.png":
        Image.fromarray(pixels((4, 5)).astype(np.uint16) * 256).save(path)
    elif name in ("short.npy", "empty.npz"):
        path.write_bytes(b"\x93NUMPY")
    return path


NAMES = ["empty.png", "text.jpg", "truncated.png", "truncated.jpg", "moving.webp", "moving.png", "deep.png"]


@pytest.mark.parametrize("name", [*NAMES, "short.npy", "empty.npz", "missing.png", "missing.npy"])
def test_broken_files_are_refused_by_name(tmp_path, name):
    with pytest.raises(InvalidInputError, match=name) as refused:
        read_images([broken(tmp_path, name)], (64, 64, 3))
    assert "\n" not in str(refused.value)


def test_nothing_to_read(tmp_path):
    with pytest.raises(InvalidInputError, match="holds no PNG"):
        read_images([tmp_path], SHAPE)
    with pytest.raises(InvalidInputError, match="no images given"):
        read_images([], SHAPE)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.full((1, *SHAPE), 255.0), "up to 255; images are floats in .0, 1. or uint8; divide by 255"),
        (np.full((1, *SHAPE), -0.5), "down to -0.5.*normalisation"),
        (np.linspace(-2, 2, 60).reshape(1, *SHAPE), "up to 2.*normalisation"),
        (np.full((1, *SHAPE), np.nan), "not finite"),
        (np.full((1, *SHAPE), np.inf), "not finite"),
        (np.zeros((1, *SHAPE), np.int64), "int64"),
        (np.zeros((1, *SHAPE), bool), "bool"),
        (np.zeros(SHAPE), r"\[4, 5, 3\]"),
        (np.zeros((0, *SHAPE)), "empty"),
        (np.zeros((1, 5, 4, 3)), "5x4x3, expected 4x5x3"),
    ],
)
def test_arrays_that_are_no_images(images, says):
    with pytest.raises(InvalidInputError, match=says):
        check_images(images, SHAPE)


@settings(max_examples=50)
@given(hnp.arrays(np.float64, (2, 3, 3, 1), elements=st.floats(0, 1)))
def test_images_in_range_pass_unchanged(images):
    found = check_images(images)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, images.astype(np.float32))


def test_an_array_file_is_named(tmp_path):
    np.save(tmp_path / "big.npy", 255 * np.ones((1, *SHAPE)))
    with pytest.raises(InvalidInputError, match="big.npy: images have values up to 255"):
        read_images([tmp_path / "big.npy"], SHAPE)


@pytest.mark.parametrize(
    ("given", "wanted", "hint"),
    [
        ((1, 8, 8), (8, 8, 1), r"the channels are first; hint: np.moveaxis\(images, 1, -1\)"),
        ((3, 32, 32), (32, 32, 3), "the channels are first"),
        ((8, 8, 1), (8, 8, 3), r"the channels differ; hint: np.repeat\(images, 3, axis=-1\)"),
        ((8, 8, 3), (8, 8, 1), "the channels differ; hint: convert the images to greyscale"),
        ((8, 8, 4), (8, 8, 3), "the channels differ; hint: give images of 3 channels"),
        ((9, 9, 3), (8, 8, 3), "resize them first"),
    ],
)
def test_a_hint_names_what_differs(given, wanted, hint):
    with pytest.raises(InvalidInputError, match=f"images are .*, expected .*; {hint}"):
        check_images(np.zeros((2, *given), np.uint8), wanted)
    if "np." in hint:  # the hint does what it says
        images = np.zeros((2, *given))
        changed = hint.partition("hint: ")[2].replace("\\", "")
        assert eval(changed, {"np": np, "images": images}).shape[1:] == wanted
