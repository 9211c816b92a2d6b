"""Selectors against Python's sets and parser, and refused texts."""

import copy
import pickle
from dataclasses import fields

import pytest
from hypothesis import given
from mask_cases import FLOATS, build, by_sets, chosen, expressions, selectors, trees

from randmix import masks
from randmix.masks import MaskError, depth, everything, leaf, nothing, path, role, where


@given(expressions, trees)
def test_operators_are_those_of_sets(expression, flat):
    assert chosen(build(expression), flat) == by_sets(expression, flat)


@given(selectors, selectors, selectors, trees)
def test_set_algebra(a, b, c, flat):
    equal_pairs = [
        (a & b, b & a),
        (a | b, b | a),
        ((a & b) & c, a & (b & c)),
        ((a | b) | c, a | (b | c)),
        (a & (b | c), (a & b) | (a & c)),
        (a | (b & c), (a | b) & (a | c)),
        (~(a & b), ~a | ~b),
        (~(a | b), ~a & ~b),
        (~~a, a),
        (a - b, a & ~b),
        (a & everything, a),
        (a | nothing, a),
        (a & nothing, nothing),
        (a | everything, everything),
        (~everything, nothing),
    ]
    for left, right in equal_pairs:
        assert chosen(left, flat) == chosen(right, flat)


@given(selectors)
def test_repr_reads_back(selector):
    text = repr(selector)
    assert masks.parse(text, names={"floats": FLOATS}) == selector
    public = {
        name: getattr(masks, name)
        for name in ("role", "path", "depth", "leaf", "everything", "nothing")
    }
    by_python = eval(text, {**public, "where": {"floats": FLOATS}.get})
    assert by_python == selector
    assert hash(by_python) == hash(selector)


@pytest.mark.parametrize(
    "text",
    [
        "~role('spatial')",
        "role('channel') | depth(4, None)",
        "role('a') & (role('b') | role('c'))",
        "role('a') & role('b') | role('c')",
        "role('a') - (role('b') - role('c'))",
        "role('a') - role('b') - role('c')",
        "~(role('a') & role('b'))",
        "~~role('a') - ~role('b')",
        "(role('a') | role('b')) - leaf('bias')",
        "role('a') - (role('b') | role('c'))",
        "path('block_\\\\d+/.*') & everything - nothing",
    ],
)
def test_repr_has_the_brackets_it_needs_and_no_more(text):
    assert repr(masks.parse(text)) == text


def test_chains_of_one_operator_are_flat():
    a, b, c = role("a"), role("b"), role("c")
    assert (a | b) | c == a | (b | c)
    assert a - b - c != a - (b - c)
    assert a & b != b & a != a | b
    many = everything
    for index in range(250):
        many = many & ~role(f"r{index}")
    assert masks.paths({"r7": 0, "x": 0}, many) == ["x"]


@pytest.mark.parametrize(
    "selector", [role("a"), path("a.*"), depth(1, None), ~leaf("b") & role("a") - nothing]
)
def test_selectors_are_values(selector):
    assert pickle.loads(pickle.dumps(selector)) == copy.deepcopy(selector) == selector
    assert len({selector, copy.deepcopy(selector)}) == 1
    with pytest.raises(AttributeError):
        setattr(selector, fields(selector)[0].name, "changed")


def test_path_matches_the_whole_path():
    tree = {"spatial": {"stem": {"kernel": 1.0}, "stem2": {"kernel": 1.0}}}
    assert masks.paths(tree, path("spatial/stem")) == masks.paths(tree, path("stem/kernel")) == []
    assert masks.paths(tree, path("spatial/stem/kernel|spatial")) == ["spatial/stem/kernel"]


def test_where_equals_by_name_and_predicate():
    def is_even(_, value):
        return value % 2 == 0

    assert where(is_even, "even") == where(is_even, "even")
    assert where(is_even, "even") != where(is_even, "other")
    assert where(is_even, "even") != where(lambda _, value: value % 2 == 0, "even")
    assert masks.paths({"a": [1, 2, 4]}, where(is_even, "even")) == ["a/1", "a/2"]


@pytest.mark.parametrize(
    "logic",
    [lambda a, b: a and b, lambda a, b: a or b, lambda a, b: not a, lambda a, b: 1 if a else 2],
)
def test_python_logic_is_refused(logic):
    with pytest.raises(
        TypeError, match=r"^a selector has no truth value: write & for and, \| for or, ~ for not$"
    ):
        logic(role("a"), role("b"))


