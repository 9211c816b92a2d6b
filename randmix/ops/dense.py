"""Dense convolution with a fast weight gradient on CPUs.

XLA computes the weight gradient of a convolution as another convolution, whose kernel is as large
as the image and whose channels are the batch. On a CPU that took 62 % of a separable ResNet's step.
The form here, used on CPUs only, follows the definition: the product of the output's cotangent with
the patches that each output saw. With 3 x 3 kernels and batch 128 on two cores, XLA's form and this
one, measured alternately, took 24 and 14 ms at 32 x 32 x 16, 20 and 12 ms at 16 x 16 x 32, and 11
and 9 ms at 8 x 8 x 64. What makes the difference:

- Patches are built for a few images at a time, so that they stay in the cache.
- Patches are a sum of slices, each padded into its place, which XLA fuses into one pass; for a
  concatenation every slice would be written first. A patch of all kernel positions has many such
  terms, one of a single kernel row few, and a product with few columns is slow: `_COLUMNS` and
  `_POSITIONS` balance the two.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from randmix.ops import sum_dtype
from randmix.ops.calls import not_inlined
from randmix.ops.shift_sum import pad

Array = jax.Array

# Bytes of patches that are built at a time.
_PATCHES = 8 * 2**20
# Kernel rows are combined up to this many columns of a product and positions of the kernel.
_COLUMNS, _POSITIONS = 144, 9


def convolve(x: Array, kernel: Array, *, stride: int = 1) -> Array:
    """Dense cross-correlation with 'same' padding as in PyTorch; see `randmix.ops.depthwise`.

    For an argument that isn't differentiated, no gradient is computed and nothing is saved.
    Supports reverse mode only: `jax.jvp` isn't defined.

    Args:
        x: [N, H, W, C], any floating dtype.
        kernel: [k, k, C, C_out] in ``x.dtype``.
        stride: stride of rows and columns, at least 1.

    Returns:
        [N, H', W', C_out] in ``x.dtype``, H' = (H - 1) // stride + 1 and likewise for W'.
    """
    return _convolve(_Geometry(x.shape, kernel.shape, stride), x, kernel)


class _Geometry(NamedTuple):
    """What the backward pass must know about arrays that weren't saved."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(geometry, x, kernel):
    return _plain(x, kernel, geometry.stride)


def _plain(x, kernel, stride):
    k = kernel.shape[0]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[((k - 1) // 2, k // 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _forward(geometry, x, kernel):
    saved = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    return _convolve(geometry, x.value, kernel.value), saved


def _backward(geometry, saved, g):
    x, kernel = saved
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        return None, None
    dx = dkernel = None
    if kernel is not None:
        shape = jax.ShapeDtypeStruct(geometry.x, g.dtype)
        (dx,) = jax.linear_transpose(lambda x: _plain(x, kernel, geometry.stride), shape)(g)
    if x is not None:
        with jax.named_scope("dense_weight_gradient"):
            dkernel = jax.lax.platform_dependent(
                *(x, g),
                cpu=functools.partial(_product_with_patches, geometry),
                default=functools.partial(_transposed, geometry),
            )
    return dx, dkernel


_convolve.defvjp(_forward, _backward, symbolic_zeros=True)


def _transposed(geometry, x, g):
    """Cotangent of the kernel in XLA's form."""
    kernel = jax.ShapeDtypeStruct(geometry.kernel, g.dtype)
    return jax.linear_transpose(lambda kernel: _plain(x, kernel, geometry.stride), kernel)(g)[0]


def _product_with_patches(geometry, x, g):
    """The same, from products of a few images' patches at a time, summed in `sum_dtype`."""
    (k, _, channels, features), dtype = geometry.kernel, sum_dtype(x.dtype)
    patches = math.prod(g.shape[1:3]) * k * k * channels * dtype.itemsize
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
        return total + _products(x_part, g_part.astype(dtype), k, geometry.stride)

    total = jnp.zeros((features, k * k * channels), dtype)
    total = add(0, total) if x.shape[1] == 1 else jax.lax.fori_loop(0, x.shape[1], add, total)
    return total.reshape(features, k, k, channels).transpose(1, 2, 3, 0).astype(x.dtype)


def _products(x: Array, g: Array, k: int, stride: int) -> Array:
    """Product of g and the patches of x: [C_out, k k C]."""
    x = pad(x, rows=((k - 1) // 2, k // 2), columns=((k - 1) // 2, k // 2))
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
