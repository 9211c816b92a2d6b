"""MetaFormers against timm's models and blocks: logits, gradients, sizes and multiply-adds."""

import functools

import jax
import numpy as np
import optax
import pytest
import timm
import torch
from closeness import assert_close
from flax.traverse_util import flatten_dict, unflatten_dict
from timm.layers import GroupNorm1, LayerNorm2d, set_fused_attn
from timm.models.metaformer import MetaFormer, MetaFormerBlock, Pooling
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from randmix import models
from randmix.models import counts

pytestmark = pytest.mark.slow

BATCH, CLASSES = 6, 7


def vit():
    """A ViT without a class token, whose norm comes before its pooling, and our arguments."""
    set_fused_attn(False)  # its products are then counted
    twin = VisionTransformer(
        img_size=12,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=CLASSES,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )
    sizes = {"mixer": "attention", "width": 24, "depth": 2, "patch_size": 4, "head_dim": 8}
    return twin, sizes, (12, 12, 3), _vit


def mlp_mixer():
    """An MLP-Mixer."""
    twin = MlpMixer(
        num_classes=CLASSES, img_size=12, patch_size=3, num_blocks=2, embed_dim=20, in_chans=1
    )
    sizes = {"mixer": "token_mlp", "width": 20, "depth": 2, "patch_size": 3}
    return twin, sizes, (12, 12, 1), _mlp_mixer


def poolformer():
    """A PoolFormer with its authors' head: timm's normalises what is pooled."""
    twin = MetaFormer(
        num_classes=CLASSES,
        depths=(1, 1, 3, 1),
        dims=(8, 16, 40, 64),
        token_mixers=Pooling,
        mlp_act=nn.GELU,
        mlp_bias=True,
        downsample_norm=None,
        norm_layers=GroupNorm1,
        layer_scale_init_values=1.0,
        res_scale_init_values=None,
        use_mlp_head=False,
    )
    twin.head = nn.ModuleDict({"norm": GroupNorm1(64), "fc": nn.Linear(64, CLASSES)})
    twin.forward_head = lambda x: twin.head["fc"](twin.head["norm"](x).mean((2, 3)))
    sizes = {"mixer": "pooling", "width": 8, "depth": 6, "stages": (1, 2, 5, 8), "patch_size": 4}
    return twin, {**sizes, "norm": "group", "layer_scale": 1.0}, (36, 40, 3), _poolformer


class Isotropic(nn.Module):
    """timm's blocks around a mixer, between patches and a classifier."""

    def __init__(self, mixer, norm):
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 2, stride=2)
        self.blocks = nn.ModuleList(
            MetaFormerBlock(10, mixer, nn.GELU, mlp_bias=True, norm_layer=norm) for _ in range(2)
        )
        self.norm, self.head = norm(10), nn.Linear(10, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean((2, 3)))


class Depthwise(nn.Conv2d):
    def __init__(self, dim, **_):
        super().__init__(dim, dim, 4, groups=dim, padding="same")


class Random(nn.Module):
    def __init__(self, dim, **_):
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(4 * 5, 4 * 5))

    def forward(self, x):
        return (self.matrix @ x.flatten(2).mT).mT.reshape(x.shape)


class Shift(nn.Module):
    """As a convolution with impulses: ten channels, of which the first place of nine has two."""

    def __init__(self, dim, **_):
        super().__init__()
        self.impulses = torch.eye(9)[[0, 0, *range(1, 9)]].reshape(dim, 1, 3, 3)

    def forward(self, x):
        return nn.functional.conv2d(x, self.impulses, padding=1, groups=len(self.impulses))


class Window(Pooling):
    def __init__(self, dim, **_):
        super().__init__(pool_size=5)


class Nothing(nn.Identity):
    pass


def isotropic(name, mixer, norm="layer", kernel_size=3):
    """Small images, from which 4 x 5 patches come."""
    twin = Isotropic(mixer, {"layer": LayerNorm2d, "batch": nn.BatchNorm2d}[norm])
    sizes = {"mixer": name, "width": 10, "depth": 2, "patch_size": 2, "norm": norm}
    return twin, {**sizes, "kernel_size": kernel_size}, (8, 10, 3), _isotropic


