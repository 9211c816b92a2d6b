"""Linen layers: spatial mixing, channel mixing, both combined, norms and the linear head.

`PatchStem`, `Depthwise` and `Pointwise` return their result without the bias, and the bias
separately. The following norm adds it (see `randmix.ops.act_norm`): added here, it would cost a TPU
one more array as large as the activations.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from randmix.errors import UserError
from randmix.models.filters import Smoothing
from randmix.models.parameters import Initializer, declare, uniform_fan_in
from randmix.ops import act_norm, match_rank
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
        smoothing: applied to the kernel's initial value, as to a bank [p, p, C, features].
    """

    features: int
    patch_size: int
    smoothing: Smoothing = Smoothing()

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Applies the strided convolution; returns its result and the bias to add, [features]."""
        p, c = self.patch_size, x.shape[-1]
        init = uniform_fan_in(p * p * c)
        smooth = self.smoothing.after(init)
        kernel = declare(self, "spatial", "kernel", smooth, (p, p, c, self.features))
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


class _BatchNorm(nn.Module):
    """BatchNorm fused with an activation before or after it, over all axes but the last.

    In training, the statistics of the global batch normalise, and the running ones are updated:
    running = momentum * running + (1 - momentum) * batch, with the variance scaled by n / (n - 1)
    as in PyTorch, whose ``momentum=0.1`` is 0.9 here. A subclass sets the operators of its order.

    Attributes:
        activation: a key of `randmix.ops.activations.ACTIVATIONS`.
        momentum: weight of the old running statistics, in [0, 1].
        epsilon: added to the variance.
    """

    activation: str
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, offset: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Normalises and activates x; returns [..., C] in ``x.dtype``.

        Args:
            x: [..., C], any floating dtype: the result of a layer, without its bias.
            offset: [C], that bias; None means zero.
            train: normalise with the statistics of the batch and update the running ones, which are
                float32; otherwise normalise with the running statistics.
        """
        shape = x.shape[-1:]
        scale = declare(self, "norm", "scale", jax.nn.initializers.ones, shape)
        bias = declare(self, "norm", "bias", jax.nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        options = {"activation": self.activation, "epsilon": self.epsilon, "offset": offset}
        if not train:
            return self.by_running(
                x, running_mean.value, running_variance.value, scale, bias, **options
            )
        y, mean, variance = self.by_batch(x, scale, bias, shift=running_mean.value, **options)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = variance * (count / max(count - 1, 1))
            for running, new in ((running_mean, mean), (running_variance, unbiased)):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        return y


class ActNorm(_BatchNorm):
    """Activation, then BatchNorm, as in ConvMixer."""

    by_batch = staticmethod(act_norm.act_norm)
    by_running = staticmethod(act_norm.act_norm_inference)


class NormAct(_BatchNorm):
    """BatchNorm, then activation, as in the pre-activation ResNet."""

    by_batch = staticmethod(act_norm.norm_act)
    by_running = staticmethod(act_norm.norm_act_inference)


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


def normalize(images: jax.Array, *, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Returns (images - mean) / std, or the images unchanged if ``mean`` is empty.

    Args:
        images: [N, H, W, C] float in [0, 1].
        mean: one number per channel, or empty.
        std: one number per channel, or empty.
    """
    if not mean:
        return images
    centre, deviation = (match_rank(jnp.asarray(v, images.dtype), images) for v in (mean, std))
    return (images - centre) / deviation


def check_channels(channels: int, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raises a UserError if images with that many channels don't fit the normalisation."""
    for name, numbers in (("mean", mean), ("std", std)):
        if numbers and len(numbers) != channels:
            raise UserError(
                f"{name}: got {len(numbers)} numbers, allowed {channels} (one per channel) or none"
            )


def check_patches(patch_size: int, image_shape: tuple[int, ...]) -> None:
    """Raises a UserError unless patches of that side tile images [H, W, C]."""
    if len(image_shape) != 3:
        raise UserError(f"images: got one of shape {list(image_shape)}, allowed is [H, W, C]")
    h, w, _ = image_shape
    if h % patch_size or w % patch_size:
        raise UserError(
            f"patch_size: got {patch_size}, which doesn't divide the image's {h} x {w} pixels; "
            "allowed is a common divisor of both sides"
        )
