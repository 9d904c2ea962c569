"""An audit as a page: the verdict, each finding with what it means and what to do, and the pictures."""

from collections.abc import Mapping, Sequence
from html import escape

from keras_rcl.report.page import document, picture

_STYLE = """
.verdict { font-size: 1.4rem; font-weight: 600; }
.falls, .raised { color: #b34700; } .stands, .passed { color: #005a8c; }
.not { color: #666; } p.remedy { margin: .3rem 0 0; }
"""


def audit_page(found: Mapping, pictures: Sequence[tuple[str, str]]) -> str:
    """A self-contained HTML page, but for its pictures.

    Args:
        found: the audit as its JSON file holds it.
        pictures: (caption, file name beside the page).
    """
    claim, model = found["claim"], found["model"]
    rows = "".join(_row(finding) for finding in found["findings"])
    figures = "".join(picture(file, caption) for caption, file in pictures)
    body = f"""<h1>Audit of {escape(model["name"])}</h1>
<p class="verdict {found["verdict"].split()[0]}">The claim {escape(found["verdict"])}</p>
<p>{escape(found["reason"])}.</p>
<p>Claim: {claim["robust_accuracy"]:.1%} robust accuracy, {claim["norm"]}, epsilon {escape(str(claim["epsilon"]))},
pixels in [0, 1].
Images: {found["images"]} of {escape(found["data"]["name"])} ({escape(found["data"]["part"])}).
Model hash <code>{escape(found["model"]["hash"][:16])}</code>. Command: <code>{escape(found["command"])}</code></p>
<table><tr><th>check</th><th>result</th><th>found</th></tr>{rows}</table>
{figures}"""
    return document(f"Audit of {model['name']}", body, _STYLE)


def _row(finding: Mapping) -> str:
    status = finding["status"]
    text = escape(finding["because"])
    if status == "raised":
        text = (
            f"Raised because {text}.<p class='remedy'><b>It means:</b> {escape(finding['meaning'])}</p>"
            f"<p class='remedy'><b>What to do:</b> {escape(finding['remedy'])}</p>"
        )
    return f"<tr><td>{escape(finding['check'])}</td><td class='{status.split()[0]}'>{status}</td><td>{text}</td></tr>"
