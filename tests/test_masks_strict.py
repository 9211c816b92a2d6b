"""What a strict mask refuses, everywhere that a mask is made."""

import warnings

import jax
import numpy as np
import pytest
from hypothesis import given
from mask_cases import FLOATS, build, by_sets, expressions, model_params, nested, trees

from randmix import masks
from randmix.errors import UserError
from randmix.masks import (
    MaskError,
    MaskWarning,
    depth,
    everything,
    leaf,
    nothing,
    path,
    role,
    strictness,
    where,
)
from randmix.training import groups

FOREIGN = {"Conv_0": {"kernel": np.ones((3, 3, 1, 4))}, "Dense_0": {"kernel": np.ones((4, 2))}}
MISSPELT = [
    (~role("spacial"), "no role is 'spacial', the nearest is 'spatial'"),
    (everything - leaf("kernle"), "no leaf is named 'kernle', the nearest is 'kernel'"),
    (
        role("head") | path("spatial/stems/.*nel"),
        "no path matches 'spatial/stems/.*nel', the nearest is 'spatial/stem/kernel'",
    ),
    (role("norm") & ~(depth(7, None) | leaf("scale")), "the depths here are 0 to 2"),
    (
        ~FLOATS & role("head"),
        "where('floats') matches none of the 22 leaves, the first is "
        "'channel/block_00/pointwise/bias'",
    ),
]


@pytest.fixture(autouse=True)
def nothing_said_before():
    strictness.warn_once.cache_clear()


def terms_by_sets(expression, flat):
    """The leaves that each term of an expression selects, by Python's sets."""
    if expression[0] in "~&|-":
        return [one for inner in expression[1:] for one in terms_by_sets(inner, flat)]
    return [(expression, by_sets(expression, flat))]


def says_empty(expression):
    return expression[0] == "nothing" or (
        expression[0] == "depth" and expression[1][0] == expression[1][1] is not None
    )


@given(expressions, trees)
def test_strict_refuses_what_selects_nothing(expression, flat):
    tree, selector = nested(flat), build(expression)
    refused = any(not got and not says_empty(e) for e, got in terms_by_sets(expression, flat))
    refused = refused or (not by_sets(expression, flat) and not says_empty(expression))
    assert masks.mask(tree, selector, strict=False)
    for make in (
        lambda: masks.mask(tree, selector),
        lambda: masks.apply(tree, selector, lambda x: x),
        lambda: masks.labels(tree, [("a", selector), ("b", everything)]),
        lambda: masks.channel_masks(tree, [("a", selector), ("b", everything)]),
    ):
        try:
            make()
        except MaskError:
            assert refused
        else:
            assert not refused


@given(expressions, trees)
def test_strict_refuses_rules_that_freeze_nothing(expression, flat):
    selector, chosen = build(expression), by_sets(expression, flat)
    rules = masks.trainable(selector)
    labels = masks.labels(nested(flat), rules, strict=False)
    assert set(jax.tree.leaves(labels)) == (
        ({"train"} if chosen else set()) | ({"freeze"} if chosen != set(flat) else set())
    )
    if chosen == set(flat) and expression != ("everything", None):
        with pytest.raises(MaskError):
            masks.labels(nested(flat), rules)


@pytest.mark.parametrize(("selector", "reason"), MISSPELT)
def test_a_misspelt_term_is_found_anywhere(selector, reason):
    params = model_params()
    rules = [("slow", role("head")), ("train", selector), ("freeze", everything)]
    for name, make in [
        (repr(selector), lambda: masks.mask(params, selector)),
        (repr(selector), lambda: masks.apply(params, selector, np.negative)),
        (f"rule 2 ('train', {selector})", lambda: masks.labels(params, rules)),
        (f"rule 2 ('train', {selector})", lambda: masks.channel_masks(params, rules)),
    ]:
        with pytest.raises(MaskError) as caught:
            make()
        assert str(caught.value) == f"{name} has a term that matches no leaf: {reason}"
    masks.mask(params, selector, strict=False)
    masks.labels(params, rules, strict=False)


def test_messages_of_masks_of_nothing():
    for selector, reason in [
        (leaf("kernle"), "no leaf is named 'kernle', the nearest is 'kernel'"),
        (role("head") & depth(0, 1), "no leaf fits the whole of it"),
        (~everything, "no leaf fits the whole of it"),
    ]:
        with pytest.raises(MaskError) as caught:
            masks.mask(model_params(), selector)
        assert str(caught.value) == f"{selector} matches no leaf: {reason}"
    with pytest.raises(MaskError, match=r"^everything matches no leaf: the tree has no leaves$"):
        masks.mask({}, everything)


def test_what_says_that_it_is_empty_is_allowed():
    params = model_params()
    for selector in (nothing, depth(2, 2)):
        assert not any(jax.tree.leaves(masks.mask(params, selector)))
    assert "freeze" in jax.tree.leaves(masks.labels(params, masks.trainable("nothing")))
    assert masks.paths(params, role("spacial")) == []  # asks, and makes no mask


