"""Apply selectors and rules to a tree of parameters, and split the tree by its labels."""

import math
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from randmix.masks.errors import MaskError, nearest, shown
from randmix.masks.parsing import as_selector
from randmix.masks.rules import FREEZE, Rule, checked_rules
from randmix.masks.selectors import Fraction, Selector, everything
from randmix.masks.tree import Leaf, PyTree, flatten, flatten_labels, is_none

Rules = Iterable[tuple[str, Selector | Fraction | str]]

# The parts of one layer, by Flax's and PyTorch's names; they share one draw of filters.
_PARTS = ("kernel", "weight", "scale", "bias")
# The terms that hold a name: what to say if no leaf has it, and the leaf's attribute to compare.
_NAMES = {
    "role": ("no role is", "role"),
    "leaf": ("no leaf is named", "name"),
    "path": ("no path matches", "path"),
}


def paths(params: PyTree, selector: Selector | str = everything) -> list[str]:
    """Paths of the selected leaves, in the order of the tree.

    >>> paths({"head": {"kernel": 1.0, "bias": 0.0}}, "leaf('bias')")
    ['head/bias']
    """
    selector = as_selector(selector)
    return [leaf.path for leaf in flatten(params)[0] if selector.matches(leaf)]


def mask(params: PyTree, selector: Selector | str) -> PyTree:
    """Boolean tree with the structure of `params`: True at the selected leaves, False elsewhere.

    For `optax.masked` and the masks of optax's transforms, for example weight decay on kernels
    only.

    >>> mask({"head": {"kernel": 1.0, "bias": 0.0}}, "~leaf('bias')")
    {'head': {'bias': False, 'kernel': True}}
    """
    selector = as_selector(selector)
    leaves, treedef = flatten(params)
    return treedef.unflatten([selector.matches(leaf) for leaf in leaves])


def apply(params: PyTree, selector: Selector | str, function: Callable[[Any], Any]) -> PyTree:
    """Applies `function` to the selected leaves and leaves the others unchanged.

    >>> apply({"head": {"kernel": 2.0, "bias": 1.0}}, "leaf('bias')", lambda x: 0 * x)
    {'head': {'bias': 0.0, 'kernel': 2.0}}
    """
    selector = as_selector(selector)
    leaves, treedef = flatten(params)
    return treedef.unflatten(
        [function(x.value) if selector.matches(x) else x.value for x in leaves]
    )


def labels(params: PyTree, rules: Rules, *, strict: bool = False) -> PyTree:
    """Label tree with the structure of `params`, for `optax.multi_transform` and `partition`.

    An `nnx.Optimizer` passes boxed variables to its transform at first and bare arrays later, and
    no single tree fits both. In that case pass `optax.multi_transform` the function
    `lambda params: labels(params, rules)` instead of a tree.

    Args:
        params: any pytree whose leaves are arrays or `jax.ShapeDtypeStruct`s.
        rules: ordered pairs (label, selector). A selector may also be given as text or as
            `fraction(...)`. The first rule that selects a leaf labels it.
        strict: also raise if a `role`, `leaf` or `path` term anywhere in a rule matches no leaf.
            The typo in `~role('spacial')`, which selects every leaf, would otherwise go unnoticed.

    Raises:
        MaskError: no rule covers a leaf, or a rule selects no leaf at all; the message names the
            leaf or the rule. A rule whose leaves were all labelled by earlier rules is allowed.

    >>> params = {"spatial": {"kernel": 1.0}, "channel": {"kernel": 2.0}}
    >>> labels(params, [("train", "~role('spatial')"), ("freeze", everything)])
    {'channel': {'kernel': 'train'}, 'spatial': {'kernel': 'freeze'}}
    """
    leaves, treedef = flatten(params)
    rules = checked_rules(rules)
    if strict:
        _check_terms(leaves, rules)
    return treedef.unflatten([rules[number][0] for number in _assign(leaves, rules)])


def channel_masks(params: PyTree, rules: Rules) -> PyTree:
    """Masks of the filters that are learned inside leaves labelled by a `fraction` rule.

    A filter is one index into the axes after the first two, or into the last axis of a leaf with
    fewer than three axes. Apply `jnp.where(mask, new, old)` after the update: it keeps the other
    filters bit-identical whatever weight decay and momentum did. Masking only the gradients does
    not.

    Args:
        params: as in `labels`; only shapes are read.
        rules: as in `labels`.

    Returns:
        A tree with the structure of `params`: None for a leaf that was not labelled by a fraction,
        otherwise a bool array that broadcasts to the leaf, True where it is learned ([1, 1, C] for
        a kernel [k, k, C], [1, 1, C, m] for [k, k, C, m], [C] for a bias).

    >>> import numpy as np
    >>> params = {"spatial": {"kernel": np.ones((3, 3, 4)), "bias": np.ones(4)}}
    >>> rules = [("train", "fraction(leaf('kernel'), 0.5, 0)"), ("freeze", everything)]
    >>> masks = channel_masks(params, rules)["spatial"]
    >>> masks["bias"], masks["kernel"].shape, masks["kernel"].sum().item()
    (None, (1, 1, 4), 2)
    """
    leaves, treedef = flatten(params)
    rules = checked_rules(rules)
    chosen = [rules[number][1] for number in _assign(leaves, rules)]
    return treedef.unflatten(
        [
            _filter_mask(leaf, one) if isinstance(one, Fraction) else None
            for leaf, one in zip(leaves, chosen, strict=True)
        ]
    )


