"""masks.transform against optax alone, on the trees of several libraries."""

import pickle

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from mask_cases import NnxModel, equinox_model, model_params

from randmix import masks
from randmix.masks import MaskError, everything, fraction, role

RULES = [
    ("slow", "role('channel')"),
    ("late", "role('norm')"),
    ("freeze", "role('spatial')"),
    ("train", everything),
]
SETTINGS = {
    "slow": 1e-3,
    "late": {"optimizer": optax.sgd, "learning_rate": 0.1, "momentum": 0.9, "start": 3},
    "train": {"learning_rate": 0.01, "weight_decay": 0.1},
}


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 count
        yield


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


def trained(optimizer, params, gradients, state=None):
    """Parameters and state after a step with each of the gradients."""
    state = optimizer.init(params) if state is None else state
    update = jax.jit(optimizer.update)
    for one in gradients:
        updates, state = update(one, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def parameters(kind):
    params = random_like(model_params(), 0)
    if kind == "frozen dict":
        return flax.core.freeze(params)
    return params


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dict", "frozen dict"])
def test_each_group_is_what_optax_does_alone(kind):
    params = parameters(kind)
    gradients = [random_like(params, seed) for seed in range(1, 7)]
    after, state = trained(masks.transform(RULES, SETTINGS), params, gradients)
    alone = {
        "channel": (optax.adam(1e-3), gradients),
        "norm": (optax.sgd(0.1, momentum=0.9), gradients[3:]),  # its first step is the fourth
        "head": (optax.adamw(0.01, weight_decay=0.1), gradients),
    }
    for name, (optimizer, used) in alone.items():
        expected, _ = trained(optimizer, params[name], [one[name] for one in used])
        assert not masks.diff(expected, after[name]).moved, name
    assert not masks.diff(params["spatial"], after["spatial"]).moved
    moments = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
    sizes = {name: sum(x.size for x in jax.tree.leaves(params[name])) for name in params}
    assert moments == 2 * sizes["channel"] + sizes["norm"] + 2 * sizes["head"]


def test_frozen_leaves_keep_every_bit():
    params = {"a": jnp.asarray([-0.0, 0.0, jnp.nan, jnp.inf, -3e38, 2e-38]), "b": jnp.ones(2)}
    for dtype in (jnp.float32, jnp.bfloat16):
        tree = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), params)
        for rules, settings in [
            ([("freeze", "path('a')"), ("train", everything)], {"train": 0.1}),
            (
                [("train", "path('a')"), ("b", everything)],
                {"train": {"learning_rate": 0.1, "start": 9}, "b": 1.0},
            ),
        ]:
            gradients = [random_like(tree, 0)] * 2
            after, _ = trained(masks.transform(rules, settings), tree, gradients)
            assert masks.diff(tree, after).moved == ["b"]


def test_a_built_optimizer_can_start_later():
    params = parameters("dict")
    gradients = [random_like(params, seed) for seed in range(4)]
    setting = {"optimizer": optax.lion(0.1), "start": 2}
    optimizer = masks.transform(masks.trainable("role('head')"), {"train": setting})
    after, _ = trained(optimizer, params, gradients)
    expected, _ = trained(optax.lion(0.1), params["head"], [one["head"] for one in gradients[2:]])
    assert not masks.diff(expected, after["head"]).moved


