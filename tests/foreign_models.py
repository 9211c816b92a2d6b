"""Models as users write them, with one tree of parameters and without roles."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class EncoderBlock(nn.Module):
    heads: int = 4

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(y, y)
        y = nn.LayerNorm()(x)
        return x + nn.Dense(x.shape[-1], name="mlp_2")(nn.gelu(nn.Dense(96, name="mlp_1")(y)))


class ViT(nn.Module):
    """A vision transformer with a class token, as in Flax's examples."""

    width: int = 48
    depth: int = 3
    num_classes: int = 10

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(self.width, (4, 4), (4, 4), name="patch_embedding")(images)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
        x += self.param("pos_embedding", nn.initializers.normal(), (1, x.shape[1], self.width))
        for i in range(self.depth):
            x = EncoderBlock(name=f"block_{i}")(x)
        return nn.Dense(self.num_classes, name="head")(nn.LayerNorm(name="encoder_norm")(x)[:, 0])


class Mlp(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.hidden)(x)))


class MixerBlock(nn.Module):
    names: tuple = ("token_mixing", "channel_mixing")

    @nn.compact
    def __call__(self, x):
        tokens, channels = self.names
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        x = x + jnp.swapaxes(Mlp(24, name=tokens)(y), 1, 2)
        return x + Mlp(80, name=channels)(nn.LayerNorm()(x))


class Mixer(nn.Module):
    """An MLP-Mixer, with its paper's names or with those that Linen gives."""

    width: int = 40
    depth: int = 2
    num_classes: int = 10
    names: tuple = ("token_mixing", "channel_mixing")

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(self.width, (4, 4), (4, 4), name="stem")(images)
        x = x.reshape(len(x), -1, self.width)
        for i in range(self.depth):
            x = MixerBlock(self.names, name=f"MixerBlock_{i}")(x)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x).mean(1))


class ConvNeXtBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        y = nn.Conv(c, (7, 7), feature_group_count=c)(x)
        y = nn.Dense(c)(nn.gelu(nn.Dense(4 * c)(nn.LayerNorm()(y))))
        gamma = self.param("gamma", nn.initializers.ones, (c,))
        return x + y * jnp.broadcast_to(gamma, y.shape)


class ConvNeXt(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, images):
        x = nn.LayerNorm()(nn.Conv(16, (4, 4), (4, 4))(images))
        for width in (16, 32):
            if width > x.shape[-1]:
                x = nn.Conv(width, (2, 2), (2, 2), name="downsample")(nn.LayerNorm()(x))
            x = ConvNeXtBlock()(ConvNeXtBlock()(x))
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x.mean((1, 2))))


class ResNetBlock(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.BatchNorm(True)(nn.Conv(self.width, (3, 3), use_bias=False)(x)))
        y = nn.BatchNorm(True)(nn.Conv(self.width, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.BatchNorm(True, name="norm_proj")(
                nn.Conv(self.width, (1, 1), use_bias=False, name="conv_proj")(x)
            )
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Dense 3 x 3 convolutions, as in Flax's ImageNet example."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images):
        x = nn.BatchNorm(True, name="bn_init")(nn.Conv(8, (3, 3), name="conv_init")(images))
        x = ResNetBlock(16)(ResNetBlock(8)(x))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class NnxMixer(nnx.Module):
    """Depthwise and pointwise convolutions, in lists."""

    def __init__(self, rngs, width=16, depth=2, num_classes=10):
        self.stem = nnx.Conv(3, width, (2, 2), (2, 2), rngs=rngs)
        self.depthwise = nnx.List(
            nnx.Conv(width, width, (5, 5), feature_group_count=width, rngs=rngs)
            for _ in range(depth)
        )
        self.pointwise = nnx.List(nnx.Conv(width, width, (1, 1), rngs=rngs) for _ in range(depth))
        self.bn = nnx.List(nnx.BatchNorm(width, rngs=rngs) for _ in range(depth))
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.classifier = nnx.Linear(width, num_classes, rngs=rngs)


def shapes(module, image_shape=(32, 32, 3)):
    """The shapes of a Linen module's parameters."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), images)["params"]
