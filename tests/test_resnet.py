"""The separable ResNet: layers, paths, initial values; its program on one and on eight devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax.traverse_util import flatten_dict

from randmix import config as configs
from randmix import masks, models
from randmix.errors import UserError
from randmix.runtime import sharding
from randmix.training import runs

ARGUMENTS = {"width": 4, "depth": 2, "num_classes": 5}
CONVOLUTIONS = 1 + 2 * 3  # of the run below: the stem, and two in each of three blocks


def kernels(**arguments):
    """{path: shape} of every kernel."""
    model = models.build("resnet", **{**ARGUMENTS, **arguments})
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    flat = flatten_dict(models.split(variables)[0], sep="/")
    return {path: leaf.shape for path, leaf in flat.items() if path.endswith("kernel")}


@pytest.mark.parametrize(("stem", "stages"), [("cifar", 3), ("imagenet", 4)])
@pytest.mark.parametrize("depth", [1, 3])
def test_it_has_6n_or_8n_plus_2_layers(stem, stages, depth):
    shapes = kernels(stem=stem, depth=depth)
    depthwise = [path for path in shapes if path.endswith("depthwise/kernel")]
    assert len(depthwise) + 1 == 2 * stages * depth + 2
    pointwise = [
        path.replace("spatial", "channel").replace("depthwise", "pointwise") for path in depthwise
    ]
    assert sorted(path for path in shapes if path.endswith("pointwise/kernel")) == sorted(pointwise)
    shortcuts = [path for path in shapes if "shortcut" in path]
    assert shortcuts == [
        f"channel/block_{stage * depth:02d}/shortcut/kernel" for stage in range(1, stages)
    ]


def test_paths_and_shapes_of_a_small_one():
    shapes = kernels(depth=1, multiplier=3, kernel_size=5)
    assert shapes == {
        "spatial/stem/depthwise/kernel": (5, 5, 3, 3),
        "channel/stem/pointwise/kernel": (9, 4),
        "spatial/block_00/conv_1/depthwise/kernel": (5, 5, 4, 3),
        "channel/block_00/conv_1/pointwise/kernel": (12, 4),
        "spatial/block_00/conv_2/depthwise/kernel": (5, 5, 4, 3),
        "channel/block_00/conv_2/pointwise/kernel": (12, 4),
        "spatial/block_01/conv_1/depthwise/kernel": (5, 5, 4, 3),
        "channel/block_01/conv_1/pointwise/kernel": (12, 8),
        "spatial/block_01/conv_2/depthwise/kernel": (5, 5, 8, 3),
        "channel/block_01/conv_2/pointwise/kernel": (24, 8),
        "channel/block_01/shortcut/kernel": (4, 8),
        "spatial/block_02/conv_1/depthwise/kernel": (5, 5, 8, 3),
        "channel/block_02/conv_1/pointwise/kernel": (24, 16),
        "spatial/block_02/conv_2/depthwise/kernel": (5, 5, 16, 3),
        "channel/block_02/conv_2/pointwise/kernel": (48, 16),
        "channel/block_02/shortcut/kernel": (8, 16),
        "head/classifier/kernel": (16, 5),
    }
    assert kernels(stem="imagenet")["spatial/stem/depthwise/kernel"] == (7, 7, 3, 9)


@pytest.mark.parametrize(
    ("between", "norms"), [("none", 0), ("relu", 0), ("bn", 7), ("bn_relu", 7)]
)
def test_only_the_head_has_a_bias_that_is_no_norms(between, norms):
    model = models.build("resnet", **{**ARGUMENTS, "depth": 1}, between=between)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    params, _ = models.split(variables)
    assert masks.paths(params, "leaf('bias') - role('norm')") == ["head/classifier/bias"]
    assert len(masks.paths(params, "leaf('scale') & path('.*/between_norm/.*')")) == norms


def test_depth_selects_blocks_across_the_stages():
    model = models.build("resnet", **ARGUMENTS)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    params, _ = models.split(variables)
    chosen = masks.paths(params, "role('spatial') & depth(3, 5)")
    assert sorted(chosen) == [
        f"spatial/block_{block:02d}/conv_{half}/depthwise/kernel"
        for block in (3, 4)
        for half in (1, 2)
    ]


def test_initial_values_are_pytorchs_uniform_by_fan_in():
    model = models.build("resnet", width=32, depth=1, kernel_size=5, num_classes=50)
    fan_ins = {
        "spatial/block_02/conv_1/depthwise/kernel": 5 * 5,
        "channel/block_02/conv_1/pointwise/kernel": 64 * 9,
        "channel/block_02/shortcut/kernel": 64,
        "channel/stem/pointwise/kernel": 3 * 9,
        "head/classifier/kernel": 128,
    }

    @jax.jit
    def init(key):
        flat = flatten_dict(model.init(key, jnp.zeros((1, 8, 8, 3))), sep="/")
        return {path: flat[path] for path in fan_ins}  # other values aren't compiled

    for path, values in init(jax.random.key(0)).items():
        values = np.asarray(values, np.float64) * np.sqrt(fan_ins[path])
        assert 0.98 < np.abs(values).max() <= 1 + 1e-6
        assert values.mean() == pytest.approx(0, abs=4 / np.sqrt(3 * values.size))
        assert values.std() == pytest.approx(1 / np.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multiplier": 0}, "multiplier: got 0, allowed 1 to 1024"),
        ({"width": 0}, "width: got 0, allowed 1 to 65536"),
        ({"depth": 0}, "depth: got 0, allowed 1 to 1000"),
        (
            {"between": "bn-relu"},
            "between: got 'bn-relu', allowed none, relu, bn, bn_relu; did you mean 'bn_relu'?",
        ),
        (
            {"stem": "cifar10"},
            "stem: got 'cifar10', allowed cifar, imagenet; did you mean 'cifar'?",
        ),
        ({"num_classes": 0}, "num_classes: got 0, allowed 1 to 2147483647"),
    ],
)
def test_invalid_arguments_of_a_resnet_are_refused(arguments, message):
    with pytest.raises(UserError) as error:
        models.build("resnet", **{**ARGUMENTS, **arguments})
    assert str(error.value) == f"model resnet: {message}"


def test_normalisation_of_another_number_of_channels():
    model = models.build("resnet", **ARGUMENTS, mean=(0.5,), std=(0.2,))
    with pytest.raises(
        UserError, match=r"^mean: got 1 numbers, allowed 3 \(one per channel\) or none$"
    ):
        model.check_image_shape((32, 32, 3))


@functools.cache
def lowered_step(mode, devices=1, **settings):
    """The train step of a ResNet-8 on the digits."""
    config = configs.default("resnet")
    config.mode = mode
    config.model.update(width=4, depth=1, **settings)
    parts = runs.assemble(config)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    spread = sharding.split_batch(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((32, 8, 8, 1), jnp.float32, sharding=spread),
        "label": jax.ShapeDtypeStruct((32,), jnp.int32, sharding=spread),
    }
    return jax.jit(small.step_of(parts), out_shardings=sharding.replicated(mesh)).lower(
        parts.abstract_state(mesh), batch
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "chans", "space"])
def test_a_pairs_dense_weight_gradient_is_computed_once(mode):
    """Both factors' gradients are contractions of it: Full needs no second one, Chans no fewer."""
    text = lowered_step(mode).as_text()
    forward, input_gradients = CONVOLUTIONS, CONVOLUTIONS - 1
    assert text.count("stablehlo.convolution") == forward + input_gradients
    assert len(re.findall(r"call @_patches\w*\(", text)) == CONVOLUTIONS


@pytest.mark.slow
@pytest.mark.parametrize("between", ["none", "bn_relu"])
def test_activations_are_not_gathered_over_the_devices(between):
    text = lowered_step("full", 8, between=between).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text


@pytest.mark.slow
def test_the_channels_in_between_are_never_written():
    """Maps of m C = 20 channels exist in the two-step form alone; patches have k k C = 36."""
    wide = re.compile(r"tensor<32x8x8x20x")
    assert wide.search(lowered_step("full", between="relu", multiplier=5).as_text())
    assert not wide.search(lowered_step("full", multiplier=5).as_text())