def partition(tree: PyTree, labels: PyTree, frozen: str = FREEZE) -> tuple[PyTree, PyTree]:
    """Splits a tree by its labels into (trainable, frozen); `merge` is the inverse.

    Both results have the tree's structure, with None where the other holds the leaf. Therefore
    `jax.grad` with respect to the first computes no gradient, and does no backward work, for a
    frozen leaf. Labels are plain strings that are read while tracing, so the function works inside
    jit.

    Args:
        tree: any pytree with the structure of `labels`: parameters, gradients, updates.
        labels: a tree of labels, from `labels`.
        frozen: the label of the leaves that are not trained.

    Raises:
        MaskError: the structures differ, or a label is not a str.

    >>> partition({"a": 1.0, "b": 2.0}, {"a": "train", "b": "freeze"})
    ({'a': 1.0, 'b': None}, {'a': None, 'b': 2.0})
    """
    leaves, treedef = jax.tree_util.tree_flatten(tree)
    pairs = list(zip(leaves, flatten_labels(treedef, labels), strict=True))
    return (
        treedef.unflatten([None if label == frozen else leaf for leaf, label in pairs]),
        treedef.unflatten([leaf if label == frozen else None for leaf, label in pairs]),
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


def _filter_mask(leaf: Leaf, fraction: Fraction) -> np.ndarray:
    """Mask of the filters of a leaf that are learned: bool, broadcastable to the leaf.

    [k, k, C] has C filters, [k, k, C, m] has C m. They are drawn without replacement from the seed
    and the path, so neither the order nor the rest of the tree matters. Draws with one seed are
    nested: a larger share adds filters and drops none.
    """
    shape = np.shape(leaf.value)
    kept = 2 if len(shape) > 2 else max(len(shape) - 1, 0)
    filters = math.prod(shape[kept:])
    layer = leaf.path.rpartition("/")[0] if leaf.name in _PARTS else leaf.path
    # Ranked raw bits instead of Generator.permutation: NumPy guarantees the bits across versions.
    bits = np.random.Philox(np.random.SeedSequence([fraction.seed, zlib.crc32(layer.encode())]))
    order = np.argsort(bits.random_raw(filters), kind="stable")
    mask = np.zeros(filters, bool)
    mask[order[: round(fraction.share * filters)]] = True
    return mask.reshape((1,) * kept + shape[kept:])


def _assign(leaves: list[Leaf], rules: list[Rule]) -> list[int]:
    """Index of the first rule that selects each leaf."""
    selectors = [_selector(chosen) for _, chosen in rules]
    assigned = [
        next((number for number, one in enumerate(selectors) if one.matches(leaf)), -1)
        for leaf in leaves
    ]
    for number in sorted(set(range(len(rules))) - set(assigned)):
        # Earlier rules may have labelled all leaves that this rule selects.
        if not any(map(selectors[number].matches, leaves)):
            reason = _reason(selectors[number], leaves)
            raise MaskError(f"{_named(number, rules)} matches no leaf: {reason}")
    free = [leaf.path for leaf, number in zip(leaves, assigned, strict=True) if number < 0]
    if free:
        more = f" and {len(free) - 1} more" if len(free) > 1 else ""
        raise MaskError(
            f"no rule covers {free[0]!r}{more}: end the rules with ('freeze', everything)"
        )
    return assigned


def _check_terms(leaves: list[Leaf], rules: list[Rule]) -> None:
    for number, (_, chosen) in enumerate(rules):
        for term in _selector(chosen).terms():
            if term.kind in _NAMES and not any(map(term.matches, leaves)):
                raise MaskError(
                    f"{_named(number, rules)} has a term that matches no leaf: "
                    f"{_absence(term, leaves)}"
                )


def _selector(chosen: Selector | Fraction) -> Selector:
    return chosen.selector if isinstance(chosen, Fraction) else chosen


def _named(number: int, rules: list[Rule]) -> str:
    label, chosen = rules[number]
    return f"rule {number + 1} ({shown(label)}, {shown(chosen)})"


def _reason(selector: Selector, leaves: list[Leaf]) -> str:
    """Why a selector matches no leaf, with the nearest name that exists."""
    if not leaves:
        return "the tree has no leaves"
    absent = (term for term in selector.terms() if not any(map(term.matches, leaves)))
    term = next(absent, None)
    return "no leaf matches all of its terms" if term is None else _absence(term, leaves)


def _absence(term: Selector, leaves: list[Leaf]) -> str:
    if term.kind in _NAMES:
        (name,) = term.operands
        phrase, attribute = _NAMES[term.kind]
        near = nearest(name, (getattr(leaf, attribute) for leaf in leaves))
        return f"{phrase} {shown(name)}, the nearest is {near!r}"
    if term.kind == "depth":
        depths = [leaf.depth for leaf in leaves if leaf.depth is not None]
        if not depths:
            return "no leaf has a depth"
        return f"the depths here are {min(depths)} to {max(depths)}"
    return (
        f"{shown(term)} matches none of the {len(leaves)} leaves, the first is {leaves[0].path!r}"
    )
