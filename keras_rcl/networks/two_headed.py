"""The network that is trained, attacked and served: image -> encoder -> {embedding, projection, logits}."""

import math
from collections.abc import Sequence
from typing import Any, get_args

import keras
import numpy as np
from keras import ops

from keras_rcl.errors import InvalidInputError
from keras_rcl.networks import pretrained
from keras_rcl.networks.backbones import Layers, bias_name, build_encoder, layer_seed
from keras_rcl.vocabulary.network import Network, Part, Precision
from keras_rcl.vocabulary.threat import PROTOCOLS

SMALLEST_NORM = 1e-6
"""A projection shorter than this is divided by this, not by its own length, so that the gradient stays finite."""


def unit_norm(z: Any) -> Any:
    """Bring vectors to unit Euclidean length along the last axis: z / max(||z||, SMALLEST_NORM).

    Args:
        z: [N, D].

    Returns:
        [N, D].
    """
    squared = ops.sum(ops.square(z), axis=-1, keepdims=True)
    return z / ops.sqrt(ops.maximum(squared, SMALLEST_NORM**2))


@keras.saving.register_keras_serializable(package="keras_rcl")
class UnitNorm(keras.layers.Layer):
    """A layer that brings vectors [N, D] to unit Euclidean length.

    Formula:

        z / max(||z||, 1e-6)

    Example:
        >>> import numpy as np
        >>> [round(float(value), 2) for value in UnitNorm()(np.array([[3.0, 4.0]]))[0]]
        [0.6, 0.8]
    """

    def call(self, z: Any) -> Any:
        """The vectors at unit length, [N, D]."""
        return unit_norm(z)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the input."""
        return input_shape


@keras.saving.register_keras_serializable(package="keras_rcl")
class CosineDense(keras.layers.Layer):
    """A classifier by angle: vectors [N, E] -> `scale` times their cosine with the weights of each class, [N, K].

    Formula, with w_k for column k of the kernel:

        scale * <x, w_k> / (||x|| ||w_k||)

    Args:
        units: K.
        scale: The largest output.
        kernel_initializer: Of the kernel [E, K].
        **kwargs: Of `keras.layers.Layer`.

    Example:
        >>> import numpy as np
        >>> CosineDense(2, scale=10, kernel_initializer="identity")(np.array([[3.0, 4.0]])).numpy().tolist()
        [[6.0, 8.0]]

    References:
        Pang et al. 2020, "Boosting adversarial training with hypersphere embedding".
    """

    def __init__(self, units: int, *, scale: float, kernel_initializer: Any = "he_normal", **kwargs: Any):
        super().__init__(**kwargs)
        self.units, self.scale = units, scale
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the kernel."""
        shape = (input_shape[-1], self.units)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=self.kernel_initializer)

    def call(self, x: Any) -> Any:
        """The scaled cosines, [N, K]."""
        return self.scale * ops.matmul(unit_norm(x), ops.transpose(unit_norm(ops.transpose(self.kernel))))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the cosines."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the layer."""
        initializer = keras.initializers.serialize(self.kernel_initializer)
        own = {"units": self.units, "scale": self.scale, "kernel_initializer": initializer}
        return {**super().get_config(), **own}


