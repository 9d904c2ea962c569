"""Any classifier on disk as one function, images in [0, 1] -> logits: an export, any SavedModel, or a `.keras` file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_rcl.errors import InvalidInputError
from keras_rcl.evaluation.input_range import (
    INPUT_RANGES,
    Declared,
    InputRange,
    check_input_range,
    find_input_range,
    range_of_layers,
)
from keras_rcl.folding import folded
from keras_rcl.model_io.in_memory import ModelInMemory
from keras_rcl.model_io.loading import (
    LoadedModel,
    any_batch_size,
    error_line,
    hash_model,
    read_contract,
    sample_images,
    select_output,
)

OUTPUTS = ("logits", "probabilities")


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier read from disk.

    Attributes:
        logits: float32 images [N, H, W, C] in [0, 1] -> float32 logits [N, K], in inference mode, eagerly or within a
            graph; differentiable with respect to the images if the model is. Log-probabilities are logits too.
        outputs: `logits`, `embedding` or `projection` -> the function of images that returns it [N, D]; None if the
            model does not expose it.
        image_shape: (H, W, C), with None if the model takes any.
        num_classes: K.
        class_names: K names; the numbers 0 to K - 1 if the model has none.
        contract: `model.json` of a model exported here, or an empty dict.
        model: The files that it was read from.
        model_hash: SHA-256 of the weights of a model exported here, or of the files.
        gives_probabilities: Whether `logits` are the logarithm of the model's output.
        note: What was assumed without being given, in one line; otherwise empty.
        input_range: The range of the images that the model is read in.
        declared: The range that was given, or that an export or the first layers declare; None if none is.
        reader: Range -> what `logits` and `outputs` are if the model is read in this range.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> path = Path(tempfile.mkdtemp()) / "model.keras"
        >>> model.save(path)
        >>> keras_rcl.load_classifier(path, output="logits").image_shape
        (4, 4, 1)
    """

    logits: Callable
    outputs: Callable[[str], Callable | None]
    image_shape: tuple[int | None, ...]
    num_classes: int
    class_names: tuple[str, ...]
    contract: dict
    model: LoadedModel | ModelInMemory
    model_hash: str
    gives_probabilities: bool = False
    note: str = ""
    input_range: str = "0..1"
    declared: Declared | None = None
    reader: Callable[[str], tuple[Callable, Callable]] | None = None

    def read_as(self, input_range: str) -> "Classifier":
        """Return the classifier that feeds the model images in another range."""
        if input_range == self.input_range or self.reader is None:
            return self
        logits, outputs = self.reader(input_range)
        return replace(self, logits=logits, outputs=outputs, input_range=input_range)

    def as_trained(
        self, images: np.ndarray, labels: np.ndarray, default: tuple[str, str] = ("0..1", "the default")
    ) -> tuple["Classifier", InputRange]:
        """Return the classifier in the range that the model was trained in, and how this range was found.

        Args:
            images: float32 [N, H, W, C] in [0, 1].
            labels: int32 [N], the true classes.
            default: The range to take if neither the model nor its accuracy tells, and why.

        Raises:
            InvalidInputError: If two ranges fit alike, see `find_input_range`.
        """
        found = find_input_range(
            lambda name: self.read_as(name).logits,
            images,
            labels,
            declared=self.declared,
            default=default,
            name=str(self.path),
        )
        return self.read_as(found.name), found

    @property
    def path(self) -> Path:
        """Where it was read from."""
        return self.model.path

    def identity(self) -> dict[str, Any]:
        """Return what a record says of the model: its name, its variant, its hash, and that of what was imported."""
        imported = self.contract.get("imported")
        return {
            "name": self.contract.get("name", self.path.stem),
            "variant": self.contract.get("variant"),
            "hash": self.model_hash,
            **({"weights": imported["weights"]} if imported else {}),
        }

    def gradient_fn(self, images: np.ndarray, dtype: str = "float32") -> Callable:
        """Return the logits for attacks to read: BatchNorm is folded into convolutions, which is faster.

        Outcomes are still to be read from `logits`, as rounding differs. If the layers are not known, cannot be
        folded, or give other logits on the sample, `logits` itself is returned.

        Args:
            images: float32 [N, H, W, C] in [0, 1], a sample.
            dtype: `float32` or `bfloat16`, in which the folded network is computed.

        Raises:
            InvalidInputError: If it is `logits` itself, and the dtype is not float32.
        """
        try:
            network, served = self.pixel_network(images.shape[1:]), self.logits(images)
            run = folded(network)
            difference = np.abs(run(tf.constant(images)) - served).max()
            same = difference <= SAME_LOGITS * max(1.0, np.abs(served).max())
        except (InvalidInputError, ValueError, TypeError, tf.errors.InvalidArgumentError):
            same = False
        if same:
            return run if dtype == "float32" else folded(network, dtype=dtype)
        if dtype != "float32":
            raise InvalidInputError(
                f"{self.path} has no layers that can be computed in {dtype}; leave out --attack-dtype {dtype}"
            )
        return self.logits

    def pixel_network(self, image_shape: tuple[int, ...], *, linear: bool = False) -> keras.Model:
        """Return the layers as a network of images [N, *image_shape] in [0, 1], whatever size and range they read.

        Args:
            image_shape: (H, W, C).
            linear: Leave out a softmax or sigmoid at the end, so that the network gives logits; of one output z it
                gives two, [0, z].

        Raises:
            InvalidInputError: If there are no layers.
        """
        layers = self.model.layers
        if linear and self.gives_probabilities:
            layers = _without_softmax(layers)
        if linear and getattr(layers, "outputs", None) and layers.outputs[0].shape[-1] == 1:
            two = keras.layers.Dense(2, use_bias=False, dtype="float32")
            layers = keras.Model(layers.inputs, two(layers.outputs[0]))
            two.set_weights([np.array([[0.0, 1.0]], np.float32)])
        declared = getattr(layers, "inputs", None)
        if not declared or (self.input_range == "0..1" and tuple(declared[0].shape[1:]) == tuple(image_shape)):
            return layers
        scale, offset = INPUT_RANGES[self.input_range]
        inputs = keras.Input(image_shape, dtype="float32")
        images = keras.layers.Rescaling(scale, offset, dtype="float32")(inputs) if scale != 1 else inputs
        if len(declared[0].shape) == 3:
            images = keras.layers.Reshape(image_shape[:2], dtype="float32")(images)
        return keras.Model(inputs, layers(images))


