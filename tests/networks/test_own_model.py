"""A user's classifier as a two-headed network: the same predictions, exact logits, the embedding."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_rcl import InvalidInputError
from keras_rcl.folding import at_inference
from keras_rcl.networks.own_model import around_model
from keras_rcl.networks.two_headed import batch_norms
from keras_rcl.vocabulary.network import Network

X = np.random.default_rng(0).random((5, 6, 6, 1), np.float32)


def trunk(x):
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, strides=2, activation="relu")(x))
    return layers.Dense(7, activation="relu", name="hidden")(layers.Flatten()(x))


def functional(end, classes=3):
    image = keras.Input((6, 6, 1))
    return keras.Model(image, end(trunk(image), classes))


def dense(activation):
    return lambda x, classes: layers.Dense(classes, activation=activation)(x)


def nested(classes=3):
    """A backbone and a head, both of them models."""
    image, row = keras.Input((6, 6, 1)), keras.Input((7,))
    backbone = keras.Model(image, trunk(image))
    head = keras.Model(row, layers.Dense(classes)(layers.Dropout(0.5)(row)))
    return keras.Sequential([keras.Input((6, 6, 1)), layers.Rescaling(1.0), backbone, head, layers.Softmax()])


class Subclassed(keras.Model):
    def __init__(self, activation):
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(3, activation=activation)

    def call(self, x):
        return self.dense(self.flatten(x))


def subclassed(activation):
    model = Subclassed(activation)
    model(X)
    return model


def nested_sigmoid():
    return keras.Sequential([keras.Input((6, 6, 1)), functional(dense(None), 1), layers.Activation("sigmoid")])


MODELS = {
    "logits": (lambda: functional(dense(None)), "logits"),
    "softmax": (lambda: functional(dense("softmax")), "softmax"),
    "softmax layer": (lambda: functional(lambda x, k: layers.Activation("softmax")(layers.Dense(k)(x))), "softmax"),
    "sigmoid": (lambda: functional(dense("sigmoid"), 1), "sigmoid"),
    "one logit": (lambda: functional(dense(None), 1), "logit"),
    "nested": (nested, "softmax"),
    "nested sigmoid": (nested_sigmoid, "sigmoid"),
    "subclassed logits": (lambda: subclassed(None), "logits"),
    "subclassed softmax": (lambda: subclassed("softmax"), "softmax"),
}


@pytest.mark.parametrize("name", MODELS)
def test_predictions_and_variables_are_those_of_the_model(name):
    build, form = MODELS[name]
    model = build()
    own = around_model(model)
    logits = own.network(X, training=False)["logits"]
    assert own.form == form and own.num_classes == max(2, model(X).shape[-1])
    np.testing.assert_allclose(own.predictions(logits), model(X, training=False), rtol=1e-4, atol=1e-6)
    trained = {id(variable) for variable in model.trainable_variables}
    assert {id(variable) for variable in own.network.trainable_variables} == trained


def test_logits_are_exact_where_a_softmax_rounds_to_zero_and_one():
    model = keras.Sequential([keras.Input((1, 1, 2)), layers.Flatten(), layers.Dense(2, activation="softmax")])
    model.set_weights([np.eye(2), np.zeros(2)])
    logits = around_model(model).network(np.array([[[[0.0, 200.0]]]], np.float32))["logits"]
    np.testing.assert_array_equal(logits, [[0.0, 200.0]])


def test_images_reach_the_model_in_its_own_range():
    model = keras.Sequential([keras.Input((1, 1, 2)), layers.Flatten(), layers.Dense(2)])
    model.set_weights([np.eye(2), np.zeros(2)])
    network = around_model(model, pixels=(255.0, 0.0)).network
    np.testing.assert_array_equal(network(np.array([[[[0.0, 1.0]]]], np.float32))["logits"], [[0.0, 255.0]])


@pytest.mark.parametrize(("given", "width"), [(None, 7), ("hidden", 7), ("flatten", 16)])
def test_the_embedding_is_the_named_layer_or_the_input_of_the_last_dense_layer(given, width):
    image = keras.Input((6, 6, 1))
    x = layers.Flatten(name="flatten")(layers.Conv2D(4, 3, strides=2)(image))
    hidden = layers.Dense(7, name="hidden")(x)
    model = keras.Model(image, layers.Dense(3)(hidden))
    head = Network(projection_hidden=8, projection_dim=4)
    network = around_model(model, embedding=given, projection=head).network
    expected = keras.Model(image, x if given == "flatten" else hidden)(X)
    outputs = network(X)
    np.testing.assert_allclose(outputs["embedding"], expected, rtol=1e-5, atol=1e-6)
    assert outputs["embedding"].shape == (5, width) and outputs["projection"].shape == (5, 4)
    np.testing.assert_allclose(outputs["logits"], model(X), rtol=1e-5, atol=1e-6)


def test_batchnorm_inside_a_nested_backbone_is_found_once():
    own = around_model(nested())
    assert [layer.name for layer in batch_norms(own.network)] == ["norm"]


def test_a_model_of_any_image_size():
    image = keras.Input((None, None, 1))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(image))
    model = keras.Model(image, layers.Dense(3)(x))
    network = around_model(model).network
    np.testing.assert_allclose(at_inference(network)(X), model(X), rtol=1e-5, atol=1e-6)


def skip_connection():
    """Logits that read the pixels beside the named layer."""
    image = keras.Input((6, 6, 1))
    x = layers.Dense(7, name="hidden")(layers.Flatten()(image))
    return keras.Model(image, layers.Dense(3)(layers.Concatenate()([x, layers.Flatten()(image)])))


REFUSED = {
    "several sigmoids": (lambda: functional(dense("sigmoid"), 3), {}, "separate yes-or-no answers"),
    "softmax of one": (lambda: functional(dense("softmax"), 1), {}, "always 1"),
    "two activations": (
        lambda: functional(lambda x, k: layers.Softmax()(layers.Dense(k, "softmax")(x))),
        {},
        "two act",
    ),
    "no such layer": (nested, {"embedding": "nowhere"}, "has no layer 'nowhere'"),
    "a feature map": (lambda: functional(dense(None)), {"embedding": "norm"}, "not \\[N, E\\]"),
    "not on every path": (skip_connection, {"embedding": "hidden"}, "do not depend on layer hidden alone"),
    "not built": (lambda: Subclassed(None), {}, "has no known image shape"),
    "rows of numbers": (lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3)]), {}, "not images"),
    "integers": (
        lambda: keras.Sequential([keras.Input((6, 6, 1), dtype="uint8"), layers.Flatten()]),
        {},
        "no gradient",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_one_line_with_a_hint(name):
    build, settings, message = REFUSED[name]
    with pytest.raises(InvalidInputError, match=message) as raised:
        around_model(build(), **settings)
    assert "\n" not in str(raised.value)
