"""The documents say what the code does."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import generate
import pytest
import run_tutorials

import keras_rcl
from keras_rcl.cli.app import cli
from keras_rcl.methods import VARIANTS
from keras_rcl.vocabulary.attacks import ATTACKS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in ROOT.glob("docs/**/*.md")}
GENERATED = r"<!-- generated: (\w+) -->\n(.*?)\n<!-- end -->"
PYTHON = r"^```python\n(.*?)^```"


def test_generated_documents_are_up_to_date():
    for path, text in generate.documents().items():
        assert path.read_text(encoding="utf-8") == text, f"run python docs/generate.py: {path.name} is stale"


def test_no_two_tables_have_one_name():
    of_readme, of_benchmarks = generate.readme_tables(generate.RESULTS), generate.benchmark_tables(generate.RESULTS)
    assert not of_readme.keys() & of_benchmarks.keys()


def test_a_generated_block_is_filled_where_it_stands():
    block = "<!-- generated: digits -->\n{}\n<!-- end -->"
    text = f"# Any page\n\n{block}\n\nBetween.\n\n{block}\n"
    filled = generate.filled(text.format("old", "old"), "page.md")
    assert filled == text.format(*[generate.TABLES["digits"]()] * 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated: digit -->\nold\n<!-- end -->", "page.md: no table is named 'digit'; known are variants, "),
        ("<!-- generated: digits -->\nold\n", "page.md: a generated block is not closed"),
        ("<!-- generated: digits -->\n<!-- generated: digits -->\n<!-- end -->", "page.md: a generated block is not"),
    ],
)
def test_a_wrong_block_is_an_error(text, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        generate.filled(text, "page.md")


def test_every_variant_config_and_command_is_documented():
    assert all(f"| `{name}` |" in PAGES["docs/methods.md"] for name in VARIANTS)
    assert all(f"## {name}" in PAGES["docs/cli.md"] for name in cli.commands)
    for config in (ROOT / "configs").rglob("*.yaml"):
        header = config.read_text(encoding="utf-8").split("\n\n")[0]
        assert re.search(r"^# Command: +python cli\.py fit", header, flags=re.MULTILINE), (
            f"{config.name} has no command in its header"
        )


def test_every_attack_is_in_the_table_of_attacks():
    listed = set(re.findall(r"^\| `([\w-]+)` \|", PAGES["docs/attacks.md"], flags=re.MULTILINE))
    assert set(ATTACKS) <= listed


def test_api_page_lists_every_public_name_under_its_module():
    listed = re.findall(r"^::: (\S+)$", PAGES["docs/api.md"], flags=re.MULTILINE)
    assert sorted(path.rsplit(".", 1)[1] for path in listed) == sorted(keras_rcl.__all__)
    for path in listed:
        module, name = path.rsplit(".", 1)
        assert getattr(importlib.import_module(module), name) is getattr(keras_rcl, name)


def test_index_of_decisions_gives_title_status_and_date():
    index = PAGES["docs/decisions/index.md"]
    for name, text in PAGES.items():
        if found := re.fullmatch(r"docs/decisions/0*(\d+)-.*\.md", name):
            head = re.match(r"# (\d+)\. (.+)\n\n- Status: (.+)\n- Date: (\d{4}-\d\d-\d\d)\n", text)
            assert head, f"{name} does not begin with title, status and date"
            number, title, status, date = head.groups()
            assert number == found[1]
            assert f"| {number} | [{title}]({Path(name).name}) | {status} | {date} |" in index


def commands_of(text):
    """Verb and arguments of each command of a document, except in generated parts, which quote records."""
    text = re.sub(GENERATED, "", text, flags=re.DOTALL)
    return re.findall(r"^python cli\.py ([\w-]+)(.*)$", text, flags=re.MULTILINE)


def test_commands_of_the_documents_exist():
    for name, text in {"README.md": README, **PAGES}.items():
        if name in ("docs/cli.md", "docs/papers.md"):
            continue
        for verb, rest in commands_of(text):
            assert verb in cli.commands, f"{name}: {verb}"
            known = {option for parameter in cli.commands[verb].params for option in parameter.opts}
            assert set(re.findall(r"(?<!\S)--[\w-]+", rest)) <= known, f"{name}: {verb}{rest}"


def test_links_of_the_documents_lead_somewhere():
    for document in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("*/README.md"),
    ]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_readme_counts_the_methods():
    assert re.search(r"(\d+) training methods", README)[1] == str(len(VARIANTS))


def test_readme_is_short_and_its_pictures_are_small():
    assert len(README.encode()) <= 9 * 1024
    for picture in (ROOT / "docs/images").glob("*.png"):
        assert picture.stat().st_size < 200_000, picture.name


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    assert (tmp_path / "site/index.html").exists()


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


def python_of(text):
    return re.findall(PYTHON, text, flags=re.DOTALL | re.MULTILINE)


TUTORIALS = [name for name in PAGES if name.startswith("docs/tutorials/")]
DOCUMENTS = {name: text for name, text in {"README.md": README, **PAGES}.items() if name not in TUTORIALS}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, text in DOCUMENTS.items() if python_of(text)])
def test_python_of_the_documents_runs(name, with_export, monkeypatch, capsys):
    """The blocks of a page run from top to bottom, in one namespace."""
    monkeypatch.chdir(with_export)
    namespace = {}
    for block in python_of(DOCUMENTS[name]):
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_prints_what_it_shows(name, tmp_path, monkeypatch):
    """After a change: `python docs/run_tutorials.py`."""
    monkeypatch.chdir(tmp_path)
    assert python_of(PAGES[name])
    assert not run_tutorials.differences(PAGES[name], run_tutorials.run(PAGES[name], name))


def test_a_tutorial_that_shows_something_else_is_found():
    page = "```python\nprint('robust', 0.25)\n```\n\n```text\n{}\n```\n\nText.\n\n```python\nx = 1\n```\n"
    printed = run_tutorials.run(page, "page.md")
    assert printed == ["robust 0.25\n", ""]
    assert run_tutorials.filled(page, printed) == page.format("robust 0.25")
    assert not run_tutorials.differences(page.format("robust 0.27"), printed)
    for shown in ("robust 0.35", "broken 0.25", "robust 0.25\nmore"):
        assert len(run_tutorials.differences(page.format(shown), printed)) == 1


def test_package_and_citation_have_the_version_of_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.search(r"^## \[(\d+\.\d+\.\d+)\]", changelog, flags=re.MULTILINE)
    assert f"\nversion = {released[1]}\n" in (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert f"\nversion: {released[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
