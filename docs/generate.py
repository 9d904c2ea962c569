"""Writes what documents say of the code: `python docs/generate.py`, or `--check` to see that they are up to date.

`docs/cli.md` is written whole; in README and `docs/performance.md` what stands between `<!-- generated: NAME -->` and
`<!-- end -->`.
"""

import functools
import json
import re
import sys
from pathlib import Path

import click

from keras_rcl import config
from keras_rcl.commands import cli
from keras_rcl.methods import VARIANTS
from keras_rcl.report.tables import comparison_table, markdown_table, percent, text_table
from keras_rcl.vocabulary.attack import AutoAttack
from keras_rcl.vocabulary.threat import format_pixels

ROOT = Path(__file__).resolve().parent.parent

PUBLISHED = {
    "baseline": "95.5 / 0.0",
    "supcon_linear": "92.6 / 18.3",
    "at": "84.8 / 44.7",
    "trades": "83.7 / 51.4",
    "rocl_at": "80.2 / 40.7",
    "clafs": "92.4 / 60.4",
}
"""Clean and PGD-10 accuracy of CLAF's Table 1 (Rahamim and Naeh 2022): ResNet-18, and its code's own protocol."""


def variants() -> str:
    """One row a variant: its phases, and what they weigh."""
    rows = []
    for name, cls in VARIANTS.items():
        phases = cls().phases()
        told = []
        for phase in phases:
            inner = "".join(f", before each epoch {r.epochs} of *{r.name}*" for r in phase.refresh)
            told.append(f"*{phase.name}* {phase.epochs}{inner}")
        rows.append([f"`{name}`", cls.__doc__.splitlines()[0].rstrip("."), "; ".join(told)])
    return markdown_table(["variant", "what it is", "phases and epochs, as its paper has them"], rows, right=())


def records(folder: str, data_set: str) -> dict[str, dict]:
    """The committed results on a data set, under the names of their models, in the order of the variants."""
    read = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / folder).glob(f"{data_set}-*.json")]
    read.sort(key=lambda record: (list(VARIANTS).index(record["model"]["variant"]), record["model"]["name"]))
    return {record["model"]["name"].removeprefix(f"{data_set}-"): record for record in read}


def digits() -> str:
    """What `python cli.py fit --variant clafs` prints, in its order."""
    found, experiment = records("results", "digits"), config.load(variant="clafs")
    shown = {name: found[name] for name in (experiment.method.name, *experiment.compare)}
    return "```text\n" + text_table(*comparison_table(shown)) + "\n```"


def cifar10() -> str:
    """One row a model, the published numbers beside the measured ones, and the commands."""
    shown = records("results", "cifar10")
    header, rows = comparison_table(shown)
    header = [*header, "published clean / PGD-10"]
    rows = [[f"`{row[0]}`", *row[1:], PUBLISHED.get(row[0], "")] for row in rows]
    return f"{markdown_table(header, rows)}\n\n{_commands(shown)}"


def autoattack() -> str:
    """One row a model: robust accuracy after each member of AutoAttack, and the commands."""
    shown, rows = records("results/autoattack", "cifar10"), []
    for name, record in shown.items():
        (row,) = record["rows"]
        rows.append([f"`{name}`", *map(percent, (row["clean_accuracy"], *row["stages"].values()))])
    header = ["model", "clean", *(f"after {member.label}" for member in AutoAttack().members)]
    return f"{markdown_table(header, rows)}\n\n{_commands(shown)}"


