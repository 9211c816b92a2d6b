"""Selectors and rules applied to a tree of parameters."""

from collections.abc import Callable, Iterable
from typing import Any

from randmix.masks.errors import MaskError, nearest
from randmix.masks.parsing import as_selector
from randmix.masks.partial import Fraction, filter_mask
from randmix.masks.rules import Rule, checked_rules
from randmix.masks.selectors import Depth, Name, Path, Role, Selector, everything
from randmix.masks.tree import Leaf, PyTree, flatten

Rules = Iterable[tuple[str, Selector | Fraction | str]]


def paths(params: PyTree, selector: Selector | str = everything) -> list[str]:
    """The paths of the selected leaves, in the tree's order.

    >>> paths({"head": {"kernel": 1.0, "bias": 0.0}}, "leaf('bias')")
    ['head/bias']
    """
    selector = as_selector(selector)
    return [leaf.path for leaf in flatten(params)[0] if selector.matches(leaf)]


def mask(params: PyTree, selector: Selector | str) -> PyTree:
    """A tree of the structure of `params` with True at the selected leaves and False elsewhere.

    It fits `optax.masked` and the like, for weight decay on kernels only for example.

    >>> mask({"head": {"kernel": 1.0, "bias": 0.0}}, "~leaf('bias')")
    {'head': {'bias': False, 'kernel': True}}
    """
    selector = as_selector(selector)
    leaves, treedef = flatten(params)
    return treedef.unflatten([selector.matches(leaf) for leaf in leaves])


def apply(params: PyTree, selector: Selector | str, function: Callable[[Any], Any]) -> PyTree:
    """The tree with `function` applied to the selected leaves, the others as they are.

    >>> apply({"head": {"kernel": 2.0, "bias": 1.0}}, "leaf('bias')", lambda x: 0 * x)
    {'head': {'bias': 0.0, 'kernel': 2.0}}
    """
    selector = as_selector(selector)
    leaves, treedef = flatten(params)
    return treedef.unflatten(
        [function(x.value) if selector.matches(x) else x.value for x in leaves]
    )


def labels(params: PyTree, rules: Rules, *, strict: bool = False) -> PyTree:
    """A tree of labels of the structure of `params`, for `optax.multi_transform` and `partition`.

    Args:
        params: any pytree; its leaves may be arrays or `jax.ShapeDtypeStruct`s.
        rules: ordered (label, selector) pairs, the selector also as text or as `fraction(...)`. The
          first rule that selects a leaf labels it.
        strict: also refuse a `role`, `leaf` or `path` anywhere in a rule that no leaf answers to:
          `~role('spacial')` selects every leaf, and nothing else would tell.

    An `nnx.Optimizer` shows its transform boxed variables first and bare arrays later, which no one tree fits:
    give `optax.multi_transform` the function `lambda params: labels(params, rules)` there.

    Raises:
        MaskError: a leaf that no rule covers, or a rule that selects no leaf at all (one whose leaves
          were all taken by earlier rules is fine); it names the leaf or the rule.

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
    """Which filters are learned inside the leaves that a `fraction` rule labels.

    A filter is an index of the axes after the first two, or of the last axis of a leaf with fewer than
    three. `jnp.where(mask, new, old)` after the update keeps the others bit for bit, whatever weight
    decay or momentum did; masking gradients alone does not.

    Args:
        params: as of `labels`; only shapes are read.
        rules: as of `labels`.

    Returns:
        A tree of the structure of `params`: None for a leaf that its label holds for as a whole, else a
        bool array that broadcasts to the leaf, True where it is learned ([1, 1, C] for a kernel
        [k, k, C], [1, 1, C, m] for [k, k, C, m], [C] for a bias).

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
    """The index of the first rule that selects each leaf."""
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
            f"no rule covers {leaves[free[0]].path!r}{more}: end the rules with ('freeze', everything)"
        )
    return assigned


def _check_terms(leaves: list[Leaf], rules: list[Rule]) -> None:
    for number, (_, chosen) in enumerate(rules):
        for term in _selector(chosen).terms():
            if isinstance(term, Role | Name | Path) and not any(map(term.matches, leaves)):
                raise MaskError(
                    f"{_named(number, rules)} has a word for nothing: {_absence(term, leaves)}"
                )


def _selector(chosen: Selector | Fraction) -> Selector:
    return chosen.selector if isinstance(chosen, Fraction) else chosen


def _named(number: int, rules: list[Rule]) -> str:
    label, chosen = rules[number]
    return f"rule {number + 1} ({label!r}, {chosen!r})"


def _reason(selector: Selector, leaves: list[Leaf]) -> str:
    """Why a selector matches none of the leaves, with the nearest word that would."""
    if not leaves:
        return "the tree has no leaves"
    absent = (term for term in selector.terms() if not any(map(term.matches, leaves)))
    term = next(absent, None)
    return "no leaf answers to all of its terms" if term is None else _absence(term, leaves)


def _absence(term: Selector, leaves: list[Leaf]) -> str:
    match term:
        case Role(name):
            return (
                f"no role is {name!r}, the nearest is {nearest(name, (x.role for x in leaves))!r}"
            )
        case Name(name):
            return f"no leaf is named {name!r}, the nearest is {nearest(name, (x.name for x in leaves))!r}"
        case Path(pattern):
            return f"no path matches {pattern!r}, the nearest is {nearest(pattern, (x.path for x in leaves))!r}"
        case Depth():
            depths = [x.depth for x in leaves if x.depth is not None]
            return (
                f"the depths here are {min(depths)} to {max(depths)}"
                if depths
                else "no leaf has a depth"
            )
    return f"{term!r} answers to none of the {len(leaves)} leaves, the first is {leaves[0].path!r}"