def test_a_schedule_counts_all_steps():
    def rates(count):
        return count.astype(jnp.float32) / 10  # of an array, as optax passes it

    settings = {"train": {"optimizer": optax.sgd, "learning_rate": rates, "start": 4}}
    params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    optimizer = masks.transform([("train", "path('a')"), ("freeze", everything)], settings)
    state, moved = optimizer.init(params), []
    for _ in range(7):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        moved.append(float(updates["a"]))
    np.testing.assert_allclose(moved, [0, 0, 0, 0, -0.4, -0.5, -0.6], rtol=1e-6)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_training_resumes_bit_for_bit(stop):
    params = parameters("dict")
    gradients = [random_like(params, seed) for seed in range(6)]
    whole, _ = trained(masks.transform(RULES, SETTINGS), params, gradients)
    half, state = trained(masks.transform(RULES, SETTINGS), params, gradients[:stop])
    leaves = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, jax.tree.leaves((half, state)))))
    optimizer = masks.transform(RULES, SETTINGS)  # in a new process nothing else is known
    structure = jax.tree.structure((params, jax.eval_shape(optimizer.init, params)))
    half, state = jax.tree.unflatten(structure, leaves)
    again, _ = trained(optimizer, half, gradients[stop:], state)
    assert not masks.diff(whole, again).moved


def test_lists_are_trees_too():
    params = [{"w": jnp.ones((2, 2))}, {"w": jnp.ones((2, 2))}]
    optimizer = masks.transform(masks.trainable("depth(1, None)"), {"train": optax.sgd(0.5)})
    after, _ = trained(optimizer, params, [params])
    assert masks.diff(params, after).moved == ["1/w"]


KERNELS = masks.where(lambda _, leaf: leaf.ndim > 1, "kernels")


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [role("head"), KERNELS, ~KERNELS])
def test_the_trainable_half_is_enough(chosen):
    params = parameters("dict")
    gradients = random_like(params, 1)
    rules = masks.trainable(chosen)
    labels = masks.labels(params, rules)
    whole, _ = trained(masks.transform(rules, {"train": 0.1}), params, [gradients])
    half, _ = masks.partition(params, labels)
    for source in (rules, lambda _: labels):
        optimizer = masks.transform(source, {"train": 0.1})
        after, _ = trained(optimizer, half, [masks.partition(gradients, labels)[0]])
        assert not masks.diff(masks.partition(whole, labels)[0], after).moved


def test_depths_are_those_of_the_whole_tree():
    stages = {"block_0": {"w": jnp.ones(2)}, "block_1": {"w": jnp.ones(2)}}
    params = {"stage_0": stages, "stage_1": jax.tree.map(jnp.copy, stages)}
    rules = masks.trainable("depth(2, 3)")
    half, _ = masks.partition(params, masks.labels(params, rules))
    after, _ = trained(masks.transform(rules, {"train": optax.sgd(0.5)}), half, [half])
    assert masks.diff(half, after).moved == ["stage_1/block_0/w"]
    assert masks.paths(half, "depth(2, 3)") == ["stage_1/block_0/w"]


def test_a_mask_inside_a_group_counts_the_blocks_of_the_other_groups():
    stage = {"block_0": {"w": jnp.ones(2)}, "block_1": {"w": jnp.ones(2)}}
    params = {"stage_0": stage, "stage_1": jax.tree.map(jnp.copy, stage)}
    decayed = optax.add_decayed_weights(0.1, mask=lambda own: masks.mask(own, "depth(2, 3)"))
    optimizer = masks.transform(masks.trainable("depth(2, None)"), {"train": decayed})
    after, _ = trained(optimizer, params, [jax.tree.map(jnp.zeros_like, params)])
    assert masks.diff(params, after).moved == ["stage_1/block_0/w"]


@pytest.mark.slow
def test_multi_steps_is_a_setting():
    params = parameters("dict")
    several = optax.MultiSteps(optax.sgd(0.5), 2)
    for setting in (several, {"optimizer": several}):
        optimizer = masks.transform(masks.trainable("chans"), {"train": setting})
        once, _ = trained(optimizer, params, [params])
        assert not masks.diff(params, once).moved
        twice, _ = trained(optimizer, params, 2 * [params])
        moved = masks.diff(params, twice).moved
        assert moved == masks.paths(params, ~role("spatial"))


