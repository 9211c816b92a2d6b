"""The files of configs/: each variant is a valid run, and each tiny one takes real steps."""

import functools
import importlib.util

import command
import jax
import numpy as np
import pytest
import small

from randmix.data import loader
from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.training import loop as train
from randmix.training import runs

FILES = sorted((command.REPOSITORY / "configs").glob("*.py"))


@functools.cache
def load(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_variant_is_a_run_and_is_documented(file):
    module = load(file)
    assert {"laptop", "tiny"} <= set(module.VARIANTS)
    assert f"python -m randmix.main --config=configs/{file.name}" in module.__doc__
    default, *others = module.VARIANTS
    for variant in others:
        assert f"--config=configs/{file.name}:{variant}" in module.__doc__
    for variant in module.VARIANTS:
        assert runs.assemble(module.get_config(variant)).total_steps >= 2
    assert module.get_config().to_dict() == module.get_config(default).to_dict()
    with pytest.raises(UserError, match=r"variant: got 'tinny', allowed .*; did you mean 'tiny'"):
        module.get_config("tinny")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_tiny_variant_takes_steps_on_generated_images(file):
    config = load(file).get_config("tiny")
    parts, mesh = runs.assemble(config), sharding.make_mesh(jax.devices()[:1])
    rng = np.random.default_rng(0)
    examples = 2 * config.batch_size
    data = {
        "image": rng.integers(0, 256, (examples, *parts.dataset.image_shape), np.uint8),
        "label": rng.integers(0, parts.dataset.num_classes, examples, np.int32),
    }
    order = jax.jit(functools.partial(loader.epoch_order, examples=examples))(0, 0)
    init = jax.jit(parts.init_state).lower(np.uint32(0)).compile(small.QUICK_COMPILATION)
    state = init(np.uint32(0))
    arguments = (data, order, np.uint32(0))
    state, *arguments = (sharding.replicate(jax.device_get(x), mesh) for x in (state, *arguments))
    step = train.jit_train_step(config, parts, mesh, parts.phases[0])
    step = step.lower(state, *arguments).compile(small.QUICK_COMPILATION)
    for _ in range(2):
        state, metrics = step(state, *arguments)
        assert np.isfinite(float(metrics["loss"]))
    assert int(state.step) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))
