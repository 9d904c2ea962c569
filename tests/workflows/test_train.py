"""`train`: a method of several phases on a user's own encoder and arrays."""

import signal

import keras
import numpy as np
import pytest
from keras import layers

import keras_rcl
from keras_rcl import InvalidInputError
from keras_rcl.networks.own_model import encoder_hash, own_encoder
from keras_rcl.runtime.progress import Silent
from keras_rcl.vocabulary.network import Network
from keras_rcl.vocabulary.phase import SGD
from keras_rcl.workflows.fit import export_run

WEAK = keras_rcl.FGSM(epsilon="8/255")
SMALL = dict(
    evaluation=keras_rcl.Evaluation(attacks=(WEAK,), validation_attack=keras_rcl.Noise()),
    projection=Network(projection_hidden=8, projection_dim=4),
)


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng, labels = np.random.default_rng(seed), np.arange(count) % 3
    images = rng.integers(0, 96, (count, 8, 8, 1))
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 3] += 128
    return images.astype(np.uint8), labels


def encoder(**changes) -> keras.Model:
    """A user's own, which reads 0..255."""
    keras.utils.set_random_seed(7)
    body = keras.Sequential([layers.Conv2D(8, 3, strides=2), layers.BatchNormalization(), layers.ReLU()])
    image = keras.Input((8, 8, 1), **changes)
    x = layers.Flatten()(body(layers.Rescaling(1 / 255)(image)))
    return keras.Model(image, layers.Dense(16, activation="relu")(x))


class Interrupts(Silent):
    """Terminates the process in the second of three steps of the first epoch; `lines` are those that are reported."""

    def __init__(self):
        self.steps, self.lines = 0, []

    def update(self, done, note=""):
        self.steps += 1
        if self.steps == 2:
            signal.raise_signal(signal.SIGTERM)

    def say(self, line):
        self.lines.append(line)


@pytest.mark.slow
def test_an_interrupted_training_resumes_and_ends_in_the_same_weights(tmp_path):
    images, labels = stripes(48, 0)
    # 0..255 as floats: the same images
    data, validation = (images.astype(np.float32), np.eye(3)[labels]), stripes(24, 1)
    method = keras_rcl.RefinedSCL(baseline_epochs=1, epochs=2, batch_size=16, optimizer=SGD(learning_rate=0.01))
    settings = dict(data=data, validation=validation, class_names=("top", "middle", "bottom"), **SMALL)
    whole = keras_rcl.train(encoder(), method, run=tmp_path / "runs/whole", **settings)

    progress = Interrupts()
    with pytest.raises(KeyboardInterrupt, match="resumes"):
        keras_rcl.train(encoder(), method, run=tmp_path / "runs/broken", progress=progress, **settings)
    assert not (tmp_path / "runs/broken/metrics.jsonl").exists()
    own = encoder()
    resumed = keras_rcl.train(own, method, run=tmp_path / "runs/broken", progress=progress, **settings)
    assert progress.lines == ["resuming 1/2 baseline  epoch 1/1, step 2"]
    for one, other in zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    for one, other in zip(own.get_weights(), whole.encoder.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    (row,), (expected_row,) = resumed.record["rows"], whole.record["rows"]
    assert row == {**expected_row, "seconds": row["seconds"]}
    assert resumed.record["data"]["part"] == "validation"
    moved = [np.abs(one - other).max() for one, other in zip(own.get_weights(), encoder().get_weights(), strict=True)]
    assert min(moved) > 0
    assert own.trainable_variables and len(own.trainable_variables) == len(encoder().trainable_variables)
    classifier = keras_rcl.load_classifier(resumed.saved_model)
    pixels = images.astype(np.float32) / 255
    expected = resumed.model(pixels)
    np.testing.assert_allclose(classifier.logits(pixels), expected["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(own(images), expected["embedding"], rtol=1e-4, atol=1e-5)
    assert classifier.class_names == ("top", "middle", "bottom")
    again = keras_rcl.load_classifier(export_run(resumed.run, saved_models=tmp_path / "exports"))
    np.testing.assert_allclose(again.logits(pixels), expected["logits"], rtol=1e-4, atol=1e-5)
    assert again.class_names == classifier.class_names
    changed = encoder()
    changed.layers[-1].bias.assign(np.ones(16))
    with pytest.raises(InvalidInputError, match="broken"):
        keras_rcl.train(changed, method, run=tmp_path / "runs/broken", **settings)


def test_an_encoder_reads_images_in_its_own_range():
    model, (images, _) = encoder(), stripes(4, 0)
    pixels = images.astype(np.float32) / 255
    np.testing.assert_allclose(own_encoder(model, pixels=(255.0, 0.0))(pixels), model(images), rtol=1e-5, atol=1e-6)


def test_an_encoder_is_known_by_its_layers_and_weights():
    first, again, other, moved = encoder(), encoder(), encoder(), encoder()
    other.layers[-1].activation = keras.activations.tanh
    moved.layers[-1].bias.assign(np.ones(16))
    assert encoder_hash(first) == encoder_hash(again)
    assert len({encoder_hash(one) for one in (first, other, moved)}) == 3


def feature_map() -> keras.Model:
    image = keras.Input((8, 8, 1))
    return keras.Model(image, layers.Conv2D(4, 3)(image))


SMALLER = np.zeros((4, 6, 6, 1), np.uint8), np.arange(4) % 3
REFUSED = {
    "a feature map": (feature_map, {}, "not an embedding \\[N, E\\]"),
    "another size": (encoder, {"data": SMALLER, "validation": SMALLER}, "shape \\(6, 6, 1\\) and the encoder reads"),
    "another range": (
        encoder,
        {"data": (np.full((4, 8, 8, 1), 300.0), np.arange(4) % 3)},
        "span \\[300, 300\\]",
    ),
    "no labels": (encoder, {"data": np.zeros((4, 8, 8, 1), np.uint8)}, "give a pair"),
    "other classes in validation": (encoder, {"validation": stripes(6, 1)[:1] + (np.full(6, 9),)}, "label 9"),
    "half precision": (lambda: _in_half(), {}, "mixed_float16"),
}


def _in_half() -> keras.Model:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return encoder()
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_one_line_and_leaves_no_run(name, tmp_path):
    build, changes, message = REFUSED[name]
    settings = {"data": stripes(12, 0), "validation": stripes(6, 1), **changes}
    with pytest.raises(InvalidInputError, match=message) as raised:
        keras_rcl.train(build(), keras_rcl.Baseline(), run=tmp_path / "runs/mine", **settings)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "runs/mine").exists()
