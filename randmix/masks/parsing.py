"""Parser for the text form of selectors, such as `"~role('spatial') | depth(4, None)"`.

Texts come from configs and command lines, so they are parsed and never evaluated. Python's `ast`
builds the syntax tree. Names, calls, operators and constants become calls of the public
constructors, which check their arguments; every other node is rejected.
"""

import ast
import inspect
import itertools
import re
import warnings
from collections.abc import Mapping
from operator import and_, or_, sub
from typing import Any

from randmix.masks.errors import MaskError, nearest, shown
from randmix.masks.selectors import (
    MAX_CHARACTERS,
    MAX_NESTING,
    TOO_DEEP,
    WORDS,
    Fraction,
    Selector,
    depth,
    everything,
    leaf,
    nothing,
    path,
    role,
)

_OPERATORS = {ast.BitAnd: and_, ast.BitOr: or_, ast.Sub: sub}
_ALLOWED = (
    f"a selector text may contain {', '.join(WORDS[:5])}, everything, nothing "
    "and the operators & | ~ -"
)
_LOGIC = {ast.And: "and", ast.Or: "or", ast.Not: "not"}
_KINDS = {
    ast.Attribute: "an attribute",
    ast.Subscript: "a subscript",
    ast.Compare: "a comparison",
    ast.BinOp: "another operator",
    ast.UnaryOp: "another operator",
    ast.Constant: "a constant",
    ast.Tuple: "a tuple",
}
# A string may end with the text, or else a text of many `\'` would be searched for each of them.
_STRING = re.compile(r"""'(?:\\.|[^'\\])*+'?|"(?:\\.|[^"\\])*+"?""")
_CALL = re.compile(r"\w\s*+\([^()]*+\)")


def parse(text: str, names: Mapping[str, Selector] | None = None) -> Selector | Fraction:
    r"""Parses the text form of a selector or of a fraction without evaluating it.

    `parse(repr(selector)) == selector`. A backslash may be written once or twice, as in an ordinary
    Python string.

    Args:
        text: at most 4,096 characters and 64 levels of operators or brackets. `fraction(...)` is
            accepted at the top level only.
        names: selectors for additional words, each usable as the bare word or as `where('word')`.

    Raises:
        MaskError: the text is anything else; the message is one line.

    >>> parse("~role('spatial') | role('spatial') & depth(4, None)")
    ~role('spatial') | role('spatial') & depth(4, None)
    >>> parse("late - leaf('bias')", names={"late": depth(4, None)})
    depth(4, None) - leaf('bias')
    >>> parse("roll('spatial')")
    Traceback (most recent call last):
    randmix.masks.errors.MaskError: unknown selector 'roll', did you mean role(name)?
    """
    reader = _Reader(text, names or {})
    try:
        return reader.operand(reader.tree)
    except RecursionError:
        raise MaskError(TOO_DEEP) from None


def as_selector(selector: Selector | str, names: Mapping[str, Selector] | None = None) -> Selector:
    """Returns a selector unchanged, or parses it from its text.

    Raises:
        MaskError: the argument is neither, or the text is that of a fraction.
    """
    read = parse(selector, names) if isinstance(selector, str) else selector
    if isinstance(read, Fraction):
        raise MaskError(f"{shown(read)} is a rule, not a selector: use it in the rules of labels")
    if not isinstance(read, Selector):
        raise MaskError(f"expected a selector or its text, got {shown(read)}")
    return read


