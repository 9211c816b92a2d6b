"""masks.lint against concrete steps of optax, and masks.savings against counted multiply-adds."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from mask_cases import NnxModel, equinox_model

from randmix import masks
from randmix.masks import MaskError

RULES = masks.trainable("~role('spatial')")
PARAMS = {
    "spatial": {"stem": {"kernel": np.ones((3, 3, 4), np.float32), "bias": np.ones(4, np.float32)}},
    "head": {"kernel": np.ones((4, 2), np.float32), "bias": np.ones(2, np.float32)},
}
LABELS = masks.labels(PARAMS, RULES)
FROZEN = masks.paths(PARAMS, "role('spatial')")


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 count
        yield


def only(optimizer, selector="~role('spatial')"):
    """The optimizer for some leaves; the gradients of the others pass through."""
    return optax.masked(optimizer, lambda tree: masks.mask(tree, selector))


ZEROS = only(optax.set_to_zero(), "role('spatial')")
OURS = masks.transform(RULES, {"train": {"learning_rate": 0.1, "weight_decay": 0.1}})
OPTIMIZERS = {
    "one for all": optax.adamw(0.1, weight_decay=0.1),
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "factored": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "masked": only(optax.adam(0.1)),
    "masked, then zeroed": optax.chain(only(optax.adam(0.1)), ZEROS),
    "gradients zeroed": optax.chain(ZEROS, optax.sgd(0.1, 0.9)),
    "gradients zeroed, decayed": optax.chain(ZEROS, optax.adamw(0.1)),
    "zeroed, then decayed": optax.chain(
        only(optax.sgd(0.1)), ZEROS, optax.add_decayed_weights(0.1)
    ),
    "zeroed, then noise": optax.chain(OURS, optax.add_noise(0.1, 0.5, 0)),
    "zeroed, then averaged": optax.chain(OURS, optax.ema(0.9)),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), OURS),
    "multi_transform": optax.multi_transform(
        {"train": optax.adam(0.1), "freeze": optax.set_to_zero()}, LABELS
    ),
    "late": masks.transform(RULES, {"train": {"learning_rate": 0.1, "start": 5}}),
    "ours": OURS,
}
WELL = ("masked, then zeroed", "multi_transform", "late", "ours")


def two_steps(optimizer, params, gradients):
    """The updates of the second step by path, and the state's leaves."""
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.number)]
    return dict(zip(masks.paths(updates), jax.tree.leaves(updates), strict=True)), leaves


def seen_in_real_steps(optimizer):
    """By path, whether a frozen leaf moves, by its own value, and whether its gradient matters."""
    rng = np.random.default_rng(0)
    params, gradients = (
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), PARAMS)
        for _ in range(2)
    )
    run = jax.jit(lambda *given: two_steps(optimizer, *given))
    updates, state = run(params, gradients)
    found = {}
    for path in FROZEN:
        decayed, _ = run(masks.apply(params, masks.path(path), lambda x: 2 * x), gradients)
        other = run(params, masks.apply(gradients, masks.path(path), lambda x: 2 * x))
        same = jax.tree.map(np.array_equal, other, (updates, state))
        found[path] = (
            bool(np.any(updates[path] != 0)),
            not np.array_equal(decayed[path], updates[path]),
            not all(jax.tree.leaves(same)),
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lint_finds_what_two_real_steps_do(name):
    findings = masks.lint(OPTIMIZERS[name], LABELS, PARAMS)
    rows = {row.path: (row.moves, row.decays, row.gradient) for row in findings.rows}
    clean = (False, False, False)
    assert {path: rows.get(path, clean) for path in FROZEN} == seen_in_real_steps(OPTIMIZERS[name])
    assert (findings.rows == ()) == (name in WELL)
    assert findings.frozen == len(FROZEN)


@pytest.mark.parametrize("name", ["one for all", "sgd", "momentum", "factored"])
def test_the_state_of_frozen_leaves_is_what_is_saved_without_them(name):
    init = OPTIMIZERS[name].init
    whole, half = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(init, tree)))
        for tree in (PARAMS, masks.partition(PARAMS, LABELS)[0])
    )
    assert masks.lint(OPTIMIZERS[name], LABELS, PARAMS).state == whole - half


def test_the_trainable_half_costs_nothing():
    half, _ = masks.partition(PARAMS, LABELS)
    findings = masks.lint(optax.adamw(0.1), LABELS, half)
    assert findings.rows == ()
    assert str(findings).splitlines()[-1].split() == ["0", "of", "0", "0", "0", "0", "0"]


def test_several_steps_in_one_around_a_mask_move_nothing_that_is_frozen():
    params = {"spatial": {"w": np.ones((3, 3), np.float32)}, "head": {"b": np.ones(2, np.float32)}}
    labels = masks.labels(params, masks.trainable("chans"))
    optimizer = optax.MultiSteps(masks.transform(masks.trainable("chans"), {"train": 0.1}), 2)
    (found,) = masks.lint(optimizer.gradient_transformation(), labels, params).rows
    # It accumulates the gradients of all leaves.
    assert (found.moves, found.decays, found.gradient, found.state) == (
        False,
        False,
        True,
        36,
    )


