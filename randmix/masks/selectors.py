"""Selectors: expressions that pick leaves of a parameter tree.

A selector is an immutable value, built from a few terms and the operators `&` (and), `|` (or),
`~` (not) and `-` (but not). It compares and hashes as the expression that was written. Chains of
one operator are flat, so `(a | b) | c == a | (b | c)`.

`parse` reads the `repr` of every selector back, because one that is too long or too deep to be read
is refused when it is built. Matching takes time linear in the path: RE2 matches the patterns
without backtracking, and the programs that it compiles for one selector are limited together.
"""
# ruff: noqa: D102 (the docstring of each class says what its `matches` selects)

import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import re2

from randmix.masks.errors import MaskError, shown
from randmix.masks.tree import Leaf

MAX_CHARACTERS = 4096
MAX_NESTING = 64
MAX_INTEGER = 2**63 - 1
WORDS = ("role", "path", "depth", "leaf", "where", "fraction", "everything", "nothing")

# Instructions of all of RE2's programs in a selector. RE2 takes up to 6 ns for each instruction and
# character; tests/test_masks_limits.py measures the slowest patterns known.
MAX_PROGRAM = 500
_REGEX_BYTES = 128 * 1024  # RE2's memory for one pattern: its program and its cache of states
_SPECIAL = frozenset(r"\.^$*+?{}[]|()")


class Selector:
    """Base class of all selectors.

    A selector is also a predicate `(path, leaf) -> bool`, where the path is a str or a sequence of
    components. It can therefore serve as a `flax.nnx` filter:
    `nnx.split(model, masks.role("spatial"), ...)`.
    """

    __slots__ = ()
    nesting: ClassVar[int] = 0
    program: ClassVar[int] = 0  # instructions of the compiled patterns
    precedence: ClassVar[int] = 5  # as in Python: | 1, & 2, - 3, ~ 4, a term 5

    def matches(self, leaf: Leaf) -> bool:
        """Returns whether the leaf is selected."""
        raise NotImplementedError

    def terms(self) -> Iterator["Selector"]:
        """Yields the terms of the expression from left to right."""
        yield self

    def __call__(self, path: str | Sequence[Any], leaf: Any = None) -> bool:
        joined = path if isinstance(path, str) else "/".join(map(str, path))
        return self.matches(Leaf(joined, leaf))

    def __and__(self, other: "Selector") -> "Selector":
        return And(self, other) if isinstance(other, Selector) else NotImplemented

    def __or__(self, other: "Selector") -> "Selector":
        return Or(self, other) if isinstance(other, Selector) else NotImplemented

    def __sub__(self, other: "Selector") -> "Selector":
        return Difference(self, other) if isinstance(other, Selector) else NotImplemented

    def __invert__(self) -> "Selector":
        return Not(self)

    def __bool__(self) -> bool:
        # `a and b` would silently evaluate to b.
        raise TypeError("a selector has no truth value: write & for and, | for or, ~ for not")


# Terms


@dataclass(frozen=True, slots=True, repr=False)
class Role(Selector):
    """Leaves whose first path component is `name`."""

    name: str

    def __post_init__(self):
        object.__setattr__(self, "name", _checked_name("role", self.name))
        check_length(self)

    def matches(self, leaf: Leaf) -> bool:
        return leaf.role == self.name

    def __repr__(self) -> str:
        return f"role({self.name!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Name(Selector):
    """Leaves whose last path component is `name`."""

    name: str

    def __post_init__(self):
        object.__setattr__(self, "name", _checked_name("leaf", self.name))
        check_length(self)

    def matches(self, leaf: Leaf) -> bool:
        return leaf.name == self.name

    def __repr__(self) -> str:
        return f"leaf({self.name!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Path(Selector):
    """Leaves whose entire path matches the regular expression `pattern`."""

    pattern: str
    regex: Any = field(init=False, compare=False)  # None: a pattern without special characters
    program: int = field(init=False, compare=False)

    def __post_init__(self):
        pattern = _checked_name("path", self.pattern, "regular expression")
        object.__setattr__(self, "pattern", pattern)
        check_length(self)
        regex = None if _SPECIAL.isdisjoint(pattern) else _compile(pattern)
        object.__setattr__(self, "regex", regex)
        object.__setattr__(self, "program", 0 if regex is None else regex.programsize)
        _check_program(self)

    def matches(self, leaf: Leaf) -> bool:
        if self.regex is None:
            return leaf.path == self.pattern
        return self.regex.fullmatch(leaf.path.encode("utf-8", "surrogatepass")) is not None

    def __repr__(self) -> str:
        return f"path({self.pattern!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Depth(Selector):
    """Leaves whose depth is in the half-open range [start, stop); None leaves an end open."""

    start: int | None
    stop: int | None

    def __post_init__(self):
        for field_name in ("start", "stop"):
            end = getattr(self, field_name)
            if end is None:
                continue
            if not is_bounded(end):
                raise MaskError(
                    f"depth(start, stop) expects integers from 0 to {MAX_INTEGER:,}, or None for "
                    f"an open end, got {shown(end)}"
                )
            # The repr of a NumPy integer couldn't be parsed.
            object.__setattr__(self, field_name, int(end))
        if self.start is not None and self.stop is not None and self.start > self.stop:
            raise MaskError(
                f"depth({self.start}, {self.stop}) ends before it starts: "
                f"write depth({self.stop}, {self.start})"
            )

    def matches(self, leaf: Leaf) -> bool:
        depth = leaf.depth
        if depth is None:
            return False
        return (self.start is None or self.start <= depth) and (
            self.stop is None or depth < self.stop
        )

    def __repr__(self) -> str:
        return f"depth({self.start}, {self.stop})"


