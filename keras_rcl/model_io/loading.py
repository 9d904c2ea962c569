"""Models on disk as functions of images: SavedModel folders and `.keras` files, exported here or elsewhere."""

import contextlib
import functools
import hashlib
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_rcl.networks.two_headed  # noqa: F401  our layers, for `.keras` files made here
from keras_rcl.errors import InvalidInputError, did_you_mean
from keras_rcl.model_io.pruned_graph import PrunedSavedModel, Signature
from keras_rcl.model_io.untrusted_files import check_files
from keras_rcl.runtime.gradients import registering
from keras_rcl.storage.atomic import read_json
from keras_rcl.storage.keras_archive import load_keras_archive
from keras_rcl.storage.kinds import CONTRACT

_UNKNOWN_SIZE = 224


class LoadedModel:
    """A model on disk, whose files are read and checked for safety at most once, when they are first needed.

    Args:
        path: A SavedModel folder, or a `.keras` file (read in safe mode).
        trust: Skip the search for what could do harm.

    Raises:
        InvalidInputError: If a link in the folder leads out of it, or a file of it is almost all holes.
    """

    def __init__(self, path: str | Path, *, trust: bool = False):
        self.path, self._trust = Path(path), trust
        if not trust:
            check_files(self.path)

    @functools.cached_property
    def saved_model(self) -> "PrunedSavedModel | _TrustedSavedModel":
        """The SavedModel in the folder, of which `load` gives single signatures.

        Raises:
            InvalidInputError: If there is none, or it is damaged or not known to be harmless.
        """
        return _open_saved_model(self.path, self._trust)

    @functools.cached_property
    def layers(self) -> keras.Model:
        """The Keras model of a `.keras` file, or of the `model.keras` in an exported SavedModel.

        Raises:
            InvalidInputError: If there is no such file, or it is damaged or carries code.
        """
        file = self.path if self.path.is_file() else self.path / "model.keras"
        if self.path.is_dir() and not file.is_file():
            raise InvalidInputError(
                f"{self.path} holds no model.keras, and a SavedModel by itself has no layers; give the .keras file"
            )
        if not self.path.exists():
            raise InvalidInputError(f"there is no model at {self.path}; give a SavedModel folder or a .keras file")
        return _load_keras(file, self._trust)

    def function(
        self, endpoint: str | None = None, *, defaults: Sequence[str] = ("serve", "serving_default")
    ) -> tuple[Callable, tf.TensorSpec]:
        """Return the model's function of images, and the TensorSpec of the images that it reads.

        Args:
            endpoint: The SavedModel's signature. None: the first of `defaults` that it has, or the only signature.
            defaults: Names of signatures.

        Raises:
            InvalidInputError: If there is no such model or signature, the model is damaged or not known to be harmless,
                or it does not read float images [N, H, W, C].
        """
        path = self.path
        if path.is_file():
            if endpoint is not None:
                raise InvalidInputError(
                    f"--endpoint {endpoint} names a signature, and the .keras file {path} has none; leave it out"
                )
            model = self.layers
            _check_reads_images(path, spec := tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype))
            return lambda images: model(images, training=False), spec
        model = self.saved_model
        endpoint = _chosen_endpoint(path, model, endpoint, defaults)
        inputs = model.signatures[endpoint].inputs
        if len(inputs) != 1:
            raise InvalidInputError(
                f"endpoint {endpoint!r} of {path} reads {', '.join(inputs) or 'nothing'}; it must read images only"
            )
        (spec,) = inputs.values()
        _check_reads_images(path, spec)
        with _damage_is_reported(path):
            return registering(model.load, endpoint), spec

    def inner_output(self, output: str) -> Callable | None:
        """Return images -> the classifier's own `embedding` or `projection` [N, D]; None if the model has none.

        An exported SavedModel gives both at its endpoint `embed`, an exported `.keras` file by name. In any other
        `.keras` file the embedding is the input of the last layer with weights.
        """
        if not self.path.is_file():
            if output not in getattr(self.saved_model.signatures.get("embed"), "outputs", {}):
                return None
            call, _ = self.function("embed")
            return lambda images: call(images)[output]
        model = self.layers
        outputs = getattr(model, "output", None)
        if isinstance(outputs, dict) and output in outputs:
            return lambda images: model(images, training=False)[output]
        last = next((layer for layer in reversed(model.layers) if layer.weights), None)
        # The `input` of a model within a model is its own, and not the tensor that reaches it here.
        entered = None if isinstance(last, keras.Model) else getattr(last, "input", None)
        if output != "embedding" or not isinstance(entered, keras.KerasTensor) or len(entered.shape) != 2:
            return None
        inner = keras.Model(model.inputs, entered)
        return lambda images: inner([images], training=False)


