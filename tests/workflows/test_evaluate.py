"""`evaluate`, `craft`, `audit` and `verify` on models and data as users have them.

The models are classifiers by the nearest class mean, which are linear: whether an image is robust in a ball is known in
closed form.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image
from sklearn.datasets import load_digits

import keras_rcl
from keras_rcl.errors import InvalidInputError
from keras_rcl.measures.wilson import wilson_interval

EPSILON = 24 / 255
COUNT = 60
ATTACKS = [keras_rcl.FGSM(epsilon=EPSILON), keras_rcl.PGD(epsilon=EPSILON, num_steps=10, loss="logit_margin")]


@pytest.fixture(scope="module")
def digits():
    """uint8 images [1797, 8, 8, 1] and labels."""
    data = load_digits()
    return np.round(data.images * 255 / 16).astype(np.uint8)[..., None], data.target


@pytest.fixture(scope="module")
def weights(digits):
    """W [64, 10] and b [10] of the logits of pixels in [0, 1]: m_k x - |m_k|^2 / 2, with the class means m_k."""
    images, labels = digits
    pixels = images.reshape(-1, 64) / 255
    means = np.stack([pixels[labels == label].mean(axis=0) for label in range(10)])
    return means.T.astype(np.float32), (-np.square(means).sum(axis=1) / 2).astype(np.float32)


@pytest.fixture(scope="module")
def data(digits):
    return digits[0][:COUNT], digits[1][:COUNT]


@pytest.fixture(scope="module")
def robust(data, weights):
    """[N] bool: the class of each image in closed form, and that of no image of its ball is another."""
    images, labels = data
    x, (kernel, bias) = images.reshape(-1, 64) / 255, weights
    low, high = np.maximum(x - EPSILON, 0), np.minimum(x + EPSILON, 1)
    survives = np.ones(len(x), bool)
    for row, label in enumerate(labels):
        for other in set(range(10)) - {label}:
            direction = kernel[:, label] - kernel[:, other]
            worst = np.where(direction > 0, low[row], high[row]) @ direction + bias[label] - bias[other]
            survives[row] &= worst > 0
    return survives


def model_of(weights, *first, activation=None, shape=(8, 8, 1)):
    dense = layers.Dense(10, activation=activation)
    model = keras.Sequential([keras.Input(shape), *first, layers.Flatten(), dense])
    dense.set_weights(list(weights))
    return model


class Subclassed(keras.Model):
    """A model without a graph, whose call has no argument `training`."""

    def __init__(self, weights):
        super().__init__()
        self.scale, self.flatten, self.dense = layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(10)
        self(np.zeros((1, 8, 8, 1), np.float32))
        self.dense.set_weights(list(weights))

    def call(self, images):
        return self.dense(self.flatten(self.scale(images)))


def functional(weights):
    inputs = keras.Input((8, 8, 1))
    x = layers.Dropout(0.5)(layers.RandomZoom(0.2)(layers.Rescaling(1 / 255)(inputs)))
    dense = layers.Dense(10)
    model = keras.Model(inputs, layers.Activation("softmax")(dense(layers.Flatten()(x))))
    dense.set_weights(list(weights))
    return model


def half(weights):
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        return model_of(weights, layers.Rescaling(1 / 255))
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def callable_of(weights):
    kernel, bias = weights
    return lambda images: tf.reshape(images, [-1, 64]) @ kernel + bias


MODELS = {
    "softmax, reads 0..255": lambda weights: model_of(weights, layers.Rescaling(1 / 255), activation="softmax"),
    "reads 0..1": model_of,
    "functional with augmentation": functional,
    "subclassed": Subclassed,
    "callable": callable_of,
    "mixed precision": half,
    "of grey images without a channel": lambda weights: model_of(weights, layers.Rescaling(1 / 255), shape=(8, 8)),
}


def check(report, robust, labels):
    """The attacked outcomes are those of the closed form, up to the images that a PGD of few steps leaves."""
    assert not np.any(robust & ~report.survived.all(axis=0)), "an image was broken that cannot be"
    assert report.survived.all(axis=0).sum() <= robust.sum() + 2
    assert report.survival.labels.tolist() == labels.tolist()
    assert report.warnings == ()


@pytest.mark.parametrize("kind", MODELS)
def test_the_robust_accuracy_of_each_kind_of_model(kind, weights, data, robust):
    images, labels = data
    in_0_1 = kind in ("reads 0..1", "callable")
    given = (images / 255).astype(np.float32) if in_0_1 else images[..., 0] if "without a channel" in kind else images
    report = keras_rcl.evaluate(MODELS[kind](weights), given, labels[:, None], attack=ATTACKS)
    check(report, robust, labels)
    assert report.input_range.name == ("0..1" if in_0_1 else "0..255")


@pytest.mark.slow
@pytest.mark.parametrize("save", ["save", "export"])
def test_the_robust_accuracy_of_a_model_on_disk(save, weights, data, robust, tmp_path):
    images, labels = data
    model = model_of(weights, layers.Rescaling(1 / 255), activation="softmax")
    path = str(tmp_path / ("model.keras" if save == "save" else "model"))
    model.save(path) if save == "save" else model.export(path, verbose=False)
    check(keras_rcl.evaluate(path, images, labels, attack=ATTACKS), robust, labels)


def folder_of(folder, images, labels):
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / str(label) / f"{number:03}.png")
    return folder


DATA = {
    "floats in 0..1": lambda x, y: ((x / 255).astype(np.float32), y),
    "floats in 0..255": lambda x, y: (x.astype(np.float32), y),
    "floats in -1..1": lambda x, y: (x.astype(np.float32) / 127.5 - 1, y),
    "tensors, one-hot": lambda x, y: (tf.constant(x), tf.one_hot(y, 10)),
    "batched": lambda x, y: (tf.data.Dataset.from_tensor_slices((x, y)).batch(7), None),
    "not batched": lambda x, y: (tf.data.Dataset.from_tensor_slices((x, y[:, None])), None),
    "mappings": lambda x, y: (tf.data.Dataset.from_tensor_slices({"image": x, "label": y}), None),
    "a pair": lambda x, y: ((x, y), None),
}


@pytest.mark.parametrize("kind", DATA)
def test_data_of_each_kind_are_the_same_pixels_and_labels(kind, digits, data, weights):
    from keras_rcl.workflows.own_model import read_model_and_data

    x, y = DATA[kind](*data)
    read = read_model_and_data(model_of(weights, layers.Rescaling(1 / 255)), x, y)
    np.testing.assert_allclose(read.images, data[0] / 255, rtol=0, atol=1e-6)
    assert read.labels.tolist() == data[1].tolist() and read.input_range.name == "0..255"


def test_a_folder_is_read_with_its_class_names(digits, weights, tmp_path):
    from keras_rcl.workflows.own_model import read_model_and_data

    images, labels = digits[0][:200], digits[1][:200]
    read = read_model_and_data(
        model_of(weights, layers.Rescaling(1 / 255)), folder_of(tmp_path / "images", images, labels)
    )
    assert len(read.labels) == 200 and read.class_names == tuple("0123456789")
    right = np.argmax(read.images.reshape(-1, 64) @ weights[0] + weights[1], axis=1) == read.labels
    assert right.mean() > 0.85  # as with the arrays


@pytest.mark.slow
def test_one_sigmoid_output(data, weights):
    """Two classes, 0 to 4 and 5 to 9 by the difference of two logits, as sigmoid and as two logits."""
    images, labels = data
    kernel = (weights[0][:, 5:].mean(axis=1) - weights[0][:, :5].mean(axis=1))[:, None]
    one = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(1, activation="sigmoid")])
    two = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(2)])
    bias = -np.median(images.reshape(-1, 64) / 255 @ kernel)
    one.layers[-1].set_weights([kernel, np.array([bias])])
    two.layers[-1].set_weights([np.concatenate([0 * kernel, kernel], axis=1), np.array([0, bias])])
    pixels, parity = (images / 255).astype(np.float32), (labels >= 5).astype(int)
    found, expected = (
        keras_rcl.evaluate(model, pixels, parity, attack="pgd-5", epsilon="2/255", input_range="0..1")
        for model in (one, two)
    )
    assert found.survived.tolist() == expected.survived.tolist()
    assert any("its one output is read as the probability of class 1" in note for note in found.notes)
    proved = [
        keras_rcl.verify(model, pixels, parity, epsilon="2/255", method="crown", input_range="0..1", attacks=())
        for model in (one, two)
    ]
    assert proved[0].statuses.tolist() == proved[1].statuses.tolist()


def test_fewer_classes_than_autoattack_needs(data, weights):
    images, labels = data
    two = model_of((weights[0][:, :10], weights[1]))
    three = keras.Model(two.inputs, layers.Lambda(lambda z: z[:, :3])(two.outputs[0]))
    chosen = labels < 3
    attack = keras_rcl.AutoAttack(epsilon="1/255")
    from keras_rcl.workflows.evaluate import _attacks

    attacks, note = _attacks(attack, None, None, 3)
    assert [one.label for one in attacks] == [
        m.label for m in attack.members if m.min_classes <= 3
    ] and "3 classes" in note
    report = keras_rcl.evaluate(three, images[chosen], labels[chosen], attack="pgd-2", input_range="0..1")
    assert report.survived.shape == (1, chosen.sum())


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(weights, data):
    model = model_of(weights, layers.Rescaling(1 / 255))
    return keras_rcl.evaluate(model, *data, attack="pgd-3", epsilon=["8/255", "24/255"])


def test_the_report_prints_plots_and_saves_itself(report, tmp_path):
    text = str(report)
    low, high = wilson_interval(float(report.survived[1].mean()), COUNT)
    assert f"{100 * low:.1f}-{100 * high:.1f}" in text and "95% interval" in text
    assert "the model reads images in 0..255 (its first layers, Rescaling, take 0..255)" in text
    assert "images were given in 0..255; epsilon is in units of [0, 1]" in text
    assert report.robust_accuracy == report.survived.all(axis=0).mean()
    (axes,) = report.plot().axes
    assert [round(value, 6) for value in axes.lines[0].get_ydata()] == [
        round(100 * float(share), 6) for share in (report.clean_accuracy, *report.survived.mean(axis=1))
    ]
    folder = report.save(tmp_path / "report")
    assert {"record.json", "report.txt", "outcomes.npz", "accuracy_epsilon_linf.png", "pictures.png"} == {
        path.name for path in folder.iterdir()
    }
    from keras_rcl.evaluation.record import read_record

    assert read_record(folder / "record.json")["survival"]["attacks"].tolist() == report.survived.tolist()
    with pytest.raises(InvalidInputError, match="already exists"):
        report.save(folder)


def test_the_wilson_interval_of_published_examples():
    """Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    examples = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (count, total), limits in examples.items():
        np.testing.assert_allclose(wilson_interval(count / total, total), limits, atol=5e-5)
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


