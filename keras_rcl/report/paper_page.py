"""A paper's report as an HTML page that holds its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_rcl.evaluation.intervals import interval
from keras_rcl.report.page import inline, render
from keras_rcl.report.paper_tables import (
    INTERVALS,
    LEGEND,
    captions,
    claims_grid,
    differences_grid,
    how_to_read,
    made_by,
    setups_grid,
    table_grid,
)


def paper_page(report: Mapping[str, Any], pictures: Sequence[tuple[str, Path]], skipped: Sequence[str] = ()) -> str:
    """A self-contained HTML page of a report.

    Args:
        report: the report that `paper_report` returned.
        pictures: (caption, PNG) of each figure; the page holds the pictures.
        skipped: one line per figure that was not drawn, with the reason.

    Returns:
        The HTML text.
    """
    sections = [
        {
            "title": f"{data['name']}: {data['caption']}",
            "grid": table_grid(data, interval),
            "setups": setups_grid(data),
            "differences": differences_grid(data),
            "claims": claims_grid(data),
            "notes": captions(data),
        }
        for data in report["tables"]
    ]
    inlined = [(caption, inline(path)) for caption, path in pictures]
    legend = f"{LEGEND}{made_by(report)} {INTERVALS}"
    parts = {"sections": sections, "guide": how_to_read(report["tables"])}
    return render("paper.html", report=report, legend=legend, pictures=inlined, skipped=skipped, **parts)
