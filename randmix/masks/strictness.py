"""Checks that every name in a mask means something in the tree, and that something is frozen.

`~role('spacial')` is a valid selector of every leaf, and a misspelt freeze rule freezes nothing.
Neither shows in the training that follows, so masks are checked against the tree by default.
"""

import functools
import warnings

from randmix.masks.errors import MaskError, nearest, shown
from randmix.masks.rules import FREEZE, MODES, Rule
from randmix.masks.selectors import Fraction, Selector, everything, nothing
from randmix.masks.tree import Leaf

# The terms that hold a name: what to say if no leaf has it, and the leaf's attribute to compare.
_NAMES = {
    "role": ("no role is", "role"),
    "leaf": ("no leaf is named", "name"),
    "path": ("no path matches", "path"),
}
_MODE_ROLES = tuple(
    dict.fromkeys(
        term.operands[0] for one in MODES.values() for term in one.terms() if term.of_mode
    )
)


class MaskWarning(UserWarning):
    """A mode names a role that the model lacks."""


def check_selector(selector: Selector, leaves: list[Leaf], name: str | None = None) -> bool:
    """Checks that a selector and each of its terms match a leaf.

    `nothing` and an empty range such as `depth(2, 2)` may match none, since they say so.

    Args:
        selector: the selector.
        leaves: all leaves of the tree.
        name: what a message calls it; its own text if None.

    Returns:
        Whether no role of a mode is absent. It warns of one that is.

    Raises:
        MaskError: the selector or a term matches no leaf, or a mode's role is absent and the tree
            has none of the modes' roles.
    """
    name = shown(selector) if name is None else name
    absent = [one for one in selector.terms() if not any(map(one.matches, leaves))]
    absent = [one for one in absent if not _is_empty(one)]
    if not _is_empty(selector) and not any(map(selector.matches, leaves)):
        raise MaskError(f"{name} matches no leaf: {_reason(absent, leaves)}")
    roles = {leaf.role for leaf in leaves}
    for term in absent:
        if not term.of_mode or roles.isdisjoint(_MODE_ROLES):
            raise MaskError(
                f"{name} has a term that matches no leaf: {absence(term, leaves)}"
                + ("; a mode needs its roles, select by names of this tree" if term.of_mode else "")
            )
        warn_once(f"{name}: {absence(term, leaves)}")
    return not absent


@functools.cache  # Python's own registry forgets whenever a filter changes
def warn_once(text: str) -> None:
    """Warns of one thing once in a process."""
    warnings.warn(text, MaskWarning, stacklevel=2)


def check_rules(rules: list[Rule], assigned: list[int], leaves: list[Leaf]) -> None:
    """Checks each rule's selector, and that rules which freeze have a leaf to freeze.

    Args:
        rules: the rules.
        assigned: for each leaf, the number of its rule, from 0, or -1.
        leaves: all leaves of the tree.

    Raises:
        MaskError: see `check_selector`; or no leaf has the label "freeze" though a rule gives it,
            no rule trains `everything` or a fraction, and no mode's role is absent.
    """
    complete = [
        check_selector(selector_of(chosen), leaves, named(number, rules))
        for number, (_, chosen) in enumerate(rules)
    ]
    freezing = [number for number, (label, _) in enumerate(rules) if label == FREEZE]
    if not freezing or set(freezing) & set(assigned) or not all(complete):
        return
    learned = [chosen for label, chosen in rules if label != FREEZE]
    partly = any(isinstance(chosen, Fraction) and chosen.share < 1 for chosen in learned)
    if not partly and everything not in map(selector_of, learned):
        raise MaskError(
            f"{named(freezing[-1], rules)} freezes nothing, other rules select every leaf: "
            "leave it out, train everything, or pass strict=False"
        )


def selector_of(chosen: Selector | Fraction) -> Selector:
    """The selector of a rule."""
    return chosen.selector if isinstance(chosen, Fraction) else chosen


def named(number: int, rules: list[Rule]) -> str:
    """What a message calls a rule, such as `rule 1 ('train', everything)`."""
    label, chosen = rules[number]
    return f"rule {number + 1} ({shown(label)}, {shown(chosen)})"


def absence(term: Selector, leaves: list[Leaf]) -> str:
    """Why a term matches no leaf, with the nearest name that exists."""
    if not leaves:
        return "the tree has no leaves"
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


def _reason(absent: list[Selector], leaves: list[Leaf]) -> str:
    if leaves and not absent:
        return "no leaf fits the whole of it"
    return absence(absent[0] if absent else everything, leaves)


def _is_empty(selector: Selector) -> bool:
    """Whether a selector selects nothing in any tree, and says so."""
    if selector.kind == "depth":
        start, stop = selector.operands
        return start is not None and start == stop
    return selector == nothing