def test_lint_needs_shapes_only():
    huge = jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)
    params = {"spatial": {"kernel": huge}, "head": {"kernel": huge}}
    labels = masks.labels(params, RULES)
    assert not masks.lint(OURS, labels, params).rows
    (row,) = masks.lint(optax.adam(0.1), labels, params).rows
    assert row == ("spatial/kernel", (2**20, 2**20), True, False, True, 2 * 4 * 2**40)


@pytest.mark.slow
def test_lint_of_nnx_and_equinox_trees():
    for tree, selector in [
        (nnx.state(NnxModel(), nnx.Param), "role('layers')"),
        (eqx.filter(equinox_model(), eqx.is_inexact_array), "role('layers')"),
    ]:
        rules = masks.trainable(selector)
        labels = masks.labels(tree, rules)
        findings = masks.lint(optax.adam(0.1), labels, tree)
        assert [row.path for row in findings.rows] == masks.paths(tree, f"~{selector}")
        _, frozen = masks.partition(tree, labels)
        assert findings.state == 8 * sum(x.size for x in jax.tree.leaves(frozen))
        assert not masks.lint(masks.transform(rules, {"train": 0.1}), labels, tree).rows
        assert not masks.lint(optax.adam(0.1), labels, masks.partition(tree, labels)[0]).rows


def test_each_message_names_what_to_do():
    for labels, params, message in [
        ({"a": 1}, {"a": np.ones(2)}, "a label must be a str, got 1"),
        ({"b": "train"}, {"a": np.ones(2)}, "labels does not have the parameters' structure"),
        ({"a": "freeze"}, {"a": "text"}, "'a' is no array, but a str: leave it out"),
    ]:
        with pytest.raises(MaskError) as caught:
            masks.lint(optax.sgd(0.1), labels, params)
        assert str(caught.value).startswith(message)


# Savings

N, WIDTHS = 32, (48, 64, 80, 16)
MLP = {
    f"layer_{i}": {"kernel": jax.ShapeDtypeStruct(pair, jnp.float32)}
    for i, pair in enumerate(itertools.pairwise(WIDTHS))
}
X = jax.ShapeDtypeStruct((N, WIDTHS[0]), jnp.float32)


def mlp_loss(params, x):
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"])
    return (x**2).mean()


@pytest.mark.parametrize(
    ("selector", "spared"),
    [
        # The gradients of kernels, and those of inputs down to the first trained layer: 2 N in out
        ("depth(1, None)", N * 2 * (48 * 64 + 64 * 80)),
        ("depth(0, 1)", N * 2 * (64 * 80 + 80 * 16)),
        ("depth(2, 3)", N * 2 * (48 * 64 + 2 * 64 * 80 + 80 * 16)),
    ],
)
def test_savings_are_the_products_that_are_spared(selector, spared):
    labels = masks.labels(MLP, masks.trainable(selector))
    table = masks.savings(mlp_loss, labels, MLP, X, optimizer=optax.sgd(0.1))
    (_, frozen) = masks.partition(MLP, labels)
    updates = 2 * sum(leaf.size for leaf in jax.tree.leaves(frozen))
    # The derivatives of tanh are a few operations for each activation.
    assert spared + updates <= table.flops <= 1.05 * (spared + updates) + 8 * N * sum(WIDTHS)
    assert table["optimizer state, bytes"].full == 0
    with pytest.raises(KeyError, match="flops"):
        table["flops"]


def test_quantised_weights_stay_frozen_in_what_savings_compares():
    params = {"base": np.ones((8, 4), np.int8), "adapter": np.ones((8, 4), np.float32)}
    labels = {"base": "freeze", "adapter": "train"}

    def loss(params, x):
        return (x @ (params["base"] + params["adapter"])).sum()

    table = masks.savings(loss, labels, params, np.ones((2, 8), np.float32))
    assert table["optimizer state, bytes"].saved == 0
    with pytest.raises(MaskError, match="labels does not have the parameters' structure"):
        masks.savings(loss, {"base": "freeze"}, params, np.ones((2, 8), np.float32))


def test_savings_of_optimizer_state():
    labels = masks.labels(MLP, masks.trainable("depth(2, 3)"))
    table = masks.savings(mlp_loss, labels, MLP, X)
    frozen = 48 * 64 + 64 * 80
    assert table["optimizer state, bytes"].saved == 2 * 4 * frozen
    # Moments are held throughout, gradients at the peak at least in part.
    assert table.bytes >= 2 * 4 * frozen
    assert table["bytes accessed"].saved > 0
    assert str(table).splitlines()[0].split() == [
        "of",
        "a",
        "step",
        "all",
        "trained",
        "masked",
        "saved",
    ]


def test_a_mask_of_nothing_saves_nothing():
    labels = masks.labels(MLP, masks.trainable("full"))
    pair = masks.savings(lambda *a: (mlp_loss(*a), 1), labels, MLP, X, has_aux=True)
    assert all(row.saved == 0 for row in pair.rows)
    assert len(pair.rows) == 4
