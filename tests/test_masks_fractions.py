"""Fractions: the filters that are learned within a leaf."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mask_cases import model_params

from randmix import masks
from randmix.masks import MaskError, everything, fraction, path, role


@given(
    shape=st.lists(st.integers(0, 5), max_size=5),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    seed=st.integers(0, 2**40),
)
def test_fractions_are_exact_and_nested(shape, shares, seed):
    tree = {
        "spatial": {
            "block_00": {"depthwise": {"kernel": jax.ShapeDtypeStruct(tuple(shape), jnp.float32)}}
        }
    }
    small, large = (
        jax.tree.leaves(masks.channel_masks(tree, [("train", fraction(everything, share, seed))]))[
            0
        ]
        for share in shares
    )
    filters = int(np.prod(shape[-2:] if len(shape) > 3 else shape[-1:]))
    assert small.size == filters
    assert np.broadcast_shapes(small.shape, tuple(shape)) == tuple(shape)
    assert small.ndim == len(shape)
    assert [small.sum(), large.sum()] == [round(share * filters) for share in shares]
    assert not (small & ~large).any()


def test_fraction_draws_are_a_function_of_seed_and_path():
    def draw(tree, seed=0):
        rules = [("train", fraction(role("spatial"), 0.5, seed)), ("train", everything)]
        return masks.channel_masks(tree, rules)["spatial"]

    params = model_params(width=32)
    first = draw(params)
    alone = draw({"spatial": {"block_01": params["spatial"]["block_01"]}, "another": np.ones(3)})
    np.testing.assert_array_equal(
        first["block_01"]["depthwise"]["kernel"], alone["block_01"]["depthwise"]["kernel"]
    )
    assert (
        first["block_01"]["depthwise"]["kernel"] != first["block_00"]["depthwise"]["kernel"]
    ).any()
    assert (first["stem"]["kernel"] != draw(params, seed=1)["stem"]["kernel"]).any()
    # A filter and its bias are learned together.
    np.testing.assert_array_equal(first["stem"]["kernel"][0, 0], first["stem"]["bias"])
    # A change here changes every run that learns a fraction.
    golden = [1, 3, 4, 5, 6, 8, 14, 16, 17, 18, 20, 21, 22, 27, 29, 31]
    assert np.flatnonzero(first["stem"]["bias"]).tolist() == golden


def test_channel_masks_follow_the_first_rule_and_fit_kernels():
    tree = {
        "spatial": {"a": np.ones((3, 3, 4)), "b": np.ones((3, 3, 4, 2)), "c": np.ones(8)},
        "channel": {"d": np.ones((2, 6))},
    }
    rules = [
        ("train", path("spatial/c")),
        ("train", "fraction(everything, 0.5, 3)"),
        ("freeze", everything),
    ]
    result = masks.channel_masks(tree, rules)
    assert result["spatial"]["c"] is None
    assert result["spatial"]["a"].shape == (1, 1, 4)
    assert result["spatial"]["b"].shape == (1, 1, 4, 2)
    assert result["channel"]["d"].shape == (1, 6)
    assert result["channel"]["d"].dtype == bool
    assert set(jax.tree.leaves(masks.labels(tree, rules))) == {"train"}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("weight", (8, 1, 3, 3), (8, 1, 1, 1)),  # PyTorch's and Equinox's layouts
        ("weight", (8, 4, 3, 3), (8, 4, 1, 1)),
        ("weight", (8, 4), (8, 1)),
        ("weight", (8,), (8,)),
        ("bias", (8, 1, 1), (8, 1, 1)),
        ("kernel", (3, 3, 1, 8), (1, 1, 1, 8)),
        ("kernel", (4, 8), (1, 8)),
        ("bias", (8,), (8,)),
    ],
)
def test_a_filter_is_one_of_the_output_in_every_layout(name, shape, expected):
    params = {"layer": {name: np.zeros(shape)}, "rest": {"x": np.zeros(2)}}
    rules = [("train", fraction(path("layer/.*"), 0.25)), ("freeze", everything)]
    mask = masks.channel_masks(params, rules)["layer"][name]
    assert mask.shape == expected
    assert mask.sum() == mask.size // 4
    bias = masks.channel_masks({"layer": {"bias": np.zeros(8)}, "rest": {"x": 0.0}}, rules)
    if mask.size == 8:  # one draw with the bias beside it
        np.testing.assert_array_equal(mask.ravel(), bias["layer"]["bias"])


def test_fractions_read_back_and_stand_alone():
    rule = fraction("~role('spatial') & depth(1, None)", np.float64(0.25), np.int64(7))
    assert masks.parse(repr(rule)) == rule == pickle.loads(pickle.dumps(rule))
    assert masks.parse("fraction(\"role('a')\", 0.1)") == fraction(role("a"), 0.1, 0)
    combinations = [
        lambda: rule & everything,
        lambda: everything | rule,
        lambda: everything - rule,
        lambda: ~rule,
        lambda: rule or everything,
    ]
    for combination in combinations:
        with pytest.raises(MaskError, match=r"^fraction\(\.\.\.\) is a rule, not a selector: "):
            combination()
    for misuse in (lambda: masks.mask({"a": 1}, rule), lambda: masks.paths({"a": 1}, repr(rule))):
        with pytest.raises(
            MaskError, match=r"is a rule, not a selector: use it in the rules of labels$"
        ):
            misuse()
    for share in (-0.1, 1.1, float("nan"), True, "0.5", None):
        with pytest.raises(
            MaskError, match=r"^the share of a fraction must be a number from 0 to 1, got "
        ):
            fraction(everything, share)