# --- craft, verify, audit ---------------------------------------------------------------------------------------------


def test_craft_returns_images_in_the_range_that_was_given(data, weights):
    """The attack is the same whatever the range of the images, and is that of the pixels on the logits."""
    images, labels = data
    model, attack = model_of(weights, layers.Rescaling(1 / 255)), ATTACKS[1]
    pixels = (images / 255).astype(np.float32)
    expected = keras_rcl.craft(attack, callable_of(weights), pixels, labels)
    for given, scale in ((images, 255), (images.astype(np.float32), 255), (pixels, 1)):
        found = keras_rcl.craft(attack, model, given, labels[:, None])
        np.testing.assert_allclose(found / scale, expected, rtol=0, atol=1e-5)
        assert np.abs(found / scale - pixels).max() <= EPSILON + 1e-6
    model.layers[-1].set_weights([-weights[0], -weights[1]])  # the compiled attack reads the new weights
    other = keras_rcl.craft(attack, model, pixels, labels)
    opposite = keras_rcl.craft(attack, callable_of((-weights[0], -weights[1])), pixels, labels)
    np.testing.assert_allclose(other, opposite, rtol=0, atol=1e-5)
    assert keras_rcl.craft(attack, model, images[:0], labels[:0]).shape == (0, 8, 8, 1)


