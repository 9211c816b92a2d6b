"""Parts of the user's own by name: found, checked against their arguments, or refused in a line."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_parts
import pytest

from randmix import config as configs
from randmix import parts
from randmix.errors import UserError
from randmix.training import optim, runs
from randmix.training.groups import Group


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder outside the repository, whose module is forgotten afterwards."""
    path = tmp_path_factory.mktemp("user")
    own_parts.write(path)
    before = [*sys.path]
    yield path
    sys.path[:] = before
    sys.modules.pop("my_parts", None)


def config(folder, **settings):
    """A config with parts from the folder and other values of some groups."""
    one = configs.default()
    one.code_dir = str(folder)
    one.model = {"name": "my_parts:ViT", "width": 16}
    one.data.name = "my_parts:blobs"
    one.batch_size, one.steps, one.mode = 16, 12, "full"
    for key, value in settings.items():
        one[key] = value
    return one


def test_a_package_is_found_in_the_folder_and_hides_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package/inner.py").write_text("import neighbour\nvalue = neighbour.value")
    (tmp_path / "neighbour.py").write_text("value = 3")
    assert parts.find("key", "a_package.inner:value", str(tmp_path)) == 3
    (tmp_path / "json.py").write_text("value = 4")
    with pytest.raises(UserError, match=r"^key: .*json.* hides the module 'json' in .*; give the"):
        parts.find("key", "json:value", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "my_part:ViT",
            r"there is no module 'my_part' in .*; did you mean 'my_parts'\?; go to ",
        ),
        ("my_parts:Vit", r"my_parts has no 'Vit'; did you mean 'ViT'\?$"),
        ("my_parts:", r"got 'my_parts:', allowed is MODULE:NAME, such as my_package.vit:ViT$"),
        (":ViT", r"got ':ViT', allowed is MODULE:NAME, such as my_package.vit:ViT$"),
        (
            "raises:ViT",
            r"raises:ViT raised ModuleNotFoundError \(No module named 'gone'\) in ",
        ),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(name, message, folder):
    (folder / "raises.py").write_text("import gone\n")
    with pytest.raises(UserError, match=message) as error:
        parts.find("config.model.name", name, str(folder))
    assert "\n" not in str(error.value)


VIT = "my_parts:ViT"
HALVING = "my_parts:halving"