def _without_softmax(model: keras.Model) -> keras.Model:
    """A functional or Sequential model copied without the softmax or sigmoid at its end; itself if it has none."""
    last = next(reversed(getattr(model, "layers", [])), None)
    softmax = isinstance(last, keras.layers.Softmax)
    if not softmax and getattr(getattr(last, "activation", None), "__name__", "") not in ("softmax", "sigmoid"):
        return model

    def copied(layer):
        if layer is not last:
            return type(layer).from_config(layer.get_config())
        if softmax:
            return keras.layers.Identity(dtype=layer.dtype_policy)
        return type(layer).from_config({**layer.get_config(), "activation": "linear"})

    copy = keras.models.clone_model(model, clone_function=copied)
    copy.set_weights(model.get_weights())
    return copy


SAME_LOGITS = 1e-4
"""The rounding error that folding may cause, relative to the largest logit."""


def load_classifier(
    path: str | Path | LoadedModel | ModelInMemory,
    *,
    input_range: str | None = None,
    output: str | None = None,
    endpoint: str | None = None,
    trust: bool = False,
) -> Classifier:
    """Read a classifier.

    Args:
        path: A folder made by `keras_rcl.export`, any other SavedModel folder, or a `.keras` file (read in safe mode);
            one of these that was loaded before; or a model in memory.
        input_range: The range of the images that the model reads: `0..1`, `0..255` or `-1..1`. If it is not given, it
            is read from the first layers of a Keras model, and otherwise it is `0..1`; `Classifier.as_trained` chooses
            it by clean accuracy.
        output: Whether the model's output is `logits` or `probabilities`; detected on random images if not given.
        endpoint: The SavedModel's signature; `serve`, `serving_default` or the only one if not given.
        trust: Skip the search for what could do harm. Not read if `path` was loaded before.

    Returns:
        The classifier.

    Raises:
        InvalidInputError: If there is no such model, it is damaged or not known to be harmless, or does not map one
            batch of float images [N, H, W, C] to one row of K numbers per image. One number is the logit or the
            probability of class 1 of two.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import keras
        >>> import numpy as np
        >>> import keras_rcl
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> path = Path(tempfile.mkdtemp()) / "model.keras"
        >>> model.save(path)
        >>> classifier = keras_rcl.load_classifier(path, output="logits")
        >>> classifier.num_classes, classifier.logits(np.zeros((2, 4, 4, 1), np.float32)).shape.as_list()
        (3, [2, 3])
    """
    if input_range is not None:
        check_input_range(input_range)
    if output not in (None, *OUTPUTS):
        raise InvalidInputError(f"unknown output {output!r}; choose from {', '.join(OUTPUTS)}")
    model = LoadedModel(path, trust=trust) if isinstance(path, (str, Path)) else path
    contract = read_contract(model.path) if isinstance(model, LoadedModel) else {}
    if contract and input_range not in (None, "0..1"):
        raise InvalidInputError(
            f"{model.path} was exported here and reads pixels in 0..1; leave out --input-range {input_range}"
        )
    declared = _declared(model, contract, input_range)
    used = "0..1" if declared is None else declared.name
    files = _Files(model, used, output, endpoint)
    class_names = tuple(contract.get("class_names", map(str, range(files.num_classes))))
    if len(class_names) != files.num_classes:
        raise InvalidInputError(
            f"{model.path} gives {files.num_classes} classes, and its model.json names {len(class_names)}; "
            "export it again"
        )
    logits, outputs = files.read_as(used)
    return Classifier(
        logits=logits,
        outputs=outputs,
        image_shape=tuple(files.spec.shape[1:]),
        num_classes=files.num_classes,
        class_names=class_names,
        contract=contract,
        model=model,
        model_hash=hash_model(model.path, contract) if isinstance(model, LoadedModel) else model.hash(),
        gives_probabilities=files.probabilities,
        note=files.note,
        input_range=used,
        declared=declared,
        reader=files.read_as,
    )


