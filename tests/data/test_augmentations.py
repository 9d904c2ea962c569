"""Augmentation policies: stateless, an own draw for each image, in [0, 1]; each against NumPy or by hand."""

import colorsys
import math

import numpy as np
import pytest
import tensorflow as tf

from keras_rcl.data.augmentations import augment
from keras_rcl.data.stateless_layers import ImageRandom, stateless_layer
from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.dataset import (
    Chain,
    ColourJitter,
    CropFlip,
    GaussianNoise,
    LayerAugmentation,
    NoAugmentation,
    Rotation,
    SimCLR,
)

SEED = tf.constant([3, 5])
STILL = dict(min_area=1.0, flip=False, jitter_probability=0.0, greyscale_probability=0.0)


def images(count=8, size=6, channels=3, seed=0):
    return tf.constant(np.random.default_rng(seed).random((count, size, size, channels)), tf.float32)


def same(image, count=16):
    return tf.repeat(image[:1], count, axis=0)


POLICIES = {
    "none": NoAugmentation(),
    "crop_flip": CropFlip(padding=2),
    "simclr": SimCLR(),
    "flip": LayerAugmentation(layer="RandomFlip"),
    "chain": Chain(policies=("crop_flip", Rotation(degrees=90), ColourJitter(), GaussianNoise(probability=1))),
    "translation": LayerAugmentation(layer="RandomTranslation", arguments={"height_factor": 0.5, "width_factor": 0.5}),
    "blur": LayerAugmentation(layer="RandomGaussianBlur"),
    "noise": LayerAugmentation(layer="GaussianNoise", arguments={"stddev": 0.1}),
    "rand_augment": LayerAugmentation(layer="RandAugment"),
    "crop_and_resize": LayerAugmentation(
        layer="RandomCropAndResize",
        arguments={"target_size": [6, 6], "crop_area_factor": [0.3, 1.0], "aspect_ratio_factor": [0.75, 1.33]},
    ),
    "channel_shift": LayerAugmentation(layer="RandomChannelShift", arguments={"factor": 0.5}),
    "cutout": LayerAugmentation(layer="RandomCutout", arguments={"height_factor": 0.5, "width_factor": 0.5}),
    "colour_jitter": LayerAugmentation(
        layer="RandomColorJitter",
        arguments={
            "brightness_factor": 0.4,
            "contrast_factor": 0.4,
            "saturation_factor": 0.4,
            "hue_factor": 0.1,
        },
    ),
}


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_contract(policy):
    """Same shape, in [0, 1], a function of the seed in a parallel tf.data map too, with a draw for each image."""
    batch = same(images(), 6)
    run = tf.function(lambda seed: augment(policy, batch, seed), autograph=False)
    once = run(SEED).numpy()
    assert once.shape == batch.shape and once.dtype == np.float32
    assert 0 <= once.min() and once.max() <= 1 and np.isfinite(once).all()
    seeds = tf.data.Dataset.from_tensor_slices([[i, 7] for i in range(4)])
    mapped = [x.numpy() for x in seeds.map(run, num_parallel_calls=4)]
    for found, again in zip(mapped, seeds.map(run), strict=True):
        np.testing.assert_array_equal(found, again)
    if not isinstance(policy, NoAugmentation):
        assert any(not np.array_equal(mapped[0], other) for other in mapped[1:])
        assert len({image.tobytes() for image in mapped[0]}) > 1


def test_layers_that_change_the_shape_are_refused():
    with pytest.raises(InvalidInputError, match=r"RandomCrop changes images from \[6, 6, 3\] to \[4, 4, 3\]"):
        augment(LayerAugmentation(layer="RandomCrop", arguments={"height": 4, "width": 4}), images(), SEED)


def test_none_returns_the_images():
    batch = images()
    assert augment(NoAugmentation(), batch, SEED) is batch


@pytest.mark.parametrize("flip", [False, True])
def test_crop_flip_gives_crops_of_the_padded_image(flip):
    pad, size, count = 2, 5, 200
    image = images(count=1, size=size)
    padded = np.pad(image[0], [(pad, pad), (pad, pad), (0, 0)])
    possible = {}
    for row in range(2 * pad + 1):
        for column in range(2 * pad + 1):
            crop = padded[row : row + size, column : column + size]
            possible[crop.tobytes()] = (row, column, False)
            possible[crop[:, ::-1].tobytes()] = (row, column, True)
    found = augment(CropFlip(padding=pad, flip=flip), same(image, count), SEED).numpy()
    drawn = [possible[crop.tobytes()] for crop in found]
    assert {row for row, _, _ in drawn} == {column for _, column, _ in drawn} == set(range(5))
    flipped = sum(turned for *_, turned in drawn)
    assert 70 < flipped < 130 if flip else flipped == 0


