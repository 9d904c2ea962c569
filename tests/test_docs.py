"""The documents say what the code does."""

import importlib.util
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from keras_rcl.cli.app import cli
from keras_rcl.methods import VARIANTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_documents_are_up_to_date():
    for path, text in generator().documents().items():
        assert path.read_text(encoding="utf-8") == text, f"run python docs/generate.py: {path.name} is stale"


def test_report_makes_every_table_of_the_readme_again(monkeypatch):
    """To the byte, from the committed records alone."""
    monkeypatch.chdir(ROOT)
    printed = CliRunner().invoke(cli, ["report"]).stdout
    tables = re.findall(r"<!-- generated: (\w+) -->\n(.*?)\n<!-- end -->", README, flags=re.DOTALL)
    assert len(tables) >= 8
    for name, text in tables:
        assert f"## {name}\n\n{text}\n" in printed, name


def test_every_variant_config_and_command_is_documented():
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in README for name in VARIANTS)
    assert all(f"## {name}" in page for name in cli.commands)
    for config in (ROOT / "configs").rglob("*.yaml"):
        header = config.read_text(encoding="utf-8").split("\n\n")[0]
        assert re.search(r"^# Command: +python cli\.py fit", header, flags=re.MULTILINE), (
            f"{config.name} has no command in its header"
        )


def test_commands_of_the_readme_exist():
    commands = re.findall(r"^python cli\.py (\w+)(.*)$", README, flags=re.MULTILINE)
    assert commands
    for verb, rest in commands:
        known = {option for parameter in cli.commands[verb].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known


def test_links_of_the_documents_lead_somewhere():
    for document in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("*/README.md"),
    ]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.fixture(scope="module")
def with_export(tmp_path_factory):
    """A folder that holds an export named as the README's."""
    from keras_rcl.model_io.export import export
    from keras_rcl.networks.two_headed import build_network
    from keras_rcl.vocabulary.network import Network

    folder = tmp_path_factory.mktemp("readme")
    network = build_network(Network(encoder="small_cnn"), (8, 8, 1), 10, mean=[0.3], std=[0.4])
    export(network, folder / "saved_models/digits-clafs", {"class_names": list("0123456789")})
    return folder


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_python_of_the_readme_runs(block, with_export, monkeypatch, capsys):
    monkeypatch.chdir(with_export)
    exec(compile(block, "README.md", "exec"), {})
