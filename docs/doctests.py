"""Griffe extension for mkdocs.yml: doctests in docstrings become fenced code.

Griffe looks for doctests under an ``Examples:`` heading only;
Markdown would read ``>>>`` as quotes.
"""

import re

import griffe

# From the first `>>>` to the next blank line.
_DOCTEST = re.compile(r"^([ ]*)>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)


class FencedDoctests(griffe.Extension):
    """Puts fences around the doctests of every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Changes the docstring of one object, if it has one."""
        if obj.docstring:
            obj.docstring.value = _DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)
