"""An extension of griffe, which reads docstrings for the site: sections named `Example:` are rendered as code."""

import re

import griffe


class ExampleSections(griffe.Extension):
    """griffe knows `Examples:` only; the package writes `Example:`, as Keras does."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Rename the section of one object's docstring before it is parsed."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
