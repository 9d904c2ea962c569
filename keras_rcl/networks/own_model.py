"""A two-headed network around a classifier that somebody else built, on that classifier's own layers and variables."""

import dataclasses
import hashlib
import json
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_rcl.errors import InvalidInputError
from keras_rcl.folding.graph_walk import has_graph
from keras_rcl.networks.two_headed import assemble, layers_of, projector
from keras_rcl.vocabulary.network import Network, Precision

Form = Literal["logits", "softmax", "sigmoid", "logit"]
"""What a classifier gives: logits or probabilities [N, K]; or, of two classes, class 1's sigmoid or logit [N, 1]."""

IN_PLACE = ("Dropout", "GaussianNoise", "BatchNormalization", "Activation", "Identity", "Rescaling")
"""Layers that may stand between the last Dense layer and the logits."""


@dataclasses.dataclass(frozen=True)
class OwnModel:
    """A user's classifier as a two-headed network.

    Attributes:
        network: As of `build_network`: images [N, H, W, C] in [0, 1] -> embedding, projection, logits. Its encoder and
            its classifier are made of the layers of the user's model; only the projector has variables of its own.
        form: What the user's model gives.
        has_embedding: Whether the encoder ends at an embedding; otherwise it ends at the logits.
    """

    network: keras.Model
    form: Form
    has_embedding: bool

    @property
    def num_classes(self) -> int:
        """K."""
        return self.network.output["logits"].shape[-1]

    def predictions(self, logits: Any) -> Any:
        """What the user's model gives for logits [N, K]."""
        if self.form == "logits":
            return logits
        if self.form == "softmax":
            return ops.softmax(logits)
        logit = logits[:, 1:] - logits[:, :1]
        return logit if self.form == "logit" else ops.sigmoid(logit)


class _Split(NamedTuple):
    """A classifier in two: images -> embedding -> logits, the form of its output, and whether there is an embedding."""

    encoder: keras.Model
    classifier: keras.Model
    form: Form
    has_embedding: bool


def around_model(
    model: keras.Model,
    *,
    pixels: tuple[float, float] = (1.0, 0.0),
    embedding: str | None = None,
    projection: Network | None = None,
    seed: int = 0,
) -> OwnModel:
    """Build a two-headed network on the layers of a classifier.

    Softmax and sigmoid at the end are left out, so that logits are exact; of a model without a graph they are the
    logarithms of its probabilities.

    Args:
        model: Functional, Sequential or subclassed, built: images [N, H, W, C] -> logits or probabilities [N, K], or
            one logit or probability of class 1, [N, 1].
        pixels: Scale and offset from images in [0, 1] to the images that the model reads.
        embedding: The name of the layer whose output [N, E] is the embedding; the input of the last Dense layer if it
            is not given.
        projection: The projection head that is added; None: the projection is the embedding at unit length.
        seed: Of the projection head.

    Raises:
        InvalidInputError: If the model is not such a classifier, or has no such embedding.

    Example:
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> own = around_model(model)
        >>> own.network.output["embedding"].shape, own.form
        ((None, 16), 'logits')
    """
    split = _split(model, embedding) if has_graph(model) else _whole(model, embedding)
    if not isinstance(split.encoder.inputs[0].shape, tuple) or len(split.encoder.inputs[0].shape) != 4:
        raise InvalidInputError(
            f"model {model.name} reads {split.encoder.inputs[0].shape}, not images [N, H, W, C]; "
            "hint: give a model of images"
        )
    width = split.encoder.output.shape[-1]
    head = projection or Network(projection_hidden=None, projection_dim=None)
    image = keras.Input(split.encoder.inputs[0].shape[1:], dtype="float32", name="image")
    scale, offset = pixels
    x = image
    if pixels != (1.0, 0.0):
        x = keras.layers.Rescaling(scale, offset, dtype="float32", name="pixels")(image)
    network = assemble(image, x, split.encoder, projector(head, width, seed), split.classifier, precision_of(model))
    return OwnModel(network, split.form, split.has_embedding)


