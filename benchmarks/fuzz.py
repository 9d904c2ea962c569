"""Broken input of every kind, to the command line: one line and exit status 2 for each, or it is a finding.

    python -m benchmarks.fuzz --inputs 10000 --json results/robustness/fuzz.json

Input `n` of seed `s` is always the same, so `--first n --inputs 1` makes a finding again. Each is a change of something
that was whole (a configuration, an image, an array, a record, a contract, a data set, a `.keras` file, a SavedModel) or
a command line of random options, run through the program itself in an empty folder; only training, attacks and audits
are left out where all input has been accepted. A worker runs them, so that what kills TensorFlow is a finding too.

A finding is: a traceback; an exit status other than 0, 1 and 2; with status 2, anything but one line on stderr; a
changed folder after a refusal; more than `--seconds` for one input; the death of the worker.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import copy
import functools
import io
import json
import os
import pickle
import queue
import random
import re
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from click.testing import CliRunner
from PIL import Image

from benchmarks.command import command_line
from keras_rcl import config
from keras_rcl.errors import InvalidInputError
from keras_rcl.methods import VARIANTS
from keras_rcl.vocabulary.attacks import ALIASES, ATTACKS

SMALLEST, LARGEST = 1, 8
"""How many changes an input has."""

ODD = (
    *(None, True, False, 0, -1, 3, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "x", "0", "8/255", "1/0", "nan", "pgd", "clafs", "..", "../../x", "/etc/passwd", "a\nb", "\0", "\u2028"),
    *("x" * 5000, "9" * 5000, "é", "\U0001f600", "$(id)", "{}", "[", "!!python/name:os.system"),
    *([], {}, [[]], [None], {"": None}, {"name": "pgd"}, {"name": None}, [0, 1], {"a": {"b": [1]}}),
)
TOKENS = tuple(
    "{ } [ ] : - , & * ! | > ' \" % @ # ? << *a &a !!binary !!set !!float !!python/object:os.system .nan .inf ~ null "
    "true 1:30 0x1f 2020-01-01 --- ... 8/255 1e999 -1 method dataset name attack epsilon \t \0 \ufeff \u0085".split(" ")
)


PROGRESS = re.compile("note: |resuming |.*is damaged .*; skipped for the snapshot before it$")
"""Lines on stderr that may precede the error."""


# --- changes ----------------------------------------------------------------------------------------------------------


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Some bytes flipped, cut out, put in, repeated, set to zero, or the end cut off."""
    content = bytearray(content)
    for _ in range(rng.randint(SMALLEST, LARGEST)):
        size = len(content)
        start = rng.randrange(size + 1)
        end = min(size, start + int(2 ** rng.uniform(0, 8)))
        match rng.randrange(7):
            case 0 if size:
                content[start % size] ^= 1 << rng.randrange(8)
            case 1 if size:
                content[start % size] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del content[start:end]
            case 3:
                content[start:start] = rng.randbytes(rng.randint(1, 32))
            case 4:
                content[start:start] = content[start:end]
            case 5:
                content[start:end] = bytes(end - start)
            case 6 if rng.random() < 0.3:
                del content[start:]
    return bytes(content)


def change_text(rng: random.Random, text: str) -> str:
    """Some lines, words or characters moved, removed or replaced."""
    for _ in range(rng.randint(SMALLEST, LARGEST)):
        pieces = re.split(rng.choice((r"(\n)", r"(\W)")), text)
        place = rng.randrange(len(pieces))
        match rng.randrange(5):
            case 0:
                pieces[place] = rng.choice(TOKENS)
            case 1:
                del pieces[place]
            case 2:
                pieces.insert(place, rng.choice(pieces))
            case 3:
                pieces.insert(place, rng.choice(TOKENS))
            case 4:
                other = rng.randrange(len(pieces))
                pieces[place], pieces[other] = pieces[other], pieces[place]
        text = "".join(pieces)
    return text


def odd_value(rng: random.Random) -> Any:
    """One of `ODD`, of its own: an input that changes it leaves the next ones as they are."""
    return copy.deepcopy(rng.choice(ODD))


