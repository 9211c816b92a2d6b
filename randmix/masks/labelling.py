"""Apply selectors and rules to a tree of parameters."""

from collections.abc import Callable, Iterable
from typing import Any

from randmix.masks.errors import MaskError, nearest, shown
from randmix.masks.parsing import as_selector
from randmix.masks.partial import Fraction, filter_mask
from randmix.masks.rules import Rule, checked_rules
from randmix.masks.selectors import Depth, Name, Path, Role, Selector, everything
from randmix.masks.tree import Leaf, PyTree, flatten

Rules = Iterable[tuple[str, Selector | Fraction | str]]


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
    masks = []
    for leaf, number in zip(leaves, _assign(leaves, rules), strict=True):
        chosen = rules[number][1]
        masks.append(filter_mask(leaf, chosen) if isinstance(chosen, Fraction) else None)
    return treedef.unflatten(masks)


def _assign(leaves: list[Leaf], rules: list[Rule]) -> list[int]:
    """Index of the first rule that selects each leaf."""
    assigned = [-1] * len(leaves)
    free = list(range(len(leaves)))
    for number, (_, chosen) in enumerate(rules):
        matches = _selector(chosen).matches
        still_free = []
        for index in free:
            if matches(leaves[index]):
                assigned[index] = number
            else:
                still_free.append(index)
        if len(still_free) == len(free) and not any(map(matches, leaves)):
            raise MaskError(
                f"{_named(number, rules)} matches no leaf: {_reason(_selector(chosen), leaves)}"
            )
        free = still_free
    if free:
        more = f" and {len(free) - 1} more" if len(free) > 1 else ""
        raise MaskError(
            f"no rule covers {leaves[free[0]].path!r}{more}: "
            "end the rules with ('freeze', everything)"
        )
    return assigned


def _check_terms(leaves: list[Leaf], rules: list[Rule]) -> None:
    for number, (_, chosen) in enumerate(rules):
        for term in _selector(chosen).terms():
            if isinstance(term, Role | Name | Path) and not any(map(term.matches, leaves)):
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
    match term:
        case Role(name):
            near = nearest(name, (x.role for x in leaves))
            return f"no role is {shown(name)}, the nearest is {near!r}"
        case Name(name):
            near = nearest(name, (x.name for x in leaves))
            return f"no leaf is named {shown(name)}, the nearest is {near!r}"
        case Path(pattern):
            near = nearest(pattern, (x.path for x in leaves))
            return f"no path matches {shown(pattern)}, the nearest is {near!r}"
        case Depth():
            depths = [x.depth for x in leaves if x.depth is not None]
            return (
                f"the depths here are {min(depths)} to {max(depths)}"
                if depths
                else "no leaf has a depth"
            )
    return (
        f"{shown(term)} matches none of the {len(leaves)} leaves, the first is {leaves[0].path!r}"
    )
