"""From what a config says to rules: ordered pairs of a label and what it is given to."""

from collections.abc import Iterable, Mapping

from randmix.masks.errors import MaskError, shown
from randmix.masks.parsing import as_selector, parse
from randmix.masks.partial import Fraction
from randmix.masks.selectors import Selector, everything, role

TRAIN = "train"
FREEZE = "freeze"

Rule = tuple[str, Selector | Fraction]

MODES: dict[str, Selector] = {
    "full": everything,
    "chans": ~role("spatial"),
    "space": ~role("channel"),
}
"""The paper's modes by what is trained: all of it, all but spatial mixing, all but channel mixing."""


def fraction(selector: Selector | str, share: float, seed: int = 0) -> Fraction:
    """For a rule: learns a share of the filters of each selected leaf, the others stay as they are.

    `labels` gives such a leaf the rule's label, even where the share rounds to no filter at all;
    `channel_masks` says which filters are learned, and what a filter is. The kernel and the bias of
    one layer share a draw. A fraction is no selector and takes no operators.

    Args:
        selector: a selector or its text.
        share: of the filters, in [0, 1]; exactly `round(share * filters)` are drawn in each leaf.
        seed: of the draw, a whole number from 0. With one seed a larger share contains a smaller one.

    Raises:
        MaskError: an argument is out of its range.

    >>> [("train", fraction("role('spatial')", 0.1)), ("freeze", everything)]
    [('train', fraction(role('spatial'), 0.1, 0)), ('freeze', everything)]
    """
    if isinstance(selector, str):
        selector = as_selector(selector)
    return Fraction(selector, share, seed)


def trainable(
    *learned: Selector | Fraction | str, names: Mapping[str, Selector] | None = None
) -> list[Rule]:
    """The rules that train what is given and freeze the rest.

    Args:
        *learned: selectors, fractions or texts. The words of a text may be the modes `full`, `chans`
          and `space`.
        names: further words, as of `parse`.

    >>> trainable("chans | depth(4, None)")
    [('train', ~role('spatial') | depth(4, None)), ('freeze', everything)]
    >>> trainable("chans", fraction(role("spatial"), 0.1))[1]
    ('train', fraction(role('spatial'), 0.1, 0))
    """
    words = {**MODES, **(names or {})}
    pairs = [(TRAIN, parse(one, words) if isinstance(one, str) else one) for one in learned]
    return checked_rules([*pairs, (FREEZE, everything)])


def checked_rules(rules: Iterable[tuple[str, Selector | Fraction | str]]) -> list[Rule]:
    """Rules with their texts read, or a `MaskError` that names the bad one."""
    if isinstance(rules, str | Mapping) or not isinstance(rules, Iterable):
        raise MaskError(f"rules are a list of (label, selector) pairs, got {shown(rules)}")
    return [_checked_rule(number, rule) for number, rule in enumerate(rules, start=1)]


def _checked_rule(number: int, rule: tuple[str, Selector | Fraction | str]) -> Rule:
    if not isinstance(rule, tuple | list) or len(rule) != 2:
        raise MaskError(f"rule {number} is a pair (label, selector), got {shown(rule)}")
    label, chosen = rule
    if not isinstance(label, str) or not label:
        raise MaskError(f"rule {number} has a label, a non-empty str: got {shown(label)}")
    if isinstance(chosen, str):
        try:
            chosen = parse(chosen)
        except MaskError as error:
            raise MaskError(f"rule {number} ({label!r}): {error}") from None
    if not isinstance(chosen, Selector | Fraction):
        raise MaskError(
            f"rule {number} ({label!r}) has a selector, a fraction or a text: got {shown(chosen)}"
        )
    if isinstance(chosen, Fraction) and label == FREEZE:
        raise MaskError(
            f"rule {number} ({label!r}): a fraction says which share is learned, label it {TRAIN!r}"
        )
    return label, chosen
