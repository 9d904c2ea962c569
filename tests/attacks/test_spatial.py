"""Rotation and translation, against SciPy's interpolation and classifiers whose worst transformation is known."""

import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from keras_rcl.attacks import craft
from keras_rcl.attacks.spatial import transform
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.vocabulary.attacks import Spatial

RNG = np.random.default_rng(3)


def by_scipy(image, degrees, down, right, padding):
    """The image turned counterclockwise about its center, then moved by shares of its sides; one channel at a time."""
    shape = np.array(image.shape[:2])
    center, shift = (shape - 1) / 2, np.array([down, right]) * shape
    turn = math.radians(degrees)
    # Rows point down, so that counterclockwise as seen takes (row, column) to (-column, row) at 90 degrees.
    back = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    mode = {"zeros": "grid-constant", "reflect": "mirror"}[padding]
    offset = center - back @ (center + shift)
    planes = [ndimage.affine_transform(image[:, :, c], back, offset, order=1, mode=mode) for c in range(image.shape[2])]
    return np.stack(planes, axis=2)


def ours(images, degrees, down, right, padding):
    turns, downs, rights = (tf.constant(value, tf.float32) for value in (np.radians(degrees), down, right))
    return transform(tf.constant(images), turns, downs, rights, padding).numpy()


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_as_scipy_interpolates(padding):
    """Sides of any parity, also a single row, and maps that leave the image far behind."""
    cases = [(0, 0, 0), (30, 0.1, -0.1), (-7.5, 0, 0.3), (90, 0, 0), (180, 0.5, 0.5), (45, -1, 1), (3, 0.031, 0.017)]
    for shape in ((8, 8, 3), (9, 12, 1), (1, 5, 2)):
        images = RNG.random((len(cases), *shape)).astype("float32")
        found = ours(images, *np.transpose(cases), padding)
        for image, case, one in zip(images, cases, found, strict=True):
            np.testing.assert_allclose(one, by_scipy(image.astype("float64"), *case, padding), atol=3e-6)


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 12, 3), (224, 224, 3)])
def test_the_identity_returns_the_image_to_the_bit(shape):
    images = RNG.random((2, *shape)).astype("float32")
    for padding in ("zeros", "reflect"):
        assert ours(images, [0.0], [0.0], [0.0], padding).tobytes() == images.tobytes()


def reads(row, column):
    """A classifier that says 1 if this pixel is bright."""

    def logits_fn(x):
        return tf.stack([0.5 - x[:, row, column, 0], x[:, row, column, 0] - 0.5], axis=1)

    return logits_fn


def dot(row, column):
    image = np.zeros((1, 9, 9, 1), "float32")
    image[0, row, column] = 1
    return image


def test_the_rotation_that_fools_is_found():
    """A dot right of the center is above it after a quarter turn counterclockwise, and nowhere near after any other."""
    quarter = Spatial(max_rotation=90, max_translation=0, num_rotations=5, num_translations=1)
    found = craft(quarter, reads(1, 4), dot(4, 7), [0]).numpy()
    np.testing.assert_allclose(found, dot(1, 4), atol=1e-6)
    less = Spatial(max_rotation=70, max_translation=0, num_rotations=3, num_translations=1)
    assert craft(less, reads(1, 4), dot(4, 7), [0]).numpy()[0, 1, 4, 0] < 0.5


def test_the_translation_that_fools_is_found():
    third = Spatial(max_rotation=0, max_translation=1 / 3, num_rotations=1, num_translations=3)
    np.testing.assert_allclose(craft(third, reads(4, 4), dot(1, 7), [0]).numpy(), dot(4, 4), atol=1e-6)


def test_where_none_fools_the_smallest_margin_is_kept():
    """Half a pixel to either side leaves half of the dot, which is more than any other transformation leaves."""
    half = Spatial(max_rotation=0, max_translation=0.5 / 9, num_rotations=1, num_translations=3)
    found = craft(half, reads(4, 4), dot(4, 3) * 0.9, [0]).numpy()
    np.testing.assert_allclose(found[0, 4, 3:5, 0], [0.45, 0.45], atol=1e-6)


