"""The files of a SavedModel from elsewhere: no links out of its folder, and a checkpoint that says what it holds.

TensorFlow's checkpoint reader ends the process when the index of a checkpoint holds a shape or a slice that cannot be,
and takes the memory that a text's stated length asks for. So the index is read here first.
"""

import functools
import math
import os
import stat
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import saved_object_graph_pb2, tensor_bundle_pb2, trackable_object_graph_pb2

from keras_rcl.errors import InvalidInputError

_SWOLLEN = 64 * 2**20, 100
"""Bytes, and times the bytes on the disk, that a file must not exceed both of."""
_MOST_INDEX_BYTES = 2**28
_MOST_DIMENSIONS, _MOST_VALUES = 254, 2**60
"""Of a tensor; TensorFlow ends the process when a shape has more."""
_TABLE_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_TEXT_CHECKSUM_BYTES = 4
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_OBJECTS = {
    *(types_pb2.DT_RESOURCE, types_pb2.DT_RESOURCE_REF),
    *(types_pb2.DT_VARIANT, types_pb2.DT_VARIANT_REF),
}


def refusal(folder: Path, reason: str) -> InvalidInputError:
    """Return the error that a model is not loaded for a reason."""
    return InvalidInputError(
        f"{folder} {reason}, so it is not loaded; hint: --skip-safety-check, if you trust whoever made the model"
    )


def check_files(folder: Path) -> None:
    """See that no link in the folder of a model leads out of it, and that its files hold what they claim to hold.

    Raises:
        InvalidInputError: naming the first link that does, or the first file that is almost all holes.
    """
    floor, ratio = _SWOLLEN
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            _inside(folder, path)
            status = path.lstat()
            stored = 512 * status.st_blocks  # 0 on file systems that do not say
            if stat.S_ISREG(status.st_mode) and 0 < ratio * stored < status.st_size > floor:
                raise refusal(folder, f"has the file {name!r} of {status.st_size} bytes, which are almost all holes")


def regular(folder: Path, file: Path) -> Path:
    """Return a file, if it is a regular one inside the folder of the model.

    Raises:
        InvalidInputError: if it is not.
    """
    _inside(folder, file)
    if not file.is_file():
        raise refusal(folder, f"has {str(file.relative_to(folder))!r}, which is not a regular file")
    return file


def _inside(folder: Path, file: Path) -> None:
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
        raise InvalidInputError(
            f"{folder} has the link {str(file.relative_to(folder))!r} out of its folder, so it is not loaded; "
            "hint: copy the folder with what its links lead to (cp -rL), if you trust whoever made the model"
        )


