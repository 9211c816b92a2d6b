"""Split a tree by its labels, join the halves, and keep what is frozen."""

import jax
import jax.numpy as jnp

from randmix.masks.errors import MaskError
from randmix.masks.rules import FREEZE
from randmix.masks.tree import PyTree, flatten, flatten_labels, is_none


def partition(tree: PyTree, labels: PyTree) -> tuple[PyTree, PyTree]:
    """Splits a tree by its labels into (trainable, frozen); `merge` is the inverse.

    Both results have the tree's structure, with None where the other holds the leaf. Therefore
    `jax.grad` with respect to the first computes no gradient, and does no backward work, for a
    frozen leaf. Labels are plain strings that are read while tracing, so the function works inside
    jit.

    Args:
        tree: any pytree with the structure of `labels`: parameters, gradients, updates.
        labels: a tree of labels, from `labels`.

    Raises:
        MaskError: the structures differ, or a label is not a str.

    >>> partition({"a": 1.0, "b": 2.0}, {"a": "train", "b": "freeze"})
    ({'a': 1.0, 'b': None}, {'a': None, 'b': 2.0})
    """
    leaves, treedef = jax.tree_util.tree_flatten(tree)
    pairs = list(zip(leaves, flatten_labels(treedef, labels), strict=True))
    return (
        treedef.unflatten([None if label == FREEZE else leaf for leaf, label in pairs]),
        treedef.unflatten([leaf if label == FREEZE else None for leaf, label in pairs]),
    )


def merge(trainable: PyTree, frozen: PyTree) -> PyTree:
    """Joins the two trees of `partition`, taking each leaf from the tree that holds it.

    Raises:
        MaskError: the structures differ, or both trees hold a leaf at the same path.

    >>> merge({"a": 1.0, "b": None}, {"a": None, "b": 2.0})
    {'a': 1.0, 'b': 2.0}
    """
    first, treedef = jax.tree_util.tree_flatten(trainable, is_leaf=is_none)
    second, other = jax.tree_util.tree_flatten(frozen, is_leaf=is_none)
    if treedef != other:
        raise MaskError(
            "merge expects the two trees of one partition, got two different structures"
        )
    for index, (one, two) in enumerate(zip(first, second, strict=True)):
        if one is not None and two is not None:
            path = flatten(treedef.unflatten(range(len(first))))[0][index].path
            raise MaskError(
                f"merge expects the two trees of one partition, but both have the leaf {path!r}"
            )
    return treedef.unflatten(
        [two if one is None else one for one, two in zip(first, second, strict=True)]
    )


def hold(labels: PyTree, old: PyTree, new: PyTree) -> PyTree:
    """Takes the frozen leaves from `old` and all others from `new`.

    For state that changes without gradients, such as the running statistics of BatchNorm: label it
    like parameters, and frozen statistics stand still bit for bit. (A norm in training mode still
    normalises with the statistics of the batch; to use the held ones, run it in evaluation mode.)
    Works inside jit.

    Args:
        labels: a tree of labels, from `labels`.
        old, new: the state before and after a step, with the structure of `labels`.

    Raises:
        MaskError: the structures differ, or a label is not a str.

    >>> hold({"a": "train", "b": "freeze"}, {"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0})
    {'a': 3.0, 'b': 2.0}
    """
    return merge(partition(new, labels)[0], partition(old, labels)[1])


def blend(channel_masks: PyTree | None, learned: PyTree, kept: PyTree) -> PyTree:
    """Selects `learned` where a channel mask is True and `kept` where it is False.

    It selects elements instead of summing products, so kept elements stay bit-identical, including
    -0.0 and NaN. Works inside jit.

    Args:
        channel_masks: a tree from `channel_masks`. For a leaf whose mask is None, and for all
            leaves if the argument is None, `learned` is returned unchanged.
        learned: a tree with the structure of the parameters; frozen leaves may be None.
        kept: a tree with the structure of the parameters.

    >>> import numpy as np
    >>> channel_masks = {"a": np.array([True, False]), "b": None}
    >>> blend(channel_masks, {"a": np.ones(2), "b": 1}, {"a": np.zeros(2), "b": 0})
    {'a': Array([1., 0.], dtype=float32), 'b': 1}
    """
    if channel_masks is None:
        return learned

    def one(mask, new, old):
        return new if mask is None or new is None else jnp.where(mask, new, old)

    return jax.tree.map(one, channel_masks, learned, kept, is_leaf=is_none)
