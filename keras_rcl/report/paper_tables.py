"""A paper's tables, published beside measured numbers: as data, as Markdown, as rows of an HTML page.

A function gives the measured numbers of a row, so this module does not depend on where records are stored.
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

    Attributes:
        values: seed -> percent, or the number of images of each status.
        images: the number of images; the smallest number if the seeds differ.
    """

    values: Mapping[int, float | Mapping[str, int]]
    images: int

    @property
    def counted(self) -> dict[str, int] | None:
        """The counts, summed over seeds; None if the values are percentages."""
        found = list(self.values.values())
        if not isinstance(found[0], Mapping):
            return None
        return {status: sum(counts[status] for counts in found) for status in found[0]}


@dataclasses.dataclass(frozen=True)
class Setup:
    """How the networks of one system were trained.

    Attributes:
        network: the encoder.
        epochs: the epochs of all phases.
        data: the data set.
        images: the number of training images; None if it is not known.
        versions: the versions of this package that trained them.
    """

    network: str
    epochs: int
    data: str
    images: int | None
    versions: tuple[str, ...]


Setups = Mapping[str, Setup | None]
"""Config of a row -> how its networks were trained; None or no entry if there is none."""

Lookup = Callable[[str, Measure], Measured | None]
"""(key of a row, measure) -> the measured values, or None."""


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the standard deviation over seeds (divisor n - 1), which is None for a single seed."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def measure_label(measure: Measure) -> str:
    """The header of its column: the protocol of an attack, the radius of a verification, or `here`."""
    if measure.kind in ("robust", "success"):
        images = f", {measure.limit} images" if measure.limit else ""
        return measure.attack.protocol + images
    return f"at {format_pixels(measure.epsilon)}" if measure.kind == "verified" else "here"