@pytest.mark.parametrize(
    ("group", "value", "message"),
    [
        (
            "model",
            {"name": VIT, "widht": 3},
            ".widht: my_parts:ViT has no such argument; did you mean 'width'?",
        ),
        ("model", {"name": VIT, "width": 1.5}, ".width: got 1.5, allowed an integer"),
        ("model", {"name": VIT, "dropout": True}, ".dropout: got True, allowed a number"),
        ("model", {"name": "my_parts:Small"}, ": my_parts:Small needs a value for width"),
        (
            "model",
            {"name": "my_parts:focal"},
            ".name: got 'my_parts:focal', a function, allowed is a class derived from "
            "flax.linen.Module or flax.nnx.Module",
        ),
        (
            "model",
            {"name": "my_parts:Broken"},
            ".name: my_parts:Broken raised TypeError (cannot re",
        ),
        (
            "model",
            {"name": "my_parts:Pixels"},
            ".name: my_parts:Pixels returned outputs of shape (2, 8, 8, 1) for two images, the "
            "task classification needs (2, 3), a logit per class",
        ),
        (
            "precision",
            "bfloat16",
            ": got 'bfloat16', allowed is 'float32' with my_parts:ViT, which has no argument dtype",
        ),
        ("roles", {"spatial": "path('.*query.*')"}, ": no role selects 'Dense_0/bias' and "),
        ("roles", {"spatial": "role('x')", "rest": "everything"}, ": rule 1 ('spatial', "),
        ("roles", {"spatial": "path('.*query.*'", "rest": "everything"}, ": rule 1 ('spatial'): "),
        ("roles", {"a b": "everything"}, ": got the role 'a b', allowed are letters, digits and _"),
        ("roles", {0: "everything"}, ": got the key 0, allowed are texts"),
        ("user", {"weights": {0: 1.0}}, ".weights: got the key 0, allowed are texts"),
        ("roles", {"a": 3}, ".a: got 3, allowed is a selector's text"),
        (
            "optimizer",
            {"name": "lion", "weight_deca": 1.0},
            "argument; did you mean 'weight_decay'?",
        ),
        (
            "optimizer",
            {"name": "lion", "momentum": 0.9},
            ".momentum: lion has no such argument; it ",
        ),
        ("optimizer", {"name": "adamw", "betas": 3}, ".betas: no such key; start from"),
        ("optimizer", {"name": "lion", "b1": "x"}, ".b1: got 'x', allowed a number"),
        ("optimizer", {"name": "lyon"}, "MODULE:FUNCTION; did you mean 'lion'?"),
        (
            "optimizer",
            {"name": "lion", "learning_rate": -1.0},
            ".learning_rate: got -1.0, allowed 0",
        ),
        (
            "optimizer",
            {"name": "my_parts:rate"},
            ".name: my_parts:rate returned a function, allowed is an optax.GradientTransformation",
        ),
        (
            "optimizer",
            {"name": "my_parts:fixed"},
            ".name: got 'my_parts:fixed', allowed is a function with the argument learning_rate",
        ),
        ("optimizer", {"name": "lbfgs"}, ".name: lbfgs raised TypeError (scale_by_zoom_linesearch"),
        ("schedule", {"name": "cosine_decay_schedul"}, "did you mean 'cosine_decay_schedule'?"),
        ("schedule", {"name": HALVING}, ": my_parts:halving needs a value for times"),
        ("schedule", {"name": "my_parts:stepped"}, ".name: my_parts:stepped raised TracerBool"),
        ("schedule", {"name": HALVING, "times": "two"}, ".name: my_parts:halving raised TypeError"),
        (
            "task",
            "my_parts:averaged",
            ": my_parts:averaged returned 'loss' of shape () for two examples, allowed is one "
            "number per example: don't average",
        ),
        (
            "task",
            "my_parts:lossless",
            ': my_parts:lossless returned entropy, allowed is a dict with "loss"',
        ),
        ("task", "my_parts:focal", ": my_parts:focal raised KeyError ('gamma') in "),
        ("task", "my_parts:squares", ": my_parts:squares raised ValueError ("),
        ("task", "classified", ", MODULE:FUNCTION; did you mean 'classification'?"),
    ],
)
def test_a_bad_part_is_one_line(group, value, message, folder):
    with pytest.raises(UserError) as error:
        runs.assemble(config(folder, **{group: value}))
    assert message in str(error.value)
    assert str(error.value).startswith(f"config.{group}")
    assert "\n" not in str(error.value)


def test_a_group_may_have_another_optimizer(folder):
    one = config(folder, optimizer={"name": "lion", "learning_rate": 0.1})
    rest = ("rest", "everything", {})
    one.groups = (("bias", "leaf('bias')", {"name": "adam", "b1": 0.5}), rest)
    state = jax.eval_shape(runs.assemble(one).init_state, 0).opt_state
    adam, lion = (state.inner_states[label].inner_state[0] for label in ("bias", "rest"))
    assert {"mu", "nu"} <= {*adam._fields}
    assert "nu" not in lion._fields
    one.groups = (("bias", "leaf('bias')", {"name": "sgd"}), rest)
    with pytest.raises(
        UserError, match=r"^config.groups \('bias'\): sgd needs a value for momentum,"
    ):
        runs.assemble(one)


def test_sgds_own_defaults_are_not_those_of_other_optimizers(folder):
    def completed(name, **keys):
        one = config(folder)
        one.optimizer.update({"name": name, **keys})
        return runs.complete(one).optimizer

    assert (completed("adam").nesterov, completed("adam").b1) == (False, 0.9)
    assert (completed("rmsprop").momentum, completed("rmsprop").nesterov) == (None, False)
    assert completed("rmsprop", momentum=0.5).momentum == 0.5

    one = config(folder)  # adamw, with sgd's keys at their defaults
    one.groups = (("bias", "leaf('bias')", {"name": "rmsprop"}), ("rest", "everything", {}))
    state = jax.eval_shape(runs.assemble(one).init_state, 0).opt_state
    assert "TraceState" not in str(state)
    one.groups = (
        ("bias", "leaf('bias')", {"name": "rmsprop", "momentum": 0.5}),
        ("rest", "everything", {}),
    )
    state = jax.eval_shape(runs.assemble(one).init_state, 0).opt_state
    assert "TraceState" in str(state)


