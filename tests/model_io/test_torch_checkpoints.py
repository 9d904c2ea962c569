"""Checkpoints of PyTorch are read without PyTorch and without running anything in them."""

import codecs
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest
from reference import torch_files as files

from keras_rcl.errors import InvalidInputError
from keras_rcl.model_io.torch_checkpoints import read_tensors
from keras_rcl.model_io.torch_names import sort_tensors

WEIGHT = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
TENSORS = {"a.weight": WEIGHT, "a.num_batches_tracked": np.array(7)}

_events = None


def _record(event, _):
    if _events is not None:
        _events.append(event)


codecs.lookup("cp437")  # zipfile imports it at its first use
sys.addaudithook(_record)


def read(path, key=None):
    """Read a checkpoint under an audit hook, which sees whatever the interpreter is made to do."""
    global _events
    _events = []
    try:
        return read_tensors(path, key)
    finally:
        seen, _events = set(_events), None
        assert seen <= {"open", "builtins.id"}, seen


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_tensors_are_read_from_both_formats(tmp_path):
    equal(read(files.write_checkpoint(tmp_path / "a.pt", TENSORS)).tensors, TENSORS)
    equal(read(files.write_safetensors(tmp_path / "a.safetensors", TENSORS)).tensors, TENSORS)


@pytest.mark.parametrize("dtype", ["f2", "f8", "bfloat16"])
def test_other_dtypes_are_read(tmp_path, dtype):
    values = np.array([0.5, -1.5, 3.0], np.float32)
    stored = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values.astype(dtype)
    np.testing.assert_array_equal(read(files.write_checkpoint(tmp_path / "a.pt", {"x": stored})).tensors["x"], values)


def test_views_of_a_storage_are_read(tmp_path):
    stored = np.arange(6, dtype=np.float32)
    view = files.mapping({"x": files.tensor("0", stored, shape=(2, 2), strides=(1, 2), offset=1)})
    found = read(files.write_zip(tmp_path / "a.pt", view, [("0", stored)])).tensors["x"]
    np.testing.assert_array_equal(found, [[1, 3], [2, 4]])


def nested(*keys, extra=None):
    """Put a state dict under keys of a checkpoint that also holds an epoch."""
    other = {"epoch": files.number(3), **(extra or {})}
    return lambda state: files.mapping({**other, **dict.fromkeys(keys, state)})


def test_the_averaged_weights_of_a_checkpoint_are_read_first(tmp_path):
    path = files.write_checkpoint(tmp_path / "a.pt", TENSORS, nested("state_dict", "ema_state_dict"))
    found = read(path)
    assert (found.key, found.others) == ("ema_state_dict", ("state_dict",))
    assert read(path, "state_dict").key == "state_dict"
    equal(found.tensors, TENSORS)
    with pytest.raises(InvalidInputError, match="has no state dict 'state_dic'; it has .* did you mean 'state_dict'"):
        read(path, "state_dic")


def test_a_state_dict_two_levels_deep_is_found_and_an_optimizer_is_not(tmp_path):
    inner = files.mapping({"exp_avg": files.tensor("0", WEIGHT)})
    optimizer = b"}" + files.text("state") + b"}" + files.number(0) + inner + b"ss"
    path = files.write_checkpoint(
        tmp_path / "a.pt",
        TENSORS,
        lambda s: files.mapping({"nets": files.mapping({"main": s}), "optimizer": optimizer}),
    )
    assert read(path).key == "nets.main"


def test_prefixes_and_normalization_layers_are_set_apart():
    names = ["module.1.conv1.weight", "module.1.bn1.num_batches_tracked", "module.0.mean", "module.0.std"]
    names += ["module.1.fc.bias"]
    tensors = {name: np.full((1, 3, 1, 1), index, np.float32) for index, name in enumerate(names)}
    named = sort_tensors(tensors)
    assert (
        named.prefix == "module.1."
        and set(named.weights) == {"conv1.weight", "fc.bias"}
        and named.unread == (names[1],)
    )
    assert [values.tolist() for values in named.statistics] == [[2, 2, 2], [3, 3, 3]]


class Harm:
    def __reduce__(self):
        import os

        return os.system, ("echo harm > planted",)


def damaged(change):
    """A sound checkpoint with other bytes in the place of some."""

    def write(path):
        data = files.write_checkpoint(path, TENSORS).read_bytes()
        path.write_bytes(change(data))

    return write


def lying(**claims):
    pickled = files.mapping({"x": files.tensor("0", WEIGHT, **claims)})
    return lambda path: files.write_zip(path, pickled, [("0", WEIGHT)])


def of_pickle(pickled):
    return lambda path: files.write_zip(path, pickled)


def instance(module, name, arguments=b")"):
    return of_pickle(files.name(module, name) + arguments + b"R")


def duplicates(path):
    files.write_checkpoint(path, TENSORS)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", b"\x80\x02N.")


def overlapping(path):
    """A member whose entry in the directory claims a gigabyte: the length of the entry lies 24 bytes into it."""
    data = files.write_checkpoint(path, TENSORS).read_bytes()
    entry = data.rindex(b"PK\x01\x02")
    path.write_bytes(data[: entry + 20] + struct.pack("<II", 2**30, 2**30) + data[entry + 28 :])


