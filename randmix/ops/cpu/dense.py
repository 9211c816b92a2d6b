"""Gradients of a dense convolution on CPUs.

XLA computes the weight gradient as another convolution, whose kernel is as large as the image and
whose channels are the batch. On a CPU that took 62 % of a separable ResNet's step.
`weight_gradient` follows the definition: the product of the output's cotangent with the patches
that each output saw. With 3 x 3 kernels and batch 128 on two cores, XLA's form and this one,
measured alternately, took 24 and 14 ms at 32 x 32 x 16, 20 and 12 ms at 16 x 16 x 32, and 11 and
9 ms at 8 x 8 x 64. What makes the difference:

- Patches are built for a few images at a time, so that they stay in the cache.
- Patches are a sum of slices, each padded into its place, which XLA fuses into one pass; for a
  concatenation every slice would be written first. A patch of all kernel positions has many such
  terms, one of a single kernel row few, and a product with few columns is slow: `_COLUMNS` and
  `_POSITIONS` balance the two.
"""

import math

import jax
import jax.numpy as jnp

from randmix.ops.convolution import Geometry, same_padding
from randmix.ops.cpu import not_inlined
from randmix.ops.cpu.shift_sum import pad

Array = jax.Array

# Bytes of patches that are built at a time.
_PATCHES = 8 * 2**20
# Kernel rows are combined up to this many columns of a product and positions of the kernel.
_COLUMNS, _POSITIONS = 144, 9


def input_gradient(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """Cotangent of the input: the convolution of g, dilated by the stride, with the turned kernel.

    JAX's own transpose describes a kernel whose last two axes are exchanged. XLA:CPU brings such a
    kernel into the order that its quick convolution needs, but not inside a loop
    (https://github.com/jax-ml/jax/issues/12868): there, 20 gradients of a separable ResNet took
    13.4 s, and 1.2 s with this form, which takes 1.1 s outside loops, as does JAX's.
    """
    k, stride = kernel.shape[0], geometry.stride
    before = k - 1 - same_padding(k)[0]
    dilated = [(size - 1) * stride + 1 for size in g.shape[1:3]]
    padding = [
        (before, size + k - 1 - spread - before)
        for size, spread in zip(geometry.x.shape[1:3], dilated, strict=True)
    ]
    # Without the barrier, XLA puts the exchange back into the convolution.
    turned = jax.lax.optimization_barrier(jax.lax.rev(kernel, (0, 1)).swapaxes(2, 3))
    return jax.lax.conv_general_dilated(
        g,
        turned,
        window_strides=(1, 1),
        padding=padding,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def weight_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
    """Cotangent of the kernel in ``x.dtype``, summed in float32 over a few images at a time."""
    k, _, channels, features = geometry.kernel.shape
    patches = math.prod(g.shape[1:3]) * k * k * channels * 4
    images = max(
        n
        for n in range(1, x.shape[0] + 1)
        if x.shape[0] % n == 0 and (n == 1 or n * patches <= _PATCHES)
    )
    # Each turn uses images from across the batch, so that all devices take part if it is sharded.
    x, g = (a.reshape(images, -1, *a.shape[1:]) for a in (x, g))

    def add(turn, total):
        x_part, g_part = (
            jax.lax.dynamic_index_in_dim(a, turn, axis=1, keepdims=False) for a in (x, g)
        )
        return total + _products(x_part, g_part.astype(jnp.float32), geometry)

    total = jnp.zeros((features, k * k * channels), jnp.float32)
    total = add(0, total) if x.shape[1] == 1 else jax.lax.fori_loop(0, x.shape[1], add, total)
    return total.reshape(features, k, k, channels).transpose(1, 2, 3, 0).astype(x.dtype)


def _products(x: Array, g: Array, geometry: Geometry) -> Array:
    """Product of g and the patches of x: [C_out, k k C]."""
    k, stride = geometry.kernel.shape[0], geometry.stride
    x = pad(x, rows=same_padding(k), columns=same_padding(k))
    taken = max(1, min(_COLUMNS // (k * x.shape[-1]), _POSITIONS // k))
    products = []
    for first in range(0, k, taken):
        rows = (first, min(first + taken, k))
        patches = _patches(x, rows=rows, kernel_size=k, size=g.shape[1:3], stride=stride)
        # Flat, as in `pointwise`. g comes first: with its few channels as columns, the product is
        # up to twice as slow.
        products.append(
            jnp.dot(g.reshape(-1, g.shape[-1]).T, patches.reshape(-1, patches.shape[-1]))
        )
    return jnp.concatenate(products, axis=1)


@not_inlined
def _patches(
    x: Array, *, rows: tuple[int, int], kernel_size: int, size: tuple[int, int], stride: int
) -> Array:
    """The part of a padded x that some rows of the kernel see: [N, H', W', rows k C]."""
    channels = x.shape[-1]
    height, width = (stride * (n - 1) + 1 for n in size)
    positions = [(i, j) for i in range(*rows) for j in range(kernel_size)]
    zero = jnp.zeros((), x.dtype)
    return sum(  # pyright: ignore[reportReturnType] (there are terms, so it is no int 0)
        jax.lax.pad(
            x[:, i : i + height : stride, j : j + width : stride],
            zero,
            [(0, 0, 0)] * 3 + [(place * channels, (len(positions) - 1 - place) * channels, 0)],
        )
        for place, (i, j) in enumerate(positions)
    )