CASES = {
    "vit": vit,
    "mlp mixer": mlp_mixer,
    "poolformer": poolformer,
    "depthwise": functools.partial(isotropic, "depthwise", Depthwise, kernel_size=4),
    "depthwise, batch norm": functools.partial(isotropic, "depthwise", Depthwise, "batch", 4),
    "random": functools.partial(isotropic, "random", Random),
    "shift": functools.partial(isotropic, "shift", Shift),
    "pooling of 5 x 5": functools.partial(isotropic, "pooling", Window, kernel_size=5),
    "identity": functools.partial(isotropic, "identity", Nothing),
}


# The following map a twin's tensors, or gradients of the same names, to ours by path.


def _linear(place, get, name):
    weight = get(f"{name}.weight")
    kernel = weight.reshape(weight.shape[:2]).T
    return {f"{place}/kernel": kernel, f"{place}/bias": get(f"{name}.bias")}


def _convolution(place, get, name):
    kernel = get(f"{name}.weight").transpose(2, 3, 1, 0)
    return {f"{place}/kernel": kernel, f"{place}/bias": get(f"{name}.bias")}


def _norm(place, get, name):
    return {f"{place}/scale": get(f"{name}.weight"), f"{place}/bias": get(f"{name}.bias")}


def _rest(get, i, name, mlp="mlp"):
    """The norms and the perceptron of block i."""
    found = {}
    for ours, theirs in (("mixer_norm", "norm1"), ("mlp_norm", "norm2")):
        found |= _norm(f"norm/block_{i:02d}/{ours}", get, f"{name}.{theirs}")
    for ours, theirs in (("up", "fc1"), ("down", "fc2")):
        found |= _linear(f"channel/block_{i:02d}/mlp/{ours}", get, f"{name}.{mlp}.{theirs}")
    return found


def _vit(get):
    found = _convolution("spatial/stem", get, "patch_embed.proj")
    found["spatial/position_embedding"] = get("pos_embed").reshape(3, 3, 24)
    for i in range(2):
        name, block = f"blocks.{i}", f"block_{i:02d}/attention"
        weights, biases = (
            np.split(get(f"{name}.attn.qkv.{part}"), 3) for part in ("weight", "bias")
        )
        places = (f"spatial/{block}/query", f"spatial/{block}/key", f"channel/{block}/value")
        for place, weight, bias in zip(places, weights, biases, strict=True):
            found |= {f"{place}/kernel": weight.T, f"{place}/bias": bias}
        found |= _linear(f"channel/{block}/output", get, f"{name}.attn.proj")
        found |= _rest(get, i, name)
    return found | _norm("norm/final_norm", get, "norm") | _linear("head/classifier", get, "head")


def _mlp_mixer(get):
    found = _convolution("spatial/stem", get, "stem.proj")
    for i in range(2):
        name = f"blocks.{i}"
        for ours, theirs in (("up", "fc1"), ("down", "fc2")):
            place = f"spatial/block_{i:02d}/token_mlp/mlp/{ours}"
            found |= _linear(place, get, f"{name}.mlp_tokens.{theirs}")
        found |= _rest(get, i, name, "mlp_channels")
    return found | _norm("norm/final_norm", get, "norm") | _linear("head/classifier", get, "head")


