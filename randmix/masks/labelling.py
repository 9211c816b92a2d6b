"""Apply selectors and rules to a tree of parameters."""

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from randmix.masks.errors import MaskError
from randmix.masks.parsing import as_selector
from randmix.masks.rules import FREEZE, Rule, checked_rules
from randmix.masks.selectors import Fraction, Selector, everything
from randmix.masks.strictness import check_rules, check_selector, selector_of
from randmix.masks.tree import ABSENT, Leaf, PyTree, flatten

Rules = Iterable[tuple[str, Selector | Fraction | str]]

# The parts of one layer, by Flax's and PyTorch's names; they share one draw of filters.
_PARTS = ("kernel", "weight", "scale", "bias")


def paths(params: PyTree, selector: Selector | str = everything) -> list[str]:
    """Paths of the selected leaves, in the order of the tree.

    It shows what a selector selects, and answers with an empty list where `mask` would refuse it.

    >>> paths({"head": {"kernel": 1.0, "bias": 0.0}}, "leaf('bias')")
    ['head/bias']
    """
    selector = as_selector(selector)
    return [leaf.path for leaf in flatten(params)[0] if selector.matches(leaf)]


def mask(params: PyTree, selector: Selector | str, *, strict: bool = True) -> PyTree:
    """Boolean tree with the structure of `params`: True at the selected leaves, False elsewhere.

    For `optax.masked` and the masks of optax's transforms, for example weight decay on kernels
    only.

    Args:
        params: any pytree.
        selector: a selector or its text.
        strict: refuse a selector of no leaf, or with a term that matches none, as `labels` does.

    Raises:
        MaskError: the selector is invalid or refused.

    >>> mask({"head": {"kernel": 1.0, "bias": 0.0}}, "~leaf('bias')")
    {'head': {'bias': False, 'kernel': True}}
    """
    _, treedef, chosen = _selected(params, selector, strict)
    return treedef.unflatten(chosen)


def apply(
    params: PyTree,
    selector: Selector | str,
    function: Callable[[Any], Any],
    *,
    strict: bool = True,
) -> PyTree:
    """Applies `function` to the selected leaves and leaves the others unchanged.

    Args:
        params: any pytree.
        selector: a selector or its text.
        function: maps a leaf to its replacement.
        strict: as for `mask`.

    Raises:
        MaskError: the selector is invalid or refused.

    >>> apply({"head": {"kernel": 2.0, "bias": 1.0}}, "leaf('bias')", lambda x: 0 * x)
    {'head': {'bias': 0.0, 'kernel': 2.0}}
    """
    leaves, treedef, chosen = _selected(params, selector, strict)
    return treedef.unflatten(
        [
            function(leaf.value) if on else leaf.value
            for leaf, on in zip(leaves, chosen, strict=True)
        ]
    )


def labels(params: PyTree, rules: Rules, *, strict: bool = True) -> PyTree:
    """Label tree with the structure of `params`, for `transform`, `partition` and optax.

    Args:
        params: any pytree whose leaves are arrays or `jax.ShapeDtypeStruct`s.
        rules: ordered pairs (label, selector). A selector may also be given as text or as
            `fraction(...)`. The first rule that selects a leaf labels it.
        strict: refuse a rule that selects no leaf, a term anywhere in a rule that matches none
            (the typo in `~role('spacial')`, which selects every leaf), and a rule set that says
            "freeze" and freezes nothing. A rule whose leaves were all labelled by earlier rules is
            allowed. A mode's role may be absent, with a warning, if the tree has the other one.

    Raises:
        MaskError: no rule covers a leaf, or `strict` refuses the rules; the message names the leaf
            or the rule, and the nearest name.

    >>> params = {"spatial": {"kernel": 1.0}, "channel": {"kernel": 2.0}}
    >>> labels(params, [("train", "~role('spatial')"), ("freeze", everything)])
    {'channel': {'kernel': 'train'}, 'spatial': {'kernel': 'freeze'}}
    """
    leaves, treedef = flatten(params)
    rules = checked_rules(rules)
    return treedef.unflatten([label for label, _ in assign(leaves, rules, strict)])


