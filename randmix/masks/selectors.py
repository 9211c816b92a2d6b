"""Selectors: expressions that pick leaves of a parameter tree.

A selector is an immutable value, built from a few terms and the operators `&` (and), `|` (or),
`~` (not) and `-` (but not). It compares and hashes as the expression that was written. Chains of
one operator are flat, so `(a | b) | c == a | (b | c)`.

`parse` reads the `repr` of every selector back, because one that is too long or too deep to be read
is refused when it is built. Matching takes time linear in the path: RE2 matches the patterns
without backtracking, and the programs that it compiles for one selector are limited together.
"""

import functools
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

try:
    import re2
except ImportError:  # only the patterns of `path` need it
    re2 = None

from randmix.masks.depths import depth_alone
from randmix.masks.errors import MaskError, shown
from randmix.masks.tree import ABSENT, Leaf

MAX_CHARACTERS = 4096
MAX_NESTING = 64
MAX_INTEGER = 2**63 - 1
TOO_DEEP = f"a selector may nest at most {MAX_NESTING} deep: use fewer nested brackets or operators"
WORDS = ("role", "path", "depth", "leaf", "where", "fraction", "everything", "nothing")

# Instructions of all of RE2's programs in a selector. RE2 takes up to 6 ns for each instruction and
# character; tests/test_masks_limits.py measures the slowest patterns known.
MAX_PROGRAM = 500
_REGEX_BYTES = 128 * 1024  # RE2's memory for one pattern: its program and its cache of states
_SPECIAL = frozenset(r"\.^$*+?{}[]|()")

# What each kind of selector means: whether it selects a leaf, given its operands.
_MEANINGS: dict[str, Callable[..., bool]] = {
    "role": lambda leaf, name: leaf.role == name,
    "leaf": lambda leaf, name: leaf.name == name,
    "path": lambda leaf, pattern: _fits(leaf.path, pattern),
    "depth": lambda leaf, start, stop: (
        leaf.depth is not None
        and (start is None or start <= leaf.depth)
        and (stop is None or leaf.depth < stop)
    ),
    "where": lambda leaf, name, predicate: (
        leaf.value is not ABSENT and bool(predicate(leaf.path, leaf.value))
    ),
    "everything": lambda leaf: True,
    "nothing": lambda leaf: False,
    "&": lambda leaf, *operands: all(operand.matches(leaf) for operand in operands),
    "|": lambda leaf, *operands: any(operand.matches(leaf) for operand in operands),
    "-": lambda leaf, first, *others: (
        first.matches(leaf) and not any(other.matches(leaf) for other in others)
    ),
    "~": lambda leaf, operand: not operand.matches(leaf),
}
# Each operator, and the operators that are written in brackets inside it. Python's precedence is
# ~ over - over & over |; of an operator inside itself only a - (b - c) remains.
_BRACKETED = {"|": (), "&": ("|",), "-": ("|", "&", "-"), "~": ("|", "&", "-")}


def _check_length(text: str) -> None:
    """Raises a MaskError if `parse` would refuse the text of a selector or a fraction."""
    if len(text) > MAX_CHARACTERS:
        raise MaskError(
            f"a selector may have at most {MAX_CHARACTERS:,} characters when written out, got "
            f"{len(text):,}: combine terms in one path, or use where"
        )


