"""The exception of this package, and helpers for its messages."""

import difflib
import reprlib
from collections.abc import Iterable

_SHOWN_CHARACTERS = 80


class MaskError(ValueError):
    """An invalid selector, rule or tree.

    The message is one line: what was got and what to write instead. The class derives from
    `ValueError` alone, so that this package stays usable without the rest of the project.
    """


_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _SHOWN_CHARACTERS


def shown(value: object) -> str:
    """`repr(value)` on one line, shortened to about 80 characters.

    >>> shown("a" * 200)[:4], len(shown("a" * 200))
    ("'aaa", 80)
    """
    return " ".join(_shortened.repr(value).split())


def nearest(word: str, candidates: Iterable[str], cutoff: float = 0.0) -> str | None:
    """The candidate most similar to `word`, or None if none reaches `cutoff`, in [0, 1].

    >>> nearest("spacial", ["channel", "spatial"])
    'spatial'
    """
    return next(
        iter(difflib.get_close_matches(word, sorted(set(candidates)), n=1, cutoff=cutoff)), None
    )
