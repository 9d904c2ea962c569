"""A paper's tables, published beside measured numbers: as data, as Markdown, as rows of an HTML page.

A function gives the measured numbers of a row, so this module does not depend on where records are stored.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_rcl.report.tables import markdown_table, with_spread
from keras_rcl.report.verdicts import SEEDS, Compared, Measured, difference_of, mean_and_spread, verdict
from keras_rcl.vocabulary.paper import Claim, Comparison, Measure, Paper, Published, Table
from keras_rcl.vocabulary.threat import format_pixels

NOT_MEASURED = "—"
VERIFIED = ("timeout", "safe", "safe-incomplete")
"""The counts of Cusin's Table 1, in its order."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """How the networks of one system were trained.

    Attributes:
        network: the encoder.
        epochs: the epochs of all phases.
        data: the data set.
        images: the number of training images; None if it is not known.
        versions: the versions of this package that trained them.
        protocols: the protocols of the attacks and bounds that they were trained against; empty for none.
        seeds: the seeds that were trained.
    """

    network: str
    epochs: int
    data: str
    images: int | None
    versions: tuple[str, ...]
    protocols: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


Setups = Mapping[str, Setup | None]
"""Config of a row -> how its networks were trained; None or no entry if there is none."""

Lookup = Callable[[str, Measure], Measured | None]
"""(key of a row, measure) -> the measured values, or None."""


def measure_label(measure: Measure) -> str:
    """The header of its column: the protocol of an attack, the radius of a verification, or `here`."""
    if measure.kind in ("robust", "success"):
        images = f", {measure.limit} images" if measure.limit else ""
        return measure.attack.protocol + images
    return f"at {format_pixels(measure.epsilon)}" if measure.kind == "verified" else "here"


def table_data(table: Table, lookup: Lookup, setups: Setups | None = None, scale: str = "") -> dict[str, Any]:
    """A table with its measured numbers, as JSON values.

    Args:
        table: the table.
        lookup: the measured values.
        setups: how the networks of the rows were trained.
        scale: the scale of the rows' configurations.

    Returns:
        `columns`, each with its `title`, whether any number is `published`, and the labels of the `measured` numbers;
        `rows`, each with its `published` values, one per column, its `measured` values, one list per column, and its
        `setup`;
        `differences`, see `_compared` and `_difference`; and `claims`, see `_claim`.
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
        "scale": scale,
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
        "differences": [_difference(table, pair, found) for pair in _compared(table)],
        "claims": [_claim(table, claim, found, setups or {}) for claim in table.claims],
        "notes": list(table.notes),
    }


def _setup_values(setup: Setup | None) -> dict[str, Any] | None:
    if setup is None:
        return None
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(setup).items()}


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


def _compared(table: Table) -> list[Comparison]:
    """The comparisons of a table, then the same of the rows that are in the place of both rows of one."""
    standing_in = {row.in_place_of: row.label for row in table.rows if row.in_place_of}
    both = (pair for pair in table.comparisons if {pair.row, pair.against} <= standing_in.keys())
    same = [Comparison(row=standing_in[pair.row], against=standing_in[pair.against]) for pair in both]
    return [*table.comparisons, *same]


def _difference(table: Table, pair: Comparison, found: Mapping[str, list[list[Measured | None]]]) -> dict[str, Any]:
    """A row minus another row: the `published` difference, one value per column, and the `measured` ones.

    See `difference_of`.
    """
    rows = {row.label: row for row in table.rows}
    cells = []
    for mine, theirs in zip(found[pair.row], found[pair.against], strict=True):
        cells.append([difference_of(a, b) for a, b in zip(mine, theirs, strict=True)])
    published = [
        _published_difference(rows[pair.row].published, rows[pair.against].published, i, i) for i in _columns(table)
    ]
    return {"row": pair.row, "against": pair.against, "published": published, "measured": cells}


def _published_difference(mine: Sequence[Published], theirs: Sequence[Published], i: int, k: int) -> float | None:
    """Column i of the first row less column k of the second; None if one is not a number."""
    first, second = mine[i] if mine else None, theirs[k] if theirs else None
    return round(first - second, 6) if isinstance(first, float) and isinstance(second, float) else None


