"""Any invalid input on the command line gives one line and status 2: earlier findings, and hundreds of new inputs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, PngImagePlugin

from keras_rcl.cli.app import cli

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks/fuzz.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def seeds(fuzz, tmp_path_factory):
    seeds = fuzz.Seeds(tmp_path_factory.mktemp("seeds"))
    seeds.make()
    return seeds


@pytest.fixture
def refused(fuzz, tmp_path, monkeypatch):
    """Run a command in an empty folder: one line on stderr, status 2, and a folder that is as it was."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> str:
        before = fuzz.files_of(tmp_path)
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == 2, (result.output, result.exc_info)
        assert result.stdout == ""
        (line,) = (line for line in result.stderr.splitlines() if not line.startswith("note: "))
        assert line.startswith("error: ") and len(line) < 1100
        assert fuzz.files_of(tmp_path) == before
        return line

    return run


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 40])
def test_forty_inputs(fuzz, seeds, start):
    with fuzz.without_the_work(seeds):
        found = [fuzz.run_one(number, 2, seeds, 60) for number in range(start, start + 40)]
    assert [outcome for outcome in found if "wrong" in outcome] == []
    assert {outcome["status"] for outcome in found} <= {0, 1, 2} and any(outcome["status"] == 2 for outcome in found)


@pytest.mark.slow
def test_the_fuzzer_sees_what_is_wrong(fuzz, seeds, monkeypatch):
    """A program that fails in each way that counts."""
    import click

    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def broken(rest):
        if fault == "traceback":
            raise KeyError("x")
        if fault == "lines":
            click.echo("error: one\nerror: two", err=True)
        if fault == "left behind":
            Path("left").write_text("x")
        if fault == "seconds":
            while True:
                pass
        click.get_current_context().exit(2 if fault != "exit status" else 3)

    monkeypatch.setattr("keras_rcl.cli.app.cli", broken)
    broken.commands = cli.commands
    for fault in ("traceback", "lines", "left behind", "seconds", "exit status"):
        assert any(fault in wrong for wrong in fuzz.run_one(0, 0, seeds, 0.5)["wrong"]), fault


CONFIGS = {
    "deep": ("[" * 50_000, "nested too deeply"),
    "deep blocks": ("".join(f"{' ' * depth}a:\n" for depth in range(2000)), "nested too deeply"),
    "many digits": (f"seed: {'9' * 5000}", "4300 digits"),
    "many hexadecimal digits": (f"seed: 0x{'f' * 5000}", "more than 64 bits"),
    "large": ("seed: 18446744073709551616", "more than 64 bits"),
    "larger than a seed": ("variant: at\nseed: 4294967296", "less than 4294967296"),
    "bomb": ("a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]", "alias *a"),
    "itself": ("&a a: *a", "alias *a"),
    "twice": ("seed: 1\nseed: 2", "'seed' is given 2 times"),
    "not finite": ("variant: at\nmethod: {name: at, attack: {name: pgd, epsilon: .nan}}", "finite"),
    "python": ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
    "empty": ("", "does not hold a mapping"),
    "two documents": ("---\n---\n", "expected a single document"),
    "unhashable": ("? [a]\n: b", "is not YAML"),
    "host": ("variant: at\ndataset: {name: 'huggingface:mnist'}", "dataset.name"),
    "path": ("variant: at\ndataset: {name: ../../secret}", "dataset.name"),
    "memory": ("variant: at\ndataset: {image_size: 1000000}", "4096"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(refused, name):
    text, said = CONFIGS[name]
    Path("config.yaml").write_text(text)
    assert said in refused("show", "--config", "config.yaml")


def test_a_configuration_that_is_no_text(refused):
    Path("config.yaml").write_bytes(b"seed: \xff\xfe")
    assert "cannot read the configuration" in refused("show", "--config", "config.yaml")
    Path("folder").mkdir()
    assert "cannot read the configuration" in refused("show", "--config", "folder")


@pytest.mark.parametrize("setting", ["seed=" + "9" * 5000, "seed=0x" + "f" * 5000, "method=" + "[" * 5000])
def test_settings(refused, setting):
    assert "is not a YAML value" in refused("show", "--set", setting)


def test_a_name_that_is_too_long_for_a_file(refused):
    assert "File name too long" in refused("export", "9" * 5000)


def test_what_moves_the_cursor_is_not_repeated(refused):
    assert r"\x1b[31m" in refused("show", "--variant", "\x1b[31m")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 200_000, '{"format": ' + "9" * 5000 + "}", '{"format": NaN}', "\ufeff{}"],
    ids=["deep list", "deep mapping", "digits", "NaN", "byte order mark"],
)
def test_records_and_contracts(refused, seeds, text):
    Path("record.json").write_text(text)
    assert "cannot be read as a record" in refused("audit", seeds.model, "--record", "record.json")
    shutil.copytree(seeds.model, "model")
    Path("model/model.json").write_text(text)
    assert "cannot be read" in refused("predict", "model", "image.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_hash": 3}, "model_hash"),
        ({"name": ["x"]}, "name"),
        ({"variant": {}}, "variant"),
        ({"class_names": "0123456789"}, "class_names"),
        ({"class_names": list(range(10))}, "class_names"),
        ({"class_names": ["0"] * 9}, "gives 10 classes, and its model.json names 9"),
        ({"config": []}, "config"),
        ({"config": {"dataset": ["digits"]}}, "config"),
        ({"config": {"dataset": {"name": "digits", "folder": 3}}}, "data set: folder"),
        ({"config": {"dataset": {"": None}}}, "data set"),
    ],
)
def test_a_contract_edited_by_hand(refused, seeds, change, said):
    shutil.copytree(seeds.model, "model")
    contract = json.loads((seeds.model / "model.json").read_text())
    Path("model/model.json").write_text(json.dumps({**contract, **change}))
    assert said in refused("attack", "model", "--attack", "noise")


