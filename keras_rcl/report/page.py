"""HTML pages from the templates in `templates/`; every value is escaped."""

import base64
from functools import cache
from pathlib import Path

import jinja2


@cache
def _environment() -> jinja2.Environment:
    """The templates of this package."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("keras_rcl.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def render(template: str, **values) -> str:
    """The page that a template makes of the values."""
    return _environment().get_template(template).render(**values)


def inline(path: Path) -> str:
    """The `src` of a picture that holds the PNG itself."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