def channel_masks(params: PyTree, rules: Rules, *, strict: bool = True) -> PyTree:
    """Masks of the filters that are learned inside leaves labelled by a `fraction` rule.

    A filter is one index into the last two axes, or into the last one of a leaf with fewer than
    four axes. Of an array named `weight`, PyTorch's and Equinox's, it is one into the first two
    axes, or the first of two. Apply `jnp.where(mask, new, old)` after the update: it
    keeps the other filters bit-identical whatever weight decay and momentum did. Masking only the
    gradients does not.

    Args:
        params: as in `labels`; only shapes are read.
        rules, strict: as in `labels`.

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
    return treedef.unflatten(
        [
            filter_mask(leaf, chosen) if isinstance(chosen, Fraction) else None
            for leaf, (_, chosen) in zip(leaves, assign(leaves, rules, strict), strict=True)
        ]
    )


def _selected(
    params: PyTree, selector: Selector | str, strict: bool
) -> tuple[list[Leaf], Any, list[bool]]:
    """The leaves, the treedef and whether each leaf is selected."""
    selector = as_selector(selector)
    leaves, treedef = flatten(params)
    if strict:
        check_selector(selector, leaves)
    return leaves, treedef, list(map(selector.matches, leaves))


def filter_mask(leaf: Leaf, fraction: Fraction) -> np.ndarray:
    """Mask of the filters of a leaf that are learned: bool, broadcastable to the leaf.

    [k, k, C] has C filters, [k, k, C, m] has C m, and so has a `weight` [C, m, k, k]. They are
    drawn without replacement from the seed and the path, so neither the order nor the rest of the
    tree matters. Draws with one seed are nested: a larger share adds filters and drops none.
    """
    shape = np.shape(leaf.value)
    axes = _filter_axes(leaf.name, shape)
    sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    filters = math.prod(sizes)
    layer = leaf.path.rpartition("/")[0] if leaf.name in _PARTS else leaf.path
    # Ranked raw bits instead of Generator.permutation: NumPy guarantees the bits across versions.
    bits = np.random.Philox(np.random.SeedSequence([fraction.seed, zlib.crc32(layer.encode())]))
    order = np.argsort(bits.random_raw(filters), kind="stable")
    mask = np.zeros(filters, bool)
    mask[order[: round(fraction.share * filters)]] = True
    return mask.reshape(sizes)


def _filter_axes(name: str, shape: tuple[int, ...]) -> Sequence[int]:
    """The axes that number a leaf's filters."""
    if name == "weight" and len(shape) > 1:  # [out, in, *window]
        return range(min(2, len(shape) - 1))
    long = [axis for axis, size in enumerate(shape) if size > 1]
    if name not in ("kernel", "weight") and len(long) == 1:  # Equinox's bias is [C, 1, 1]
        return long
    return range(max(len(shape) - (2 if len(shape) > 3 else 1), 0), len(shape))


def assign(leaves: list[Leaf], rules: list[Rule], strict: bool) -> list[Rule]:
    """The first rule that selects each leaf; for an absent leaf that none selects, to freeze it."""
    selectors = [selector_of(chosen) for _, chosen in rules]
    assigned = [
        next((number for number, one in enumerate(selectors) if one.matches(leaf)), -1)
        for leaf in leaves
    ]
    if strict:
        check_rules(rules, assigned, leaves)
    free = [
        leaf.path
        for leaf, number in zip(leaves, assigned, strict=True)
        if number < 0 and leaf.value is not ABSENT
    ]
    if free:
        more = f" and {len(free) - 1} more" if len(free) > 1 else ""
        raise MaskError(
            f"no rule covers {free[0]!r}{more}: end the rules with ('freeze', everything)"
        )
    return [(FREEZE, everything) if number < 0 else rules[number] for number in assigned]