def change_value(rng: random.Random, value: Any) -> Any:
    """A JSON value with some of its parts removed, renamed, wrapped, repeated, or of another type."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(SMALLEST, LARGEST)):
        places = [(parent, key) for parent in _containers(value) for key in _keys(parent)]
        if not places:
            return odd_value(rng)
        parent, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del parent[key]
            case 1:
                parent[key] = [parent[key]]
            case 2 if isinstance(parent, dict):
                parent[str(key) + rng.choice("sx_ ")] = parent.pop(key)
            case 3:
                other, at = rng.choice(places)
                with contextlib.suppress(KeyError, IndexError, RecursionError):
                    parent[key] = json.loads(json.dumps(other[at]))
            case 4 if isinstance(parent[key], str):
                parent[key] = change_text(rng, parent[key])
            case 5 if isinstance(parent[key], (int, float)):
                with contextlib.suppress(OverflowError):
                    parent[key] = parent[key] * rng.choice((-1, 10, 1e9, 0.5)) + rng.choice((0, 1, -1))
            case _:
                parent[key] = odd_value(rng)
    return value


def _containers(value: Any) -> Iterator[Any]:
    """The mappings and lists within a value, however deep."""
    open_values = [value]
    while open_values:
        value = open_values.pop()
        if isinstance(value, (dict, list)):
            yield value
            open_values += value.values() if isinstance(value, dict) else value


def _keys(parent: Any) -> list:
    return list(parent) if isinstance(parent, dict) else list(range(len(parent)))


# --- inputs: each writes files into the empty folder it is called in, and returns a command line ----------------------


class Seeds:
    """What is whole: files made once, before anything is changed.

    Attributes:
        model: The folder of a linear classifier of digits as a SavedModel with a contract.
        keras: A `.keras` file of the same.
        record: A record of an attack on it, with its images beside it.
        examples: A folder of stored adversarial examples.
        study: A folder with the study of a search.
        verifier: A folder with a verifier's instances and results.
        runs: A folder with `runs/run`, which is unfinished, and `saved_models`.
        results: Records that `report` reads.
        prepared: A folder with a data set of TFDS.
        fit: The command line that made the run, without its name.
        tune: The command line that made the study, without its folder.
    """

    fit = ("fit", "--variant", "baseline", "--no-compare", "--limit", "20", "--set", "network.projection_hidden=8")
    tune = ("tune", "--variant", "baseline", "--limit", "20", "--search", "method.batch_size=choice(8,16,128)")

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.model, self.keras, self.record = folder / "model", folder / "model.keras", folder / "attacked/record.json"
        self.examples, self.study, self.verifier = folder / "examples", folder / "study", folder / "verifier"
        self.runs, self.prepared = folder / "run", folder / "prepared"
        committed = Path(__file__).parent.parent / "results"
        names = ("papers/claf-at", "papers/cusin-certified", "verifications/cusin-certified", "autoattack/claf-clafs")
        self.results = [committed / f"{name}.json" for name in names]

    def make(self):
        import keras
        import tensorflow as tf

        from keras_rcl.data import sources
        from keras_rcl.vocabulary.attacks import FGSM, PGD
        from keras_rcl.workflows.attack import attack
        from keras_rcl.workflows.craft_dataset import craft_dataset
        from keras_rcl.workflows.fit import contract

        keras.utils.set_random_seed(0)
        image = keras.Input((8, 8, 1))
        network = keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(image)))
        network.save(self.keras)
        kernel, bias = network.get_weights()
        module = tf.Module()
        module.kernel, module.bias = tf.Variable(kernel), tf.Variable(bias)

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1])])
        def serve(image):
            return {"logits": tf.reshape(image, [-1, 64]) @ module.kernel + module.bias}

        tf.saved_model.save(module, str(self.model), signatures={"serve": serve})
        data = {"name": "digits", "limit": 20}
        attack(self.model, [FGSM(), PGD(num_steps=2)], dataset=data, output_dir=self.record.parent, save_images=True)
        craft_dataset(self.model, FGSM(epsilon=16 / 255), self.examples, dataset=data, shard_size=7)
        experiment = config.load()
        record = json.loads(self.record.read_text())
        digits = sources.load(experiment.dataset)
        values = contract(experiment, digits.name, digits.class_names, record)
        computed = {"format": 1, "image_shape": [8, 8, 1], "num_classes": 10, "model_hash": record["model"]["hash"]}
        (self.model / "model.json").write_text(json.dumps({**values, **computed}))
        for name in os.listdir(self.record.parent):
            if name not in ("record.json", "adversarial.npz"):
                os.unlink(self.record.parent / name)
        self._make_verifier()
        self._make_runs()
        picture_builder()(data_dir=self.prepared).download_and_prepare()

    def _make_verifier(self):
        """Instances, and what alpha-beta-CROWN says of them."""
        self.verifier.mkdir()
        instances = [{"index": number, "label": number % 10, "epsilon": 0.01} for number in range(4)]
        table = {"format": 1, "model": {"name": "linear"}, "epsilons": [{"epsilon": 0.01, "left_out": 1}]}
        (self.verifier / "instances.json").write_text(json.dumps({**table, "instances": instances}))
        results = [["safe", 1.5], ["unsafe-pgd", 0.1], ["unknown", 180.0], ["safe-incomplete", 0.2]]
        (self.verifier / "results.pkl").write_bytes(pickle.dumps({"results": results, "summary": {}}))

    def _make_runs(self):
        """A run and a search that are interrupted after their first state, by the program itself."""
        from unittest import mock

        from keras_rcl.cli.app import cli
        from keras_rcl.workflows import tune as tuning

        def stop(*_, **__):
            raise KeyboardInterrupt

        here = os.getcwd()
        self.runs.mkdir()
        os.chdir(self.runs)
        try:
            with mock.patch("keras_rcl.workflows.fit.Run.evaluate", stop):
                options = ["--set", "method.epochs=1", "--save-every", "0", "--name", "run"]
                CliRunner().invoke(cli, [*self.fit, *options])
            with mock.patch.object(tuning, "run_trial", stop):
                CliRunner().invoke(cli, [*self.tune, "--output-dir", str(self.study)])
        finally:
            os.chdir(here)
        (self.runs / "runs/run/record.json").write_bytes(self.results[0].read_bytes())
        found = json.loads((self.study / "study.json").read_text())
        done = {"state": "done", "objective": 0.5, "clean_accuracy": 0.5, "robust_accuracy": 0.5, "images": 4}
        found["trials"].append({**found["trials"][0], **done, "number": 1})
        found["trials"].append({**found["trials"][0], "state": "failed", "reason": "x", "number": 2})
        (self.study / "study.json").write_text(json.dumps(found))


@functools.cache
def picture_builder() -> type:
    """The class of a small data set of TFDS; TFDS knows it by name from then on."""
    import tensorflow_datasets as tfds

    class FuzzPictures(tfds.core.GeneratorBasedBuilder):
        """Thirty images of 8x8 pixels and ten classes."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=[f"class {number}" for number in range(10)])
            features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for number in range(30):
                yield number, {"image": np.full((8, 8, 1), 8 * number, np.uint8), "label": number % 10}

    return FuzzPictures


