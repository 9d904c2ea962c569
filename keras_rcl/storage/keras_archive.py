"""`.keras` files from elsewhere: a model is built from an allowed configuration and filled from plain arrays.

Keras' own loader is not called with the file. The members of the archive are counted and measured before one is read;
only the configuration, the weights and the vocabularies are. The layers are built without memory for their weights, and
get it after the shapes were found to fit what the file stores.
"""

import contextlib
import io
import json
import math
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.saving import saving_lib
from keras.src.saving.serialization_lib import ObjectSharingScope

from keras_rcl.errors import InvalidInputError
from keras_rcl.storage.hdf5 import check_plain_hdf5
from keras_rcl.storage.keras_config import NotAllowedError, allowed_config

_CONFIG, _METADATA, _WEIGHTS, _ASSETS = "config.json", "metadata.json", "model.weights.h5", "assets/"
_MOST_MEMBERS = 1000
_EXPANSION = 64 * 2**20, 100
"""Bytes, and times the size of the file, that the members of an archive must not exceed both of, all together."""
_LARGEST_TEXT = 64 * 2**20
"""Bytes of the configuration."""
_UNSTORED = 2**20
"""Bytes of variables that a model may have beside those that the file stores."""


def load_keras_archive(path: Path) -> keras.Model:
    """Build the model of a `.keras` file for inference, without running anything that the file brings along.

    Args:
        path: The file. Its loss, optimizer and metrics are not read.

    Returns:
        The model, which is not compiled.

    Raises:
        InvalidInputError: If the file names a class or function that is not allowed, or is not what Keras 3 writes.
        Exception: Whatever Keras, HDF5 and zipfile raise about a file that is damaged.
    """
    try:
        members = _read_members(path)
        _check_version(path, members)
        weights = io.BytesIO(members.get(_WEIGHTS) or b"")
        if not weights.getvalue():
            raise NotAllowedError(f"has no member {_WEIGHTS}")
        try:
            stored = check_plain_hdf5(weights)
        except ValueError as error:
            raise NotAllowedError(f"has weights that are not plain arrays: {error}") from None
        model = _build(members[_CONFIG], stored)
        _fill(model, weights, {name: content for name, content in members.items() if name.startswith(_ASSETS)})
    except NotAllowedError as error:
        raise InvalidInputError(f"{path} {error}; hint: {error.hint}") from None
    return model


