"""Depths of leaves in trees as models of several libraries name them."""

import random
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from randmix import masks, models
from randmix.masks import MaskError, depth

FIRST_NUMBER = re.compile(r"(?:^|[/_])([0-9]+)(?=/|$)")


def depths(tree):
    """The depth of each leaf, as the selector finds it."""
    found = dict.fromkeys(masks.paths(tree))
    assert len(masks.paths(tree, depth(0, 60))) == len(masks.paths(tree, depth(None, None)))
    for number in range(60):
        for path in masks.paths(tree, depth(number, number + 1)):
            assert found[path] is None
            found[path] = number
    return found


def nested(paths):
    tree: dict = {}
    for path in paths:
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = 1.0
    return tree


CASES = {
    "one level": {
        "spatial/stem/kernel": None,
        "spatial/block_07/depthwise/kernel": 7,
        "channel/block_07/kernel": 7,
        "norm/layers_3/scale": 3,
        "conv2d/kernel_a": None,
    },
    "numbers without underscores": {"layer1/kernel": 1, "layer12/kernel": 12, "head/kernel": None},
    "lists": {"layers/3/kernel": 3, "layers/12/conv/kernel": 12, "head/kernel": None},
    "layers only": {"Dense_0/kernel": 0, "Dense_1/kernel": 1, "fc3/bias": None, "conv1/bias": None},
    "arrays only": {"w1": 1, "w2": 2, "b1": 1, "b2": 2},
    "stages of blocks": {
        "stem/conv1/kernel": None,
        "stage_0/block_0/kernel": 0,
        "stage_0/block_1/conv/kernel": 1,
        "stage_1/downsample/kernel": 2,
        "stage_1/block_0/kernel": 2,
        "stage_1/block_3/kernel": 3,
        "stage_10/block_0/kernel": 5,
        "stage_2/scale": 4,
    },
    "stages by role": {
        "spatial/stage_0/block_0/kernel": 0,
        "channel/stage_0/block_0/kernel": 0,
        "channel/stage_0/block_1/kernel": 1,
        "spatial/stage_1/block_0/kernel": 2,
        "channel/stage_1/block_0/kernel": 2,
        "spatial/stem/kernel": None,
    },
    "torchvision's ResNet": {
        "conv1/weight": None,
        "bn1/weight": None,
        "layer1/0/conv1/weight": 0,
        "layer1/0/bn2/weight": 0,
        "layer1/1/conv2/weight": 1,
        "layer2/0/downsample/0/weight": 2,
        "layer2/0/downsample/1/weight": 2,
        "layer2/1/conv1/weight": 3,
        "fc/weight": None,
    },
    "timm's ConvNeXt": {
        "stem/0/weight": None,
        "stages/0/blocks/0/conv_dw/weight": 0,
        "stages/0/blocks/1/mlp/fc1/weight": 1,
        "stages/1/downsample/0/weight": 2,
        "stages/1/downsample/1/weight": 2,
        "stages/1/blocks/0/norm/weight": 2,
        "stages/1/blocks/1/norm/weight": 3,
        "head/fc/weight": None,
    },
    "timm's ConvMixer": {
        "stem/0/weight": None,
        "stem/2/weight": None,
        "blocks/0/0/fn/0/weight": 0,
        "blocks/0/0/fn/2/weight": 0,
        "blocks/0/1/weight": 0,
        "blocks/0/3/weight": 0,
        "blocks/1/0/fn/0/weight": 1,
        "blocks/1/1/weight": 1,
        "head/weight": None,
    },
    "timm's EfficientNet": {
        "conv_stem/weight": None,
        "bn1/weight": None,
        "blocks/0/0/conv_dw/weight": 0,
        "blocks/1/0/se/conv_reduce/weight": 1,
        "blocks/1/1/bn1/weight": 2,
        "classifier/weight": None,
    },
    "timm's ViT": {
        "patch_embed/proj/weight": None,
        "blocks/0/norm1/weight": 0,
        "blocks/1/mlp/fc1/weight": 1,
        "blocks/11/attn/qkv/weight": 11,
        "norm/weight": None,
    },
    "timm's Swin": {
        "layers/0/blocks/0/attn/qkv/weight": 0,
        "layers/0/blocks/1/attn/qkv/weight": 1,
        "layers/1/downsample/reduction/weight": 2,
        "layers/1/blocks/0/mlp/fc2/weight": 2,
    },
    "Flax's ViT": {
        "embedding/kernel": None,
        "Transformer/encoderblock_0/LayerNorm_0/scale": 0,
        "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel": 0,
        "Transformer/encoderblock_0/MlpBlock_3/Dense_1/kernel": 0,
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel": 1,
        "head/kernel": None,
    },
    "T5": {
        "encoder/block/0/layer/0/SelfAttention/q/kernel": 0,
        "encoder/block/1/layer/0/SelfAttention/q/kernel": 1,
        "encoder/block/1/layer/1/DenseReluDense/wi/kernel": 1,
    },
    "a number in a model's name": {
        "gpt2/h/0/attn/kernel": 0,
        "gpt2/h/1/ln_1/scale": 1,
        "gpt2/ln_f/scale": None,
    },
    "Equinox": {
        "blocks/0/mlp/layers/0/weight": 0,
        "blocks/0/mlp/layers/1/weight": 0,
        "blocks/1/attention/query_proj/weight": 1,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_depths_of_names(name):
    assert depths(nested(CASES[name])) == CASES[name]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(3)(nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x)))