def test_filters_that_a_fraction_leaves_out_stand_still():
    params = parameters("dict")
    rules = masks.trainable("chans", fraction(role("spatial"), 0.5))
    settings = {"train": {"learning_rate": 0.1, "weight_decay": 0.5}}
    gradients = [random_like(params, seed) for seed in range(3)]
    after, state = trained(masks.transform(rules, settings), params, gradients)
    for learned, old, new in zip(
        jax.tree.leaves(masks.channel_masks(params, rules)["spatial"]),
        jax.tree.leaves(params["spatial"]),
        jax.tree.leaves(after["spatial"]),
        strict=True,
    ):
        np.testing.assert_array_equal(np.broadcast_to(learned, old.shape), old != new)
    assert state


@pytest.mark.slow
def test_equinox_modules_are_trained_as_with_their_own_partition():
    model = equinox_model()
    arrays = eqx.filter(model, eqx.is_inexact_array)
    gradients = random_like(arrays, 0)
    rules = [
        ("slow", "role('layers')"),
        ("freeze", "role('spatial') | path('head/layers/0/bias')"),
        ("train", everything),
    ]
    optimizer = masks.transform(rules, {"slow": optax.sgd(0.1), "train": 0.01})
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(arrays), arrays)
    after = eqx.apply_updates(model, updates)

    # Equinox's way: trees of booleans by tree_at, and an optimizer for each part.
    nothing = jax.tree.map(lambda _: False, model)
    is_array = jax.tree.map(eqx.is_inexact_array, model)
    layers = eqx.tree_at(lambda m: m.layers, nothing, is_array.layers)
    head = eqx.tree_at(lambda m: m.head, nothing, is_array.head)
    head = eqx.tree_at(lambda m: m.head.layers[0].bias, head, False)
    expected = model
    for spec, alone in ((layers, optax.sgd(0.1)), (head, optax.adam(0.01))):
        part = eqx.filter(model, spec)
        updates, _ = jax.jit(alone.update)(eqx.filter(gradients, spec), alone.init(part), part)
        expected = eqx.apply_updates(expected, updates)
    assert eqx.tree_equal(after, expected)
    assert masks.diff(arrays, eqx.filter(after, eqx.is_inexact_array)).moved == [
        "layers/0/weight",
        "layers/1/weight",
        "layers/1/bias",
        "head/layers/0/weight",
        "head/layers/1/weight",
        "head/layers/1/bias",
    ]


def test_equinox_rules_are_strict():
    arrays = eqx.filter(equinox_model(), eqx.is_inexact_array)
    optimizer = masks.transform(masks.trainable("~role('spacial')"), {"train": 0.1})
    with pytest.raises(MaskError, match="no role is 'spacial', the nearest is 'spatial'"):
        optimizer.init(arrays)


def test_an_nnx_optimizer_takes_it():
    model = NnxModel()
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    rules = masks.trainable("role('norm') | depth(1, 2)")
    optimizer = nnx.Optimizer(
        model, masks.transform(rules, {"train": optax.sgd(0.1)}), wrt=nnx.Param
    )

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            x = model.spatial(jnp.linspace(0, 1, 8).reshape(4, 2) ** 2)
            for layer in model.layers:
                x = layer(x)
            y = model.norm(x)
            return (y**2 + y).sum() + x.sum()

        optimizer.update(model, nnx.grad(loss)(model))

    step(model, optimizer)
    moved = masks.diff(before, nnx.state(model, nnx.Param)).moved
    assert moved == ["layers/1/bias", "layers/1/kernel", "norm/bias", "norm/scale"]


def test_the_state_is_that_of_optax_alone():
    params = parameters("dict")
    labels = masks.labels(params, masks.trainable("chans"))
    own = masks.transform(lambda _: labels, {"train": optax.adamw(0.1)})
    plain = optax.multi_transform(
        {"train": optax.adamw(0.1), "freeze": optax.set_to_zero()}, labels
    )
    half, _ = masks.partition(params, labels)
    assert jax.tree.structure(own.init(half)) == jax.tree.structure(plain.init(half))


