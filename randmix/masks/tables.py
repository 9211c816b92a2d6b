"""One table of text cells, shown in a terminal and in a notebook."""

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        header: the column titles.
        body: rows of as many cells.
        footer: rows of totals, set apart from the body.
        text_columns: so many columns from the left hold text and are set left, the others numbers.
    """

    header: Sequence[str]
    body: Sequence[Sequence[str]]
    footer: Sequence[Sequence[str]]
    text_columns: int

    def text(self) -> str:
        """The table in aligned columns."""
        rows = [self.header, *self.body, *self.footer]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rule = "  ".join("-" * width for width in widths)
        lines = [self._line(row, widths) for row in rows]
        split = 1 + len(self.body)
        return "\n".join([lines[0], rule, *lines[1:split], rule, *lines[split:]])

    def html(self) -> str:
        """The table as one escaped HTML element."""
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
    """Shows itself as its `table()`."""

    def table(self) -> Table:
        """The cells to show."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.table().text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table().html()


def percent(share: float) -> str:
    """A share as a percentage with one decimal.

    >>> percent(0.1234)
    '12.3 %'
    """
    return f"{100 * share:.1f} %"
