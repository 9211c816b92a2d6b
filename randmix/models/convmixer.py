"""ConvMixer (Trockman & Kolter, arXiv 2201.09792; section 3.3 of the paper).

A patch stem, ``depth`` blocks of ``x = x + norm(act(depthwise(x)))`` and
``x = norm(act(pointwise(x)))``, global average pooling and a linear head. For pixel un-shuffling
(section 4.4), a linear map from every pixel to the channels of the image replaces pooling and
classifier.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from randmix.models import layers
from randmix.models.filters import Smoothing
from randmix.models.parameters import Initializer
from randmix.models.stack import Runs, apply_blocks

HEADS = ("classifier", "image")

# The published ImageNet models, by width and depth.
VARIANTS: dict[str, dict[str, Any]] = {
    name: dict(
        zip(("width", "depth", "kernel_size", "patch_size", "activation"), values, strict=True)
    )
    for name, values in {
        "convmixer_1536_20": (1536, 20, 9, 7, "gelu"),
        "convmixer_768_32": (768, 32, 7, 7, "relu"),
        "convmixer_1024_20": (1024, 20, 9, 14, "gelu"),
    }.items()
}


class Block(nn.Module):
    """Residual spatial mixing, then channel mixing: [N, H, W, C] -> [N, H, W, C].

    Attributes:
        kernel_size: side of the depthwise filters.
        activation: "gelu" or "relu".
        filters: initialiser of the depthwise filters.
        depthwise_method: one of `randmix.ops.depthwise.METHODS`.
    """

    kernel_size: int
    activation: str
    filters: Initializer
    depthwise_method: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies the block; ``train`` selects the statistics of the batch."""
        y, bias = layers.Depthwise(
            self.kernel_size, self.filters, self.depthwise_method, name="depthwise"
        )(x)
        x = x + layers.ActNorm(self.activation, name="depthwise_norm")(y, bias, train=train)
        y, bias = layers.Pointwise(x.shape[-1], name="pointwise")(x)
        return layers.ActNorm(self.activation, name="pointwise_norm")(y, bias, train=train)


class ConvMixer(nn.Module):
    """ConvMixer as a pure function of its variables.

    Attributes:
        width: number of channels of the representation.
        depth: number of blocks.
        kernel_size: side of the depthwise filters.
        patch_size: side and stride of the stem's patches; must divide both sides of the image.
        filters: initialiser of the depthwise filters, ``(key, shape, dtype) -> [k, k, C]``.
        num_classes: number of logits; None for the head "image".
        activation: "gelu" (exact) or "relu".
        head: "classifier", or "image" (patch size 1), which returns as many numbers per pixel as
            the image has channels.
        smooth_stem: the smoothing of the patch stem's initial kernel; None for none.
        mean: one number per channel; images in [0, 1] are normalised to (image - mean) / std.
            Empty: no normalisation.
        std: one number per channel, as many as in ``mean``.
        dtype: dtype of the computation; parameters, statistics and outputs are float32.
        depthwise_method: how depthwise convolutions are computed, one of
            `randmix.ops.depthwise.METHODS`.
        remat: whether the backward pass recomputes each block instead of saving what it needs.
        scan: runs of equal blocks to apply with a scan; see ``randmix.models.stack``.
    """

    width: int
    depth: int
    kernel_size: int
    patch_size: int
    filters: Initializer
    num_classes: int | None = None
    activation: str = "gelu"
    head: str = "classifier"
    smooth_stem: Smoothing | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: jnp.dtype = jnp.float32
    depthwise_method: str = "auto"
    remat: bool = False
    scan: Runs = ()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images to logits or, with the head "image", to images.

        Args:
            images: [N, H, W, C] float in [0, 1].
            train: normalise with the statistics of the batch and update the running statistics, for
                which ``batch_stats`` must be mutable; otherwise normalise with the running ones.

        Returns:
            float32 logits [N, num_classes], or float32 images [N, H, W, C] on the scale of the
            input's pixels, not clipped to [0, 1].

        Raises:
            UserError: as in `check_image_shape`.
        """
        self.check_image_shape(images.shape[1:])
        x = layers.normalize(images, mean=self.mean, std=self.std).astype(self.dtype)
        smoothing = self.smooth_stem or Smoothing()
        x, bias = layers.PatchStem(self.width, self.patch_size, smoothing, name="stem")(x)
        x = layers.ActNorm(self.activation, name="stem_norm")(x, bias, train=train)
        block = functools.partial(
            Block, self.kernel_size, self.activation, self.filters, self.depthwise_method
        )
        x = apply_blocks(
            self, [block] * self.depth, x, train=train, remat=self.remat, scan=self.scan
        )
        if self.head == "image":
            return layers.Head(images.shape[-1], name="projection")(x)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        assert self.num_classes is not None, "the head 'classifier' has a number of classes"
        return layers.Head(self.num_classes, name="classifier")(x)

    def check_image_shape(self, image_shape: tuple[int, ...]) -> None:
        """Raises a UserError if images [H, W, C] don't fit the patches or the normalisation."""
        layers.check_patches(self.patch_size, image_shape)
        layers.check_channels(image_shape[-1], mean=self.mean, std=self.std)
