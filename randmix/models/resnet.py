"""Pre-activation ResNet (He et al., arXiv 1603.05027) with separable convolutions.

Section 4.1.1 of the paper: a stem, stages of ``depth`` blocks of two convolutions each, norm and
ReLU, global average pooling and a linear head. Every convolution is separable, including the stem,
and none has a bias. The first block of each stage after the first halves the sides and doubles the
width. With the "cifar" stem there are three stages, or 6 depth + 2 layers; with the "imagenet" stem
four stages, or 8 depth + 2 layers.

Paths: ``spatial/block_03/conv_1/depthwise/kernel``, ``channel/block_03/conv_1/pointwise/kernel``,
``norm/block_03/norm_1/scale``, ``channel/block_03/shortcut/kernel``. Blocks are numbered across
stages.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from randmix.models.layers import Head, NormAct, Pointwise, Separable, check_channels, normalize
from randmix.models.parameters import Initializer
from randmix.models.stack import Runs, apply_blocks

# Number of stages by stem.
STAGES = {"cifar": 3, "imagenet": 4}


class Block(nn.Module):
    """``x + conv(relu(norm(conv(relu(norm(x))))))``: [N, H, W, C] -> [N, H', W', features].

    Where the shape changes, a 1 x 1 projection of the first relu(norm(x)) replaces x: the code that
    the authors released applies this pre-activation before both branches of such a block.

    Attributes:
        features: number of output channels.
        stride: stride of the first convolution; H' = (H - 1) // stride + 1 and likewise for W'.
        convolution: a partial `Separable` that lacks only ``features``, ``stride`` and ``name``.
    """

    features: int
    stride: int
    convolution: functools.partial

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies the block; ``train`` selects the statistics of the batch."""
        y = NormAct("relu", name="norm_1")(x, train=train)
        if self.stride > 1 or x.shape[-1] != self.features:
            x, _ = Pointwise(self.features, use_bias=False, name="shortcut")(
                y[:, :: self.stride, :: self.stride]
            )
        y = self.convolution(self.features, stride=self.stride, name="conv_1")(y, train=train)
        y = NormAct("relu", name="norm_2")(y, train=train)
        return x + self.convolution(self.features, name="conv_2")(y, train=train)


class ResNet(nn.Module):
    """Separable ResNet as a pure function of its variables.

    Attributes:
        num_classes: number of logits.
        width: number of channels of the stem and the first stage; the paper uses 16 on CIFAR and 64
            on ImageNet.
        depth: number of blocks per stage.
        filters: initialiser of the depthwise kernels, ``(key, shape, dtype) -> [k, k, C, m]``.
        kernel_size: side of the depthwise filters; those of the "imagenet" stem are always 7 x 7.
        multiplier: number m of depthwise filters per channel.
        between: what is between depthwise and pointwise: "none", "relu", "bn" or "bn_relu".
        stem: "cifar", a convolution; or "imagenet", a convolution of stride 2 and a 3 x 3 max pool
            of stride 2.
        depthwise_method: as in `ConvMixer`, for depthwise convolutions that aren't composed with
            pointwise ones.
        mean, std, dtype, remat, scan: those of `ConvMixer`.
    """

    num_classes: int
    width: int
    depth: int
    filters: Initializer
    kernel_size: int = 3
    multiplier: int = 9
    between: str = "none"
    stem: str = "cifar"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: jnp.dtype = jnp.float32
    depthwise_method: str = "auto"
    remat: bool = False
    scan: Runs = ()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] in [0, 1] to float32 logits [N, num_classes].

        Arguments and errors are those of a `ConvMixer`'s call.
        """
        self.check_image_shape(images.shape[1:])
        convolution = functools.partial(
            Separable,
            kernel_size=self.kernel_size,
            multiplier=self.multiplier,
            filters=self.filters,
            between=self.between,
            method=self.depthwise_method,
        )
        x = normalize(images, mean=self.mean, std=self.std).astype(self.dtype)
        if self.stem == "imagenet":
            x = convolution(self.width, kernel_size=7, stride=2, name="stem")(x, train=train)
            x = nn.max_pool(
                x,
                (3, 3),
                strides=(2, 2),
                padding=((1, 1), (1, 1)),  # pyright: ignore[reportArgumentType] (Flax allows pairs)
            )
        else:
            x = convolution(self.width, name="stem")(x, train=train)
        blocks = []
        for i in range(STAGES[self.stem] * self.depth):
            stage, place = divmod(i, self.depth)
            stride = 2 if stage > 0 and place == 0 else 1
            blocks.append(functools.partial(Block, self.width * 2**stage, stride, convolution))
        x = apply_blocks(self, blocks, x, train=train, remat=self.remat, scan=self.scan)
        x = NormAct("relu", name="final_norm")(x, train=train)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        return Head(self.num_classes, name="classifier")(x)

    def check_image_shape(self, image_shape: tuple[int, ...]) -> None:
        """Raises a UserError if images [H, W, C] don't fit the normalisation; H and W are free."""
        check_channels(image_shape[-1], mean=self.mean, std=self.std)