def own_encoder(
    model: keras.Model,
    *,
    pixels: tuple[float, float] = (1.0, 0.0),
    image_shape: tuple[int, ...] | None = None,
) -> keras.Model:
    """The model `encoder` of a two-headed network on the layers and variables of somebody's own encoder.

    Args:
        model: Functional, Sequential or subclassed, built, in float32: images [N, H, W, C] -> embedding [N, E].
        pixels: Scale and offset from images in [0, 1] to the images that the model reads.
        image_shape: (H, W, C) of the images; None: those of the model, which has to be built for one size.

    Returns:
        Images [N, H, W, C] in [0, 1] -> embedding [N, E].

    Raises:
        InvalidInputError: If the model is not such an encoder.

    Example:
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> own_encoder(model, pixels=(255.0, 0.0)).output_shape
        (None, 3)
    """
    if has_graph(model):
        _check_one(model)
        shape = model.inputs[0].shape
    else:
        shape = _image_shape(model)
    if has_graph(model) and "softmax" in (_activation(found := _layer(model.outputs[0])), _own_form(found)):
        raise InvalidInputError(
            f"encoder {model.name} ends in a softmax, as a classifier does; hint: give the layers up to the embedding, "
            "keras.Model(model.inputs, model.layers[-2].output)"
        )
    if image_shape is not None and len(shape) == 4:
        shape = _fitted(model, shape, image_shape)
    if len(shape) != 4 or None in shape[1:]:
        raise InvalidInputError(
            f"encoder {model.name} reads {tuple(shape)}, not images [N, H, W, C] of a fixed size; hint: build it with "
            "keras.Input((H, W, C))"
        )
    if precision_of(model) != "float32":
        raise InvalidInputError(f"encoder {model.name} is in {precision_of(model)}; hint: build it in float32")
    image = keras.Input(shape[1:], dtype="float32", name="own_image")
    scale, offset = pixels
    x = image if pixels == (1.0, 0.0) else keras.layers.Rescaling(scale, offset, dtype="float32", name="pixels")(image)
    embedding = model(x)
    if not hasattr(embedding, "shape") or len(embedding.shape) != 2:
        raise InvalidInputError(
            f"encoder {model.name} gives {getattr(embedding, 'shape', 'several outputs')}, not an embedding [N, E]; "
            "hint: end it with a pooling or Flatten"
        )
    return keras.Model(image, embedding, name="encoder")


def _fitted(model: keras.Model, shape: tuple[int | None, ...], image_shape: tuple[int, ...]) -> tuple[int | None, ...]:
    """The shape [N, H, W, C] that a model reads, with the sizes of the images where it reads any."""
    if any(want not in (None, have) for want, have in zip(shape[1:], image_shape, strict=True)):
        height, width, channels = shape[1:]
        hint = f"set dataset.image_size={height}" if channels in (None, image_shape[2]) and height == width else ""
        raise InvalidInputError(
            f"encoder {model.name} reads images of shape {tuple(shape[1:])}, and these have {tuple(image_shape)}; "
            f"hint: {hint or 'build it for these images'}"
        )
    return (None, *image_shape)


def encoder_hash(encoder: keras.Model) -> str:
    """SHA-256 of an encoder's layers in order and of its weights; the names that Keras counts up do not matter."""
    digest = hashlib.sha256()
    for layer in layers_of(encoder):
        digest.update(json.dumps([type(layer).__name__, _nameless(layer.get_config())], default=str).encode())
    for weight in encoder.get_weights():
        digest.update(repr((weight.shape, weight.dtype.name)).encode() + weight.tobytes())
    return digest.hexdigest()


def copied(encoder: keras.Model) -> keras.Model:
    """A copy of an encoder with variables of its own, which are made in the current scope of a strategy.

    Raises:
        InvalidInputError: If a layer cannot be made from its configuration.
    """
    try:
        copy = type(encoder).from_config(encoder.get_config())
    except Exception as error:
        raise InvalidInputError(
            f"the encoder cannot be copied to replicas: {' '.join(str(error).split())[:200]}; hint: give its layers "
            "get_config, or train on one replica"
        ) from None
    copy.set_weights(encoder.get_weights())
    return copy


def _nameless(config: Any) -> Any:
    """A layer's configuration without names."""
    if isinstance(config, dict):
        return {
            key: _nameless(value) for key, value in sorted(config.items()) if key not in ("name", "shared_object_id")
        }
    return [_nameless(value) for value in config] if isinstance(config, (list, tuple)) else config