def test_the_optimizer_of_a_group_is_tried_before_anything_is_compiled(folder):
    one = config(folder)
    one.groups = (("bias", "leaf('bias')", {"name": "lbfgs"}), ("rest", "everything", {}))
    with pytest.raises(UserError, match=r"^config.optimizer.name: lbfgs raised"):
        runs.assemble(one)


def test_what_cannot_go_together_is_refused(folder):
    one = config(folder, task="my_parts:focal", user={"gamma": 1.0})
    one.label_smoothing = 0.1
    with pytest.raises(
        UserError, match=r"^config.label_smoothing: got 0.1, allowed 0 with a task "
    ):
        runs.assemble(one)
    two = configs.default()
    two.roles = {"a": "everything"}
    with pytest.raises(
        UserError, match=r"^config.roles: got a, allowed is {} with the model convm"
    ):
        runs.assemble(two)


def test_a_task_without_a_metric_has_no_best_checkpoint(folder):
    one = config(folder, model={"name": "my_parts:Pixels"}, task="my_parts:squares")
    assert runs.assemble(one).step.task.metric_names == ("loss",)
    one.data.validation = 0.25
    with pytest.raises(
        UserError, match=r"config.data.validation: got 0.25, allowed 0 with my_part"
    ):
        runs.assemble(one)
    one.data.validation, one.defense.epsilon = 0.0, 8.0
    with pytest.raises(
        UserError, match=r"config.defense.epsilon: got 8.0, allowed 0 with my_parts"
    ):
        runs.assemble(one)


def test_a_group_given_as_a_dict_keeps_the_other_defaults():
    one = configs.default()
    one.optimizer = {"name": "sgd", "momentum": 0.5}
    one.model = {"name": "resnet", "width": 8}
    configs.complete(one)
    other = configs.default("resnet")
    other.optimizer.update(name="sgd", momentum=0.5)
    other.model.width = 8
    assert one.to_dict() == other.to_dict()
    assert one.optimizer.is_locked
    with pytest.raises(AttributeError, match="momentum"):
        one.optimizer.momentun = 0.1


def test_all_arguments_of_a_part_are_in_the_run(folder):
    one = config(
        folder, optimizer={"name": "lion", "learning_rate": 1}, schedule={"name": "constant"}
    )
    resolved, _ = runs.resolve(configs.complete(one))
    assert resolved.model.to_dict() == {
        "name": "my_parts:ViT", "width": 16, "depth": 1, "dropout": 0.25,
    }  # fmt: skip
    assert resolved.optimizer.to_dict() == {
        "name": "lion", "learning_rate": 1.0, "clip_norm": 0.0,
        "b1": 0.9, "b2": 0.99, "mu_dtype": None, "weight_decay": 0.001,
    }  # fmt: skip
    again = configs.from_values(json.loads(configs.to_json(resolved)))
    assert again.to_dict() == resolved.to_dict()
    assert configs.fingerprint(again) == configs.fingerprint(resolved)


def test_the_config_knows_the_names_of_ours():
    for name in configs.OPTIMIZERS:
        options = configs.default().optimizer.to_dict() | {"name": name}
        assert optim.complete("optimizer", options, {}, None) == options
    for name in configs.SCHEDULES:
        options = configs.default().schedule.to_dict() | {"name": name}
        assert optim.complete("schedule", options, {}, None) == options


