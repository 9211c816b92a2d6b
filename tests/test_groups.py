"""Groups: separate learning rates and optimizers, late starts, and fractions of filters."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

import randmix
from randmix import masks
from randmix.errors import UserError
from randmix.runtime.preemption import Preempted
from randmix.training import groups, runs, steps
from randmix.training import loop as train

PLAIN = {"optimizer__clip_norm": 0.0, "optimizer__weight_decay": 0.01, "schedule__name": "constant"}
SLOW = (
    ("slow", "role('spatial')", {"lr_scale": 0.1}),
    (
        "sgd",
        "role('head')",
        {"name": "sgd", "learning_rate": 0.5, "momentum": 0.0, "weight_decay": 0.0},
    ),
    ("train", "everything", {}),
)
LATE = (("late", "role('spatial')", {"start_step": 3}), ("train", "~role('spatial')", {}))


def batches(count):
    rng = np.random.default_rng(0)
    return [
        {"image": rng.random((16, 8, 8, 1), np.float32), "label": rng.integers(0, 10, 16, np.int32)}
        for _ in range(count)
    ]


def stepper(parts, step=0):
    phase = parts.phase_at(step)

    @jax.jit
    def train_step(state, batch):
        return steps.train_step(
            state,
            batch,
            model=parts.step.model,
            task=parts.step.task,
            optimizer=phase.optimizer,
            labels=phase.labels,
            channel_masks=parts.step.channel_masks,
        )

    return train_step


def initial(parts):
    return jax.jit(parts.init_state)(np.uint32(0))


@pytest.mark.slow
def test_each_group_moves_as_under_its_own_optimizer():
    """Against three plain optax optimizers, each run separately on its subtree."""
    parts = runs.assemble(small.config(groups=SLOW, **PLAIN))
    state = initial(parts)
    params, batch_stats = state.params, state.batch_stats

    def decay(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", tree)

    rate = 0.01
    apart = {
        ("spatial",): optax.adamw(0.1 * rate, weight_decay=0.01, mask=decay),
        ("head",): optax.sgd(0.5),
        ("channel", "norm"): optax.adamw(rate, weight_decay=0.01, mask=decay),
    }
    opt_states = {roles: o.init({r: params[r] for r in roles}) for roles, o in apart.items()}

    @jax.jit
    def gradients(params, batch_stats, batch):
        def loss(params):
            logits, updates = parts.step.model.apply(
                {**params, "batch_stats": batch_stats},
                batch["image"],
                train=True,
                mutable=["batch_stats"],
            )
            loss = -jnp.take_along_axis(
                jax.nn.log_softmax(logits), batch["label"][:, None], 1
            ).mean()
            return loss, updates["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    train_step = stepper(parts)
    for batch in batches(3):
        state, _ = train_step(state, batch)
        grads, batch_stats = gradients(params, batch_stats, batch)
        for roles, optimizer in apart.items():
            mine = {r: params[r] for r in roles}
            with jax.numpy_dtype_promotion("standard"):  # as ``steps.train_step`` does
                updates, opt_states[roles] = optimizer.update(
                    {r: grads[r] for r in roles}, opt_states[roles], mine
                )
            params = {**params, **optax.apply_updates(mine, updates)}
    chex.assert_trees_all_close(state.params, params, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_filters_left_out_of_a_fraction_stay_bit_for_bit():
    text = "fraction(role('spatial') & leaf('kernel') - path('.*stem.*'), 0.25, 7)"
    groups_ = (("some", text, {}), ("train", "~role('spatial')", {}))
    parts = runs.assemble(
        small.config(groups=groups_, optimizer__clip_norm=1.0, optimizer__weight_decay=0.1)
    )
    start = state = initial(parts)
    train_step = stepper(parts)
    for batch in batches(3):
        state, _ = train_step(state, batch)
    for block in ("block_00", "block_01"):
        before = np.asarray(start.params["spatial"][block]["depthwise"]["kernel"])
        after = np.asarray(state.params["spatial"][block]["depthwise"]["kernel"])
        learned = parts.step.channel_masks["spatial"][block]["depthwise"]["kernel"][0, 0]
        assert learned.sum() == 4  # of 16
        changed = (before.view(np.uint32) != after.view(np.uint32)).all((0, 1))
        np.testing.assert_array_equal(changed, learned)
        same = (before.view(np.uint32) == after.view(np.uint32)).all((0, 1))
        np.testing.assert_array_equal(same, ~learned)
    assert not masks.diff(start.params["spatial"]["stem"], state.params["spatial"]["stem"]).moved
    assert parts.record.summary.trainable == 874 + 2 * 4 * 9
    assert parts.record.summary.frozen == 400 - 2 * 4 * 9


@pytest.mark.slow
def test_the_clipped_norm_leaves_unlearned_filters_out():
    """Share 0 of the spatial filters takes exactly the step of Chans, clipping included."""
    settings = {
        "optimizer__name": "sgd",
        "optimizer__clip_norm": 0.01,
        "schedule__name": "constant",
    }
    none = (("none", "fraction(role('spatial'), 0.0, 0)", {}), ("train", "~role('spatial')", {}))
    fraction = runs.assemble(small.config(groups=none, **settings))
    chans = runs.assemble(small.config(mode="chans", **settings))
    (batch,) = batches(1)
    one, _ = stepper(fraction)(initial(fraction), batch)
    other, _ = stepper(chans)(initial(chans), batch)
    chex.assert_trees_all_close(one.params, other.params, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_group_that_starts_later_costs_nothing_before_and_keeps_its_moments():
    parts = runs.assemble(small.config(groups=LATE))
    assert [phase.start_step for phase in parts.step.phases] == [0, 3]
    assert parts.phase_at(2) is parts.step.phases[0]
    assert parts.phase_at(3) is parts.step.phases[1]
    start = state = initial(parts)
    (*first, last) = batches(4)
    before = stepper(parts, 0)
    for batch in first:
        state, _ = before(state, batch)
    assert masks.paths(state.params, "role('spatial')") == sorted(
        masks.diff(start.params, state.params).unchanged
    )
    moments = state.opt_state[1].inner_states["late"]
    assert not masks.diff(start.opt_state[1].inner_states["late"], moments).moved

    text = before.lower(state, last).compile().as_text()
    assert "/depthwise_weight_gradient/" not in text
    after = stepper(parts, 3)
    thawed, _ = after(state, last)
    assert not masks.diff(state.params, thawed.params).unchanged
    assert "/depthwise_weight_gradient/" in after.lower(state, last).compile().as_text()


@pytest.mark.slow
def test_the_late_groups_learning_rate_is_the_runs_at_that_step():
    """Sign descent by AdamW's first step: the first update has the size of the learning rate."""
    late = (("late", "role('spatial')", {"start_step": 2}), ("train", "~role('spatial')", {}))
    parts = runs.assemble(
        small.config(
            groups=late,
            optimizer__weight_decay=0.0,
            optimizer__eps=1e-30,
            schedule__points=((0.0, 0.0), (0.5, 1.0), (1.0, 1.0)),
        )
    )
    state = initial(parts)
    (batch,) = batches(1)
    moved, _ = stepper(parts, 2)(state, batch)
    size = np.abs(
        np.asarray(
            moved.params["spatial"]["stem"]["kernel"] - state.params["spatial"]["stem"]["kernel"]
        )
    )
    # step 2 of 6, in the warm-up to step 3
    np.testing.assert_allclose(size, 0.01 * 2 / 3, rtol=1e-3)


