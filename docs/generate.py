"""Writes the generated parts of the documents: `python docs/generate.py`, or `--check` to see that they are up to date.

`docs/cli.md` and `docs/papers.md` are generated as a whole, and so are the headers of the files in `configs/papers/`.
In README.md and every other document below docs/, a block between `<!-- generated: NAME -->` and `<!-- end -->` is
filled with the table of that name, see `TABLES`.
"""

import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import click
import yaml
from benchmark_tables import benchmark_tables
from readme_tables import readme_tables

from keras_rcl.cli.app import cli
from keras_rcl.config import Experiment
from keras_rcl.errors import InvalidInputError
from keras_rcl.papers import PAPERS
from keras_rcl.report.paper_tables import how_to_read, markdown_report, paper_report
from keras_rcl.report.records import Results, config_path, experiments, missing
from keras_rcl.vocabulary.paper import Paper

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PROGRAM = "python cli.py"
TABLES = {**readme_tables(RESULTS), **benchmark_tables(RESULTS)}
"""Name of a generated block -> the function that makes its text."""
WIDTH = 118
PASSES_PER_SECOND = 8000
"""Forward passes of one image through the strided CNN on two cores, roughly as in the trainings in results/."""
CIFAR_IMAGES = 50_000


def cli_page() -> str:
    """`docs/cli.md`: the help of every command."""
    sections = ["# Command line", "Made by `python docs/generate.py` from the commands themselves."]
    program = click.Context(cli, info_name=PROGRAM, **cli.context_settings)
    sections.append(_help(program))
    for name, command in cli.commands.items():
        sections += [f"## {name}", _help(click.Context(command, info_name=name, parent=program))]
    return "\n\n".join(sections) + "\n"


def _help(context: click.Context) -> str:
    context.terminal_width = 110
    return f"```text\n{context.get_help()}\n```"


def filled(text: str, name: str) -> str:
    """The text of the document `name` with its generated blocks filled.

    Raises:
        SystemExit: if a block names no table, or is not closed.
    """

    def fill(match: re.Match) -> str:
        if match[2] not in TABLES:
            sys.exit(f"{name}: no table is named {match[2]!r}; known are {', '.join(TABLES)}")
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

    filled, count = re.subn(
        r"(<!-- generated: (\S+) -->)\n(?:(?!<!-- generated:).)*?(<!-- end -->)", fill, text, flags=re.DOTALL
    )
    if count != text.count("<!-- generated:"):
        sys.exit(f"{name}: a generated block is not closed by <!-- end -->")
    return filled


def papers_page() -> str:
    """`docs/papers.md`: what `report` prints of each paper from the committed records, at the scales that have some."""
    found, reports = Results(RESULTS), []
    for paper in PAPERS.values():
        reports.append(_report(paper, "cpu", found, missing(paper, "cpu", found, None, program=PROGRAM)))
        shared = yaml.safe_load(config_path(paper.name).read_text(encoding="utf-8"))
        reports += [_other_scale(paper, scale, found) for scale in shared["scales"] if scale not in ("full", "cpu")]
    parts = [
        "# The papers' tables",
        "Made by `python docs/generate.py` from the records in `results/`, as "
        f"`{PROGRAM} report --paper NAME --scale SCALE` prints them; that command draws the figures too, and with "
        "`--train` measures what is missing. Of other scales than cpu, the tables with a measured row are shown.",
        *how_to_read([data for report in reports for data in report["tables"]]),
        *(markdown_report(report, with_guide=False) for report in reports if report["tables"]),
    ]
    return "\n\n".join(parts) + "\n"


def _report(paper: Paper, scale: str, found: Results, lacking: Sequence[dict]) -> dict:
    rows = experiments(paper, scale)
    setups = {row: found.setup(experiment) for row, experiment in rows.items()}
    return paper_report(paper, scale, found.lookup(rows), lacking, setups)


def _other_scale(paper: Paper, scale: str, found: Results) -> dict:
    """The report with the tables in which a row that is trained at this scale is measured."""
    report = _report(paper, scale, found, [])
    tables = [data for data in report["tables"] if any(row["setup"] for row in data["rows"])]
    return {**report, "title": f"{paper.title}: scale {scale}", "notes": [], "tables": tables}


def with_header(paper: Paper, row: str, at: dict[str, Experiment]) -> str:
    """The configuration of a row with its header generated: paper, published numbers, cost and command."""
    text = config_path(f"{paper.name}/{row}").read_text(encoding="utf-8")
    body = re.sub(r"\A(#.*\n)*", "", text)
    of = [(table, one) for table in paper.tables for one in table.rows if one.config == row]
    tables = "; ".join(f'{table.name} "{one.label}"' for table, one in of)
    published: dict[str, list[str]] = {}
    for table, one in of:
        pairs = zip(table.columns, one.published or [None] * len(table.columns), strict=True)
        values = ", ".join(f"{column.title} {value}" for column, value in pairs if value is not None)
        published.setdefault(values, []).append(table.name)
    published.pop("", None)
    numbers = "; ".join(f"{', '.join(dict.fromkeys(names))}: {values}" for values, names in published.items())
    full, cpu = (sum(phase.total_cost for phase in at[scale].method.phases()) for scale in ("full", "cpu"))
    images = at["cpu"].dataset.limit or CIFAR_IMAGES
    fewer = f" of {images:,}" if images < CIFAR_IMAGES else ""
    cost = f"{full:.0f} forward passes of each training image at full scale, {cpu:.0f}{fewer} at cpu"
    bounded = any(phase.worst_case for phase in at["cpu"].method.phases())
    minutes = cpu * images / PASSES_PER_SECOND / 60
    cost += ", besides bounds." if bounded else f": some {minutes:.0f} minutes on two cores."
    command = f"{PROGRAM} fit --config configs/papers/{paper.name}/{row}.yaml"
    lines = [
        *_header_lines("Paper", f"{paper.reference}. {tables}."),
        *_header_lines("Published", f"{numbers}." if numbers else "nothing."),
        *_header_lines("Cost", cost),
        *_header_lines("Command", command),
        f"#{'':12}{command} --scale cpu",
    ]
    return "\n".join(lines) + "\n" + body


def _header_lines(title: str, text: str) -> list[str]:
    """Lines of a header: `# Title:     text`, wrapped."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"# {title + ':':11}", subsequent_indent=f"#{'':12}", break_on_hyphens=False
    )


def row_configs() -> dict[Path, str]:
    """The configurations of all rows."""
    found = {}
    for paper in PAPERS.values():
        at = {scale: experiments(paper, scale) for scale in ("full", "cpu")}
        for row in paper.configs:
            found[config_path(f"{paper.name}/{row}")] = with_header(paper, row, {scale: at[scale][row] for scale in at})
    return found


def documents() -> dict[Path, str]:
    """Path -> text of every document that is generated, as a whole or in part."""
    whole = {ROOT / "docs/cli.md": cli_page(), ROOT / "docs/papers.md": papers_page(), **row_configs()}
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    in_part = {
        page: filled(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))
        for page in pages
        if page not in whole
    }
    return {**in_part, **whole}


if __name__ == "__main__":
    try:
        made = documents()
    except InvalidInputError as error:
        sys.exit(f"error: {error}")
    for path, text in made.items():
        stale = not path.exists() or path.read_text(encoding="utf-8") != text
        if stale and "--check" in sys.argv:
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run python docs/generate.py")
        if stale:
            path.write_text(text, encoding="utf-8")
