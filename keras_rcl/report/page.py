"""An HTML page that needs nothing beside it: the style that reports share."""

import base64
from html import escape
from pathlib import Path

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .4rem .6rem; }
tr { border-bottom: 1px solid #ddd; } img { max-width: 100%; } code { background: #f3f3f3; padding: 0 .2rem; }
figure { margin: 1.5rem 0; } figcaption, .note { color: #555; font-size: .9rem; }
"""


def document(title: str, body: str, style: str = "") -> str:
    """A page; `body` is HTML, `style` what it needs besides the shared one."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body>
{body}
</body></html>
"""


def picture(source: str, caption: str) -> str:
    """A figure with its caption; `source` is a file beside the page, or the picture itself, see `inline`."""
    text = escape(caption)
    return f'<figure><img src="{escape(source)}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def inline(path: Path) -> str:
    """A PNG as a source that holds it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