@dataclass(frozen=True, slots=True, repr=False)
class Selector:
    """An expression that selects leaves, built by `role`, `path`, ... and the operators.

    A selector is also a predicate `(path, leaf) -> bool`, where the path is a str or a sequence of
    components. It can therefore serve as a `flax.nnx` filter:
    `nnx.split(model, masks.role("spatial"), ...)`. Called with one path it doesn't know the tree:
    it can't find a misspelt name, and refuses the depth of a block in a stage.

    Attributes:
        kind: the word of a term, such as "role", or one of the operators "&", "|", "-" and "~".
        operands: the arguments of a term, or the selectors that an operator combines.
        text: the expression, which `parse` reads back.
    """

    kind: str
    operands: tuple[Any, ...]
    text: str = field(compare=False)
    # For this package's limits and strictness: operators inside one another, instructions of the
    # compiled patterns, and whether it is a role of the modes, which may be absent.
    nesting: int = field(default=0, compare=False)
    program: int = field(default=0, compare=False)
    of_mode: bool = field(default=False, compare=False)

    def __post_init__(self):
        if self.nesting > MAX_NESTING:
            raise MaskError(TOO_DEEP)
        _check_length(self.text)
        if self.program > MAX_PROGRAM:
            raise MaskError(
                f"the paths of a selector may compile to at most {MAX_PROGRAM} instructions, got "
                f"{self.program:,} for {shown(self)}: repeat less, or use where"
            )

    def matches(self, leaf: Leaf) -> bool:
        """Returns whether the leaf is selected."""
        return _MEANINGS[self.kind](leaf, *self.operands)

    def terms(self) -> Iterator["Selector"]:
        """Yields the terms of the expression from left to right."""
        if self.kind not in _BRACKETED:
            yield self
            return
        for operand in self.operands:
            yield from operand.terms()

    def __call__(self, path: str | Sequence[Any], leaf: Any = None) -> bool:
        """Returns whether the leaf at a path is selected; `leaf` is read by `where` alone."""
        joined = path if isinstance(path, str) else "/".join(map(str, path))
        deep = any(term.kind == "depth" for term in self.terms())
        return self.matches(Leaf(joined, leaf, depth_alone(joined) if deep else None))

    def __repr__(self) -> str:
        return self.text

    def __and__(self, other: "Selector") -> "Selector":
        return self._joined("&", other)

    def __or__(self, other: "Selector") -> "Selector":
        return self._joined("|", other)

    def __sub__(self, other: "Selector") -> "Selector":
        return self._joined("-", other)

    def __invert__(self) -> "Selector":
        return _operation("~", self)

    def __bool__(self) -> bool:
        # `a and b` would silently evaluate to b.
        raise TypeError("a selector has no truth value: write & for and, | for or, ~ for not")

    def _joined(self, kind: str, other: "Selector") -> "Selector":
        if not isinstance(other, Selector):
            return NotImplemented
        first = self.operands if self.kind == kind else (self,)
        second = other.operands if kind != "-" and other.kind == kind else (other,)
        return _operation(kind, *first, *second)


def _operation(kind: str, *operands: Selector) -> Selector:
    texts = [
        f"({operand})" if operand.kind in _BRACKETED[kind] else operand.text for operand in operands
    ]
    return Selector(
        kind,
        operands,
        f"~{texts[0]}" if kind == "~" else f" {kind} ".join(texts),
        nesting=1 + max(operand.nesting for operand in operands),
        program=sum(operand.program for operand in operands),
    )


def role(name: str) -> Selector:
    """Selects the leaves whose first path component is `name`.

    >>> ~role("spatial")
    ~role('spatial')
    """
    name = _checked_name("role", name)
    return Selector("role", (name,), f"role({name!r})")


def path(pattern: str) -> Selector:
    r"""Selects the leaves whose entire slash-joined path matches a regular expression.

    Args:
        pattern: a regular expression, applied to paths such as `spatial/block_03/depthwise/kernel`.
            Its [syntax](https://github.com/google/re2/wiki/Syntax) is RE2's: Python's without
            lookaround and backreferences, with `\w`, `\d` and `\s` for ASCII only. A pattern can't
            take exponential time. A pattern without special characters is the path itself.

    Raises:
        MaskError: `pattern` is not a valid regular expression, is too large, or has special
            characters where the package google-re2 is not installed.

    >>> path(r"spatial/block_\d+/.*")("spatial/block_03/depthwise/kernel")
    True
    """
    pattern = _checked_name("path", pattern, "regular expression")
    text = f"path({pattern!r})"
    _check_length(text)  # before RE2 reads it
    program = 0 if _SPECIAL.isdisjoint(pattern) else _compiled(pattern).programsize
    return Selector("path", (pattern,), text, program=program)


def depth(start: int | None, stop: int | None) -> Selector:
    """Selects the leaves whose depth is in [start, stop); None leaves an end open.

    The depth of a leaf is the number of its block: 7 in `spatial/block_07/depthwise/kernel`, 3 in
    `layers_3/kernel`, `layer3/kernel` and `layers/3/kernel`. Blocks inside stages are counted over
    the whole tree: if `stage_0` has 3 blocks, `stage_1/block_3` has depth 6. `depths.depths` states
    the rule in full. A leaf outside all blocks is in no range, not even `depth(None, None)`. Layers
    stacked in one leaf, as by `nn.scan`, have no depths of their own.

    Args:
        start: first depth, at least 0, or None for no lower limit.
        stop: end of the range, exclusive, at least `start`, or None for no upper limit.

    Raises:
        MaskError: an end is neither None nor an integer of at least 0, or `start` exceeds `stop`.

    >>> [depth(4, None)(p) for p in ("spatial/block_03/bias", "spatial/block_04/bias", "head/bias")]
    [False, True, False]
    """
    for end in (start, stop):
        if end is not None and not is_bounded(end):
            raise MaskError(
                f"depth(start, stop) expects integers from 0 to {MAX_INTEGER:,}, or None for "
                f"an open end, got {shown(end)}"
            )
    # The repr of a NumPy integer couldn't be parsed.
    start, stop = (None if end is None else int(end) for end in (start, stop))
    if start is not None and stop is not None and start > stop:
        raise MaskError(
            f"depth({start}, {stop}) ends before it starts: write depth({stop}, {start})"
        )
    return Selector("depth", (start, stop), f"depth({start}, {stop})")