@pytest.mark.slow
def test_craft_of_an_ensemble_breaks_what_can_be_broken(data, weights, robust):
    images, labels = data
    attack = keras_rcl.PGD(epsilon=EPSILON, num_steps=10, num_restarts=3, loss="logit_margin")
    pixels = (images / 255).astype(np.float32)
    found = keras_rcl.craft(attack, model_of(weights), pixels, labels)
    right = np.argmax(callable_of(weights)(found), axis=1) == labels
    assert not np.any(robust & ~right) and right.sum() <= robust.sum() + 1


@pytest.mark.slow
def test_craft_of_autoattack_ends_soon(data, weights, robust):
    images, labels = data
    model = model_of(weights, layers.Rescaling(1 / 255))
    found = keras_rcl.craft(keras_rcl.AutoAttack(epsilon=EPSILON), model, images, labels)
    right = np.argmax(model.predict(found, verbose=0), axis=1) == labels
    assert right.tolist() == robust.tolist()


def test_craft_within_a_graph(data, weights):
    images, labels = (data[0] / 255).astype(np.float32), data[1]
    model = model_of(weights)
    run = tf.function(lambda x, y: keras_rcl.craft(keras_rcl.FGSM(), model, x, y), autograph=False)
    expected = keras_rcl.craft(keras_rcl.FGSM(), callable_of(weights), images, labels)
    np.testing.assert_allclose(run(images, labels), expected, rtol=0, atol=1e-6)