def _claim(
    table: Table, claim: Claim, found: Mapping[str, list[list[Measured | None]]], setups: Setups
) -> dict[str, Any]:
    """A claim by the published and by the measured numbers.

    Returns:
        `text`; `published`, the smallest published difference of the claim's pairs, or None; `protocols`, the labels of
        the measures; and `measured`, one verdict per label, see `verdict`.
    """
    titles, numbers = [column.title for column in table.columns], table.numbers(claim)
    pairs = [(i, titles.index(claim.above_column) if claim.above_column else i) for i in numbers]
    rows_of = {row.label: row for row in table.rows}
    published = [
        _published_difference(rows_of[pair.row].published, rows_of[pair.against].published, i, k)
        for pair in claim.pairs
        for i, k in pairs
    ]
    measures = table.columns[numbers[0]].measures
    judged = []
    for j, measure in enumerate(measures):
        protocol = _protocol_of(measure)
        needed = []
        for pair in claim.pairs:
            rows = [_row_under(table, label, protocol, setups) for label in (pair.row, pair.against)]
            foreign = _foreign(table, rows, protocol, setups)
            mine, theirs = (found[row] for row in rows)
            needed += [Compared(difference_of(mine[i][j], theirs[k][j]), foreign) for i, k in pairs]
        judged.append(verdict(needed))
    return {
        "text": claim.text,
        "published": min((value for value in published if value is not None), default=None),
        "protocols": [measure_label(measure) for measure in measures],
        "measured": judged,
    }


def _protocol_of(measure: Measure) -> str | None:
    """The protocol of its attack; None without an attack."""
    return measure.attack.protocol if measure.kind in ("robust", "success") else None


def _trained_under(table: Table, label: str, setups: Setups) -> tuple[str, ...]:
    (row,) = (row for row in table.rows if row.label == label)
    setup = setups.get(row.config)
    return setup.protocols if setup else ()


def _row_under(table: Table, label: str, protocol: str | None, setups: Setups) -> str:
    """The row that a claim on `label` is judged by: one in its place that was trained under the protocol, or itself."""
    for row in table.rows:
        if row.in_place_of == label and _trained_under(table, row.label, setups) == (protocol,):
            return row.label
    return label


def _foreign(table: Table, rows: Sequence[str], protocol: str | None, setups: Setups) -> dict[str, str]:
    """Label -> protocol of those rows that were trained under another protocol than the one that they are judged under.

    Without an attack, any one protocol will do that is the same for all rows.
    """
    trained = {label: _trained_under(table, label, setups) for label in rows}
    if protocol is None:
        protocols = {protocol for found in trained.values() for protocol in found}
        return {label: ", ".join(found) for label, found in trained.items() if found and len(protocols) > 1}
    return {label: ", ".join(found) for label, found in trained.items() if found and found != (protocol,)}


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
            signed(difference["published"][i]) if j < 0 else difference_cell(difference["measured"][i][j])
            for i, j in kept
        ]
        lines.append((f"{difference['row']} less {difference['against']}", *cells))
    return Grid(tuple(groups), ("", *header), tuple(lines))


def claims_grid(data: Mapping[str, Any]) -> Grid | None:
    """The conclusions, and whether they hold by the published and by the measured numbers; None without conclusions."""
    rows, published = [], any(claim["published"] is not None for claim in data["claims"])
    for claim in data["claims"]:
        verdicts = [verdict_text(found) for found in claim["measured"]]
        if len(verdicts) > 1 and any(claim["measured"]):
            verdicts = [f"{protocol}: {text}" for protocol, text in zip(claim["protocols"], verdicts, strict=True)]
        measured = "; ".join(verdicts) if any(claim["measured"]) else NOT_MEASURED
        rows.append((claim["text"], *([signed(claim["published"]) or NOT_MEASURED] if published else []), measured))
    header = ("conclusion", *(["published"] if published else []), "measured")
    return Grid((("", len(header)),), header, tuple(rows)) if rows else None


def verdict_text(found: Mapping[str, Any] | None) -> str:
    """A verdict in words: `holds (+5.2)`, `does not hold (−9.0)`, `not decided (one seed)`; a dash if not measured."""
    if found is None:
        return NOT_MEASURED
    if found["holds"] is None:
        return f"not decided ({'; '.join(found['because'])})"
    return f"{'holds' if found['holds'] else 'does not hold'} ({signed(found['least'])})"


def _number(published: Published) -> str:
    return "" if published is None else str(published)