def precision_of(model: keras.Model) -> Precision:
    """The dtype policy of a model: a mixed one if any layer computes in half precision."""
    dtypes = {layer.compute_dtype for layer in layers_of(model)}
    mixed: dict[str, Precision] = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
    return next((policy for half, policy in mixed.items() if half in dtypes), "float32")


def _split(model: keras.Model, embedding: str | None, name: str = "encoder") -> _Split:
    """Split a model that has a graph; a model within it is split if it comes last."""
    _check_one(model)
    form: Form = "logits"
    logits = model.outputs[0]
    while (found := _activation(_layer(logits))) is not None:
        form, logits = _one_form(model, found, form), _read(logits)
    layer = _layer(logits)
    if has_graph(layer):
        if embedding is not None and embedding in {one.name for one in model.layers}:
            raise InvalidInputError(
                f"layer {embedding} of {model.name} comes before {layer.name}, which holds the classifier; hint: name "
                f"a layer of {layer.name}, or leave embedding out"
            )
        inner = _split(layer, embedding, f"{layer.name}_without_head")
        encoder = keras.Model(model.inputs[0], inner.encoder(_read(logits)), name=name)
        form = _one_form(model, "logits" if inner.form == "logit" else inner.form, form)
        return inner._replace(encoder=encoder, form=_two_class_form(form, logits))
    own = _own_form(layer)
    if own is not None and own != "logits":
        logits, form = _without_activation(layer)(_read(logits)), _one_form(model, own, form)
    read, has_embedding = _embedding_of(model, logits, embedding)
    try:
        encoder = keras.Model(model.inputs[0], read, name=name)
        classifier = _classifier(read, logits)
    except ValueError:
        raise InvalidInputError(
            f"the logits of {model.name} do not depend on layer {embedding} alone; hint: name a later layer"
        ) from None
    return _Split(encoder, classifier, _two_class_form(form, logits), has_embedding)


def _check_one(model: keras.Model) -> None:
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise InvalidInputError(
            f"model {model.name} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; hint: give one that "
            "maps images alone to the logits or probabilities alone"
        )
    if not keras.backend.is_float_dtype(model.inputs[0].dtype):
        raise InvalidInputError(
            f"model {model.name} reads {model.inputs[0].dtype}, so that no gradient reaches the pixels; hint: give its "
            "keras.Input a float dtype"
        )


def _layer(tensor):
    return tensor._keras_history.operation


def _read(tensor):
    """The tensor that the layer of a tensor read."""
    layer, call, _ = tensor._keras_history
    return layer._inbound_nodes[call].input_tensors[0]


def _form_of(activation) -> Form | None:
    """What an activation function gives for logits; None if it is another one."""
    forms: dict[str, Form] = {"linear": "logits", "softmax": "softmax", "sigmoid": "sigmoid"}
    return forms.get(getattr(activation, "__name__", ""))


def _one_form(model: keras.Model, first: Form, second: Form) -> Form:
    """The form after two activations, one of which has to be the identity."""
    if "logits" not in (first, second):
        raise InvalidInputError(f"model {model.name} ends in two activations, {first} and {second}; leave one out")
    return second if first == "logits" else first


def _activation(layer) -> Form | None:
    """What a layer that only applies an activation gives for logits; None if it is another layer."""
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    return _form_of(layer.activation) if type(layer) is keras.layers.Activation else None


def _own_form(layer) -> Form | None:
    """What the activation of a Dense layer gives for logits; None if it is another layer or activation."""
    return _form_of(layer.activation) if isinstance(layer, keras.layers.Dense) else None


def _without_activation(dense: keras.layers.Dense) -> keras.layers.Dense:
    """A linear layer on the variables of a Dense layer."""
    linear = keras.layers.Dense(
        dense.units, use_bias=dense.use_bias, dtype=dense.dtype_policy, name=f"{dense.name}_logits"
    )
    linear._kernel, linear.bias, linear.built = dense._kernel, dense.bias, True
    return linear