def table_data(table: Table, lookup: Lookup, setups: Setups | None = None) -> dict[str, Any]:
    """A table with its measured numbers, as JSON values.

    Args:
        table: the table.
        lookup: the measured values.
        setups: how the networks of the rows were trained.

    Returns:
        `columns`, each with its `title`, whether any number is `published`, and the labels of the `measured` numbers;
        `rows`, each with its `published` values, one per column, its `measured` values, one list per column, and its
        `setup`;
        `differences`, see `_difference`; and `claims`, see `_claim`.
    """
    published = [any(row.published and row.published[i] is not None for row in table.rows) for i in _columns(table)]
    found = {
        row.label: [[lookup(row.key, measure) for measure in column.measures] for column in table.columns]
        for row in table.rows
    }
    whole = max((m.images for cells in found.values() for cell in cells for m in cell if m), default=0)
    rows = [
        {
            "label": row.label,
            "config": row.config,
            "published": list(row.published or [None] * len(table.columns)),
            "measured": [[_as_json(m) for m in cell] for cell in found[row.label]],
            "setup": _setup_values(setups.get(row.config) if setups else None),
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


def _setup_values(setup: Setup | None) -> dict[str, Any] | None:
    return None if setup is None else {**dataclasses.asdict(setup), "versions": list(setup.versions)}


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
    """A row minus another row: the `published` difference, one value per column, and the `measured` difference.

    Measured rows are compared if they have the same number of images, over the seeds that both have. `within_spread`
    is true if the mean difference is smaller than its own standard deviation over seeds.
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
    """Whether a claim holds by the published numbers and by the measured numbers, with one verdict per protocol.

    A verdict is None if no known number decides it. Otherwise it has the `least` difference of the claim's pairs and
    `holds`: true if all differences are positive and none is within its spread, None if that is not known.
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
    refuted = any(difference["mean"] <= 0 and not difference["within_spread"] for difference in known)
    if not known or (len(known) < len(differences) and not refuted):
        return None
    holds = None if any(difference["within_spread"] for difference in known) else True
    return {"holds": False if refuted else holds, "least": min(difference["mean"] for difference in known)}


# As text


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table as texts. `groups` are (title, number of columns) of the header row above `header`."""

    groups: tuple[tuple[str, int], ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Interval = Callable[[int, int], tuple[float, float]]
"""(images that count, all images) -> the limits of their share."""


def table_grid(data: Mapping[str, Any], interval: Interval | None = None) -> Grid:
    """Published and measured numbers side by side: one row per system, accuracies in percent.

    Args:
        data: what `table_data` returned.
        interval: if given, an accuracy of one seed has its interval over the images behind it.
    """
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
                cells.append(_cell(found, min(limit or data["images"], data["images"]), interval))
                seeds = max(seeds, len(found["seeds"]) if found else 0)
        rows.append((*cells, str(seeds) if seeds else ""))
    return Grid((*groups, ("", 1)), (*header, "seeds"), tuple(rows))


def differences_grid(data: Mapping[str, Any]) -> Grid | None:
    """The differences with at least one measured number; None if there are none."""
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
    lines = []
    for difference in rows:
        cells = [
            _signed(difference["published"][i]) if j < 0 else _spread_of(difference["measured"][i][j]) for i, j in kept
        ]
        lines.append((f"{difference['row']} less {difference['against']}", *cells))
    return Grid(tuple(groups), ("", *header), tuple(lines))


def claims_grid(data: Mapping[str, Any]) -> Grid | None:
    """The conclusions, and whether they hold by the published and by the measured numbers; None without conclusions."""
    rows, published = [], any(claim["published"] for claim in data["claims"])
    for claim in data["claims"]:
        verdicts = [_verdict_of(verdict) for verdict in claim["measured"]]
        if len(verdicts) > 1 and any(claim["measured"]):
            verdicts = [
                f"{protocol}: {verdict}" for protocol, verdict in zip(claim["protocols"], verdicts, strict=True)
            ]
        measured = "; ".join(verdicts) if any(claim["measured"]) else NOT_MEASURED
        rows.append((claim["text"], *([_verdict_of(claim["published"])] if published else []), measured))
    header = ("conclusion", *(["published"] if published else []), "measured")
    return Grid((("", len(header)),), header, tuple(rows)) if rows else None


def _verdict_of(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return NOT_MEASURED
    answer = {True: "holds", False: "does not hold", None: "within its spread"}[verdict["holds"]]
    return f"{answer} ({_signed(verdict['least'])})"


def _number(published: Published) -> str:
    return "" if published is None else str(published)


def setups_grid(data: Mapping[str, Any]) -> Grid | None:
    """How the networks of the measured rows were trained; None if that is not known of any row."""
    rows = tuple(
        (
            row["label"],
            row["setup"]["network"],
            str(row["setup"]["epochs"]),
            row["setup"]["data"],
            _images(row["setup"]["images"]),
            ", ".join(row["setup"]["versions"]),
        )
        for row in data["rows"]
        if row.get("setup")
    )
    header = ("trained here", "network", "epochs", "data set", "training images", "keras_rcl")
    return Grid((("", len(header)),), header, rows) if rows else None


def _images(count: int | None) -> str:
    return "all" if count is None else f"{count:,}"


def _cell(found: Mapping[str, Any] | None, expected: int, interval: Interval | None) -> str:
    if found is None:
        return NOT_MEASURED
    if "counts" in found:
        counts = found["counts"]
        return f"{' / '.join(str(counts[status]) for status in VERIFIED)} of {sum(counts.values())}"
    spread = "" if found["spread"] is None else f" ± {found['spread']:.1f}"
    images = "" if found["images"] == expected else f" ({found['images']})"
    bounds = ""
    if interval and found["spread"] is None:
        low, high = interval(round(found["mean"] / 100 * found["images"]), found["images"])
        bounds = f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{found['mean']:.1f}{spread}{bounds}{images}"


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
    """The lines below a table: how its numbers were measured, then its notes."""
    made = [f"Published under: {data['protocol']}."] if data["protocol"] else []
    if setups := [row["setup"] for row in data["rows"] if row.get("setup")]:
        made.append(_trained(setups))
    if data["images"]:
        made.append(f"Measured on {data['images']} test images, or on the number in brackets.")
    return [*([" ".join(made)] if made else []), *data["notes"]]


def _trained(setups: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on how all rows were trained."""
    epochs = sorted({setup["epochs"] for setup in setups})
    images = sorted({setup["images"] or 0 for setup in setups})
    counts = " or ".join(_images(count or None) for count in images)
    values = {key: ", ".join(dict.fromkeys(setup[key] for setup in setups)) for key in ("network", "data")}
    versions = ", ".join(dict.fromkeys(version for setup in setups for version in setup["versions"]))
    span = f"{epochs[0]} to {epochs[-1]} epochs" if len(epochs) > 1 else f"{epochs[0]} epochs"
    return (
        f"Here: {values['network']}, {span}, {counts} training images of {values['data']}, trained by keras_rcl "
        f"{versions}."
    )


DIFFERENCES = (
    "Differences in percentage points; with several seeds their mean and standard deviation (spread) over seeds. A "
    "difference that is smaller than its spread does not count. A single seed has no spread."
)

CLAIMS = (
    "A conclusion holds if every row that it places above another row is above it, by more than the spread of their "
    "difference. The smallest difference, in percentage points, is in brackets."
)


def markdown_report(report: Mapping[str, Any]) -> str:
    """The report that `paper_report` returned, in Markdown, without its figures."""
    parts = [f"## {report['title']}", f"{report['reference']}. Scale: {report['scale']}. {LEGEND}{made_by(report)}"]
    parts.append("\n".join(f"- {note}" for note in report["notes"]))
    for data in report["tables"]:
        parts += [f"### {data['name']}: {data['caption']}", markdown_of(data)]
    if report["missing"]:
        commands = [f"# {missing['row']}\n{missing['command']}" for missing in report["missing"]]
        parts += ["### Not measured yet", "```\n" + "\n".join(commands) + "\n```"]
    return "\n\n".join(part for part in parts if part)


def markdown_of(data: Mapping[str, Any]) -> str:
    """One table of a report in Markdown: values, differences, conclusions and notes."""
    parts = [_markdown_grid(table_grid(data))]
    if differences := differences_grid(data):
        parts += [DIFFERENCES, _markdown_grid(differences)]
    if claims := claims_grid(data):
        parts += [CLAIMS, _markdown_grid(claims)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in captions(data))])


