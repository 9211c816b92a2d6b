"""The pre-activation ResNet (He et al., arXiv 1603.05027) of separable convolutions, the paper's section 4.1.1.

Stem, then stages of ``depth`` blocks of two convolutions, norm and ReLU, global average pool, linear head.
Every convolution is separable, the stem too; none has a bias. Each stage after the first halves the sides and
doubles the width in its first block. With the "cifar" stem there are three stages, 6 depth + 2 layers; with
the "imagenet" stem four, 8 depth + 2 layers.

Paths: ``spatial/block_03/conv_1/depthwise/kernel``, ``channel/block_03/conv_1/pointwise/kernel``,
``norm/block_03/norm_1/scale``, ``channel/block_03/shortcut/kernel``; blocks are numbered across the stages.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from randmix.models import inputs
from randmix.models.layers import AUTO, Head, Pointwise, Separable
from randmix.models.norms import NormAct
from randmix.models.parameters import Initializer
from randmix.models.stack import Runs, apply_blocks

# The number of stages that goes with each stem.
STAGES = {"cifar": 3, "imagenet": 4}


class Block(nn.Module):
    """``x + conv(relu(norm(conv(relu(norm(x))))))``: [N, H, W, C] -> [N, H', W', features].

    Where the shape changes, a 1 x 1 projection of relu(norm(x)), the first of the two, takes the place of x:
    the code that its authors released has that pre-activation before both branches of such a block.
    """

    features: int
    stride: int
    convolution: functools.partial  # Separable, but for features, stride and name

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies the block."""
        y = NormAct("relu", name="norm_1")(x, train=train)
        if self.stride > 1 or x.shape[-1] != self.features:
            x, _ = Pointwise(self.features, use_bias=False, name="shortcut")(
                y[:, :: self.stride, :: self.stride]
            )
        y = self.convolution(self.features, stride=self.stride, name="conv_1")(y, train=train)
        y = NormAct("relu", name="norm_2")(y, train=train)
        return x + self.convolution(self.features, name="conv_2")(y, train=train)


class ResNet(nn.Module):
    """The separable ResNet as a pure function of its variables.

    Attributes:
        num_classes: size of the logits.
        width: channels of the stem and of the first stage; the paper has 16 on CIFAR, 64 on ImageNet.
        depth: blocks a stage.
        filters: initialiser of the depthwise kernels, ``(key, shape, dtype) -> [k, k, C, m]``.
        kernel_size: side of the depthwise filters; the "imagenet" stem's are 7 x 7 all the same.
        multiplier: depthwise filters a channel, m.
        between: what stands between depthwise and pointwise: "none", "relu", "bn" or "bn_relu".
        stem: "cifar", a convolution; "imagenet", one of stride 2 and then a 3 x 3 max pool of stride 2.
        mean, std: a number a channel; images in [0, 1] enter as (image - mean) / std. Empty: as they are.
        dtype: of the arithmetic; parameters, statistics and logits are float32.
        depthwise_method: one of ``layers.METHODS``: how depthwise convolutions are computed that aren't composed with
            the pointwise ones.
        remat: compute each block again on the way back instead of keeping what its gradient needs.
        scan: runs of equal blocks to apply by a scan; see ``randmix.models.stack``.
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
    depthwise_method: str = AUTO
    remat: bool = False
    scan: Runs = ()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images [N, H, W, C] float in [0, 1] to logits [N, num_classes] float32.

        Args:
            images: [N, H, W, C] in [0, 1].
            train: normalise by the batch's statistics and, where ``batch_stats`` is mutable, move the
                running ones; else normalise by the running ones.
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
        x = inputs.normalize(images, self.mean, self.std).astype(self.dtype)
        if self.stem == "imagenet":
            x = convolution(self.width, kernel_size=7, stride=2, name="stem")(x, train=train)
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
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

    def check_image_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Raises a UserError where images [H, W, C] don't fit the normalisation; any H and W will do."""
        inputs.check_channels(image_shape[-1], mean=self.mean, std=self.std)
