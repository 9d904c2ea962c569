"""Keras and KerasCV augmentation layers as stateless functions of one image and a seed.

A seeded layer of either library keeps a state that each call moves on: in a parallel map the draws of an image depend
on which image came first. Here a layer draws from an `ImageRandom` instead. Each library asks a replaceable attribute
for its random numbers:

- a Keras layer, a `keras.random.SeedGenerator`;
- a KerasCV layer, the `tf.random.Generator` in `_random_generator`, and `keras_cv.core.FactorSampler`s for strengths.

All of these attributes are replaced when the layer is built. A layer that still draws elsewhere, or keeps a state, is
refused: its traced graph holds a stateful operation, or tracing it moved Python's `random`, as Keras' `AugMix` does.
"""

import functools
import importlib
import inspect
import random
import re
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.vocabulary.dataset import LayerAugmentation

STATEFUL = re.compile(
    r"(Random(Uniform|UniformInt|StandardNormal|Gamma|PoissonV2|Shuffle)|(ParameterizedT|T)runcatedNormal|Multinomial"
    r"|Stateful\w+|Rng\w+|Assign(Add|Sub)?VariableOp)$"
)
"""TensorFlow operations that draw from a hidden state or assign a variable."""


class ImageRandom(keras.random.SeedGenerator):
    """The random numbers of one image: draw n depends on the image's seed and on n alone.

    It stands in for a Keras `SeedGenerator` (`next`) and for the `tf.random.Generator` of a KerasCV layer (`uniform`,
    `normal`).
    """

    def __init__(self):
        super().__init__(seed=0)
        self._seed, self._draws = None, 0

    def start(self, seed: tf.Tensor) -> None:
        """Begin an image: the draws that are traced from now on depend on its seed.

        Args:
            seed: int32 [2].
        """
        self._seed, self._draws = seed, 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """The seed of the next draw, int32 [2]."""
        self._draws += 1
        return tf.random.experimental.stateless_fold_in(self._seed, self._draws)

    def uniform(self, shape, minval=0, maxval=None, dtype=tf.float32, name=None) -> tf.Tensor:
        """Uniform draws; arguments as of `tf.random.Generator.uniform`."""
        return tf.random.stateless_uniform(shape, self.next(), minval, maxval, dtype, name, alg="philox")

    def normal(self, shape, mean=0.0, stddev=1.0, dtype=tf.float32, name=None) -> tf.Tensor:
        """Normal draws; arguments as of `tf.random.Generator.normal`."""
        return tf.random.stateless_normal(shape, self.next(), mean, stddev, dtype, name, alg="philox")


@functools.lru_cache
def stateless_layer(
    policy: LayerAugmentation, shape: tuple[int, int, int]
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Build and trace the layer that a policy names, once per policy and shape.

    Args:
        policy: the name of a class in `keras.layers` or `keras_cv.layers`, and its arguments.
        shape: (H, W, C) of the images.

    Returns:
        A traced function of an image, float32 [H, W, C] in [0, 1], and a seed, int32 [2]. It returns the augmented
        image of the same shape, clipped to [0, 1].

    Raises:
        InvalidInputError: if the layer takes other arguments, fails, changes the shape, or draws random
            numbers that the seed does not determine.
    """
    layer, draws = _build(policy), ImageRandom()
    _draw_from(draws, layer)

    @tf.function(autograph=False)
    def augmented(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        draws.start(seed)
        python_state = random.getstate()
        try:
            changed = layer(image[None], training=True)[0]
        except Exception as error:  # whatever a third party's layer raises
            raise InvalidInputError(
                f"augmentation layer {policy.layer}: {_first_line(error)}; change its arguments"
            ) from None
        if changed.shape != image.shape:
            shapes = f"{list(image.shape)} to {list(changed.shape)}"
            raise InvalidInputError(
                f"augmentation layer {policy.layer} changes images from {shapes}; choose a layer that keeps the shape"
            )
        found = _stateful_operations(changed.graph)
        if random.getstate() != python_state:
            found.append("Python's random module")
        if found:
            raise InvalidInputError(
                f"augmentation layer {policy.layer} uses {', '.join(found)}, which no seed makes reproducible; "
                "choose another layer or other arguments"
            )
        return tf.clip_by_value(changed, 0.0, 1.0)

    return augmented.get_concrete_function(tf.TensorSpec(shape, tf.float32), tf.TensorSpec([2], tf.int32))


def _build(policy: LayerAugmentation) -> keras.layers.Layer:
    """The layer that a policy names, in float32, for pixels in [0, 1]."""
    kind = _layer_class(policy.layer)
    arguments = {"dtype": "float32", **policy.arguments}
    if "value_range" in inspect.signature(kind).parameters:
        arguments.setdefault("value_range", (0, 1))
    try:
        return kind(**arguments)
    except Exception as error:  # whatever a third party's layer raises
        raise InvalidInputError(
            f"augmentation layer {policy.layer}({policy.arguments}): {_first_line(error)}; change its arguments"
        ) from None


def _layer_class(name: str) -> type:
    """The layer class of this name in keras.layers, else in keras_cv.layers; the policy has checked the name."""
    return getattr(keras.layers, name, None) or getattr(importlib.import_module("keras_cv.layers"), name)


def _draw_from(draws: ImageRandom, layer: keras.layers.Layer) -> None:
    """Replace every source of random numbers of a layer, and of the layers inside it."""
    for inner in layer._flatten_layers():
        for name, value in [*vars(inner).items()]:
            if name == "_random_generator" or isinstance(value, keras.random.SeedGenerator):
                vars(inner)[name] = draws  # `setattr` would track state, which a layer that is built refuses
            elif type(value).__module__.startswith("keras_cv.") and type(value).__name__ in _SAMPLERS:
                vars(inner)[name] = functools.partial(_SAMPLERS[type(value).__name__], draws, value)


def _uniform_factor(draws: ImageRandom, sampler, shape=(), dtype="float32") -> tf.Tensor:
    """What `keras_cv.core.UniformFactorSampler` draws."""
    return draws.uniform(shape, sampler.lower, sampler.upper, dtype)


def _normal_factor(draws: ImageRandom, sampler, shape=(), dtype="float32") -> tf.Tensor:
    """What `keras_cv.core.NormalFactorSampler` draws."""
    drawn = draws.normal(shape, sampler.mean, sampler.stddev, dtype)
    return tf.clip_by_value(drawn, sampler.min_value, sampler.max_value)


_SAMPLERS = {"UniformFactorSampler": _uniform_factor, "NormalFactorSampler": _normal_factor}
"""Class of a KerasCV factor sampler -> what takes its place."""


def _stateful_operations(graph: tf.Graph) -> list[str]:
    """The operations of a graph, and of the functions that it calls, that draw from a hidden state or change one."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    return sorted({node.op for node in nodes if STATEFUL.match(node.op)})


def _first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
