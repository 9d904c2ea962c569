"""Rows as text: for a terminal and for Markdown."""

from collections.abc import Mapping, Sequence

from keras_rcl.vocabulary.threat import format_pixels

ATTACK_COLUMNS = {
    "attack": "attack",
    "clean": "clean_accuracy",
    "adversarial": "adversarial_accuracy",
    "ASR": "attack_success_rate",
    "AFR": "attack_failure_rate",
    "robust": "robust_accuracy",
}


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] | None = None) -> str:
    """Aligned columns; `right` are those aligned to the right, all but the first where not given."""
    columns = range(len(header))
    right = columns[1:] if right is None else right
    widths = [max(len(line[column]) for line in [header, *rows]) for column in columns]

    def line(cells):
        aligned = (cells[c].rjust(widths[c]) if c in right else cells[c].ljust(widths[c]) for c in columns)
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] | None = None) -> str:
    """A Markdown table; `right` are the columns aligned to the right, all but the first where not given."""
    columns = range(len(header))
    right = columns[1:] if right is None else right
    rule = ["---:" if column in right else "---" for column in columns]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def attack_table(record: Mapping) -> str:
    """What `attack` prints of a record: one row an attack and epsilon, percentages."""
    rows = []
    for row in record["rows"]:
        name = row["attack"] if row["attack"] != "worst case" else _worst_case(row)
        rows.append([name, *(percent(row[key]) for key in list(ATTACK_COLUMNS.values())[1:])])
    return text_table(list(ATTACK_COLUMNS), rows)


def comparison_table(records: Mapping[str, Mapping]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row a variant, its clean accuracy and its robust accuracy under each attack, in percent."""
    attacks = list(dict.fromkeys(_column(row) for record in records.values() for row in record["rows"]))
    rows = []
    for name, record in records.items():
        robust = {_column(row): percent(row["robust_accuracy"]) for row in record["rows"]}
        rows.append([name, percent(record["clean_accuracy"]), *(robust.get(attack, "") for attack in attacks)])
    return ["variant", "clean", *attacks], rows


def _worst_case(row: Mapping) -> str:
    protocol = row.get("protocol", "pixel")
    return f"worst case {row['norm']} {format_pixels(row['epsilon'])}" + (f" {protocol}" if protocol != "pixel" else "")


def _column(row: Mapping) -> str:
    return _worst_case(row) if row["attack"] == "worst case" else row["attack"]
