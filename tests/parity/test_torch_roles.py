"""Roles of timm's models, guessed from names and shapes, against the types of their modules."""

import jax
import jax.numpy as jnp
import pytest
import timm
from torch import nn

from randmix import masks
from randmix.analysis.roles import propose

pytestmark = pytest.mark.slow

# Names of Linear layers whose role isn't the one of a layer along the channels.
ATTENTION = {"qkv": "fused", "kv": "fused", "q": "spatial"}
TOKENS = ("mlp_tokens", "linear_tokens", "mlp_channels.gate")


def named(shapes):
    """PyTorch's keys as nested dicts."""
    tree = {}
    for key, shape in shapes.items():
        *modules, name = key.split(".")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


def kind(name, module):
    """What a module's own parameters do: a role, "dense" or "fused"; None if its type can't say."""
    if "Norm" in type(module).__name__ or type(module).__name__ == "Affine":
        return "norm"
    if isinstance(module, nn.Conv2d):
        if module.kernel_size == (1, 1):
            return "channel"
        return "spatial" if module.groups == module.in_channels else "dense"
    if isinstance(module, nn.Linear):
        if name.startswith("head."):
            return "head"  # the hidden layer of a head with two
        if any(word in name for word in TOKENS):
            return "spatial"
        return ATTENTION.get(name.rpartition(".")[2], "channel")
    return None


NAMES = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s16_224",
    "resmlp_12_224",
    "gmlp_ti16_224",
    "convmixer_768_32",
    "convnext_atto",
    "poolformer_s12",
    "caformer_s18",
    "inception_next_atto",
    "mobilenetv3_small_050",
    "densenet121",
    "resnet18",
    "resnext50_32x4d",
]
FLAT = ["vit_tiny_patch16_224", "convnext_atto", "resnet18"]


@pytest.mark.parametrize(
    ("name", "flat"), [*((n, False) for n in NAMES), *((n, True) for n in FLAT)]
)
def test_no_guess_contradicts_the_type_of_the_module(name, flat):
    model = timm.create_model(name, num_classes=10)
    shapes = {key: tuple(value.shape) for key, value in model.named_parameters()}
    arrays = {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()}
    params = arrays if flat else named(shapes)
    channels, height, width = model.default_cfg["input_size"]
    found = propose(params, image_shape=(height, width, channels), num_classes=10)
    guesses = {
        one.path if flat else one.path.replace("/", "."): guess
        for one, guess in zip(found.parameters, found.guesses, strict=True)
    }
    heads = model.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    known = 0
    for path, module in model.named_modules():
        expected = "head" if any(module is one for one in heads) else kind(path, module)
        for key, _ in module.named_parameters(prefix=path, recurse=False):
            role, _, doubt = guesses[key]
            if expected in ("dense", "fused"):
                assert (role, bool(doubt)) == ("spatial", True), key
            elif expected:
                assert role == expected, key
                known += not doubt
    assert known > 0.5 * len(guesses)
    labels = masks.labels(params, list(found.selectors.items()), strict=True)
    assert jax.tree.leaves(labels) == list(found.roles.values())
