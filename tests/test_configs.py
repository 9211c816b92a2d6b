"""The files of configs/: each variant is a valid run, and each tiny one takes real steps."""

import ast
import functools
import runpy

import jax
import numpy as np
import pytest
import small

from randmix import config as configs
from randmix.data import catalog, loader
from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.training import loop as train
from randmix.training import runs

FILES = sorted(configs.RECIPES.glob("*.py"))


@functools.cache
def variants(file):
    """The names of a file's variants, and "" for the config without one."""
    return ["", *runpy.run_path(str(file))["VARIANTS"]]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_variant_is_a_run_and_is_documented(file):
    text = ast.get_docstring(ast.parse(file.read_text()))
    assert f"python -m randmix.main --config=configs/{file.name}" in text
    assert {"laptop", "tiny"} <= set(variants(file))
    for variant in variants(file):
        if variant:
            assert f"\n    :{variant} " in text
        assert runs.assemble(configs.recipe(f"{file.stem}:{variant}")).loop.total_steps >= 2
    with pytest.raises(UserError, match=r"variant: got 'tinny', allowed .*; did you mean 'tiny'"):
        configs.recipe(f"{file.stem}:laptop-tinny")


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        ("convmixer_cifar:cifar100-laptop", ("cifar100", 64, 0.2, "torchvision-n2-m12")),
        ("convmixer_mnist:fashion_mnist-tiny", ("fashion_mnist", 8, 1.0, "")),
        ("convmixer_mnist:tiny-fashion_mnist", ("fashion_mnist", 8, 1.0, "")),
        ("resnet_cifar:cifar100-laptop", ("cifar100", 16, 0.2, "")),
    ],
)
def test_variants_combine_and_the_statistics_are_those_of_the_data(recipe, size):
    config = configs.recipe(recipe)
    data, model = config.data, config.model
    assert (data.name, model.width, data.subset, data.randaugment) == size
    values = runs.assemble(config).record.config["model"]
    assert (values["mean"], values["std"]) == catalog.DATA_SETS[data.name].statistics


def test_an_unknown_recipe_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"recipe: got 'digit', allowed .*; did you mean 'digits'"):
        configs.recipe("digit:tiny")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_tiny_variant_takes_steps_on_generated_images(file):
    config = configs.recipe(f"{file.stem}:tiny")
    parts, mesh = runs.assemble(config), sharding.make_mesh(jax.devices()[:1])
    rng = np.random.default_rng(0)
    examples = 2 * config.batch_size
    data = {
        "image": rng.integers(0, 256, (examples, *parts.data.dataset.image_shape), np.uint8),
        "label": rng.integers(0, parts.data.dataset.num_classes, examples, np.int32),
    }
    order = jax.jit(functools.partial(loader.epoch_order, examples=examples))(0, 0)
    init = jax.jit(parts.init_state).lower(np.uint32(0)).compile(small.QUICK_COMPILATION)
    state = init(np.uint32(0))
    arguments = (data, order, np.uint32(0))
    state, *arguments = (sharding.replicate(jax.device_get(x), mesh) for x in (state, *arguments))
    step = train.jit_train_step(parts.step, parts.step.phases[0], mesh)
    step = step.lower(state, *arguments).compile(small.QUICK_COMPILATION)
    for _ in range(2):
        state, metrics = step(state, *arguments)
        assert np.isfinite(float(metrics["loss"]))
    assert int(state.step) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))