def _chosen_endpoint(path: Path, model, endpoint: str | None, defaults: Sequence[str]) -> str:
    """The signature `endpoint`, or the first of the defaults, or the only one."""
    signatures = model.signatures
    known = ", ".join(signatures) or "none"
    if endpoint is None:
        only = list(signatures) if len(signatures) == 1 else []
        candidates = [name for name in (*defaults, *only) if name in signatures]
        if not candidates:
            raise InvalidInputError(f"SavedModel {path} has the endpoints {known}; choose one with --endpoint")
        return candidates[0]
    if endpoint not in signatures:
        raise InvalidInputError(
            f"SavedModel {path} has no endpoint {endpoint!r}; it has {known}{did_you_mean(endpoint, signatures)}"
        )
    return endpoint


def read_contract(path: Path) -> dict:
    """Return the `model.json` of a model exported here; an empty dict for any other model."""
    file = path / "model.json"
    if not file.is_file():
        return {}
    try:
        contract = read_json(file)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{file} cannot be read: {error_line(error)}; hint: {CONTRACT.hint}") from None
    if not isinstance(contract, dict) or "model_hash" not in contract:
        return {}
    return dict(CONTRACT.validate(contract, file))


def hash_model(path: Path, contract: dict) -> str:
    """Return the SHA-256 of the weights, which an export's contract holds, or of the files and their names."""
    if contract:
        return contract["model_hash"]
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def select_output(name: str | Path, outputs, wanted: Sequence[str], hint: str) -> tuple[str | None, tf.Tensor]:
    """Return the first output that is `wanted`, or the only one, with its name if it has one."""
    if isinstance(outputs, (list, tuple)) and len(outputs) == 1:
        outputs = outputs[0]
    if tf.is_tensor(outputs):
        return None, outputs
    if not isinstance(outputs, dict):
        raise InvalidInputError(
            f"{name} gives {len(outputs)} outputs without names; it must give one, or name one {wanted[0]}"
        )
    for output in wanted:
        if output in outputs:
            return output, outputs[output]
    if len(outputs) == 1:
        return next(iter(outputs.items()))
    raise InvalidInputError(f"{name} gives {', '.join(sorted(outputs))}, none of them {' or '.join(wanted)}; {hint}")


def resize_function(
    name: str | Path, wanted: Sequence[int | None], given: Sequence[int]
) -> tuple[Callable, tuple[int, ...]]:
    """Return a differentiable function images [N, *given] -> [N, *wanted], and `wanted` with its None sizes filled in.

    Images are resized bilinearly, with antialiasing if a side shrinks; a grey image becomes three equal channels.

    Raises:
        InvalidInputError: if `name` reads channels that these images cannot become.
    """
    shape = tuple(have if want is None else want for want, have in zip(wanted, given, strict=True))
    (height, width, channels), own = shape, given[2]
    if channels != own and (own, channels) != (1, 3):
        raise InvalidInputError(
            f"{name} reads images of {channels} channels, and these have {own}; give another source"
        )
    shrinks = height < given[0] or width < given[1]

    def resized(images):
        if (height, width) != tuple(given[:2]):
            images = tf.image.resize(images, (height, width), antialias=shrinks)
        return images if channels == own else tf.tile(images, [1, 1, 1, 3])

    return resized, shape


def sample_images(image_shape: Sequence[int | None], count: int | None) -> tf.Tensor:
    """Return random images [count, H, W, C] in [0, 1], the same on every call."""
    shape = [size or default for size, default in zip(image_shape, (_UNKNOWN_SIZE, _UNKNOWN_SIZE, 3), strict=True)]
    return tf.constant(np.random.default_rng(0).random((count or 4, *shape), np.float32))


