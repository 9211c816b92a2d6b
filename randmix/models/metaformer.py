"""MetaFormer (Yu et al., arXiv 2111.11418): the same blocks around any mixer of tokens.

Patches, blocks of ``x = x + mixer(norm(x))`` and ``x = x + mlp(norm(x))``, norm, global average
pooling and a linear head. Isotropic as in ViT and MLP-Mixer, or in four stages as in PoolFormer.

Paths: ``spatial/block_03/attention/query/kernel``, ``channel/block_03/mlp/up/kernel``,
``norm/block_03/mixer_norm/scale``, ``spatial/block_03/downsample/kernel``. Blocks are numbered
across stages.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from randmix.errors import UserError
from randmix.models import layers, mixers
from randmix.models.parameters import Initializer, declare, uniform_fan_in
from randmix.models.stack import Runs, apply_blocks
from randmix.ops import match_rank

# The mixers by name; "pooling", "shift" and "identity" have no weights.
MIXERS = ("depthwise", "attention", "token_mlp", "random", "pooling", "shift", "identity")
NORMS = ("layer", "group", "batch")
# The share of the blocks in each stage, by the number of stages; in sixths.
SHARES = {1: (6,), 4: (1, 1, 3, 1)}


class ExampleNorm(nn.Module):
    """Normalises every example by itself, over some axes, with a scale and a bias per channel.

    Attributes:
        axes: (-1,) for LayerNorm, (1, 2, 3) for GroupNorm with a single group.
        epsilon: added to the variance.
    """

    axes: tuple[int, ...]
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises x [N, H, W, C], in float32; ``train`` changes nothing."""
        del train
        scale = declare(self, "norm", "scale", jax.nn.initializers.ones, x.shape[-1:])
        bias = declare(self, "norm", "bias", jax.nn.initializers.zeros, x.shape[-1:])
        y = x.astype(jnp.float32)
        y -= y.mean(self.axes, keepdims=True)
        y *= jax.lax.rsqrt(jnp.square(y).mean(self.axes, keepdims=True) + self.epsilon)
        return (y * match_rank(scale, y) + match_rank(bias, y)).astype(x.dtype)


# The epsilons are those of ViT and MLP-Mixer, and of PoolFormer.
_NORMS: dict[str, Callable[..., nn.Module]] = {
    "layer": functools.partial(ExampleNorm, (-1,), 1e-6),
    "group": functools.partial(ExampleNorm, (1, 2, 3), 1e-5),
    "batch": functools.partial(layers.NormAct, "identity"),
}


class Patches(nn.Module):
    """Maps overlapping patches to pixels: [N, H, W, C] -> [N, H', W', F].

    A convolution of side 2 s - 1, stride s and padding s // 2: with s = 4 it is PoolFormer's stem,
    with s = 2 the layer between its stages. Its role is spatial, as that of patches that don't
    overlap.

    Attributes:
        features: number F of output channels.
        stride: stride s; if it divides H and W, H' = H / s and W' = W / s.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Applies the convolution; returns its result and the bias to add, [F]."""
        s, c = self.stride, x.shape[-1]
        init = uniform_fan_in((2 * s - 1) ** 2 * c)
        shape = (2 * s - 1, 2 * s - 1, c, self.features)
        kernel = declare(self, "spatial", "kernel", init, shape)
        bias = declare(self, "spatial", "bias", init, (self.features,))
        margins = (s // 2, s // 2)
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernel.astype(x.dtype), (s, s), (margins, margins), dimension_numbers=dimensions
        )
        return y, bias


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al., arXiv 2103.17239), of the role norm.

    Attributes:
        value: its initial value.
    """

    value: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales x [..., C]."""
        init = jax.nn.initializers.constant(self.value)
        scale = declare(self, "norm", "scale", init, x.shape[-1:])
        return x * match_rank(scale, x).astype(x.dtype)


