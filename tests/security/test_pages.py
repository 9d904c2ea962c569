"""Pages hold what records say as text: no value of a record becomes markup, an attribute, or a script."""

from html.parser import HTMLParser

import pytest

from keras_rcl.report.audit_page import audit_page
from keras_rcl.report.page import render

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "x onload=alert(1)",
    "javascript:alert(1)",
    "</title><svg onload=alert(1)>",
    "</style><svg><script>alert(1)</script></svg>",
    "<!--",
    "]]><svg/onload=alert(1)>",
    "&lt;script&gt;&#x3c;b&#x3e;",
    "{{ 7 * 7 }}{% for x in y %}",
    "\u202e<b>\0",
]


class Seen(HTMLParser):
    """The tags, attributes and text of a page, as a browser would read them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_comment(self, data):
        self.tags.append("comment")

    def handle_data(self, data):
        self.text += data


def audit(text):
    finding = {"check": text, "status": "raised", "because": text, "meaning": text, "remedy": text}
    return {
        "model": {"name": text, "hash": text},
        "verdict": f"falls{text}",
        "reason": text,
        "claim": {"robust_accuracy": 0.5, "norm": text, "epsilon": text},
        "images": 10,
        "clean_accuracy": 0.9,
        "robust_accuracy": 0.5,
        "interval": [0.2, 0.8],
        "budget": {"confidence": 0.95},
        "measured": [{"attack": text, "robust_accuracy": 0.5, "stages": {text: 0.5}}],
        "versions": {text: text},
        "data": {"name": text, "part": text},
        "command": text,
        "findings": [finding, {**finding, "status": f"passed{text}"}],
    }


def grid(text):
    return {"groups": [(text, 1)], "header": [text], "rows": [[text]]}


def paper(text):
    section = {"title": text, "notes": [text]}
    section |= {name: grid(text) for name in ("grid", "differences", "claims", "setups")}
    missing = [{"row": text, "command": text}]
    report = {"title": text, "reference": text, "scale": text, "notes": [text], "missing": missing}
    parts = {"guide": [text], "sections": [section], "pictures": [(text, text)], "skipped": [text]}
    return render("paper.html", report=report, legend=text, **parts)


PAGES = {"audit": lambda text: audit_page(audit(text), [(text, text)]), "paper": paper}


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_record_adds_no_markup(page, hostile):
    harmless, found = Seen(PAGES[page]("text")), Seen(PAGES[page](hostile))
    assert found.tags == harmless.tags and "script" not in found.tags
    assert [name for name, _ in found.attributes] == [name for name, _ in harmless.attributes]
    assert not any(name.startswith("on") or name == "href" for name, _ in found.attributes)
    assert hostile.replace("\0", "\ufffd") in found.text.replace("\0", "\ufffd")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_lets_the_browser_run_nothing(page):
    policies = [value for _, value in Seen(PAGES[page]("text")).attributes if value and "default-src" in value]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'") and "script-src" not in policies[0]
