"""Models of the user's own against the same modules called directly: values, gradients, keys."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import own_parts
import pytest
from flax import nnx

from randmix import models
from randmix.errors import UserError
from randmix.models import counts, own

IMAGES = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The module of a user's folder, and that folder."""
    folder = tmp_path_factory.mktemp("user")
    own_parts.write(folder)
    before = [*sys.path]
    sys.path.append(str(folder))
    yield __import__("my_parts"), str(folder)
    sys.path[:] = before
    sys.modules.pop("my_parts", None)


def build(name, folder, roles=None, **given):
    known = {"num_classes": 3, "image_shape": (8, 8, 1), "dtype": jnp.float32}
    return own.build(f"my_parts:{name}", folder=folder, given=given, known=known, roles=roles or {})


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.slow
def test_a_linen_module_is_the_same_function_with_its_parameters_by_role(parts):
    module, folder = parts
    roles = {"spatial": "path('.*query.*|.*key.*')", "head": "leaf('bias')", "rest": "everything"}
    model, plain = build("ViT", folder, roles, width=8, depth=2), module.ViT(3, width=8, depth=2)
    variables, params = model.init(KEY, IMAGES), plain.init(KEY, IMAGES)["params"]
    assert sorted(variables) == ["batch_stats", "head", "rest", "spatial"]
    assert variables["batch_stats"] == {}
    by_path = dict(_leaves(params))
    assert {path.partition("/")[2] for path, _ in _leaves(variables)} == by_path.keys()
    for path, value in _leaves(variables):
        role, _, place = path.partition("/")
        np.testing.assert_array_equal(value, by_path[place])
        attention = "query" in place or "key" in place
        assert role == ("spatial" if attention else "head" if "bias" in place else "rest")

    same(model.apply(variables, IMAGES), plain.apply({"params": params}, IMAGES))
    outputs, state = model.apply(
        variables, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
    )
    same(outputs, plain.apply({"params": params}, IMAGES, train=True, rngs={"params": KEY}))
    assert state == {"batch_stats": {}}
    gradient = jax.grad(lambda v: jnp.square(model.apply(v, IMAGES)).sum())(variables)
    expected = jax.grad(lambda p: jnp.square(plain.apply({"params": p}, IMAGES)).sum())(params)
    for path, value in _leaves(gradient):
        np.testing.assert_array_equal(value, dict(_leaves(expected))[path.partition("/")[2]])


