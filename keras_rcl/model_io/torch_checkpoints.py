"""Tensors of PyTorch checkpoints and safetensors files, read without PyTorch and without running a pickle.

A PyTorch checkpoint is a zip archive: `data.pkl`, a pickle of the mapping, and one member per storage. A pickle is a
program; `_Pickle` knows the few instructions that a mapping of tensors needs, and refuses every other one.
"""

import json
import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from keras_rcl.errors import InvalidInputError, did_you_mean

LARGEST_PICKLE = 4 * 2**20
"""Bytes of a checkpoint's pickle or of a safetensors header; those of the largest networks have less than 1 MB."""

MOST_AXES = 8
"""Axes of a tensor."""

PREFERRED_KEYS = (
    *("ema_state_dict", "state_dict_ema", "model_ema", "ema"),
    *("state_dict", "model_state_dict", "model", "net", "net_state_dict"),
)
"""Keys of state dicts within a checkpoint, the preferred first: averaged weights are those that are evaluated."""

_DTYPES = {
    **{"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": "bfloat16"},
    **{"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?"},
}
"""Name of a PyTorch storage class, without `Storage` -> dtype."""

_SAFETENSORS_DTYPES = {
    **{"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "bfloat16"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"},
}

_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in _DTYPES),
}
"""What a pickle may name, as `pickletools` writes it."""


class StateDict(NamedTuple):
    """The tensors of a checkpoint.

    Attributes:
        tensors: Name -> array.
        key: Where in the checkpoint they were, such as `state_dict`; empty if they are the whole checkpoint.
        others: The keys of the other state dicts in the checkpoint, which were not read.
    """

    tensors: dict[str, np.ndarray]
    key: str
    others: tuple[str, ...]


class _Unreadable(Exception):
    """Why a file is not a checkpoint that can be read."""


def read_tensors(path: str | Path, key: str | None = None) -> StateDict:
    """Read the tensors of a checkpoint. No code of the file is run.

    Args:
        path: A PyTorch checkpoint in the zip format (PyTorch 1.6 or newer), or a `.safetensors` file.
        key: The state dict to read, if the checkpoint holds several; the first of `PREFERRED_KEYS` if not given.

    Raises:
        InvalidInputError: If the file cannot be read, holds anything but mappings, sequences, texts, numbers and
            tensors, or has no such state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"{path}: there is no such file; hint: give a checkpoint or a .safetensors file")
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path, key)
        if path.suffix == ".safetensors":
            return StateDict(_read_safetensors(path), "", ())
        raise _Unreadable(
            "is neither a zip archive nor a .safetensors file; hint: convert a checkpoint of PyTorch before 1.6 by "
            "torch.save(torch.load(FILE, weights_only=True), NEW)"
        )
    except _Unreadable as error:
        raise InvalidInputError(f"{path}: {error}") from None
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise InvalidInputError(f"{path}: the checkpoint is damaged: {reason}; hint: download it again") from None


# The zip format of PyTorch


class _Storage(NamedTuple):
    """A storage: the member of the archive that holds it, its dtype, and the number of its elements."""

    member: str
    dtype: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage, as the pickle describes it; nothing is read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _read_zip(path: Path, key: str | None) -> StateDict:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise _Unreadable("has two members of one name; it was not written by PyTorch")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise _Unreadable(
                "has compressed members, which PyTorch does not write; hint: store it again without compression"
            )
        if sum(info.file_size for info in members.values()) > path.stat().st_size:
            raise _Unreadable("claims more bytes than the file has; it was not written by PyTorch")
        pickles = [name for name in members if PurePosixPath(name).name == "data.pkl"]
        if len(pickles) != 1:
            raise _Unreadable(f"has {len(pickles)} members data.pkl; hint: give a file that torch.save wrote")
        root = pickles[0].removesuffix("data.pkl")
        if members[pickles[0]].file_size > LARGEST_PICKLE:
            raise _Unreadable(f"has a pickle of more than {LARGEST_PICKLE} bytes; hint: save its state_dict alone")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise _Unreadable("holds big-endian numbers; hint: save it on a little-endian machine")
        found, others, tensors = _state_dict(_Pickle().parse(archive.read(pickles[0])), key)
        read: dict[str, bytes] = {}

        def bytes_of(storage: _Storage) -> bytes:
            if storage.member not in read:
                read[storage.member] = archive.read(f"{root}data/{storage.member}")
            return read[storage.member]

        return StateDict({name: _array(name, tensor, bytes_of) for name, tensor in tensors.items()}, found, others)


def _state_dict(value: Any, key: str | None) -> tuple[str, tuple[str, ...], dict[str, _Tensor]]:
    """Choose a state dict of a checkpoint; returns its key, the other keys, and its tensors by name."""
    found = dict(_state_dicts(value))
    if key is None:
        known = [name for name in ("", *PREFERRED_KEYS) if name in found]
        if not known and len(found) != 1:
            listed = f"state dicts {', '.join(map(repr, found))}: none is chosen" if found else "no tensors by name"
            raise _Unreadable(f"holds {listed}; hint: {'give --key' if found else 'save model.state_dict()'}")
        key = known[0] if known else next(iter(found))
    if key not in found:
        listed = ", ".join(map(repr, found)) or "none"
        raise _Unreadable(f"has no state dict {key!r}; it has {listed}{did_you_mean(key, list(found))}")
    tensors = {name: item for name, item in found[key].items() if isinstance(item, _Tensor)}
    return key, tuple(other for other in found if other != key), tensors


def _state_dicts(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings with tensors in a checkpoint, at most two levels deep, each once: key, mapping."""
    waiting, seen = [("", value, 0)], set()
    while waiting:
        key, item, depth = waiting.pop(0)
        if not isinstance(item, dict) or id(item) in seen:
            continue
        seen.add(id(item))
        if any(isinstance(entry, _Tensor) for entry in item.values()) and all(isinstance(name, str) for name in item):
            yield key, item
        elif depth < 2:
            named = [(name, entry) for name, entry in item.items() if isinstance(name, str)]
            waiting += [(f"{key}.{name}" if key else name, entry, depth + 1) for name, entry in named]


