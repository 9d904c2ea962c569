"""An audit as an HTML page: the verdict, each finding with its meaning and remedy, and the pictures."""

from collections.abc import Mapping, Sequence

from keras_rcl.report.page import render


def audit_page(audit: Mapping, pictures: Sequence[tuple[str, str]]) -> str:
    """The HTML page of an audit. It needs no file beside it, except its pictures.

    Args:
        audit: the audit, as its JSON file holds it.
        pictures: (caption, file name beside the page) of each picture.

    Returns:
        The HTML text.
    """
    return render("audit.html", audit=audit, pictures=pictures)
