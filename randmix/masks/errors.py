"""The error of this package and how it shows what it was given."""

import difflib
import reprlib
from collections.abc import Iterable

_SHOWN_CHARACTERS = 80


class MaskError(ValueError):
    """A selector, a rule or a tree that can't be used; its message is one line.

    It says what was got and what to write instead. It derives from `ValueError` alone, so that
    this package stays usable without the rest of the project.
    """


_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _SHOWN_CHARACTERS


def shown(value: object) -> str:
    """`repr(value)` on one line of at most about 80 characters, for a message.

    >>> shown("a" * 200)[:4], len(shown("a" * 200))
    ("'aaa", 80)
    """
    return " ".join(_shortened.repr(value).split())


def nearest(word: str, candidates: Iterable[str], cutoff: float = 0.0) -> str | None:
    """The candidate most like `word`; None without one that is at least `cutoff` (0 to 1) alike.

    >>> nearest("spacial", ["channel", "spatial"])
    'spatial'
    """
    return next(
        iter(difflib.get_close_matches(word, sorted(set(candidates)), n=1, cutoff=cutoff)), None
    )
