"""Bitwise comparison of two parameter trees, to verify that frozen parameters did not change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from randmix.masks.errors import MaskError
from randmix.masks.summaries import Cells, Table
from randmix.masks.tree import Leaf, PyTree, flatten, flatten_labels


class Change(NamedTuple):
    """The difference between two versions of one leaf, a and b.

    Attributes:
        path: slash-joined path of the leaf.
        role: first component of the path.
        label: the leaf's label, or "" if no labels were given.
        count: number of elements.
        changed: number of elements that differ in at least one bit.
        max_abs: the largest |b - a|, in float64.
        relative_l2: |b - a| / |a| in L2 norms, in float64; infinity if a is all zeros. Both
            numbers are NaN if a NaN appeared or disappeared.
    """

    path: str
    role: str
    label: str
    count: int
    changed: int
    max_abs: float
    relative_l2: float


@dataclass(frozen=True, repr=False)
class Comparison(Table):
    """The table that `diff` returns.

    Attributes:
        rows: one `Change` per leaf, in the order of the tree.
    """

    rows: tuple[Change, ...]

    @property
    def moved(self) -> list[str]:
        """Paths of the leaves in which at least one bit changed."""
        return [row.path for row in self.rows if row.changed]

    @property
    def unchanged(self) -> list[str]:
        """Paths of the leaves that are bit-identical."""
        return [row.path for row in self.rows if not row.changed]

    def cells(self) -> tuple[Sequence[str], Cells, Cells, int]:
        """The cells to show, with a column of labels if labels were given."""
        labelled = any(row.label for row in self.rows)
        header = ["path", "role", *(["label"] if labelled else []), "bits"]
        body = [
            [
                row.path,
                row.role,
                *([row.label] if labelled else []),
                "moved" if row.changed else "unchanged",
                f"{row.changed:,} of {row.count:,}",
                f"{row.max_abs:.3g}",
                f"{row.relative_l2:.3g}",
            ]
            for row in self.rows
        ]
        titles = [*header, "elements changed", "max abs", "relative L2"]
        sums = f"{len(self.moved)} moved, {len(self.unchanged)} unchanged"
        return titles, body, [[sums, *[""] * (len(titles) - 1)]], len(header)


def diff(params_a: PyTree, params_b: PyTree, labels: PyTree | None = None) -> Comparison:
    """Compares two trees of arrays bit by bit.

    A NaN with the same bits counts as unchanged; -0.0 and 0.0 differ. The result prints as a table
    in a terminal and in a notebook.

    Args:
        params_a: the tree before.
        params_b: the tree after, with the structure, shapes and dtypes of `params_a`.
        labels: a tree of labels with the same structure, from `labels`, to show in the table.

    Raises:
        MaskError: structures, shapes or dtypes differ (the message names the path), or a leaf has
            no values.

    >>> import numpy as np
    >>> before = {"channel": {"kernel": np.array([3.0, 4.0])}, "spatial": {"kernel": np.ones(2)}}
    >>> after = {"channel": {"kernel": np.array([3.0, 4.5])}, "spatial": {"kernel": np.ones(2)}}
    >>> diff(before, after)
    path                  role     bits       elements changed  max abs  relative L2
    --------------------  -------  ---------  ----------------  -------  -----------
    channel/kernel        channel  moved                1 of 2      0.5          0.1
    spatial/kernel        spatial  unchanged            0 of 2        0            0
    --------------------  -------  ---------  ----------------  -------  -----------
    1 moved, 1 unchanged
    >>> diff(before, after).moved
    ['channel/kernel']
    """
    leaves_a, treedef = flatten(params_a)
    leaves_b, _ = flatten(params_b)
    _check_paths(leaves_a, leaves_b)
    flat_labels = [""] * len(leaves_a) if labels is None else flatten_labels(treedef, labels)
    return Comparison(tuple(map(_change, leaves_a, leaves_b, flat_labels)))


def _check_paths(leaves_a: list[Leaf], leaves_b: list[Leaf]) -> None:
    paths_a, paths_b = ([leaf.path for leaf in leaves] for leaves in (leaves_a, leaves_b))
    if paths_a == paths_b:
        return
    for side, own, other in (("first", paths_a, paths_b), ("second", paths_b, paths_a)):
        for path in sorted(set(own) - set(other)):
            raise MaskError(f"the trees differ in structure: only the {side} has {path!r}")
    raise MaskError("the trees differ in structure: they have the same paths in a different order")


def _change(a: Leaf, b: Leaf, label: str) -> Change:
    before, after = _values(a), _values(b)
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        raise MaskError(
            f"{a.path!r} is {before.dtype}{list(before.shape)} in the first tree and "
            f"{after.dtype}{list(after.shape)} in the second: compare trees of the same model"
        )
    moved = np.any(_bytes(before) != _bytes(after), axis=1)
    changed = int(moved.sum())
    if not changed:
        return Change(a.path, a.role, label, before.size, 0, 0.0, 0.0)
    wide = np.complex128 if np.iscomplexobj(before) else np.float64
    old, new = (x.reshape(-1)[moved].astype(wide) for x in (before, after))
    with np.errstate(all="ignore"):  # infinities and NaNs are valid results
        delta = np.abs(new - old)
        norm = np.linalg.norm(before.astype(wide))
        size = np.linalg.norm(delta)
        relative = size / norm if norm else (np.inf if size else 0.0)
    return Change(a.path, a.role, label, before.size, changed, float(delta.max()), float(relative))


def _values(leaf: Leaf) -> np.ndarray:
    """The leaf as a host array; a random key is represented by its data."""
    value = leaf.value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.empty((), object)
    if array.dtype == object:
        raise MaskError(f"{leaf.path!r} has no values to compare: got {type(leaf.value).__name__}")
    return array


def _bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array: [elements, bytes per element] uint8."""
    return (
        np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, array.itemsize)
    )
