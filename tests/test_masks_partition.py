"""Selectors and partitions against the filters of flax.nnx and Equinox, leaf by leaf."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from mask_cases import NnxModel, equinox_model

from randmix import masks
from randmix.masks import depth, everything, leaf, path, role, where

KERNELS = where(lambda _, value: value.ndim > 1, "kernels")


def identical(one, other):
    """Whether two trees have the same structure and, leaf for leaf, the same objects."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    same = all(map(np.array_equal, leaves, others)) and len(leaves) == len(others)
    return same and jax.tree.structure(one) == jax.tree.structure(other)


# A selector, and what nnx's own filters say for it
NNX = [
    (role("spatial"), nnx.PathContains("spatial")),
    (leaf("bias"), nnx.PathContains("bias")),
    (
        role("layers") & leaf("kernel"),
        nnx.All(nnx.PathContains("layers"), nnx.PathContains("kernel")),
    ),
    (~role("norm"), nnx.Not(nnx.PathContains("norm"))),
    (role("norm") | leaf("bias"), nnx.Any(nnx.PathContains("norm"), nnx.PathContains("bias"))),
    (depth(1, None), lambda path, _: path[0] == "layers" and path[1] >= 1),
    (path("layers/.*/kernel"), lambda path, _: path[0] == "layers" and path[-1] == "kernel"),
    (everything, ...),
]


@pytest.mark.parametrize(("selector", "theirs"), NNX)
def test_selectors_agree_with_the_filters_of_nnx(selector, theirs):
    model = NnxModel()
    params = nnx.state(model, nnx.Param)
    expected = {
        "/".join(map(str, path))
        for path, _ in nnx.to_flat_state(nnx.state(model, nnx.All(nnx.Param, theirs)))
    }
    assert set(masks.paths(params, selector)) == expected
    chosen, rest = masks.partition(
        params, masks.labels(params, masks.trainable(selector), strict=False)
    )
    assert set(masks.paths(chosen)) == expected
    assert set(masks.paths(rest)) == set(masks.paths(params)) - expected
    # As a filter of nnx itself, path by path.
    _, ours, _ = nnx.split(model, nnx.All(nnx.Param, selector), ...)
    assert set(masks.paths(ours)) == expected


def test_gradients_are_those_of_nnx():
    model = NnxModel()
    x = jnp.linspace(0, 1, 8).reshape(4, 2)

    def loss(model):
        y = model.spatial(x)
        for layer in model.layers:
            y = layer(y)
        return (y**2).sum()

    chosen = role("spatial") | depth(1, None)
    theirs = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.All(nnx.Param, chosen)))(model)
    graph, params, others = nnx.split(NnxModel(), nnx.Param, ...)
    trainable, frozen = masks.partition(params, masks.labels(params, masks.trainable(chosen)))
    ours = jax.grad(
        lambda trainable: loss(nnx.merge(graph, masks.merge(trainable, frozen), others))
    )(trainable)
    assert masks.paths(ours) == masks.paths(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


# A selector, and the parts of the model that Equinox's tree_at replaces for it
EQUINOX = [
    (role("spatial"), lambda m: [m.spatial.weight, m.spatial.bias]),
    (leaf("weight") & role("layers"), lambda m: [m.layers[0].weight, m.layers[1].weight]),
    (role("layers") & depth(1, None), lambda m: [m.layers[1].weight, m.layers[1].bias]),
    (path("head/layers/1/.*"), lambda m: [m.head.layers[1].weight, m.head.layers[1].bias]),
    (
        KERNELS - role("spatial"),
        lambda m: [one.weight for one in (*m.layers, *m.head.layers)],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("selector", "parts"), EQUINOX)
def test_partitions_are_those_of_equinox(selector, parts):
    model = equinox_model()
    spec = jax.tree.map(lambda _: False, model)
    spec = eqx.tree_at(parts, spec, replace_fn=lambda _: True)
    arrays, static = eqx.partition(model, eqx.is_array)
    labels = masks.labels(arrays, masks.trainable(selector))
    ours = masks.partition(arrays, labels)
    theirs = eqx.partition(arrays, spec)
    assert all(map(identical, ours, theirs))
    assert eqx.tree_equal(eqx.combine(masks.merge(*ours), static), model)
    # A mask is such a filter itself, where the tree has arrays.
    assert all(map(identical, eqx.partition(arrays, masks.mask(arrays, selector)), theirs))


def test_gradients_are_those_of_equinox():
    model = equinox_model()

    def loss(model):
        return (model.layers[1](model.layers[0](jnp.ones(2))) ** 2).sum()

    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    labels = masks.labels(arrays, masks.trainable("depth(1, None) & role('layers')"))
    trainable, frozen = masks.partition(arrays, labels)
    ours = jax.grad(lambda part: loss(eqx.combine(part, frozen, static)))(trainable)
    spec = eqx.tree_at(
        lambda m: [m.layers[1].weight, m.layers[1].bias],
        jax.tree.map(lambda _: False, model),
        replace_fn=lambda _: True,
    )
    part, rest = eqx.partition(model, spec)
    theirs = jax.grad(lambda part: loss(eqx.combine(part, rest)))(part)
    assert identical(ours, theirs)
    assert masks.paths(ours) == ["layers/1/weight", "layers/1/bias"]