@dataclass(frozen=True, slots=True, repr=False)
class Where(Selector):
    """Leaves for which `predicate(path, leaf)` is true."""

    predicate: Callable[[str, Any], bool]
    name: str

    def __post_init__(self):
        object.__setattr__(self, "name", _checked_name("where", self.name))
        if self.name in WORDS:
            raise MaskError(
                f"where can't be named {self.name!r}, a word of selectors: choose another name"
            )
        check_length(self)
        if not callable(self.predicate):
            raise MaskError(
                f"where expects a predicate(path, leaf) -> bool, got {shown(self.predicate)}"
            )

    def matches(self, leaf: Leaf) -> bool:
        return bool(self.predicate(leaf.path, leaf.value))

    def __repr__(self) -> str:
        return f"where({self.name!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Everything(Selector):
    """All leaves."""

    def matches(self, leaf: Leaf) -> bool:
        return True

    def __repr__(self) -> str:
        return "everything"


@dataclass(frozen=True, slots=True, repr=False)
class Nothing(Selector):
    """No leaf."""

    def matches(self, leaf: Leaf) -> bool:
        return False

    def __repr__(self) -> str:
        return "nothing"


# Operators


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Operation(Selector):
    """An operator and its operands; chains of an associative operator are flattened."""

    operands: tuple[Selector, ...]
    nesting: int = field(compare=False)
    program: int = field(compare=False)
    symbol: ClassVar[str]
    associative: ClassVar[bool] = True

    def __init__(self, first: Selector, *others: Selector):
        operands = self._chain(first)
        for other in others:
            operands += self._chain(other) if self.associative else (other,)
        nesting = 1 + max(operand.nesting for operand in operands)
        if nesting > MAX_NESTING:
            raise MaskError(
                f"a selector may nest at most {MAX_NESTING} deep: name a part with where or a path"
            )
        object.__setattr__(self, "operands", operands)
        object.__setattr__(self, "nesting", nesting)
        object.__setattr__(self, "program", sum(operand.program for operand in operands))
        check_length(self)
        _check_program(self)

    def terms(self) -> Iterator[Selector]:
        for operand in self.operands:
            yield from operand.terms()

    def _chain(self, operand: Selector) -> tuple[Selector, ...]:
        return operand.operands if type(operand) is type(self) else (operand,)

    def _written(self, operand: Selector) -> str:
        # An operand with the same operator remains only where the order matters: a - (b - c).
        needs = operand.precedence < self.precedence or type(operand) is type(self)
        return f"({operand!r})" if needs else repr(operand)

    def __repr__(self) -> str:
        return f" {self.symbol} ".join(map(self._written, self.operands))


class And(Operation):
    """Leaves that every operand selects."""

    __slots__ = ()
    symbol = "&"
    precedence = 2

    def matches(self, leaf: Leaf) -> bool:
        return all(operand.matches(leaf) for operand in self.operands)


