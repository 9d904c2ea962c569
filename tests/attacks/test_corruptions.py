"""Common corruptions, against closed forms, loops and other implementations of the same operation."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from keras_rcl.attacks import craft
from keras_rcl.attacks.corruptions import corrupt, motion
from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.robustness import Evaluator
from keras_rcl.vocabulary.attacks import CORRUPTION_KINDS, Corruptions, parse_attack

RNG = np.random.default_rng(5)
SEED = np.array([-7, 3])


def picture(height, width, channels):
    """A smooth image with an edge."""
    rows, columns = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    image = np.stack([0.45 + 0.35 * np.sin(6 * rows + 4 * columns + c) for c in range(channels)], axis=-1)
    image[height // 3 : height // 2, width // 3 :] = 0.8
    return image.astype("float32")


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 17, 3), (32, 32, 3), (96, 65, 1), (224, 224, 3)])
def test_all_75_at_any_size(shape):
    image = picture(*shape)
    for kind in CORRUPTION_KINDS:
        found = [corrupt(image, kind, severity, SEED) for severity in range(1, 6)]
        for one in found:
            assert one.shape == shape and one.dtype == np.float32
            assert np.isfinite(one).all() and one.min() >= 0 and one.max() <= 1
        changes = [np.sqrt(np.mean((one - image) ** 2)) for one in found]
        assert max(changes) > 0.01 and len({one.tobytes() for one in found}) >= 2


@pytest.mark.parametrize(
    "kind",
    ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "zoom_blur", "fog", "brightness", "contrast"],
)
def test_a_higher_severity_changes_more(kind):
    for shape in ((32, 32, 3), (128, 128, 1)):
        image = picture(*shape)
        changes = [np.mean((corrupt(image, kind, severity, SEED) - image) ** 2) for severity in range(1, 6)]
        assert np.all(np.diff(changes) > 0)


class TestNoise:
    image = np.full((200, 200, 1), 0.5, "float32")  # large: the parameters of ImageNet-C

    def test_gaussian(self):
        change = corrupt(self.image, "gaussian_noise", 1, SEED) - 0.5
        assert np.std(change) == pytest.approx(0.08, rel=0.02) and abs(np.mean(change)) < 0.002

    def test_shot(self):
        """Of 60 photons per unit, 30 are expected; their variance is 30."""
        found = corrupt(self.image, "shot_noise", 1, SEED) * 60
        np.testing.assert_allclose(found, np.round(found), atol=1e-4)
        assert np.mean(found) == pytest.approx(30, rel=0.01) and np.var(found) == pytest.approx(30, rel=0.03)

    def test_impulse(self):
        found = corrupt(self.image, "impulse_noise", 5, SEED)
        assert set(np.unique(found)) == {0.0, 0.5, 1.0}
        assert np.mean(found == 0) == pytest.approx(0.135, rel=0.05)
        assert np.mean(found == 1) == pytest.approx(0.135, rel=0.05)


class TestBlur:
    dot = np.zeros((101, 101, 1), "float32")
    dot[50, 50] = 1

    def test_a_dot_becomes_a_disk(self):
        """Radius 3 without softening: 29 pixels within 3 of the center, each 1/29."""
        found = corrupt(self.dot, "defocus_blur", 1, SEED)[:, :, 0]
        rows, columns = np.mgrid[:101, :101] - 50
        np.testing.assert_allclose(found, (rows**2 + columns**2 <= 9) / 29, atol=1e-6)

    @pytest.mark.parametrize(("degrees", "down", "right"), [(0, 0, 1), (-90, -1, 0), (45, 1, 1)])
    def test_a_dot_becomes_a_line_to_one_side(self, degrees, down, right):
        """From the dot on, the weights are half of a Gaussian; at 45 degrees, step i is i / sqrt(2) pixels away."""
        found = motion(self.dot.astype("float64"), np.radians(degrees), 15, 5)[:, :, 0]
        expected = np.zeros_like(found)
        for step in range(31):
            away = round(step / np.hypot(down, right))
            expected[50 + down * away, 50 + right * away] += np.exp(-(step**2) / 50)
        np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-12)

    def test_zoom_by_scipy(self):
        """The mean of the image and of its zooms by 1, 1.01, ... 1.05 about its center."""
        image = picture(32, 32, 1)
        center = (np.arange(32) - 15.5)[:, None]
        zooms = [
            ndimage.map_coordinates(
                image[:, :, 0].astype("float64"),
                np.meshgrid(center / factor + 15.5, center / factor + 15.5, indexing="ij"),
                order=1,
            )
            for factor in (1, 1.01, 1.02, 1.03, 1.04, 1.05)
        ]
        expected = (image[:, :, 0] + sum(zooms)) / 7
        np.testing.assert_allclose(corrupt(image, "zoom_blur", 1, SEED)[:, :, 0], expected, atol=1e-5)

    def test_glass_copies_neighbours(self):
        """At severity 1 the blur of small images changes almost nothing: each pixel is itself, or one above or left."""
        image = RNG.permutation(32 * 32).reshape(32, 32, 1).astype("float32") / 1024
        found = corrupt(image, "glass_blur", 1, SEED)[1:, 1:, 0]
        near = [image[1 - down : 32 - down, 1 - right : 32 - right, 0] for down in (0, 1) for right in (0, 1)]
        taken = np.abs(found - near) < 1e-5
        assert taken.any(axis=0).all()
        np.testing.assert_allclose(taken[:, 2:, 2:].mean(axis=(1, 2)), 0.25, atol=0.06)

    @pytest.mark.parametrize("kind", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"])
    def test_an_even_image_stays(self, kind):
        even = np.full((20, 24, 3), 0.3, "float32")
        for severity in (1, 5):
            np.testing.assert_allclose(corrupt(even, kind, severity, SEED), even, atol=1e-6)


class TestDigital:
    def test_contrast(self):
        image = picture(32, 32, 3).astype("float64")
        for channel in range(3):
            plane = image[:, :, channel]
            found = corrupt(image, "contrast", 5, SEED)[:, :, channel]
            np.testing.assert_allclose(found, plane.mean() + 0.15 * (plane - plane.mean()), atol=1e-6)

    def test_brightness_by_colorsys(self):
        image = RNG.random((8, 8, 3))
        image[0, 0], image[0, 1] = 0, [1, 0, 0]
        found = corrupt(image, "brightness", 4, SEED)
        for row in range(8):
            for column in range(8):
                hue, saturation, value = colorsys.rgb_to_hsv(*image[row, column])
                expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + 0.2))
                np.testing.assert_allclose(found[row, column], expected, atol=1e-6)

    def test_pixels_are_means_of_boxes(self):
        image = RNG.random((128, 128, 1)).astype("float32")
        means = image.reshape(64, 2, 64, 2).mean(axis=(1, 3))
        found = corrupt(image, "pixelate", 2, SEED)[:, :, 0]
        np.testing.assert_allclose(found, means.repeat(2, axis=0).repeat(2, axis=1), atol=1e-5)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_jpeg_by_tensorflow(self, channels):
        image = picture(32, 40, channels)
        levels = np.round(255 * image).astype(np.uint8)
        file = tf.io.encode_jpeg(levels, quality=58)
        expected = tf.io.decode_jpeg(file, dct_method="INTEGER_ACCURATE").numpy() / 255
        np.testing.assert_allclose(corrupt(image, "jpeg_compression", 3, SEED), expected, atol=2.5 / 255)

    def test_a_smooth_displacement_is_an_affine_map(self):
        """Severity 1 of small images displaces nothing: a ramp stays linear away from the edges."""
        ramp = (np.mgrid[:48, :48][0] / 60 + 0.1)[:, :, None]
        inner = corrupt(ramp, "elastic_transform", 1, SEED)[16:32, 16:32, 0].astype("float64")
        assert np.abs(np.diff(inner, n=2, axis=0)).max() < 1e-6
        slopes = np.diff(inner, axis=0).mean(), np.diff(inner, axis=1).mean()
        assert np.hypot(*slopes) != pytest.approx(1 / 60, rel=1e-3)  # it is not the identity


class TestWeather:
    def test_fog(self):
        """A black image has no largest value to keep; an even one is the fractal, between 0 and its own value."""
        assert corrupt(np.zeros((16, 16, 3)), "fog", 3, SEED).max() == 0
        found = corrupt(np.full((64, 64, 3), 0.6), "fog", 3, SEED)
        assert np.all(found == found[:, :, :1])
        assert found.min() == pytest.approx(0.6 * 0.6 / 1.35, abs=1e-6)
        assert found.max() == pytest.approx(0.6, abs=1e-6)

    @pytest.mark.parametrize("kind", ["snow", "frost"])
    def test_snow_and_frost_whiten(self, kind):
        found = corrupt(np.full((64, 64, 3), 0.3), kind, 3, SEED)
        assert found.mean() > 0.35 and found.std() > 0.03


def test_a_corruption_depends_on_the_image_and_the_seed_alone():
    images = RNG.random((4, 8, 8, 3)).astype("float32")
    for kind in CORRUPTION_KINDS:
        attack = Corruptions(kind=kind, severity=2)
        together = craft(attack, None, images, [0] * 4, seed=1).numpy()
        alone = np.concatenate([craft(attack, None, images[[i]], [0], seed=1).numpy() for i in (3, 1)])
        np.testing.assert_array_equal(alone, together[[3, 1]])
    noise = Corruptions(kind="gaussian_noise", severity=2)
    first = craft(noise, None, images, [0] * 4, seed=1).numpy()
    other = craft(noise, None, images, [0] * 4, seed=2).numpy()
    assert np.any(first != other, axis=(1, 2, 3)).all()
    graph = tf.function(lambda x: craft(noise, None, x, tf.zeros(4, tf.int32), seed=1), autograph=False)
    np.testing.assert_array_equal(graph(images), first)


def bright(x):
    """A classifier that says 1 if the mean pixel is above 0.5."""
    mean = tf.reduce_mean(x, axis=(1, 2, 3))
    return tf.stack([0.5 - mean, mean - 0.5], axis=1)


def test_every_image_counts_also_one_that_was_wrong():
    """Brightness adds 0.05 to 0.3: of means 0.4, 0.48, 0.22 and 0.9, all of class 1, only the last is right before."""
    images = np.stack([np.full((8, 8, 1), value, "float32") for value in (0.4, 0.48, 0.22, 0.9)])
    survival = Evaluator(bright, [Corruptions(kind="brightness")])(images, np.ones(4, int))
    rows = survival.rows()
    assert [row["severity"] for row in rows] == [1, 2, 3, 4, 5] and survival.clean_accuracy == 0.25
    assert [row["adversarial_accuracy"] for row in rows] == [0.5, 0.5, 0.75, 0.75, 1.0]
    assert {row["robust_accuracy"] for row in rows} == {0.25}
    assert {(row["norm"], row["epsilon"], row["kind"], row["forwards"]) for row in rows} == {
        (None, None, "brightness", 4)
    }


def test_which_are_run():
    assert len(Corruptions().variations) == 75 and len(parse_attack("corruptions-3").variations) == 15
    (one,) = parse_attack("corruptions:kind=fog,severity=3").variations
    assert (one.kind, one.severity, one.label) == ("fog", 3, "corruption fog 3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("corruptions:kind=rain", "kind.*'rain'"),
        ("corruptions:severity=0", "severity.*1"),
        ("corruptions-6", "severity.*5"),
        ("corruptions:epsilon=1", "epsilon: no such field"),
    ],
)
def test_settings_that_are_refused(text, said):
    with pytest.raises(InvalidInputError, match=said) as raised:
        parse_attack(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "said"), [((7, 8, 1), "7x8x1 are too small for corruptions"), ((8, 8, 2), "have 2 channels")]
)
def test_images_that_are_refused(shape, said):
    for attack in (Corruptions(), Corruptions(kind="fog", severity=1)):
        with pytest.raises(InvalidInputError, match=said):
            Evaluator(bright, [attack])(np.zeros((1, *shape), "float32"), [0])


def test_one_image_has_one_kind_and_one_severity():
    with pytest.raises(InvalidInputError, match="by one kind in one severity; hint: give kind and severity"):
        craft(Corruptions(kind="fog"), bright, np.zeros((1, 8, 8, 1), "float32"), [0])
