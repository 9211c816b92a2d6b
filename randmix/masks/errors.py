"""The exception of this package, and helpers for its messages."""

import difflib
import reprlib
from collections.abc import Iterable

_SHOWN_CHARACTERS = 80
_COMPARED = 10
_COMPARED_CHARACTERS = 200


class MaskError(ValueError):
    """An invalid selector, rule or tree.

    The message is one line: what was got and what to write instead. The class derives from
    `ValueError` alone, so that this package stays usable without the rest of the project.
    """


class _Shortened(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes at most 4,300 digits
            return f"an integer of {x.bit_length():,} bits"


_shortened = _Shortened()
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
    word = word[:_COMPARED_CHARACTERS]
    matcher = difflib.SequenceMatcher(b=word)

    def shared(candidate: str) -> float:
        matcher.set_seq1(candidate)
        return matcher.quick_ratio()

    # Milliseconds for each pair of long paths: compare only those that share the most characters.
    likely = sorted(sorted(set(candidates)), key=shared, reverse=True)[:_COMPARED]
    return next(iter(difflib.get_close_matches(word, likely, n=1, cutoff=cutoff)), None)