def _array(name: str, tensor: _Tensor, bytes_of: Callable[[_Storage], bytes]) -> np.ndarray:
    """The values of a tensor, which must lie within its storage and not repeat elements of it."""
    storage = tensor.storage
    dtype = np.dtype("<u2" if storage.dtype == "bfloat16" else storage.dtype)
    data = bytes_of(storage)
    if len(data) != storage.size * dtype.itemsize:
        raise _Unreadable(f"says that the storage of {name!r} has {storage.size} elements; it has {len(data)} bytes")
    if math.prod(tensor.shape) > storage.size:
        raise _Unreadable(f"says that {name!r} has the shape {list(tensor.shape)}, more than its storage holds")
    strides = tuple(step * dtype.itemsize for step in tensor.strides)
    try:  # NumPy checks that the view lies within the buffer
        view = np.ndarray(tensor.shape, dtype, data, tensor.offset * dtype.itemsize, strides)
    except (ValueError, TypeError, OverflowError):
        raise _Unreadable(f"says that {name!r} lies outside its storage") from None
    return _decoded(view, storage.dtype)


def _decoded(array: np.ndarray, dtype: str) -> np.ndarray:
    """A copy in an order of its own; bfloat16, the upper half of float32, as float32."""
    if dtype != "bfloat16":
        return np.array(array, order="C")
    return (array.astype(np.uint32) << 16).view(np.float32)