def test_crop_flip_without_padding_and_flip_is_the_image():
    batch = images()
    np.testing.assert_array_equal(augment(CropFlip(padding=0, flip=False), batch, SEED), batch)


def test_simclr_that_does_nothing_is_the_image():
    batch = images()
    np.testing.assert_allclose(augment(SimCLR(**STILL), batch, SEED), batch, atol=1e-6)


def test_simclr_flips():
    batch = same(images(), 100)
    found = augment(SimCLR(**{**STILL, "flip": True}), batch, SEED).numpy()
    straight = np.isclose(found, batch, atol=1e-6).all(axis=(1, 2, 3))
    turned = np.isclose(found, batch[:, :, ::-1], atol=1e-6).all(axis=(1, 2, 3))
    assert (straight ^ turned).all() and 30 < turned.sum() < 70


def test_random_resized_crop_boxes():
    """A ramp image tells the box: its corners' values are the box' corners."""
    size = 9
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    ramps = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], 0 * ramp), axis=-1)[None]
    found = augment(SimCLR(**{**STILL, "min_area": 0.3}), tf.repeat(ramps, 500, axis=0), SEED).numpy()
    height = found[:, -1, 0, 0] - found[:, 0, 0, 0]
    width = found[:, 0, -1, 1] - found[:, 0, 0, 1]
    area, ratio = height * width, width / height
    assert 0.3 - 1e-5 <= area.min() < 0.35 and 0.95 < area.max() <= 1 + 1e-5
    assert 3 / 4 - 1e-4 <= ratio.min() < 0.8 and 1.25 < ratio.max() <= 4 / 3 + 1e-4
    assert abs(area.mean() - 0.65) < 0.03


def test_greyscale_always():
    found = augment(SimCLR(**{**STILL, "greyscale_probability": 1.0}), images(), SEED).numpy()
    expected = images().numpy() @ [0.299, 0.587, 0.114]
    for channel in range(3):
        np.testing.assert_allclose(found[..., channel], expected, atol=1e-6)


def only(**jitter):
    zero = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    return SimCLR(**{**STILL, **zero, "jitter_probability": 1.0, **jitter})


def test_brightness_scales_each_image():
    batch = images() * 0.5
    factor = augment(only(brightness=0.4), batch, SEED).numpy() / batch.numpy()
    per_image = factor.reshape(len(factor), -1)
    np.testing.assert_allclose(per_image, np.broadcast_to(per_image[:, :1], per_image.shape), rtol=1e-5)
    assert 0.6 <= factor.min() < factor.max() <= 1.4 and len(set(per_image[:, 0].round(5))) == len(batch)


def test_contrast_keeps_the_mean_luma():
    batch = 0.4 + 0.2 * images()
    found = augment(only(contrast=0.5), batch, SEED).numpy()
    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose((found @ luma).mean((1, 2)), (batch.numpy() @ luma).mean((1, 2)), atol=1e-5)
    assert not np.allclose(found, batch, atol=1e-3)


@pytest.mark.parametrize("jitter", [{"saturation": 0.5}, {"hue": 0.5}])
def test_saturation_and_hue_keep_the_luma(jitter):
    batch = 0.45 + 0.1 * images()
    found = augment(only(**jitter), batch, SEED).numpy()
    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(found @ luma, batch.numpy() @ luma, atol=1e-5)
    assert not np.allclose(found, batch, atol=1e-3)


def test_hue_is_a_rotation_in_yiq():
    """Against the standard library's YIQ: the chroma keeps its length, and all pixels of an image turn by one angle."""
    batch = 0.45 + 0.1 * images()
    found = augment(only(hue=0.1), batch, SEED).numpy()

    def chroma(rgb):
        _, i, q = colorsys.rgb_to_yiq(*rgb)
        return complex(i, q)

    angles = set()
    for before, after in zip(batch.numpy(), found, strict=True):
        turns = [chroma(b) / chroma(a) for a, b in zip(before.reshape(-1, 3), after.reshape(-1, 3), strict=True)]
        np.testing.assert_allclose(np.abs(turns), 1, atol=0.02)  # colorsys rounds its matrix to two digits
        assert np.ptp(np.angle(turns)) < 0.05
        angles.add(round(float(np.angle(turns[0])), 3))
    assert len(angles) > 4 and max(map(abs, angles)) <= 0.2 * np.pi + 0.05


def test_jitter_probability():
    batch = same(images(), 200)
    found = augment(SimCLR(**{**STILL, "jitter_probability": 0.3}), batch, SEED).numpy()
    changed = (np.abs(found - batch) > 1e-4).any(axis=(1, 2, 3)).sum()
    assert 40 < changed < 80


