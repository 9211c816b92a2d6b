"""The train step: frozen leaves stay, cost nothing and aren't compiled; devices don't matter."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from randmix import masks
from randmix.data import arrays
from randmix.runtime import sharding
from randmix.training import evaluation as eval_loop
from randmix.training import steps

FROZEN = {"full": (), "chans": ("spatial",), "space": ("channel",), "floor": ("spatial", "channel")}
MODES = tuple(FROZEN)


@pytest.mark.parametrize(
    "mode",
    ["chans", *(pytest.param(m, marks=pytest.mark.slow) for m in ("full", "space", "floor"))],
)
def test_frozen_leaves_are_bit_identical_and_trainable_ones_moved(mode):
    before, after = small.initial_state(mode).params, small.after(3, mode).params
    difference = masks.diff(before, after)
    frozen = [path for path in masks.paths(before) if path.split("/")[0] in FROZEN[mode]]
    assert sorted(difference.unchanged) == sorted(frozen)
    assert sorted(difference.moved) == sorted(set(masks.paths(before)) - set(frozen))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_optimizer_state_has_arrays_for_trainable_leaves_only(mode):
    state = small.initial_state(mode)
    trainable, _ = masks.partition(state.params, small.parts(mode).step.labels)
    held = sorted(x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim)
    moments = [x.shape for x in jax.tree.leaves(trainable)] * 2  # AdamW's two
    assert held == sorted(moments)


@pytest.mark.slow
def test_the_compiled_chans_step_has_no_depthwise_weight_gradient():
    # The scope in an operation's name, not this test's name in its stack.
    scope = re.compile(r'op_name="[^"]*/depthwise_weight_gradient/')
    assert scope.search(small.compiled_step("full")[0].as_text())
    assert not scope.search(small.compiled_step("chans")[0].as_text())


def test_running_statistics_move_in_every_mode():
    before, after = small.initial_state("chans").batch_stats, small.after(3, "chans").batch_stats
    assert not masks.diff(before, after).unchanged


def test_the_step_is_traced_once_over_many_calls():
    parts = small.parts("chans")
    state = jax.tree.map(jnp.asarray, small.initial_state("chans"))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, batch):
        return steps.train_step(
            state,
            batch,
            model=parts.step.model,
            task=parts.step.task,
            optimizer=parts.step.phases[0].optimizer,
            labels=parts.step.labels,
        )

    rng = np.random.default_rng(0)
    for _ in range(3):
        batch = {
            "image": rng.random((32, 8, 8, 1), np.float32),
            "label": rng.integers(0, 10, 32, np.int32),
        }
        state, metrics = step(state, batch)
    assert int(state.step) == 3
    assert float(state.totals["steps"]) == 3
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "chans"])
def test_one_and_eight_devices_agree_after_three_sgd_steps(mode):
    sgd = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.1, "schedule__name": "constant"}
    one, eight = (small.after(3, mode, devices, **sgd) for devices in (1, 8))
    chex.assert_trees_all_close(one.params, eight.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(one.batch_stats, eight.batch_stats, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(one.totals, eight.totals, rtol=1e-5)


@pytest.mark.slow
def test_activations_are_not_gathered_over_the_devices():
    text = small.compiled_step(
        "full", 8, optimizer__name="sgd", optimizer__learning_rate=0.1, schedule__name="constant"
    )[0].as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text


def test_a_step_is_the_gradient_that_jax_takes_of_the_whole_loss():
    """Against hand-written SGD over the full tree, with frozen leaves restored afterwards."""
    sgd = {**small.PLAIN_SGD, "optimizer__clip_norm": 0.0}
    parts = small.parts("chans", **sgd)
    state = jax.tree.map(jnp.asarray, small.initial_state("chans", **sgd))
    rng = np.random.default_rng(1)
    images, labels = rng.random((16, 8, 8, 1), np.float32), rng.integers(0, 10, 16, np.int32)

    def loss(params):
        variables = {**params, "batch_stats": state.batch_stats}
        logits, _ = parts.step.model.apply(variables, images, train=True, mutable=["batch_stats"])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    gradients = jax.jit(jax.grad(loss))(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradients)
    expected["spatial"] = state.params["spatial"]
    moved, _ = jax.jit(small.step_of(parts))(state, {"image": images, "label": labels})
    chex.assert_trees_all_close(moved.params, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_the_clipped_norm_is_of_trainable_gradients_only():
    """Chans, clipped to half the trainable gradients' norm, takes half of the unclipped step."""
    sgd = small.PLAIN_SGD
    free = small.after(1, "chans", optimizer__clip_norm=0.0, **sgd).params
    start = small.initial_state("chans", optimizer__clip_norm=0.0, **sgd).params
    moves = jax.tree.map(lambda a, b: (a - b) / 0.1, start, free)
    norm = float(np.sqrt(sum(np.square(m).sum() for m in jax.tree.leaves(moves))))
    clipped = small.after(1, "chans", optimizer__clip_norm=norm / 2, **sgd).params
    halved = jax.tree.map(lambda a, b: (a - b) / 0.1 * 2, start, clipped)
    chex.assert_trees_all_close(halved, moves, rtol=1e-2, atol=1e-5)


def test_evaluation_counts_no_padding():
    parts, state = small.parts("full"), small.initial_state("full")
    variables = {**state.params, "batch_stats": state.batch_stats}
    mesh = sharding.make_mesh(jax.devices()[:1])
    test_set = parts.data.open()[1].arrays()
    eval_step = eval_loop.jit_eval_step(
        model=parts.step.model, task=parts.step.task, mesh=mesh, batch_size=112
    )
    got = eval_loop.evaluate_split(
        eval_step, variables, arrays.eval_arrays(test_set, batch_size=112, mesh=mesh)
    )
    logits = jax.jit(parts.step.model.apply)(variables, test_set["image"].astype(np.float32) / 255)
    logits = np.asarray(logits, np.float64)
    loss = (
        np.log(np.exp(logits).sum(-1))
        - np.take_along_axis(logits, test_set["label"][:, None], 1)[:, 0]
    )
    assert got["accuracy"] == pytest.approx(
        (logits.argmax(-1) == test_set["label"]).mean(), abs=1e-7
    )
    assert got["loss"] == pytest.approx(loss.mean(), rel=1e-5)


@pytest.mark.slow
def test_the_first_step_that_was_not_finite_is_kept():
    step, arguments = small.compiled_step("full")
    assert small.after(3).failed_step == -1
    state = small.first("full").replace(step=jnp.asarray(5, jnp.int32))
    kernel = state.params["head"]["classifier"]["kernel"]
    state.params["head"]["classifier"]["kernel"] = kernel.at[0, 0].set(jnp.inf)
    for _ in range(2):
        state, metrics = step(state, *arguments)
        assert not np.isfinite(metrics["loss"])
        assert state.failed_step == 5