REFUSED = {
    "os.system": (instance("os", "system", b"(" + files.text("echo harm > planted") + b"t"), "'os.system'"),
    "a pickle of Python": (lambda path: files.write_zip(path, pickle.dumps(Harm(), 2)[2:-1]), "posix.system"),
    "protocol 4": (lambda path: files.write_zip(path, pickle.dumps(Harm(), 4)[2:-1]), "posix.system"),
    "eval": (instance("__builtin__", "eval", b"(" + files.text("1") + b"t"), "'__builtin__.eval'"),
    "getattr": (instance("builtins", "getattr"), "'builtins.getattr'"),
    "a call of a tensor function": (instance("torch._utils", "_rebuild_tensor_v2"), "calls something else"),
    "a call of a storage": (instance("torch", "FloatStorage"), "calls something else"),
    "an object": (of_pickle(files.name("torch", "FloatStorage") + b")\x81"), "instruction NEWOBJ"),
    "INST": (of_pickle(b"(ios\nsystem\n"), "instruction INST"),
    "EXT1": (of_pickle(b"\x82\x01"), "instruction EXT1"),
    "a persistent text": (of_pickle(b"Pharm\n"), "instruction PERSID"),
    "attributes of something else": (of_pickle(b"](tb"), "takes a list for a dict"),
    "a tuple for a key": (of_pickle(b"}))s"), "key that is a tuple"),
    "an end of no list": (of_pickle(b"t"), "damaged"),
    "nothing": (of_pickle(b""), "damaged"),
    "a value that is not there": (of_pickle(b"h\x07"), "damaged"),
    "no tensors": (of_pickle(b"}"), "no tensors by name"),
    "a shape that repeats": (lying(shape=(2**20, 2**20), strides=(0, 0)), "more than its storage holds"),
    "a shape that is larger": (lying(shape=(5, 5)), "more than its storage holds"),
    "strides that leave": (lying(strides=(900, 1, 1)), "lies outside its storage"),
    "an offset that leaves": (lying(offset=1), "lies outside its storage"),
    "a negative size": (lying(shape=(-2, 3, 4)), "not a list of sizes"),
    "a storage that is larger": (lying(size=2**30), "it has 96 bytes"),
    "a negative storage": (lying(size=-24), "not a storage"),
    "compression": (lambda path: files.write_zip(path, b"}", (), zipfile.ZIP_DEFLATED), "compressed members"),
    "a bomb": (lambda path: files.write_zip(path, b"N" * 2**23, (), zipfile.ZIP_DEFLATED), "compressed members"),
    "a long pickle": (of_pickle(b"N0" * (2**21 + 1)), "pickle of more than"),
    "two members of one name": (duplicates, "two members of one name"),
    "more bytes than there are": (overlapping, "claims more bytes"),
    "other bytes in a storage": (damaged(lambda data: data.replace(WEIGHT.tobytes(), bytes(96))), "damaged"),
    "half of it": (damaged(lambda data: data[: len(data) // 2]), "neither a zip archive"),
    "a text": (lambda path: path.write_text("x"), "neither a zip archive"),
    "an old checkpoint": (lambda path: path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2)), "PyTorch before 1.6"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_a_mapping_of_tensors_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write, reason = REFUSED[kind]
    write(tmp_path / "a.pt")
    with pytest.raises(InvalidInputError, match=reason) as refused:
        read(tmp_path / "a.pt")
    assert "\n" not in str(refused.value) and str(refused.value).startswith(str(tmp_path / "a.pt"))
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"shape": [2, 3, 5]}, "do not fit"),
        ({"shape": [-2, -3, 4]}, "do not fit"),
        ({"shape": [2**40, 2**40]}, "do not fit"),
        ({"data_offsets": [96, 0]}, "do not fit"),
        ({"data_offsets": [-96, 0]}, "do not fit"),
        ({"data_offsets": [0, 2**60]}, "do not fit"),
        ({"dtype": "F8_E4M3"}, "dtype F8_E4M3"),
        ({"dtype": 4}, "without dtype"),
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, entry, reason):
    path = files.write_safetensors(tmp_path / "a.safetensors", {"x": WEIGHT}, x=entry)
    with pytest.raises(InvalidInputError, match=reason):
        read(path)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_a_damaged_safetensors_file_is_refused(tmp_path, data):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match="a.safetensors: "):
        read(path)


def test_deep_and_shared_values_end(tmp_path):
    """A mapping within a mapping, 100,000 deep, and one of which each level refers to the next one twice."""
    deep = b"}" + (files.text("a") + b"}") * 100_000 + b"s" * 100_000
    shared = b"}q\x00" + b"".join(
        b"}(" + files.text("a") + b"h" + bytes([i]) + files.text("b") + b"h" + bytes([i]) + b"u" + b"q" + bytes([i + 1])
        for i in range(60)
    )
    for number, pickled in enumerate((deep, shared)):
        with pytest.raises(InvalidInputError, match="no tensors by name"):
            read(files.write_zip(tmp_path / f"{number}.pt", pickled))
