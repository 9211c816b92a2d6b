"""Scanned and rematerialised blocks against unrolled ones: values, gradients, statistics, tree."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from randmix import masks, models
from randmix.models import counts, stack
from randmix.runtime import sharding
from randmix.training import loop as train
from randmix.training import runs

pytestmark = pytest.mark.slow

IMAGES = (4, 8, 8, 3)
ARGUMENTS = {
    "convmixer": {"width": 8, "depth": 3, "kernel_size": 3, "patch_size": 2, "num_classes": 10},
    "resnet": {"width": 4, "depth": 3, "multiplier": 2, "num_classes": 10},
}


@functools.cache
def build(name, depth=3):
    model = models.build(name, **{**ARGUMENTS[name], "depth": depth})
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(IMAGES))
    rng = np.random.default_rng(0)
    low = {role: 0.5 if role in ("norm", "batch_stats") else -0.5 for role in shapes}
    draw = lambda low, x: rng.uniform(low, low + 1, x.shape).astype(np.float32)  # noqa: E731
    return model, {
        role: jax.tree.map(functools.partial(draw, low[role]), tree)
        for role, tree in shapes.items()
    }


def gradients(model, params, batch_stats):
    """Gradients, outputs and new statistics of a training pass."""

    def loss(params):
        images = jax.random.uniform(jax.random.key(1), IMAGES)
        variables = {**params, "batch_stats": batch_stats}
        outputs, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return (outputs**2).sum(), (outputs, updates)

    return jax.grad(loss, has_aux=True)(params)


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        ("convmixer", False),
        ("convmixer", True),
        ("resnet", False),
    ],
)
def test_scanned_blocks_are_the_unrolled_ones(name, remat):
    model, variables = build(name, depth=2)
    params, batch_stats = models.split(variables)
    scanned = model.clone(scan=stack.equal_runs(params), remat=remat)
    expected = jax.jit(gradients, static_argnums=0)(model, params, batch_stats)
    got = jax.jit(gradients, static_argnums=0)(scanned, params, batch_stats)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    chex.assert_trees_all_close(got, expected, rtol=2e-4, atol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(scanned.init, jax.random.key(0), jnp.zeros(IMAGES)), variables
    )


def test_remat_computes_the_blocks_again():
    model, variables = build("convmixer")
    arguments = models.split(variables)
    activations = {
        remat: str(
            jax.make_jaxpr(functools.partial(gradients, model.clone(remat=remat)))(*arguments)
        ).count("erf ")
        for remat in (False, True)
    }
    assert activations[True] > activations[False]


@pytest.mark.parametrize("remat", [False, True])
def test_the_scanned_program_doesnt_grow_with_depth(remat):
    sizes = []
    for depth in (4, 12):
        model = models.build("convmixer", **{**ARGUMENTS["convmixer"], "depth": depth}, remat=remat)
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(IMAGES))
        params, batch_stats = models.split(variables)
        scanned = model.clone(scan=stack.equal_runs(params))
        text = str(jax.make_jaxpr(functools.partial(gradients, scanned))(params, batch_stats))
        sizes.append(len(re.findall(r"\b(?:dot_general|conv_general_dilated|erf)\b", text)))
    assert sizes[0] == sizes[1] > 0


def test_runs_of_blocks_with_equal_shapes_and_labels():
    _, variables = build("resnet")
    params, _ = models.split(variables)
    # the first block of a later stage has a shortcut
    assert stack.equal_runs(params) == ((0, 3), (4, 6), (7, 9))
    rules = [("freeze", masks.role("spatial") & masks.depth(5, None)), ("train", masks.everything)]
    assert stack.equal_runs(params, masks.labels(params, rules)) == ((0, 3), (7, 9))


def test_blocks_keep_their_numbers_beyond_a_hundred():
    params = {"spatial": {f"block_{i:02d}": {"k": np.zeros(1 + i // 34)} for i in range(102)}}
    assert stack.equal_runs(params) == ((0, 34), (34, 68), (68, 102))


def test_multiply_adds_are_those_of_the_unrolled_model():
    model, variables = build("convmixer")
    scanned = model.clone(scan=stack.equal_runs(models.split(variables)[0]))
    assert counts.multiply_adds(scanned, IMAGES[1:]) == counts.multiply_adds(model, IMAGES[1:])


def test_a_run_trains_with_scan_as_without():
    """The config key with a frozen role inside the scan: the same state after three steps."""
    config = small.config(mode="chans", model__scan=True, model__depth=3)
    parts = runs.assemble(config)
    assert parts.step.phases[0].model.scan == ((0, 3),)
    mesh = sharding.make_mesh(jax.devices()[:1])
    _, arguments = small.compiled_step("chans", model__depth=3)
    state = small.first("chans", model__depth=3)
    step = (
        train.jit_train_step(parts.step, parts.step.phases[0], mesh)
        .lower(state, *arguments)
        .compile()
    )
    assert not re.search(r'op_name="[^"]*/depthwise_weight_gradient/', step.as_text())
    for _ in range(3):
        state, _ = step(state, *arguments)
    unrolled = small.after(3, "chans", model__depth=3)
    chex.assert_trees_all_close(jax.device_get(state), unrolled, rtol=1e-3, atol=1e-5)