class Or(Operation):
    """Leaves that at least one operand selects."""

    __slots__ = ()
    symbol = "|"
    precedence = 1

    def matches(self, leaf: Leaf) -> bool:
        return any(operand.matches(leaf) for operand in self.operands)


class Difference(Operation):
    """Leaves that the first operand selects and no other operand does."""

    __slots__ = ()
    symbol = "-"
    precedence = 3
    associative = False

    def matches(self, leaf: Leaf) -> bool:
        first, *others = self.operands
        return first.matches(leaf) and not any(other.matches(leaf) for other in others)


class Not(Operation):
    """Leaves that the operand doesn't select."""

    __slots__ = ()
    symbol = "~"
    precedence = 4

    def _chain(self, operand: Selector) -> tuple[Selector, ...]:
        return (operand,)

    def matches(self, leaf: Leaf) -> bool:
        return not self.operands[0].matches(leaf)

    def __repr__(self) -> str:
        (operand,) = self.operands
        return f"~({operand!r})" if operand.precedence < self.precedence else f"~{operand!r}"


# The public terms


def role(name: str) -> Selector:
    """Selects the leaves whose first path component is `name`.

    >>> ~role("spatial")
    ~role('spatial')
    """
    return Role(name)


def path(pattern: str) -> Selector:
    r"""Selects the leaves whose entire slash-joined path matches a regular expression.

    Args:
        pattern: a regular expression, applied to paths such as `spatial/block_03/depthwise/kernel`.
            Its [syntax](https://github.com/google/re2/wiki/Syntax) is RE2's: Python's without
            lookaround and backreferences, with `\w`, `\d` and `\s` for ASCII only. A pattern can't
            take exponential time.

    Raises:
        MaskError: `pattern` is not a valid regular expression, or is too large.

    >>> path(r"spatial/block_\d+/.*")("spatial/block_03/depthwise/kernel")
    True
    """
    return Path(pattern)


def depth(start: int | None, stop: int | None) -> Selector:
    """Selects the leaves whose depth is in [start, stop); None leaves an end open.

    The depth of a leaf is the number in the first path component that ends in `_` and digits, or
    that consists of digits (an index into a sequence): 7 in `spatial/block_07/depthwise/kernel`, 3
    in `layers_3/kernel` and in `layers/3/kernel`. A leaf without such a component has no depth and
    is in no range, not even `depth(None, None)`.

    Args:
        start: first depth, at least 0, or None for no lower limit.
        stop: end of the range, exclusive, at least `start`, or None for no upper limit.

    Raises:
        MaskError: an end is neither None nor an integer of at least 0, or `start` exceeds `stop`.

    >>> [depth(4, None)(p) for p in ("spatial/block_03/bias", "spatial/block_04/bias", "head/bias")]
    [False, True, False]
    """
    return Depth(start, stop)


def leaf(name: str) -> Selector:
    """Selects the leaves whose last path component is `name`.

    >>> leaf("bias")("head/classifier/bias")
    True
    """
    return Name(name)


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
    return Where(predicate, name)


everything: Selector = Everything()
"""Selects all leaves."""

nothing: Selector = Nothing()
"""Selects no leaf."""


def is_bounded(value: Any) -> bool:
    """Whether a value is an integer from 0 to `MAX_INTEGER`, whose decimal form can be read."""
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return integer and 0 <= int(value) <= MAX_INTEGER


def _checked_name(term: str, name: Any, kind: str = "name") -> str:
    """The name as a plain str: the repr of an `np.str_` or of an enum couldn't be parsed."""
    if not isinstance(name, str) or not name:
        raise MaskError(f"{term} expects a {kind} as a non-empty str, got {shown(name)}")
    return str.__str__(name)


def check_length(selector: Any) -> None:
    """Raises a MaskError if `parse` couldn't read the repr of a selector or a fraction."""
    if (length := len(repr(selector))) > MAX_CHARACTERS:
        raise MaskError(
            f"a selector may have at most {MAX_CHARACTERS:,} characters when written out, got "
            f"{length:,}: combine terms in one path, or use where"
        )


def _check_program(selector: Selector) -> None:
    if selector.program > MAX_PROGRAM:
        raise MaskError(
            f"the paths of a selector may compile to at most {MAX_PROGRAM} instructions, got "
            f"{selector.program:,} for {shown(selector)}: repeat less, or use where"
        )


def _compile(pattern: str) -> Any:
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