def _embedding_of(model: keras.Model, logits, name: str | None):
    """The symbolic embedding, and whether it is one: the logits themselves if there is no Dense layer."""
    if name is not None:
        known = {layer.name: layer for layer in model.layers}
        if name not in known:
            raise InvalidInputError(
                f"model {model.name} has no layer {name!r}; hint: choose the embedding from {', '.join(known)}"
            )
        found = known[name].output
    else:
        found = logits
        while type(_layer(found)).__name__ in IN_PLACE:
            found = _read(found)
        if not isinstance(_layer(found), keras.layers.Dense):
            return logits, False
        found = _read(found)
    if len(found.shape) != 2:
        raise InvalidInputError(
            f"the embedding of {model.name} has shape {tuple(found.shape)}, not [N, E]; hint: name a layer behind the "
            "pooling, by embedding="
        )
    return found, True


def _classifier(read, logits) -> keras.Model:
    """embedding -> logits [N, K]; of a single logit z, the logits (0, z) of two classes."""
    if logits.shape[-1] == 1:
        one = np.array([[0.0, 1.0]], np.float32)
        second = keras.layers.Dense(
            2, use_bias=False, trainable=False, kernel_initializer=lambda shape, dtype=None: ops.cast(one, dtype)
        )
        logits = second(logits)
    if read is logits:
        return _identity(logits.shape[-1])
    return keras.Model(read, logits, name="classifier")


def _identity(width: int) -> keras.Model:
    embedding = keras.Input((width,), dtype="float32", name="embedding")
    return keras.Model(embedding, keras.layers.Activation("linear", dtype="float32")(embedding), name="classifier")


def _two_class_form(form: Form, logits) -> Form:
    """The form of an output, by the number of its columns."""
    if logits.shape[-1] == 1:
        if form == "softmax":
            raise InvalidInputError("a softmax of one output is always 1; hint: use a sigmoid, or two outputs")
        return "logit" if form == "logits" else form
    if form == "sigmoid":
        raise InvalidInputError(
            f"{logits.shape[-1]} sigmoid outputs are separate yes-or-no answers, not classes of which one is right; "
            "hint: use a softmax"
        )
    return form


class _LogProbabilities(keras.layers.Layer):
    """Logits of a model that gives probabilities: their logarithms."""

    def __init__(self, form: Form):
        super().__init__(dtype="float32", name="log_probabilities")
        self._form = form

    def call(self, values):
        """Logits [N, K] from probabilities [N, K], or [N, 1] of class 1."""
        if self._form == "logit":
            return ops.concatenate([ops.zeros_like(values), values], axis=-1)
        if self._form == "sigmoid":
            values = ops.concatenate([1 - values, values], axis=-1)
        return ops.log(ops.maximum(values, np.finfo(np.float32).tiny))

    def compute_output_shape(self, input_shape):
        """Two columns for one."""
        return (*input_shape[:-1], max(2, input_shape[-1]))


def _whole(model: keras.Model, embedding: str | None) -> _Split:
    """A model without a graph: it is the encoder as a whole, and there is no embedding."""
    shape = _image_shape(model)
    if embedding is not None:
        raise InvalidInputError(
            f"model {model.name} ({type(model).__name__}) has no graph in which to find layer {embedding!r}; hint: "
            "build it as a functional or Sequential model"
        )
    image = keras.Input(shape[1:], dtype="float32", name="own_image")
    values = model(image)
    form = _measured_form(model, shape)
    if form != "logits":
        values = _LogProbabilities(form)(values)
    encoder = keras.Model(image, values, name="encoder")
    return _Split(encoder, _identity(values.shape[-1]), form, False)


def _image_shape(model: keras.Model) -> tuple[int | None, ...]:
    """The shape [N, H, W, C] for which a model without a graph was built."""
    config = model.get_build_config() if model.built else None
    shape = (config or {}).get("input_shape")
    if not shape or len(shape) != 4:
        raise InvalidInputError(
            f"model {model.name} ({type(model).__name__}) has no known image shape; hint: call it once on a batch of "
            "images, or model.build((None, H, W, C))"
        )
    return tuple(shape)


def _measured_form(model: keras.Model, shape) -> Form:
    """What a model gives for a few random images."""
    sample = np.random.default_rng(0).random((8, *(size or 32 for size in shape[1:])), np.float32)
    values = ops.convert_to_numpy(ops.cast(model(sample, training=False), "float32"))
    between = bool(np.all((values >= 0) & (values <= 1)))
    if values.shape[-1] == 1:
        return "sigmoid" if between else "logit"
    return "softmax" if between and np.allclose(values.sum(axis=-1), 1, atol=2e-3) else "logits"
