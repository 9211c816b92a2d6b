"""Linen layers: spatial mixing, channel mixing, both combined, and the linear head.

`PatchStem`, `Depthwise` and `Pointwise` return their result without the bias, and the bias
separately. The following norm adds it (see `randmix.ops.act_norm`): added here, it would cost a TPU
one more array as large as the activations.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from randmix.models.norms import NormAct
from randmix.models.parameters import Initializer, declare, uniform_fan_in
from randmix.ops import match_rank
from randmix.ops.depthwise import depthwise
from randmix.ops.pointwise import patch_product, pointwise
from randmix.ops.separable import separable

# What can stand between the two halves of a separable convolution.
BETWEEN = ("none", "relu", "bn", "bn_relu")


class PatchStem(nn.Module):
    """Maps non-overlapping patches to pixels: [N, H, W, C] -> [N, H/p, W/p, features].

    Its role is spatial: the paper freezes it in channels-only models (section 4.2).

    Attributes:
        features: number of output channels.
        patch_size: side and stride p of the patches; must divide H and W.
    """

    features: int
    patch_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Applies the strided convolution; returns its result and the bias to add, [features]."""
        p, c = self.patch_size, x.shape[-1]
        init = uniform_fan_in(p * p * c)
        kernel = declare(self, "spatial", "kernel", init, (p, p, c, self.features))
        bias = declare(self, "spatial", "bias", init, (self.features,))
        return patch_product(x, kernel), bias


class Depthwise(nn.Module):
    """Spatial mixing with one k x k filter per channel: [N, H, W, C] -> [N, H, W, C].

    Attributes:
        kernel_size: side k of the filters; the padding is 'same'.
        filters: initialiser of the kernel, [k, k, C].
        method: how the convolution is computed; see `depthwise`.
    """

    kernel_size: int
    filters: Initializer
    method: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Applies the depthwise convolution; returns its result and the bias to add, [C]."""
        k, c = self.kernel_size, x.shape[-1]
        kernel = declare(self, "spatial", "kernel", self.filters, (k, k, c))
        bias = declare(self, "spatial", "bias", uniform_fan_in(k * k), (c,))
        return depthwise(x, kernel, method=self.method), bias


class Pointwise(nn.Module):
    """Channel mixing by a 1 x 1 convolution: [..., C] -> [..., features].

    Attributes:
        features: number of output channels.
        use_bias: whether the layer has a bias.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Maps every pixel linearly; returns the result and the bias to add, [features] or None."""
        init = uniform_fan_in(x.shape[-1])
        kernel = declare(self, "channel", "kernel", init, (x.shape[-1], self.features))
        bias = declare(self, "channel", "bias", init, (self.features,)) if self.use_bias else None
        return pointwise(x, kernel), bias


class Separable(nn.Module):
    """Separable convolution (paper, section 3.2): [N, H, W, C] -> [N, H', W', features].

    A depthwise k x k convolution from C to C m channels, then a pointwise one to ``features``,
    without bias; H' = (H - 1) // stride + 1 and likewise for W'. With nothing in between, the pair
    is computed as the single dense convolution that it equals.

    Attributes:
        features: number of output channels.
        kernel_size: side k of the depthwise filters.
        multiplier: number m of depthwise filters per channel.
        filters: initialiser of the depthwise kernel, [k, k, C, m].
        stride: stride of the depthwise half, at least 1.
        between: what is applied to the C m channels before they are mixed, one of ``BETWEEN``.
        method: how the depthwise half is computed if something is in between; see `depthwise`.
    """

    features: int
    kernel_size: int
    multiplier: int
    filters: Initializer
    stride: int = 1
    between: str = "none"
    method: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies the convolution; ``train`` is passed to a BatchNorm in between."""
        k, c, m = self.kernel_size, x.shape[-1], self.multiplier
        spatial = _Kernel("spatial", (k, k, c, m), self.filters, name="depthwise")()
        mixing = _Kernel(
            "channel", (c * m, self.features), uniform_fan_in(c * m), name="pointwise"
        )()
        if self.between == "none":
            return separable(x, spatial, mixing, stride=self.stride)
        y = depthwise(x, spatial, stride=self.stride, method=self.method)
        if self.between == "relu":
            y = jax.nn.relu(y)
        else:
            activation = "relu" if self.between == "bn_relu" else "identity"
            y = NormAct(activation, name="between_norm")(y, train=train)
        return pointwise(y, mixing)


class _Kernel(nn.Module):
    """A kernel under its own name, for a layer that applies two of them at once."""

    role: str
    shape: tuple[int, ...]
    initializer: Initializer

    @nn.compact
    def __call__(self) -> jax.Array:
        return declare(self, self.role, "kernel", self.initializer, self.shape)


class Head(nn.Module):
    """Linear head in float32: [..., C] -> [..., features].

    Attributes:
        features: number of outputs.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the linear map."""
        init = uniform_fan_in(x.shape[-1])
        kernel = declare(self, "head", "kernel", init, (x.shape[-1], self.features))
        bias = declare(self, "head", "bias", init, (self.features,))
        return pointwise(x.astype(jnp.float32), kernel) + match_rank(bias, x)
