"""Flatten any pytree of parameters into leaves with readable paths."""

import functools
import re
from typing import Any, NamedTuple

import jax

from randmix.masks.errors import MaskError, shown

PyTree = Any

# The first component that is a number or ends in one: `block_07`, `layers_3`, the 3 in `layers/3`.
# Python reads at most 4,300 digits.
_DEPTH = re.compile(r"(?:^|[/_])([0-9]{1,4300})(?=/|$)")


class Leaf(NamedTuple):
    """A leaf with its slash-joined path, such as `spatial/block_03/depthwise/kernel`."""

    path: str
    value: Any

    @property
    def role(self) -> str:
        """The first component of the path."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]

    @property
    def depth(self) -> int | None:
        """The number in the first component that is one or ends in `_` and one, or None."""
        return _depth(self.path)


def flatten(tree: PyTree) -> tuple[list[Leaf], Any]:
    """Flattens a tree into its leaves, in JAX's order, and its treedef.

    The components of a path are dict keys, attribute names and sequence indices. A box that Flax
    wraps around an array (an `nnx.Variable`, a Linen `Partitioned`) adds no component.

    >>> [leaf.path for leaf in flatten({"layers": [{"kernel": 1.0}, {"kernel": 2.0}]})[0]]
    ['layers/0/kernel', 'layers/1/kernel']
    """
    leaves = []
    for keys, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)[0]:
        inside = jax.tree_util.tree_flatten_with_path(node)[0] if _is_box(node) else [((), node)]
        for more, value in inside:
            visible = keys if len(more) == 1 else keys + more  # without the box's own `value`
            leaves.append(Leaf("/".join(map(_component, visible)), value))
    return leaves, jax.tree.structure(tree)


def flatten_like(treedef: Any, tree: PyTree, what: str) -> list[Any]:
    """Leaves of a tree with the structure of `treedef`; else raises a `MaskError` naming `what`."""
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError):
        raise MaskError(
            f"{what} does not have the parameters' structure: got {shown(tree)}"
        ) from None


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


@functools.lru_cache(maxsize=4096)  # a selector may contain hundreds of depths
def _depth(path: str) -> int | None:
    found = _DEPTH.search(path)
    return int(found[1]) if found else None


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
