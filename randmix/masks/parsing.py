"""Parser for the text form of selectors, such as `"~role('spatial') | depth(4, None)"`.

Texts come from configs and command lines, so they are parsed and never evaluated. Python's `ast`
builds the syntax tree; every node that is not on the short list below is rejected by name.
"""

import ast
import re
import warnings
from collections.abc import Callable, Mapping
from operator import and_, or_, sub
from typing import Any

from randmix.masks.errors import MaskError, nearest, shown
from randmix.masks.partial import Fraction
from randmix.masks.selectors import (
    MAX_CHARACTERS,
    MAX_NESTING,
    WORDS,
    Selector,
    depth,
    everything,
    leaf,
    nothing,
    path,
    role,
)

_CONSTANTS = {"everything": everything, "nothing": nothing}
_TERMS: dict[str, tuple[Callable[..., Selector], int]] = {
    "role": (role, 1),
    "path": (path, 1),
    "depth": (depth, 2),
    "leaf": (leaf, 1),
}
_FORMS = {
    "role": "role(name)",
    "path": "path(regex)",
    "depth": "depth(start, stop)",
    "leaf": "leaf(name)",
    "where": "where(name)",
    "fraction": "fraction(selector, share, seed)",
}
_OPERATORS = {ast.BitAnd: and_, ast.BitOr: or_, ast.Sub: sub}
_ALLOWED = (
    f"a selector text may contain {', '.join(WORDS[:5])}, everything, nothing "
    "and the operators & | ~ -"
)
_LOGIC = {ast.And: "and", ast.Or: "or", ast.Not: "not"}
_KINDS = {
    ast.Attribute: "an attribute",
    ast.Subscript: "a subscript",
    ast.Lambda: "a lambda",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.JoinedStr: "an f-string",
    ast.IfExp: "a conditional",
    ast.Compare: "a comparison",
    ast.NamedExpr: "an assignment",
    ast.Starred: "an unpacking",
    ast.BinOp: "another operator",
    ast.UnaryOp: "another operator",
    ast.Constant: "a constant",
    ast.Tuple: "a tuple",
    ast.List: "a list",
    ast.Set: "a set",
    ast.Dict: "a dict",
    ast.Call: "a call",
}
# A string (skipped, as its brackets don't count), a call's bracket, another one, a closing one.
# A string may end with the text, or else a text of many `\'` would be searched for each of them.
_BRACKETS = re.compile(r"""'(?:\\.|[^'\\])*+'?|"(?:\\.|[^"\\])*+"?|(\w\s*+\()|(\()|(\))""")


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
    names = _checked_names(names)
    reader = _Reader(_checked_text(text), names)
    node = reader.node
    if isinstance(node, ast.Call) and _called(node) == "fraction":
        return reader.fraction(node)
    return reader.selector(node)


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
    """Builds the selector for one text from its syntax tree."""

    def __init__(self, text: str, names: Mapping[str, Selector]):
        self.text = text
        self.names = names
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `\d` in a regular expression is intended
                self.node = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            # Depending on Python's version, a null byte raises a ValueError or a SyntaxError, and
            # deep nesting any of these.
            raise MaskError(f"cannot read the selector text {shown(text)}: {_ALLOWED}") from None

    def selector(self, node: ast.expr, level: int = 0) -> Selector:
        if level > MAX_NESTING:
            raise MaskError(_too_deep())
        match node:
            case ast.BinOp():
                return self._binary(node, level)
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                return ~self.selector(operand, level + 1)
            case ast.Name(id=word):
                return self._word(word)
            case ast.Call(func=ast.Name(id=word)):
                return self._call(node, word)
            case ast.Call(func=called):
                raise self._refusal(called)
        raise self._refusal(node)

    def fraction(self, node: ast.Call) -> Fraction:
        self._check_arguments(node, "fraction", (2, 3))
        chosen, *numbers = node.args
        match chosen:
            case ast.Constant(value=str(text)):
                selector = as_selector(text, self.names)
            case _:
                selector = self.selector(chosen)
        share, seed = (*map(self._literal, numbers), 0)[:2]
        return Fraction(selector, share, seed)

    def _binary(self, node: ast.expr, level: int) -> Selector:
        # Left operands are walked in a loop, because a long flat chain is not deeply nested.
        rights = []
        while isinstance(node, ast.BinOp):
            if type(node.op) not in _OPERATORS:
                raise self._refusal(node)
            rights.append((_OPERATORS[type(node.op)], node.right))
            node = node.left
        result = self.selector(node, level + 1)
        for operator, right in reversed(rights):
            result = operator(result, self.selector(right, level + 1))
        return result

    def _word(self, word: str) -> Selector:
        if word in _FORMS:
            raise MaskError(f"{word} needs its argument: write {_FORMS[word]}")
        known = {**_CONSTANTS, **self.names}
        if word not in known:
            raise MaskError(_unknown(word, (*WORDS, *self.names)))
        return known[word]

    def _call(self, node: ast.Call, word: str) -> Selector:
        if word in _CONSTANTS or word in self.names:
            raise MaskError(f"{word} takes no brackets: write {word}")
        if word == "fraction":
            raise MaskError(
                "fraction(...) is a rule, not a selector: combine selectors inside its brackets"
            )
        if word == "where":
            self._check_arguments(node, word, (1,))
            return self._where(self._literal(node.args[0]))
        if word not in _TERMS:
            raise MaskError(_unknown(word, WORDS))
        make, arity = _TERMS[word]
        self._check_arguments(node, word, (arity,))
        return make(*map(self._literal, node.args))

    def _where(self, name: Any) -> Selector:
        if name not in self.names:
            raise MaskError(
                f"where({shown(name)}) stands for a predicate: "
                f"pass it with parse(text, names={{{shown(name)}: selector}})"
            )
        return self.names[name]

    def _check_arguments(self, node: ast.Call, word: str, allowed: tuple[int, ...]) -> None:
        if node.keywords:
            raise MaskError(f"{word} takes no keywords in a text: write {_FORMS[word]}")
        if len(node.args) not in allowed:
            raise MaskError(f"{word} got {len(node.args)} arguments: write {_FORMS[word]}")

    def _literal(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number  # the term raises its own error for it
        raise self._refusal(node)

    def _refusal(self, node: ast.expr) -> MaskError:
        match node:
            case ast.BoolOp(op=op) | ast.UnaryOp(op=ast.Not() as op):
                return MaskError(
                    f"found {_LOGIC[type(op)]!r}: write & for and, | for or, ~ for not"
                )
        kind = _KINDS.get(type(node), f"a {type(node).__name__}")
        found = ast.get_source_segment(self.text, node) or self.text
        return MaskError(f"found {kind}, {shown(found)}: {_ALLOWED}")


def _checked_text(text: Any) -> str:
    if not isinstance(text, str):
        raise MaskError(f"a selector text must be a str, got {shown(text)}")
    if len(text) > MAX_CHARACTERS:
        raise MaskError(
            f"a selector text may have at most {MAX_CHARACTERS:,} characters, got {len(text):,}"
        )
    opened = []  # 1 for a grouping bracket, 0 for that of a call
    for call, group, closing in _BRACKETS.findall(text):
        if closing:
            opened = opened[:-1]
        elif call or group:
            opened.append(0 if call else 1)
        if sum(opened) > MAX_NESTING:
            raise MaskError(_too_deep())
    return text.strip()


def _checked_names(names: Mapping[str, Selector] | None) -> Mapping[str, Selector]:
    names = names or {}
    if not isinstance(names, Mapping):
        raise MaskError(f"names must be a dict of selectors, got {shown(names)}")
    for word, selector in names.items():
        if not isinstance(word, str) or not isinstance(selector, Selector):
            raise MaskError(
                f"names must map words to selectors, got {shown(word)}: {shown(selector)}"
            )
        if word in WORDS:
            raise MaskError(f"names can't redefine {word!r}: choose another word")
    return names


def _called(node: ast.Call) -> str | None:
    return node.func.id if isinstance(node.func, ast.Name) else None


def _unknown(word: str, words: tuple[str, ...]) -> str:
    guess = nearest(word, words, cutoff=0.5)
    return f"unknown selector {shown(word)}, " + (
        f"did you mean {_FORMS.get(guess, guess)}?" if guess else f"allowed are {', '.join(words)}"
    )


def _too_deep() -> str:
    return f"a selector may nest at most {MAX_NESTING} deep: use fewer nested brackets or operators"