class Checkpoint:
    """The tensors in the folder `variables` of a SavedModel, read from regular files inside the model's folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __contains__(self, key: str) -> bool:
        return self._reader is not None and self._reader.has_tensor(key)

    def read(self, key: str, part: str = "") -> np.ndarray:
        """Return a tensor, or the part of it that a saver's `shape_and_slices` describes, such as `4 3 0,2:-`.

        Raises:
            InvalidInputError: if the checkpoint does not hold the tensor, or not all of its bytes.
        """
        value = self._tensor(key)
        value = np.asarray(value, object if isinstance(value, bytes) else None)
        if not part:
            return value
        slices = []
        for length in part.split(" ")[-1].split(":"):
            if length == "-":
                slices.append(slice(None))
            else:
                start, count = map(int, length.split(","))
                slices.append(slice(start, start + count))
        return value[tuple(slices)]

    def keys_of(self, objects: saved_object_graph_pb2.SavedObjectGraph) -> dict[int, str]:
        """Return the key of the tensor of each variable in an object graph, by the number of its node.

        The checkpoint has an object graph of its own. As in TensorFlow's loader, the same names lead from the root to
        the same object in both.
        """
        if _OBJECT_GRAPH not in self:
            return {}
        stored = trackable_object_graph_pb2.TrackableObjectGraph.FromString(self._tensor(_OBJECT_GRAPH)).nodes
        twins, waiting = {0: 0}, [0]
        while waiting:
            number = waiting.pop()
            children = {child.local_name: child.node_id for child in stored[twins[number]].children}
            for child in objects.nodes[number].children:
                if child.local_name in children and child.node_id not in twins:
                    twins[child.node_id] = children[child.local_name]
                    waiting.append(child.node_id)
        return {
            number: attribute.checkpoint_key
            for number, twin in twins.items()
            for attribute in stored[twin].attributes
            if attribute.name == "VARIABLE_VALUE"
        }

    def _tensor(self, key: str):
        if key not in self:
            raise refusal(self.folder, f"reads the tensor {key!r}, which its checkpoint does not hold")
        entry = self._entries[key.encode()]
        if entry.dtype in _OBJECTS:
            raise refusal(self.folder, f"has a resource as the tensor {key!r} of its checkpoint")
        shape = [dim.size for dim in entry.shape.dim]
        if math.prod(shape) * tf.as_dtype(entry.dtype).size > self._bytes:
            raise refusal(self.folder, f"has the tensor {key!r} of shape {shape}, more than its checkpoint has bytes")
        if entry.dtype == types_pb2.DT_STRING and not self._is_text(entry, math.prod(shape)):
            raise refusal(self.folder, f"has the text {key!r}, longer than its checkpoint states")
        return self._reader.get_tensor(key)

    def _is_text(self, entry: tensor_bundle_pb2.BundleEntryProto, count: int) -> bool:
        """Whether the lengths of the texts of a tensor add up to its bytes."""
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(self._entries[b""])
        file = self.folder / f"variables/variables.data-{entry.shard_id:05d}-of-{header.num_shards:05d}"
        if file not in self._files or not 0 <= entry.offset <= entry.offset + entry.size <= self._bytes:
            return False
        with file.open("rb") as stream:
            stream.seek(entry.offset)
            content = stream.read(entry.size)
        lengths, at = _numbers(content, 0, count)
        return at + _TEXT_CHECKSUM_BYTES + sum(lengths) == entry.size == len(content)

    @functools.cached_property
    def _bytes(self) -> int:
        return sum(file.stat().st_size for file in self._files)

    @functools.cached_property
    def _files(self) -> list[Path]:
        _inside(self.folder, self.folder / "variables")
        return [regular(self.folder, file) for file in (self.folder / "variables").glob("variables.*")]

    @functools.cached_property
    def _entries(self) -> dict[bytes, tensor_bundle_pb2.BundleEntryProto | bytes]:
        """What the index says of each tensor, and its header at the empty key."""
        file = self.folder / "variables/variables.index"
        if (size := file.stat().st_size) > _MOST_INDEX_BYTES:
            raise refusal(self.folder, f"has an index of {size} bytes in its checkpoint, which has at most 256 MiB")
        try:
            pairs = list(_table(file.read_bytes()))
            if any(key >= after for (key, _), (after, _) in pairwise(pairs)):
                raise ValueError("its keys are not in order")
            entries = {key: tensor_bundle_pb2.BundleEntryProto.FromString(value) for key, value in pairs if key}
            for key, entry in entries.items():
                _check_entry(key, entry)
        except Exception as error:
            raise InvalidInputError(
                f"SavedModel {self.folder} has a damaged index in its checkpoint: {error}; hint: export it again"
            ) from None
        return entries | {key: value for key, value in pairs if not key}

    @functools.cached_property
    def _reader(self):
        prefix = self.folder / "variables/variables"
        if prefix.with_suffix(".index") not in self._files:
            return None
        _ = self._entries  # checked before TensorFlow reads it
        return tf.compat.v1.train.NewCheckpointReader(str(prefix))


def _check_entry(key: bytes, entry: tensor_bundle_pb2.BundleEntryProto) -> None:
    """Raise ValueError if the shape or the slices of a tensor cannot be."""
    shape = [dim.size for dim in entry.shape.dim]
    name = key.decode("utf-8", "backslashreplace")[:80]
    if (
        entry.shape.unknown_rank
        or len(shape) > _MOST_DIMENSIONS
        or min(shape, default=0) < 0
        or math.prod(max(size, 1) for size in shape) > _MOST_VALUES
    ):
        raise ValueError(f"the tensor {name!r} has the shape {shape[:8]}")
    parts = [tuple(_extents(part, entry.shape)) for part in entry.slices]
    if len(set(parts)) < len(parts):
        raise ValueError(f"a slice of the tensor {name!r} is there twice")


def _extents(part, shape: tensor_shape_pb2.TensorShapeProto) -> Iterator[tuple[int, int]]:
    """The start and the length of a slice in each dimension."""
    for extent, dim in zip(part.extent, shape.dim, strict=True):
        start, length = extent.start, extent.length if extent.HasField("length") else dim.size
        if not 0 <= start <= start + length <= dim.size:
            raise ValueError(f"a slice has {length} values from {start} of {dim.size}")
        yield start, length


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a table of LevelDB's format, as which TensorFlow writes the index of a checkpoint."""
    footer = content[-48:]
    if len(footer) < 48 or not footer.endswith(_TABLE_MAGIC):
        raise ValueError("it is not a table")
    (_, _, offset, size), _ = _numbers(footer, 0, 4)
    for _, handle in _block(content, offset, size):
        (start, length), _ = _numbers(handle, 0, 2)
        yield from _block(content, start, length)


def _block(content: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a block. A search in it may start at each of its restarts, which must be whole keys."""
    if offset + size + 5 > len(content) or size < 8 or content[offset + size] != 0:
        raise ValueError("a block is cut or compressed")
    block = content[offset : offset + size]
    (count,) = struct.unpack_from("<I", block, size - 4)
    end = size - 4 - 4 * count
    if not 0 < count or end < 0:
        raise ValueError("a block is cut")
    restarts = struct.unpack_from(f"<{count}I", block, end)
    whole, key, at = [], b"", 0
    while at < end:
        start = at
        (shared, added, length), at = _numbers(block, at, 3)
        if shared > len(key) or at + added + length > end:
            raise ValueError("a block is cut")
        whole += [start] * (shared == 0)
        key = key[:shared] + block[at : at + added]
        yield key, block[at + added : at + added + length]
        at += added + length
    if whole and (restarts[0] != 0 or not set(restarts) <= set(whole)):
        raise ValueError("a block has restarts within a key")


def _numbers(content: bytes, at: int, count: int) -> tuple[list[int], int]:
    """Numbers of variable length, and where they end."""
    found = []
    for _ in range(count):
        number = shift = 0
        while True:
            if at >= len(content) or shift > 63:
                raise ValueError("a number is cut")
            byte = content[at]
            number, shift, at = number | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                break
        found.append(number)
    return found, at
