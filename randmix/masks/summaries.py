"""Tables of parameters and their labels: one row per leaf, totals per label."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from randmix.masks.errors import MaskError
from randmix.masks.rules import FREEZE
from randmix.masks.tables import Table, Tabular, percent
from randmix.masks.tree import PyTree, flatten, flatten_labels, is_none


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
class Summary(Tabular):
    """The table that `summary` returns.

    Attributes:
        rows: one `Row` per leaf, in the order of the tree.
        totals: number of parameters by label. Parameters that a channel mask excludes count as
            frozen.
        trainable: number of parameters that are trained.
        frozen: number of all other parameters.
        columns: additional columns by title, each path -> number.
    """

    rows: tuple[Row, ...]
    totals: dict[str, int]
    trainable: int
    frozen: int
    columns: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def table(self) -> Table:
        """The cells to show, with a column of learned counts if a leaf is partly learned."""
        total = self.trainable + self.frozen
        partly = any(0 < row.learned < row.count for row in self.rows)

        def numbers(count: int, learned: int) -> list[str]:
            share = percent(count / total if total else 0.0)
            return [f"{count:,}", *([f"{learned:,}"] if partly else []), share]

        body = [
            [
                row.path,
                str(row.shape),
                row.dtype,
                row.role,
                row.label,
                *numbers(row.count, row.learned),
            ]
            + [
                f"{values[row.path]:,}" if row.path in values else ""
                for values in self.columns.values()
            ]
            for row in self.rows
        ]
        by_label = dict.fromkeys(self.totals, 0)
        for row in self.rows:
            by_label[row.label] += row.learned
        none = [""] * len(self.columns)
        footer = [
            ["", "", "", "", label, *numbers(count, by_label[label]), *none]
            for label, count in self.totals.items()
        ]
        sums = [f"{sum(values.values()):,}" for values in self.columns.values()]
        footer.append(["total", "", "", "", "", *numbers(total, self.trainable), *sums])
        learned = ["learned"] if partly else []
        header = [
            "path",
            "shape",
            "dtype",
            "role",
            "label",
            "count",
            *learned,
            "share",
            *self.columns,
        ]
        return Table(header, body, footer, text_columns=5)


def summary(
    params: PyTree,
    labels: PyTree,
    channel_masks: PyTree | None = None,
    frozen: str = FREEZE,
    columns: Mapping[str, Mapping[str, int]] | None = None,
) -> Summary:
    """Table of all parameters with their labels, for a terminal or a notebook.

    Args:
        params: any pytree of arrays or `jax.ShapeDtypeStruct`s; the result of `jax.eval_shape` is
            enough, so nothing needs to be computed first.
        labels: a tree of labels with the same structure, from `labels`.
        channel_masks: a tree with the same structure, from `channel_masks`.
        frozen: the label of the leaves that are not trained.
        columns: additional columns by title, each path -> number, summed in the last line.

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
    flat_masks = _flat_masks(channel_masks, treedef, len(leaves))
    described = [_described(leaf.value) for leaf in leaves]
    total = sum(count for _, _, count in described)
    rows, totals = [], dict.fromkeys(flat_labels, 0)
    for leaf, label, chosen, (shape, dtype, count) in zip(
        leaves, flat_labels, flat_masks, described, strict=True
    ):
        learned = (
            0
            if label == frozen
            else count
            if chosen is None
            else _learned(leaf.path, shape, chosen)
        )
        rows.append(
            Row(
                leaf.path,
                shape,
                dtype,
                leaf.role,
                label,
                count,
                learned,
                count / total if total else 0.0,
            )
        )
        totals[label] += learned if label != frozen else count
        if label != frozen and learned < count:
            totals[frozen] = totals.get(frozen, 0) + count - learned
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


def _flat_masks(channel_masks: PyTree | None, treedef: Any, count: int) -> list[np.ndarray | None]:
    import jax

    if channel_masks is None:
        return [None] * count
    flat, structure = jax.tree_util.tree_flatten(channel_masks, is_leaf=is_none)
    if len(flat) != count or structure.num_nodes != treedef.num_nodes:
        raise MaskError(
            "channel_masks does not have the parameters' structure: use masks.channel_masks"
        )
    return flat


def _learned(path: str, shape: tuple[int, ...], chosen: np.ndarray) -> int:
    try:
        return int(np.broadcast_to(chosen, shape).sum())
    except ValueError:
        raise MaskError(
            f"the channel mask of {path!r} has shape {np.shape(chosen)}, "
            f"which doesn't broadcast to {shape}"
        ) from None