def _leaves(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return [("/".join(str(key.key) for key in path), value) for path, value in flat]


def test_running_statistics_move_in_training_alone(parts):
    module, folder = parts
    arguments = {"mean": (0.5,), "std": (0.25,)}
    model, plain = build("Normed", folder, **arguments), module.Normed(3, **arguments)
    variables, own_variables = model.init(KEY, IMAGES), plain.init(KEY, IMAGES, False)
    assert sorted(variables) == ["batch_stats", "rest", "spatial"]  # by the attribute `roles`
    assert [*variables["spatial"]] == ["Conv_0"]
    same(variables["batch_stats"], own_variables["batch_stats"])
    outputs, state = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    expected, updated = plain.apply(own_variables, IMAGES, True, mutable=["batch_stats"])
    same((outputs, state), (expected, updated))
    evaluated, kept = model.apply(variables, IMAGES, mutable=["batch_stats"])
    same(evaluated, plain.apply(own_variables, IMAGES, False))
    same(kept["batch_stats"], variables["batch_stats"])


def test_collections_are_roles_and_state_of_any_name_is_kept(parts):
    module, folder = parts
    model, plain = build("Collections", folder), module.Collections()
    variables = model.init(KEY, IMAGES)
    assert sorted(variables) == ["batch_stats", "mixing", "reading"]
    same(model.apply(variables, IMAGES), plain.apply(plain.init(KEY, IMAGES), IMAGES))
    roles = {"a": "role('mixing')", "b": "everything"}  # a map works on collections, too
    assert jax.tree.map(jnp.shape, build("Collections", folder, roles).init(KEY, IMAGES)) == {
        "a": {"mixing": {"kernel": (64, 4)}},
        "b": {"reading": {"kernel": (4, 3)}},
        "batch_stats": {},
    }


def test_state_beside_params_moves_below_batch_stats(parts):
    module, folder = parts
    model, plain = build("Counting", folder), module.Counting(3)
    variables = model.init(KEY, IMAGES)
    assert variables["batch_stats"] == {"calls": {"count": 0}}
    for _ in range(3):
        outputs, state = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
        variables = variables | state
    assert variables["batch_stats"] == {"calls": {"count": 3}}
    same(outputs, plain.apply({**plain.init(KEY, IMAGES), "calls": {"count": 0}}, IMAGES))


def test_a_state_that_grows_in_training_is_refused(parts):
    with pytest.raises(UserError) as error:
        build("Sowing", parts[1]).check_image_shape((8, 8, 1))
    assert str(error.value) == (
        "config.model.name: my_parts:Sowing changes the shape of its state in training "
        "(['losses']['size'][1]), but a step's must fit the next; sow values into 'intermediates', "
        "or give `sow` a reduce_fn and an init_fn"
    )


def test_what_only_training_records_is_dropped_and_outputs_may_be_numbers(parts):
    model = build("Late", parts[1])
    model.check_image_shape((8, 8, 1))
    variables = model.init(KEY, IMAGES)
    outputs, state = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    assert state == {"batch_stats": {"stats": {"early": 1}}}
    assert outputs["auxiliary"] == 0
    assert outputs["auxiliary"].dtype == jnp.float32


def test_an_nnx_module_is_the_same_function(parts):
    module, folder = parts
    model = build("Small", folder, {"spatial": "path('conv/.*')", "rest": "everything"}, width=8)
    variables = model.init(KEY, IMAGES)
    plain = module.Small(8, 3, (8, 8, 1), rngs=nnx.Rngs(KEY))
    params = nnx.to_pure_dict(nnx.state(plain, nnx.Param))
    assert sorted(variables) == ["batch_stats", "rest", "spatial"]
    same(variables["spatial"]["conv"], params["conv"])
    same(variables["rest"]["layers"]["1"], params["layers"][1])

    plain.eval()
    same(model.apply(variables, IMAGES), plain(IMAGES))
    plain.train()
    plain.drop.rate = 0.0
    expected = plain(IMAGES)
    without = build("Still", folder, width=8)
    outputs, state = without.apply(
        without.init(KEY, IMAGES),
        IMAGES,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": KEY},
    )
    same(outputs, expected)
    same(state["batch_stats"]["norm"]["mean"], plain.norm.mean[...])
    _, kept = model.apply(variables, IMAGES, mutable=["batch_stats"])
    same(kept["batch_stats"], variables["batch_stats"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT", "Small"])
def test_dropout_is_a_function_of_the_key(name, parts):
    _, folder = parts
    model = build(name, folder, width=8)
    variables = jax.jit(model.init)(KEY, IMAGES)
    trained = jax.jit(
        lambda key: model.apply(
            variables, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]
    )
    one, again, other = (trained(jax.random.key(seed)) for seed in (0, 0, 1))
    same(one, again)
    assert not np.array_equal(one, other)
    same(model.apply(variables, IMAGES), model.apply(variables, IMAGES))
    with pytest.raises(Exception, match=r"(?i)dropout"):  # rather than the same mask for ever
        model.apply(variables, IMAGES, train=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT", "Small", "Normed"])
def test_shapes_are_known_without_computing(name, parts):
    _, folder = parts
    given = {"mean": (0.5,), "std": (0.25,)} if name == "Normed" else {"width": 8}
    model = build(name, folder, **given)
    abstract = counts.abstract_variables(model, (8, 8, 1))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.init(KEY, IMAGES))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == shapes
    params, state = models.split(abstract)
    assert "batch_stats" not in params
    assert state == abstract["batch_stats"]
    by_role = counts.parameters(model, (8, 8, 1))
    assert sum(by_role.values()) == sum(x.size for x in jax.tree.leaves(params))
    # One multiply-add for each weight and example at least.
    assert counts.forward(model, (8, 8, 1)) > sum(by_role.values()) / 2


def test_another_dtype_is_given_to_a_class_that_takes_one(parts):
    _, folder = parts
    model = build("Halved", folder, dtype=jnp.bfloat16)
    whole = model.clone(dtype=jnp.float32, width=3)
    assert whole.arguments == {"num_classes": 3, "dtype": jnp.float32}
    variables = model.init(KEY, IMAGES)
    logits = model.apply(variables, IMAGES)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, whole.apply(variables, IMAGES), atol=0.05)
    assert not np.array_equal(logits, whole.apply(variables, IMAGES))