def _declared(model: LoadedModel | ModelInMemory, contract: dict, input_range: str | None) -> Declared | None:
    """The range that is given, or that the contract or the first layers of the model declare."""
    if contract:
        return Declared("0..1", "export", "it was exported by keras_rcl")
    if input_range is not None:
        return Declared(input_range, "given", "as given")
    has_layers = model.path.is_file() if isinstance(model, LoadedModel) else isinstance(model.model, keras.Model)
    return range_of_layers(model.layers) if has_layers else None


class _Files:
    """The functions of images in [0, 1] that a model's files hold.

    Attributes:
        spec: The TensorSpec of the images that the model reads.
        num_classes: K.
        probabilities: Whether the model's output is probabilities.
        one_output: Whether the model gives one number per image, of class 1 of two classes.
        note: What was detected and not given, in one line.
    """

    def __init__(self, model: LoadedModel | ModelInMemory, input_range: str, output: str | None, endpoint: str | None):
        self._model, self._wanted = model, OUTPUTS if output is None else (output,)
        self._call, self.spec = model.function(endpoint)
        self._sample = sample_images(self.spec.shape[1:], self.spec.shape[0])
        try:
            outputs = self._call(self._scaled(self._sample, input_range))
        except Exception as error:
            raise InvalidInputError(
                f"{model.path} fails on images {list(self._sample.shape)}: {error_line(error)}; choose another endpoint"
            ) from None
        name, values = self._select(outputs)
        if values.shape.rank == 1 and values.dtype.is_floating:
            values = values[:, None]
        if values.shape.rank != 2 or values.shape[1] < 1 or not values.dtype.is_floating:
            raise InvalidInputError(
                f"{model.path} maps images {list(self._sample.shape)} to {values.dtype.name} {list(values.shape)}; "
                "a classifier gives a row of 2 or more logits or probabilities per image, or one number for two classes"
            )
        self.one_output = values.shape[1] == 1
        self.num_classes = max(2, int(values.shape[1]))
        named = output == "probabilities" or (output is None and name == "probabilities")
        detected = output is None and not named and _are_probabilities(values)
        self.probabilities, self.note = named or detected, ""
        if self.one_output:
            kind = "probability" if self.probabilities else "logit"
            self.note = f"its one output is read as the {kind} of class 1, and class 0 is the other one"
        elif detected:
            self.note = "its rows are non-negative and sum to 1, so its output is taken for probabilities"

    def read_as(self, input_range: str) -> tuple[Callable, Callable]:
        """Return the logits, images -> float32 [N, K], and the outputs of a `Classifier` of this range."""
        logits = self._for_any_batch(lambda images: self._logits_of(images, input_range), self.num_classes)
        return logits, lambda name: logits if name == "logits" else self._inner(name, input_range)

    def _scaled(self, images, input_range: str):
        """Images in the range and dtype that the model reads."""
        scale, offset = INPUT_RANGES[input_range]
        return tf.cast(scale * images + offset, self.spec.dtype)

    def _select(self, outputs) -> tuple[str | None, tf.Tensor]:
        return select_output(self._model.path, outputs, self._wanted, "choose another --endpoint")

    def _logits_of(self, images, input_range: str):
        _, values = self._select(self._call(self._scaled(images, input_range)))
        values, tiny = tf.cast(values, tf.float32), np.finfo(np.float32).tiny
        if self.one_output:
            values = tf.reshape(values, [-1, 1])
            if self.probabilities:
                values = tf.math.log(tf.maximum(values, tiny)) - tf.math.log(tf.maximum(1 - values, tiny))
            values = tf.concat([tf.zeros_like(values), values], axis=1)
        elif self.probabilities:
            values = tf.math.log(tf.maximum(values, tiny))
        return tf.ensure_shape(values, [None, self.num_classes])

    def _for_any_batch(self, rows_of: Callable, width: int) -> Callable:
        batched = any_batch_size(rows_of, self.spec.shape[0], width)
        return lambda images: batched(tf.convert_to_tensor(images, tf.float32))

    def _inner(self, name: str, input_range: str) -> Callable | None:
        """Return images -> `embedding` or `projection`; None if the model does not expose it."""
        call = self._model.inner_output(name)
        if call is None:
            return None

        def rows_of(images):
            return tf.cast(call(self._scaled(images, input_range)), tf.float32)

        return self._for_any_batch(rows_of, rows_of(self._sample).shape[1])


def _are_probabilities(values: tf.Tensor) -> bool:
    """Whether rows [N, K] are non-negative and sum to 1, to the precision of float16; one number is in [0, 1]."""
    values = tf.cast(values, tf.float32).numpy()
    if values.shape[1] == 1:
        return bool(np.all((values >= 0) & (values <= 1)))
    return bool(np.all(values >= 0) and np.allclose(values.sum(axis=1), 1.0, rtol=0, atol=2e-3))
