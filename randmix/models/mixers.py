"""Mixers of tokens, the part in which MetaFormers differ: [N, H, W, C] -> [N, H, W, C].

Spatial mixing is what is applied to each channel alone, channel mixing what is applied to each
position alone (section 1 of the paper). `Depthwise` of ``models.layers`` is the mixer of
convolutional models.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from randmix.models.parameters import Initializer, declare, uniform_fan_in
from randmix.ops import match_rank
from randmix.ops.activations import gelu
from randmix.ops.convolution import same_padding
from randmix.ops.pointwise import pointwise

# Which weights of an attention layer are spatial mixing; see `Attention`.
ATTENTION_ROLES = ("queries_keys", "all")


class Linear(nn.Module):
    """A linear map of the last axis: [..., C] -> [..., features].

    Attributes:
        features: number of outputs.
        role: "channel" if the last axis is that of channels, "spatial" if it is that of positions.
        use_bias: whether a bias is added.
        init: initialiser of the kernel, [C, features]; None for PyTorch's default.
    """

    features: int
    role: str
    use_bias: bool = True
    init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the map in the dtype of x."""
        default = uniform_fan_in(x.shape[-1])
        shape = (x.shape[-1], self.features)
        y = pointwise(x, declare(self, self.role, "kernel", self.init or default, shape))
        if self.use_bias:
            bias = declare(self, self.role, "bias", default, (self.features,))
            y += match_rank(bias, y).astype(y.dtype)
        return y


class Mlp(nn.Module):
    """Two linear maps of the last axis with a GELU between: [..., C] -> [..., C].

    Attributes:
        hidden: number of hidden units.
        role: as in `Linear`.
    """

    hidden: int
    role: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies both maps."""
        y = gelu(Linear(self.hidden, self.role, name="up")(x))
        return Linear(x.shape[-1], self.role, name="down")(y)


class Attention(nn.Module):
    """Softmax attention over all positions (Vaswani et al., arXiv 1706.03762).

    Its output is a matrix over positions, applied to each channel of the values: spatial mixing,
    whose weights are those of queries and keys. Values and output are maps of single positions:
    channel mixing. ``roles="all"`` takes the other reading, in which the whole layer is spatial
    mixing.

    Attributes:
        head_dim: channels of a head, a divisor of C.
        roles: "queries_keys" or "all".
    """

    head_dim: int
    roles: str = "queries_keys"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies attention with C / head_dim heads."""
        n, h, w, c = x.shape
        rest = "spatial" if self.roles == "all" else "channel"

        def heads(name: str, role: str) -> jax.Array:
            y = Linear(c, role, name=name)(x)
            return y.reshape(n, h * w, c // self.head_dim, self.head_dim)

        query, key, value = heads("query", "spatial"), heads("key", "spatial"), heads("value", rest)
        y = AttentionProducts(name="products")(query, key, value)
        return Linear(c, rest, name="output")(y.reshape(x.shape))


class AttentionProducts(nn.Module):
    """The two products of attention, which have no weights; a module, so that they are counted."""

    @nn.compact
    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """Returns softmax(query key^T / sqrt(D)) value for each head; all are [N, T, heads, D]."""
        with jax.numpy_dtype_promotion("standard"):  # JAX raises bfloat16 logits to float32
            return jax.nn.dot_product_attention(query, key, value)


class TokenMlp(nn.Module):
    """An MLP over all positions, the same for each channel (MLP-Mixer, arXiv 2105.01601).

    Attributes:
        hidden: number of hidden units.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies it to every channel."""
        return over_positions(Mlp(self.hidden, "spatial", name="mlp"), x)


class RandomMixing(nn.Module):
    """One matrix over all positions for all channels, at first random (RandFormer, 2210.13452).

    The initial weights with which a position sees the others are the softmax of uniform numbers,
    so that they are positive and sum to 1. Learned, they are free.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Mixes the positions."""
        positions = x.shape[1] * x.shape[2]
        mix = Linear(positions, "spatial", use_bias=False, init=_stochastic, name="matrix")
        return over_positions(mix, x)


class Pooling(nn.Module):
    """The average of a k x k window, less the pixel itself (PoolFormer, arXiv 2111.11418).

    Attributes:
        kernel_size: side k of the window, which is cut at the borders.
    """

    kernel_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the difference; sums are float32."""
        k, wide = self.kernel_size, x.astype(jnp.float32)
        total = _window_sums(_window_sums(wide, k, axis=1), k, axis=2)
        ones = jnp.ones((1, *x.shape[1:3], 1))
        count = _window_sums(_window_sums(ones, k, axis=1), k, axis=2)
        return (total / count - wide).astype(x.dtype)


class Shift(nn.Module):
    """Moves groups of channels, one to each place of a k x k window (Wu et al., arXiv 1711.08141).

    Consecutive channels form k^2 groups of equal size, up to one. Zeros move in at the borders.

    Attributes:
        kernel_size: side k of the window.
    """

    kernel_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the moved channels."""
        (_, h, w, c), k = x.shape, self.kernel_size
        padded = jnp.pad(x, ((0, 0), same_padding(k), same_padding(k), (0, 0)))
        groups = zip(np.ndindex(k, k), np.array_split(np.arange(c), k * k), strict=True)
        return jnp.concatenate(
            [
                padded[:, i : i + h, j : j + w, group[0] : group[-1] + 1]
                for (i, j), group in groups
                if len(group)
            ],
            axis=-1,
        )


class Identity(nn.Module):
    """No mixing (IdentityFormer, arXiv 2210.13452)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x."""
        return x


def over_positions(mix: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Applies a map of the positions' axis, [N, C, H W] -> [N, C, H W], to x [N, H, W, C]."""
    n, h, w, c = x.shape
    return mix(x.reshape(n, h * w, c).swapaxes(1, 2)).swapaxes(1, 2).reshape(x.shape)


def _window_sums(x: jax.Array, kernel_size: int, *, axis: int) -> jax.Array:
    """Sums of windows along one axis: on a CPU a third of the time of XLA's ``reduce_window``."""
    margins = [(0, 0)] * x.ndim
    margins[axis] = same_padding(kernel_size)
    padded, size = jnp.pad(x, margins), x.shape[axis]
    parts = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(kernel_size))
    return functools.reduce(jnp.add, parts)


def _stochastic(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.nn.softmax(jax.random.uniform(key, shape, dtype), axis=0)