def made_by(report: Mapping[str, Any]) -> str:
    """When and by what a report was made, as a sentence; empty if it does not say so."""
    if not (made := report.get("made")):
        return ""
    commit = f", commit {made['commit'][:12]}" if made["commit"] else ""
    return f" Made on {made['date']} by keras_rcl {made['version']}{commit}."


INTERVALS = (
    "In square brackets: the exact 95 % interval (Clopper and Pearson) of an accuracy of one seed, from its number of "
    "images."
)

LEGEND = f"Accuracies in percent; {NOT_MEASURED} means not measured yet."


def _markdown_grid(grid: Grid) -> str:
    titles = [title for title, width in grid.groups for _ in range(width)]
    header = [": ".join(filter(None, pair)) for pair in zip(titles, grid.header, strict=True)]
    return markdown_table(header, grid.rows)


def paper_report(
    paper: Paper, scale: str, lookup: Lookup, missing: Sequence[Mapping[str, Any]], setups: Setups | None = None
) -> dict[str, Any]:
    """All tables of a paper at a scale, as JSON values; `missing` are rows, and the commands that measure them."""
    return {
        "paper": paper.name,
        "title": paper.title,
        "reference": paper.reference,
        "scale": scale,
        "notes": list(paper.notes),
        "tables": [table_data(table, lookup, setups) for table in paper.tables],
        "missing": list(missing),
    }