@pytest.mark.slow
def test_a_contract_does_not_say_where_data_is_written(seeds, tmp_path):
    from keras_rcl.model_io.classifier import load_classifier
    from keras_rcl.workflows.inputs import dataset_of

    model = shutil.copytree(seeds.model, tmp_path / "model")
    contract = json.loads((model / "model.json").read_text())
    contract["config"]["dataset"]["data_dir"] = "/elsewhere"
    (model / "model.json").write_text(json.dumps(contract))
    assert dataset_of(load_classifier(model), {}).data_dir is None
    assert dataset_of(load_classifier(model), {"data_dir": "here"}).data_dir == "here"


@pytest.mark.slow
def test_images_of_absurd_size_are_not_decoded(refused, seeds):
    """Headers that say 10,000 x 10,000 and 60,000 x 60,000 pixels."""
    Image.new("L", (8, 8)).save("image.png")
    whole = Path("image.png").read_bytes()
    for side in (10_000, 60_000):
        header = b"IHDR" + side.to_bytes(4) * 2 + whole[24:29]
        checksum = PngImagePlugin._crc32(header).to_bytes(4)
        Path("image.png").write_bytes(whole[:12] + header + checksum + whole[33:])
        assert "not a readable PNG" in refused("predict", seeds.model, "image.png", "--resize")


@pytest.mark.slow
def test_arrays_of_objects_and_headers_that_lie(refused, seeds):
    np.save("array.npy", np.array([{}], object), allow_pickle=True)
    assert "never loaded" in refused("predict", seeds.model, "array.npy")
    np.save("array.npy", np.zeros((2, 8, 8, 1)))
    content = Path("array.npy").read_bytes()
    for shape in (b"(9, 8, 8, 1)", b"(-2,8, 8, 1)", b"((2, 8, 8, 1"):
        Path("array.npy").write_bytes(content.replace(b"(2, 8, 8, 1)", shape))
        assert "array.npy" in refused("predict", seeds.model, "array.npy")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="file names must be UTF-8 there")
def test_a_file_name_that_is_no_text(seeds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = os.fsdecode(b"\xff.png")
    Image.new("L", (8, 8)).save(path)
    result = CliRunner().invoke(cli, ["predict", str(seeds.model), path])
    assert result.exit_code == 0 and r"\udcff.png" in result.stdout
    entries = json.loads(CliRunner().invoke(cli, ["predict", str(seeds.model), path, "--json"]).stdout)
    assert entries[0]["image"] == path


@pytest.mark.slow
def test_a_keras_file_of_which_keras_warns(refused, seeds):
    """Weights under another name, of which Keras says several lines."""
    with zipfile.ZipFile(seeds.keras) as whole, zipfile.ZipFile("model.keras", "w") as broken:
        for name in whole.namelist():
            content = whole.read(name)
            if name == "config.json":
                config = json.loads(content)
                for layer in config["config"]["layers"]:
                    layer["config"]["name"] += "_2"
                config["config"]["layers"][-1]["config"]["units"] = 7
                content = json.dumps(config).encode()
            broken.writestr(name, content)
    assert "model.keras" in refused("predict", "model.keras", "image.png")


@pytest.mark.slow
def test_a_pipe_that_is_closed(seeds):
    """`keras-rcl variants | head -1`: no traceback."""
    code = "from keras_rcl.cli.app import cli; cli(['variants', '--json'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 1