def test_messages_of_rules_that_freeze_nothing():
    params = model_params()
    for rules, name in [
        (masks.trainable("leaf('bias') | ~leaf('bias')"), "rule 2 ('freeze', everything)"),
        ([("train", ~nothing), ("freeze", role("head"))], "rule 2 ('freeze', role('head'))"),
    ]:
        with pytest.raises(MaskError) as caught:
            masks.labels(params, rules)
        assert str(caught.value) == (
            f"{name} freezes nothing, other rules select every leaf: "
            "leave it out, train everything, or pass strict=False"
        )
        assert set(jax.tree.leaves(masks.labels(params, rules, strict=False))) == {"train"}
        assert set(jax.tree.leaves(masks.labels(params, rules[:1]))) == {"train"}
    # These say that they train everything.
    for rules in (masks.trainable("full"), masks.trainable(masks.fraction(everything, 0.5))):
        assert set(jax.tree.leaves(masks.labels(params, rules))) == {"train"}


def test_a_role_of_a_mode_may_be_absent():
    params = model_params()
    del params["channel"]
    for mode, frozen in (("space", []), ("floor", masks.paths(params, role("spatial")))):
        with pytest.warns(MaskWarning) as caught:
            labels = masks.labels(params, masks.trainable(mode))
        assert [str(one.message) for one in caught] == [
            f"rule 1 ('train', {masks.MODES[mode]}): no role is 'channel', the nearest is 'head'"
        ]
        assert masks.paths(masks.partition(params, labels)[1]) == frozen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks.labels(params, masks.trainable("chans"))
        masks.labels(params, masks.trainable("space"), strict=False)
    # Not a mode, though it means and prints the same.
    with pytest.raises(MaskError, match=r"no role is .channel., the nearest is .head.$"):
        masks.labels(params, masks.trainable(~role("channel")))


def test_an_absent_role_is_said_once():
    params = model_params()
    del params["channel"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            masks.labels(params, masks.trainable("space"))
            masks.mask(params, masks.MODES["chans"])
    assert len(caught) == 1


@pytest.mark.parametrize("mode", ["chans", "space", "floor"])
def test_a_mode_is_refused_where_no_role_is_known(mode):
    for text in (mode, f"{mode} | leaf('kernel')"):
        with pytest.raises(MaskError) as caught:
            masks.labels(FOREIGN, masks.trainable(text))
        (rule, _) = masks.trainable(text)
        word = "channel" if mode == "space" else "spatial"
        assert str(caught.value).startswith(
            f"rule 1 ('train', {rule[1]}) has a term that matches no leaf: no role is {word!r}, "
        )
        assert str(caught.value).endswith("; a mode needs its roles, select by names of this tree")
    masks.labels(FOREIGN, masks.trainable("full"))


def test_a_predicate_is_checked_too():
    matrices = where(lambda _, value: value.ndim == 2, "matrices")
    assert masks.mask(FOREIGN, matrices)["Dense_0"]["kernel"]
    with pytest.raises(MaskError, match=r"^~where\('vectors'\) has a term that matches no leaf: "):
        masks.mask(FOREIGN, ~where(lambda _, value: value.ndim == 1, "vectors"))


# The trainer


def label_tree(params, mode="full", train=None, given=None):
    key, _ = groups.source(mode, train, given)
    built = groups.build(
        mode, train, given, optimizer_keys=["name"], steps_per_epoch=1, total_steps=9
    )
    return groups.label_tree(params, built, key)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            {"train": "~role('spacial')"},
            "config.train: rule 1 ('train', ~role('spacial')) has a term that matches no leaf: "
            "no role is 'spacial', the nearest is 'spatial'",
        ),
        (
            {"train": "leaf('bias') | ~leaf('bias')"},
            "config.train: rule 2 ('freeze', everything) freezes nothing, other rules "
            "select every leaf: leave it out, train everything, or pass strict=False",
        ),
        (
            {"given": (("slow", "~depth(0, 9) - depth(9, None)", {}),)},
            "config.groups: rule 1 ('slow', ~depth(0, 9) - depth(9, None)) has a term that "
            "matches no leaf: the depths here are 0 to 2",
        ),
    ],
)
def test_the_trainer_refuses_in_one_line(what, message):
    with pytest.raises(UserError) as caught:
        label_tree(model_params(), **what)
    assert str(caught.value) == message


def test_the_trainer_refuses_a_mode_on_a_foreign_tree():
    with pytest.raises(UserError, match=r"^config\.mode: .* no role is 'spatial', .* a mode needs"):
        label_tree(FOREIGN, "chans")
    assert set(jax.tree.leaves(label_tree(FOREIGN)[0])) == {"train"}


def test_groups_may_leave_nothing_to_freeze():
    given = (("slow", "role('spatial')", {}), ("train", "~role('spatial')", {}))
    labels, _ = label_tree(model_params(), given=given)
    assert set(jax.tree.leaves(labels)) == {"slow", "train"}
    labels, _ = label_tree(model_params(), given=given[:1])
    assert set(jax.tree.leaves(labels)) == {"slow", "freeze"}
