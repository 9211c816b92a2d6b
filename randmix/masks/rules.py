"""Rules: ordered pairs of a label and the selector of the leaves that receive it."""

import dataclasses
from collections.abc import Iterable, Mapping

from randmix.masks.errors import MaskError, shown
from randmix.masks.parsing import as_selector, parse
from randmix.masks.selectors import Fraction, Selector, everything, role

TRAIN = "train"
FREEZE = "freeze"

Rule = tuple[str, Selector | Fraction]

_SPATIAL, _CHANNEL = (
    dataclasses.replace(role(name), of_mode=True) for name in ("spatial", "channel")
)
MODES: dict[str, Selector] = {
    "full": everything,
    "chans": ~_SPATIAL,
    "space": ~_CHANNEL,
    "floor": ~(_SPATIAL | _CHANNEL),
}
"""What the modes train: everything, all but spatial mixing, all but channel mixing, or neither.

The first three are the paper's; the last, which trains only norms and head, is their baseline. If a
model lacks one of their two roles, a strict mask warns, where it refuses `~role('spatial')`; if it
lacks both, it refuses the mode, too."""


def fraction(selector: Selector | str, share: float, seed: int = 0) -> Fraction:
    """A rule's second half that learns only a share of the filters of each selected leaf.

    `labels` gives such a leaf the rule's label, even if the share rounds to no filter at all;
    `channel_masks` returns the filters that are learned and defines what a filter is. The kernel
    and the bias of a layer share one draw if they have as many filters. A fraction is not a
    selector and supports no operators.

    Args:
        selector: a selector or its text.
        share: share of the filters to learn, in [0, 1]; exactly `round(share * filters)` are drawn
            in each leaf.
        seed: seed of the draw, an integer of at least 0. With one seed, a larger share contains a
            smaller one.

    Raises:
        MaskError: an argument is out of range.

    >>> [("train", fraction("role('spatial')", 0.1)), ("freeze", everything)]
    [('train', fraction(role('spatial'), 0.1, 0)), ('freeze', everything)]
    """
    if isinstance(selector, str):
        selector = as_selector(selector)
    return Fraction(selector, share, seed)


def trainable(
    *learned: Selector | Fraction | str, names: Mapping[str, Selector] | None = None
) -> list[Rule]:
    """Rules that train the given leaves and freeze the rest.

    Args:
        *learned: selectors, fractions or texts. A text may use the modes `full`, `chans`,
            `space` and `floor` as words.
        names: additional words, as in `parse`.

    Raises:
        MaskError: a text cannot be parsed, or an argument is none of these.

    >>> trainable("chans | depth(4, None)")
    [('train', ~role('spatial') | depth(4, None)), ('freeze', everything)]
    >>> trainable("chans", fraction(role("spatial"), 0.1))[1]
    ('train', fraction(role('spatial'), 0.1, 0))
    """
    words = {**MODES, **(names or {})}
    pairs = [(TRAIN, parse(one, words) if isinstance(one, str) else one) for one in learned]
    return checked_rules([*pairs, (FREEZE, everything)])


def checked_rules(rules: Iterable[tuple[str, Selector | Fraction | str]]) -> list[Rule]:
    """Rules with their texts parsed; raises a `MaskError` that names an invalid rule."""
    if isinstance(rules, str | Mapping) or not isinstance(rules, Iterable):
        raise MaskError(f"rules must be a list of (label, selector) pairs, got {shown(rules)}")
    return [_checked_rule(number, rule) for number, rule in enumerate(rules, start=1)]


def _checked_rule(number: int, rule: tuple[str, Selector | Fraction | str]) -> Rule:
    if not isinstance(rule, tuple | list) or len(rule) != 2:
        raise MaskError(f"rule {number} must be a pair (label, selector), got {shown(rule)}")
    label, chosen = rule
    if not isinstance(label, str) or not label:
        raise MaskError(f"rule {number}: the label must be a non-empty str, got {shown(label)}")
    if isinstance(chosen, str):
        try:
            chosen = parse(chosen)
        except MaskError as error:
            raise MaskError(f"rule {number} ({label!r}): {error}") from None
    if not isinstance(chosen, Selector | Fraction):
        raise MaskError(
            f"rule {number} ({label!r}): expected a selector, a fraction or a text, "
            f"got {shown(chosen)}"
        )
    if isinstance(chosen, Fraction) and label == FREEZE:
        raise MaskError(
            f"rule {number} ({label!r}): a fraction names the learned share, label it {TRAIN!r}"
        )
    return label, chosen