class _Reader:
    """Turns the syntax tree of one text into a selector or a fraction."""

    def __init__(self, text: str, names: Mapping[str, Selector]):
        _check_names(names)
        _check_size(text)
        self.text = text.strip()
        self.names = names
        # A word stands for a selector, or for a function that its brackets call.
        functions = (role, path, depth, leaf, self.where, self.fraction)
        self.words = {function.__name__: function for function in functions}
        self.words |= {"everything": everything, "nothing": nothing, **names}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `\d` in a regular expression is intended
                self.tree = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            # Depending on Python's version, a null byte raises a ValueError or a SyntaxError, and
            # deep nesting any of these.
            raise MaskError(
                f"cannot read the selector text {shown(self.text)}: {_ALLOWED}"
            ) from None

    def where(self, name: str) -> Selector:
        if not isinstance(name, str) or name not in self.names:
            raise MaskError(
                f"where({shown(name)}) stands for a predicate: "
                f"pass it with parse(text, names={{{shown(name)}: selector}})"
            )
        return self.names[name]

    def fraction(self, selector: Selector | str, share: float, seed: int = 0) -> Fraction:
        if isinstance(selector, str):
            selector = as_selector(selector, self.names)
        return Fraction(selector, share, seed)

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number  # the constructor refuses it with a better message
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                return ~self.operand(operand)
            case ast.BinOp():
                return self.chain(node)
            case ast.Name(id=word):
                if not isinstance(self.meaning(word), Selector):
                    raise MaskError(f"{word} needs its argument: write {self.form(word)}")
                return self.words[word]
            case ast.Call(func=ast.Name(id=word)):
                return self.call(word, node)
            case ast.Call(func=called):
                raise self.refusal(called)
        raise self.refusal(node)

    def operand(self, node: ast.expr) -> Any:
        value = self.value(node)
        if not isinstance(value, Selector | Fraction):
            raise self.refusal(node)
        return value

    def chain(self, node: ast.expr) -> Any:
        # Left operands are walked in a loop, because a long flat chain is not deeply nested.
        rights = []
        while isinstance(node, ast.BinOp):
            if type(node.op) not in _OPERATORS:
                raise self.refusal(node)
            rights.append((_OPERATORS[type(node.op)], node.right))
            node = node.left
        result = self.operand(node)
        for operator, right in reversed(rights):
            result = operator(result, self.operand(right))
        return result

    def call(self, word: str, node: ast.Call) -> Selector | Fraction:
        function = self.meaning(word)
        if isinstance(function, Selector):
            raise MaskError(f"{word} takes no brackets: write {word}")
        if node.keywords:
            raise MaskError(f"{word} takes no keywords in a text: write {self.form(word)}")
        try:
            inspect.signature(function).bind(*node.args)
        except TypeError:
            raise MaskError(
                f"{word} got {len(node.args)} arguments: write {self.form(word)}"
            ) from None
        return function(*map(self.value, node.args))

    def meaning(self, word: str) -> Any:
        if word in self.words:
            return self.words[word]
        guess = nearest(word, self.words, cutoff=0.5)
        hint = (
            f"did you mean {self.form(guess)}?" if guess else f"allowed are {', '.join(self.words)}"
        )
        raise MaskError(f"unknown selector {shown(word)}, {hint}")

    def form(self, word: str) -> str:
        """How a word is written, such as `depth(start, stop)`."""
        meaning = self.words[word]
        if isinstance(meaning, Selector):
            return word
        return f"{word}({', '.join(inspect.signature(meaning).parameters)})"

    def refusal(self, node: ast.expr) -> MaskError:
        match node:
            case ast.BoolOp(op=op) | ast.UnaryOp(op=ast.Not() as op):
                return MaskError(
                    f"found {_LOGIC[type(op)]!r}: write & for and, | for or, ~ for not"
                )
        found = shown(ast.get_source_segment(self.text, node) or self.text)
        if kind := _KINDS.get(type(node)):
            found = f"{kind}, {found}"
        return MaskError(f"found {found}: {_ALLOWED}")


def _check_size(text: Any) -> None:
    if not isinstance(text, str):
        raise MaskError(f"a selector text must be a str, got {shown(text)}")
    if len(text) > MAX_CHARACTERS:
        raise MaskError(
            f"a selector text may have at most {MAX_CHARACTERS:,} characters, got {len(text):,}"
        )
    # The syntax tree no longer has the brackets. Those in strings and of a term don't count.
    brackets = _CALL.sub("", _STRING.sub("", text))
    levels = itertools.accumulate((one == "(") - (one == ")") for one in brackets)
    if max(levels, default=0) > MAX_NESTING:
        raise MaskError(TOO_DEEP)


def _check_names(names: Any) -> None:
    if not isinstance(names, Mapping):
        raise MaskError(f"names must be a dict of selectors, got {shown(names)}")
    for word, selector in names.items():
        if not isinstance(word, str) or not isinstance(selector, Selector):
            raise MaskError(
                f"names must map words to selectors, got {shown(word)}: {shown(selector)}"
            )
        if word in WORDS:
            raise MaskError(f"names can't redefine {word!r}: choose another word")