def leaf(name: str) -> Selector:
    """Selects the leaves whose last path component is `name`.

    >>> leaf("bias")("head/classifier/bias")
    True
    """
    name = _checked_name("leaf", name)
    return Selector("leaf", (name,), f"leaf({name!r})")


def where(predicate: Callable[[str, Any], bool], name: str) -> Selector:
    """Selects the leaves for which `predicate(path, leaf)` is true.

    Args:
        predicate: called outside jit with the slash-joined path and the leaf itself (an array, a
            `jax.ShapeDtypeStruct`, ...).
        name: represents the predicate in the `repr`. Two such selectors are equal if both their
            names and their predicates are. `parse(text, names={name: selector})` reads it back.

    >>> matrices = where(lambda path, leaf: leaf.ndim == 2, "matrices")
    >>> matrices - leaf("bias")
    where('matrices') - leaf('bias')
    """
    name = _checked_name("where", name)
    if name in WORDS:
        raise MaskError(f"where can't be named {name!r}, a word of selectors: choose another name")
    if not callable(predicate):
        raise MaskError(f"where expects a predicate(path, leaf) -> bool, got {shown(predicate)}")
    return Selector("where", (name, predicate), f"where({name!r})")


everything: Selector = Selector("everything", (), "everything")
"""Selects all leaves."""

nothing: Selector = Selector("nothing", (), "nothing")
"""Selects no leaf."""


@dataclass(frozen=True, slots=True, repr=False)
class Fraction:
    """A share of the filters of each selected leaf, for use in a rule; created by `fraction`."""

    selector: Selector
    share: float
    seed: int

    def __post_init__(self):
        if not isinstance(self.selector, Selector):
            raise MaskError(f"fraction expects a selector or its text, got {shown(self.selector)}")
        # `not (0 <= x <= 1)` rejects NaN too.
        real = isinstance(self.share, numbers.Real) and not isinstance(self.share, bool)
        if not real or not 0 <= self.share <= 1:
            raise MaskError(
                f"the share of a fraction must be a number from 0 to 1, got {shown(self.share)}"
            )
        if not is_bounded(self.seed):
            raise MaskError(
                f"the seed of a fraction must be an integer from 0 to {MAX_INTEGER:,}, "
                f"got {shown(self.seed)}"
            )
        # Python's own numbers, whose repr can be parsed; that of an np.float64 can't.
        object.__setattr__(self, "share", float(self.share))
        object.__setattr__(self, "seed", int(self.seed))
        _check_length(repr(self))

    def __repr__(self) -> str:
        return f"fraction({self.selector!r}, {self.share!r}, {self.seed!r})"

    def _refuse(self, *_: Any) -> NoReturn:
        raise MaskError(
            "fraction(...) is a rule, not a selector: combine selectors inside its brackets"
        )

    __and__ = __rand__ = __or__ = __ror__ = __sub__ = __rsub__ = __invert__ = __bool__ = _refuse


def is_bounded(value: Any) -> bool:
    """Whether a value is an integer from 0 to `MAX_INTEGER`, whose decimal form can be read."""
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return integer and 0 <= int(value) <= MAX_INTEGER


def _checked_name(term: str, name: Any, kind: str = "name") -> str:
    """The name as a plain str: the repr of an `np.str_` or of an enum couldn't be parsed."""
    if not isinstance(name, str) or not name:
        raise MaskError(f"{term} expects a {kind} as a non-empty str, got {shown(name)}")
    return str.__str__(name)


def _fits(joined: str, pattern: str) -> bool:
    if _SPECIAL.isdisjoint(pattern):
        return joined == pattern
    return _compiled(pattern).fullmatch(joined.encode("utf-8", "surrogatepass")) is not None


@functools.lru_cache(maxsize=1024)  # a selector holds at most MAX_PROGRAM patterns
def _compiled(pattern: str) -> Any:
    if re2 is None:
        raise MaskError(
            f"path({shown(pattern)}) is a regular expression, which needs RE2: "
            "run pip install google-re2, or use role, leaf, depth, where or a full path"
        )
    options = re2.Options()
    options.max_mem = _REGEX_BYTES
    options.never_capture = True
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        raise MaskError(
            f"path expects a regular expression in RE2's syntax, got {shown(pattern)}: "
            f"{_reason(error)}"
        ) from None


def _reason(error: Exception) -> str:
    """RE2's reason, such as `missing ] '[a'`."""
    if isinstance(error, UnicodeEncodeError):
        return "it contains half of a surrogate pair"
    kind, _, part = error.args[0].decode(errors="replace").partition(": ")
    if kind.startswith("pattern too large"):
        return "it is too large, repeat less, or use where"
    return f"{kind} {shown(part)}" if part else kind