@pytest.mark.parametrize(
    ("rules", "settings", "message"),
    [
        (RULES, 3, "settings must be a dict from label to setting, got 3"),
        (
            RULES,
            {"slow": 0.1, "train": 0.1},
            "no settings for the label 'late', got settings for 'slow', 'train'",
        ),
        ([("train", everything)], {}, "no settings for the label 'train', got none"),
        (
            [("train", everything)],
            {"train": 0.1, "trian": 0.1},
            "settings for 'trian', which is no label of the rules, the nearest is 'train'",
        ),
        (
            [("train", everything)],
            {"train": 0.1, "freeze": 0.1},
            "'freeze' takes no settings: its leaves don't change",
        ),
        (
            [("train", everything)],
            {"train": {"learning_rate": 0.1, "start": -1}},
            "start of 'train' must be an integer of at least 0, got -1",
        ),
        (
            [("train", everything)],
            {"train": -0.1},
            "learning_rate of 'train' must be a number of at least 0 or a schedule, got -0.1",
        ),
        (
            [("train", everything)],
            {"train": "adam"},
            "learning_rate of 'train' must be a number of at least 0 or a schedule, got 'adam'",
        ),
        (
            [("train", everything)],
            {"train": repr},
            "learning_rate of 'train' must be a number of at least 0 or a schedule, "
            "got <built-in function repr>",
        ),
        (
            [("train", everything)],
            {"train": {"learning_rate": 0.1, "weight_decay": float("nan")}},
            "weight_decay of 'train' must be a number of at least 0 or a schedule, got nan",
        ),
        (
            [("train", everything)],
            {"train": {"weight_decay": 0.1}},
            "settings of 'train': adamw: missing a required argument: 'learning_rate'",
        ),
        (
            [("train", everything)],
            {"train": {"optimizer": optax.sgd, "learning_rate": 0.1, "weight_decay": 0.1}},
            "settings of 'train': sgd: got an unexpected keyword argument 'weight_decay'",
        ),
        (
            [("train", everything)],
            {"train": {"optimizer": optax.adam(0.1), "weight_decay": 0.1}},
            "settings of 'train': the optimizer is built, so weight_decay can't reach it: "
            "give the optax function instead, such as optax.adamw",
        ),
        (
            [("train", everything)],
            {"train": {"optimizer": "adam"}},
            "optimizer of 'train' must be an optax transform or a function that builds one, "
            "got 'adam'",
        ),
        (
            [("train", 3)],
            {"train": 0.1},
            "rule 1 ('train'): expected a selector, a fraction or a text, got 3",
        ),
    ],
)
def test_each_message_names_what_to_do(rules, settings, message):
    with pytest.raises(MaskError) as caught:
        masks.transform(rules, settings)
    assert str(caught.value) == message


def test_a_function_that_builds_an_optimizer_is_no_schedule():
    with pytest.raises(MaskError, match=r"^learning_rate of 'train' .*, got <function adam"):
        masks.transform([("train", everything)], {"train": optax.adam})


def test_messages_of_label_functions():
    optimizer = masks.transform(lambda tree: {"a": "slow", "b": "freeze"}, {"train": 0.1})
    with pytest.raises(
        MaskError, match=r"^no settings for the label 'slow', got settings for 'train'$"
    ):
        optimizer.init({"a": jnp.ones(2), "b": jnp.ones(2)})


# State


def test_hold_keeps_the_statistics_of_frozen_norms():
    model = nnx.Sequential(nnx.BatchNorm(2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    old = jax.tree.map(jnp.copy, nnx.state(model, nnx.BatchStat))
    labels = masks.labels(old, masks.trainable("depth(1, None)"))
    model(jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32))
    new = nnx.state(model, nnx.BatchStat)
    assert len(masks.diff(old, new).moved) == 4
    held = jax.jit(lambda old, new: masks.hold(labels, old, new))(old, new)
    assert masks.diff(old, held).moved == ["layers/1/mean", "layers/1/var"]
    assert masks.diff(held, new).moved == ["layers/0/mean", "layers/0/var"]