def test_verify_proves_exactly_what_is_robust(data, weights, robust):
    """CROWN is exact for a linear network, whatever softmax ends it and whatever rescaling begins it."""
    model = model_of(weights, layers.Rescaling(1 / 255), activation="softmax")
    found = keras_rcl.verify(model, *data, epsilon=EPSILON, method="crown", attacks=())
    assert (found.statuses[0] == "safe-incomplete").tolist() == robust.tolist()
    assert found.verified_accuracy == robust.mean()


@pytest.mark.slow
def test_verify_of_a_model_of_any_size(data):
    images, labels = data
    inputs = keras.Input((None, None, 1))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3, activation="relu", padding="same")(inputs))
    model = keras.Model(inputs, layers.Dense(10)(x))
    fixed_inputs = keras.Input((8, 8, 1))
    fixed = keras.Model(fixed_inputs, model(fixed_inputs))
    found, expected = (
        keras_rcl.verify(one, images[:8], labels[:8], method="ibp", attacks=(), input_range="0..1").margins
        for one in (model, fixed)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# --- what cannot be used ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x, y: (42, x, y), "the model is a int; hint: give a Keras model"),
        (lambda m, x, y: (m, x, None), "there are no labels"),
        (lambda m, x, y: (m, x, y[:-1]), "59 labels for 60 images"),
        (lambda m, x, y: (m, x, y + 1), "label 10 of image .* is outside the 10 classes"),
        (lambda m, x, y: (m, x[:, :7], y), r"takes images of shape \(8, 8, 1\), but these have \(7, 8, 1\)"),
        (lambda m, x, y: (m, np.moveaxis(x, -1, 1), y), "channels first; hint: give numpy.moveaxis"),
        (lambda m, x, y: (m, (x / 255 - 0.3) / 0.1, y), "mean/std normalisation"),
        (lambda m, x, y: (m, x.astype(np.int32) - 300, y), "images are int32 from -300"),
        (lambda m, x, y: (m, x[:0], y[:0]), "there are no images"),
        (lambda m, x, y: (m, np.array(["a"]), y), "images have shape|images are"),
        (lambda m, x, y: (m, [x[0], x[0][:4]], y), "images are of different sizes"),
        (lambda m, x, y: (m, tf.data.Dataset.from_tensors((x, y)).repeat(), None), "is infinite"),
        (lambda m, x, y: (m, tf.data.Dataset.from_tensors((x, y)), y), "y is given, and x holds labels too"),
    ],
)
def test_what_cannot_be_used_is_one_line(change, message, weights, data):
    model = model_of(weights, layers.Rescaling(1 / 255))
    with pytest.raises(InvalidInputError, match=message) as raised:
        keras_rcl.evaluate(*change(model, *data), attack="fgsm")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "nonsense"}, "unknown attack 'nonsense'"),
        ({"attack": keras_rcl.PGD}, "the class PGD is not an attack"),
        ({"epsilon": "a lot"}, "epsilon 'a lot'"),
        ({"norm": "l2"}, "norm l2 without an epsilon"),
        ({"input_range": "0-255"}, "unknown input range"),
        ({"attack": keras_rcl.Embedding()}, "reads another output"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(options, message, weights, data):
    with pytest.raises(InvalidInputError, match=message):
        keras_rcl.evaluate(model_of(weights), *data, **{"attack": "fgsm", **options})
