"""An audit as an HTML page: the verdict, each finding with its meaning and remedy, and the pictures."""

import datetime
from collections.abc import Mapping, Sequence

from keras_rcl.report.page import render
from keras_rcl.report.tables import audit_summary


def audit_page(audit: Mapping, pictures: Sequence[tuple[str, str]]) -> str:
    """The HTML page of an audit. It needs no file beside it, except its pictures.

    Args:
        audit: the audit, as its JSON file holds it.
        pictures: (caption, file name beside the page) of each picture.

    Returns:
        The HTML text.
    """
    versions = ", ".join(f"{name} {version}" for name, version in audit["versions"].items())
    summary = [*audit_summary(audit), ("date", datetime.date.today().isoformat()), ("versions", versions)]
    return render("audit.html", audit=audit, summary=summary, pictures=pictures)
