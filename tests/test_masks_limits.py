"""What selectors refuse, and how long what they accept may take."""

import enum
import functools
import operator
import random
import re
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mask_cases import FLOATS

from randmix import masks
from randmix.masks import MaskError, depth, everything, leaf, nothing, path, role, where
from randmix.masks.selectors import MAX_CHARACTERS, MAX_INTEGER, MAX_NESTING, MAX_PROGRAM
from randmix.masks.tree import Leaf


def refusal(function, *arguments):
    """The message of the MaskError that a call raises, which is one line and comes at once."""
    start = time.thread_time()
    with pytest.raises(MaskError) as caught:
        function(*arguments)
    assert time.thread_time() - start < 2
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 450
    return message


# Everything that can be built can be read back

PIECES = [*"'\"\\\n\r\0#(){}[]ax é漢😀\ud800", "'''", '\\"', "\\'(", "path("]
PATTERNS = [r"a\d+'", "[\"'\\\\\n]+.*", "é.|漢\\b", "plain", "\ud800", r"(?i)x/\S*", "\0+", "'''.*"]


def any_term(rng: random.Random):
    name = "".join(rng.choices(PIECES, k=rng.randint(1, 6)))
    low, high = sorted(rng.choices([0, 1, 7, 2**31, MAX_INTEGER], k=2))
    return rng.choice(
        [
            lambda: role(name),
            lambda: leaf(name),
            lambda: path(rng.choice(PATTERNS)),
            lambda: depth(rng.choice([None, low]), rng.choice([None, high])),
            lambda: rng.choice([everything, nothing, FLOATS]),
        ]
    )()


def any_selector(rng: random.Random):
    """A selector of any kind, grown one operator at a time on either side, some to the limits."""
    grown = any_term(rng)
    operators = [operator.and_, operator.or_, operator.sub, lambda a, _: ~a]
    operators = rng.sample(operators, rng.randint(1, 4))
    turns = rng.random() < 0.5
    for _ in range(rng.choice([0, 3, 30, 400])):
        other = any_term(rng)
        if rng.random() < 0.2:
            other = ~other | any_term(rng)
        pair = (other, grown) if turns and rng.random() < 0.5 else (grown, other)
        try:
            grown = rng.choice(operators)(*pair)
        except MaskError:
            break
    return grown


def test_whatever_is_built_reads_back():
    rng = random.Random(0)
    lengths, nestings = [], []
    for _ in range(150):
        selector = any_selector(rng)
        assert masks.parse(repr(selector), {"floats": FLOATS}) == selector
        lengths.append(len(repr(selector)))
        nestings.append(selector.nesting)
        try:
            fraction = masks.fraction(selector, rng.random(), rng.choice([0, 3, MAX_INTEGER]))
        except MaskError:
            continue
        assert masks.parse(repr(fraction), {"floats": FLOATS}) == fraction
    assert max(lengths) > MAX_CHARACTERS - 100
    assert max(nestings) == MAX_NESTING


@pytest.mark.parametrize("join", [operator.and_, operator.or_, operator.sub])
@pytest.mark.parametrize("term", [nothing, ~leaf("b"), depth(1, 2), path("a.*") - role('"')])
def test_a_chain_reads_back_up_to_the_longest(join, term):
    def longer():
        nonlocal chain
        for _ in range(1000):
            chain = join(chain, role("it's"))

    chain = term
    assert refusal(longer).startswith("a selector may have at most 4,096 characters when written")
    assert MAX_CHARACTERS - 20 < len(repr(chain)) <= MAX_CHARACTERS
    assert masks.parse(repr(chain)) == chain


@pytest.mark.parametrize(
    "deeper",
    [
        lambda inner: ~inner,
        lambda inner: nothing - inner,
        lambda inner: role("a") & (leaf("(") | inner),
        lambda inner: ~(inner | nothing),
    ],
)
def test_the_deepest_selector_reads_back(deeper):
    def deepest():
        nonlocal selector
        for _ in range(MAX_NESTING + 1):
            selector = deeper(selector)

    selector = role("a")
    assert refusal(deepest) == (
        "a selector may nest at most 64 deep: use fewer nested brackets or operators"
    )
    assert masks.parse(repr(selector)) == selector
    fraction = masks.fraction(selector, 0.5)
    assert masks.parse(repr(fraction)) == fraction