def _poolformer(get):
    found = _convolution("spatial/stem", get, "stem.conv")
    for i, (stage, place) in enumerate([(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (3, 0)]):
        name, block = f"stages.{stage}.blocks.{place}", f"block_{i:02d}"
        if stage and not place:
            found |= _convolution(
                f"spatial/{block}/downsample", get, f"stages.{stage}.downsample.conv"
            )
        for ours, theirs in (("mixer_scale", "layer_scale1"), ("mlp_scale", "layer_scale2")):
            found[f"norm/{block}/{ours}/scale"] = get(f"{name}.{theirs}.scale")
        found |= _rest(get, i, name)
    return (
        found
        | _norm("norm/final_norm", get, "head.norm")
        | _linear("head/classifier", get, "head.fc")
    )


def _isotropic(get):
    found = _convolution("spatial/stem", get, "stem")
    for i in range(2):
        mixer, place = f"blocks.{i}.token_mixer", f"spatial/block_{i:02d}"
        if get(f"{mixer}.matrix") is not None:
            found[f"{place}/random/matrix/kernel"] = get(f"{mixer}.matrix").T
        if get(f"{mixer}.weight") is not None:
            kernel = get(f"{mixer}.weight")[:, 0].transpose(1, 2, 0)
            found |= {f"{place}/depthwise/kernel": kernel}
            found |= {f"{place}/depthwise/bias": get(f"{mixer}.bias")}
        found |= _rest(get, i, f"blocks.{i}")
    return found | _norm("norm/final_norm", get, "norm") | _linear("head/classifier", get, "head")


class Pair:
    """One of our models and its twin with equal random weights, and a batch."""

    def __init__(self, case):
        torch.manual_seed(0)
        self.twin, sizes, self.shape, self.layout = CASES[case]()
        for name, tensor in self.twin.named_parameters():
            centre = 1.0 if tensor.ndim == 1 and name.endswith(("weight", "scale")) else 0.0
            nn.init.uniform_(tensor, centre - 0.4, centre + 0.4)
        self.model = models.build("metaformer", num_classes=CLASSES, **sizes)
        self.images = torch.rand((BATCH, *self.shape))
        self.labels = torch.randint(CLASSES, (BATCH,))

    def tree(self, gradients=False):
        tensors = {
            name: (tensor.grad if gradients else tensor).detach().numpy().copy()
            for name, tensor in self.twin.named_parameters()
        }
        flat = self.layout(tensors.get)
        assert sum(array.size for array in flat.values()) == sum(map(np.size, tensors.values()))
        return unflatten_dict(flat, sep="/")

    def logits(self):
        return self.twin(self.images.permute(0, 3, 1, 2))


@functools.partial(jax.jit, static_argnums=0)
def outputs(model, params, images, labels):
    """Training logits and all gradients."""

    def loss(params):
        logits, _ = model.apply(params, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    gradients, logits = jax.grad(loss, has_aux=True)(params)
    return {"logits": logits}, gradients


def learned(pair, gradients):
    """The gradients without those that are nothing but rounding: BatchNorm cancels such biases."""
    flat = flatten_dict(gradients, sep="/")
    flat = {path: value for path, value in flat.items() if not path.startswith("batch_stats")}
    if pair.model.norm == "batch":
        cancelled = ("stem/bias", "depthwise/bias", "mlp/down/bias")
        assert all(abs(v).max() < 1e-6 for path, v in flat.items() if path.endswith(cancelled))
        flat = {path: value for path, value in flat.items() if not path.endswith(cancelled)}
    return unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_logits_and_gradients_are_timms(case):
    pair = Pair(case)
    params = pair.tree()
    state = {}
    if pair.model.norm == "batch":
        shapes = counts.abstract_variables(pair.model, pair.shape)["batch_stats"]
        state = {"batch_stats": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)}
    logits = pair.logits()
    torch.nn.functional.cross_entropy(logits, pair.labels).backward()
    got, gradients = outputs(
        pair.model, {**params, **state}, pair.images.numpy(), pair.labels.numpy()
    )
    assert_close(got, {"logits": logits.detach().numpy()}, 1e-5)
    expected = pair.tree(gradients=True)
    assert_close(learned(pair, gradients), learned(pair, expected), 1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_multiply_adds_are_those_of_pytorchs_counter(case):
    pair = Pair(case)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pair.logits()
    # A shift is no product here; the twin computes it as a convolution, 3 x 3 for each patch.
    convolved = 2 * 9 * 10 * 4 * 5 if case == "shift" else 0
    found = sum(counts.multiply_adds(pair.model, pair.shape).values()) + convolved
    assert 2 * BATCH * found == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "variant", "more"),
    [
        ("vit_tiny_patch16_224", "vit_tiny", {"class_token": False, "global_pool": "avg"}),
        ("mixer_s16_224", "mixer_s16", {}),
        ("poolformer_s12", "", {}),
    ],
)
def test_the_sizes_of_the_imagenet_config_are_timms(name, variant, more):
    from randmix import config as configs
    from randmix.training import runs

    with torch.device("meta"):
        twin = timm.create_model(name, **more)
    expected = sorted(tensor.numel() for tensor in twin.parameters())
    model = runs.build_model(configs.recipe(f"metaformer_imagenet:{variant}"), 1000)
    variables, _ = models.split(counts.abstract_variables(model, (224, 224, 3)))
    sizes = [leaf.size for leaf in flatten_dict(variables).values()]
    assert sum(sizes) == sum(expected)