def setups_grid(data: Mapping[str, Any]) -> Grid | None:
    """How the networks of the measured rows were trained; None if that is not known of any row."""
    rows = tuple(
        (
            row["label"],
            data["scale"],
            row["setup"]["network"],
            ", ".join(row["setup"]["protocols"]) or "no attack",
            _listed(row["setup"]["seeds"]),
            str(row["setup"]["epochs"]),
            _images(row["setup"]["images"]),
            row["setup"]["data"],
            ", ".join(row["setup"]["versions"]),
        )
        for row in data["rows"]
        if row.get("setup") and any(found for cell in row["measured"] for found in cell)
    )
    header = (
        *("trained here", "scale", "network", "trained under", "seeds"),
        *("epochs", "training images", "data set", "keras_rcl"),
    )
    return Grid((("", len(header)),), header, rows) if rows else None


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _images(count: int | None) -> str:
    return "all" if count is None else f"{count:,}"


def _cell(found: Mapping[str, Any] | None, expected: int, interval: Interval | None) -> str:
    if found is None:
        return NOT_MEASURED
    if "counts" in found:
        counts = found["counts"]
        return f"{' / '.join(str(counts[status]) for status in VERIFIED)} of {sum(counts.values())}"
    images = "" if found["images"] == expected else f" ({found['images']})"
    bounds = ""
    if interval and found["spread"] is None:
        low, high = interval(round(found["mean"] / 100 * found["images"]), found["images"])
        bounds = f" [{100 * low:.1f}, {100 * high:.1f}]"
    return with_spread(f"{found['mean']:.1f}", found["spread"]) + bounds + images


def signed(value: float | None) -> str:
    """A difference with its sign; nothing if there is none."""
    return "" if value is None else f"{value:+.1f}".replace("-", "−")


def difference_cell(found: Mapping[str, Any] | None) -> str:
    """A difference in words: its mean, spread over seeds and interval; a dash if not measured."""
    if found is None:
        return NOT_MEASURED
    low, high = found["interval"]
    return f"{with_spread(signed(found['mean']), found['spread'])} [{signed(low)}, {signed(high)}]"


def captions(data: Mapping[str, Any]) -> list[str]:
    """The lines below a table: how its numbers were measured, then its notes."""
    made = [f"Published under: {data['protocol']}."] if data["protocol"] else []
    if data["images"]:
        made.append(f"Measured on {data['images']} test images, or on the number in brackets.")
    return [*([" ".join(made)] if made else []), *data["notes"]]


DIFFERENCES = (
    "Differences (`A less B`) are in percentage points. With several seeds they are their mean and standard deviation "
    "(spread) over seeds; a single seed has no spread. In square brackets: the 95 % interval of the mean over test "
    "images and seeds, over images only for a single seed. It is paired over images where the outcome of each image is "
    "known."
)

CLAIMS = (
    "A conclusion holds if every row that it places above another row is above it. That is decided by rows trained "
    f"under the protocol that attacks them (or under no attack), by at least {SEEDS} seeds, and by a difference that "
    "is larger than its spread and than its sampling error, half the width of its 95 % interval over images. Two "
    "values below 1 % (floor) or above 99 % (ceiling) decide nothing. The smallest difference, in percentage points, "
    "is in brackets. `published` is the smallest one of the published numbers, of which the number of seeds is not "
    "known."
)


def how_to_read(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differences and conclusions mean, for tables that have them."""
    read = ((differences_grid, DIFFERENCES), (claims_grid, CLAIMS))
    return [note for grid, note in read if any(grid(data) for data in tables)]


def markdown_report(report: Mapping[str, Any], with_guide: bool = True) -> str:
    """The report that `paper_report` returned, in Markdown, without its figures.

    Args:
        report: The report.
        with_guide: Whether `how_to_read` is part of it. A page of several reports has it once.
    """
    parts = [f"## {report['title']}", f"{report['reference']}. Scale: {report['scale']}. {LEGEND}{made_by(report)}"]
    parts.append("\n".join(f"- {note}" for note in report["notes"]))
    parts += how_to_read(report["tables"]) if with_guide else []
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
        parts.append(_markdown_grid(differences))
    if claims := claims_grid(data):
        parts.append(_markdown_grid(claims))
    if setups := setups_grid(data):
        parts.append(_markdown_grid(setups))
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
        "tables": [table_data(table, lookup, setups, scale) for table in paper.tables],
        "missing": list(missing),
    }
