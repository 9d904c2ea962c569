"""Writes what documents say of the code: `python docs/generate.py`, or `--check` to see that they are up to date.

`docs/cli.md` and `docs/papers.md` are written whole. In README and every page under `docs/`, the text between
`<!-- generated: NAME -->` and `<!-- end -->` is written. Rows of the papers in `configs/papers/` get their header.
"""

import re
import sys
import textwrap
from pathlib import Path

import click

from keras_rcl.cli.app import cli
from keras_rcl.config import Experiment
from keras_rcl.papers import PAPERS
from keras_rcl.report.paper_tables import markdown_report, paper_report
from keras_rcl.report.readme_tables import readme_tables
from keras_rcl.report.records import Results, config_path, experiments, missing
from keras_rcl.report.tables import markdown_table, percent
from keras_rcl.storage.atomic import read_json
from keras_rcl.vocabulary.paper import Paper

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
DOCS = ROOT / "docs"
WIDTH = 118
PASSES_PER_SECOND = 8000
"""Of single images through the strided CNN on two cores: about what the trainings in results/ took."""
CIFAR_IMAGES = 50_000
BENCHMARKS = {
    "pgd_resnet18": "attack_throughput-resnet18",
    "pgd_strided_cnn": "attack_throughput-strided_cnn",
    "evaluation_pgd": "evaluation-pgd",
    "evaluation_autoattack": "evaluation-autoattack",
    "step_resnet18": "train_step-resnet18",
    "step_strided_cnn": "train_step-strided_cnn",
    "claf_epoch": "train_step-claf-strided_cnn",
    "pipeline": "pipeline",
}
"""Name of a generated table -> the committed benchmark."""


def cli_page() -> str:
    """`docs/cli.md`: the help of every command."""
    sections = ["# Command line", "Made by `python docs/generate.py` from the commands themselves."]
    program = click.Context(cli, info_name="python cli.py", **cli.context_settings)
    sections.append(_help(program))
    for name, command in cli.commands.items():
        sections += [f"## {name}", _help(click.Context(command, info_name=name, parent=program))]
    return "\n\n".join(sections) + "\n"


def _help(context: click.Context) -> str:
    context.terminal_width = 110
    return f"```text\n{context.get_help()}\n```"


def filled(text: str, tables: dict[str, str]) -> str:
    """A document with its generated parts made anew."""

    def fill(match: re.Match) -> str:
        return f"{match[1]}\n{tables[match[2]]}\n{match[3]}"

    return re.sub(r"(<!-- generated: (\w+) -->)\n.*?(<!-- end -->)", fill, text, flags=re.DOTALL)


def benchmark(name: str) -> str:
    """One row a contender of a committed benchmark, its facts, and its command."""
    measured = read_json(ROOT / f"results/benchmarks/{name}.json")
    rows, first = [], next(iter(measured["rows"].values()))
    for contender, row in measured["rows"].items():
        compared = row["images_per_second"] > 0
        rows.append(
            [
                contender,
                f"{row['seconds']:.2f}",
                f"{row['fastest']:.2f} - {row['slowest']:.2f}",
                f"{row['seconds'] / first['seconds']:.2f}" if compared else "",
                f"{row['fastest'] / first['fastest']:.2f}" if compared else "",
                f"{row['images_per_second']:.1f}" if compared else "",
                f"{row['share_of_matrix_rate']:.0%}" if row["operations"] else "",
                percent(row["robust_accuracy"]) if "robust_accuracy" in row else "",
            ]
        )
    header = ["contender", "median s", "fastest - slowest", "medians' ratio", "fastest runs' ratio", "images/s"]
    table = [list(column) for column in zip([*header, "of matrix rate", "robust"], *rows, strict=True)]
    header, *rows = zip(*(column for column in table if any(column[1:])), strict=True)
    facts = {
        key.replace("_", " "): value
        for key, value in measured.items()
        if key not in ("command", "versions", "rows", "model_hash", "protocol", "network", "cores")
    }
    told = "; ".join(f"{key} {value:.4g}" for key, value in facts.items())
    return f"{markdown_table(header, rows)}\n\n{told}\n\n```\n{measured['command']}\n```"


def claf_options() -> str:
    """What CLAF's faster options do to accuracy, by seed."""
    measured, rows = read_json(ROOT / "results/benchmarks/claf_options.json"), []
    for name, runs in measured["runs"].items():
        clean, robust = ([run[f"{kind}_accuracy"] for run in runs] for kind in ("clean", "robust"))
        by_seed = (" / ".join(map(percent, values)) for values in (clean, robust))
        rows.append([name, *by_seed, percent(sum(robust) / len(robust))])
    header = ["second stage", "clean, by seed", "robust, by seed", "robust, mean"]
    return f"{markdown_table(header, rows)}\n\n```\n{measured['command']}\n```"