def build_network(
    network: Network,
    image_shape: Sequence[int],
    num_classes: int,
    *,
    mean: Sequence[float] | np.ndarray | None = None,
    std: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
    precision: Precision = "float32",
    encoder: keras.Model | None = None,
) -> keras.Model:
    """Build the network with two heads: an encoder, a projector and a classifier.

    The outputs are float32 under every policy: only the encoder computes in half precision. The weights are float32
    too, so they carry over between policies. The `dtype_policy` of the model is `precision`, from which Keras'
    `compile` knows that it has to scale the loss under mixed_float16. A `.keras` file stores the policy of every layer
    but not this one; set it again before training a loaded model.

    Args:
        network: The encoder, the projection head and the normalization.
        image_shape: (H, W, C).
        num_classes: K.
        mean: The mean of the training images per channel, pixels in [0, 1]; read with `normalization="mean_std"` only.
        std: The standard deviation of the training images per channel; read with `normalization="mean_std"` only.
        seed: Of every initializer; the same seed gives the same weights.
        precision: The dtype policy of the encoder.
        encoder: The model of a network whose encoder is not one of the package, as `own_encoder` makes it.

    Returns:
        The functional model `two_headed`: image [N, H, W, C] in [0, 1] -> a dict of `embedding` [N, E] of the encoder,
        `unnormalized_projection` [N, D] of the projector, `projection` [N, D], the same at unit length, and `logits`
        [N, K] of the classifier on the embedding.

    Raises:
        InvalidInputError: If the image is too small, pretrained weights cannot be loaded, `mean` or `std` is missing or
            has another number of channels, a deviation is not positive, there are fewer than two classes, the policy is
            unknown, or the network's own encoder is not given.

    Example:
        >>> spec = Network(encoder="small_cnn", projection_dim=16, normalization="none")
        >>> network = build_network(spec, (8, 8, 1), num_classes=10)
        >>> network.output["projection"].shape
        (None, 16)
    """
    if precision not in get_args(Precision):
        raise InvalidInputError(f"unknown precision {precision!r}; choose from {', '.join(get_args(Precision))}")
    if num_classes < 2:
        raise InvalidInputError(f"num_classes {num_classes} leaves nothing to classify; hint: give at least 2")
    if network.has_own_encoder:
        if encoder is None:
            raise InvalidInputError(
                f"encoder {network.encoder} stands for a model that is given beside it, and none is given; hint: "
                "keras_rcl.train takes one"
            )
    elif network.pretrained:
        encoder = pretrained.pretrained_resnet50(network.pretrained, image_shape, precision)
    else:
        encoder = build_encoder(
            network.encoder, image_shape, seed=seed, precision=precision, initialization=network.initialization
        )
    width = encoder.output_shape[-1]

    image = keras.Input(tuple(image_shape), dtype="float32", name="image")
    x = image
    if network.pretrained or (network.normalization != "none" and not network.has_own_encoder):
        mean, std = _channel_statistics(network, image_shape[-1], mean, std)
        variance = [deviation**2 for deviation in std]
        x = keras.layers.Normalization(mean=mean, variance=variance, dtype="float32", name="normalize")(x)
    return assemble(
        image, x, encoder, projector(network, width, seed), _classifier(network, width, num_classes, seed), precision
    )


def assemble(
    image: Any, x: Any, encoder: keras.Model, projector: keras.Model, classifier: keras.Model, precision: Precision
) -> keras.Model:
    """Put the parts of a two-headed network together.

    Args:
        image: The symbolic input [N, H, W, C], in [0, 1].
        x: What the encoder reads, computed from `image`.
        encoder: x -> embedding [N, E].
        projector: embedding -> unnormalized projection [N, D].
        classifier: embedding -> logits [N, K].
        precision: The dtype policy under which the encoder was built.

    Returns:
        The model `two_headed`, as of `build_network`.
    """
    embedding = keras.layers.Activation("linear", dtype="float32", name="embedding")(encoder(x))
    unnormalized, logits = projector(embedding), classifier(embedding)
    if keras.backend.standardize_dtype(logits.dtype) != "float32":
        logits = keras.layers.Activation("linear", dtype="float32", name="logits")(logits)
    model = keras.Model(
        image,
        {
            "embedding": embedding,
            "unnormalized_projection": unnormalized,
            "projection": UnitNorm(dtype="float32", name="projection")(unnormalized),
            "logits": logits,
        },
        name="two_headed",
    )
    model.dtype_policy = keras.DTypePolicy(precision)
    return model


def parts(network: keras.Model) -> dict[Part, keras.Model]:
    """The parts that phases train and freeze: `encoder`, `projector` and `classifier`, by name."""
    return {name: network.get_layer(name) for name in get_args(Part)}


def layers_of(part: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a part in order; the layers of a model within it in its place, each layer once."""
    layers: dict[int, keras.layers.Layer] = {}
    for layer in part.layers:
        inner = layers_of(layer) if isinstance(layer, keras.Model) else [layer]
        layers |= {id(one): one for one in inner if id(one) not in layers}
    return list(layers.values())


def batch_norms(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNorm layers of all parts."""
    layers = (layer for part in parts(network).values() for layer in layers_of(part))
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]


def synchronize(network: keras.Model) -> None:
    """Make BatchNorm normalize by the statistics of the whole batch if the batch is spread over replicas."""
    for layer in batch_norms(network):
        layer.synchronized = True