def test_what_cannot_be_read_back_is_refused():
    chain = functools.reduce(operator.or_, [leaf("a")] * 341)
    for build, message in [
        (
            lambda: chain | role("ab"),
            "a selector may have at most 4,096 characters when written out, got 4,102: "
            "combine terms in one path, or use where",
        ),
        (
            lambda: role("a" * 10**6),
            "a selector may have at most 4,096 characters when written out, got 1,000,008: "
            "combine terms in one path, or use where",
        ),
        (
            lambda: masks.fraction(chain, 0.5),
            "a selector may have at most 4,096 characters when written out, got 4,107: "
            "combine terms in one path, or use where",
        ),
        (
            lambda: where(lambda path, leaf: True, "role"),
            "where can't be named 'role', a word of selectors: choose another name",
        ),
        (
            lambda: masks.parse("|".join(["a"] * 2048), {"a": role("x")}),
            "a selector may have at most 4,096 characters when written out, got 4,101: "
            "combine terms in one path, or use where",
        ),
    ]:
        assert refusal(build) == message
    assert len(repr(chain)) <= MAX_CHARACTERS


class Stage(enum.StrEnum):
    STEM = "stem"


@pytest.mark.parametrize("name", [np.str_("stem"), Stage.STEM])
def test_other_kinds_of_str_are_kept_as_str(name):
    assert (
        repr(role(name) | leaf(name) | path(name)) == "role('stem') | leaf('stem') | path('stem')"
    )
    assert role(name) == role("stem")


# Integers


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("depth(0x" + "f" * 4000 + ", None)", "an integer of 16,000 bits"),
        ("depth(0, 0x" + "f" * 4000 + ")", "an integer of 16,000 bits"),
        ("depth(-0x" + "f" * 4000 + ", None)", "an integer of 16,000 bits"),
        ("depth(9223372036854775808, None)", "9223372036854775808"),
    ],
)
def test_depths_are_bounded(text, got):
    assert refusal(masks.parse, text) == (
        "depth(start, stop) expects integers from 0 to 9,223,372,036,854,775,807, or None for an "
        f"open end, got {got}"
    )
    assert masks.parse("depth(0, 9223372036854775807)")("block_7/kernel")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "fraction(everything, 0.5, 0x{})",
            "the seed of a fraction must be an integer from 0 to 9,223,372,036,854,775,807, got "
            "an integer of 16,000 bits",
        ),
        (
            "fraction(everything, 0x{})",
            "the share of a fraction must be a number from 0 to 1, got an integer of 16,000 bits",
        ),
        ("role(0x{})", "role expects a name as a non-empty str, got an integer of 16,000 bits"),
        (
            "where(0x{})",
            "where(an integer of 16,000 bits) stands for a predicate: pass it with parse(text, "
            "names={an integer of 16,000 bits: selector})",
        ),
    ],
)
def test_integers_that_python_does_not_write(text, message):
    assert refusal(masks.parse, text.format("f" * 4000)) == message


def test_a_path_with_a_number_that_python_does_not_read_has_no_depth():
    for joined in ("block_" + "9" * 5000, "9" * 5000 + "/kernel"):
        assert not depth(0, None)(joined)
    assert depth(3, 4)("9" * 5000 + "/block_3/kernel")


# Time

# Each takes Python's `re` minutes or more on some of the paths below.
EXPONENTIAL = [
    r"(\w+/?)+!",
    "(a+)+!",
    "(a|a)*!",
    "(a|aa)+!",
    "(.*a){20}!",
    "(x+x+)+y",
    "(a?){25}a{25}!",
    ".*a" * 20 + "!",
    "(a|b|ab)*(ab|a)*!",
    "(([a-z])+.)+[A-Z]([a-z])+",
]
# The slowest of the accepted patterns that a random search found: RE2 simulates them step by step.
SLOWEST = [
    r"(?:(?:(?:(?:(?:a|b)){0,20}|(?:\b|\b)))+){5,10}/",
    r"(?:(?:(?:(?:(?:\w){0,5}|(?:a)*)){0,20})+)+/",
    "(?:(?:(?:(?:(?:aa?){0,5})?)?)+){20}b",
    "(?:(?:(?:a?){20})+(?:(?i:é))?(?:a|b)){5,10}/",
    "[ab]*a[ab]{400}b",
    ".*a.{50}b",
]
_random = random.Random(0)
LEAVES = [
    Leaf(joined, None, None)
    for number in range(25)
    for joined in (
        "a" * 200,
        "a/" * 100,
        "".join(_random.choices("ab", k=200)),
        f"spatial/block_{number:02d}/depthwise/kernel/" * 5,
    )
]


@pytest.mark.parametrize("pattern", EXPONENTIAL + SLOWEST)
def test_no_pattern_takes_long(pattern):
    start = time.thread_time()
    selector = path(pattern)
    for one in LEAVES:
        selector.matches(one)
    # About 0.1 s for the slowest; the rest is for slower machines.
    assert time.thread_time() - start < 2


