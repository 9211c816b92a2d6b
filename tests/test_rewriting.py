"""Rewriting of a separable ResNet, by a float64 forward pass in NumPy that applies both halves."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from randmix import models
from randmix.errors import UserError
from randmix.models import filters, rewriting

pytestmark = pytest.mark.slow

SHAPE = (9, 8, 3)  # an odd and an even side meet the strides


@functools.cache
def initial(seed, width=3, **arguments):
    """Variables before training, norms and statistics random: 1s and 0s would hide a lost one."""
    variables = jax.eval_shape(model(width, **arguments).init, jax.random.key(0), images())
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        positive = path[-1] in ("scale", "var")
        return rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(size=leaf.shape) / 3

    drawn = {path: draw(path, leaf) for path, leaf in flatten_dict(variables).items()}
    return unflatten_dict(drawn)


def model(width=3, **arguments):
    return models.build("resnet", width=width, num_classes=5, **{"depth": 1, **arguments})


def images():
    return np.random.default_rng(7).random((4, *SHAPE))


def bank(name, seed, width=3, **arguments):
    """The role "spatial" filled by a filter bank."""
    shapes = flatten_dict(initial(0, width, **arguments)["spatial"])
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return unflatten_dict(
        {
            path: np.asarray(filters.build(name)(key, leaf.shape))
            for key, (path, leaf) in zip(keys, shapes.items(), strict=True)
        }
    )


class Forward:
    """The model's logits in float64; ``dense`` replaces the halves by dense kernels."""

    def __init__(self, variables, dense=None):
        flat = flatten_dict(variables, sep="/")
        self.leaves = {path: np.asarray(leaf, np.float64) for path, leaf in flat.items()}
        self.dense = dense

    def __call__(self, x):
        x = self.convolution("stem", x)
        for i in itertools.count():
            name = f"block_{i:02d}"
            if f"norm/{name}/norm_1/scale" not in self.leaves:
                break
            x = self.block(name, x)
        x = self.norm("final_norm", x).mean((1, 2))
        return x @ self.leaves["head/classifier/kernel"] + self.leaves["head/classifier/bias"]

    def block(self, name, x):
        y = self.norm(f"{name}/norm_1", x)
        stride, shortcut = 1, self.leaves.get(f"channel/{name}/shortcut/kernel")
        if shortcut is not None:
            stride, x = 2, y[:, ::2, ::2] @ shortcut
        y = self.norm(f"{name}/norm_2", self.convolution(f"{name}/conv_1", y, stride))
        return x + self.convolution(f"{name}/conv_2", y)

    def norm(self, name, x):
        mean, var = (self.leaves[f"batch_stats/{name}/{leaf}"] for leaf in ("mean", "var"))
        scale, bias = (self.leaves[f"norm/{name}/{leaf}"] for leaf in ("scale", "bias"))
        return np.maximum((x - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)

    def convolution(self, name, x, stride=1):
        if self.dense is not None:
            return _convolve(x, self.dense[name], "nhwc,co->nhwo", stride)
        filters = self.leaves[f"spatial/{name}/depthwise/kernel"]
        n, h, w, features = (y := _convolve(x, filters, "nhwc,cm->nhwcm", stride)).shape[:4]
        flat = y.reshape(n, h, w, features * y.shape[4])
        return flat @ self.leaves[f"channel/{name}/pointwise/kernel"]


def _convolve(x, kernel, product, stride):
    k, (_, h, w, _) = len(kernel), x.shape
    before = (k - 1) // 2
    padded = np.pad(x, ((0, 0), (before, k - 1 - before), (before, k - 1 - before), (0, 0)))
    return sum(
        np.einsum(product, padded[:, i : i + h : stride, j : j + w : stride], kernel[i, j])
        for i, j in np.ndindex(k, k)
    )


def error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def test_the_forward_pass_of_these_tests_is_the_models():
    variables = initial(0)
    as_float32 = jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)
    logits = jax.jit(model().apply)(as_float32, jnp.asarray(images(), jnp.float32))
    np.testing.assert_allclose(logits, Forward(variables)(images()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["random", "same"])
@pytest.mark.parametrize(("seed", "multiplier"), [(i, 9 + i) for i in range(3)])
def test_full_is_chans_with_any_filters_of_full_rank(name, seed, multiplier):
    full, other = initial(seed), bank(name, seed, multiplier=multiplier)
    chans = rewriting.with_filters(full, other)
    assert error(Forward(chans)(images()), Forward(full)(images())) < 1e-10
    assert chans["spatial"] is other
    assert all(chans[role] is full[role] for role in ("norm", "head", "batch_stats"))
    for path, kernel in flatten_dict(chans["channel"]).items():
        before = flatten_dict(full["channel"])[path]
        same = np.array_equal(kernel, before)
        assert same == ("shortcut" in path)
        assert kernel.shape[1] == before.shape[1]
    again = rewriting.with_filters(chans, full["spatial"])  # and back: m = 9 has one solution
    for path, kernel in flatten_dict(again["channel"]).items():
        np.testing.assert_allclose(
            kernel, flatten_dict(full["channel"])[path], rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize("seed", range(3))
def test_a_dense_network_is_any_of_both(seed):
    full = initial(seed)
    dense = rewriting.dense_kernels(full)
    logits = Forward(full)(images())
    assert error(Forward(full, dense)(images()), logits) < 1e-12
    rng = np.random.default_rng(seed)
    others = {layer: rng.normal(size=kernel.shape) for layer, kernel in dense.items()}
    given = rewriting.with_filters(full, bank("same", seed), others)
    assert error(Forward(given)(images()), Forward(full, others)(images())) < 1e-10
    assert error(Forward(given)(images()), logits) > 0.1
    found = rewriting.dense_kernels(given)
    for layer, kernel in others.items():
        np.testing.assert_allclose(found[layer], kernel, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_full_is_space_where_no_layer_has_more_outputs_than_filters(seed):
    full, other = initial(seed, width=2), initial(seed + 10, width=2)["channel"]
    space = rewriting.with_mixing(full, other)
    assert error(Forward(space)(images()), Forward(full)(images())) < 1e-10
    mixing = flatten_dict(space["channel"])
    for path, kernel in flatten_dict(full["channel"]).items():
        kept = flatten_dict(full["channel"] if "shortcut" in path else other)[path]
        np.testing.assert_array_equal(mixing[path], kept)
        assert "shortcut" in path or not np.array_equal(kernel, kept)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("box", {}, "block_00/conv_1: got filters of rank 1, needed is rank 9 in every channel"),
        (
            "identity",
            {},
            "block_00/conv_1: got filters of rank 1, needed is rank 9 in every channel",
        ),
        (
            "random",
            {"multiplier": 8},
            "conv_1: got filters of rank 8, needed is rank 9",
        ),
        ("random", {"stem": "imagenet"}, "stem: got filters of rank 9, needed is rank 49"),
        (
            "random",
            {"kernel_size": 5},
            "take a bank of full rank, as 'random' or 'same', with a multiplier of 25 or more",
        ),
    ],
)
def test_filters_of_a_lower_rank_are_refused(name, arguments, message):
    full, other = initial(0, **arguments), bank(name, 0, **arguments)
    with pytest.raises(UserError, match=message) as raised:
        rewriting.with_filters(full, other)
    assert "\n" not in str(raised.value)
    nearest = rewriting.with_filters(full, other, exact=False)
    assert error(Forward(nearest)(images()), Forward(full)(images())) > 0.1


def test_more_outputs_than_filters_are_refused():
    full, other = initial(0), initial(1)["channel"]
    message = (
        "block_02/conv_1: got pointwise weights of rank 9, needed is rank 12 in every input "
        "channel; take random ones with a multiplier of 12 or more"
    )
    with pytest.raises(UserError, match=message):
        rewriting.with_mixing(full, other)


def test_other_models_and_shapes_are_refused():
    full, wide = initial(0), initial(0, width=4)
    with pytest.raises(UserError, match=r"allowed are those of a ResNet with between='none'"):
        rewriting.dense_kernels(initial(0, between="bn"))
    mixer = {"spatial": {"stem": {"kernel": np.ones((1, 1, 3, 4))}}, "channel": {}, "norm": {}}
    with pytest.raises(UserError, match=r"allowed are those of a ResNet with between='none'"):
        rewriting.dense_kernels(mixer)
    message = r"block_00/conv_1: got filters \[3, 3, 4, 9\], allowed \[3, 3, 3, m\]"
    with pytest.raises(UserError, match=message):
        rewriting.with_filters(full, wide["spatial"])
    with pytest.raises(
        UserError, match=r"conv_1: got pointwise weights \[36, 4\], allowed \[3 m, 3"
    ):
        rewriting.with_mixing(full, wide["channel"])
    with pytest.raises(UserError, match="got filters for no layer, allowed are those for block_00"):
        rewriting.with_filters(full, {})


@pytest.mark.parametrize("seed", range(3))
def test_the_residual_is_that_of_a_least_squares_fit(seed):
    rng = np.random.default_rng(seed)
    k, c, features, m = rng.integers(1, 5, size=4)
    kernel, given = rng.normal(size=(k, k, c, features)), rng.normal(size=(k, k, c, m))
    left = 0
    for channel in range(c):
        a, b = (x[:, :, channel].reshape(k * k, -1) for x in (given, kernel))
        left += np.square(a @ np.linalg.lstsq(a, b)[0] - b).sum()
    expected = np.sqrt(left / np.square(kernel).sum())
    assert rewriting.residual(kernel, given) == pytest.approx(expected, abs=1e-12)
    assert rewriting.ranks(given).tolist() == [min(k * k, m)] * c


def test_the_residual_of_equal_filters_is_what_their_direction_lacks():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5))
    for name, rest in {
        "box": np.square(kernel - kernel.mean((0, 1))),
        "identity": np.square(kernel) * (np.arange(9) != 4).reshape(3, 3, 1, 1),
    }.items():
        given = filters.build(name)(jax.random.key(0), (3, 3, 4, 9))
        expected = np.sqrt(rest.sum() / np.square(kernel).sum())
        assert rewriting.residual(kernel, given) == pytest.approx(expected, rel=1e-9)
        assert rewriting.ranks(given).tolist() == [1] * 4