def test_single_channel_has_brightness_and_contrast_only():
    batch = images(channels=1)
    found = augment(only(hue=0.5, saturation=1.0), batch, SEED)
    np.testing.assert_allclose(found, batch, atol=1e-6)
    assert augment(SimCLR(), batch, SEED).shape == batch.shape


def test_layers_take_pixels_in_0_1():
    """RandomBrightness of exactly +0.25 adds a quarter of the value range."""
    policy = LayerAugmentation(layer="RandomBrightness", arguments={"factor": [0.25, 0.25]})
    batch = 0.5 * images()
    np.testing.assert_allclose(augment(policy, batch, SEED), batch + 0.25, atol=1e-6)


def test_layers_are_built_once():
    policy = LayerAugmentation(layer="RandomFlip", arguments={"mode": "horizontal"})
    other = LayerAugmentation(layer="RandomFlip", arguments={"mode": "vertical"})
    assert stateless_layer(policy, (6, 6, 3)) is stateless_layer(policy, (6, 6, 3))
    assert stateless_layer(policy, (6, 6, 3)) is not stateless_layer(other, (6, 6, 3))


@pytest.mark.parametrize(
    ("layer", "arguments", "says"),
    [
        ("RandomFlip", {"mood": "horizontal"}, "mood"),
        ("RandomBrightness", {"factor": 7}, "factor"),
        ("Rescaling", {"units": 3}, "units"),
        ("Flatten", {}, "Flatten changes images"),
        ("Dense", {"units": 2}, "Dense"),
    ],
)
@pytest.mark.parametrize("graph", [False, True])
def test_refusals_are_one_line(layer, arguments, says, graph):
    policy = LayerAugmentation(layer=layer, arguments=arguments)
    run = tf.function(lambda: augment(policy, images(), SEED), autograph=False) if graph else None
    with pytest.raises(InvalidInputError, match=says) as refused:
        run() if graph else augment(policy, images(), SEED)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("layer", "arguments", "says"),
    [
        ("RandomFlop", {}, "'RandomFlop' is not among the layers .*; did you mean 'RandomFlip'"),
        ("TFSMLayer", {"filepath": "somewhere", "call_endpoint": "serve"}, "'TFSMLayer' is not among the layers"),
        ("Lambda", {"function": "relu"}, "'Lambda' is not among"),
        ("Layer", {}, "'Layer' is not among"),
        ("deserialize", {"config": {"class_name": "TFSMLayer"}}, "'deserialize' is not among"),
        ("StringLookup", {"vocabulary": "/etc/hostname"}, "'StringLookup' is not among"),
        (
            "RandomFlip",
            {"dtype": {"class_name": "TFSMLayer", "config": {}}},
            "'dtype' .* names a class; hint: give plain",
        ),
        ("Pipeline", {"layers": [{"a": [{"class_name": "TFSMLayer"}]}]}, "'layers' .* names a class; hint: give plain"),
    ],
)
def test_a_layer_that_does_more_than_compute_is_not_a_policy(layer, arguments, says):
    with pytest.raises(ValueError, match=says):
        LayerAugmentation(layer=layer, arguments=arguments)


def test_layers_leave_global_random_state_alone():
    """Building and running a layer neither patches `tf.random` nor moves its global generator."""
    before = {name: getattr(tf.random, name) for name in ("uniform", "normal", "gamma", "shuffle")}
    state = tf.random.get_global_generator().state.numpy()
    augment(POLICIES["crop_and_resize"], images(), SEED)
    assert before == {name: getattr(tf.random, name) for name in before}
    np.testing.assert_array_equal(state, tf.random.get_global_generator().state.numpy())


def test_an_image_of_a_layer_depends_on_its_own_seed_alone():
    """An image of a batch is what the layer makes of it alone, under its own seed of the batch."""
    batch = images()
    found = augment(POLICIES["colour_jitter"], batch, SEED).numpy()
    alone = stateless_layer(POLICIES["colour_jitter"], (6, 6, 3))
    seeds = tf.random.experimental.stateless_split(SEED, num=len(batch))
    for image, seed, expected in zip(batch, seeds, found, strict=True):
        np.testing.assert_array_equal(alone(image, seed), expected)


def test_layers_with_hidden_random_state_are_refused():
    """KerasCV's gaussian fill calls `tf.random.normal`, which no seed of an image reaches."""
    arguments = {"height_factor": 0.5, "width_factor": 0.5, "fill_mode": "gaussian_noise"}
    with pytest.raises(InvalidInputError, match="RandomCutout uses RandomStandardNormal, which no seed"):
        augment(LayerAugmentation(layer="RandomCutout", arguments=arguments), images(), SEED)