@pytest.mark.parametrize(
    "text",
    [
        " | ".join(["path('.*a.{9}b')"] * 5),
        "-".join(["depth(1,2)"] * 270),
        "|".join(["leaf('c')"] * 300),
        " & ".join(["path('(a|b)*')"] * 30),
        "~" * 64 + "path('a.*')",
        "|".join(["path('spatial/block_03/depthwise/kernel')"] * 85),
    ],
)
def test_no_text_takes_long(text):
    start = time.thread_time()
    selector = masks.parse(text)
    for one in LEAVES:
        selector.matches(one)
    assert time.thread_time() - start < 2


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a{1000}){1000}", "invalid repetition size '{1000}'"),
        ("(a{999}){999}", "invalid repetition size '{999}'"),
        ("(((a{30}){30}){30}){30}", "invalid repetition size '{30}'"),
        ("(.{100}){10}", "it is too large, repeat less, or use where"),
        (r"(?i)(\pL*){50}", "it is too large, repeat less, or use where"),
        (r"(a)\1", r"invalid escape sequence '\\1'"),
        ("(?=a)b", "invalid perl operator '(?='"),
        ("(?<!a)b", "invalid perl operator '(?<!'"),
        ("a*+", "bad repetition operator '*+'"),
        ("(" * 2000, "missing ) '" + "(" * 37 + "..." + "(" * 38 + "'"),
        (".\ud800", "it contains half of a surrogate pair"),
        ("[\n", r"missing ] '[\n'"),
        ("a**", "bad repetition operator '**'"),
    ],
)
def test_patterns_that_are_refused(pattern, reason):
    message = refusal(path, pattern)
    assert message.startswith("path expects a regular expression in RE2's syntax, got ")
    assert message.endswith(f": {reason}")


def test_the_programs_of_a_selector_are_limited_together():
    one = path(".*/block_[0-9]{2}/.*")
    assert 20 < one.program < 50
    message = refusal(path, "(?:a|b?){200}")
    assert re.sub("got 60[0-9] for", "got 60. for", message) == (
        "the paths of a selector may compile to at most 500 instructions, got 60. for "
        "path('(?:a|b?){200}'): repeat less, or use where"
    )
    assert refusal(lambda: functools.reduce(operator.or_, [one] * 40)).startswith(
        "the paths of a selector may compile to at most 500 instructions, got 5"
    )
    with pytest.raises(MaskError):
        path("a{" + str(MAX_PROGRAM) + "}") & path("a.{5}")
    # A path without special characters costs nothing.
    names = [f"spatial/block_{index:02d}/depthwise/kernel" for index in range(80)]
    assert functools.reduce(operator.or_, map(path, names))(names[-1])


# Most texts aren't patterns.
@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(st.text("ab/.\\dw[]^()|*+?{}0,:!é", max_size=12), st.text("ab/0é", max_size=8))
def test_patterns_mean_what_they_mean_to_python(pattern, joined):
    # RE2 counts up to 1,000 and reads other brackets as text; its classes are ASCII.
    assume("{" not in pattern and "[^" not in pattern and "[[" not in pattern)
    try:
        expected = re.compile(pattern, re.ASCII).fullmatch(joined) is not None
        selector = path(pattern)
    except (re.error, MaskError, FutureWarning):
        assume(False)
    assert selector(joined) == expected


def test_a_path_that_is_not_unicode_is_matched():
    assert path(".*/b")("a/b")
    assert not path("a.*")("b\ud800")
    assert path("a\ud800")("a\ud800")


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10**6,
        "(" * 10**6,
        "role('" + "a" * 10**6 + "')",
        "\0" * 10**6,
        "'" * 10**6,
        "\n" * 10**6,
    ],
)
def test_long_texts_are_refused_at_once(text):
    assert refusal(masks.parse, text) == (
        f"a selector text may have at most 4,096 characters, got {len(text):,}"
    )


@pytest.mark.parametrize(
    "text",
    ["\0", "role('a\0')", "everything\0", "\\'" * 2048, "'" * 4095, "\\" * 4096, "a\\\n" * 1365],
)
def test_other_texts_are_refused_at_once(text):
    assert refusal(masks.parse, text).startswith(("cannot read the selector text", "unknown sel"))


@pytest.mark.parametrize("make", [role, leaf, path, lambda name: path(f"({name})")])
def test_the_nearest_name_is_found_at_once(make):
    tree = {f"{'a' * 90}{number:03}": {"a" * 90 + "b": 0} for number in range(300)}
    rules = [("train", make("a" * 400)), ("freeze", everything)]
    assert " the nearest is 'aaaa" in refusal(masks.labels, tree, rules)
