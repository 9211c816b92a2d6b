"""Selectors: expressions that say which leaves of a parameter tree are meant.

A selector is an immutable value. It is built from a few terms and the operators `&` (and), `|` (or),
`~` (not) and `-` (but not), compares and hashes as the expression that was written, and its `repr` is
the text that `parse` reads back. Chains of one operator are flat, so `(a | b) | c == a | (b | c)`.
"""
# ruff: noqa: D102 (the docstring of each class says what its `matches` matches)

import numbers
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from randmix.masks.errors import MaskError, shown
from randmix.masks.tree import Leaf

MAX_NESTING = 64


class Selector:
    """What all selectors share: the operators, and being called on one leaf.

    A selector is also a predicate `(path, leaf) -> bool`, with the path a str or a sequence of its
    components. So it is a filter for `flax.nnx`: `nnx.split(model, masks.role("spatial"), ...)`.
    """

    __slots__ = ()
    nesting: ClassVar[int] = 0
    precedence: ClassVar[int] = 5  # of Python's operators: | 1, & 2, - 3, ~ 4, a term 5

    def matches(self, leaf: Leaf) -> bool:
        """Whether the leaf is selected."""
        raise NotImplementedError

    def terms(self) -> Iterator["Selector"]:
        """The terms of the expression, from left to right."""
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
        # `a and b` would quietly be b.
        raise TypeError("a selector has no truth value: write & for and, | for or, ~ for not")


# Terms


@dataclass(frozen=True, slots=True, repr=False)
class Role(Selector):
    """Leaves whose first path component is `name`."""

    name: str

    def __post_init__(self):
        _check_name("role", self.name)

    def matches(self, leaf: Leaf) -> bool:
        return leaf.role == self.name

    def __repr__(self) -> str:
        return f"role({self.name!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Name(Selector):
    """Leaves whose last path component is `name`."""

    name: str

    def __post_init__(self):
        _check_name("leaf", self.name)

    def matches(self, leaf: Leaf) -> bool:
        return leaf.name == self.name

    def __repr__(self) -> str:
        return f"leaf({self.name!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Path(Selector):
    """Leaves whose whole path matches the regular expression `pattern`."""

    pattern: str
    regex: re.Pattern = field(init=False, compare=False)

    def __post_init__(self):
        _check_name("path", self.pattern, "regular expression")
        object.__setattr__(self, "regex", _compile(self.pattern))

    def matches(self, leaf: Leaf) -> bool:
        return self.regex.fullmatch(leaf.path) is not None

    def __repr__(self) -> str:
        return f"path({self.pattern!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Depth(Selector):
    """Leaves whose depth lies in the half-open range [start, stop); None leaves an end open."""

    start: int | None
    stop: int | None

    def __post_init__(self):
        for field_name in ("start", "stop"):
            end = getattr(self, field_name)
            if end is None:
                continue
            if isinstance(end, bool) or not isinstance(end, numbers.Integral) or end < 0:
                raise MaskError(
                    f"depth(start, stop) takes whole numbers from 0 or None for open, got {shown(end)}"
                )
            object.__setattr__(
                self, field_name, int(end)
            )  # a NumPy integer's repr doesn't read back
        if self.start is not None and self.stop is not None and self.start > self.stop:
            raise MaskError(
                f"depth({self.start}, {self.stop}) ends before it starts: write depth({self.stop}, {self.start})"
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
    """Leaves of which `predicate(path, leaf)` is true."""

    predicate: Callable[[str, Any], bool]
    name: str

    def __post_init__(self):
        _check_name("where", self.name)
        if not callable(self.predicate):
            raise MaskError(
                f"where takes a predicate(path, leaf) -> bool, got {shown(self.predicate)}"
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
    """An operator and its operands; the first one's chain of the same operator is taken in."""

    operands: tuple[Selector, ...]
    nesting: int = field(compare=False)
    symbol: ClassVar[str]
    associative: ClassVar[bool] = True

    def __init__(self, first: Selector, *others: Selector):
        operands = self._chain(first)
        for other in others:
            operands += self._chain(other) if self.associative else (other,)
        nesting = 1 + max(operand.nesting for operand in operands)
        if nesting > MAX_NESTING:
            raise MaskError(
                f"a selector nests at most {MAX_NESTING} deep: name a part with where or a path"
            )
        object.__setattr__(self, "operands", operands)
        object.__setattr__(self, "nesting", nesting)

    def terms(self) -> Iterator[Selector]:
        for operand in self.operands:
            yield from operand.terms()

    def _chain(self, operand: Selector) -> tuple[Selector, ...]:
        return operand.operands if type(operand) is type(self) else (operand,)

    def _written(self, operand: Selector) -> str:
        # An operand of the same operator is left here only where the order matters: a - (b - c).
        needs = operand.precedence < self.precedence or type(operand) is type(self)
        return f"({operand!r})" if needs else repr(operand)

    def __repr__(self) -> str:
        return f" {self.symbol} ".join(map(self._written, self.operands))


class And(Operation):
    """Leaves that all operands select."""

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
    """Leaves that the first operand selects and none of the others does."""

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
    r"""Selects the leaves whose whole slash-joined path matches a regular expression.

    Args:
        pattern: as of `re.fullmatch`, held against paths like `spatial/block_03/depthwise/kernel`.

    Raises:
        MaskError: `pattern` is not a regular expression.

    >>> path(r"spatial/block_\d+/.*")("spatial/block_03/depthwise/kernel")
    True
    """
    return Path(pattern)


def depth(start: int | None, stop: int | None) -> Selector:
    """Selects the leaves whose depth is in [start, stop); None leaves an end open.

    The depth of a leaf is the number in the first path component that ends in `_` and digits, or
    consists of digits (a position in a sequence): 7 in `spatial/block_07/depthwise/kernel`, 3 in
    `layers_3/kernel` and in `layers/3/kernel`. A leaf without one is in no range, `depth(None, None)`
    included.

    Raises:
        MaskError: an end is not a whole number from 0 or None, or `start` is above `stop`.

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
        predicate: called with the slash-joined path and the leaf itself (an array, a
          `jax.ShapeDtypeStruct`, ...), outside of jit.
        name: stands for the predicate in the `repr`; two such selectors are equal when both the names
          and the predicates are. The text reads back by `parse(text, names={name: selector})`.

    >>> matrices = where(lambda path, leaf: leaf.ndim == 2, "matrices")
    >>> matrices - leaf("bias")
    where('matrices') - leaf('bias')
    """
    return Where(predicate, name)


everything: Selector = Everything()
"""Selects all leaves."""

nothing: Selector = Nothing()
"""Selects no leaf."""


def _check_name(term: str, name: Any, kind: str = "name") -> None:
    if not isinstance(name, str) or not name:
        raise MaskError(f"{term} takes a {kind} as a non-empty str, got {shown(name)}")


def _compile(pattern: str) -> re.Pattern:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # of sets that a later syntax may read otherwise
            return re.compile(pattern)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        raise MaskError(f"path takes a regular expression, got {shown(pattern)}: {error}") from None