ALLOWED = {
    "grid": Spatial(num_rotations=3, num_translations=3, max_translation=0.2),
    "random": Spatial(num_random=5, max_rotation=20, max_translation=0.15),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_every_image_is_one_of_the_allowed_transformations(name):
    """Two channels that rise along rows and columns tell where the central pixels come from."""
    attack, size = ALLOWED[name], 21
    ramps = np.stack(np.meshgrid(*[np.linspace(0, 0.99, size)] * 2, indexing="ij"), axis=-1).astype("float32")
    images = np.repeat(ramps[None], 6, axis=0) + RNG.uniform(0, 1e-6, (6, 1, 1, 1)).astype("float32")
    kernel = RNG.normal(size=(2 * size * size, 4))

    def logits_fn(x):
        return tf.reshape(tf.cast(x, tf.float64), [-1, len(kernel)]) @ kernel

    found = craft(attack, logits_fn, images, np.argmax(logits_fn(images), axis=1), seed=4)
    middle, changed = size // 2, 0
    for image in found.numpy():
        here = image[middle, middle] * (size - 1) / 0.99
        down = (image[middle + 1, middle] - image[middle, middle]) * (size - 1) / 0.99
        turn = np.array([[down[0], down[1]], [-down[1], down[0]]])
        degrees = math.degrees(math.atan2(-down[1], down[0]))
        # here = back @ (0 - shift) + center, where back's columns are what one pixel down and right read
        shift = np.linalg.solve(turn.T, middle - here) / size
        assert np.linalg.norm(down) == pytest.approx(1, abs=1e-3)
        assert abs(degrees) <= attack.max_rotation + 0.05 and np.abs(shift).max() <= attack.max_translation + 1e-3
        if not attack.num_random:
            of_grid = np.array([degrees / attack.max_rotation, *shift / attack.max_translation])
            np.testing.assert_allclose(of_grid, np.round(of_grid), atol=0.01)
        changed += abs(degrees) > 1 or np.abs(shift).max() > 0.01
    assert changed >= 3


@pytest.mark.slow
def test_an_evaluation_is_no_better_than_clean_and_names_no_epsilon():
    """The second image is misclassified and not attacked; the first is moved away from where it is read."""
    images = np.concatenate([dot(4, 4), dot(4, 4), dot(0, 0)])
    attack = Spatial(num_rotations=1, num_translations=3, max_rotation=0)
    survival = Evaluator(reads(4, 4), [attack])(images, np.array([1, 0, 0]))
    assert survival.survived[0].tolist() == [False, False, True] and survival.clean_accuracy == 2 / 3
    (row,) = survival.rows()
    assert (row["attack"], row["norm"], row["epsilon"], row["largest_distance"]) == (attack.label, None, None, None)
    assert row["forwards"] == 2 * (1 * 3 * 3 + 2)


@pytest.mark.slow
def test_with_xla_and_in_batches_of_any_size_alike():
    images = RNG.random((5, 8, 8, 1)).astype("float32")
    kernel = RNG.normal(size=(64, 3)).astype("float32")
    attack = Spatial(num_random=4)

    def logits_fn(x):
        return tf.reshape(x, [-1, 64]) @ kernel

    labels = np.argmax(logits_fn(images), axis=1)
    tables = [
        Evaluator(logits_fn, [attack], batch_size=size, jit=jit)(images, labels, keep_images=True)
        for size, jit in ((5, False), (2, False), (3, True))
    ]
    for table in tables[1:]:
        np.testing.assert_allclose(table.adversarial, tables[0].adversarial, atol=1e-5)
        np.testing.assert_array_equal(table.predictions, tables[0].predictions)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(max_rotation=181), "max_rotation"),
        (dict(max_translation=3), "max_translation"),
        (dict(num_rotations=0), "num_rotations"),
        (dict(padding="wrap"), "padding"),
        (dict(num_random=5, num_rotations=3), "num_random is in place of the grid"),
        (dict(epsilon="8/255"), "epsilon: no such field"),
    ],
)
def test_settings_that_are_refused(settings, said):
    with pytest.raises(InvalidInputError, match=said):
        Spatial(**settings)


def test_there_is_no_epsilon_to_set():
    with pytest.raises(InvalidInputError, match="has no epsilon to set; hint: leave the epsilon out"):
        Spatial().with_epsilon(0.1)