@pytest.mark.parametrize(
    "text",
    [
        *[
            "__import__('os').system('true')",
            "role.__class__",
            "role('a').name",
            "().__class__.__bases__[0]",
        ],
        *[
            "[x for x in ()]",
            "{role('a') for _ in (1,)}",
            "(role('a') for _ in (1,))",
            "lambda: 0",
            "f'{1}'",
        ],
        *[
            "role(*'a')",
            "role(**{})",
            "role(name='a')",
            "role(role('a'))",
            "depth(1, 2, 3)",
            "role()",
            "role",
        ],
        *[
            "role('a') and role('b')",
            "not role('a')",
            "role('a') if 1 else role('b')",
            "role('a') + role('b')",
        ],
        *[
            "role('a') ^ role('b')",
            "-role('a')",
            "role('a') == role('b')",
            "(a := role('a'))",
            "role('a'),",
        ],
        *[
            "",
            " ",
            "1",
            "'role'",
            "None",
            "...",
            "role(b'a')",
            "role('')",
            "role(1)",
            "await role('a')",
            "yield",
        ],
        *[
            "role('a'); role('b')",
            "import os",
            "x = 1",
            "role('a'",
            "role('a'))",
            "role('\0')\0",
            "\ud800",
        ],
        *[
            "everything()",
            "nothing('a')",
            "where('a')",
            "depth(True, 2)",
            "depth(-1, 2)",
            "depth(2, 1)",
        ],
        *[
            "depth(1.0, 2)",
            "depth('1', 2)",
            "depth(1, 2) & fraction(everything, 0.5, 0)",
            "~fraction(nothing, 1)",
        ],
        *[
            "fraction(everything)",
            "fraction('fraction(nothing, 1)', 1)",
            "fraction(everything, 2, 0)",
        ],
        *[
            "fraction(everything, 0.5, -1)",
            "fraction(everything, nothing)",
            "path('[')",
            "path('a{99999}')",
        ],
        *[
            "path('" + "(" * 3000 + "')",
            "(" * 10_000 + "everything" + ")" * 10_000,
            "(" * 2000,
            "~" * 4000 + "a",
        ],
        *[
            "~" * 65 + "everything",
            "(" * 65 + "everything" + ")" * 65,
            "-" * 4000 + "1",
            "a." * 2000 + "a",
        ],
        *[
            "everything" + "()" * 2000,
            "everything" + "[0]" * 1300,
            "x" * 4097,
            "9" * 4000,
            "print('x')",
        ],
        *[
            "eval('1')",
            "exec",
            "globals()['x']",
            "role('a')\nrole('b')",
            "role('a') if role('b')",
            "\\",
            "#",
        ],
    ],
)
def test_anything_but_selectors_is_refused_in_one_line(text):
    with pytest.raises(MaskError) as caught:
        masks.parse(text)
    message = str(caught.value)
    assert "\n" not in message
    assert 10 < len(message) < 320


READABLE = (
    "a selector text may contain role, path, depth, leaf, where, everything, nothing "
    "and the operators & | ~ -"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("roel('a')", "unknown selector 'roel', did you mean role(name)?"),
        ("__import__('os')", None),
        ("evrything", "unknown selector 'evrything', did you mean everything?"),
        ("role('a') and role('b')", "found 'and': write & for and, | for or, ~ for not"),
        ("not role('a')", "found 'not': write & for and, | for or, ~ for not"),
        ("role('a').name", f"found an attribute, \"role('a').name\": {READABLE}"),
        ("role('a') + role('b')", f"found another operator, \"role('a') + role('b')\": {READABLE}"),
        ("role(", f"cannot read the selector text 'role(': {READABLE}"),
        ("a\0b", f"cannot read the selector text 'a\\x00b': {READABLE}"),
        ("~" * 4000, f"cannot read the selector text '{'~' * 37}...{'~' * 38}': {READABLE}"),
        ("role", "role needs its argument: write role(name)"),
        ("role('a', 'b')", "role got 2 arguments: write role(name)"),
        ("depth(start=1, stop=2)", "depth takes no keywords in a text: write depth(start, stop)"),
        ("everything()", "everything takes no brackets: write everything"),
        (
            "where('k')",
            "where('k') stands for a predicate: pass it with parse(text, names={'k': selector})",
        ),
        (
            "depth(-1, 2)",
            "depth(start, stop) expects integers from 0 to 9,223,372,036,854,775,807, or None for "
            "an open end, got -1",
        ),
        ("depth(5, 2)", "depth(5, 2) ends before it starts: write depth(2, 5)"),
        ("role(3)", "role expects a name as a non-empty str, got 3"),
        ("role(leaf('a'))", "role expects a name as a non-empty str, got leaf('a')"),
        ("fraction(nothing)", "fraction got 1 arguments: write fraction(selector, share, seed)"),
        ("path", "path needs its argument: write path(pattern)"),
        (
            "path('[')",
            "path expects a regular expression in RE2's syntax, got '[': missing ] '['",
        ),
        ("x" * 4097, "a selector text may have at most 4,096 characters, got 4,097"),
        (
            "~" * 65 + "nothing",
            "a selector may nest at most 64 deep: use fewer nested brackets or operators",
        ),
        (
            "~fraction(nothing, 0.5, 0)",
            "fraction(...) is a rule, not a selector: combine selectors inside its brackets",
        ),
        (
            "fraction(nothing, 1.5, 0)",
            "the share of a fraction must be a number from 0 to 1, got 1.5",
        ),
        (
            "fraction(nothing, 1, 0.5)",
            "the seed of a fraction must be an integer from 0 to 9,223,372,036,854,775,807, "
            "got 0.5",
        ),
    ],
)
def test_messages_of_texts(text, message):
    with pytest.raises(MaskError) as caught:
        masks.parse(text)
    unknown = (
        "unknown selector '__import__', "
        "allowed are role, path, depth, leaf, where, fraction, everything, nothing"
    )
    assert str(caught.value) == (message or unknown)


@pytest.mark.parametrize("text", ["~" * 64 + "role('a')", "(" * 64 + "role('a')" + ")" * 64])
def test_deepest_texts(text):
    assert masks.parse(text)("a/b")


def test_texts_with_brackets_backslashes_and_long_chains():
    assert masks.parse(r"path('a/block_\d+/(((k)))')") == path(r"a/block_\d+/(((k)))")
    assert masks.parse("path('" + "[(]" * 200 + "')") == path("[(]" * 200)
    assert masks.parse("|".join(f"role('r{index}')" for index in range(250)))("r249/x")
    assert masks.parse(" (role('a')\n | role('b')) ") == role("a") | role("b")


def test_names_in_texts():
    names = {"late": depth(4, None), "two words": FLOATS}
    assert masks.parse("~late & where('two words')", names) == ~depth(4, None) & FLOATS
    for bad in ({"role": nothing}, {"a": "role('b')"}, {1: nothing}, ["a"]):
        with pytest.raises(MaskError, match=r"^names .*"):
            masks.parse("everything", bad)