def a_config(rng: random.Random, seeds: Seeds) -> list[str]:
    files = sorted(config.CONFIGS.glob("**/*.yaml"))
    text = rng.choice(files).read_text(encoding="utf-8")
    path = Path("config.yaml")
    match rng.randrange(10):
        case 0:
            path.write_bytes(change_bytes(rng, text.encode()))
        case 1:
            depth = rng.choice((50, 500, 5000, 50000))
            bombs = (
                "a: &a [x]\n" + "".join(f"b{n}: &{chr(98 + n)} [{f'*{chr(97 + n)},' * 9}]\n" for n in range(12)),
                "[" * depth,
                "[" * depth + "]" * depth,
                "{a: " * depth + "}" * depth,
                "".join(f"{' ' * n}a:\n" for n in range(min(depth, 2000))),
                "- " * depth + "a",
                f"seed: {'9' * depth}",
                f"seed: 0x{'f' * depth}",
                f"seed: {'1:' * depth}1",
                "&a a: *a",
                "a: &a\n  b: *a\nmethod: *a",
                "<<: {variant: at}\n<<: [{seed: 1}, {seed: 2}]\nseed: 3",
                "seed: 1\nseed: 2\n",
                "? [a, b]\n: c\n",
                "!!python/object/apply:os.system [id]",
                "",
                "---\n---\n",
                "\ufeff" + text,
                "seed: .nan",
                "dataset: {limit: .inf}",
            )
            path.write_text(rng.choice(bombs), encoding="utf-8")
        case 2:
            path.mkdir()
        case 3 | 4 | 5 | 6:
            value = change_value(rng, yaml.safe_load(text))
            path.write_text(yaml.safe_dump(value, allow_unicode=rng.random() < 0.5), encoding="utf-8")
        case _:
            path.write_bytes(change_text(rng, text).encode("utf-8", "surrogatepass"))
    return ["show", "--config", str(path), *(["--variant", rng.choice([*VARIANTS])] if rng.random() < 0.5 else [])]


def _paths(value: Any, before: str = "") -> Iterator[str]:
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield f"{before}{key}"
        yield from _paths(inner, f"{before}{key}.")


def a_setting(rng: random.Random, seeds: Seeds) -> list[str]:
    variant = rng.choice([*VARIANTS])
    known = list(_paths(config.to_dict(config.load(variant=variant))))
    settings = []
    for _ in range(rng.randint(1, 3)):
        value = odd_value(rng)
        text = value if isinstance(value, str) else json.dumps(value) if rng.random() < 0.9 else rng.choice(TOKENS)
        setting = f"{rng.choice(known)}={text}"
        settings += ["--set", change_text(rng, setting) if rng.random() < 0.4 else setting]
    return ["show", "--variant", variant, *settings]