def reinitialize(part: keras.Model, seed: int) -> None:
    """Reinitialize the weights of a part in place; they then equal those of a network built with this seed.

    BatchNorm returns to gamma 1, beta 0 and fresh moving statistics.

    Args:
        part: One of `parts(network)`.
        seed: Of the initializers.

    Raises:
        InvalidInputError: If a layer of somebody's own encoder does not say how it is initialized.
    """
    for layer in layers_of(part):
        for variable in layer.weights:
            initializer = getattr(layer, f"{variable.name}_initializer", None)
            if initializer is None:
                raise InvalidInputError(
                    f"layer {layer.name} ({type(layer).__name__}) names no initializer of {variable.name}, so that it "
                    "cannot be initialized again; hint: choose a method that continues the encoder"
                )
            config = initializer.get_config()
            if "seed" in config:
                name = bias_name(layer.name) if variable.name == "bias" else layer.name
                initializer = type(initializer).from_config({**config, "seed": layer_seed(seed, name)})
            variable.assign(initializer(variable.shape, dtype=variable.dtype))


def initialize_for_intervals(part: keras.Model, seed: int) -> None:
    """Reinitialize the kernels of a part in place from N(0, 2 pi / n^2), where each unit reads n numbers.

    Then n E|w| / 2 = 1: after a ReLU of which half of the units are active, an interval is as wide as before the layer.

    Args:
        part: One of `parts(network)`.
        seed: Of the initializers.

    References:
        Shi et al. 2021, "Fast certified robust training with short warmup", section 3.1.
    """
    for layer in layers_of(part):
        if isinstance(layer, (keras.layers.Dense, keras.layers.Conv2D)):
            shape = layer.kernel.shape
            deviation = math.sqrt(2 * math.pi) / math.prod(shape[:-1])
            drawn = keras.initializers.RandomNormal(stddev=deviation, seed=layer_seed(seed, layer.name))
            layer.kernel.assign(drawn(shape))


def projector(network: Network, width: int, seed: int) -> keras.Model:
    """embedding [N, E] -> unnormalized projection [N, D]; the identity if the network has no projection head."""
    layers = Layers(seed=seed, initialization=network.initialization)
    embedding = keras.Input((width,), dtype="float32", name="embedding")
    x = embedding
    if network.projection_dim is None:
        x = keras.layers.Activation("linear", dtype="float32", name="projection_identity")(x)
    else:
        if network.projection_hidden is not None:
            x = layers.relu(layers.dense(x, network.projection_hidden, "projection_hidden"), "projection_relu")
        x = layers.dense(x, network.projection_dim, "projection_output")
    return keras.Model(embedding, x, name="projector")


def _classifier(network: Network, width: int, num_classes: int, seed: int) -> keras.Model:
    """embedding [N, E] -> logits [N, K], linear in the embedding or in its direction."""
    layers = Layers(seed=seed, initialization=network.initialization)
    embedding = keras.Input((width,), dtype="float32", name="embedding")
    if network.classifier == "cosine":
        initializer = layers.initializers(width, "logits")["kernel_initializer"]
        options = dict(scale=network.logit_scale, kernel_initializer=initializer, dtype="float32", name="logits")
        logits = CosineDense(num_classes, **options)(embedding)
    else:
        logits = layers.dense(embedding, num_classes, "logits")
    return keras.Model(embedding, logits, name="classifier")


def _channel_statistics(
    network: Network, channels: int, mean: Sequence[float] | np.ndarray | None, std: Sequence[float] | np.ndarray | None
) -> tuple[list[float], list[float]]:
    """The mean and the standard deviation per channel that the normalization uses.

    Raises:
        InvalidInputError: If they are missing or do not fit the image.
    """
    if network.pretrained:
        return [*pretrained.MEAN], [*pretrained.STD]
    if network.normalization == "minus1to1":
        return [0.5] * channels, [0.5] * channels
    if network.normalization == "claf-repo":
        found = PROTOCOLS[network.normalization]
        mean, std = found.shift, found.scale
    if mean is None or std is None:
        raise InvalidInputError(
            "normalization mean_std needs mean and std of the training images; hint: give both, or choose minus1to1"
        )
    mean, std = [float(value) for value in mean], [float(value) for value in std]
    if len(mean) != channels or len(std) != channels:
        raise InvalidInputError(
            f"mean {mean} and std {std} do not fit images of {channels} channels; hint: give one value per channel"
        )
    if min(std) <= 0:
        raise InvalidInputError(
            f"std {std} has a channel that never varies; hint: drop the channel or choose minus1to1"
        )
    return mean, std
