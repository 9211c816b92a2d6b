"""Any pytree of parameters as a flat list of leaves with readable paths.

JAX is imported inside the functions: reading a selector out of a config must not start it, since
host settings have to come first.
"""

import functools
import re
from typing import Any, NamedTuple

from randmix.masks.errors import MaskError, shown

PyTree = Any

# The first component that is a number or ends in one: `block_07`, `layers_3`, the 3 of `layers/3`.
_DEPTH = re.compile(r"(?:^|[/_])([0-9]+)(?=/|$)")


class Leaf(NamedTuple):
    """A leaf and its slash-joined path, such as `spatial/block_03/depthwise/kernel`."""

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
        """The number of the first component that is one or ends in `_` and one; None without."""
        found = _DEPTH.search(self.path)
        return int(found[1]) if found else None


def flatten(tree: PyTree) -> tuple[list[Leaf], Any]:
    """The leaves of a tree in JAX's order, and its treedef.

    A path's components are dict keys, attribute names and sequence indices. The box that Flax puts
    around an array (an `nnx.Variable`, a Linen `Partitioned`) adds no component.

    >>> [leaf.path for leaf in flatten({"layers": [{"kernel": 1.0}, {"kernel": 2.0}]})[0]]
    ['layers/0/kernel', 'layers/1/kernel']
    """
    import jax

    keyed, treedef = jax.tree_util.tree_flatten_with_path(tree)
    boxes = (
        _boxes(tree) if any(keys and _component(keys[-1]) == "value" for keys, _ in keyed) else ()
    )
    leaves = []
    for keys, value in keyed:
        visible = keys[:-1] if keys[:-1] in boxes else keys
        leaves.append(Leaf("/".join(map(_component, visible)), value))
    return leaves, treedef


def flatten_like(treedef: Any, tree: PyTree, what: str) -> list[Any]:
    """The leaves of a tree that has the structure of `treedef`, or a `MaskError` naming `what`."""
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError):
        raise MaskError(
            f"{what} is not a tree of the parameters' structure: got {shown(tree)}"
        ) from None


def flatten_labels(treedef: Any, labels: PyTree) -> list[str]:
    """The leaves of a label tree of the structure of `treedef`, each checked to be a str."""
    flat = flatten_like(treedef, labels, "labels")
    for label in flat:
        if not isinstance(label, str):
            raise MaskError(
                f"a label is a str, got {shown(label)}: make the tree by masks.labels(params, rules)"
            )
    return flat


def is_none(node: Any) -> bool:
    """Whether a node is None; as `is_leaf` it makes None a leaf."""
    return node is None


def _component(key: Any) -> str:
    """One entry of a JAX key path as text; key types of other libraries are read by their attributes."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key).strip(".[]'\"")


def _boxes(tree: PyTree) -> set[tuple]:
    """The key paths of Flax's boxes: their `.value` can be told from a field of that name by type only."""
    import jax

    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: _is_box(type(node)))
    return {keys for keys, node in nodes if _is_box(type(node))}


@functools.cache
def _is_box(kind: type) -> bool:
    """Whether a type derives from Flax's `nnx.Variable` or `AxisMetadata`, told without importing Flax."""
    return any(
        base.__module__.startswith("flax.") and base.__name__ in ("Variable", "AxisMetadata")
        for base in kind.__mro__
    )
