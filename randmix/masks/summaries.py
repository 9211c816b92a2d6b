"""Tables of parameters and their labels: one row per leaf, totals per label."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from randmix.masks.errors import MaskError
from randmix.masks.rules import FREEZE
from randmix.masks.tree import PyTree, flatten, flatten_labels, flatten_like

Cells = Sequence[Sequence[str]]


class Table:
    """Base class of results that display as a table in a terminal and in a notebook."""

    def cells(self) -> tuple[Sequence[str], Cells, Cells, int]:
        """Column titles, rows, rows of totals, and the number of leading columns with text.

        Text is aligned left; the other columns hold numbers and are aligned right.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        header, body, footer, text_columns = self.cells()
        rows = [header, *body, *footer]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

        def line(row: Sequence[str]) -> str:
            text = map(str.ljust, row[:text_columns], widths)
            numbers = map(str.rjust, row[text_columns:], widths[text_columns:])
            return "  ".join([*text, *numbers]).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return "\n".join([line(header), rule, *map(line, body), rule, *map(line, footer)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header, body, footer, text_columns = self.cells()

        def line(row: Sequence[str], tag: str) -> str:
            cells = [
                f'<{tag} style="text-align: {"left" if column < text_columns else "right"}">'
                f"{html.escape(cell)}</{tag}>"
                for column, cell in enumerate(row)
            ]
            return f"<tr>{''.join(cells)}</tr>"

        return (
            f"<table><thead>{line(header, 'th')}</thead>"
            f"<tbody>{''.join(line(row, 'td') for row in body)}</tbody>"
            f"<tfoot>{''.join(line(row, 'th') for row in footer)}</tfoot></table>"
        )


class Row(NamedTuple):
    """One leaf of a summary.

    Attributes:
        path: slash-joined path of the leaf.
        shape: shape of the leaf.
        dtype: name of its dtype.
        role: first component of the path.
        label: the leaf's label.
        count: number of parameters.
        learned: number of parameters that are trained.
        share: `count` as a share of all parameters, in [0, 1].
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    label: str
    count: int
    learned: int
    share: float


@dataclass(frozen=True, repr=False)
class Summary(Table):
    """The table that `summary` returns.

    Attributes:
        rows: one `Row` per leaf, in the order of the tree.
        totals: number of parameters by label. Parameters that a channel mask excludes count as
            frozen.
        trainable: number of parameters that are trained.
        frozen: number of all other parameters.
        columns: additional columns by title, each path -> number. A path that isn't a parameter's
            has a row of its own, after the parameters.
    """

    rows: tuple[Row, ...]
    totals: dict[str, int]
    trainable: int
    frozen: int
    columns: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def cells(self) -> tuple[Sequence[str], Cells, Cells, int]:
        """The cells to show, with a column of learned counts if a leaf is partly learned."""
        columns = self.columns.values()
        total = self.trainable + self.frozen
        partly = any(0 < row.learned < row.count for row in self.rows)

        def numbers(count: int, learned: int) -> list[str]:
            share = count / total if total else 0.0
            return [f"{count:,}", *([f"{learned:,}"] if partly else []), f"{100 * share:.1f} %"]

        learned = ["learned"] if partly else []
        header = ["path", "shape", "dtype", "role", "label", "count", *learned, "share"]
        body = [
            [row.path, str(row.shape), row.dtype, row.role, row.label]
            + numbers(row.count, row.learned)
            + [f"{column[row.path]:,}" if row.path in column else "" for column in columns]
            for row in self.rows
        ]
        paths = {row.path for row in self.rows}
        others = dict.fromkeys(path for column in columns for path in column if path not in paths)
        empty = [""] * (len(header) - 1)
        body += [
            [path, *empty, *(f"{column[path]:,}" if path in column else "" for column in columns)]
            for path in others
        ]
        footer = [
            ["", "", "", "", label]
            + numbers(count, sum(row.learned for row in self.rows if row.label == label))
            + [""] * len(columns)
            for label, count in self.totals.items()
        ]
        sums = [f"{sum(column.values()):,}" for column in columns]
        footer.append(["total", "", "", "", "", *numbers(total, self.trainable), *sums])
        return [*header, *self.columns], body, footer, 5


def summary(
    params: PyTree,
    labels: PyTree,
    channel_masks: PyTree | None = None,
    columns: Mapping[str, Mapping[str, int]] | None = None,
) -> Summary:
    """Table of all parameters with their labels, for a terminal or a notebook.

    Args:
        params: any pytree of arrays or `jax.ShapeDtypeStruct`s; the result of `jax.eval_shape` is
            enough, so nothing needs to be computed first.
        labels: a tree of labels with the same structure, from `labels`.
        channel_masks: a tree with the same structure, from `channel_masks`.
        columns: additional columns by title, each path -> number, summed in the last line; see
            `Summary`.

    Raises:
        MaskError: the structures differ, or a channel mask doesn't broadcast to its leaf.

    >>> import numpy as np
    >>> kernel, bias = np.zeros((3, 3, 4)), np.zeros(4, np.float32)
    >>> params = {"spatial": {"kernel": kernel}, "head": {"bias": bias}}
    >>> summary(params, {"spatial": {"kernel": "freeze"}, "head": {"bias": "train"}})
    path            shape      dtype    role     label   count    share
    --------------  ---------  -------  -------  ------  -----  -------
    head/bias       (4,)       float32  head     train       4   10.0 %
    spatial/kernel  (3, 3, 4)  float64  spatial  freeze     36   90.0 %
    --------------  ---------  -------  -------  ------  -----  -------
                                                 train       4   10.0 %
                                                 freeze     36   90.0 %
    total                                                   40  100.0 %
    """
    leaves, treedef = flatten(params)
    flat_labels = flatten_labels(treedef, labels)
    flat_masks = (
        [None] * len(leaves)
        if channel_masks is None
        else flatten_like(treedef, channel_masks, "channel_masks")
    )
    described = [_described(leaf.value) for leaf in leaves]
    total = sum(count for _, _, count in described)
    rows, totals = [], dict.fromkeys(flat_labels, 0)
    for leaf, label, chosen, (shape, dtype, count) in zip(
        leaves, flat_labels, flat_masks, described, strict=True
    ):
        if label == FREEZE:
            learned = 0
            totals[FREEZE] += count
        else:
            learned = count if chosen is None else _learned(leaf.path, shape, chosen)
            totals[label] += learned
            if learned < count:
                totals[FREEZE] = totals.get(FREEZE, 0) + count - learned
        share = count / total if total else 0.0
        rows.append(Row(leaf.path, shape, dtype, leaf.role, label, count, learned, share))
    trainable = sum(row.learned for row in rows)
    return Summary(tuple(rows), totals, trainable, total - trainable, columns or {})


def _described(value: Any) -> tuple[tuple[int, ...], str, int]:
    """Shape, dtype and parameter count; a leaf that is neither array nor number counts zero."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return (
            tuple(value.shape),
            getattr(value.dtype, "name", str(value.dtype)),
            math.prod(value.shape),
        )
    return (), type(value).__name__, int(isinstance(value, int | float | complex))


def _learned(path: str, shape: tuple[int, ...], chosen: np.ndarray) -> int:
    try:
        return int(np.broadcast_to(chosen, shape).sum())
    except ValueError:
        raise MaskError(
            f"the channel mask of {path!r} has shape {np.shape(chosen)}, "
            f"which doesn't broadcast to {shape}"
        ) from None