class _Pickle:
    """Reads a pickle of mappings, sequences, texts, numbers and tensors without calling anything that it names."""

    def parse(self, data: bytes) -> Any:
        """Return the value that the pickle describes.

        Raises:
            _Unreadable: If it names anything but tensors, or has an instruction that is not needed for them.
        """
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in self._CONSTANTS:
                self.stack.append(self._CONSTANTS[opcode.name])
            elif opcode.name in self._VALUES:
                self.stack.append(argument)
            elif opcode.name in self._INSTRUCTIONS:
                self._INSTRUCTIONS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise _Unreadable(f"has the pickle instruction {opcode.name}, which is not run; {_ALONE}")
        raise _Unreadable("has a pickle without an end")

    def _mark(self, _) -> None:
        self.marks.append(len(self.stack))

    def _marked(self) -> list[Any]:
        """Remove and return all values above the last mark."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _put(self, number: int | None) -> None:
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def _get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def _new(self, kind: type) -> None:
        self.stack.append(kind())

    def _tuple(self, size: int | None) -> None:
        values = self._marked() if size is None else [self.stack.pop() for _ in range(size)][::-1]
        self.stack.append(tuple(values))

    def _append(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (str, int)):  # no other key can be hashed safely
                raise _Unreadable(f"has a mapping with a key that is a {type(key).__name__}; {_ALONE}")
            target[key] = value

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise _Unreadable(f"has a pickle that takes a {type(self.stack[-1]).__name__} for a {kind.__name__}")
        return self.stack[-1]

    def _global(self, name: str) -> None:
        if name not in _GLOBALS:
            raise _Unreadable(f"names {name.replace(' ', '.', 1)!r}, which is not a tensor and is not run; {_ALONE}")
        self.stack.append(_Global(name))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._global(f"{module} {name}")

    def _storage(self, _) -> None:
        """`("storage", class, member, device, size)` becomes a storage."""
        match self.stack.pop():
            case ("storage", _Global(name), str(member), str(_), int(size)) if name.endswith("Storage") and size >= 0:
                dtype = _DTYPES[name.removeprefix("torch ").removesuffix("Storage")]
                self.stack.append(_Storage(member, dtype, size))
            case _:
                raise _Unreadable(f"refers to something that is not a storage; {_ALONE}")

    def _call(self, _) -> None:
        """The only calls: an empty OrderedDict, a tensor of a storage, and a parameter of a tensor."""
        arguments, function = self.stack.pop(), self.stack.pop()
        match function, arguments:
            case _Global("collections OrderedDict"), ():
                self.stack.append({})
            case _Global("torch._utils _rebuild_parameter"), (_Tensor() as tensor, *_):
                self.stack.append(tensor)
            case _Global("torch._utils _rebuild_tensor_v2"), (_Storage() as storage, int(start), shape, strides, *_):
                if not (_are_sizes(shape) and _are_sizes(strides) and start >= 0 and len(shape) == len(strides)):
                    raise _Unreadable("has a tensor whose shape is not a list of sizes")
                self.stack.append(_Tensor(storage, start, shape, strides))
            case _:
                raise _Unreadable(f"has a pickle that calls something else than tensors; {_ALONE}")

    def _build(self, _) -> None:
        """The attributes of an OrderedDict, `_metadata`, are not needed."""
        self.stack.pop()
        self._top(dict)

    _CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
    _VALUES = {
        *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    }
    _INSTRUCTIONS: Mapping[str, Callable[["_Pickle", Any], None]] = {
        "MARK": _mark,
        "EMPTY_DICT": lambda self, _: self._new(dict),
        "EMPTY_LIST": lambda self, _: self._new(list),
        "EMPTY_TUPLE": lambda self, _: self._new(tuple),
        **{f"TUPLE{size}": lambda self, _, size=size: self._tuple(size) for size in (1, 2, 3)},
        "TUPLE": lambda self, _: self._tuple(None),
        "APPEND": lambda self, _: self._append([self.stack.pop()]),
        "APPENDS": lambda self, _: self._append(self._marked()),
        "SETITEM": lambda self, _: self._set([self.stack.pop(), self.stack.pop()][::-1]),
        "SETITEMS": lambda self, _: self._set(self._marked()),
        **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _put),
        **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
        "GLOBAL": _global,
        "STACK_GLOBAL": lambda self, _: self._stack_global(),
        "BINPERSID": _storage,
        "REDUCE": _call,
        "BUILD": _build,
    }


_ALONE = "hint: save the state dict alone, torch.save(model.state_dict(), FILE)"


class _Global(NamedTuple):
    """What a pickle names. It is never looked up."""

    name: str


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= MOST_AXES
        and all(type(size) is int and 0 <= size < 2**40 for size in value)
    )


# safetensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file: 8 bytes of length, a JSON header, then the values."""
    total = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(LARGEST_PICKLE, total - 8):
            raise _Unreadable(f"says that its header has {length} bytes, and the file has {total}")
        try:
            header = json.loads(stream.read(length))
        except RecursionError:
            raise _Unreadable("has a header that is nested too deeply") from None
        values = stream.read()
    if not isinstance(header, dict):
        raise _Unreadable("has a header that is not a mapping")
    tensors, used = {}, 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
                used += end - start
                tensors[name] = _safetensor(name, dtype, tuple(shape), start, end, values)
            case _:
                raise _Unreadable(f"has a header without dtype, shape and data_offsets of {name!r}")
    if used > len(values):
        raise _Unreadable("has tensors that share bytes")
    return tensors


def _safetensor(name: str, dtype: str, shape: tuple, start: int, end: int, values: bytes) -> np.ndarray:
    if dtype not in _SAFETENSORS_DTYPES:
        raise _Unreadable(f"has {name!r} of dtype {dtype}; hint: save it as F32")
    stored = _SAFETENSORS_DTYPES[dtype]
    kind = np.dtype("<u2" if stored == "bfloat16" else stored)
    fits = _are_sizes(shape) and 0 <= start <= end <= len(values)
    if not fits or math.prod(shape) * kind.itemsize != end - start:
        raise _Unreadable(f"says that {name!r} has the shape {list(shape)} in bytes {start} to {end}, which do not fit")
    return _decoded(np.frombuffer(values, kind, math.prod(shape), start).reshape(shape), stored)
