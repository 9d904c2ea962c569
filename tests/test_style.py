"""Plain English and short functions: what a reader of this code is promised, checked over every file."""

import ast
import functools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_LINES, MOST_PARAMETERS = 60, 8
_UNIT = "seconds?|lines?|rows?|files?|one|images?|epochs?|steps?|batch(?:es)?|bits?|numbers?|values?|passes|pictures?"
_PER = "image|row|check|method|paper|command|line|file|epoch|batch|step|phase|attack|class|pixel|model|part|anchor"
PHRASES = {
    r"\b[Tt]old\b": "returned, reported, stored or given",
    r"\banew\b(?![`\"])": "again, from scratch",
    r"\bcures?\b": "hint",
    r"\b(felled|fallen)\b": "broken",
    r"\b[Ll]ikewise\b": "also, in the same way",
    r"\bso many\b": "at most N, N at a time",
    r"(?<![Tt]here )\b(is|are) no (?!longer|more|less|larger|smaller|other)[a-z.]": "is not a",
    r"\b[Bb]ut for\b": "except, apart from",
    r"\bbroken off\b": "interrupted",
    r"\bgo(es)? on\b": "continues, resumes",
    r"\b(cannot|to) be had\b": "is not available, could not be downloaded",
    r"\b[Dd]ear(est|er)?\b": "expensive",
    r"\bhanded on\b": "exported",
    r"\bRefused\b": "InvalidInputError",
    rf"\b({_UNIT}) an? ({_PER})\b": "per",
}
"""A pattern of the dialect this project once had -> what to write instead."""

TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
READ = [
    name
    for name in TRACKED
    if name.endswith((".py", ".md", ".yaml", ".html", ".j2"))
    and not name.startswith("results/")
    and name not in ("CHANGELOG.md", "CONTRIBUTING.md", "tests/test_style.py")  # these quote what not to write
]
CODE = [name for name in READ if name.endswith(".py")]


def _generated(text: str) -> str:
    """The text without its generated blocks, which quote committed records; line numbers are kept."""
    blocks = r"<!-- generated: .*?<!-- end -->"
    return re.sub(blocks, lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL)


@pytest.mark.skipif(not TRACKED, reason="needs a git checkout, to list its files")
def test_the_text_is_plain_english():
    found, any_phrase = [], re.compile("|".join(f"(?:{pattern})" for pattern in PHRASES))
    for name in READ:
        text = _generated((ROOT / name).read_text(encoding="utf-8"))
        for number, line in enumerate(text.splitlines() if any_phrase.search(text) else [], start=1):
            found += [
                f"{name}:{number}: {match[0]!r}; write {better}"
                for pattern, better in PHRASES.items()
                for match in re.finditer(pattern, line)
            ]
    assert not found, "\n".join(found)


@functools.cache
def _functions(name: str):
    """The functions of a file, each with its lines of code and its parameters.

    A function with a comment just above it is left out: the comment says why it is longer or takes more parameters.
    """
    text = (ROOT / name).read_text(encoding="utf-8")
    lines, found = text.splitlines(), []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if lines[first - 2].strip().startswith("#"):
            continue
        documented = ast.get_docstring(node) is not None
        begins = node.body[0].end_lineno + 1 if documented else node.body[0].lineno
        body = (line.strip() for line in lines[begins - 1 : node.end_lineno])
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        parameters = [argument for argument in arguments if argument.arg not in ("self", "cls")]
        found.append((node, sum(1 for line in body if line and not line.startswith("#")), len(parameters)))
    return found


@pytest.mark.parametrize("folder", sorted({name.split("/")[0] for name in CODE}))
def test_functions_are_short(folder):
    found = [
        f"{name}:{node.lineno}: {node.name} has {lines} lines of code, at most {MOST_LINES}"
        for name in CODE
        if name.split("/")[0] == folder
        for node, lines, _ in _functions(name)
        if lines > MOST_LINES
    ]
    assert not found, "\n".join(found)


def test_public_functions_take_few_parameters():
    found = [
        f"{name}:{node.lineno}: {node.name} has {parameters} parameters, at most {MOST_PARAMETERS}"
        for name in CODE
        if name.startswith("keras_rcl/")
        for node, _, parameters in _functions(name)
        if not node.name.startswith("_") and parameters > MOST_PARAMETERS
    ]
    assert not found, "\n".join(found)


def test_the_patterns_find_what_they_are_for():
    """Each phrase as it once stood in this project is found, and its plain form is not."""
    pairs = {
        "A line a check.": "One line per check.",
        "seconds an image": "seconds per image",
        "x is no .keras archive": "x is not a .keras archive; there is no such file",
        "The same command goes on.": "The same command resumes.",
        "At most so many images": "At most this number of images",
        "cannot be had": "could not be downloaded",
        "images that an attack felled": "images that an attack broke",
    }
    for dialect, plain in pairs.items():
        assert any(re.search(pattern, dialect) for pattern in PHRASES), dialect
        assert not any(re.search(pattern, plain) for pattern in PHRASES), plain