@pytest.mark.slow
def test_a_run_of_two_phases_is_announced_and_resumes_bit_for_bit(tmp_path, monkeypatch, capsys):
    config = small.config(groups=LATE)
    train.train(config, tmp_path / "whole", devices=jax.devices()[:1])
    out = capsys.readouterr().out
    assert "training from step 0: train\n" in out
    assert "training from step 3: late, train\n" in out
    table = (tmp_path / "whole" / "masks.txt").read_text()
    assert "late: role('spatial'), from step 3\n" in table

    with monkeypatch.context() as patch:
        small.stop_after(patch, 3)
        with pytest.raises(Preempted):
            train.train(config, tmp_path / "resumed", devices=jax.devices()[:1])
    train.train(config, tmp_path / "resumed", devices=jax.devices()[:1])
    one, other = (randmix.load(tmp_path / name) for name in ("whole", "resumed"))
    assert one.step == other.step == 6
    assert not masks.diff(one.variables, other.variables).moved
    assert json.loads((tmp_path / "whole" / "result.json").read_text())["mode"] == "groups"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((), "config.groups: got (), allowed one or more entries, or None"),
        (
            (("slow", "role('spatial')"),),
            "config.groups, entry 1: got ('slow', \"role('spatial')\"), "
            "allowed (label, selector text, settings such as {})",
        ),
        (
            (("freeze", "role('spatial')", {}),),
            "config.groups, entry 1: got the label 'freeze', allowed a name other than 'freeze'",
        ),
        (
            (("a", "role('head')", {"lr_scal": 1.0}),),
            "config.groups, entry 1 ('a'): got 'lr_scal', allowed lr_scale, start_epoch, "
            "start_step, b1, b2, eps, learning_rate, momentum, name, nesterov, weight_decay; "
            "did you mean 'lr_scale'?",
        ),
        (
            (("a", "role('head')", {"lr_scale": -1.0}),),
            "config.groups, entry 1 ('a'): lr_scale: got -1.0, allowed 0 to 3.4e+38",
        ),
        (
            (("a", "role('head')", {"start_step": 2.5}),),
            "config.groups, entry 1 ('a'): start_step: got 2.5, allowed an integer, "
            "0 to 2147483647",
        ),
        (
            (("a", "role('head')", {"nesterov": "no"}),),
            "config.groups, entry 1 ('a'): nesterov: got 'no', allowed True or False",
        ),
        (
            (("a", "role('head')", {"start_step": 1, "start_epoch": 1}),),
            "config.groups, entry 1 ('a'): give start_epoch or start_step, not both",
        ),
        (
            (("a", "role('head')", {}), ("a", "role('norm')", {})),
            "config.groups: got the labels a, a, allowed once each",
        ),
        (
            (("a", "role('head')", {"start_step": 1}),),
            "config.groups: every group starts later; at least one must start with the run",
        ),
        (
            (("a", "role('head')", {}), ("b", "role('norm')", {"start_epoch": 1})),
            "config.groups: 'b' starts after step 44, allowed less than the run's 6 steps",
        ),
        (
            (("a", "role('head')", {"name": "adamv"}),),
            "config.groups ('a'): name: got 'adamv', allowed adamw, sgd, an optimizer of optax "
            "or MODULE:FUNCTION; did you mean 'adamw'?",
        ),
    ],
)
def test_a_mistake_in_groups_is_one_line(entries, message):
    with pytest.raises(UserError) as error:
        runs.assemble(small.config(groups=entries))
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["role('spacial')", "open('x')", "role("])
def test_a_bad_selector_in_a_group_names_the_group(text):
    with pytest.raises(UserError, match=r"^config\.groups.*('a'|rule 1).*") as error:
        runs.assemble(small.config(groups=(("a", text, {}),)))
    assert "\n" not in str(error.value)


def test_an_epoch_is_a_start_too():
    entries = (("a", "role('head')", {}), ("b", "role('norm')", {"start_epoch": 0.5}))
    (a, b) = groups.build(
        "full", None, entries, optimizer_keys=(), steps_per_epoch=40, total_steps=100
    )
    assert (a.start_step, b.start_step) == (0, 20)
    assert str(b) == "b: role('norm'), from step 20"
