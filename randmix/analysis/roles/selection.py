"""Short selectors for given sets of paths."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from randmix import masks
from randmix.analysis.roles.model import WORD

REST = "everything"  # the last role's selector
_LONGEST = 3  # most parts of a path in a pattern that may match in its middle


class _Pattern(NamedTuple):
    """Text that a path contains: anywhere, or at its start, its end or both.

    Attributes:
        before, after: whether anything may stand before it, and after it.
        text: the text, from one word of a path to all of it.
        separator: the "/" or "." after it, or "".
    """

    before: bool
    text: str
    separator: str
    after: bool

    def fits(self, path: str) -> bool:
        """Whether the path contains the text there; faster than a regular expression."""
        whole = self.text + self.separator
        if self.before:
            return whole in path if self.after else path.endswith(whole)
        return path.startswith(whole) if self.after else path == whole

    @property
    def rank(self) -> tuple[Any, ...]:
        """Of patterns that fit the same paths, the smallest is preferred."""
        anywhere = self.before and self.after
        return not anywhere, not self.after, self.separator, len(self.text), self


def shortest(roles: Mapping[str, str], order: Sequence[str]) -> dict[str, str]:
    """Returns selectors as text that give each path its role.

    Each matches the paths of its role alone, whatever stands before it, but for the last, which is
    "everything": that role which makes the others the shortest, but never the first of several, so
    that what is frozen is always said. The patterns of a role are chosen greedily, the one that
    matches the most paths first.

    Args:
        roles: the role of each path.
        order: all roles, in the order of the result, the one that is most often frozen first.

    Returns:
        Selectors by role, without roles that no path has. {} if they would be longer than a
        selector may be.
    """
    paths = list(roles)
    sets = {role: sum(1 << i for i, p in enumerate(paths) if roles[p] == role) for role in order}
    sets = {role: matched for role, matched in sets.items() if matched}
    patterns: dict[int, _Pattern] = {}  # by the set of paths that they match
    for pattern in sorted(set(itertools.chain(*map(_patterns, paths))), key=lambda one: one.rank):
        matched = sum(1 << i for i, path in enumerate(paths) if pattern.fits(path))
        patterns.setdefault(matched, pattern)
    texts = {role: _covering(matched, patterns) for role, matched in sets.items()}
    candidates = [
        {role: text for role, text in texts.items() if role != last} | {last: REST}
        for last in [*reversed(texts)][: max(len(texts) - 1, 1)]
    ]
    usable = [one for one in candidates if all(one.values())]
    return min(usable, key=lambda one: sum(map(len, one.values())), default={})


def _covering(paths: int, patterns: Mapping[int, _Pattern]) -> str:
    """A selector of exactly these paths; "" if it would be too long."""
    usable = {matched: one for matched, one in patterns.items() if not matched & ~paths}
    chosen = []
    while paths:
        best = max(usable, key=lambda matched: (matched & paths).bit_count())
        chosen.append(usable[best])
        paths &= ~best
    try:
        return repr(masks.path(_joined(chosen)))
    except masks.MaskError:
        return ""


def _joined(patterns: Sequence[_Pattern]) -> str:
    """One regular expression of several, with what they have in common written once."""
    alike: dict[tuple[bool, str, bool], list[str]] = {}
    for before, text, separator, after in patterns:
        alike.setdefault((before, separator, after), []).append(_escaped(text))
    return "|".join(
        ".*" * before
        + (texts[0] if len(texts) == 1 else f"({'|'.join(texts)})")
        + _escaped(separator)
        + ".*" * after
        for (before, separator, after), texts in alike.items()
    )


def _escaped(text: str) -> str:
    """Plain text as a regular expression; [.] rather than a backslash, which texts double."""
    return re.sub(r"[^\w/-]", lambda one: "[.]" if one[0] == "." else re.escape(one[0]), text)


def _patterns(path: str) -> Iterator[_Pattern]:
    """Patterns that fit a path, from one word of it to the whole."""
    parts = [*re.finditer("[^/.]+", path)]
    for part in parts:
        stem = re.sub("_*[0-9]+$", "", part[0])
        words = (word for word in WORD.findall(part[0]) if len(word) > 2)
        yield from (_Pattern(True, one, "", True) for one in {stem, *words} if len(one) > 1)
    for first, last in itertools.combinations_with_replacement(parts, 2):
        start, stop = first.start(), last.end()
        if last is parts[-1]:
            yield _Pattern(True, path[max(start - 1, 0) :], "", False)
        elif path.count("/", start, stop) + path.count(".", start, stop) < _LONGEST:
            bounded = stop - start == 1 or path[start].isdecimal()
            yield _Pattern(True, path[start - (bounded and start > 0) : stop], path[stop], True)
            yield _Pattern(False, path[:stop], path[stop], True)
    yield _Pattern(False, path, "", False)
