"""HDF5 files from elsewhere, of which only plain data sets are read.

An HDF5 file can refer to other files, describe an array of any size in a few bytes, and ask for a filter that is a
shared library. A file of weights needs none of that.
"""

import io
from pathlib import Path

import h5py

_NUMBERS = "fiub"
"""Kinds of NumPy dtypes that a data set may have: floating point, integers and booleans."""
_BFLOAT16 = "V2"
"""The two opaque bytes as which Keras stores bfloat16."""
_LARGEST_ATTRIBUTE = 64 * 2**10
"""Bytes of an attribute, which is the largest that HDF5 stores beside its object."""


def check_plain_hdf5(file: Path | io.BytesIO) -> int:
    """Check that an HDF5 file holds groups and plain arrays of numbers, and nothing that leads out of it.

    Nothing but the structure of the file is read.

    Args:
        file: The path of the file, or its content.

    Returns:
        The bytes of all its data sets.

    Raises:
        ValueError: If it has a link other than a hard link, an external or virtual data set, a filter, a type other
            than numbers, or an array of which not all bytes are stored.
        OSError: If it is not an HDF5 file.
    """
    with h5py.File(file, "r") as opened:
        seen, waiting, total = {_address(opened)}, [("", opened)], 0
        while waiting:
            place, group = waiting.pop()
            _check_attributes(place, group)
            for name in group:
                inner = f"{place}/{name}"
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{inner} is a link to another place")
                item = group[name]
                if _address(item) in seen:
                    raise ValueError(f"{inner} is the same object as another one")
                seen.add(_address(item))
                if isinstance(item, h5py.Group):
                    waiting.append((inner, item))
                elif isinstance(item, h5py.Dataset):
                    _check_attributes(inner, item)
                    total += _bytes_of(inner, item)
                else:
                    raise ValueError(f"{inner} is neither a group nor a data set")
    return total


def _address(item) -> int:
    """Where the header of an object is in its file."""
    return h5py.h5o.get_info(item.id).addr


def _bytes_of(place: str, data: h5py.Dataset) -> int:
    """The bytes of a data set, if all of them are stored in the file."""
    if data.is_virtual or data.external:
        raise ValueError(f"{place} reads its numbers from another file")
    if data.id.get_create_plist().get_nfilters():
        raise ValueError(f"{place} is compressed or filtered")
    if data.shape is None or (data.dtype.kind not in _NUMBERS and data.dtype != _BFLOAT16):
        raise ValueError(f"{place} holds {data.dtype} and not numbers")
    if data.id.get_storage_size() < data.nbytes:
        stored = data.id.get_storage_size()
        raise ValueError(f"{place} has the shape {list(data.shape)}, of which {stored} bytes are stored")
    return data.nbytes


def _check_attributes(place: str, item) -> None:
    """Raise ValueError if an attribute of an object is large, or is neither numbers nor text."""
    for name in item.attrs:
        attribute = h5py.h5a.open(item.id, name.encode())
        text = h5py.check_string_dtype(attribute.dtype) is not None
        if not (text or attribute.dtype.kind in _NUMBERS) or attribute.get_storage_size() > _LARGEST_ATTRIBUTE:
            raise ValueError(f"{place or '/'} has the attribute {name!r}, which is neither a number nor a short text")
