"""Checkpoints in PyTorch's zip format and in safetensors, written byte by byte, without PyTorch."""

import json
import struct
import zipfile

import numpy as np

STORAGES = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "u2": "BFloat16"}
"""dtype -> PyTorch's storage class; bfloat16 is given as uint16."""


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def tensor(key, array, *, shape=None, strides=None, size=None, offset=0):
    """The pickle of a tensor of the storage `key`; the keywords say something else than what is stored."""
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    storage = name("torch", f"{STORAGES[array.dtype.str[1:]]}Storage")
    size = array.size if size is None else size
    reference = b"(" + text("storage") + storage + text(key) + text("cpu") + number(size) + b"tQ"
    arguments = reference + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + mapping({})
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def mapping(items):
    """The pickle of an OrderedDict of pickles."""
    pairs = b"".join(text(key) + value for key, value in items.items())
    return name("collections", "OrderedDict") + b")R" + (b"(" + pairs + b"u" if items else b"")


def write_zip(path, pickle, storages=(), compression=zipfile.ZIP_STORED, root="archive"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", b"\x80\x02" + pickle + b".")
        archive.writestr(f"{root}/byteorder", "little")
        for key, array in storages:
            archive.writestr(f"{root}/data/{key}", array.tobytes())
    return path


def write_checkpoint(path, tensors, wrap=None):
    """A checkpoint as `torch.save` writes it; `wrap` puts the pickle of the state dict into something else."""
    storages = [(str(index), np.asarray(array)) for index, array in enumerate(tensors.values())]
    state = mapping({key: tensor(*storage) for key, storage in zip(tensors, storages, strict=True)})
    return write_zip(path, wrap(state) if wrap else state, storages)


def write_safetensors(path, tensors, **changes):
    """A safetensors file; `changes` replace the entry of a tensor in the header."""
    header, values = {"__metadata__": {"format": "pt"}}, b""
    for key, array in tensors.items():
        kind = {"f4": "F32", "i8": "I64"}[array.dtype.str[1:]]
        offsets = [len(values), len(values) + array.nbytes]
        header[key] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets} | changes.get(key, {})
        values += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)
    return path