def an_attack(rng: random.Random, seeds: Seeds) -> list[str]:
    name = rng.choice([*ATTACKS, *ALIASES])
    cls = ATTACKS[ALIASES.get(name, {"name": name})["name"]]
    text = name + (f"-{rng.choice(('0', '-1', '5', '1e3', '', 'x', '9' * 5000))}" if rng.random() < 0.5 else "")
    values = ("0", "-1", "1", "8/255", "8", "l2", "dlr", "true", "", "nan", "1e999", "1/0", str(seeds.keras), "digits")
    fields = [f"{rng.choice([*cls.__dataclass_fields__])}={rng.choice(values)}" for _ in range(rng.randrange(4))]
    text += ":" + ",".join(fields) if fields else ""
    text = change_text(rng, text) if rng.random() < 0.4 else text
    more = []
    for option, of in (
        ("--epsilon", values),
        ("--restarts", values),
        ("--protocol", ("all", "claf-repo", "x")),
        ("--transfer-from", ("absent", str(seeds.keras), "")),
        ("--limit", ("20", "0", "x", "9" * 30)),
    ):
        more += [option, rng.choice(of)] if rng.random() < 0.2 else []
    return ["attack", str(seeds.model), "--attack", text, "--limit", "20", *more]


def a_command_line(rng: random.Random, seeds: Seeds) -> list[str]:
    from keras_rcl.cli.app import cli

    verb = rng.choice([*cli.commands])
    arguments = [change_text(rng, verb) if rng.random() < 0.05 else verb]
    for parameter in rng.sample(cli.commands[verb].params, rng.randint(0, min(8, len(cli.commands[verb].params)))):
        if isinstance(parameter, click.Option):
            arguments.append(rng.choice(parameter.opts))
            if parameter.is_flag:
                continue
        texts = [value for value in ODD if isinstance(value, str)]
        choices = list(getattr(parameter.type, "choices", ())) or ["absent", str(seeds.model), str(seeds.record), "1"]
        arguments.append(rng.choice((*texts, *choices, *choices, *choices)))
    if rng.random() < 0.1:
        arguments.insert(rng.randrange(len(arguments) + 1), rng.choice(("--", "-x", "--no-such", "", "\udcff")))
    return [argument.replace("\0", "0") for argument in arguments]