class Block(nn.Module):
    """Residual mixing of tokens, then of channels: [N, H, W, C] -> [N, H', W', features].

    Where the number of channels changes, patches of stride 2 come first.

    Attributes:
        features: number of output channels.
        mixer: makes the mixer of tokens.
        norm: one of `NORMS`.
        hidden: number of hidden units of the MLP.
        layer_scale: initial value of the scale of each branch; 0 for none.
    """

    features: int
    mixer: Callable[[], nn.Module]
    norm: str
    hidden: int
    layer_scale: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies the block; ``train`` selects the statistics of a BatchNorm."""
        if x.shape[-1] != self.features:
            x = _with_bias(Patches(self.features, 2, name="downsample")(x))
        mlp = functools.partial(mixers.Mlp, self.hidden, "channel", name="mlp")
        for name, make_branch in (("mixer", self.mixer), ("mlp", mlp)):
            y = _NORMS[self.norm](name=f"{name}_norm")(x, train=train)
            y = _with_bias(make_branch()(y))
            if self.layer_scale:
                y = LayerScale(self.layer_scale, name=f"{name}_scale")(y)
            x = x + y
        return x


class MetaFormer(nn.Module):
    """MetaFormer as a pure function of its variables.

    Attributes:
        mixer: one of `MIXERS`.
        width: number of channels; that of each stage is a multiple of it, see ``stages``.
        depth: number of blocks; with four stages a multiple of 6.
        patch_size: side and stride p of the patches. Isotropic, they don't overlap, and p divides
            both sides of the image; with four stages, they have the side 2 p - 1.
        filters: initialiser of depthwise filters, ``(key, shape, dtype) -> [k, k, C]``.
        num_classes: number of logits.
        stages: width of each stage as a multiple of ``width``: (1,) is isotropic; four stages have
            1/6, 1/6, 1/2 and 1/6 of the blocks, and sides are halved where the width changes.
        kernel_size: side of depthwise filters, and of the window of pooling and shift.
        head_dim: channels of an attention head; divides the width of each stage.
        attention_roles: which weights of attention are spatial, one of `mixers.ATTENTION_ROLES`.
        mlp_ratio: hidden units of each block's MLP, per channel.
        token_ratio: hidden units of the token MLP, per channel; at least one.
        norm: "layer" (LayerNorm), "group" (GroupNorm with one group) or "batch" (BatchNorm).
        layer_scale: initial value of the scale of each branch; 0 for none.
        position_embedding: initial standard deviation of a learned embedding, added to the patches;
            0 for none, None for 1 (PyTorch's for embeddings) with attention and 0 otherwise. Its
            role is spatial.
        mean, std, dtype, depthwise_method, remat, scan: those of `ConvMixer`.
    """

    mixer: str
    width: int
    depth: int
    patch_size: int
    filters: Initializer
    num_classes: int
    stages: tuple[int, ...] = (1,)
    kernel_size: int = 3
    head_dim: int = 32
    attention_roles: str = "queries_keys"
    mlp_ratio: float = 4.0
    token_ratio: float = 0.5
    norm: str = "layer"
    layer_scale: float = 0.0
    position_embedding: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: jnp.dtype = jnp.float32
    depthwise_method: str = "auto"
    remat: bool = False
    scan: Runs = ()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] in [0, 1] to float32 logits [N, num_classes].

        Arguments and errors are those of a `ConvMixer`'s call. ``train`` matters with
        BatchNorm only.
        """
        self.check_image_shape(images.shape[1:])
        x = layers.normalize(images, mean=self.mean, std=self.std).astype(self.dtype)
        stem = layers.PatchStem if len(self.stages) == 1 else Patches
        first = self.stages[0] * self.width
        x = _with_bias(stem(first, self.patch_size, name="stem")(x))
        deviation = self.position_embedding
        if deviation is None:
            deviation = 1.0 if self.mixer == "attention" else 0.0
        if deviation:
            init = jax.nn.initializers.normal(deviation)
            embedding = declare(self, "spatial", "position_embedding", init, x.shape[1:])
            x = x + match_rank(embedding, x).astype(x.dtype)
        blocks = []
        for multiple, share in zip(self.stages, SHARES[len(self.stages)], strict=True):
            blocks += [self._block(multiple * self.width)] * (self.depth * share // 6)
        x = apply_blocks(self, blocks, x, train=train, remat=self.remat, scan=self.scan)
        x = _NORMS[self.norm](name="final_norm")(x, train=train)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        return layers.Head(self.num_classes, name="classifier")(x)

    def _block(self, width: int) -> Callable[..., nn.Module]:
        """Returns a factory of blocks of that width."""
        k = self.kernel_size
        mixer = {
            "depthwise": functools.partial(
                layers.Depthwise, k, self.filters, self.depthwise_method
            ),
            "attention": functools.partial(mixers.Attention, self.head_dim, self.attention_roles),
            "token_mlp": functools.partial(mixers.TokenMlp, max(1, int(self.token_ratio * width))),
            "random": mixers.RandomMixing,
            "pooling": functools.partial(mixers.Pooling, k),
            "shift": functools.partial(mixers.Shift, k),
            "identity": mixers.Identity,
        }[self.mixer]
        mixer = functools.partial(mixer, name=self.mixer)
        hidden = int(self.mlp_ratio * width)
        return functools.partial(Block, width, mixer, self.norm, hidden, self.layer_scale)

    def check_image_shape(self, image_shape: tuple[int, ...]) -> None:
        """Raises a UserError if images [H, W, C] don't fit the patches or the normalisation."""
        if len(self.stages) == 1:
            layers.check_patches(self.patch_size, image_shape)
        elif min(image_shape[:2]) < self.patch_size:
            raise UserError(
                f"patch_size: got {self.patch_size}, more than a side of the images' "
                f"{image_shape[0]} x {image_shape[1]} pixels; allowed is up to the shorter side"
            )
        layers.check_channels(image_shape[-1], mean=self.mean, std=self.std)


def _with_bias(result: jax.Array | tuple[jax.Array, jax.Array]) -> jax.Array:
    """Adds the bias that a layer returns beside its result, if it does."""
    if isinstance(result, tuple):
        y, bias = result
        return y + match_rank(bias, y).astype(y.dtype)
    return result
