"""What a run changed, leaf by leaf and bit by bit: the proof that frozen is frozen."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from randmix.masks.errors import MaskError
from randmix.masks.tables import Table, Tabular
from randmix.masks.tree import Leaf, PyTree, flatten, flatten_labels


class Change(NamedTuple):
    """One leaf: how many of its elements changed a bit, and by how much.

    `max_abs` is the largest |b - a| and `relative_l2` is |b - a| / |a|, both in float64 over the
    changed elements; infinity for a change from all zeros, NaN where a NaN came or went.
    """

    path: str
    role: str
    label: str
    count: int
    changed: int
    max_abs: float
    relative_l2: float


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """The table that `diff` makes.

    Attributes:
        rows: a `Change` for each leaf, in the tree's order.
    """

    rows: tuple[Change, ...]

    @property
    def moved(self) -> list[str]:
        """Paths of the leaves of which a bit changed."""
        return [row.path for row in self.rows if row.changed]

    @property
    def unchanged(self) -> list[str]:
        """Paths of the leaves that are bit-identical."""
        return [row.path for row in self.rows if not row.changed]

    def table(self) -> Table:
        """The cells to show; a column of labels where they were given."""
        labelled = any(row.label for row in self.rows)
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
        header = ["path", "role", *(["label"] if labelled else []), "bits"]
        sums = f"{len(self.moved)} moved, {len(self.unchanged)} unchanged"
        return Table(
            header=[*header, "elements changed", "max abs", "relative L2"],
            body=body,
            footer=[[sums, *[""] * (len(header) + 2)]],
            text_columns=len(header),
        )


def diff(params_a: PyTree, params_b: PyTree, labels: PyTree | None = None) -> Comparison:
    """Compares two trees of arrays bit by bit; the result shows itself in a terminal and in a notebook.

    A NaN of the same bits is unchanged, and -0.0 is not 0.0.

    Args:
        params_a: before; its structure, shapes and dtypes are those of `params_b`.
        params_b: after.
        labels: of the same structure, from `labels`, to be shown beside.

    Raises:
        MaskError: structure, shape or dtype differ (it names the path), or a leaf has no values.

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
    raise MaskError("the trees differ in structure: they have the same paths in another order")


def _change(a: Leaf, b: Leaf, label: str) -> Change:
    before, after = _values(a), _values(b)
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        raise MaskError(
            f"{a.path!r} is {before.dtype}{list(before.shape)} in the first tree and "
            f"{after.dtype}{list(after.shape)} in the second: compare trees of one model"
        )
    moved = np.any(_bytes(before) != _bytes(after), axis=1)
    changed = int(moved.sum())
    if not changed:
        return Change(a.path, a.role, label, before.size, 0, 0.0, 0.0)
    wide = np.complex128 if np.iscomplexobj(before) else np.float64
    old, new = (x.reshape(-1)[moved].astype(wide) for x in (before, after))
    with np.errstate(all="ignore"):  # infinities and NaNs are results here
        delta = np.abs(new - old)
        norm = np.linalg.norm(before.astype(wide))
        size = np.linalg.norm(delta)
        relative = size / norm if norm else (np.inf if size else 0.0)
    return Change(a.path, a.role, label, before.size, changed, float(delta.max()), float(relative))


def _values(leaf: Leaf) -> np.ndarray:
    """The leaf as an array on the host; random keys by their data."""
    import jax

    value = leaf.value
    dtype = getattr(value, "dtype", None)
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.empty((), object)
    if array.dtype == object:
        raise MaskError(f"{leaf.path!r} has no values to compare: got {type(leaf.value).__name__}")
    return array


def _bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, [number of elements, bytes of one]."""
    return (
        np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, array.itemsize)
    )