def _read_members(path: Path) -> dict[str, bytes]:
    """The configuration, the weights and the vocabularies of an archive, by the names of the members."""
    floor, ratio = _EXPANSION
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(members) > _MOST_MEMBERS:
            raise NotAllowedError(f"has {len(members)} members, and a model has at most {_MOST_MEMBERS}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise NotAllowedError(f"has the member {twice!r} twice")
        for member in members:
            if _leaves(member.filename):
                raise NotAllowedError(f"has the member {member.filename!r} out of its folder")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise NotAllowedError(f"has the link {member.filename!r} for a member")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
                raise NotAllowedError(f"has the member {member.filename!r}, which is encrypted or compressed unusually")
        total, size = sum(member.file_size for member in members), path.stat().st_size
        if total > max(floor, ratio * size):
            raise NotAllowedError(f"expands from {size} to {total} bytes")
        if _CONFIG not in names:
            raise NotAllowedError(f"has no member {_CONFIG}")
        wanted = [m for m in members if m.filename in (_CONFIG, _METADATA, _WEIGHTS) or m.filename.startswith(_ASSETS)]
        return {member.filename: _content(archive, member) for member in wanted if not member.is_dir()}


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The bytes of a member, which are as many as the archive says."""
    if member.filename in (_CONFIG, _METADATA) and member.file_size > _LARGEST_TEXT:
        raise NotAllowedError(f"has the member {member.filename!r} of {member.file_size} bytes")
    with archive.open(member) as stream:
        content = stream.read(member.file_size)
    if len(content) < member.file_size:
        raise NotAllowedError(f"has {len(content)} bytes of the member {member.filename!r}, and not {member.file_size}")
    return content


def _leaves(name: str) -> bool:
    """Whether a file name in an archive could be of a file outside it, or is one of several names of a file."""
    path = PurePosixPath(name)
    unusual = any(character in name for character in "\\:\0") or str(path) != name.removesuffix("/")
    return path.is_absolute() or ".." in path.parts or unusual


def _check_version(path: Path, members: dict[str, bytes]) -> None:
    """Raise InvalidInputError if another Keras than Keras 3 wrote the file."""
    metadata = json.loads(members.get(_METADATA, b"{}"))
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    if isinstance(version, str) and version[:2] in ("1.", "2."):
        raise InvalidInputError(
            f"{path} was saved by Keras {version[:20]}, and this reads files of Keras 3; hint: load it there, and "
            "export it with tf.saved_model.save"
        )


def _build(text: bytes, stored: int) -> keras.Model:
    """The model of a configuration, whose variables get memory if the file stores about as many bytes as they need.

    Args:
        text: The configuration as JSON. Keras takes it apart while it builds, so each attempt reads it again.
        stored: Bytes of the weights in the file.
    """
    try:
        return _build_before_memory(allowed_config(json.loads(text)), stored)
    except Exception as error:  # as which Keras passes on what a constructor raised
        if "stateless scope" not in str(error):
            raise
    with tf.variable_creator_scope(_limited(stored + _UNSTORED)):
        return _model(allowed_config(json.loads(text)))


def _build_before_memory(config: dict[str, Any], stored: int) -> keras.Model:
    """Build in a scope in which Keras makes no variables, and make them at its end if their sizes fit the file."""
    scope = keras.StatelessScope(initialize_variables=False)
    try:
        with scope:
            model = _model(config)
            needed = sum(_bytes_of(variable.shape, variable.dtype) for variable in model.variables)
            if needed > stored + _UNSTORED:
                raise NotAllowedError(f"describes a model of {needed} bytes, of which it stores {stored}")
            scope.initialize_variables = True
    finally:
        global_state.set_global_attribute("uninitialized_variables", [])
    return model


def _limited(most: int) -> Callable[..., tf.Variable]:
    """A creator of variables of at most `most` bytes, for models of KerasHub that make variables at once.

    The size of a variable is that of its initial value, which is traced first and not computed.
    """
    left = most

    def create(next_creator: Callable[..., tf.Variable], **arguments: Any) -> tf.Variable:
        nonlocal left
        value = arguments["initial_value"]
        if callable(value):
            with tf.Graph().as_default():
                traced = tf.convert_to_tensor(value())
            left -= _bytes_of(traced.shape, traced.dtype)
            if left < 0:
                raise NotAllowedError(f"describes a model of more than the {most} bytes that it stores")
        return next_creator(**arguments)

    return create


def _model(config: dict[str, Any]) -> keras.Model:
    with ObjectSharingScope(), warnings.catch_warnings(action="ignore"):
        model = keras.saving.deserialize_keras_object(config, safe_mode=True)
    if not isinstance(model, keras.Model):
        raise NotAllowedError(f"holds a {type(model).__name__} and not a model")
    return model


def _bytes_of(shape: Any, dtype: Any) -> int:
    return math.prod(shape) * tf.as_dtype(dtype).size


def _fill(model: keras.Model, weights: io.BytesIO, assets: dict[str, bytes]) -> None:
    """Give the variables and the vocabularies of a model their values."""
    failed: dict[int, tuple[Any, Exception]] = {}
    with tempfile.TemporaryDirectory() if assets else contextlib.nullcontext() as folder:
        for name, content in assets.items():
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        files = saving_lib.DiskIOStore(str(Path(folder, _ASSETS)), mode="r") if assets else None
        arrays = saving_lib.H5IOStore(weights, mode="r")
        try:
            # What `keras.saving.load_model` calls after it has built a model; no public function reads vocabularies.
            with warnings.catch_warnings(action="ignore"):
                saving_lib._load_state(
                    model,
                    weights_store=arrays,
                    assets_store=files,
                    inner_path="",
                    visited_saveables=set(),
                    failed_saveables=set(),
                    error_msgs=failed,
                )
        finally:
            arrays.close()
    if failed:
        layer, error = next(iter(failed.values()))
        raise ValueError(f"its {layer.name} cannot be filled: {error}")
