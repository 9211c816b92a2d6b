"""A tree of parameters as two, and back: what the training step differentiates, and what it only reads."""

from randmix.masks.errors import MaskError
from randmix.masks.rules import FREEZE
from randmix.masks.tree import PyTree, flatten, flatten_labels, is_none


def partition(tree: PyTree, labels: PyTree, frozen: str = FREEZE) -> tuple[PyTree, PyTree]:
    """Splits a tree by its labels into (trainable, frozen); `merge` is the inverse.

    Both have the tree's structure with None where the other has the leaf, so `jax.grad` with respect
    to the first makes neither gradient nor backward work for a frozen leaf. Labels are plain strings
    and read while tracing, so it may be called inside jit.

    Args:
        tree: any pytree of that structure: parameters, gradients, updates.
        labels: of the same structure, from `labels`.
        frozen: the label of the leaves that are not trained.

    Raises:
        MaskError: the structures differ, or a label is not a str.

    >>> partition({"a": 1.0, "b": 2.0}, {"a": "train", "b": "freeze"})
    ({'a': 1.0, 'b': None}, {'a': None, 'b': 2.0})
    """
    import jax

    leaves, treedef = jax.tree_util.tree_flatten(tree)
    held = [label == frozen for label in flatten_labels(treedef, labels)]
    return (
        treedef.unflatten(
            [None if hold else leaf for leaf, hold in zip(leaves, held, strict=True)]
        ),
        treedef.unflatten(
            [leaf if hold else None for leaf, hold in zip(leaves, held, strict=True)]
        ),
    )


def merge(trainable: PyTree, frozen: PyTree) -> PyTree:
    """Joins what `partition` split: each leaf from the tree that has it.

    Raises:
        MaskError: the structures differ, or both trees have a leaf at one place.

    >>> merge({"a": 1.0, "b": None}, {"a": None, "b": 2.0})
    {'a': 1.0, 'b': 2.0}
    """
    import jax

    first, treedef = jax.tree_util.tree_flatten(trainable, is_leaf=is_none)
    second, other = jax.tree_util.tree_flatten(frozen, is_leaf=is_none)
    if treedef != other:
        raise MaskError(
            "merge takes the two trees of one partition, got two structures that differ"
        )
    for index, (one, two) in enumerate(zip(first, second, strict=True)):
        if one is not None and two is not None:
            path = flatten(treedef.unflatten(range(len(first))))[0][index].path
            raise MaskError(
                f"merge takes the two trees of one partition, both have the leaf {path!r}"
            )
    return treedef.unflatten(
        [two if one is None else one for one, two in zip(first, second, strict=True)]
    )


def blend(channel_masks: PyTree | None, learned: PyTree, kept: PyTree) -> PyTree:
    """Takes `learned` where a channel mask is True and `kept` where it is False; works inside jit.

    A selection, not a sum of products: what is kept stays bit for bit, -0.0 and NaN too.

    Args:
        channel_masks: from `channel_masks`; where it has None, or is None, `learned` is taken whole.
        learned: a tree of the parameters' structure, or one with None for frozen leaves.
        kept: of the same structure.

    >>> import numpy as np
    >>> blend({"a": np.array([True, False]), "b": None}, {"a": np.ones(2), "b": 1}, {"a": np.zeros(2), "b": 0})
    {'a': Array([1., 0.], dtype=float32), 'b': 1}
    """
    import jax
    import jax.numpy as jnp

    if channel_masks is None:
        return learned

    def one(mask, new, old):
        return new if mask is None or new is None else jnp.where(mask, new, old)

    return jax.tree.map(one, channel_masks, learned, kept, is_leaf=is_none)