class Stage(nn.Module):
    size: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="downsample")(x)
        for _ in range(self.size):
            x = Block()(x)
        return x


class Staged(nn.Module):
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="stem")(x)
        for size in self.sizes:
            x = Stage(size)(x)
        return nn.Dense(2)(x)


def test_depths_of_linen_modules_run_over_the_stages():
    sizes = (2, 1, 3)
    variables = jax.eval_shape(Staged(sizes).init, jax.random.key(0), jnp.ones((1, 3)))
    for path, got in depths(variables["params"]).items():
        stage, block = (re.search(rf"{word}_(\d+)", path) for word in ("Stage", "Block"))
        first = sum(sizes[: int(stage[1])]) if stage else None
        assert got == (first + int(block[1]) if block else first), path


class NnxBlock(nnx.Module):
    def __init__(self):
        self.conv1 = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.norm1 = nnx.BatchNorm(2, rngs=nnx.Rngs(0))


class NnxStages(nnx.Module):
    def __init__(self, sizes):
        self.conv1 = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.stages = nnx.List([nnx.List([NnxBlock() for _ in range(n)]) for n in sizes])


def test_depths_of_nnx_lists():
    sizes = (1, 3, 2)
    for path, got in depths(nnx.state(NnxStages(sizes), nnx.Param)).items():
        numbers = re.search(r"stages/(\d+)/(\d+)", path)
        assert got == (numbers and sum(sizes[: int(numbers[1])]) + int(numbers[2])), path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("convmixer", {"depth": 12, "kernel_size": 3, "patch_size": 4}), ("resnet", {"depth": 20})],
)
def test_depths_of_the_own_models_are_the_first_numbers(name, sizes):
    model = models.build(name, width=4, num_classes=2, **sizes)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
    found = depths(variables)
    assert len(set(found.values())) > 3
    for path, got in found.items():
        number = FIRST_NUMBER.search(path)
        assert got == (int(number[1]) if number else None), path


def test_random_trees_with_one_level_keep_their_numbers():
    rng = random.Random(0)
    for _ in range(50):
        word = rng.choice(["block_{}", "layers_{:02}", "h/{}", "layers/{}", "ResNetBlock_{}"])
        inside = rng.choice(["kernel", "Dense_0/kernel", "conv1/kernel", "mlp/fc2/kernel"])
        numbers = rng.sample(range(50), rng.randint(2, 6))
        paths = {f"model/{word.format(n)}/{inside}": n for n in numbers}
        assert depths(nested(paths)) == paths


def test_a_lone_path_has_the_depth_that_it_shows():
    for path, number in [
        ("spatial/block_07/depthwise/kernel", 7),
        ("layers_3/kernel", 3),
        ("layer1/kernel", 1),
        ("layers/12/kernel", 12),
        ("0/kernel", 0),
        ("conv2d/kernel_a", None),
    ]:
        within = [index for index in range(20) if depth(index, index + 1)(path)]
        assert within == ([] if number is None else [number])
        assert depth(None, None)(path) == (number is not None)
    with pytest.raises(MaskError) as caught:
        (masks.role("a") | depth(0, 1))("stage_1/block_5/kernel")
    assert str(caught.value) == (
        "the depth of 'stage_1/block_5/kernel' is a running number, which needs the whole tree: "
        "use masks.paths, masks.mask or masks.labels"
    )
    assert not masks.role("a")("stage_1/block_5/kernel")
