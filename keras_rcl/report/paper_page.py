"""A paper's report as one page that holds its pictures."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from keras_rcl.report.page import document, inline, picture
from keras_rcl.report.paper_tables import (
    CLAIMS,
    DIFFERENCES,
    LEGEND,
    Grid,
    captions,
    claims_grid,
    differences_grid,
    table_grid,
)

_STYLE = """
body { max-width: 76rem; } p, ul { max-width: 60rem; } img { max-width: min(100%, 50rem); max-height: 34rem; }
.wide { overflow-x: auto; } .wide table { font-variant-numeric: tabular-nums; font-size: .92rem; }
.wide th, .wide td { text-align: right; white-space: nowrap; }
.wide th:first-child, .wide td:first-child { text-align: left; }
.wide.claims td:first-child { white-space: normal; min-width: 20rem; }
thead tr:first-child th { text-align: center; border-left: 2px solid #fff; background: #f3f3f3; }
thead tr { border-bottom: 1px solid #999; } td.published { color: #666; background: #fafafa; }
pre { background: #f6f6f6; padding: .8rem; white-space: pre-wrap; font-size: .85rem; }
"""


def paper_page(report: Mapping[str, Any], pictures: Sequence[tuple[str, Path]], undrawn: Sequence[str] = ()) -> str:
    """A self-contained HTML page of a report as `paper_report` makes it.

    Args:
        report: the tables.
        pictures: (caption, PNG), which the page takes in.
        undrawn: what is not drawn, and why.
    """
    parts = [
        f"<h1>{escape(report['title'])}</h1>",
        f"<p>{escape(report['reference'])}. Scale: <b>{escape(report['scale'])}</b>. {escape(LEGEND)}</p>",
        _notes(report["notes"]),
    ]
    for data in report["tables"]:
        parts += [f"<h2>{escape(data['name'])}: {escape(data['caption'])}</h2>", _table(table_grid(data))]
        if differences := differences_grid(data):
            parts += [f'<p class="note">{escape(DIFFERENCES)}</p>', _table(differences)]
        if claims := claims_grid(data):
            parts += [f'<p class="note">{escape(CLAIMS)}</p>', _table(claims, "wide claims")]
        parts.append(_notes(captions(data)))
    if pictures or undrawn:
        parts += ["<h2>Figures</h2>", *(picture(inline(path), caption) for caption, path in pictures), _notes(undrawn)]
    if report["missing"]:
        told = "\n".join(f"# {missing['row']}\n{missing['command']}" for missing in report["missing"])
        parts += ["<h2>Not measured yet</h2>", f"<pre>{escape(told)}</pre>"]
    return document(report["title"], "\n".join(parts), _STYLE)


def _notes(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="note">{items}</ul>' if items else ""


def _table(grid: Grid, kind: str = "wide") -> str:
    groups = "".join(f'<th colspan="{width}">{escape(title)}</th>' for title, width in grid.groups)
    over = f"<tr>{groups}</tr>" if any(title for title, _ in grid.groups) else ""
    header = "".join(f"<th>{escape(title)}</th>" for title in grid.header)
    rows = "".join("<tr>" + "".join(map(_cell, row, grid.header)) + "</tr>" for row in grid.rows)
    head = f"<thead>{over}<tr>{header}</tr></thead>"
    return f'<div class="{kind}"><table>{head}<tbody>{rows}</tbody></table></div>'


def _cell(text: str, under: str) -> str:
    return f'<td class="published">{escape(text)}</td>' if under == "published" else f"<td>{escape(text)}</td>"