def _picture(rng: random.Random) -> tuple[bytes, str]:
    """A picture of any mode, size and format; and its suffix."""
    forms = (("PNG", "png"), ("JPEG", "jpg"), ("BMP", "bmp"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tif"))
    form, suffix = rng.choice((*forms, ("PPM", "ppm")))
    modes = {"PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "JPEG": ["L", "RGB", "CMYK"]}
    modes |= {"BMP": ["1", "L", "P", "RGB"], "WEBP": ["RGB", "RGBA"], "GIF": ["L", "P"], "PPM": ["L", "RGB"]}
    modes |= {"TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"]}
    size = rng.choice(((8, 8), (8, 8), (8, 8), (1, 1), (7, 8), (300, 2)))
    image, options = Image.new(rng.choice(modes[form]), size, rng.randrange(2)), {}
    if form in ("PNG", "WEBP", "GIF") and image.mode in ("L", "P", "RGB") and rng.random() < 0.2:
        options = dict(save_all=True, append_images=[Image.new(image.mode, size, 1)])
    if form in ("PNG", "JPEG", "WEBP") and rng.random() < 0.3:
        turned = Image.Exif()
        turned[0x0112] = rng.randrange(10)
        options["exif"] = rng.choice((turned.tobytes(), b"Exif\0\0" + rng.randbytes(rng.randrange(200))))
    if form == "PNG" and image.mode in ("L", "P") and rng.random() < 0.3:
        options["transparency"] = 0
    stream = io.BytesIO()
    image.save(stream, form, **options)
    content = stream.getvalue()
    if form == "PNG" and rng.random() < 0.1:  # says that it is very large
        content = content[:16] + rng.randbytes(2) + content[18:20] + rng.randbytes(2) + content[22:]
    return content, rng.choice((suffix, suffix, suffix, "png", "jpeg", "txt", "npy", "heic"))


def _image_name(rng: random.Random, suffix: str) -> Path:
    odd = ("a b", "é", "\udcff", "-x", "%s", "x" * 200, "a\nb", "\x1b[31m")
    return Path(f"{rng.choice(odd) if rng.random() < 0.2 else 'image'}.{suffix}")


def an_image(rng: random.Random, seeds: Seeds) -> list[str]:
    content, suffix = _picture(rng)
    path = _image_name(rng, suffix)
    if rng.random() < 0.2:
        path = Path(rng.choice(("folder", ".folder", "__MACOSX")), rng.choice(("", "._")) + path.name)
        path.parent.mkdir()
    path.write_bytes(change_bytes(rng, content) if rng.random() < 0.8 else content)
    return ["predict", str(seeds.model), *rng.choice((["--resize"], []))] + ["--", rng.choice((str(path), "."))]


def _array(rng: random.Random) -> np.ndarray:
    dtype = rng.choice("uint8 float32 float16 float64 int64 bool complex64 S3 U3 M8[s] object".split())
    shape = rng.choice(((2, 8, 8, 1), (2, 8, 8, 1), (2, 8, 8, 3), (0, 8, 8, 1), (8, 8), (), (2, 8, 8, 1, 1)))
    array = np.zeros(shape, dtype)
    if dtype.startswith("float") and array.size:
        array.flat[0] = rng.choice((np.nan, np.inf, -np.inf, -0.1, 1.1, 200, 6e4, 0.5))
    return array


def an_array(rng: random.Random, seeds: Seeds) -> list[str]:
    path, stream = _image_name(rng, rng.choice(("npy", "npz"))), io.BytesIO()
    if rng.random() < 0.5:
        np.save(stream, _array(rng), allow_pickle=True)
    else:
        names = rng.choice((("images",), ("x",), ("images", "labels"), ("x", "y"), ()))
        np.savez(stream, **{name: _array(rng) for name in names})
    content = stream.getvalue()
    if rng.random() < 0.3:  # a header that lies
        content = content.replace(b"(2, 8", rng.choice((b"(9, 8", b"(-2,8", b"(99999999999, 8", b"((((2, 8")))
    path.write_bytes(change_bytes(rng, content) if rng.random() < 0.5 else content)
    return ["predict", str(seeds.model), "--", str(path)]


def _broken_json(rng: random.Random, source: Path) -> bytes:
    text = source.read_text(encoding="utf-8")
    match rng.randrange(8):
        case 0:
            return change_bytes(rng, text.encode())
        case 1:
            return change_text(rng, text).encode("utf-8", "surrogatepass")
        case 2:
            depth = rng.choice((500, 5000, 200000))
            return rng.choice(
                (b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth, b'{"format": ' + b"9" * depth + b"}", b"")
            )
        case _:
            return json.dumps(change_value(rng, json.loads(text))).encode()


def a_record(rng: random.Random, seeds: Seeds) -> list[str]:
    path = Path("record.json")
    path.write_bytes(_broken_json(rng, seeds.record) if rng.random() < 0.8 else seeds.record.read_bytes())
    if rng.random() < 0.3:
        content = (seeds.record.parent / "adversarial.npz").read_bytes()
        Path("adversarial.npz").write_bytes(change_bytes(rng, content))
    return ["audit", str(seeds.model), "--record", str(path), "--limit", "20"]


def a_contract(rng: random.Random, seeds: Seeds) -> list[str]:
    shutil.copytree(seeds.model, "model")
    Path("model/model.json").write_bytes(_broken_json(rng, seeds.model / "model.json"))
    if rng.random() < 0.5:
        return ["attack", "model", "--attack", "noise", "--limit", "20"]
    Image.new("L", (8, 8)).save("image.png")
    return ["predict", "model", "image.png"]


def a_data_set(rng: random.Random, seeds: Seeds) -> list[str]:
    root = Path("data")
    root.mkdir()
    layouts = ((".",), (".",), (".",), ("train", "test"), ("Train", "val", "TEST"), ("train", "val"), ("val", "x"))
    below = rng.choice(("", "", "", "left", ".hidden"))
    for number in range(rng.choice((0, 1, 10, 10, 10))):
        for part in (root / name for name in rng.choice(layouts[: rng.choice((1, 7))])):
            folder = part / (rng.choice(("\udce9", "__MACOSX", "é")) if rng.random() < 0.02 else str(number)) / below
            folder.mkdir(parents=True, exist_ok=True)
            for _ in range(rng.choice((0, 1, 2, 2))):
                content, suffix = _picture(rng)
                if rng.random() < 0.9:
                    stream = io.BytesIO()
                    Image.new("L", (8, 8)).save(stream, "PNG")
                    content, suffix = stream.getvalue(), "png"
                file = folder / _image_name(rng, suffix)
                file.write_bytes(change_bytes(rng, content) if rng.random() < 0.05 else content)
    more = ["--image-size", "8"] if rng.random() < 0.3 else []
    return ["attack", str(seeds.model), "--attack", "noise", "--dataset", "folder", "--folder", "data", *more]


def an_examples_folder(rng: random.Random, seeds: Seeds) -> list[str]:
    """Stored adversarial examples: their record or a shard is changed."""
    shutil.copytree(seeds.examples, "examples")
    record = Path("examples/examples.json")
    if rng.random() < 0.6:
        record.write_bytes(_broken_json(rng, record))
    else:
        _change_some(rng, sorted(Path("examples").glob("*.tfrecord")))
    attack = "{name: stored, folder: examples, epsilon: 16/255}"
    return ["tune", "--variant", "pgd_ce", "--limit", "20", "--set", f"method.attack={attack}"]


def a_study(rng: random.Random, seeds: Seeds) -> list[str]:
    """The table of trials of a search."""
    Path("study").mkdir()
    Path("study/study.json").write_bytes(_broken_json(rng, seeds.study / "study.json"))
    return [*seeds.tune, "--output-dir", "study"]


def a_folder_of_results(rng: random.Random, seeds: Seeds) -> list[str]:
    """Records that `report` reads: of an attack, a training and a verification."""
    Path("results").mkdir()
    for source in rng.sample(seeds.results, rng.randint(1, 3)):
        content = _broken_json(rng, source) if rng.random() < 0.7 else source.read_bytes()
        Path("results", rng.choice((source.name, "x.json", "deep.json"))).write_bytes(content)
    return ["report", "--paper", rng.choice(("claf", "cusin")), "--scale", "cpu", "--results", "results"]


def a_verifier_folder(rng: random.Random, seeds: Seeds) -> list[str]:
    """What `export-vnnlib` and a verifier from elsewhere wrote."""
    shutil.copytree(seeds.verifier, "verifier")
    if rng.random() < 0.6:
        Path("verifier/instances.json").write_bytes(_broken_json(rng, seeds.verifier / "instances.json"))
    else:
        _change_some(rng, [Path("verifier/results.pkl")])
    return ["read-verifier-results", "verifier", *rng.choice((["--json"], []))]


def a_run(rng: random.Random, seeds: Seeds) -> list[str]:
    """A run that was interrupted or is finished: its fingerprint, configuration, environment, states or checkpoints."""
    for name in ("runs", "saved_models"):
        shutil.copytree(seeds.runs / name, name)
    if rng.random() < 0.3:
        _change_some(rng, [Path("runs/run/config.yaml"), *Path("runs/run/checkpoints").glob("*.h5")])
        return ["export", "runs/run", "--checkpoint", rng.choice(("last", "best", "1-cross-entropy"))]
    if rng.random() < 0.3:
        _change_some(rng, sorted(Path("runs/run/training").glob("*.state")))
    else:
        path = Path("runs/run", rng.choice(("training/question.json", "environment.json", "record.json")))
        path.write_bytes(_broken_json(rng, path))
    return [*seeds.fit, *rng.choice((["--name", "run"], ["--name", "run"], ["--reuse", "runs/run"]))]


def a_prepared_data_set(rng: random.Random, seeds: Seeds) -> list[str]:
    """A data set of TFDS on disk: its descriptions and its records."""
    shutil.copytree(seeds.prepared, "prepared")
    files = sorted(path for path in Path("prepared").rglob("*") if path.is_file())
    if rng.random() < 0.5:
        path = rng.choice([path for path in files if path.suffix == ".json"])
        path.write_bytes(_broken_json(rng, path))
    else:
        _change_some(rng, files)
    data = ["--dataset", "fuzz_pictures", "--data-dir", "prepared"]
    return ["attack", str(seeds.model), "--attack", "noise", *data, "--limit", "20"]


def _change_some(rng: random.Random, files: list[Path]) -> None:
    """Change bytes of one or two files, cut one, empty one or delete one."""
    for file in rng.sample(files, min(len(files), rng.randint(1, 2))):
        match rng.randrange(12):
            case 0:
                file.unlink()
            case 1:
                file.write_bytes(b"")
            case 2:
                content = file.read_bytes()
                file.write_bytes(content[: rng.randrange(len(content) + 1)])
            case _:
                file.write_bytes(change_bytes(rng, file.read_bytes()))


def a_keras_file(rng: random.Random, seeds: Seeds) -> list[str]:
    path = Path("model.keras")
    if rng.random() < 0.4:
        path.write_bytes(change_bytes(rng, seeds.keras.read_bytes()))
    else:
        with zipfile.ZipFile(seeds.keras) as whole, zipfile.ZipFile(path, "w") as broken:
            for name in whole.namelist():
                content = whole.read(name)
                if rng.random() < 0.5:
                    changed = name.endswith("json") and rng.random() < 0.8
                    content = (
                        json.dumps(change_value(rng, json.loads(content))).encode()
                        if changed
                        else change_bytes(rng, content)
                    )
                if rng.random() < 0.95:
                    broken.writestr(name, content)
            if rng.random() < 0.2:
                broken.writestr(rng.choice(("../x", "/tmp/x", "a\\b", "assets/x", "config.jsonx", "é")), b"x")
    Image.new("L", (8, 8)).save("image.png")
    return ["predict", str(path), "image.png"]


def a_saved_model(rng: random.Random, seeds: Seeds) -> list[str]:
    shutil.copytree(seeds.model, "model")
    _change_some(rng, sorted(file for file in Path("model").rglob("*") if file.is_file() and file.name != "model.json"))
    Image.new("L", (8, 8)).save("image.png")
    return ["predict", "model", "image.png"]


KINDS: dict[Callable, int] = {
    a_config: 14,
    a_setting: 7,
    an_attack: 7,
    a_command_line: 7,
    an_image: 8,
    an_array: 6,
    a_record: 9,
    a_contract: 5,
    a_data_set: 6,
    an_examples_folder: 6,
    a_study: 5,
    a_folder_of_results: 5,
    a_verifier_folder: 5,
    a_run: 3,
    a_prepared_data_set: 2,
    a_keras_file: 2,
    a_saved_model: 3,
}
"""Each kind of input, and how many of a hundred are of it."""


# --- running one ------------------------------------------------------------------------------------------------------


class TooLong(BaseException):
    """An input took longer than it may."""


def _out_of_time(*_):
    raise TooLong


@contextlib.contextmanager
def without_the_work(seeds: Seeds) -> Iterator[None]:
    """Training, attacks and audits say that they were reached; the whole model is read once."""
    from unittest import mock

    from keras_rcl.workflows import (
        attack as attacking,
    )
    from keras_rcl.workflows import (
        audit as auditing,
    )
    from keras_rcl.workflows import (
        fit as experiment,
    )
    from keras_rcl.workflows import (
        inputs,
    )
    from keras_rcl.workflows import (
        predict as predicting,
    )
    from keras_rcl.workflows import (
        tune as tuning,
    )

    def reached(*_, **__):
        raise InvalidInputError("all input was accepted")

    def fit_all(*arguments, **options):
        """The whole function where there is a run to be read, so that no other input leaves folders behind."""
        return (whole_fit if Path("runs").exists() else reached)(*arguments, **options)

    def study(folder, *arguments):
        return (whole_study if (folder / "study.json").exists() else reached)(folder, *arguments)

    whole_fit, whole_study = experiment.fit_all, tuning.Study
    picture_builder()
    read = functools.cache(attacking.load_classifier)

    def load(path, **options):
        whole = Path(path) == seeds.model and not any(options.values())
        return (read if whole else read.__wrapped__)(path, **options)

    with contextlib.ExitStack() as stack:
        for module, name, stand_in in (
            (experiment, "fit_all", fit_all),
            (experiment.Run, "train", reached),
            (experiment, "Evaluator", reached),
            (attacking, "Evaluator", reached),
            (auditing, "audit", reached),
            (tuning, "Study", study),
            (tuning._Search, "run", reached),
            *((module, "load_classifier", load) for module in (attacking, auditing, inputs, predicting)),
        ):
            stack.enter_context(mock.patch.object(module, name, stand_in))
        yield


def files_of(folder: Path) -> dict[str, bytes | None]:
    """All that lies in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def run_one(number: int, seed: int, seeds: Seeds, seconds: float) -> dict[str, Any]:
    """Make an input and run it, in an empty folder.

    Returns:
        `kind`, `status`, and what was `wrong`: texts, none where all was as it must be.
    """
    from keras_rcl.cli.app import cli

    rng = random.Random(f"{seed} {number}")
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    wrong, here = [], os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        signal.signal(signal.SIGALRM, _out_of_time)
        try:
            arguments = kind(rng, seeds)
            before = files_of(Path(folder))
            signal.setitimer(signal.ITIMER_REAL, seconds)
            result = CliRunner().invoke(cli, arguments)
            signal.setitimer(signal.ITIMER_REAL, 0)
            status = result.exit_code
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                wrong.append("traceback: " + "".join(traceback.format_exception(*result.exc_info)[-3:]))
            elif status not in (0, 1, 2):
                wrong.append(f"exit status {status}: {result.output[-500:]}")
            said = [line for line in result.stderr.splitlines() if not PROGRESS.match(line)]
            if status == 2 and result.stdout == "" and (len(said) != 1 or not said[0].startswith("error: ")):
                wrong.append(f"{len(said)} lines on stderr: {result.stderr[:500]!r}")
            after = files_of(Path(folder))
            if kind is a_run:  # damaged states are deleted, and the run is finished or given up
                after = {name: before.get(name) for name in after}
                before = {name: before[name] for name in after if name in before}
            if status and after != before:
                wrong.append(f"left behind: {sorted(after.keys() - before.keys())}")
        except TooLong:
            status = None
            wrong.append(f"more than {seconds:g} seconds")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.chdir(here)
    values = {"kind": kind.__name__, "status": status}
    return values if not wrong else {**values, "arguments": arguments, "wrong": wrong}


# --- running all ------------------------------------------------------------------------------------------------------


def work(folder: Path, seed: int, numbers: range, seconds: float) -> None:
    """What the worker does: a line of JSON before and after each input, on its own standard output."""
    from keras_rcl.runtime.tensorflow import start_tensorflow

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print while the seeds are made
    start_tensorflow()
    warnings.simplefilter("always")  # every time, and not only the first
    seeds = Seeds(folder)
    if not seeds.record.is_file():
        seeds.make()
    with without_the_work(seeds):
        for number in numbers:
            print(json.dumps({"number": number}), file=answers, flush=True)
            found = run_one(number, seed, seeds, seconds)
            print(json.dumps({"number": number, **found}), file=answers, flush=True)


def outcomes(folder: Path, seed: int, numbers: range, seconds: float) -> Iterator[dict[str, Any]]:
    """What became of each input; a worker that dies or hangs is replaced, and that is the outcome."""
    first = numbers.start
    while first < numbers.stop:
        command = [sys.executable, "-m", "benchmarks.fuzz", "--worker", str(folder), "--seed", str(seed)]
        command += ["--first", str(first), "--inputs", str(numbers.stop - first), "--seconds", str(seconds)]
        running = None
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        ) as worker:
            said = b""
            with selectors.DefaultSelector() as ready:
                for stream in (worker.stdout, worker.stderr):
                    os.set_blocking(stream.fileno(), False)
                    ready.register(stream, selectors.EVENT_READ)
                pending, open_streams = b"", 2
                while open_streams:
                    events = ready.select(timeout=None if running is None else 3 * seconds)
                    if not events:
                        worker.kill()
                    for key, _ in events:
                        chunk = os.read(key.fd, 65536)
                        if not chunk:
                            ready.unregister(key.fileobj)
                            open_streams -= 1
                        elif key.fileobj is worker.stderr:
                            said += chunk
                        else:
                            *lines, pending = (pending + chunk).split(b"\n")
                            for answer in map(json.loads, lines):
                                running = answer["number"] if len(answer) == 1 else None
                                if running is None:
                                    first = answer["number"] + 1
                                    yield answer
        if worker.returncode == 0:
            return
        if running is None:
            raise SystemExit(f"the worker ended with {worker.returncode}: {said.decode(errors='replace')}")
        yield {"number": running, "kind": "?", "wrong": [f"the worker died with {worker.returncode}: {said[-800:]!r}"]}
        first = running + 1


def shared_out(folder: Path, seed: int, numbers: range, seconds: float, workers: int) -> Iterator[dict[str, Any]]:
    """The same, from several workers at once, as they come."""
    found: queue.Queue = queue.Queue()

    def follow(number: int):
        part = numbers[number * len(numbers) // workers : (number + 1) * len(numbers) // workers]
        try:
            for outcome in outcomes(folder / str(number), seed, part, seconds):
                found.put(outcome)
        finally:
            found.put(None)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        followed = [pool.submit(follow, number) for number in range(workers)]
        for _ in range(workers):
            yield from iter(found.get, None)
    for one in followed:
        one.result()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--seconds", type=float, default=20, help="that one input may take")
    parser.add_argument("--workers", type=int, default=1, help="processes at once")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    numbers = range(given.first, given.first + given.inputs)
    if given.worker:
        return work(given.worker, given.seed, numbers, given.seconds)
    started, kinds, statuses, findings = time.perf_counter(), collections.Counter(), collections.Counter(), []
    from keras_rcl.evaluation.record import versions

    def written() -> dict[str, Any]:
        """The record of the inputs so far, written to the file."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        record = {
            "command": command_line(),
            "inputs": sum(kinds.values()),
            "kinds": dict(kinds.most_common()),
            "exit_statuses": dict(statuses.most_common()),
            "findings": len(findings),
            "seconds": round(time.perf_counter() - started, 1),
            "seconds_of_one_core": round(used.ru_utime + used.ru_stime, 1),
            "versions": versions(),
        }
        if given.json:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(record, indent=1) + "\n")
        return record

    with tempfile.TemporaryDirectory() as folder:
        for outcome in shared_out(Path(folder), given.seed, numbers, given.seconds, given.workers):
            kinds[outcome["kind"]] += 1
            statuses[str(outcome.get("status"))] += 1
            if "wrong" in outcome:
                findings.append(outcome)
                print(json.dumps(outcome).replace(folder, "SEEDS"), file=sys.stderr, flush=True)
            if kinds.total() % 100 == 0:  # so that an interrupted benchmark leaves what it has
                written()
    print(json.dumps(written(), indent=1))
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
