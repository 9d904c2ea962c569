"""A paper's tables with what was measured beside them: as data, as Markdown, as rows of a page.

What is measured of a row comes from a function, so that nothing here knows where records lie.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_rcl.report.tables import markdown_table
from keras_rcl.vocabulary.paper import Claim, Column, Comparison, Measure, Paper, Published, Table
from keras_rcl.vocabulary.threat import format_pixels

NOT_MEASURED = "—"
VERIFIED = ("timeout", "safe", "safe-incomplete")
"""The counts of Cusin's Table 1, in its order."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measure of one system, over seeds.

    Fields:
        values: seed -> percent, or the counts of images by status.
        images: of how many images; the fewest, where the seeds differ.
    """

    values: Mapping[int, float | Mapping[str, int]]
    images: int

    @property
    def counted(self) -> dict[str, int] | None:
        """The counts of all seeds together, where it is of counts."""
        found = list(self.values.values())
        if not isinstance(found[0], Mapping):
            return None
        return {status: sum(counts[status] for counts in found) for status in found[0]}


Lookup = Callable[[str, Measure], Measured | None]
"""(config of a row, measure) -> what was measured."""


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the standard deviation over seeds (n - 1 below the fraction); none of one seed."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def measure_label(measure: Measure) -> str:
    """What stands above its column: the protocol of an attack, the radius of a verification, or `here`."""
    if measure.kind == "robust":
        images = f", {measure.limit} images" if measure.limit else ""
        return measure.attack.protocol + images
    return f"at {format_pixels(measure.epsilon)}" if measure.kind == "verified" else "here"


def table_data(table: Table, lookup: Lookup) -> dict[str, Any]:
    """A table with what is measured, as JSON values.

    Returns:
        `columns`, each with its `title`, whether anything is `published`, and the labels of what was `measured`;
        `rows`, each with its `published` values, a value a column, and its `measured` ones, a list a column;
        `differences`, see `_difference`; and `claims`, see `_claim`.
    """
    published = [any(row.published and row.published[i] is not None for row in table.rows) for i in _columns(table)]
    found = {
        row.label: [[lookup(row.config, measure) for measure in column.measures] for column in table.columns]
        for row in table.rows
    }
    whole = max((m.images for cells in found.values() for cell in cells for m in cell if m), default=0)
    rows = [
        {
            "label": row.label,
            "config": row.config,
            "published": list(row.published or [None] * len(table.columns)),
            "measured": [[_as_json(m) for m in cell] for cell in found[row.label]],
        }
        for row in table.rows
    ]
    return {
        "name": table.name,
        "caption": table.caption,
        "protocol": table.protocol,
        "images": whole,
        "columns": [
            {
                "title": column.title,
                "published": published[i],
                "measured": [measure_label(measure) for measure in column.measures],
                "limits": [getattr(measure, "limit", None) for measure in column.measures],
            }
            for i, column in enumerate(table.columns)
        ],
        "rows": rows,
        "differences": [_difference(table, pair, found) for pair in table.comparisons],
        "claims": [_claim(table, claim, found) for claim in table.claims],
        "notes": list(table.notes),
    }


def _columns(table: Table) -> range:
    return range(len(table.columns))


def _as_json(measured: Measured | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    shared = {"seeds": sorted(measured.values), "images": measured.images}
    if (counts := measured.counted) is not None:
        return {"counts": counts, **shared}
    values = [measured.values[seed] for seed in sorted(measured.values)]
    mean, spread = mean_and_spread(values)
    return {"mean": mean, "spread": spread, "values": values, **shared}


def _difference(table: Table, pair: Comparison, found: Mapping[str, list[list[Measured | None]]]) -> dict[str, Any]:
    """A row less another: published, a value a column; and measured, where both are on as many images, over the seeds
    that both have.

    `within_spread` says that the mean difference is smaller than its own standard deviation over seeds.
    """
    rows = {row.label: row for row in table.rows}
    cells = []
    for mine, theirs in zip(found[pair.row], found[pair.against], strict=True):
        cells.append([_less(a, b) for a, b in zip(mine, theirs, strict=True)])
    published = [
        _published_difference(table.columns[i], rows[pair.row].published, rows[pair.against].published, i)
        for i in _columns(table)
    ]
    return {"row": pair.row, "against": pair.against, "published": published, "measured": cells}


def _published_difference(
    column: Column, mine: Sequence[Published], theirs: Sequence[Published], index: int
) -> float | None:
    if not mine or not theirs or not isinstance(mine[index], float) or not isinstance(theirs[index], float):
        return None
    return round(mine[index] - theirs[index], 6)


def _less(mine: Measured | None, theirs: Measured | None) -> dict[str, Any] | None:
    if mine is None or theirs is None or mine.counted is not None or mine.images != theirs.images:
        return None
    seeds = sorted(mine.values.keys() & theirs.values.keys())
    if not seeds:
        return None
    mean, spread = mean_and_spread([mine.values[seed] - theirs.values[seed] for seed in seeds])
    return {"mean": mean, "spread": spread, "seeds": seeds, "within_spread": spread is not None and abs(mean) < spread}


def _claim(table: Table, claim: Claim, found: Mapping[str, list[list[Measured | None]]]) -> dict[str, Any]:
    """What the published numbers say of a claim, and what the measured ones do, a verdict a protocol.

    A verdict is none where nothing is known that decides it. Else it has the `least` difference of the claim's pairs,
    and whether it `holds`: where all are positive and none is within its spread; where that is not known, none.
    """
    differences = [_difference(table, pair, found) for pair in claim.pairs]
    numbers = table.numbers(claim)
    published = [d["published"][i] for d in differences for i in numbers if d["published"][i] is not None]
    labels = [measure_label(measure) for measure in table.columns[numbers[0]].measures]
    return {
        "text": claim.text,
        "published": _verdict([{"mean": value, "within_spread": False} for value in published]),
        "protocols": labels,
        "measured": [_verdict([d["measured"][i][j] for d in differences for i in numbers]) for j in range(len(labels))],
    }


def _verdict(differences: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    known = [difference for difference in differences if difference]
    falls = any(difference["mean"] <= 0 and not difference["within_spread"] for difference in known)
    if not known or (len(known) < len(differences) and not falls):
        return None
    holds = None if any(difference["within_spread"] for difference in known) else True
    return {"holds": False if falls else holds, "least": min(difference["mean"] for difference in known)}


# As text


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table as texts: groups of columns, (title, how many), over the header."""

    groups: tuple[tuple[str, int], ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table_grid(data: Mapping[str, Any]) -> Grid:
    """Published and measured side by side: a row a system, accuracies in percent."""
    groups, header = [("", 1)], [""]
    for column in data["columns"]:
        under = [*(["published"] if column["published"] else []), *column["measured"]]
        if under:
            groups.append((column["title"], len(under)))
            header += under
    rows = []
    for row in data["rows"]:
        cells, seeds = [row["label"]], 0
        for column, published, measured in zip(data["columns"], row["published"], row["measured"], strict=True):
            cells += [_number(published)] if column["published"] else []
            for found, limit in zip(measured, column["limits"], strict=True):
                cells.append(_cell(found, min(limit or data["images"], data["images"])))
                seeds = max(seeds, len(found["seeds"]) if found else 0)
        rows.append((*cells, str(seeds) if seeds else ""))
    return Grid((*groups, ("", 1)), (*header, "seeds"), tuple(rows))


def differences_grid(data: Mapping[str, Any]) -> Grid | None:
    """The differences of which at least one is published or measured; none where there are none."""
    kept = [
        (i, j)
        for i, column in enumerate(data["columns"])
        for j in (*([-1] if column["published"] else []), *range(len(column["measured"])))
        if any((d["published"][i] if j < 0 else d["measured"][i][j]) is not None for d in data["differences"])
    ]
    rows = [d for d in data["differences"] if any(cell for cells in d["measured"] for cell in cells)]
    if not rows:
        return None
    groups: list[tuple[str, int]] = [("", 1)]
    for i in dict.fromkeys(i for i, _ in kept):
        groups.append((data["columns"][i]["title"], sum(k == i for k, _ in kept)))
    header = ["published" if j < 0 else data["columns"][i]["measured"][j] for i, j in kept]
    told = []
    for difference in rows:
        cells = [
            _signed(difference["published"][i]) if j < 0 else _spread_of(difference["measured"][i][j]) for i, j in kept
        ]
        told.append((f"{difference['row']} less {difference['against']}", *cells))
    return Grid(tuple(groups), ("", *header), tuple(told))


def claims_grid(data: Mapping[str, Any]) -> Grid | None:
    """The conclusions, and whether the published numbers and ours say so; none where nothing is concluded."""
    rows, published = [], any(claim["published"] for claim in data["claims"])
    for claim in data["claims"]:
        told = [_verdict_of(verdict) for verdict in claim["measured"]]
        if len(told) > 1 and any(claim["measured"]):
            told = [f"{protocol}: {verdict}" for protocol, verdict in zip(claim["protocols"], told, strict=True)]
        measured = "; ".join(told) if any(claim["measured"]) else NOT_MEASURED
        rows.append((claim["text"], *([_verdict_of(claim["published"])] if published else []), measured))
    header = ("conclusion", *(["published"] if published else []), "measured")
    return Grid((("", len(header)),), header, tuple(rows)) if rows else None


def _verdict_of(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return NOT_MEASURED
    told = {True: "holds", False: "does not hold", None: "within its spread"}[verdict["holds"]]
    return f"{told} ({_signed(verdict['least'])})"


def _number(published: Published) -> str:
    return "" if published is None else str(published)


def _cell(found: Mapping[str, Any] | None, expected: int) -> str:
    if found is None:
        return NOT_MEASURED
    if "counts" in found:
        counts = found["counts"]
        return f"{' / '.join(str(counts[status]) for status in VERIFIED)} of {sum(counts.values())}"
    spread = "" if found["spread"] is None else f" ± {found['spread']:.1f}"
    images = "" if found["images"] == expected else f" ({found['images']})"
    return f"{found['mean']:.1f}{spread}{images}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}".replace("-", "−")


def _spread_of(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return NOT_MEASURED
    if found["spread"] is None:
        return _signed(found["mean"])
    within = ", within its spread" if found["within_spread"] else ""
    return f"{_signed(found['mean'])} ± {found['spread']:.1f}{within}"


def captions(data: Mapping[str, Any]) -> list[str]:
    """What is to be read with a table: how its numbers were made, then its notes."""
    told = [f"Published under: {data['protocol']}."] if data["protocol"] else []
    if data["images"]:
        told.append(f"Measured on {data['images']} test images, or on the number in brackets.")
    return [*([" ".join(told)] if told else []), *data["notes"]]


DIFFERENCES = (
    "Differences in percentage points; with several seeds their mean and standard deviation (spread) over seeds. A "
    "difference that is smaller than its spread does not count. A single seed has no spread."
)

CLAIMS = (
    "A conclusion holds if every row that it places above another row is above it, by more than the spread of their "
    "difference. The smallest difference, in percentage points, is in brackets."
)


def markdown_report(report: Mapping[str, Any]) -> str:
    """A report as `paper_report` makes it, in Markdown, without its figures."""
    parts = [f"## {report['title']}", f"{report['reference']}. Scale: {report['scale']}. {LEGEND}"]
    parts.append("\n".join(f"- {note}" for note in report["notes"]))
    for data in report["tables"]:
        parts += [f"### {data['name']}: {data['caption']}", markdown_of(data)]
    if report["missing"]:
        told = [f"# {missing['row']}\n{missing['command']}" for missing in report["missing"]]
        parts += ["### Not measured yet", "```\n" + "\n".join(told) + "\n```"]
    return "\n\n".join(part for part in parts if part)


def markdown_of(data: Mapping[str, Any]) -> str:
    """One of its tables in Markdown: values, differences, conclusions and notes."""
    parts = [_markdown_grid(table_grid(data))]
    if differences := differences_grid(data):
        parts += [DIFFERENCES, _markdown_grid(differences)]
    if claims := claims_grid(data):
        parts += [CLAIMS, _markdown_grid(claims)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in captions(data))])


LEGEND = f"Accuracies in percent; {NOT_MEASURED} means not measured yet."


def _markdown_grid(grid: Grid) -> str:
    titles = [title for title, width in grid.groups for _ in range(width)]
    header = [": ".join(filter(None, pair)) for pair in zip(titles, grid.header, strict=True)]
    return markdown_table(header, grid.rows)


def paper_report(paper: Paper, scale: str, lookup: Lookup, missing: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All tables of a paper at a scale, as JSON values; `missing` are rows, and the commands that measure them."""
    return {
        "paper": paper.name,
        "title": paper.title,
        "reference": paper.reference,
        "scale": scale,
        "notes": list(paper.notes),
        "tables": [table_data(table, lookup) for table in paper.tables],
        "missing": list(missing),
    }
