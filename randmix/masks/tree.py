"""Flatten any pytree of parameters into leaves with readable paths."""

import functools
from typing import Any, NamedTuple

import jax
import optax

from randmix.masks.depths import depths
from randmix.masks.errors import MaskError, shown

PyTree = Any

ABSENT = object()
"""The value of a leaf that another half of the tree holds."""


class Leaf(NamedTuple):
    """A leaf with its slash-joined path, such as `spatial/block_03/depthwise/kernel`.

    Its depth, the number of its block or None, depends on the other leaves of the tree.
    """

    path: str
    value: Any
    depth: int | None

    @property
    def role(self) -> str:
        """The first component of the path."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]


def flatten(tree: PyTree, *, nones: bool = False) -> tuple[list[Leaf], Any]:
    """Flattens a tree into its leaves, in JAX's order, and its treedef.

    The components of a path are dict keys, attribute names and sequence indices. A box that Flax
    wraps around an array (an `nnx.Variable`, a Linen `Partitioned`) adds no component.

    A half of a tree, from `partition` or from optax, has a None or a `MaskedNode` where the other
    half has a leaf. Blocks are counted over both, so that a leaf has the same depth in its half.

    Args:
        tree: any pytree.
        nones: whether a None counts as a leaf, with the value `ABSENT`.

    >>> [leaf.path for leaf in flatten({"layers": [{"kernel": 1.0}, {"kernel": 2.0}]})[0]]
    ['layers/0/kernel', 'layers/1/kernel']
    """
    paths, values = [], []
    for keys, node in jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: _is_box(node) or _is_absent(node)
    )[0]:
        inside = [((), node)]
        if _is_box(node):
            inside = jax.tree_util.tree_flatten_with_path(node, is_leaf=_is_absent)[0]
        for more, value in inside:
            visible = keys if len(more) == 1 else keys + more  # without the box's own `value`
            paths.append("/".join(map(_component, visible)))
            values.append(value)
    leaves = [
        leaf._replace(value=ABSENT) if leaf.value is None else leaf
        for leaf in map(Leaf, paths, values, depths(paths))
        if not _is_absent(leaf.value) or (nones and leaf.value is None)
    ]
    return leaves, jax.tree.structure(tree, is_leaf=is_none if nones else None)


def flatten_like(treedef: Any, tree: PyTree, what: str) -> list[Any]:
    """Leaves of a tree with the structure of `treedef`; else raises a `MaskError` naming `what`."""
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError) as error:
        reason = shown(str(error).split("({")[0])[1:-1]  # without all of a FrozenDict
        raise MaskError(f"{what} does not have the parameters' structure: {reason}") from None


def flatten_labels(treedef: Any, labels: PyTree) -> list[str]:
    """Leaves of a label tree with the structure of `treedef`; raises unless each is a str."""
    flat = flatten_like(treedef, labels, "labels")
    for label in flat:
        if not isinstance(label, str):
            raise MaskError(
                f"a label must be a str, got {shown(label)}: "
                "build the tree with masks.labels(params, rules)"
            )
    return flat


def is_none(node: Any) -> bool:
    """Returns whether a node is None; passed as `is_leaf`, it makes None a leaf."""
    return node is None


def _is_absent(node: Any) -> bool:
    """Whether a node stands for a leaf that another half of the tree holds."""
    return node is None or isinstance(node, optax.MaskedNode)


def _component(key: Any) -> str:
    """One entry of a JAX key path as text; works for the key types of other libraries too."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key).strip(".[]'\"")


def _is_box(node: Any) -> bool:
    return _is_box_type(type(node))


@functools.cache
def _is_box_type(kind: type) -> bool:
    """Whether a type derives from `nnx.Variable` or `AxisMetadata`; does not import Flax."""
    return any(
        base.__module__.startswith("flax.") and base.__name__ in ("Variable", "AxisMetadata")
        for base in kind.__mro__
    )