def reference() -> str:
    """One row a network and attack: ours beside torchattacks', on the same weights and images."""
    rows = []
    for path in sorted((ROOT / "results/benchmarks").glob("attack_reference-*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        name = Path(measured["model"]).name.removeprefix("cifar10-")
        ball = f"{measured['norm']} {format_pixels(measured['epsilon'])}"
        for attack, row in measured["summary"].items():
            shares = (percent(row[key]) for key in ("ours", "torchattacks", "agreement"))
            rows.append([f"`{name}`", ball, attack, str(measured["images"]), *shares])
    header = ["network", "ball", "attack", "images", "ours", "torchattacks", "same outcome"]
    return markdown_table(header, rows, right=(3, 4, 5, 6))


def protocols() -> str:
    """One row a model, one column a protocol: robust accuracy, and how far the attack went in pixels."""
    shown, strongest, rows = records("results/protocols", "cifar10"), records("results/autoattack", "cifar10"), []
    for name, record in shown.items():
        cells = [f"{percent(row['robust_accuracy'])} ({255 * row['largest_distance']:.1f})" for row in record["rows"]]
        worst = percent(strongest[name]["rows"][0]["robust_accuracy"]) if name in strongest else ""
        rows.append([f"`{name}`", percent(record["clean_accuracy"]), *cells, worst])
    names = list(dict.fromkeys(row["protocol"] for record in shown.values() for row in record["rows"]))
    header = ["model", "clean", *(f"PGD-10 {name}" for name in names), "AutoAttack pixel"]
    return f"{markdown_table(header, rows)}\n\n{_commands(shown)}"


def verifications() -> str:
    """One row a model and epsilon: what was proved, beside what can be measured, and the commands."""
    shown, rows = [], []
    for path in sorted((ROOT / "results/verifications").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        shown.append(record["command"])
        for row in record["rows"]:
            measured = [percent(row[f"{kind}_accuracy"]) for kind in ("clean", "attacked", "verified")]
            name, epsilon = f"`{record['model']['name']}`", format_pixels(row["epsilon"])
            rows.append([name, epsilon, str(record["images"]), *measured, f"{row['seconds'] / record['images']:.2f}"])
    header = ["model", "epsilon", "images", "clean", "attacked", "verified", "s/image"]
    commands = "\n".join(shown)
    return f"{markdown_table(header, rows)}\n\n```\n{commands}\n```"


def audits() -> str:
    """What `audit` printed of each committed audit: its command, what was raised, and the verdict."""
    blocks = []
    for path in sorted((ROOT / "results/audits").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        raised = [finding for finding in found["findings"] if finding["status"] == "raised"]
        lines = [
            f"$ {found['command']}",
            *(f"{finding['check']}: raised because {finding['because']}." for finding in raised),
        ]
        blocks.append("\n".join([*lines, f"The claim {found['verdict']}: {found['reason']}."]))
    return "```text\n" + "\n\n".join(blocks) + "\n```"


def benchmark(name: str) -> str:
    """One row a contender of a committed benchmark, its facts, and its command."""
    measured = json.loads((ROOT / f"results/benchmarks/{name}.json").read_text(encoding="utf-8"))
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
    """One row an option of CLAF's second stage: its accuracies by seed."""
    measured = json.loads((ROOT / "results/benchmarks/claf_options-digits.json").read_text(encoding="utf-8"))
    rows = [
        [
            name,
            *(" / ".join(percent(run[f"{kind}_accuracy"]) for run in runs) for kind in ("clean", "robust")),
            percent(sum(run["robust_accuracy"] for run in runs) / len(runs)),
        ]
        for name, runs in measured["runs"].items()
    ]
    table = markdown_table(["second stage", "clean, by seed", "robust, by seed", "robust, mean"], rows)
    return f"{table}\n\n```\n{measured['command']}\n```"


def _commands(shown: dict[str, dict]) -> str:
    return "```\n" + "\n".join(record["command"] for record in shown.values()) + "\n```"


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


GENERATED = {
    function.__name__: function
    for function in (variants, digits, cifar10, autoattack, reference, protocols, verifications, audits, claf_options)
} | {
    name: functools.partial(benchmark, file)
    for name, file in (
        ("pgd_resnet18", "attack_throughput-resnet18"),
        ("pgd_strided_cnn", "attack_throughput-strided_cnn"),
        ("evaluation_pgd", "evaluation-pgd"),
        ("evaluation_autoattack", "evaluation-autoattack"),
        ("claf_epoch", "train_step-claf-strided_cnn"),
        ("train_step", "train_step-resnet18"),
    )
}


def filled(text: str) -> str:
    """A document with its generated parts made anew."""

    def fill(match: re.Match) -> str:
        return f"{match[1]}\n{GENERATED[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- generated: (\w+) -->)\n.*?(<!-- end -->)", fill, text, flags=re.DOTALL)


def documents() -> dict[Path, str]:
    """Every document that is generated, whole or in part, as it should be."""
    pages = [ROOT / "README.md", ROOT / "docs/performance.md"]
    return {page: filled(page.read_text(encoding="utf-8")) for page in pages} | {ROOT / "docs/cli.md": cli_page()}


if __name__ == "__main__":
    for path, text in documents().items():
        stale = not path.exists() or path.read_text(encoding="utf-8") != text
        if stale and "--check" in sys.argv:
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run python docs/generate.py")
        if stale:
            path.write_text(text, encoding="utf-8")