def test_layers_that_draw_from_python_are_refused():
    """Keras' AugMix chooses its operations by Python's `random` while it is traced: once, for all images."""
    with pytest.raises(InvalidInputError, match="AugMix uses Python's random module"):
        augment(LayerAugmentation(layer="AugMix"), images(), SEED)


def test_layers_that_change_their_own_state_are_refused():
    with pytest.raises(InvalidInputError, match="BatchNormalization uses AssignVariableOp"):
        augment(LayerAugmentation(layer="BatchNormalization"), images(), SEED)


def test_draws_of_an_image_are_numbered():
    """Draw n is a function of the image's seed and n; another image begins at draw 1 again."""
    random = ImageRandom()
    random.start(tf.constant([1, 2]))
    first, second = random.uniform([3]).numpy(), random.uniform([3]).numpy()
    assert not np.array_equal(first, second)
    random.start(tf.constant([1, 2]))
    np.testing.assert_array_equal(random.uniform([3]), first)
    np.testing.assert_array_equal(
        random.normal([3]),
        tf.random.stateless_normal([3], tf.random.experimental.stateless_fold_in([1, 2], 2), alg="philox"),
    )


def loop_of_a_rotation(image, angle):
    """For the centre of each pixel, the pixel that a rotation by the angle takes it from; 0 outside."""
    size, found = len(image), np.zeros_like(image)
    for i in range(size):
        for j in range(size):
            y, x = i + 0.5 - size / 2, j + 0.5 - size / 2
            row = math.floor(math.cos(angle) * y + math.sin(angle) * x + size / 2)
            column = math.floor(math.cos(angle) * x - math.sin(angle) * y + size / 2)
            if 0 <= row < size and 0 <= column < size:
                found[i, j] = image[row, column]
    return found


@pytest.mark.slow
def test_a_rotation_is_by_an_angle_of_its_own_up_to_the_largest():
    """Pixels that hold their own places tell the angle of each image, and the loop gives the same image."""
    size, count = 24, 40
    place = np.arange(1, size + 1, dtype=np.float32) / size
    image = np.stack(np.broadcast_arrays(place[:, None], place[None, :], np.float32(1)), axis=-1)
    found = augment(Rotation(degrees=15), same(tf.constant(image[None]), count), SEED).numpy()
    angles = []
    for rotated in found:
        inside = rotated[..., 2] == 1
        y, x = (np.indices((size, size)) + 0.5 - size / 2)[:, inside]
        row, column = ((rotated[inside, k] * size - 0.5) - size / 2 for k in (0, 1))
        angles.append(math.atan2(np.sum(row * x - column * y), np.sum(row * y + column * x)))
    for rotated, angle in zip(found[:4], angles[:4], strict=True):  # the angle is known up to the rounding to pixels
        near = [loop_of_a_rotation(image, angle + offset) for offset in np.linspace(-0.01, 0.01, 21)]
        assert max(np.mean(one == rotated) for one in near) > 0.99
    largest = math.radians(15)
    assert -largest - 0.01 < min(angles) < -0.7 * largest and 0.7 * largest < max(angles) < largest + 0.01
    np.testing.assert_array_equal(augment(Rotation(degrees=0), images(), SEED), images())


def test_noise_is_added_to_some_images_and_stays_in_the_box():
    grey = tf.fill([400, 8, 8, 3], 0.5)
    noise = augment(GaussianNoise(std=0.05, probability=0.25), grey, SEED).numpy() - 0.5
    noisy = np.any(noise != 0, axis=(1, 2, 3))
    assert 70 < noisy.sum() < 130
    assert noise[noisy].std() == pytest.approx(0.05, rel=0.03) and abs(noise[noisy].mean()) < 0.002
    clipped = augment(GaussianNoise(std=1, probability=1), grey, SEED).numpy()
    assert clipped.min() == 0 and clipped.max() == 1


@pytest.mark.slow
def test_the_jitter_is_that_of_simclr_and_a_chain_is_in_its_order():
    colours = tf.unstack(tf.random.experimental.stateless_split(SEED))[1]
    jittered = SimCLR(**{**STILL, "jitter_probability": 1.0})
    np.testing.assert_allclose(augment(ColourJitter(), images(), colours), augment(jittered, images(), SEED), atol=1e-6)
    grey, noise = SimCLR(**{**STILL, "greyscale_probability": 1.0}), GaussianNoise(std=0.1, probability=1)
    last = augment(Chain(policies=(noise, grey)), images(), SEED).numpy()
    np.testing.assert_allclose(last[..., 0], last[..., 2], atol=1e-6)
    assert not np.allclose(*augment(Chain(policies=(grey, noise)), images(), SEED).numpy()[..., [0, 2]].T)