def bounds_cost() -> str:
    """One row a training step, in steps of plain training; one a bound, ours beside auto_LiRPA's."""
    measured = read_json(ROOT / "results/benchmarks/bounds.json")
    plain, rows = measured["rows"]["plain step"]["seconds"], []
    for contender, row in measured["rows"].items():
        spread = f"{row['fastest']:.3f} - {row['slowest']:.3f}"
        steps = f"{row['seconds'] / plain:.2f}" if contender.endswith("step") else ""
        rows.append([contender, f"{row['seconds']:.3f}", spread, steps, f"{row['images_per_second']:.1f}"])
    header = ["contender", "median s", "fastest - slowest", "plain steps", "images/s"]
    return f"{markdown_table(header, rows[:-1])}\n\n```\n{measured['command']}\n```"


def bounds_reference() -> str:
    """One row a network and method: the mean lower bound of a margin, ours and auto_LiRPA's, and how far apart."""
    rows, commands = [], []
    for path in sorted((ROOT / "results/benchmarks").glob("bounds_reference-*.json")):
        measured = read_json(path)
        commands.append(measured["command"])
        for method, row in measured["methods"].items():
            apart = f"{row['largest_relative_difference']:.1e}"
            means = (f"{row[key]:.4g}" for key in ("mean", "auto_LiRPA_mean"))
            rows.append([f"`{Path(measured['model']).name}`", method, str(measured["images"]), *means, apart])
    header = ["network", "bound", "images", "ours", "auto_LiRPA", "largest relative difference"]
    told = "\n".join(commands)
    return f"{markdown_table(header, rows, right=(2, 3, 4, 5))}\n\n```\n{told}\n```"


def papers_page() -> str:
    """`docs/papers.md`: what `report --scale cpu` prints of each paper from the committed records."""
    parts = [
        "# The papers' tables at scale cpu",
        "Made by `python docs/generate.py` from the records in `results/`, as "
        "`python cli.py report --paper NAME --scale cpu` prints them; that command draws the figures too, and with "
        "`--train` measures what is missing.",
    ]
    found = Results(RESULTS)
    for paper in PAPERS.values():
        rows = experiments(paper, "cpu")
        lacking = missing(paper, "cpu", found, None)
        parts.append(
            markdown_report(paper_report(paper, "cpu", lambda row, m, rows=rows: found.measured(rows[row], m), lacking))
        )
    return "\n\n".join(parts) + "\n"


def with_header(paper: Paper, row: str, at: dict[str, Experiment]) -> str:
    """The configuration of a row with its header made anew: paper, published numbers, cost and command."""
    text = config_path(f"{paper.name}/{row}").read_text(encoding="utf-8")
    body = re.sub(r"\A(#.*\n)*", "", text)
    of = [(table, one) for table in paper.tables for one in table.rows if one.config == row]
    tables = "; ".join(f'{table.name} "{one.label}"' for table, one in of)
    published: dict[str, list[str]] = {}
    for table, one in of:
        pairs = zip(table.columns, one.published or [None] * len(table.columns), strict=True)
        told = ", ".join(f"{column.title} {value}" for column, value in pairs if value is not None)
        published.setdefault(told, []).append(table.name)
    published.pop("", None)
    numbers = "; ".join(f"{', '.join(dict.fromkeys(names))}: {told}" for told, names in published.items())
    full, cpu = (sum(phase.total_work for phase in at[scale].method.phases()) for scale in ("full", "cpu"))
    images = at["cpu"].dataset.limit or CIFAR_IMAGES
    fewer = f" of {images:,}" if images < CIFAR_IMAGES else ""
    cost = f"{full:.0f} forward passes of each training image at full scale, {cpu:.0f}{fewer} at cpu"
    bounded = any(phase.worst_case for phase in at["cpu"].method.phases())
    minutes = cpu * images / PASSES_PER_SECOND / 60
    cost += ", besides bounds." if bounded else f": some {minutes:.0f} minutes on two cores."
    command = f"python cli.py fit --config configs/papers/{paper.name}/{row}.yaml"
    lines = [
        *_told("Paper", f"{paper.reference}. {tables}."),
        *_told("Published", f"{numbers}." if numbers else "nothing."),
        *_told("Cost", cost),
        *_told("Command", command),
        f"#{'':12}{command} --scale cpu",
    ]
    return "\n".join(lines) + "\n" + body


def _told(title: str, text: str) -> list[str]:
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
    """Every document that is generated, whole or in part, as it should be."""
    tables = {
        **readme_tables(RESULTS),
        **{name: benchmark(file) for name, file in BENCHMARKS.items()},
        "claf_options": claf_options(),
        "bounds": bounds_cost(),
        "bounds_reference": bounds_reference(),
    }
    return {
        **{
            page: filled(page.read_text(encoding="utf-8"), tables) for page in [ROOT / "README.md", *DOCS.rglob("*.md")]
        },
        ROOT / "docs/cli.md": cli_page(),
        ROOT / "docs/papers.md": papers_page(),
        **row_configs(),
    }


if __name__ == "__main__":
    for path, text in documents().items():
        stale = not path.exists() or path.read_text(encoding="utf-8") != text
        if stale and "--check" in sys.argv:
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run python docs/generate.py")
        if stale:
            path.write_text(text, encoding="utf-8")