def test_only_the_name_may_change(folder):
    one = config(folder)
    one.optimizer.name = "lion"  # its own b1 and so on stay those of the config
    resolved, _ = runs.resolve(one)
    assert {"eps", "momentum", "nesterov"}.isdisjoint(resolved.optimizer)
    assert resolved.optimizer.b2 == 0.999
    one.optimizer.momentum = 0.5
    with pytest.raises(UserError, match=r"config.optimizer.momentum: lion has no such argument"):
        runs.assemble(one)
    one.optimizer = {**configs.default().optimizer, "name": "lion", "foo": "foo"}
    with pytest.raises(UserError, match=r"config.optimizer.foo: lion has no such argument"):
        runs.assemble(one)


def test_roles_keep_their_order_and_are_part_of_the_run():
    one = configs.default("my_parts:ViT")
    one.roles = {"spatial": "path('a')", "channel": "everything"}
    other = configs.default("my_parts:ViT")
    other.roles = {"channel": "everything", "spatial": "path('a')"}
    assert configs.fingerprint(one) != configs.fingerprint(other)
    for given in (one, other):
        again = configs.from_values(json.loads(configs.to_json(given)))
        assert [*again.roles.items()] == [*given.roles.items()]
        assert [*again.copy_and_resolve_references().roles] == [*given.roles]


def test_the_users_keys_are_part_of_the_run_but_not_their_folder():
    one = configs.default()
    name = configs.fingerprint(one)
    one.code_dir = "/elsewhere"
    assert configs.fingerprint(one) == name
    one.user = {"anything": 3}
    assert configs.fingerprint(one) != name


PARAMS = {"dense": {"kernel": np.float32([[1.0, -2.0]]), "bias": np.float32([0.5, 0.25])}}
GRADIENTS = {"dense": {"kernel": np.float32([[0.3, 0.1]]), "bias": np.float32([-0.2, 0.4])}}


def trained(options, schedule, **named):
    """The parameters after three steps of `optim.build_optimizer`."""
    schedule = functools.partial(optim.build_schedule, schedule, 10, **named)
    labels = jax.tree.map(lambda _: "train", PARAMS)
    optimizer = optim.build_optimizer(options, schedule, labels, (Group("train", None),), **named)
    return updated(optimizer)


def updated(optimizer):
    """The parameters after three steps of an optimizer with constant gradients."""
    params, state = PARAMS, optimizer.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):
            updates, state = optimizer.update(GRADIENTS, state, params)
            params = optax.apply_updates(params, updates)
    return params


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lion", "adam", "lamb", "rmsprop", "adafactor"])
def test_optaxs_optimizers_are_optaxs(name):
    options = {"name": name, "learning_rate": 0.1, "clip_norm": 0.0}
    options = optim.complete("optimizer", options, configs.default().optimizer.to_dict(), None)
    got = trained(options, {"name": "constant"})
    function = getattr(optax, name)
    masks = {
        mask: {"dense": {"kernel": True, "bias": False}}
        for mask in ("mask", "weight_decay_mask")
        if mask in parts.parameters(function)
    }
    expected = updated(function(learning_rate=0.1, **masks))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert not np.array_equal(got["dense"]["kernel"], PARAMS["dense"]["kernel"])


def test_an_optimizer_and_a_schedule_of_ones_own(folder):
    named = {"code_dir": str(folder), "user": {}}
    options = {"name": "my_parts:descent", "learning_rate": 0.1, "clip_norm": 0.0, "momentum": 0.9}
    got = trained(options, {"name": "my_parts:halving", "times": 5}, **named)
    expected = updated(optax.sgd(lambda step: 0.1 * 0.5 ** (step * 5 // 10), 0.9))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    again = trained(options | {"name": "my_parts:anything"}, {"name": "constant"}, **named)
    jax.tree.map(np.testing.assert_array_equal, again, updated(optax.sgd(0.1, 0.9)))


def test_a_schedule_of_optax_is_a_multiple_of_the_learning_rate():
    schedule = optim.build_schedule(
        {"name": "cosine_decay_schedule", "init_value": 1.0, "alpha": 0.1}, 100, 0.02
    )
    steps = jnp.arange(0, 101, 10)
    with jax.numpy_dtype_promotion("standard"):
        expected = optax.cosine_decay_schedule(0.02, 100, 0.1)(steps)
    np.testing.assert_allclose([schedule(int(step)) for step in steps], expected, rtol=1e-6)
