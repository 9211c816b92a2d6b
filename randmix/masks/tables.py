"""Tables of text cells, rendered for a terminal and for a notebook."""

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        header: column titles.
        body: rows with one cell per column.
        footer: rows of totals, separated from the body.
        text_columns: number of leading columns that hold text and are aligned left; the others hold
            numbers and are aligned right.
    """

    header: Sequence[str]
    body: Sequence[Sequence[str]]
    footer: Sequence[Sequence[str]]
    text_columns: int

    def text(self) -> str:
        """Returns the table as text in aligned columns."""
        rows = [self.header, *self.body, *self.footer]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rule = "  ".join("-" * width for width in widths)
        lines = [self._line(row, widths) for row in rows]
        split = 1 + len(self.body)
        return "\n".join([lines[0], rule, *lines[1:split], rule, *lines[split:]])

    def html(self) -> str:
        """Returns the table as one HTML element with its cells escaped."""
        return (
            "<table>"
            f"<thead>{self._html_row(self.header, 'th')}</thead>"
            f"<tbody>{''.join(self._html_row(row, 'td') for row in self.body)}</tbody>"
            f"<tfoot>{''.join(self._html_row(row, 'th') for row in self.footer)}</tfoot>"
            "</table>"
        )

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        padded = [
            cell.ljust(width) if column < self.text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    def _html_row(self, row: Sequence[str], tag: str) -> str:
        sides = ["left" if column < self.text_columns else "right" for column in range(len(row))]
        cells = [
            f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>'
            for side, cell in zip(sides, row, strict=True)
        ]
        return f"<tr>{''.join(cells)}</tr>"


class Tabular:
    """Base class of objects that display as their `table()`."""

    def table(self) -> Table:
        """The cells to show."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.table().text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table().html()


def percent(share: float) -> str:
    """Formats a share in [0, 1] as a percentage with one decimal.

    >>> percent(0.1234)
    '12.3 %'
    """
    return f"{100 * share:.1f} %"