def any_batch_size(fn: Callable, size: int | None, width: int) -> Callable:
    """Return a function of any number of images from `fn`: exactly `size` images [size, H, W, C] -> [size, width]."""
    if size is None:
        return fn

    def run(images):
        count = tf.shape(images)[0]
        filled = tf.pad(images, [[0, -count % size], [0, 0], [0, 0], [0, 0]])
        batches = tf.reshape(filled, [-1, size, *images.shape[1:]])
        rows = tf.map_fn(fn, batches, fn_output_signature=tf.TensorSpec([size, width], tf.float32))
        return tf.reshape(rows, [-1, width])[:count]

    return run


def error_line(error: Exception) -> str:
    """Return the first line of an error, or of its cause as Keras reports it, cut to 160 characters."""
    said = str(error).rpartition("Exception encountered: ")[2].strip() or type(error).__name__
    text = said.splitlines()[0].rstrip(".")
    return text if len(text) <= 160 else f"{text[:160]}..."


class _TrustedSavedModel:
    """A SavedModel that TensorFlow's own loader has loaded, with the interface of `PrunedSavedModel`."""

    def __init__(self, folder: Path):
        self._model = registering(tf.saved_model.load, str(folder))
        self.signatures = {
            name: Signature(function.structured_input_signature[1], function.structured_outputs)
            for name, function in self._model.signatures.items()
        }

    def load(self, name: str) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        """Return a signature of one input as a function of images."""
        (key,) = self.signatures[name].inputs
        # Through the model, as the signature by itself does not keep its variables alive.
        return lambda images: self._model.signatures[name](**{key: images})


def _open_saved_model(path: Path, trust: bool) -> PrunedSavedModel | _TrustedSavedModel:
    """The SavedModel in a folder."""
    if not path.exists():
        raise InvalidInputError(f"there is no model at {path}; give a SavedModel folder or a .keras file")
    if not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise InvalidInputError(f"{path} holds no SavedModel; give a folder with saved_model.pb, or a .keras file")
    with _damage_is_reported(path):
        return _TrustedSavedModel(path) if trust else PrunedSavedModel(path)


@contextlib.contextmanager
def _damage_is_reported(path: Path) -> Iterator[None]:
    """Report whatever TensorFlow raises about the files of a SavedModel in one line."""
    try:
        yield
    except InvalidInputError:
        raise
    except Exception as error:
        raise InvalidInputError(f"SavedModel {path} is damaged: {error_line(error)}; export it again") from None


def _load_keras(path: Path, trust: bool) -> keras.Model:
    """The model of a `.keras` file, with one input."""
    if path.suffix != ".keras":
        raise InvalidInputError(f"{path} is neither a SavedModel folder nor a .keras file; give one of the two")
    if not zipfile.is_zipfile(path):
        raise InvalidInputError(f"{path} is not a valid .keras archive, or is truncated; save the model again")
    try:
        if not trust:
            model = load_keras_archive(path)
        else:
            with warnings.catch_warnings(action="ignore"):
                model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except InvalidInputError:
        raise
    except Exception as error:
        if "deserialization of a `Lambda`" in str(error):
            raise InvalidInputError(
                f"{path} carries Python code in a Lambda layer, which is not run; hint: give a SavedModel"
            ) from None
        if "Could not locate class" in str(error):
            raise InvalidInputError(
                f"{path} has a layer of its own that is not known here; give a SavedModel"
            ) from None
        raise InvalidInputError(f"{path} is damaged: {error_line(error)}; save the model again") from None
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1:
        raise InvalidInputError(f"{path} has {len(inputs)} declared inputs; it must have one, the images")
    return model


def _check_reads_images(path: Path, spec: tf.TensorSpec) -> None:
    """Raise InvalidInputError if the model does not read a batch of float images [N, H, W, C]."""
    if not spec.dtype.is_floating:
        raise InvalidInputError(
            f"{path} reads {spec.dtype.name}, which no gradient reaches; choose a float --endpoint, or export one"
        )
    if spec.shape.rank != 4:
        raise InvalidInputError(f"{path} reads the shape {spec.shape}; it must read images [N, H, W, C]")
    if spec.shape[1] in (1, 3) and spec.shape[3] not in (None, 1, 2, 3, 4):
        raise InvalidInputError(
            f"{path} reads the shape {spec.shape}, channels first; export it for images [N, H, W, C]"
        )
